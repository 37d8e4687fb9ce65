"""The stages of a run in order: pretraining, fine-tuning and reinforcement learning, each from the previous one."""

from collections.abc import Sequence

from nanochat.config import Config
from nanochat.data.text_source import TextSource
from nanochat.errors import DataError, UsageError
from nanochat.pipeline.identity import BASE, RL, SFT
from nanochat.runs.checkpoint import Checkpoint
from nanochat.runs.metrics import EVALUATED, read_metrics
from nanochat.runs.origin import own_copy
from nanochat.train.finetune import finetune
from nanochat.train.pretrain import pretrain
from nanochat.train.reinforce import reinforce
from nanochat.train.session import Session


def train_stages(session: Session, stages: Sequence[str], source: TextSource) -> None:
    """Train the incomplete ones of `stages`; `source` has the conversations and problems.

    Raises UsageError if the previous stage is missing or the checkpoints are of another model, and the trainer's errors.
    """
    config = session.config
    origin = _fitting(session, own_copy(config.run))
    base = _newest(session, BASE)
    session.stop.trained = base is not None or origin is not None
    if BASE in stages and config.num_iterations and not _complete(session, BASE, base):
        _require_parent(config, base or origin)
        pretrain(session, origin)
        base = session.checkpoints(BASE).newest()
    if SFT in stages and config.sft_iterations:
        _finetune(session, base if config.num_iterations else origin, source)
    if RL in stages:
        _reinforce(session, origin, source)
    session.stop.in_loop = False


def _require_parent(config: Config, parent: Checkpoint | None) -> None:
    """Raise DataError where a run that begins with another one's checkpoint has neither its copy of that nor a step of its own."""
    if config.from_run and parent is None:
        raise DataError(
            f"the run {config.run!r} has lost its copy of {config.from_run}, which it begins with", "start it again with --run NEW"
        )


def _finetune(session: Session, parent: Checkpoint | None, source: TextSource) -> None:
    config, newest = session.config, _newest(session, SFT)
    if _complete(session, SFT, newest):
        return
    if config.num_iterations:
        if parent is None or parent.step < config.num_iterations:
            raise UsageError("fine-tuning needs a finished base model", "train it first with --stage=base, or use --stage=all")
    else:
        _require_parent(config, newest or parent)
    finetune(session, parent, source.conversations.load())


def _reinforce(session: Session, origin: Checkpoint | None, source: TextSource) -> None:
    config, newest, parent = session.config, _newest(session, RL), origin
    if config.sft_iterations:
        parent = _newest(session, SFT)
        if parent is None or parent.step < config.sft_iterations:
            raise UsageError("reinforcement learning needs a fine-tuned model", "train it first with the same command without --stage")
    else:
        _require_parent(config, newest or parent)
    if not _complete(session, RL, newest):
        reinforce(session, parent, *source.problems(config.rl_eval_examples))


def _complete(session: Session, stage: str, newest: Checkpoint | None) -> bool:
    """Whether a stage has its last step, evaluated."""
    steps = session.config.steps[stage]
    lines = read_metrics(session.folder / "metrics.jsonl")
    evaluated = any(line["stage"] == stage and line["step"] == steps and EVALUATED[stage] in line for line in lines)
    return newest is not None and newest.step >= steps and evaluated


def _newest(session: Session, stage: str) -> Checkpoint | None:
    """The newest checkpoint of a stage. Raises UsageError if it is another model's, put there by hand."""
    return _fitting(session, session.checkpoints(stage).newest())


def _fitting(session: Session, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint. Raises UsageError if it is another model's than the run trains."""
    own = session.gpt.to_dict()
    shortened = {"max_seq_len": own["max_seq_len"]} if session.config.shape else {}  # an imported model's context may be
    if checkpoint and (checkpoint.meta["model"] | shortened, checkpoint.meta["tokenizer"]) != (own, session.tokenizer.id):
        raise UsageError(
            f"{checkpoint.folder} is the checkpoint of another model than the run {session.config.run!r} trains",
            "move that directory away, or choose a new name with --run NEW",
        )
    return checkpoint
