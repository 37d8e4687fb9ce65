"""`train` from door to door: the run's identity, the plan, the data, the tokenizer, the stages, the score, the report."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from nanochat import console, paths
from nanochat.config import EMBEDDED, Config
from nanochat.console import Progress, log
from nanochat.data import conversations, problems
from nanochat.data.embedded import corpus, identity
from nanochat.data.hub import download
from nanochat.data.hub.sets import ensure_task
from nanochat.data.shards import Dataset, sha256, texts
from nanochat.data.source import sets_of
from nanochat.data.text import documents
from nanochat.data.text.summary import conversations_line
from nanochat.distributed import memory, ranks
from nanochat.doctor import checks as doctor
from nanochat.errors import DataError, Preempted, UsageError
from nanochat.evaluation import evaluate as evaluation
from nanochat.evaluation.results import SUMMARY, forget_summary, read_results
from nanochat.hardware.machine import this_machine
from nanochat.pipeline import mirrored
from nanochat.pipeline.score import score_run, show_result
from nanochat.planning import autosize as budget
from nanochat.planning import plan as planning
from nanochat.report.collect import PLAN, read_metrics
from nanochat.runs import record as runs
from nanochat.runs import trackers as live
from nanochat.runs.checkpoint import Checkpoint, Checkpoints
from nanochat.runs.heartbeat import heartbeat
from nanochat.runs.metrics import EVALUATED, STAGES, Metrics
from nanochat.runs.mirror import Copier
from nanochat.runs.report_schema import REPORT
from nanochat.tokenizer.tokenizer import QWEN2_PATTERN, SPLIT_PATTERN, Conversation, Tokenizer
from nanochat.train import device
from nanochat.train.finetune import finetune
from nanochat.train.pretrain import pretrain
from nanochat.train.reinforce import reinforce
from nanochat.train.session import Session
from nanochat.train.trainer import StopSignal

TOKENIZER_CHARACTERS = 2_000_000_000
TOKENIZER_SOURCE = "source.json"  # in a tokenizer's folder: what it was trained from
BASE, SFT, RL = STAGES
BEGAN = "NANOCHAT_BEGAN"  # when a launcher's command began, by the clock that all processes share


def train(config: Config, stages: Sequence[str] = (BASE, SFT), relaunch: Sequence[str] = ()) -> int:
    """Carry the run of `config` as far as `stages` go, from wherever it stands; returns the exit code.

    `relaunch` is the command line (after the interpreter) that workers run where the config asks for several processes.
    Raises UsageError where the name belongs to another run, PreflightError where the machine cannot do it, DataError,
    NonFiniteError, OutOfMemoryError, Preempted.
    """
    began = time.monotonic()
    with StopSignal().installed() as stop:
        if ranks.launched():
            return _worker(config, stages, stop, began)
        paths.require_writable(paths.base_dir())
        paths.sweep()
        if ranks.nodes() > 1:  # what is missing is prepared once for all nodes, by the main rank
            return ranks.launch(list(relaunch), config.nproc_per_node)
        prepared = prepare(config, stages, began)
        if isinstance(prepared, str):
            log(prepared)
        elif config.nproc_per_node > 1:
            os.environ[BEGAN] = str(began)
            code = ranks.launch(list(relaunch), config.nproc_per_node)
            if code:
                return code
            stop.trained = True
        else:
            device.set_up(prepared.config)
            with ranks.join(prepared.config.device) as here, _alive(prepared.config, here):
                _stages(prepared, stages, here, stop, began)
        show_result(config)
        return 0


def _worker(config: Config, stages: Sequence[str], stop: StopSignal, began: float) -> int:
    """One of torchrun's processes: the main rank prepares what is still missing, the others wait for it."""
    if os.environ["RANK"] != "0":
        console.mute()
    if config.device == "auto":
        config = config.replace(device="cuda" if torch.cuda.is_available() else "cpu")
    config = config.replace(nproc_per_node=int(os.environ["WORLD_SIZE"]))
    with ranks.join(config.device) as here:
        alone = ranks.has_launcher() and ranks.nodes() == 1
        prepared = _prepared(config, stages) if alone else here.main_first("prepared", lambda: prepare(config, stages, began))
        if isinstance(prepared, str):
            log(prepared)
            return 0
        device.set_up(prepared.config)
        with _alive(prepared.config, here):
            _stages(prepared, stages, here, stop, began)
        return 0


