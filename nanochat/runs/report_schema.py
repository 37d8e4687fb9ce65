"""The schema of report.json, a run's machine-readable report, written by report/."""

from typing import Any, TypedDict

REPORT = "report.json"  # in the run's directory

Points = list[list[float]]  # [step, value]


class StageReport(TypedDict):
    """One stage: base, sft or rl."""

    steps: int
    first_reward: float | None  # mean reward of the first steps; None for a stage without rewards
    last_reward: float | None
    passed: dict[str, float] | None  # pass@k of the last evaluation that measured it
    first_loss: float
    last_loss: float
    bpb: float | None  # bits per byte of the last evaluation
    tokens_per_second: float | None  # median over the steps
    peak_memory_bytes: int | None


class Curve(TypedDict):
    """The curves of one stage."""

    loss: Points  # averaged to a few hundred points
    bpb: Points


class Comparison(TypedDict):
    """One figure, as planned before the first step and as measured."""

    planned: float | None
    came: float | None


class Sample(TypedDict):
    """The trained model's answer to a prompt."""

    prompt: str
    answer: str


class StepSample(TypedDict):
    """A sample during training."""

    stage: str
    step: int
    prompt: str
    text: str


class AncestorReport(TypedDict):
    """A step of another run that the run descends from (`train --from`)."""

    run: str
    stage: str
    step: int
    sha256: str  # of its manifest
    text: str  # that it was pretrained on; "" where it was only fine-tuned, or imported
    licence: str  # of that text


class Report(TypedDict):
    """A run's report, also of an unfinished run; missing information is None or empty."""

    run: str
    profile: str
    trial: bool
    finished: bool
    date: str  # of the newest step, in UTC
    command: str  # that trains the run again; "" where its config does not tell
    revision: str  # of the program that wrote the first report
    scores: dict[str, Any] | None  # held-out questions, {untrained, trained, items, by_skill}, the last by skill likewise
    bpb: float | None  # bits per byte of pretraining's last evaluation
    seconds: float  # of training and evaluation, installation not counted
    flops: float | None  # FLOPs by model/scaling.py's formula
    tokens: int  # training tokens of all stages
    parameters: int | None
    stages: dict[str, StageReport]
    curve: dict[str, Curve]  # by stage; without reinforcement learning, whose loss has no meaning
    tasks: dict[str, Any]  # parts bpb, core and chat of the run's results (evaluation/results.py)
    plan: dict[str, Comparison]  # seconds, tokens (of pretraining), tokens_per_second, memory_bytes, cpu_others; {} if there is no plan
    why: str  # the run took longer or shorter than planned; "" if it did not, or the reason is not known
    samples: list[Sample]
    samples_by_step: list[StepSample]  # the last ones, oldest first
    descent: list[AncestorReport]  # the oldest first; empty for a run that began with random weights
    data: dict[str, str]  # source, licence, tokenizer, validation (its shard), and the hash of each shard
    machine: dict[str, Any]  # device, system, cores, python, torch, numpy of the machine that wrote the report
    config: dict[str, Any]
