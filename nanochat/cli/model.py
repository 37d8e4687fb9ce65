"""Commands that use a trained model: chat, serve, eval, report, export, import."""

from pathlib import Path
from typing import Annotated

import typer

from nanochat.cli.options import AsJson, Commands, Device, Run, relaunch, require_choice
from nanochat.console import log, show, show_json

app = Commands()


@app.command(rich_help_panel="Use")
def chat(
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="One message; only its answer is printed on stdout")] = None,
    run: Run = None,
    temperature: Annotated[float, typer.Option(metavar="T", help="Sampling temperature; 0: always the most likely token")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", "--top_k", metavar="K", help="Sampling from the K most likely tokens; 0: all")] = 50,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "--max_tokens", metavar="N", help="Most tokens in one answer")] = 512,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the sampling; without it, a random one")] = None,
    device: Device = "auto",
) -> None:
    """Chat with a trained model in the terminal."""
    from nanochat import paths
    from nanochat.chat.terminal import Speaker
    from nanochat.chat.terminal import chat as converse
    from nanochat.generate.engine import Engine
    from nanochat.hardware.machine import this_machine
    from nanochat.runs import record as runs
    from nanochat.runs.checkpoint import verify
    from nanochat.runs.names import CheckpointName, plain_name, step_dir

    where = "cuda" if device != "cpu" and this_machine(device).cuda else "cpu"

    def speaker(opened: runs.TrainedModel) -> Speaker:
        name = f"run {opened.run}, {opened.checkpoint.meta['stage']} step {opened.checkpoint.step}"
        return Speaker(Engine(opened.model, opened.tokenizer), opened.tokenizer, opened.chats, name)

    def open_model(text: str) -> Speaker:
        name = CheckpointName.parse(text)
        if name.stage is None or name.step is None:
            return speaker(runs.open_model(name.run, where, name.stage))
        folder = step_dir(paths.run_dir(plain_name(name.run)) / name.stage, name.step)
        return speaker(runs.open_checkpoint(name.run, verify(folder), where))

    opened = runs.open_model(run, where)
    runs.describe(opened)
    first = speaker(opened)
    converse(
        first.engine,
        first.tokenizer,
        prompt=prompt,
        temperature=temperature,
        top_k=top_k or None,
        max_tokens=max_tokens,
        seed=seed,
        chat_model=first.chats,
        name=first.name,
        open_model=open_model,
    )


@app.command(rich_help_panel="Use")
def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0: reachable from other machines")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="Port to listen on")] = 8000,
    run: Run = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file", "--api_key_file", metavar="FILE", help="File with the key that clients must send (or NANOCHAT_API_KEY)"
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", "--allow_host", metavar="HOST", help="Name that clients reach this server by; *.example.org: all names under it"
        ),
    ] = None,
    trust_proxy: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-proxy", "--trust_proxy", metavar="ADDRESS", help="Address or network of a proxy whose X-Forwarded-For header is used"
        ),
    ] = None,
    insecure_no_key: Annotated[
        bool, typer.Option("--insecure-no-key", "--insecure_no_key", help="No key, although other machines can connect")
    ] = False,
    allow_training: Annotated[
        bool, typer.Option("--allow-training", "--allow_training", help="Start, stop and resume training runs on the page")
    ] = False,
    device: Device = "auto",
    slots: Annotated[int, typer.Option(metavar="N", help="Answers generated at once; 0: as many as the memory allows")] = 0,
    queue: Annotated[int, typer.Option(metavar="N", help="Requests that may wait; further ones are refused with HTTP 429")] = 64,
) -> None:
    """Serve a chat page and an OpenAI-compatible API.

    Stays in the foreground until Ctrl-C. A newer checkpoint of the run is loaded while it serves.
    """
    from nanochat.chat.serve import ServeOptions
    from nanochat.chat.serve import serve as answer

    hosts, proxies = tuple(allow_host or ()), tuple(trust_proxy or ())
    options = ServeOptions(host, port, run, api_key_file, hosts, proxies, insecure_no_key, device, slots, queue, allow_training)
    raise typer.Exit(answer(options))


