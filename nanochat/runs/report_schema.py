"""The schema of report.json, a run's report for programs; report/ writes it, as text and as a page too."""

from typing import Any, TypedDict

REPORT = "report.json"  # in the run's folder

Points = list[list[float]]  # [step, value]


class StageReport(TypedDict):
    """One stage: base, sft or rl."""

    steps: int
    first_reward: float | None  # mean reward of the first steps; None of a stage without rewards
    last_reward: float | None
    passed: dict[str, float] | None  # pass@1 and the like, of the last evaluation that measured them
    first_loss: float
    last_loss: float
    bpb: float | None  # bits per byte of the last evaluation
    tokens_per_second: float | None  # median over the steps
    peak_memory_bytes: int | None


class Curve(TypedDict):
    """What is drawn of one stage."""

    loss: Points  # averaged down to a few hundred points
    bpb: Points


class Comparison(TypedDict):
    """One figure as it was planned before the first step, and as it came."""

    planned: float | None
    came: float | None


class Sample(TypedDict):
    """The trained model's answer to a prompt."""

    prompt: str
    answer: str


class StepSample(TypedDict):
    """A text that the model continued while it was trained."""

    stage: str
    step: int
    prompt: str
    text: str


class Report(TypedDict):
    """A run as far as it has come; what its folder does not tell is None or empty."""

    run: str
    profile: str
    trial: bool
    finished: bool
    date: str  # of the newest step, in UTC
    command: str  # that trains the run again; "" where its config does not tell
    revision: str  # of the program that wrote the first report
    scores: dict[str, Any] | None  # of the held-out questions: {untrained, trained, items, by_skill: {skill: the same three}}
    bpb: float | None  # bits per byte of pretraining's last evaluation
    seconds: float  # of training and evaluation, installation not counted
    flops: float | None  # floating-point operations, by model/scaling.py's formula
    tokens: int  # trained on, over all stages
    parameters: int | None
    stages: dict[str, StageReport]
    curve: dict[str, Curve]  # by stage; not of reinforcement learning, whose loss says nothing
    tasks: dict[str, Any]  # the parts bpb, core and chat of the run's results (evaluation/results.py)
    plan: dict[str, Comparison]  # seconds, tokens (of pretraining), tokens_per_second, memory_bytes; {} where no plan was kept
    samples: list[Sample]
    samples_by_step: list[StepSample]  # the last ones, oldest first
    data: dict[str, str]  # source, licence, tokenizer, validation (its shard), and the hash of each shard
    machine: dict[str, Any]  # device, system, cores, python, torch, numpy: of the machine that wrote the report
    config: dict[str, Any]
