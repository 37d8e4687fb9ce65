"""The command line: parse, call one function, print the error and its hint. Also the console script `nanochat`.

Nothing heavy is imported before a command needs it: `--help` answers without torch.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from nanochat import config as configuration
from nanochat.cli.submit import app as submit
from nanochat.console import fail, log
from nanochat.errors import NanochatError, UsageError

QUICKSTART_RUN = "quickstart"
SHOWN = 2000  # characters of an unexpected error: a compiler's has sixty thousand
HERE = Path(__file__).resolve()

app = typer.Typer(
    help="Train your own ChatGPT from nothing on the machine you have, then chat with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(submit, name="submit")
FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def _field_help() -> str:
    lines = [
        f"--{name}  {field.metadata['help']}  [{field.default}]"
        for name, field in configuration.FIELDS.items()
        if name not in ("profile", "trial")
    ]
    return "Config fields, with dashes or underscores:\n\n\b\n" + "\n".join(lines)


def _run_config(profile: str, trial: bool, arguments: list[str]) -> configuration.Config:
    """The profile's values with the flags on top. Text of the user's own lets vocabulary and length follow from it."""
    overrides = configuration.parse_flags(arguments)
    if profile == "auto":
        from nanochat.hardware.machine import profile_here

        profile = profile_here()
        log(f"profile: {profile}, by what this machine has")
    values = configuration.load_profile(profile, trial)
    if values["profile"] == "cpu" and not trial and (overrides.get("data") or overrides.get("dataset", "embedded") != "embedded"):
        overrides = configuration.TEXT_RULES | overrides
    return configuration.build_config(profile, trial, overrides)


@app.command(context_settings=FLAGS, epilog=_field_help())
def train(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help="cpu, rtx4050, rtx4090 (and 3090), h100x8, or auto")] = "auto",
    trial: Annotated[bool, typer.Option("--trial", help="the guide's plan for the card: about two minutes")] = False,
    stage: Annotated[str, typer.Option(help="base, sft, rl, or all: base and sft, and rl where --rl_iterations says how much")] = "all",
) -> None:
    """Plan, download what is missing, pretrain, fine-tune, evaluate, report. Called again, it goes on where it stopped."""
    if stage not in ("base", "sft", "rl", "all"):
        raise UsageError(f"stage {stage!r} is unknown", "one of: base, sft, rl, all")
    config = _run_config(profile, trial, context.args)
    stages = (stage,) if stage != "all" else ("base", "sft", *(["rl"] if config.rl_iterations != -1 else []))
    from nanochat.pipeline.train import train as run

    raise typer.Exit(run(config, stages, [str(HERE), *sys.argv[1:]]))


@app.command(context_settings=FLAGS)
def quickstart(context: typer.Context) -> None:
    """From nothing to a chat in minutes, with no network and no GPU: the embedded corpus, a score, three answers."""
    config = configuration.build_config("cpu", False, {"run": QUICKSTART_RUN} | configuration.parse_flags(context.args))
    from nanochat.pipeline.train import train as run

    raise typer.Exit(run(config, relaunch=[str(HERE), *sys.argv[1:]]))


@app.command(context_settings=FLAGS)
def download(
    context: typer.Context,
    shards: Annotated[int | None, typer.Option("-n", "--shards", help="training shards; the validation shard is one more")] = None,
    dataset: Annotated[str | None, typer.Option(help="climbmix, fineweb-edu, hf:OWNER/NAME or hf:OWNER/NAME:COLUMN")] = None,
    profile: Annotated[str | None, typer.Option("--for", help="everything that this profile's run needs, to train with no network")] = None,
    trial: Annotated[bool, typer.Option("--trial", help="with --for: what its trial needs")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="hash every file again afterwards")] = False,
    limit: Annotated[str | None, typer.Option(help="bytes a second, as in 500K or 2M")] = None,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="the files of CORE, ARC, MMLU and GSM8K, for eval")] = False,
) -> None:
    """Download training shards and the validation shard, or with --for all that a run needs. Called again, it goes on where it stopped."""
    from nanochat import dataset as command

    command.limit_rate(limit)
    if evaluation:
        from nanochat.data.source import fetch_tasks

        for folder in fetch_tasks(verify):
            print(folder)
        if profile is None and shards is None and dataset is None:
            return
    if profile is None:
        if context.args:
            raise UsageError(f"{context.args[0]} is an option of a run", "name whose: download --for PROFILE")
        print(command.download(dataset or "climbmix", shards, verify).folder)
        return
    named = ([f"--dataset={dataset}"] if dataset else []) + ([f"--shards={shards}"] if shards else [])
    config = _run_config(profile, trial, [*named, *context.args])
    from nanochat.data.source import fetch_for
    from nanochat.hardware.machine import choose_hardware
    from nanochat.planning.plan import normal, resolve

    print(fetch_for(resolve(normal(config), hardware=choose_hardware(config)), verify))


@app.command()
def identity(
    file: Annotated[Path | None, typer.Argument(help="a TOML of name, maker, languages and traits; without it the published ones")] = None,
    out: Annotated[Path | None, typer.Option(help="where they are written; without it beside the TOML")] = None,
) -> None:
    """Make the conversations that teach a model who it is, from a TOML file (train --identity does the same), or download some."""
    if file is None:
        from nanochat.data.hub.sets import ensure_identity

        print(ensure_identity())
        return
    from nanochat.data.embedded import identity as who

    path = out or file.with_suffix(".jsonl")
    who.write_conversations(path, who.conversations(who.read_identity(file)))
    print(path)


@app.command(context_settings=FLAGS)
def tokenizer(context: typer.Context, profile: Annotated[str, typer.Option(help="whose data and vocabulary")] = "auto") -> None:
    """Train the tokenizer that `train` with the same options would use, and print where it lies."""
    config = _run_config(profile, False, context.args)
    from nanochat.pipeline.train import tokenizer_of

    print(tokenizer_of(config))


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Option(help="one message; its answer alone goes to stdout")] = None,
    run: Annotated[str | None, typer.Option(help="the run whose model answers; without it the newest")] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.7,
    top_k: Annotated[int, typer.Option("--top-k", "--top_k", help="sample from so many tokens; 0: from all")] = 50,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "--max_tokens", help="of one answer")] = 512,
    seed: Annotated[int | None, typer.Option(help="of the sampling")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
) -> None:
    """Chat with a trained model in the terminal."""
    from nanochat.chat.terminal import chat as converse
    from nanochat.generate.engine import Engine
    from nanochat.hardware.machine import this_machine
    from nanochat.runs import record as runs

    opened = runs.open_model(run, "cuda" if device != "cpu" and this_machine(device).cuda else "cpu")
    runs.describe(opened)
    converse(
        Engine(opened.model, opened.tokenizer),
        opened.tokenizer,
        prompt=prompt,
        temperature=temperature,
        top_k=top_k or None,
        max_tokens=max_tokens,
        seed=seed,
        chat_model=opened.chats,
    )


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 lets other machines ask")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    run: Annotated[str | None, typer.Option(help="the run whose model answers; without it the newest")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", "--api_key_file", help="file with the key that clients must send (or NANOCHAT_API_KEY)")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", "--allow_host", help="a name this server is reached by, *.example.org for all under it"),
    ] = None,
    insecure_no_key: Annotated[
        bool, typer.Option("--insecure-no-key", "--insecure_no_key", help="no key although other machines can ask")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
    slots: Annotated[int, typer.Option(help="answers at once; 0: as the memory allows")] = 0,
    queue: Annotated[int, typer.Option(help="answers that may wait")] = 64,
) -> None:
    """Serve the newest model: a page to chat in a browser, and OpenAI's API."""
    from nanochat.chat.serve import ServeOptions
    from nanochat.chat.serve import serve as answer

    raise typer.Exit(answer(ServeOptions(host, port, run, api_key_file, tuple(allow_host or ()), insecure_no_key, device, slots, queue)))


