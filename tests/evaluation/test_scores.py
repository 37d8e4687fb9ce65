"""Accuracies, centred by what guessing scores, and their mean."""

import pytest

from nanochat.evaluation.scores import REFERENCES, score_table, score_tasks


def test_scores_are_centred() -> None:
    found = score_tasks({"guessed": (25, 100, 0.25), "known": (40, 40, 0.5), "said": (1, 4, 0.0)})
    assert [task["centred"] for task in found["tasks"].values()] == [0.0, 1.0, 0.25]
    assert found["score"] == pytest.approx(1.25 / 3, abs=1e-6)
    assert found["error"] == pytest.approx((0.25 * 0.75 / 100 / 0.75**2 + 0.25 * 0.75 / 4) ** 0.5 / 3, abs=1e-6)
    rows = score_table("core", found | {"stage": "base", "step": 7})
    assert len(rows) == 4 + len(REFERENCES) and rows[3][3] == "0.4167"
