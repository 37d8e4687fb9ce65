"""The stages of a run in their order: pretraining, fine-tuning, reinforcement learning, each from the one before."""

from collections.abc import Sequence

from nanochat.data.source import TextSource, text_source
from nanochat.errors import UsageError
from nanochat.pipeline.identity import BASE, RL, SFT
from nanochat.runs.checkpoint import Checkpoint
from nanochat.runs.metrics import EVALUATED, read_metrics
from nanochat.train.finetune import finetune
from nanochat.train.pretrain import pretrain
from nanochat.train.reinforce import reinforce
from nanochat.train.session import Session


def train_stages(session: Session, stages: Sequence[str]) -> None:
    """Train those of `stages` that are not complete yet.

    Raises UsageError if a stage lacks the one before it, or has another model's checkpoints; what the trainer raises.
    """
    source = text_source(session.config)
    base = _newest(session, BASE)
    session.stop.trained = base is not None
    if BASE in stages and not _complete(session, BASE, base):
        pretrain(session)
        base = session.checkpoints(BASE).newest()
    if SFT in stages and session.config.sft_iterations:
        _finetune(session, base, source)
    if RL in stages:
        _reinforce(session, source)
    session.stop.in_loop = False


def _finetune(session: Session, base: Checkpoint | None, source: TextSource) -> None:
    if base is None or base.step < session.config.num_iterations:
        raise UsageError("fine-tuning begins from a finished base model", "train it first: --stage=base, or --stage=all")
    if not _complete(session, SFT, _newest(session, SFT)):
        finetune(session, base, source.conversations.load())


def _reinforce(session: Session, source: TextSource) -> None:
    sft = _newest(session, SFT)
    if sft is None or sft.step < session.config.sft_iterations:
        raise UsageError("reinforcement learning begins from a fine-tuned model", "train it first: the same command without --stage")
    if not _complete(session, RL, _newest(session, RL)):
        reinforce(session, sft, *source.problems(session.config.rl_eval_examples))


def _complete(session: Session, stage: str, newest: Checkpoint | None) -> bool:
    """Whether a stage has its last step, and that step its evaluation."""
    steps = session.config.steps[stage]
    lines = read_metrics(session.folder / "metrics.jsonl")
    evaluated = any(line["stage"] == stage and line["step"] == steps and EVALUATED[stage] in line for line in lines)
    return newest is not None and newest.step >= steps and evaluated


def _newest(session: Session, stage: str) -> Checkpoint | None:
    """The newest checkpoint of a stage. Raises UsageError if it is another model's, put there by hand."""
    newest = session.checkpoints(stage).newest()
    if newest and (newest.meta["model"], newest.meta["tokenizer"]) != (session.gpt.to_dict(), session.tokenizer.id):
        raise UsageError(
            f"{newest.folder} is the checkpoint of another model than the run {session.config.run!r} trains",
            "move that folder away, or choose a new name with --run NEW",
        )
    return newest
