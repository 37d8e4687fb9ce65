"""`eval`: bits per byte, CORE, the chat tasks and the held-out questions, from files that are there; nothing is fetched.

runs/<run>/evaluation.json  what came out, for the report
          /evaluation/      answers on the way: a killed evaluation goes on, and an equal one is not asked again
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat import console, paths
from nanochat.config import Config
from nanochat.console import log
from nanochat.data.published import sets
from nanochat.data.rows import RowCache, TextRows
from nanochat.distributed import ranks
from nanochat.errors import DataError, Preempted, UsageError
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.evaluation.chat import CHAT_TASKS, read_chat_task
from nanochat.evaluation.core import read_core
from nanochat.evaluation.heldout import evaluate_items, print_scores
from nanochat.evaluation.results import RESULTS, table
from nanochat.evaluation.runner import Task, ask
from nanochat.evaluation.scorer import Scorer
from nanochat.hub.assets import BUNDLE, has_bundle
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import MANIFEST

PARTS = ("bpb", "core", "chat", "skills")
ANSWERS = "evaluation"
STAGE = {"core": "base", "chat": None}  # whose model is asked; None: the best there is
FETCH = "download --evaluation brings them"


def available() -> dict[str, str]:
    """Part that cannot be asked -> why not. No network."""
    lacking = {}
    if not has_bundle():
        lacking["core"] = f"there is no {paths.base_dir() / BUNDLE}"
    if absent := [source for source, _, _ in CHAT_TASKS.values() if not sets.task_files(source)]:
        lacking["chat"] = f"there is no {sets.task_folder(absent[0])}"
    return lacking


def tasks_of(part: str, most: int) -> Sequence[Task]:
    """The tasks of "core" or "chat". Raises DataError."""
    return read_core(paths.base_dir() / BUNDLE, most) if part == "core" else [read_chat_task(name, most) for name in CHAT_TASKS]


def ask_tasks(run: str, part: str, most: int, here: ranks.Ranks, again: bool = False) -> dict[str, Any]:
    """CORE or the chat tasks, asked of the run's newest model by all ranks, and kept in evaluation.json. Raises DataError."""
    stage = STAGE[part] if runs.has_stage(run, STAGE[part]) else None
    opened = runs.open_model(run, str(here.device), stage)
    meta, folder = opened.checkpoint.meta, paths.run_dir(run)
    if again and here.main:
        for path in (folder / ANSWERS).glob(f"{part}_*.json"):
            path.unlink(missing_ok=True)
    here.gather_objects(None)
    seal = json.loads((opened.checkpoint.folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
    found = ask(part, tasks_of(part, most), Scorer(opened.model, opened.tokenizer), here, folder / ANSWERS, seal)
    found |= {"stage": meta["stage"], "step": opened.checkpoint.step, "max_per_task": most}
    _keep(run, part, found, here)
    return found


def at_the_end(config: Config, here: ranks.Ranks) -> None:
    """What a run asks of its finished model, on all ranks. The model is saved: nothing that fails here fails the run."""
    most = config.core_metric_max_per_task
    if not most:
        return
    lacking = available()
    for part in ("core", "chat"):
        if part in lacking:
            log(f"skipped: {part} tasks: {lacking[part]} ({FETCH}; then: eval)")
            continue
        if part == "chat" and not runs.has_stage(config.run, "sft"):
            continue  # a model that only continues texts
        try:
            show(part, ask_tasks(config.run, part, most, here))
        except Preempted:
            raise
        except Exception as error:
            log(f"warning: no {part} scores: {error} (the model is saved; `eval` asks again)")


def evaluate(
    run: str | None, parts: Sequence[str], items: Path | None, most: int, device: str, again: bool = False
) -> dict[str, Any] | None:
    """All of `parts` (none: what is there) for a run's newest models; None on all ranks but the main one. Raises UsageError, DataError."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"--only {unknown[0]} is unknown", f"some of: {', '.join(PARTS)}")
    if os.environ.get("RANK", "0") != "0":
        console.mute()
    with ranks.join(device) as here:
        name = run or runs.newest_run()
        wanted = _wanted(name, parts, items, runs.newest_checkpoint(name).meta["stage"] != "base")
        results: dict[str, Any] = {"run": name}
        if "skills" in wanted and here.main:
            results |= evaluate_items(name, items)
        if "bpb" in wanted:
            results["bpb"] = _bits_per_byte(name, here)
        for part in ("core", "chat"):
            if part in wanted:
                results[part] = ask_tasks(name, part, most, here, again)
        return results if here.main else None


def _wanted(run: str, parts: Sequence[str], items: Path | None, chats: bool) -> Sequence[str]:
    """What is asked: what was named, and has to be there; without names what is there, the rest said. Raises DataError."""
    lacking = available()
    if runs.read_record(run) is None:
        lacking["bpb"] = f"the run {run!r} was imported, without its text"
    if not (items or paths.run_dir(run) / "heldout.jsonl").exists():
        lacking["skills"] = f"the run {run!r} has no held-out questions (--items FILE brings some)"
    if items:
        parts = parts or ("skills",)
    for part in parts:
        if part in lacking and part != "skills":
            raise DataError(f"no {part} score: {lacking[part]}", FETCH if part in STAGE else "leave it out: --only names the others")
    if parts:
        return parts
    if not chats:
        lacking["chat"] = "the model was not fine-tuned to chat"
    for part, why in lacking.items():
        log(f"skipped: {part}: {why}")
    wanted = [part for part in PARTS if part not in lacking]
    if not wanted:
        raise DataError(f"there is nothing to ask the run {run!r}", f"{FETCH}; or --items FILE")
    return wanted


def _bits_per_byte(run: str, here: ranks.Ranks) -> dict[str, Any]:
    """The base model's bits per byte on as much of the first text that it was trained on as of the text that was held out."""
    record = runs.read_record(run)
    assert record is not None, run
    stage = "base" if runs.has_stage(run, "base") else None
    opened = runs.open_model(run, str(here.device), stage)
    config, dataset = record.config, runs.open_text(record)
    cache = RowCache(opened.tokenizer, config.max_seq_len, packer=here.local_rank == 0)
    try:
        held_out = cache.rows(dataset.validation)[: max(config.eval_tokens // config.max_seq_len, 1)]
        trained = TextRows(dataset, cache, config.seed).rows(0, len(held_out))
    finally:
        cache.close()
    size = opened.tokenizer.token_bytes()
    found: dict[str, Any] = {}
    for name, rows in (("train", trained), ("validation", held_out)):
        bpb = bits_per_byte(opened.model, opened.model, rows[:, :-1], rows[:, 1:], size, config.device_batch_size, here)
        found[name] = None if bpb is None else round(bpb, 6)
    found |= {"tokens": held_out[:, 1:].size, "stage": opened.checkpoint.meta["stage"], "step": opened.checkpoint.step}
    _keep(run, "bpb", found, here)
    return found


def _keep(run: str, part: str, found: dict[str, Any], here: ranks.Ranks) -> None:
    """Write one part of evaluation.json, the others as they are."""
    if here.main:
        path = paths.run_dir(run) / RESULTS
        kept: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(path.read_text(encoding="utf-8"))
        paths.atomic_write_json(path, kept | {part: found})


def show(part: str, found: dict[str, Any]) -> None:
    """A part's mean, as a message."""
    log(f"{part}: {found['score']:.4f} over {len(found['tasks'])} tasks (0: as by guessing, 1: all right)")


def print_results(results: dict[str, Any]) -> None:
    """All that `evaluate` found, on stdout."""
    if "by_skill" in results:
        print_scores(results)
    if bpb := results.get("bpb"):
        trained, held_out = (f"{bpb[name]:.4f}" if bpb[name] else "-" for name in ("train", "validation"))
        print(f"bits per byte: {trained} of text it was trained on, {held_out} of text it was not")
    for part in ("core", "chat"):
        if part in results:
            print(f"{part + ' tasks':60} {'questions':>9} {'accuracy':>9} {'centred':>8}")
            for name, questions, accuracy, centred in table(part, results[part]):
                print(f"{name:60} {questions:>9} {accuracy:>9} {centred:>8}")