def _alive(config: Config, here: ranks.Ranks) -> contextlib.AbstractContextManager[None]:
    """The run's sign of life, given by its main rank."""
    if not here.main:
        return contextlib.nullcontext()

    def about() -> dict[str, object]:
        steps = config.steps
        with contextlib.suppress(DataError):  # a record that is damaged meanwhile ends neither the training nor its sign of life
            if record := runs.read_record(config.run):  # the steps of a run with --hours change
                steps = record.config.steps
        return {"device": here.device.type, "steps": steps, "trial": config.trial}

    return heartbeat(paths.run_dir(config.run), about)


def _prepared(config: Config, stages: Sequence[str]) -> runs.Record:
    """The record that this process's launcher has written before it started its workers."""
    record = runs.read_record(config.run)
    assert record is not None, config.run
    return dataclasses.replace(record, config=runs.inherit(planning.normal(config), record, RL in stages))


def prepare(config: Config, stages: Sequence[str], began: float | None = None) -> runs.Record | str:
    """Everything before the first step: identity, plan, preflight, shards, tokenizer. The run's record, or a line where it is finished."""
    config = planning.normal(config)
    live.require(config)
    if config.mirror and mirrored.fetch(config.mirror, config.run):
        _forget_results(config.run)
    record = runs.read_record(config.run)
    if record is None and runs.has_checkpoints(config.run):
        raise UsageError(
            f"the run {config.run!r} was imported: it has no text and no optimizer state to go on with", "--run NEW starts another"
        )
    if record:
        config = runs.inherit(budget.as_begun(config, record.config), record, RL in stages)
        if finished := _finished(record, stages):
            if config.mirror:
                mirrored.catch_up(config)
            return finished
    talks = ""
    if config.sft_iterations:
        talks = _own_conversations(config)
    local = _local_text(config)
    spent = time.monotonic() - began if began is not None else 0.0
    config, plan = _announce(config, stages, local.text_bytes if local else None, spent, begun=record is not None)
    dataset = local or download.ensure_shards(config.dataset, config.shards)
    dataset = dataset.first(config.shards) if config.shards != -1 else dataset
    if SFT in stages and config.sft_iterations:
        sft_conversations(config)  # fetched and looked through now: a fault in them must not wait for the end of pretraining
    if RL in stages:
        config = _with_questions(config)
    names = tuple(shard.path.name for shard in dataset.training)
    if record:
        if talks:
            runs.require_same("conversations file", record.conversations, talks, config.run)
        runs.require_same("text", (record.dataset, record.shards), (dataset.folder.name, names), config.run)
    tokenizer = ensure_tokenizer(dataset, config.vocab_size, config.architecture)
    if record:
        runs.require_same("tokenizer", record.tokenizer, tokenizer.id, config.run)
        record = record.with_rl(config)
    else:
        record = runs.Record(config, dataset.folder.name, names, tokenizer.id, talks)
        record.write()
        paths.atomic_write_json(paths.run_dir(config.run) / PLAN, plan.to_dict())
    return dataclasses.replace(record, config=config)


def _finished(record: runs.Record, stages: Sequence[str]) -> str | None:
    """One line where the run has nothing left to do in `stages`."""
    config, folder = record.config, paths.run_dir(record.config.run)
    for stage in stages:
        newest = _newest(folder, stage)
        if config.steps[stage] and (newest is None or newest.step < config.steps[stage]):
            return None
    if SUMMARY not in read_results(folder) or not (folder / REPORT).exists():
        return None
    last = next((stage for stage in reversed(stages) if config.steps[stage]), BASE)
    return f"the run {config.run!r} is finished: its model is {folder / last}, its report {folder / 'report.html'} (for another: --run NEW)"


