"""The checkpoint of `--from RUN[:stage[:step]]` that a run begins with, and the config that follows from it.

runs/<run>/from/step_000100/    the run's own copy of that checkpoint: the source may be removed afterwards

Options that are not given have the source's values. The model's shape and its tokenizer cannot change. A run pretrains again only if a
text or a length of pretraining is given (or --stage=base); else it begins with fine-tuning, or with --stage=rl with reinforcement learning.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from nanochat import paths
from nanochat.config import Config
from nanochat.console import log
from nanochat.data.shards import read_manifest
from nanochat.data.source import text_source
from nanochat.errors import DataError, NanochatError, UsageError, did_you_mean
from nanochat.hardware.cpu import physical_cores
from nanochat.hardware.machine import this_machine
from nanochat.hub.download import require_space
from nanochat.model.scaling import GPTConfig, gpt_config, sft_steps_rule
from nanochat.runs.checkpoint import Checkpoint, Checkpoints, held, verify
from nanochat.runs.metrics import STAGES
from nanochat.runs.mirror import RECORD, Mirror
from nanochat.runs.names import MANIFEST, CheckpointName, plain_name
from nanochat.runs.record import Ancestor, Record, parse_record, read_record

ORIGIN = "from"  # the copy's directory
SHAPE = ("architecture", "depth", "aspect_ratio", "head_dim", "vocab_size", "max_seq_len", "window_pattern", "shape")
TEXT = ("data", "dataset", "shards", "num_iterations", "target_param_data_ratio")  # options that request pretraining
CONVERSATIONS = ("chat_data", "identity")
BASE, SFT, RL = STAGES


def parse_source(text: str) -> CheckpointName:
    """The checkpoint that `--from` names. Raises UsageError for another form than RUN[:stage[:step]]."""
    name = CheckpointName.parse(text)
    if name.stage is None and ":" in text:
        raise UsageError(
            f"--from {text} is not RUN, RUN:stage or RUN:stage:step",
            f"use one of the stages {', '.join(STAGES)}, as in --from {text.rsplit(':', 2)[0]}:{BASE}",
        )
    plain_name(name.run)
    return name


def config_from(asked: str, overrides: Mapping[str, Any], stage: str, machine: Mapping[str, Any], profile: Callable[[], Config]) -> Config:
    """The config of `train --from ASKED --stage STAGE` with the user's `overrides`; its `from_run` names one step.

    `machine` are values of the user's profile; `profile` returns those for an imported source, which has no record. If the run exists
    already, its own record decides, and the source is not needed. Raises UsageError if there is no such source, or for an invalid
    override.
    """
    spec = parse_source(asked)
    run = str(overrides.get("run", "auto"))
    run = f"{spec.run}-2" if run == "auto" else run
    if run == spec.run:
        raise UsageError(f"the run {run!r} cannot begin from itself", "give the new run another name with --run NEW")
    given = {name: value for name, value in overrides.items() if name != "from_run"} | {"run": run}
    known = record_of(run, str(given.get("mirror", "")))
    if known and known.config.from_run and spec.matches(parse_source(known.config.from_run)):
        return known.config.replace(**_per_call() | given)
    checkpoint = find(spec, SFT if stage == RL else BASE)
    if stage == RL and checkpoint.meta["stage"] == BASE:
        raise UsageError(
            f"reinforcement learning begins from a fine-tuned model, and the run {spec.run!r} has only pretrained ones",
            "use --rl_iterations=N instead of --stage=rl, which fine-tunes it first",
        )
    gpt, record = GPTConfig.from_dict(checkpoint.meta["model"]), read_record(spec.run)
    source = record.config if record else _shaped(profile(), gpt)
    _require_shape(given, source, gpt, spec)
    exact = CheckpointName(spec.run, str(checkpoint.meta["stage"]), checkpoint.step)
    return _following(source, exact, given, _here(source) | dict(machine), _stages(source, record is None, given, stage))


def config_elsewhere(asked: str, overrides: Mapping[str, Any], source: Config, machine: Mapping[str, Any]) -> Config:
    """The config of `config_from` on another machine, which alone has the checkpoint, for a plan; `source` is the source run's config.

    Raises UsageError.
    """
    spec = parse_source(asked)
    run = str(overrides.get("run", f"{spec.run}-2"))
    given = {name: value for name, value in overrides.items() if name != "from_run"} | {"run": run}
    _require_shape(given, source, gpt_config(source), spec)
    return _following(source, spec, given, machine, _stages(source, False, given, "all"))


def _following(
    source: Config, name: CheckpointName, given: Mapping[str, Any], machine: Mapping[str, Any], stages: Mapping[str, Any]
) -> Config:
    """The config that follows from the source's, the machine's, the stages' and, above all, the user's values. Raises UsageError."""
    if given.get("hours"):
        raise UsageError("--hours chooses the size of a model, which --from sets", "use --num_iterations=N instead of --hours")
    own = {"from_run": str(name), "hours": 0.0, "rl_iterations": -1}
    values = source.to_dict() | _per_call() | dict(machine) | own | dict(stages) | dict(given)
    if "device_batch_size" not in given and min(values["total_batch_size"], values["device_batch_size"]) > 0:
        # A profile's micro-batch may have more rows than the source's step has for each process.
        rows = values["total_batch_size"] // values["max_seq_len"] // values["nproc_per_node"]
        values["device_batch_size"] = math.gcd(rows, values["device_batch_size"])
    return Config(**values)


def record_of(run: str, mirror: str) -> Record | None:
    """The record of a run, here or on its mirror ("": none); None if neither has it, or the mirror cannot be reached."""
    if (record := read_record(run)) or not mirror:
        return record
    with contextlib.suppress(Exception):  # each kind of mirror raises its own exceptions; the pipeline reports them
        if (data := Mirror(mirror, run).read(RECORD)) is not None:
            return parse_record(data, paths.run_dir(run) / RECORD)
    return None


def _per_call() -> dict[str, Any]:
    """Values of the fields that each call must be given again."""
    return {"mirror": "", "log_to": "none"}


def _here(source: Config) -> dict[str, Any]:
    """Device settings chosen again, if this machine lacks the source's device."""
    if source.device == "cuda" and not this_machine("auto").cuda:
        return {"device": "auto", "dtype": "auto", "compile": "auto", "threads": -1, "nproc_per_node": 1}
    return {"threads": -1} if source.threads > physical_cores() and not source.deterministic else {}


