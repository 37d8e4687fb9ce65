"""A run's record on disk: its frozen config, the check of a second call with its name, and its trained model.

runs/<run>/config.toml    the resolved config, and in [frozen] everything else that the losses depend on
"""

import contextlib
import dataclasses
import html
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch

from nanochat import paths, untrusted
from nanochat.config import FIELDS, RL_FIELDS, STEP_FIELDS, Config, convert, differences
from nanochat.console import log
from nanochat.data.shards import Dataset, mend, open_dataset
from nanochat.errors import DataError, UsageError, did_you_mean
from nanochat.model.transformer import Transformer
from nanochat.redaction import redact
from nanochat.runs.checkpoint import Checkpoint, Checkpoints, held
from nanochat.runs.metrics import STAGES
from nanochat.runs.names import RECORD, RECORD_BYTES
from nanochat.tokenizer.files import load_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

FORMAT = 1  # version of the file; a file without a number has the first one
TRIES = 10  # attempts to open a step while a training run prunes steps
SFT = STAGES[1]
CONVERSATION_FIELDS = ("chat_data", "identity")
PACED = (STEP_FIELDS["base"], STEP_FIELDS[SFT])
ANSWERING = STAGES[::-1]  # order in which a stage's model is chosen to answer: the last one first


@dataclass(frozen=True)
class Ancestor:
    """A step of another run that a run begins with, the text that this one was pretrained on, if it was, and the text's licence."""

    run: str
    stage: str
    step: int
    sha256: str  # its manifest's, which stands for all its files
    text: str = ""
    licence: str = ""

    @staticmethod
    def parse(value: Any) -> "Ancestor":
        """From a config.toml's table. Raises ValueError, KeyError."""
        table = untrusted.table(value, "an ancestor")
        run, stage, sha256, text, licence = (untrusted.text(table[name], name) for name in ("run", "stage", "sha256", "text", "licence"))
        return Ancestor(run, stage, untrusted.integer(table["step"], "step"), sha256, text, licence)


@dataclass(frozen=True)
class Record:
    """A run's resolved config, and the dataset directory, shard order, tokenizer and conversations, all frozen at step 0."""

    config: Config
    dataset: str  # "" where no text is known: of a run that began with an imported model
    shards: tuple[str, ...]
    tokenizer: str
    conversations: str = ""  # hash of the user's, where there are any
    problems: str = ""  # hash of the user's for reinforcement learning, if there are any
    descent: tuple[Ancestor, ...] = ()  # what the run began with (`--from`), last, and what that run had begun with, and so on
    first_row: int = 0  # of its data, that its first stage begins with: what its source read of the same data is not read again

    def write(self) -> None:
        """Write the run's config.toml without the mirror's credentials, which each call must be given."""
        frozen = {name: value for name, value in dataclasses.asdict(self).items() if name != "config"}
        table = self.config.to_dict() | {"mirror": redact(self.config.mirror), "format": FORMAT, "frozen": frozen}
        try:
            paths.atomic_write(paths.run_dir(self.config.run) / RECORD, tomli_w.dumps(table))
        except OSError as error:
            raise paths.disk_error(error, "writing the run's config") from error

    @property
    def paced(self) -> dict[str, int]:
        """Settings that change during training, by its step time: the numbers of steps with `--hours`."""
        return {name: getattr(self.config, name) for name in PACED} if self.config.hours else {}

    def write_steps(self, steps: dict[str, int]) -> None:
        """Write the record with other numbers of steps, by the config's field."""
        dataclasses.replace(self, config=self.config.replace(**steps)).write()

    def with_conversations(self, config: Config, conversations: str) -> "Record":
        """The record with other conversations, whose hash is `conversations`, written. They may change until fine-tuning has a checkpoint.

        Raises UsageError after that.
        """
        if has_stage(config.run, SFT):
            require_same("conversations file", self.conversations, conversations, config.run)
        settings = {name: getattr(config, name) for name in CONVERSATION_FIELDS}
        record = dataclasses.replace(self, config=self.config.replace(**settings), conversations=conversations)
        if record != self:
            log(f"the run {config.run!r} gets other conversations: it has no checkpoint of fine-tuning yet")
            record.write()
        return record

    def with_rl(self, config: Config, problems: str) -> "Record":
        """The record with `config`'s RL settings and the hash of its `problems`, which may come long after step 0; written if they changed.

        Raises UsageError if there are other problems than those that a checkpoint of reinforcement learning has learned from.
        """
        if has_stage(config.run, STAGES[-1]):
            require_same("problems file", self.problems, problems, config.run)
        settings = {name: getattr(config, name) for name in RL_FIELDS}
        record = dataclasses.replace(self, config=self.config.replace(**settings), problems=problems)
        if record != self:
            record.write()
        return record


def read_record(run: str) -> Record | None:
    """The record of `run`, None if there is no such run. Raises DataError if it is damaged."""
    path = paths.run_dir(run) / RECORD
    if not path.exists():
        return None
    try:
        data = untrusted.read_bytes(path, RECORD_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({untrusted.reason(error)})", f"start a new run with another --run, or restore {path}"
        ) from error
    return parse_record(data, path)