def _forget_results(run: str) -> None:
    """Remove what speaks of where the run stood before."""
    forget_summary(paths.run_dir(run))
    (paths.run_dir(run) / REPORT).unlink(missing_ok=True)


def _newest(folder: Path, stage: str) -> Checkpoint | None:
    return Checkpoints(folder / stage).newest()


def _local_text(config: Config) -> Dataset | None:
    """The user's or the embedded text as a dataset; None where it has to be downloaded."""
    if config.data:
        return documents.import_texts(Path(config.data))
    return corpus.build() if config.dataset == EMBEDDED else None


def _announce(config: Config, stages: Sequence[str], text_bytes: int | None, spent: float, begun: bool) -> tuple[Config, planning.Plan]:
    """Resolve, print the plan and the rules, and refuse what cannot run here; returns the resolved config and its plan."""
    hardware = this_machine(config.device)
    resolved, plan = budget.decide(config, hardware, text_bytes=text_bytes, spent=spent, begun=begun)
    log(planning.brief(plan))
    for line in resolved.rules:
        log(f"by rule: {line}")
    for line in _skipped(resolved.config, stages):
        log(f"skipped: {line}")
    doctor.require(resolved.config, plan, config.device)
    return resolved.config, plan


def _skipped(config: Config, stages: Sequence[str]) -> Iterator[str]:
    """What a reader might expect of the run and does not get, each with its reason."""
    if BASE in stages and SFT not in stages:
        yield "fine-tuning: this command pretrains only (entrypoint.py train does both)"
    elif config.data and not config.chat_data:
        yield "fine-tuning: there are no conversations (--chat-data FILE brings some); the model will continue texts, not converse"
    if RL not in stages and SFT in stages and config.sft_iterations:
        yield "reinforcement learning: --stage=rl adds it to the finished run, --rl_iterations=N to this one"
    if config.eval_every > config.num_iterations:
        yield f"evaluation every {config.eval_every} steps: the run ends before; once at the end"
    if config.save_every == -1:
        yield f"checkpoints by step: one every {config.save_minutes:g} minutes and one at the end"
    if config.compile == "off":
        yield "torch.compile: off for this run"
        if config.activation_memory_budget < 1:
            yield "activation_memory_budget: only a compiled step (--compile=on) can compute its activations twice"
    if config.device == "cpu":
        yield f"{'' if config.dtype == 'bfloat16' else 'bfloat16, '}CUDA kernels and mfu: there is no GPU in this run"


def ensure_tokenizer(dataset: Dataset, vocab_size: int, architecture: str = "nanochat") -> Tokenizer:
    """The tokenizer of `dataset`'s first 2 billion characters, trained once. Raises DataError where there is no text."""
    key = {
        "shards": [shard.content for shard in dataset.training],
        "vocab_size": vocab_size,
        "characters": TOKENIZER_CHARACTERS,
        "format": 1,
    }
    pattern = QWEN2_PATTERN if architecture == "portable" else SPLIT_PATTERN
    if pattern != SPLIT_PATTERN:
        key["pattern"] = pattern
    for source in (paths.base_dir() / "tokenizer").glob(f"*/{TOKENIZER_SOURCE}"):
        if not source.parent.name.startswith(paths.TEMPORARY) and json.loads(source.read_text(encoding="utf-8")) == key:
            return Tokenizer.load(source.parent)
    log(f"training a tokenizer of {vocab_size} tokens")
    with Progress(
        "reading text for the tokenizer", TOKENIZER_CHARACTERS if dataset.text_bytes is None else dataset.text_bytes, "characters"
    ) as bar:

        def read() -> Iterator[str]:
            for shard in dataset.training:
                for batch in texts(shard):
                    for text in batch:
                        yield text
                        bar.advance(len(text))

        tokenizer = Tokenizer.train(read(), vocab_size, pattern=pattern, max_characters=TOKENIZER_CHARACTERS)
    folder = paths.tokenizer_dir(tokenizer.id)
    try:
        tokenizer.save(folder)
        paths.atomic_write_json(folder / TOKENIZER_SOURCE, key)
    except OSError as error:
        raise paths.disk_error(error, "saving the tokenizer") from error
    return tokenizer


