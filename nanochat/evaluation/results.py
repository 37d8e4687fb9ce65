"""A run's results file, evaluation.json, with one part per evaluation.

    summary  bpb, tokens, parameters, flops, seconds, samples and held-out scores of the finished run
    bpb      train, validation, tokens, stage and step of `eval`'s bits per byte
    core     score, error, tasks, stage, step and max_per_task of CORE
    chat     the chat tasks, likewise

Older runs have their summary in scores.json.
"""

from pathlib import Path
from typing import Any

from nanochat.paths import atomic_write_json, read_json_object

RESULTS = "evaluation.json"
SUMMARY = "summary"
OLD_SUMMARY = "scores.json"


def read_results(folder: Path) -> dict[str, Any]:
    """The parts of a run's results, for an older run with the summary of scores.json; {} if there are none or the file is damaged."""
    results = read_json_object(folder / RESULTS)
    if SUMMARY not in results and (summary := read_json_object(folder / OLD_SUMMARY)):
        results[SUMMARY] = summary
    return results


def write_part(folder: Path, part: str, value: dict[str, Any]) -> None:
    """Write one part of a run's results and keep the others."""
    atomic_write_json(folder / RESULTS, read_json_object(folder / RESULTS) | {part: value})


def forget_summary(folder: Path) -> None:
    """Remove the summary of a run that resumes training; the other parts name their step themselves."""
    (folder / OLD_SUMMARY).unlink(missing_ok=True)
    results = read_json_object(folder / RESULTS)
    if results.pop(SUMMARY, None) is None:
        return
    if results:
        atomic_write_json(folder / RESULTS, results)
    else:
        (folder / RESULTS).unlink()