@app.command(name="eval", rich_help_panel="Inspect")
def evaluate(
    run: Run = None,
    only: Annotated[str, typer.Option(metavar="PARTS", help="Some of bpb,core,chat,skills; without it, all whose files are present")] = "",
    items: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="jsonl file of {skill, prompt, answer}; without it, the run's held-out questions"),
    ] = None,
    max_per_task: Annotated[
        int,
        typer.Option(
            "--max-per-task", "--max_per_task", metavar="N", help="Questions per CORE and chat task; -1: all, as in published scores"
        ),
    ] = 500,
    again: Annotated[bool, typer.Option("--again", help="Discard cached results")] = False,
    device: Device = "auto",
    nproc_per_node: Annotated[
        int, typer.Option("--nproc-per-node", "--nproc_per_node", metavar="N", help="Processes on this machine, one per GPU")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Score a model on benchmarks and its own questions.

    Measures bits per byte, CORE, ARC, MMLU, GSM8K and held-out questions. The same command again resumes.
    `nanochat download --evaluation` fetches the benchmarks' files.
    """
    from nanochat.distributed import ranks
    from nanochat.hardware.machine import this_machine

    if nproc_per_node > 1 and not ranks.launched():
        raise typer.Exit(ranks.launch(relaunch(), nproc_per_node))
    from nanochat.evaluation.evaluate import evaluate as score
    from nanochat.evaluation.evaluate import print_results

    chosen = "cuda" if device != "cpu" and this_machine(device).cuda else "cpu"
    parts = [part for part in only.split(",") if part]
    table = score(run, parts, items, max_per_task, chosen, again)
    if table is not None:
        show_json(table) if as_json else print_results(table)


@app.command(rich_help_panel="Inspect")
def report(
    run: Run = None,
    compare: Annotated[tuple[str, str] | None, typer.Option(metavar="RUN RUN", help="Two runs to compare side by side")] = None,
    as_json: AsJson = False,
) -> None:
    """Write and print a run's report, or compare two.

    Writes report.json, report.md and report.html in the run's directory. With --compare it prints what differs between two runs.
    """
    from nanochat import paths
    from nanochat.report.collect import write_report
    from nanochat.runs.names import plain_name
    from nanochat.runs.record import newest_run

    if compare:
        from nanochat.report import compare as comparison

        found = comparison.compare(*(paths.run_dir(plain_name(name)) for name in compare))
        show_json(found) if as_json else show(comparison.describe(found))
        log(f"page: {comparison.write_page(found, paths.run_dir(plain_name(compare[0])))}")
        return
    folder = paths.run_dir(run or newest_run())
    value = write_report(folder)
    show_json(value) if as_json else show((folder / "report.md").read_text(encoding="utf-8"))


@app.command(rich_help_panel="Use")
def export(
    to: Annotated[str, typer.Option("--to", metavar="hf|gguf", help="Format: a Hugging Face directory, or a GGUF file (portable models)")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write, which must not exist yet")],
    run: Run = None,
    outtype: Annotated[
        str, typer.Option(metavar="f32|f16|q8_0", help="Type of a GGUF file's weights: 4, 2 or about 1 byte per weight")
    ] = "f32",
    check: Annotated[bool, typer.Option("--check", help="Load what was written with its own library and compare")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="hf:OWNER/NAME", help="Repository of the hub to upload the export to, with the token in HF_TOKEN")
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Directory of a file store to copy the export to, such as s3://bucket/folder")
    ] = None,
) -> None:
    """Export a model for other programs.

    Every model is exported for transformers, a portable one also for vLLM, llama.cpp, Ollama and LM Studio. --architecture portable
    trains such a model, which needs about 8% more bits per byte.
    """
    require_choice("--to", to, ("hf", "gguf"))
    from nanochat.export.export import ExportRequest, write_export

    for address in write_export(ExportRequest(to, out.expanduser(), run, outtype, check, push or "", mirror or "")):
        show(address)


@app.command(name="import", rich_help_panel="Use")
def import_(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory of `nanochat export --to hf`, or a Hugging Face directory of a Qwen3")
    ],
    run: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the new run; without it, the name that it had, or the directory's")
    ] = None,
    max_seq_len: Annotated[
        int,
        typer.Option(
            "--max-seq-len", "--max_seq_len", metavar="N", help="Context length in tokens; less memory with a shorter one; 0: the model's"
        ),
    ] = 0,
) -> None:
    """Import a model as a run.

    The run chats, is evaluated and exported, and `nanochat train --from` trains it further. The import checks the directory first and
    refuses what it does not support: rope scaling, sliding windows, mixtures of experts, biases, quantized weights, other model types.
    """
    from nanochat.export.importer import import_folder

    show(str(import_folder(folder.expanduser(), run, max_seq_len)))