def _own_conversations(config: Config) -> str:
    """Look through the user's conversations and identity: a mistake in them is said now. A hash of both, "" where there are none."""
    if config.identity:
        who = identity.read_identity(Path(config.identity))
        log(f"identity: {' / '.join(dict.fromkeys(who.name.values()))}, in {', '.join(who.languages)}")
    if config.chat_data.startswith("hf:"):
        files = ensure_task(config.chat_data)
    else:
        files = [Path(config.chat_data)] if config.chat_data else []
        for path in files:
            log(conversations_line(documents.read_conversations(path)))
    return " ".join(sha256(path) for path in (*files, *([Path(config.identity)] if config.identity else [])))


def sft_conversations(config: Config) -> Sequence[Conversation]:
    """What fine-tuning learns from: the user's conversations, the embedded ones, or the published sets; and the user's identity."""
    found: Sequence[Conversation]
    if config.chat_data.startswith("hf:"):
        found = conversations.conversations(config.chat_data)
    elif config.chat_data:
        found = documents.read_conversations(Path(config.chat_data))
    elif config.data:
        found = []
    elif config.dataset == EMBEDDED:
        found = corpus.conversations(identity=not config.identity)
    else:
        try:
            found = conversations.mixture(sets_of(config), config.seed)
        except DataError as error:
            raise DataError(error.message, f"{error.hint}; or pretrain alone: --stage=base") from error
    return conversations.with_identity(found, Path(config.identity), config.seed) if config.identity else found


def rl_problems(config: Config) -> tuple[list[problems.Problem], list[problems.Problem]]:
    """What reinforcement learning learns from, and what it is measured by: the embedded text's arithmetic, else GSM8K. Raises DataError."""
    embedded = config.dataset == EMBEDDED and not config.data
    return (problems.arithmetic_problems if embedded else problems.grade_school_problems)(config.rl_eval_examples)


