"""`eval`: bits per byte, CORE, chat tasks and held-out questions, from local files.

runs/<run>/evaluation.json  the results (results.py), for the report
          /evaluation/      cached answers, so that a killed evaluation resumes and an equal one is immediate
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat import console, paths
from nanochat.config import Config
from nanochat.console import log, show
from nanochat.data.embedded import corpus
from nanochat.data.published import sets
from nanochat.data.rows import RowCache, TextRows
from nanochat.distributed import ranks
from nanochat.errors import DataError, Preempted, UsageError
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.evaluation.chat import CHAT_TASKS, read_chat_task
from nanochat.evaluation.core import read_core
from nanochat.evaluation.heldout import HELDOUT, evaluate_items, print_scores
from nanochat.evaluation.results import write_part
from nanochat.evaluation.runner import EvaluationTask, evaluate_tasks
from nanochat.evaluation.scorer import Scorer
from nanochat.evaluation.scores import score_table
from nanochat.hub.assets import BUNDLE, has_bundle
from nanochat.runs import record as runs

PARTS = ("bpb", "core", "chat", "skills")
TASK_PARTS = {"core": "base", "chat": None}  # part of tasks -> the stage whose model is evaluated; None: the last stage
ANSWERS = "evaluation"  # directory of cached answers
FETCH_HINT = "run `nanochat download --evaluation`"


def missing_parts() -> dict[str, str]:
    """Parts whose questions are not on this machine -> reason, without network access."""
    missing = {}
    if not has_bundle():
        missing["core"] = f"there is no {paths.base_dir() / BUNDLE}"
    if absent := [source for source, _, _ in CHAT_TASKS.values() if not sets.task_files(source)]:
        missing["chat"] = f"there is no {sets.task_folder(absent[0])}"
    return missing


def read_tasks(part: str, max_per_task: int) -> Sequence[EvaluationTask]:
    """The tasks of "core" or "chat". Raises DataError."""
    if part == "core":
        return read_core(paths.base_dir() / BUNDLE, max_per_task)
    return [read_chat_task(name, max_per_task) for name in CHAT_TASKS]


def evaluate_part(run: str, part: str, max_per_task: int, here: ranks.Ranks, again: bool = False) -> dict[str, Any]:
    """Evaluate the run's newest model on "core" or "chat", on all ranks, and store the result. Raises DataError.

    With `again`, cached answers are discarded.
    """
    stage = TASK_PARTS[part] if runs.has_stage(run, TASK_PARTS[part]) else None
    opened = runs.open_model(run, str(here.device), stage)
    meta, folder = opened.checkpoint.meta, paths.run_dir(run)
    if again and here.main:
        for path in (folder / ANSWERS).glob(f"{part}_*.json"):
            path.unlink(missing_ok=True)
    here.gather_objects(None)
    scorer = Scorer(opened.model, opened.tokenizer)
    result = evaluate_tasks(part, read_tasks(part, max_per_task), scorer, here, folder / ANSWERS, opened.checkpoint.digest)
    result |= {"stage": meta["stage"], "step": opened.checkpoint.step, "max_per_task": max_per_task}
    if here.main:
        write_part(folder, part, result)
    return result


def evaluate_finished(config: Config, here: ranks.Ranks) -> None:
    """Evaluate a finished run on CORE and the chat tasks, on all ranks. Errors are warnings, because the model is already saved."""
    max_per_task = config.core_metric_max_per_task
    if not max_per_task:
        return
    missing = missing_parts()
    for part in TASK_PARTS:
        if part in missing:
            log(f"skipped: {part} tasks, because {missing[part]} ({FETCH_HINT}, then `nanochat eval`)")
            continue
        if part == "chat" and not runs.has_stage(config.run, "sft"):
            continue  # a base model, which only continues text
        try:
            result = evaluate_part(config.run, part, max_per_task, here)
            log(f"{part}: {result['score']:.4f} over {len(result['tasks'])} tasks (0: guessing, 1: all correct)")
        except Preempted:
            raise
        except Exception as error:
            log(f"warning: no {part} scores: {error} (the model is saved; run `nanochat eval` to try again)")


def evaluate(
    run: str | None, parts: Sequence[str], items: Path | None, max_per_task: int, device: str, again: bool = False
) -> dict[str, Any] | None:
    """Evaluate a run's newest models on `parts` (none: all that are present); None except on the main rank.

    Raises UsageError, DataError.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"--only {unknown[0]} is unknown", f"choose from: {', '.join(PARTS)}")
    if os.environ.get("RANK", "0") != "0":
        console.mute()
    with ranks.join(device) as here:
        name = run or runs.newest_run()
        wanted = _choose_parts(name, parts, items, runs.newest_checkpoint(name).meta["stage"] != "base")
        results: dict[str, Any] = {"run": name}
        if "skills" in wanted and here.main:
            results |= evaluate_items(name, items)
        if "bpb" in wanted:
            results["bpb"] = _evaluate_text(name, here)
        for part in TASK_PARTS:
            if part in wanted:
                results[part] = evaluate_part(name, part, max_per_task, here, again)
        return results if here.main else None