def remove_credentials(record: Record) -> None:
    """Remove the mirror's credentials that an older version wrote into a run's files, and print a note.

    Raises PreflightError where the disk refuses it.
    """
    address, shown = record.config.mirror, redact(record.config.mirror)
    if shown == address:
        return
    folder = paths.run_dir(record.config.run)
    spelled = {address, json.dumps(address)[1:-1], html.escape(address)}
    try:
        for path in (path for suffix in ("json", "md", "html") for path in folder.glob(f"[!.]*.{suffix}")):
            text = before = path.read_bytes()
            for form in spelled:
                text = text.replace(form.encode(), shown.encode())
            if text != before:
                paths.atomic_write(path, text)
    except OSError as error:
        raise paths.disk_error(error, f"removing credentials from {folder}") from error
    record.write()  # last: as long as it has them, the next command begins again
    log(f"warning: an older version wrote the mirror's credentials into {folder}: they are removed; change them if others could read them")


def current_steps(config: Config) -> dict[str, int]:
    """Steps of each stage of a run in training, from its record, or from `config` if that cannot be read."""
    with contextlib.suppress(DataError):  # a damaged record must not end training or its heartbeat
        if record := read_record(config.run):
            return record.config.steps
    return config.steps


def parse_record(data: bytes, path: Path) -> Record:
    """The record in a config.toml. Raises DataError with `path` if it is damaged, NewerFormat if a newer version wrote it."""
    try:
        table = tomllib.loads(data.decode("utf-8"))
        untrusted.require_format(table.get("format", 1), FORMAT, str(path))
        values = {key: convert(key, value) for key, value in table.items() if key in FIELDS}
        frozen = untrusted.table(table["frozen"], "frozen")
        tokenizer = untrusted.file_name(frozen["tokenizer"], "tokenizer")
        dataset = untrusted.file_name(frozen["dataset"], "dataset") if frozen["dataset"] else ""
        shards = tuple(untrusted.file_name(name, "a shard") for name in frozen["shards"])
        descent = tuple(Ancestor.parse(each) for each in frozen.get("descent", []))
        conversations = untrusted.text(frozen["conversations"], "conversations")
        problems = untrusted.text(frozen.get("problems", ""), "problems")
        first_row = untrusted.integer(frozen.get("first_row", 0), "first_row")
        return Record(Config(**values), dataset, shards, tokenizer, conversations, problems, descent, first_row)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({untrusted.reason(error)})", f"start a new run with another --run, or restore {path}"
        ) from error


def open_text(record: Record) -> Dataset:
    """The text of a run, with its shards in the frozen order. Raises DataError if one is missing."""
    dataset = open_dataset(paths.dataset_dir(record.dataset))
    known = {shard.path.name: shard for shard in dataset.training}
    missing = [name for name in record.shards if name not in known]
    if missing:
        raise DataError(f"{missing[0]} of the run's text is missing in {dataset.folder}", mend(record.dataset, dataset.folder))
    return Dataset(
        dataset.name, dataset.folder, dataset.source, dataset.licence, tuple(known[name] for name in record.shards), dataset.validation
    )


def inherit(config: Config, record: Record, reinforced: bool = False) -> Config:
    """`config` with the record's value for every -1 and "auto", which were resolved when the run began.

    RL settings are the record's too, unless this call trains the RL stage (`reinforced`); they may change until its first checkpoint. So
    may the conversations until the first checkpoint of fine-tuning.
    Raises UsageError with all differences if the call would train another model under the same name.
    """
    kept = () if reinforced else RL_FIELDS
    by_rule = {name: getattr(record.config, name) for name in FIELDS if getattr(config, name) in (-1, "auto") or name in kept}
    changes = {name: value for name, value in by_rule.items() if name != "run"}
    merged = config.replace(**changes)
    different = differences(record.config, merged)
    if not different.keys().isdisjoint(RL_FIELDS) and not has_stage(config.run, STAGES[-1]):
        different = {name: values for name, values in different.items() if name not in RL_FIELDS}
    if not has_stage(config.run, SFT):
        different = {name: values for name, values in different.items() if name not in CONVERSATION_FIELDS}
    if different:
        listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in different.items())
        raise UsageError(
            f"the run {config.run!r} exists with another configuration: {listed}",
            "choose a new name with --run NEW, or use the run's options",
        )
    return merged


def differing(here: Record, there: Record) -> list[str]:
    """Names of the settings that decide the losses and differ between two records of one name: they are of different runs."""
    may = {"data", "chat_data", "identity", *RL_FIELDS, *here.paced}
    different = [name for name in differences(here.config, there.config) if name not in may]
    return different + [name for name in ("shards", "tokenizer", "conversations", "descent") if getattr(here, name) != getattr(there, name)]