def _with_questions(config: Config) -> Config:
    """Find the questions of reinforcement learning now; the config with its number of steps. Raises UsageError, DataError."""
    if not config.sft_iterations:
        raise UsageError(
            "reinforcement learning begins from a model that answers, and this run has no fine-tuning", "give it some: --chat-data FILE"
        )
    questions, _ = rl_problems(config)
    if config.rl_iterations == -1:
        config = config.replace(rl_iterations=max(len(questions) // config.rl_examples_per_step, 1))
        log(f"by rule: rl_iterations = {config.rl_iterations}: one pass over {len(questions):,} questions")
    return config


def _stages(record: runs.Record, stages: Sequence[str], here: ranks.Ranks, stop: StopSignal, began: float) -> None:
    """Train the stages that are not done, then score and report; saved steps are copied to the mirror, and metrics handed on."""
    try:
        with mirrored.copying(record.config, here) as copier, live.following(record.config, here) as follow:
            _train_and_score(record, stages, here, stop, began, copier, follow)
    except Preempted:
        if stop.in_loop:  # all ranks stop after the same step: the first to exit would have the main rank stopped while it copies
            here.gather_objects(None)
        raise


def _train_and_score(
    record: runs.Record,
    stages: Sequence[str],
    here: ranks.Ranks,
    stop: StopSignal,
    began: float,
    copier: Copier | None,
    follow: Callable[[Metrics], object],
) -> None:
    config, folder = record.config, paths.run_dir(record.config.run)
    dataset = runs.open_text(record)
    memory.cap(here.device)
    rate = planning.make_plan(config, this_machine(config.device)).tokens_per_second if here.main else 0.0
    session = Session(config, dataset, Tokenizer.load(paths.tokenizer_dir(record.tokenizer)), folder, here, stop, rate, copier, follow)
    if here.main:
        _forget_results(config.run)
        earlier = read_metrics(folder / "metrics.jsonl")
        # What earlier calls have trained counts too, and of a new run what the launcher did before it started this process.
        began = began - earlier[-1]["elapsed_seconds"] if earlier else float(os.environ.get(BEGAN, began))
    if config.hours:
        session.retime = lambda done, seconds: _retimed(record, done, seconds, began)
    base = _own_newest(session, BASE)
    stop.trained = base is not None
    if BASE in stages and not _complete(session, BASE, base, config.num_iterations):
        pretrain(session)
        base = session.checkpoints(BASE).newest()
    if config.hours and base:  # --hours may have given it other steps
        config = session.config = config.replace(num_iterations=int(base.meta["steps"]))
    if SFT in stages and config.sft_iterations:
        if base is None or base.step < config.num_iterations:
            raise UsageError("fine-tuning begins from a finished base model", "train it first: --stage=base, or --stage=all")
        sft = _own_newest(session, SFT)
        if not _complete(session, SFT, sft, config.sft_iterations):
            finetune(session, base, sft_conversations(config))
    if RL in stages:
        sft = _own_newest(session, SFT)
        if sft is None or sft.step < config.sft_iterations:
            raise UsageError("reinforcement learning begins from a fine-tuned model", "train it first: the same command without --stage")
        if not _complete(session, RL, _own_newest(session, RL), config.rl_iterations):
            reinforce(session, sft, *rl_problems(config))
    stop.in_loop = False
    evaluation.evaluate_finished(config, here)
    if here.main:
        score_run(session, began)


def _retimed(record: runs.Record, done: int, step_seconds: float, began: float) -> int:
    """The steps of pretraining with which a run ends in its hours, as its own steps now tell better than the plan; noted in its record."""
    record = runs.read_record(record.config.run) or record
    config = record.config
    left = 3600 * config.hours - (time.monotonic() - began)
    steps = budget.retimed(config, done, step_seconds, left)
    if steps != config.num_iterations:
        dataclasses.replace(record, config=config.replace(num_iterations=steps)).write()
        log(
            f"{steps:,} steps of pretraining instead of {config.num_iterations:,}, to end in {console.duration(left)}: "
            f"one takes {step_seconds * 1000:.0f} ms"
        )
    return steps


def _complete(session: Session, stage: str, newest: Checkpoint | None, steps: int) -> bool:
    """Whether a stage has its last step, and that step its evaluation."""
    lines = read_metrics(session.folder / "metrics.jsonl")
    evaluated = any(line["stage"] == stage and line["step"] == steps and EVALUATED[stage] in line for line in lines)
    return newest is not None and newest.step >= steps and evaluated


def _own_newest(session: Session, stage: str) -> Checkpoint | None:
    """The newest checkpoint of a stage. Raises UsageError where it is another model's, put there by hand."""
    newest = session.checkpoints(stage).newest()
    if newest and (newest.meta["model"], newest.meta["tokenizer"]) != (session.gpt.to_dict(), session.tokenizer.id):
        raise UsageError(
            f"{newest.folder} is the checkpoint of another model than the run {session.config.run!r} trains",
            "move that folder away, or choose a new name with --run NEW",
        )
    return newest


def tokenizer_of(config: Config) -> Path:
    """The folder of the tokenizer that a run of `config` uses, trained if it is not there."""
    text = _local_text(planning.normal(config))
    config = planning.resolve(config, text_bytes=text.text_bytes if text else None)
    dataset = text or download.ensure_shards(config.dataset, config.shards)
    part = dataset.first(config.shards) if config.shards != -1 else dataset
    return paths.tokenizer_dir(ensure_tokenizer(part, config.vocab_size, config.architecture).id)
