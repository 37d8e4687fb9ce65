"""Preparation before the first step: plan, preflight checks, text and tokenizer, so that errors appear early."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from nanochat import paths
from nanochat.config import Config
from nanochat.console import NORMAL, VERBOSE, log
from nanochat.data.finetuning import require_learnable
from nanochat.data.shards import Dataset
from nanochat.data.source import text_source
from nanochat.data.text_source import TextSource
from nanochat.data.vocabulary import ensure_tokenizer
from nanochat.doctor import checks as doctor
from nanochat.errors import UsageError
from nanochat.hardware import awake
from nanochat.hardware.machine import this_machine
from nanochat.pipeline.identity import BASE, RL, SFT, Identity, Request, identify
from nanochat.pipeline.progress import run_clock, showing
from nanochat.planning.autosize import decide
from nanochat.planning.describe import brief
from nanochat.planning.plan import Plan
from nanochat.planning.rules import normal, resolve
from nanochat.report.collect import PLAN, has_report, write_report
from nanochat.runs import trackers
from nanochat.runs.origin import copy_origin, descent, find, first_row, parse_source
from nanochat.runs.record import Record, read_record, require_same
from nanochat.tokenizer.files import load_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

DETAILS = ("dtype", "threads", "eval_tokens", "compile")  # fields whose automatic values are for VERBOSE alone


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that is ready for its first step: its record, and its text, whose conversations are read once for the whole call."""

    record: Record
    source: TextSource


def prepare(request: Request) -> Prepared | str:
    """The run, its record written if it is new. For a finished run a message; its report and tokenizer are made again if missing.

    Raises UsageError, PreflightError, DataError.
    """
    trackers.require(request.config)
    run = identify(request)
    folder = paths.run_dir(run.config.run)
    if run.finished and run.record and has_report(folder) and paths.tokenizer_dir(run.record.tokenizer).exists():
        return run.finished
    source = text_source(run.config)
    conversations = source.conversations.inspect() if run.config.sft_iterations else ""
    config, plan = _resolve(request, run, source.text_bytes())
    with showing(run_clock(config, request.stages, plan.tokens_per_second)):
        return _prepare(request, run, source, conversations, config, plan)


def _prepare(request: Request, run: Identity, source: TextSource, conversations: str, config: Config, plan: Plan) -> Prepared | str:
    """The text, the tokenizer and the record of a resolved config's run; a message if it is finished."""
    problems, folder = run.record.problems if run.record else "", paths.run_dir(config.run)
    if RL in request.stages:
        config, problems = _with_problems(config, source), source.problems_hash()
    dataset = source.open(config.shards) if config.num_iterations else None
    if SFT in request.stages and config.sft_iterations:
        # A fault in them must not wait for the end of pretraining.
        require_learnable(source.conversations.load(), _tokenizer(config, dataset, run.record), config.max_seq_len)
    if run.record:
        record = _resumed(run.record, config, dataset, conversations, problems)
        if run.finished and not has_report(folder):
            log("writing the report again, because it was missing or damaged")
            write_report(folder)
        return run.finished or Prepared(record, source)
    return Prepared(_new(config, plan, dataset, conversations, problems), source)


def prepare_tokenizer(config: Config) -> Path:
    """The directory of the tokenizer of `config`, trained if it does not exist."""
    if config.from_run:
        return paths.tokenizer_dir(str(find(parse_source(config.from_run)).meta["tokenizer"]))
    source = text_source(normal(config))
    config = resolve(normal(config), text_bytes=source.text_bytes())
    return paths.tokenizer_dir(ensure_tokenizer(source.open(config.shards), config.vocab_size, config.architecture).id)


def _resolve(request: Request, run: Identity, text_bytes: int | None) -> tuple[Config, Plan]:
    """Resolve the config, print its plan and defaults, and run the preflight checks; returns (resolved config, plan)."""
    hardware, spent = this_machine(run.config.device), awake.monotonic() - request.began
    resolved, plan = decide(run.config, hardware, text_bytes=text_bytes, spent=spent, begun=run.record is not None)
    for line in brief(plan).splitlines():
        log(line)
    for line in resolved.rules:
        log(f"auto: {line}", level=VERBOSE if line.startswith(DETAILS) else NORMAL)
    for line, level in _skipped(resolved.config, request.stages):
        log(f"skipped: {line}", level=level)
    doctor.require(resolved.config, plan, run.config.device)
    return resolved.config, plan


