"""A run's plan beside the measured figures, and the reason why it took longer or shorter."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.console import quantity
from nanochat.hardware.load import NOTICED
from nanochat.runs.report_schema import Comparison

AS_PLANNED = 0.8  # ratio of times that needs no explanation, and its inverse


def compare_with_plan(planned: dict[str, Any], lines: Sequence[dict[str, Any]], summary: dict[str, Any]) -> dict[str, Comparison]:
    """Planned and measured figures; {} if there is no plan.

    planned: the run's plan.json; lines: its metrics; summary: of its results, {} if it is not finished.
    """
    if not planned:
        return {}
    base = [line for line in lines if line["stage"] == "base"]
    speeds = [line["tokens_per_second"] for line in base if "tokens_per_second" in line]
    trained = [line["tokens"] for line in base if "tokens" in line]
    came: dict[str, Any] = {
        "seconds": summary.get("seconds"),
        "tokens": trained[-1] if trained else None,
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "memory_bytes": max((line["peak_memory_bytes"] for line in lines if "peak_memory_bytes" in line), default=None),
        "cpu_others": _others(lines),
    }
    flat = planned | {"memory_bytes": (planned.get("memory_bytes") or {}).get("total")}
    found: dict[str, Comparison] = {name: {"planned": flat.get(name), "came": value} for name, value in came.items()}
    if not found["cpu_others"]["planned"] and not found["cpu_others"]["came"]:
        del found["cpu_others"]
    return found


def _others(lines: Sequence[dict[str, Any]]) -> float | None:
    """The mean share of the CPU that other programs used, over the time of the steps; None if it was not measured."""
    shares = [(line.get("cpu_others", 0.0), line["step_seconds"]) for line in lines if "step_seconds" in line]
    seconds = sum(time for _, time in shares)
    return round(sum(share * time for share, time in shares) / seconds, 2) if seconds else None


def why(plan: Mapping[str, Comparison]) -> str:
    """Sentences on a run that took another time than planned; "" for one that did not."""
    times, speeds, others = (plan.get(name, {"planned": None, "came": None}) for name in ("seconds", "tokens_per_second", "cpu_others"))
    if not times["planned"] or not times["came"] or AS_PLANNED < times["came"] / times["planned"] < 1 / AS_PLANNED:
        return ""
    said = f"The run took {times['came'] / times['planned']:.1f} times the planned time."
    then, now = others["planned"] or 0.0, others["came"] or 0.0
    if abs(now - then) >= NOTICED and (now > then) == (times["came"] > times["planned"]):
        return f"{said} Other programs used {now:.0%} of the CPU on average, and {then:.0%} when it was planned."
    if speeds["planned"] and speeds["came"]:
        return f"{said} Training reached {quantity(speeds['came'])} tokens/s, and {quantity(speeds['planned'])} were planned."
    return said
