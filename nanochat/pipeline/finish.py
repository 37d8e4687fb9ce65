"""The end of a run: evaluation on CORE, chat tasks and held-out questions, sample answers, report, and the printed result."""

import json
from typing import Any

from nanochat import paths
from nanochat.config import RunConfig
from nanochat.console import BOLD, command, duration, log, serve_command, show
from nanochat.data.source import text_source
from nanochat.evaluation import evaluate as evaluation
from nanochat.evaluation.heldout import answer, grade_items, print_scores, score_by_skill, write_items
from nanochat.evaluation.results import SUMMARY, write_part
from nanochat.generate.engine import Engine
from nanochat.hardware import awake
from nanochat.model import scaling
from nanochat.report.collect import write_report
from nanochat.runs import record as runs
from nanochat.runs.metrics import read_metrics
from nanochat.train.session import Session
from nanochat.train.timeleft import FINISH

SAMPLE_PROMPTS = ("What is 12 + 34?", "Who are you?", "你是誰？")


def finish(session: Session, began: float) -> None:
    """Evaluate the finished model on all ranks; the main rank writes the report."""
    session.clock.begin(FINISH)
    evaluation.evaluate_finished(session.config, session.ranks)
    if session.ranks.main:
        score_run(session, began)


def score_run(session: Session, began: float) -> None:
    """Evaluate the held-out questions, if the text has any, and write the report."""
    config, folder, tokenizer = session.config, session.folder, session.tokenizer
    lines = read_metrics(folder / "metrics.jsonl")
    per_token = scaling.flops_per_token(session.gpt)
    trained_tokens = lines[-1]["tokens"] if lines else 0
    read_tokens = sum(line.get("eval_tokens", 0) for line in lines)
    measured = [line["bpb"] for line in lines if line["stage"] == "base" and "bpb" in line]
    results: dict[str, Any] = {
        "bpb": measured[-1] if measured else None,
        "tokens": trained_tokens,
        "parameters": scaling.count_parameters(session.gpt)["total"],
        "samples": [],
    }
    opened = runs.open_model(config.run, str(session.ranks.device))
    engine = Engine(opened.model, tokenizer)
    if opened.chats and (items := text_source(config).heldout()):
        write_items(folder, items)
        untrained, some = grade_items(Engine(session.new_model(), tokenizer), items, "evaluating the untrained model")
        trained, more = grade_items(engine, items, "evaluating the trained model")
        read_tokens += some + more
        results["scores"] = score_by_skill(items, untrained, trained)
    if opened.chats:
        results["samples"] = [{"prompt": prompt, "answer": answer(engine, prompt)} for prompt in SAMPLE_PROMPTS]
    results["flops"] = float(per_token * trained_tokens + per_token / 3 * read_tokens)  # a forward pass is a third of a training step
    results["seconds"] = round(awake.monotonic() - began, 1)
    write_part(folder, SUMMARY, results)
    write_report(folder)


def show_result(config: RunConfig) -> None:
    """Print the finished run's score and answers on stdout, and on stderr the path of its report and the next commands."""
    folder = paths.run_dir(config.run)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if report["scores"]:
        print_scores(report["scores"])
    for sample in report["samples"]:
        show(f"\n> {sample['prompt']}\n{sample['answer']}", hanging=0)
    show()
    log(f"{duration(report['seconds'])}, {report['tokens']:,} tokens, {report['flops']:.1e} FLOPs")
    log(f"report: {folder / 'report.html'}")
    if config.trial:
        log(f"this was a short test run, whose model is not useful; for the full run use `nanochat train --profile {config.profile}`")
    log(f"chat:   {command()} chat --run {config.run}", BOLD, wrap=False)
    log(f"page:   {serve_command(config.run)}, then open http://127.0.0.1:8000/ in a browser", BOLD, wrap=False)