def _choose_parts(run: str, parts: Sequence[str], items: Path | None, chats: bool) -> Sequence[str]:
    """The named parts, or without names all whose files are present, with a message for each missing one. Raises DataError."""
    missing = missing_parts()
    record = runs.read_record(run)
    if record is None or not record.dataset:
        missing["bpb"] = f"the run {run!r} was imported without its text"
    if not (items or paths.run_dir(run) / HELDOUT).exists():
        missing["skills"] = f"the run {run!r} has no held-out questions (--items FILE reads others)"
    if items:
        parts = parts or ("skills",)
    for part in parts:
        if part in missing and part != "skills":
            raise DataError(f"no {part} score: {missing[part]}", FETCH_HINT if part in TASK_PARTS else f"leave {part} out of --only")
    if parts:
        return parts
    if not chats:
        missing["chat"] = "the model was not fine-tuned to chat"
    for part, why in missing.items():
        log(f"skipped: {part}: {why}")
    wanted = [part for part in PARTS if part not in missing]
    if not wanted:
        raise DataError(f"there are no questions to evaluate the run {run!r} on", f"{FETCH_HINT}, or use --items FILE")
    return wanted


def _evaluate_text(run: str, here: ranks.Ranks) -> dict[str, Any]:
    """Bits per byte of the base model on validation text, and on the same amount of its first training text."""
    record = runs.read_record(run)
    assert record is not None, run
    stage = "base" if runs.has_stage(run, "base") else None
    opened = runs.open_model(run, str(here.device), stage)
    if here.local_rank == 0 and record.dataset == corpus.NAME and not paths.dataset_dir(corpus.NAME).exists():
        corpus.build()  # `disk --prune` removes what can be made again
    here.gather_objects(None)
    config, dataset = record.config, runs.open_text(record)
    cache = RowCache(opened.tokenizer, config.max_seq_len, packer=here.local_rank == 0)
    try:
        validation = cache.rows(dataset.validation)[: max(config.eval_tokens // config.max_seq_len, 1)]
        trained = TextRows(dataset, cache, config.seed).rows(0, len(validation))
    finally:
        cache.close()
    size = opened.tokenizer.token_bytes()
    result: dict[str, Any] = {}
    for name, rows in (("train", trained), ("validation", validation)):
        bpb = bits_per_byte(opened.model, opened.model, rows[:, :-1], rows[:, 1:], size, config.device_batch_size, here)
        result[name] = None if bpb is None else round(bpb, 6)
    result |= {"tokens": validation[:, 1:].size, "stage": opened.checkpoint.meta["stage"], "step": opened.checkpoint.step}
    if here.main:
        write_part(paths.run_dir(run), "bpb", result)
    return result


def print_results(results: dict[str, Any]) -> None:
    """Print the results of `evaluate`."""
    if "by_skill" in results:
        print_scores(results)
    if bpb := results.get("bpb"):
        trained, validation = (f"{bpb[name]:.4f}" if bpb[name] else "-" for name in ("train", "validation"))
        show(f"bits per byte: {trained} on training text, {validation} on validation text")
    for part in TASK_PARTS:
        if part in results:
            show(f"{part + ' tasks':60} {'questions':>9} {'accuracy':>9} {'centred':>8}")
            for name, questions, accuracy, centred in score_table(part, results[part]):
                show(f"{name:60} {questions:>9} {accuracy:>9} {centred:>8}")
