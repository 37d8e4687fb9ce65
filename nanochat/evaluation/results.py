"""The one results file of a run: evaluation.json in its folder, one part for each thing that was evaluated.

    summary  what the finished training came to: bpb, tokens, parameters, flops, seconds, samples, scores (of the held-out questions)
    bpb      bits per byte as `eval` measured them: train, validation, tokens, stage, step
    core     CORE: score, error, tasks, stage, step, max_per_task
    chat     the chat tasks, likewise

Runs that were made before there was one file have their summary in scores.json.
"""

from pathlib import Path
from typing import Any

from nanochat.paths import atomic_write_json, read_json_object

RESULTS = "evaluation.json"
SUMMARY = "summary"
OLD_SUMMARY = "scores.json"


def read_results(folder: Path) -> dict[str, Any]:
    """The parts of a run's results, of an older run the summary of scores.json too; {} if there are none or the file is damaged."""
    results = read_json_object(folder / RESULTS)
    if SUMMARY not in results and (summary := read_json_object(folder / OLD_SUMMARY)):
        results[SUMMARY] = summary
    return results


def write_part(folder: Path, part: str, value: dict[str, Any]) -> None:
    """Write one part of a run's results, the others as they are."""
    atomic_write_json(folder / RESULTS, read_json_object(folder / RESULTS) | {part: value})


def forget_summary(folder: Path) -> None:
    """Remove the summary of a run that is trained further; its other parts say themselves of which step they are."""
    (folder / OLD_SUMMARY).unlink(missing_ok=True)
    results = read_json_object(folder / RESULTS)
    if results.pop(SUMMARY, None) is None:
        return
    if results:
        atomic_write_json(folder / RESULTS, results)
    else:
        (folder / RESULTS).unlink()
