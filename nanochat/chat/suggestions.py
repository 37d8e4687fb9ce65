"""First messages to try with a model: held-out questions of its run, from the skills that it has learned best."""

import json
from functools import lru_cache
from pathlib import Path

from nanochat import untrusted
from nanochat.evaluation.heldout import HELDOUT
from nanochat.evaluation.results import SUMMARY, read_results

COUNT = 4
LONGEST = 60  # characters: a button's text
MOST_BYTES = 4 << 20


def suggestions(run_dir: Path) -> list[str]:
    """At most COUNT short questions that the run in `run_dir` was not trained on, each of another skill; [] where it has none."""
    path = run_dir / HELDOUT
    try:
        found = path.stat()
    except OSError:
        return []
    return list(_suggestions(path, found.st_mtime_ns))


@lru_cache(maxsize=8)
def _suggestions(path: Path, _written: int) -> tuple[str, ...]:
    """`suggestions`, read once for each time that the file was written."""
    try:
        lines = untrusted.read_bytes(path, MOST_BYTES).splitlines()  # of bytes: of a text it also splits at U+2028
        items = [untrusted.table(json.loads(line), "an item") for line in lines]
    except (OSError, ValueError, RecursionError):
        return ()
    scores = (read_results(path.parent).get(SUMMARY) or {}).get("scores") or {}
    by_skill: dict[str, str] = {}
    for item in items:
        skill, prompt = item.get("skill"), item.get("prompt")
        if isinstance(skill, str) and isinstance(prompt, str) and 0 < len(prompt) <= LONGEST and prompt.isprintable():
            by_skill.setdefault(skill, prompt)

    def learned(skill: str) -> float:
        score = ((scores.get("by_skill") or {}).get(skill) or {}).get("trained")
        return float(score) if isinstance(score, int | float) else 0.0

    return tuple(by_skill[skill] for skill in sorted(by_skill, key=learned, reverse=True)[:COUNT])
