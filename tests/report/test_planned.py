"""Planned, took, and why."""

from typing import Any

import pytest

from nanochat.report.planned import compare_with_plan, why

PLAN: dict[str, Any] = {"seconds": 100.0, "tokens": 1000, "tokens_per_second": 15000.0, "memory_bytes": {"total": 5}, "cpu_others": 0.05}


def line(others: float, seconds: float = 0.1, speed: float = 15000.0) -> dict[str, Any]:
    return {"stage": "base", "step_seconds": seconds, "tokens": 1000, "tokens_per_second": speed} | (
        {"cpu_others": others} if others else {}
    )


@pytest.mark.parametrize(
    ("took", "planned", "lines", "said"),
    [
        (100, {}, [line(0.9)], ""),
        (
            340,
            {},
            [line(0), line(0.7, 0.9)],
            "The run took 3.4 times the planned time. Other programs used 63% of the CPU on average, and 5%",
        ),
        (
            50,
            {"cpu_others": 0.8},
            [line(0)],
            "The run took 0.5 times the planned time. Other programs used 0% of the CPU on average, and 80%",
        ),
        (
            200,
            {},
            [line(0, speed=6000.0)],
            "The run took 2.0 times the planned time. Training reached 6.0K tokens/s, and 15.0K were planned.",
        ),
        (200, {"tokens_per_second": None}, [line(0)], "The run took 2.0 times the planned time."),
        (None, {}, [line(0.9)], ""),
        (200, {"seconds": None}, [line(0.9)], ""),
    ],
)
def test_the_reason_for_another_time(took: float | None, planned: dict[str, Any], lines: list[dict[str, Any]], said: str) -> None:
    found = why(compare_with_plan(PLAN | planned, lines, {"seconds": took}))
    assert found.startswith(said) and bool(found) == bool(said)


def test_the_cpu_is_a_row_where_others_used_it() -> None:
    assert compare_with_plan({}, [line(0.5)], {}) == {} and why({}) == ""
    assert compare_with_plan(PLAN, [line(0.5)], {})["cpu_others"] == {"planned": 0.05, "came": 0.5}
    assert "cpu_others" not in compare_with_plan(PLAN | {"cpu_others": 0.0}, [line(0)], {})