def require_same(what: str, old: object, new: object, run: str) -> None:
    """Raise UsageError if `what` (the text, the tokenizer) is not the one that the run began with."""
    if old != new:
        raise UsageError(f"the {what} has changed since the run {run!r} began", "start a new one with --run NEW")


def has_checkpoints(run: str) -> bool:
    """Whether `run` has a checkpoint of any stage."""
    return any(any(paths.run_dir(run).glob(f"{stage}/step_*/manifest.json")) for stage in STAGES)


def has_stage(run: str, stage: str | None) -> bool:
    """Whether `run` has a verified checkpoint of `stage`."""
    return stage is not None and Checkpoints(paths.run_dir(run) / stage).newest() is not None


def newest_run() -> str:
    """The run with the newest checkpoint. Raises DataError if there is none."""
    newest, when = None, 0.0
    for path in paths.runs_dir().glob("[!.]*/*/step_*/manifest.json"):  # an import that is not finished begins with a dot
        if path.parts[-3] not in STAGES:  # the copy of what a run began with
            continue
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            if newest is None or path.stat().st_mtime > when:
                newest, when = path, path.stat().st_mtime
    if newest is None:
        raise DataError("there is no trained model yet", "train one in minutes with `nanochat quickstart`")
    return newest.parts[-4]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model of a run's last stage; a base model only continues text."""

    run: str
    checkpoint: Checkpoint
    model: Transformer
    tokenizer: Tokenizer

    @property
    def chats(self) -> bool:
        """Whether it was fine-tuned to chat."""
        return self.checkpoint.meta["stage"] != "base"


def _folder(run: str) -> Path:
    """The directory of a run. Raises DataError with the existing names if there is none."""
    folder = paths.run_dir(run)
    if not folder.is_dir():
        others = sorted(path.name for path in paths.runs_dir().glob("*") if (path / RECORD).exists())
        hint = did_you_mean(run, others, title="runs") if others else "train one in minutes with `nanochat quickstart`"
        raise DataError(f"there is no run {run!r}", hint)
    return folder


def finished_steps(run: str) -> list[Path]:
    """Directories of `run`'s checkpoints, the last stage's newest first, not verified."""
    folder = _folder(run)
    return [step for stage in ANSWERING for step in reversed(Checkpoints(folder / stage).steps())]


def open_model(run: str | None = None, device: str = "cpu", stage: str | None = None) -> TrainedModel:
    """The newest complete step of `run`'s last stage on `device`; without `run`, of the newest run.

    Raises DataError if there is no such run or no complete checkpoint, or the tokenizer is missing.
    """
    name = run or newest_run()
    for tries_left in reversed(range(TRIES)):
        checkpoint = newest_checkpoint(name, stage)
        try:
            return open_checkpoint(name, checkpoint, device)
        except DataError:
            if checkpoint.folder.exists() or not tries_left:
                raise  # otherwise it was pruned by a training run, which has saved a newer one
    raise AssertionError("unreachable")


def newest_checkpoint(run: str, stage: str | None = None) -> Checkpoint:
    """The newest complete step of `stage`, or without it of the last stage, as `open_model` opens it. Raises DataError."""
    folder = _folder(run)
    found = (Checkpoints(folder / part).newest() for part in ([stage] if stage else ANSWERING))
    checkpoint = next(filter(None, found), None)
    if checkpoint is None:
        raise DataError(f"the run {run!r} has no complete checkpoint yet", "run its train command again, which resumes it")
    return checkpoint


def open_checkpoint(run: str, checkpoint: Checkpoint, device: str = "cpu") -> TrainedModel:
    """The model of a verified step, in the precision for `device`; the step is not pruned meanwhile.

    Raises DataError if the step was removed or its tokenizer is missing.
    """
    meta = checkpoint.meta
    if missing := {"model", "tokenizer", "stage"} - meta.keys():
        raise DataError(f"the metadata of {checkpoint.folder} lacks {', '.join(sorted(missing))}", "start a new run with --run NEW")
    with held(checkpoint.folder, checkpoint.digest):
        tokenizer = load_tokenizer(paths.tokenizer_dir(meta["tokenizer"]))
        if (tokenizer.id, tokenizer.vocab_size) != (meta["tokenizer"], meta["model"]["vocab_size"]):
            raise DataError(f"{checkpoint.folder} was not trained with its tokenizer {tokenizer.id}", "start a new run with --run NEW")
        model = checkpoint.read_model(device)
    if torch.device(device).type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            model.use(torch.bfloat16)
        elif "loss_scale" in meta:  # trained in float16, so that its activations are known not to overflow
            model.use(torch.float16)
    return TrainedModel(run, checkpoint, model, tokenizer)


def describe(opened: TrainedModel) -> None:
    """Print which model answers."""
    meta = opened.checkpoint.meta
    kind = "a base model, which only continues text" if not opened.chats else "fine-tuned to chat"
    trial = ", a SHORT TEST RUN of a few steps" if meta.get("trial") else ""
    log(f"model: run {opened.run}, {meta['stage']} step {opened.checkpoint.step} ({kind}{trial})")