@app.command(name="eval")
def evaluate(
    run: Annotated[str | None, typer.Option(help="the run; without it the newest")] = None,
    only: Annotated[str, typer.Option(help="some of bpb,core,chat,skills; without it all whose files are there")] = "",
    items: Annotated[Path | None, typer.Option(help="jsonl of {skill, prompt, answer}; without it the run's held-out questions")] = None,
    max_per_task: Annotated[
        int, typer.Option("--max-per-task", "--max_per_task", help="questions of each CORE and chat task; -1: all, as in published scores")
    ] = 500,
    again: Annotated[bool, typer.Option("--again", help="forget what an evaluation before has answered")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
    nproc_per_node: Annotated[int, typer.Option("--nproc-per-node", "--nproc_per_node", help="processes (GPUs) on this machine")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Score a model: bits per byte, CORE, ARC, MMLU, GSM8K, held-out questions. Killed, the same command goes on."""
    from nanochat.distributed import ranks
    from nanochat.hardware.machine import this_machine

    if nproc_per_node > 1 and not ranks.launched():
        raise typer.Exit(ranks.launch([str(HERE), *sys.argv[1:]], nproc_per_node))
    from nanochat.evaluation.evaluate import evaluate as score
    from nanochat.evaluation.evaluate import print_results

    chosen = "cuda" if device != "cpu" and this_machine(device).cuda else "cpu"
    parts = [part for part in only.split(",") if part]
    table = score(run, parts, items, max_per_task, chosen, again)
    if table is not None:
        print(json.dumps(table, ensure_ascii=False)) if as_json else print_results(table)


@app.command(context_settings=FLAGS)
def plan(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help="cpu, rtx4050, rtx4090 (and 3090), h100x8, or auto")] = "auto",
    trial: Annotated[bool, typer.Option("--trial", help="the guide's plan for the card")] = False,
    card: Annotated[str, typer.Option(help="plan for another card than this machine's: 4070, A100, H100, ...")] = "",
    price: Annotated[float, typer.Option(help="dollars for one card and hour")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """What a run needs and gives, before its first step: parameters, tokens, memory, time, disk, download."""
    import dataclasses

    from nanochat.hardware import gpu_specs as cards
    from nanochat.hardware import machine as hardware
    from nanochat.planning import autosize as budget
    from nanochat.planning import plan as planning

    config = planning.normal(_run_config(profile, trial, context.args))
    text_bytes = None
    if config.data:  # its size decides the vocabulary and the length
        from nanochat.data.text.documents import import_texts

        text_bytes = import_texts(Path(config.data)).text_bytes
    if card:
        config = config.replace(device="cuda")
    machine = hardware.card_hardware(cards.named(card), config.nproc_per_node) if card else hardware.choose_hardware(config)
    machine = dataclasses.replace(machine, dollars=price) if price else machine
    _, made = budget.decide(config, machine, text_bytes=text_bytes)
    print(json.dumps(made.to_dict(), ensure_ascii=False) if as_json else planning.describe(made))


@app.command(context_settings=FLAGS)
def doctor(
    context: typer.Context,
    profile: Annotated[str, typer.Option(help="cpu, rtx4050, rtx4090 (and 3090), h100x8, or auto")] = "auto",
    trial: Annotated[bool, typer.Option("--trial", help="the guide's plan for the card")] = False,
    gpus: Annotated[bool, typer.Option("--gpus", help="also ten seconds of work on each GPU, and an all-reduce between them")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Look for what would make a run fail or crawl on this machine; exit 3 where it would fail."""
    from nanochat.doctor import checks as examination
    from nanochat.hardware.machine import this_machine
    from nanochat.planning import plan as planning

    asked = _run_config(profile, trial, context.args)
    config = planning.resolve(asked)
    findings = examination.examine(config, planning.make_plan(config, this_machine(config.device)), asked=asked.device)
    if gpus:
        from nanochat.doctor.gpus import check_gpus

        findings += check_gpus(config.device)
    print(json.dumps(examination.to_json(findings), ensure_ascii=False) if as_json else examination.describe(findings))
    raise typer.Exit(0 if examination.healthy(findings) else 3)


@app.command()
def report(
    run: Annotated[str | None, typer.Option(help="the run; without it the newest")] = None,
    compare: Annotated[tuple[str, str] | None, typer.Option(metavar="RUN RUN", help="two runs side by side")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Write a run's report anew and print it, or with --compare what differs between two runs."""
    from nanochat import paths
    from nanochat.report.collect import write_report
    from nanochat.runs.record import newest_run, plain_name

    if compare:
        from nanochat.report import compare as comparison

        found = comparison.compare(*(paths.run_dir(plain_name(name)) for name in compare))
        print(json.dumps(found, ensure_ascii=False) if as_json else comparison.describe(found))
        return
    folder = paths.run_dir(run or newest_run())
    value = write_report(folder)
    print(json.dumps(value, ensure_ascii=False) if as_json else (folder / "report.md").read_text(encoding="utf-8"))


@app.command()
def export(
    to: Annotated[str, typer.Option("--to", help="hf: a Hugging Face folder; gguf: for llama.cpp, Ollama, LM Studio (portable models)")],
    out: Annotated[Path, typer.Option("--out", help="the folder to write; it must not exist")],
    run: Annotated[str | None, typer.Option(help="the run; without it the newest")] = None,
    check: Annotated[bool, typer.Option("--check", help="load what was written with its own library and compare")] = False,
) -> None:
    """Write a model for other programs: transformers, and for a portable one vLLM, llama.cpp, Ollama, LM Studio.

    Portable is chosen when the model is trained (train --architecture portable), and costs some 8% more bits per byte.
    """
    if to not in ("hf", "gguf"):
        raise UsageError(f"--to {to} is unknown", "one of: hf, gguf")
    from nanochat.export import check as parity
    from nanochat.export import folder, gguf_file
    from nanochat.runs import record as runs

    opened = runs.open_model(run)
    if to == "hf":
        folder.write_folder(opened, out)
    else:
        gguf_file.write_gguf(opened, out)
    if check:
        parity.check(opened, to, out)
    print(out)


@app.command(name="import")
def import_(
    folder: Annotated[Path, typer.Argument(help="a folder that `export --to hf` wrote")],
    run: Annotated[str | None, typer.Option(help="the new run's name; without it its old one")] = None,
) -> None:
    """Read an exported folder back as a run, to chat with or to serve."""
    from nanochat.export.folder import import_folder

    print(import_folder(folder, run))


def base_train(arguments: list[str]) -> int:
    """`python -m scripts.base_train`: pretraining alone, with karpathy/nanochat's flags; the run is named d<depth>."""
    values = configuration.parse_flags(arguments)
    depth = values.get("depth", configuration.FIELDS["depth"].default)
    if values.get("run", "dummy") in ("dummy", "auto"):  # dummy: the upstream's name for "no name"
        values["run"] = f"d{depth}"
    config = configuration.Config(**({"sft_iterations": 0} | values))
    from nanochat.pipeline.train import train as run

    return run(config, ("base",), ["-m", "scripts.base_train", *arguments])


def chat_web(arguments: list[str]) -> int:
    """`python -m scripts.chat_web`: `serve`, with the same options."""
    sys.argv[1:] = ["serve", *arguments]
    return _dispatch()


def _for_user(error: Exception) -> NanochatError:
    """`error` with the hint and the exit code that a user sees."""
    if isinstance(error, NanochatError):
        return error
    if isinstance(error, OSError):
        from nanochat.paths import disk_error

        return disk_error(error, "working")
    said, where = f"{type(error).__name__}: {error}", "where it lies"
    if len(said) > SHOWN:
        said, where = f"{said[:SHOWN]} ... ({len(said) - SHOWN:,} more characters)", "all of it, and where it lies"
    return NanochatError(said, f"this is a fault of ours: NANOCHAT_DEBUG=1 shows {where}")


def _spins(command: Any) -> bool:
    """Whether a thread that waits for another keeps its core, as OpenMP has it: decided before torch is there.

    For a training on a quiet machine: small steps take two thirds of the time. Where others need the cores, several times as long.
    """
    if command is not base_train and sys.argv[1:2] not in (["train"], ["quickstart"], ["plan"]):  # the plan measures a training
        return False
    if {"-h", "--help"} & set(sys.argv):
        return False
    from nanochat.hardware.machine import quiet

    return quiet()


def guarded(command: Any, *arguments: Any) -> None:
    """Run a command; turn its error into two lines on stderr and its exit code, and leave the code for the launcher."""
    if "OMP_WAIT_POLICY" not in os.environ and not _spins(command):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if temporary := os.environ.get("TMPDIR"):  # the image's lies on the data volume, which may be new
        with contextlib.suppress(OSError):
            os.makedirs(temporary, exist_ok=True)
    code = 1
    try:
        code = command(*arguments) or 0
    except BrokenPipeError:  # the reader of our output has gone, as in `chat ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        code = fail(_for_user(error))
    except KeyboardInterrupt:
        log("stopped; run the same command again")
        code = 130
    finally:
        if "RANK" in os.environ:
            from nanochat.distributed.ranks import record_exit

            record_exit(code)
    raise SystemExit(code)


def _dispatch() -> int:
    """Typer's own handling of usage errors, in this project's two lines."""
    if "NANOCHAT_GUARD" in os.environ:  # in a rented pod: this same command, watched
        from nanochat.cloud.guard import run_guarded

        return run_guarded([sys.executable, str(HERE), *sys.argv[1:]], os.environ)
    try:
        return app(standalone_mode=False) or 0
    except typer.Abort:
        return 130
    except TyperException as error:
        raise UsageError(str(error), "entrypoint.py --help lists the commands, COMMAND --help its options") from error


def torchrun() -> None:
    """`torchrun` with its options spelled out only: torch's own takes the guide's --run for a short form of its --run-path."""
    from torch.distributed.run import get_args_parser, run

    parser = get_args_parser()
    parser.allow_abbrev = False
    run(parser.parse_args())


def main() -> None:
    """The console script."""
    try:
        guarded(_dispatch)
    finally:
        if "RANK" not in os.environ:
            # What came of it is known; torch takes its time to go, and a request to end that comes late must not change it.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