def _skipped(config: Config, stages: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Stages and measurements that the run leaves out, each with its reason and the message's level."""
    if BASE in stages and not config.num_iterations:
        yield f"pretraining, because the run begins from {config.from_run} (--data, --dataset or --num_iterations add it)", NORMAL
    if BASE in stages and SFT not in stages:
        yield "fine-tuning, because this command only pretrains (`nanochat train` does both)", NORMAL
    elif text_source(config).conversations.empty:
        yield "fine-tuning, because there are no conversations (--chat-data FILE adds some); the model will only continue text", NORMAL
    if RL not in stages and SFT in stages and config.sft_iterations:
        yield "reinforcement learning (--stage=rl adds it to the finished run, --rl_iterations=N to this one)", NORMAL
    if config.eval_every > config.num_iterations > 0:
        yield f"evaluation every {config.eval_every} steps, because the run is shorter; it is evaluated at the end", VERBOSE
    if config.save_every == -1:
        yield f"checkpoints by step; they are saved every {config.save_minutes:g} minutes and at the end", VERBOSE
    if config.compile == "off":
        yield "torch.compile, which is off for this run", VERBOSE
        if config.activation_memory_budget < 1:
            yield "activation_memory_budget, because only a compiled step (--compile=on) can recompute activations", NORMAL
    if config.device == "cpu":
        yield f"{'' if config.dtype == 'bfloat16' else 'bfloat16, '}CUDA kernels and mfu, because the run uses no GPU", VERBOSE


def _with_problems(config: Config, source: TextSource) -> Config:
    """Load the RL problems; returns the config with the number of RL steps. Raises UsageError, DataError."""
    if not config.sft_iterations and (not config.from_run or parse_source(config.from_run).stage == BASE):
        raise UsageError(
            "reinforcement learning needs a fine-tuned model, and this run has no fine-tuning", "add conversations with --chat-data FILE"
        )
    questions, _ = source.problems(config.rl_eval_examples)
    if config.rl_iterations == -1:
        config = config.replace(rl_iterations=max(len(questions) // config.rl_examples_per_step, 1))
        log(f"auto: rl_iterations = {config.rl_iterations} (one epoch of {len(questions):,} prompts)")
    return config


def _resumed(record: Record, config: Config, dataset: Dataset | None, conversations: str, problems: str) -> Record:
    """The record with this call's config. Raises UsageError if the text, the tokenizer or the conversations are others."""
    if conversations:
        record = record.with_conversations(config, conversations)
    if dataset:
        require_same("text", (record.dataset, record.shards), (dataset.folder.name, _names(dataset)), config.run)
    if dataset and not config.from_run:
        tokenizer = ensure_tokenizer(dataset, config.vocab_size, config.architecture)
        require_same("tokenizer", record.tokenizer, tokenizer.id, config.run)
    return dataclasses.replace(record.with_rl(config, problems), config=config)


def _new(config: Config, plan: Plan, dataset: Dataset | None, conversations: str, problems: str) -> Record:
    """The record of a new run and its plan, written; the checkpoint that it begins with is copied before."""
    if config.from_run:
        record = _continued(config, dataset, conversations, problems)
    else:
        assert dataset is not None, "a run that begins with nothing pretrains"
        tokenizer = _tokenizer(config, dataset, None)
        record = Record(config, dataset.folder.name, _names(dataset), tokenizer.id, conversations, problems)
    paths.atomic_write_json(paths.run_dir(config.run) / PLAN, plan.to_dict())
    record.write()  # last: where it is there, so are the plan and the copy
    return record


def _continued(config: Config, dataset: Dataset | None, conversations: str, problems: str) -> Record:
    """The record of a new run that begins with a checkpoint of another one, which is copied."""
    copy, source = copy_origin(config), read_record(parse_source(config.from_run).run)
    if dataset:
        text, shards = dataset.folder.name, _names(dataset)
    else:
        text, shards = (source.dataset, source.shards) if source else ("", ())
    record = Record(config, text, shards, str(copy.meta["tokenizer"]), conversations, problems, descent(config, copy))
    return dataclasses.replace(record, first_row=first_row(record))


def _tokenizer(config: Config, dataset: Dataset | None, record: Record | None) -> Tokenizer:
    """The run's tokenizer: its source run's, else its text's, trained if it does not exist."""
    if config.from_run:
        known = record.tokenizer if record else str(find(parse_source(config.from_run)).meta["tokenizer"])
        return load_tokenizer(paths.tokenizer_dir(known))
    assert dataset is not None, "a run that begins with nothing pretrains"
    return ensure_tokenizer(dataset, config.vocab_size, config.architecture)


def _names(dataset: Dataset) -> tuple[str, ...]:
    return tuple(shard.path.name for shard in dataset.training)
