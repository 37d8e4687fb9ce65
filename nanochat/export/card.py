"""Parts of a model card: languages, datasets, scores, sample answers, limits."""

import json
from typing import Any

from nanochat import paths
from nanochat.config import Config
from nanochat.data.published.origins import is_mixture, mixture, origin
from nanochat.errors import NanochatError
from nanochat.evaluation.results import SUMMARY, read_results
from nanochat.runs import record as runs

LANGUAGES = {"embedded": ["en", "zh"], "climbmix": ["en"], "fineweb-edu": ["en"]}  # of the texts whose language is known
SAMPLES = 3
LIMITS = (
    "A model of this size states wrong facts, loses the thread and repeats itself. Do not rely on its answers.",
    "It was not aligned for safety, and has no filter. It may say offensive things that its text or a user taught it.",
    "It knows nothing beyond the text that it was trained on, and no current events.",
)


def front_matter(run: str) -> str:
    """The lines of the card's header that name languages and datasets, each with its newline; "" where they are not known."""
    config = _config(run)
    if config is None or config.data:  # a user's own text
        return ""
    languages = mixture(config.dataset).languages if is_mixture(config.dataset) else LANGUAGES.get(config.dataset, [])
    datasets = _datasets(config)
    lines = ["language:", *(f"- {name}" for name in languages)] if languages else []
    lines += ["datasets:", *(f"- {json.dumps(name)}" for name in datasets)] if datasets else []
    return "".join(f"{line}\n" for line in lines)


def sections(run: str) -> str:
    """Scores, sample answers and limits as Markdown; scores and samples where the run has results."""
    summary: dict[str, Any] = read_results(paths.run_dir(run)).get(SUMMARY) or {}
    parts = [*_scores(summary), *_samples(summary), "## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS)]
    return "\n\n".join(parts)


def _config(run: str) -> Config | None:
    try:
        record = runs.read_record(run)
    except NanochatError:
        return None
    return record.config if record else None


def _datasets(config: Config) -> list[str]:
    """Repositories of the hub that the run was pretrained on."""
    if config.dataset == "embedded":
        return []
    try:
        names = [part.name for part in mixture(config.dataset).texts] if is_mixture(config.dataset) else [config.dataset]
        return [origin(name).repo for name in names]
    except (NanochatError, KeyError):
        return []


def _scores(summary: dict[str, Any]) -> list[str]:
    """A table of the held-out questions by skill, and the bits per byte."""
    scores = summary.get("scores") or {}
    rows = [(name, row) for name, row in sorted((scores.get("by_skill") or {}).items())] + ([("**all**", scores)] if scores else [])
    parts = []
    if rows:
        lines = ["| held-out questions | untrained | trained | items |", "|---|---:|---:|---:|"]
        lines += [f"| {name} | {row['untrained']:.1%} | {row['trained']:.1%} | {row['items']} |" for name, row in rows]
        parts.append("## Scores\n\n" + "\n".join(lines))
    if isinstance(summary.get("bpb"), float):
        parts.append(("" if parts else "## Scores\n\n") + f"Bits per byte of held-out text: {summary['bpb']:.3f}")
    return parts


def _samples(summary: dict[str, Any]) -> list[str]:
    """A few answers at temperature 0, as indented text: a model's words are no Markdown."""
    found = [one for one in summary.get("samples") or [] if isinstance(one, dict)][:SAMPLES]
    blocks = []
    for one in found:
        said = [f"    > {line}" for line in str(one.get("prompt", "")).splitlines()]
        blocks.append("\n".join([*said, *(f"    {line}" for line in str(one.get("answer", "")).splitlines())]))
    return ["## Samples", *blocks] if blocks else []