def _shaped(config: Config, gpt: GPTConfig) -> Config:
    """`config` with the shape of an imported model."""
    shape = {
        "architecture": "portable" if gpt.architecture == "qwen3" else gpt.architecture,
        "depth": gpt.depth,
        "aspect_ratio": max(gpt.dim // gpt.depth, 1),
        "head_dim": gpt.head_dim,
        "vocab_size": gpt.vocab_size,
        "max_seq_len": gpt.max_seq_len,
        "window_pattern": gpt.window_pattern,
        "total_batch_size": -1,  # the profile's may not be a multiple of this context
    }
    shaped = config.replace(**shape)
    if gpt_config(shaped) == gpt:
        return shaped
    context = min(config.max_seq_len, gpt.max_seq_len)  # a long one needs much memory, and may be shortened
    return shaped.replace(shape=json.dumps(gpt.to_dict(), sort_keys=True), max_seq_len=context)


def _require_shape(given: Mapping[str, Any], source: Config, gpt: GPTConfig, spec: CheckpointName) -> None:
    """Raise UsageError with the flag if the user's shape differs from the weights'."""
    for name in SHAPE:
        if name == "max_seq_len" and source.shape and int(given.get(name, 0)) <= gpt.max_seq_len:
            continue
        possible = {getattr(source, name), -1} | ({gpt.vocab_size} if name == "vocab_size" else set())
        if name in given and given[name] not in possible:
            raise UsageError(
                f"--{name}={given[name]} does not match {spec}, which was trained with {name} = {getattr(source, name)}",
                f"leave out --{name}, or train that model from scratch, without --from",
            )


def _stages(source: Config, imported: bool, given: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Values that follow from the new run's stages, without the user's."""
    text, talk = ([name for name in names if name in given] for names in (TEXT, CONVERSATIONS))
    if text and stage in (SFT, RL):
        raise UsageError(f"--{text[0]} is for pretraining, and --stage={stage} has none", f"leave out --stage or --{text[0]}")
    if talk and stage == RL:
        hint = "use --rl_iterations=N instead of --stage=rl"
        raise UsageError(f"--{talk[0]} is for fine-tuning, and --stage=rl has none", hint)
    pretrains = bool(text) or stage == BASE
    # With a user's text, `dataset` names the conversations that the run inherits; none, if the source had a user's text too.
    values: dict[str, Any] = {"dataset": ""} if source.data and not source.from_run and "dataset" not in text else {}
    if pretrains:
        values |= {"num_iterations": -1, "eval_tokens": -1}
        if {"data", "dataset"} & set(text):
            values |= {"data": "", "shards": -1}
    else:
        values["num_iterations"] = 0
    if stage != RL:
        values["problems"] = ""
    if stage == RL:
        values["sft_iterations"] = 0
    elif talk and not source.sft_iterations:
        values["sft_iterations"] = sft_steps_rule(source.num_iterations)
    elif imported:
        values["eval_tokens"] = -1
    return values


def find(spec: CheckpointName, stage: str = BASE) -> Checkpoint:
    """The step of `spec`, by default of `stage`, or of the last stage if that has no step.

    Raises UsageError with the existing ones if there is no such run, stage or step, DataError if the step is damaged.
    """
    folder = paths.run_dir(spec.run)
    if not folder.is_dir():
        names = sorted(path.name for path in paths.runs_dir().glob("[!.]*") if path.is_dir())
        raise UsageError(f"there is no run {spec.run!r} to begin from", did_you_mean(spec.run, names or ["none yet"], title="runs"))
    stages = [spec.stage] if spec.stage else [stage, *(each for each in STAGES[::-1] if each != stage)]
    for each in stages:
        store = Checkpoints(folder / each)
        if spec.step is not None:
            wanted = [step for step in store.steps() if int(step.name[5:]) == spec.step]
            found = verify(wanted[0]) if wanted else None
        else:
            found = store.newest()
        if found:
            return found
    there = [f"{spec.run}:{each}:{int(step.name[5:])}" for each in STAGES for step in Checkpoints(folder / each).steps()]
    what = f"has no complete checkpoint of {spec.stage or 'any stage'}{f' at step {spec.step}' if spec.step is not None else ''}"
    raise UsageError(f"the run {spec.run!r} {what}", f"use --from {', '.join(there)}" if there else "train it first")


def own_copy(run: str) -> Checkpoint | None:
    """The copy of the checkpoint that `run` began with; None if it has none."""
    return Checkpoints(paths.run_dir(run) / ORIGIN).newest()


def copy_origin(config: Config) -> Checkpoint:
    """Copy and verify the checkpoint that the new run of `config` begins with into its directory; returns the copy.

    The source is not changed. Raises UsageError if it was removed, PreflightError if the disk cannot be written.
    """
    source, folder = find(parse_source(config.from_run)), paths.run_dir(config.run) / ORIGIN
    copy = own_copy(config.run)  # from a call that ended before it wrote the run's record
    if copy is None or copy.digest != source.digest:
        shutil.rmtree(folder, ignore_errors=True)
        require_space(
            f"the copy of {config.from_run}", sum((source.folder / name).stat().st_size for name in source.files), paths.base_dir()
        )
        try:
            with held(source.folder, source.digest), paths.atomic_folder(folder / source.folder.name) as temporary:
                for name in (*source.files, MANIFEST):
                    shutil.copyfile(source.folder / name, temporary / name)
        except OSError as error:
            raise paths.disk_error(error, f"copying {source.folder}") from error
        copy = verify(folder / source.folder.name)
    state = "weights and optimizer state" if copy.has_optimizer else "weights without optimizer state, so the optimizer is new"
    log(f"from {config.from_run}: {state}")
    return copy


def descent(config: Config, copy: Checkpoint) -> tuple[Ancestor, ...]:
    """The steps that the new run of `config` descends from, the oldest first."""
    spec, record = parse_source(config.from_run), read_record(parse_source(config.from_run).run)
    text = text_source(record.config).title if record and record.config.num_iterations else ""
    licence = _licence(record) if text else ""
    if record is None and (imported := copy.meta.get("origin")):
        text, licence = f"imported from {imported['name']}", str(imported["licence"])
    own = Ancestor(spec.run, str(copy.meta["stage"]), copy.step, copy.digest, text, licence)
    return (*(record.descent if record else ()), own)


def _licence(record: Record | None) -> str:
    """The licence of a run's pretraining text."""
    try:
        return read_manifest(paths.dataset_dir(record.dataset)).licence if record else ""
    except (NanochatError, DataError):
        return ""


def first_row(record: Record) -> int:
    """The first row of a new run's first stage: where its source stopped, if that was the same stage on the same data.

    Rows are of text or of conversations; for reinforcement learning they are problems.
    """
    spec = parse_source(record.config.from_run)
    source, stage = read_record(spec.run), record.config.first_stage
    if source is None or spec.stage != stage or spec.step is None or source.config.seed != record.config.seed:
        return 0
    if _read_by(source, stage) != _read_by(record, stage):
        return 0
    config = source.config
    per_step = config.rl_examples_per_step if stage == RL else config.total_batch_size // config.max_seq_len
    return spec.step * per_step + (source.first_row if source.config.first_stage == stage else 0)


def _read_by(record: Record, stage: str) -> tuple[Any, ...]:
    """The data that a stage of a run reads, to be compared with another run's of the same seed, tokenizer and context."""
    if stage == BASE:
        return record.dataset, record.shards
    source = text_source(record.config)
    if stage == SFT:
        return type(source.conversations).__name__, record.conversations, record.config.trial
    return (record.problems or source.title,)
