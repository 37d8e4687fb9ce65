"""The curves of a report: loss and bits per byte by step, as SVG without scripts or addresses."""

import math
from collections.abc import Sequence
from html import escape

from nanochat.console import quantity
from nanochat.runs.report_schema import Curve

STAGE_NAMES = {"base": "pretraining", "sft": "fine-tuning", "rl": "reinforcement learning"}
WIDE, NARROW = 760, 340  # widths of the drawing in CSS pixels, on a desktop and on a phone
_HEIGHT, _LEFT, _RIGHT, _BOTTOM = 320, 48, 52, 36  # height and margins of the drawing
_ROW = 18  # height of a row of the legend


def svg(curve: dict[str, Curve], width: int = WIDE) -> str:
    """The loss of all stages in sequence, with the bits per byte as dots on the right-hand scale."""
    top = 28 + (0 if width == WIDE else _ROW * (len(curve) + 1))  # on a phone the legend has separate rows
    starts, end = {}, 0.0
    for stage, points in curve.items():
        starts[stage] = end
        end += points["loss"][-1][0]
    losses = [value for points in curve.values() for _, value in points["loss"]]
    dots = [(starts[stage] + step, value) for stage, points in curve.items() for step, value in points["bpb"]]
    left, right = ticks(0.0, max(losses)), ticks(0.0, max((value for _, value in dots), default=1.0))

    def x(step: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * step / max(end, 1)

    def y(value: float, scale: Sequence[float]) -> float:
        part = (value - scale[0]) / (scale[-1] - scale[0])
        return _HEIGHT - _BOTTOM - (_HEIGHT - top - _BOTTOM) * min(max(part, 0.0), 1.0)

    marks = [f'<svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="Loss by step">']
    for tick in left:
        height = y(tick, left)
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{tick:g}</text>')
    if dots:
        marks += [f'<text x="{width - _RIGHT + 6}" y="{y(tick, right) + 4:.1f}">{tick:g}</text>' for tick in right]
        marks.append(f'<text x="{width - 4}" y="16" text-anchor="end">bits per byte</text>')
    for tick in (tick for tick in ticks(0.0, max(end, 1)) if tick <= end):
        marks.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{quantity(tick)}</text>')
    marks.append('<text x="4" y="16">loss (nats per token)</text>')
    marks.append(f'<text x="{width - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">steps</text>')
    place = _Legend(width)
    for stage, points in curve.items():
        path = " ".join(f"{x(starts[stage] + step):.1f},{y(value, left):.1f}" for step, value in points["loss"])
        if len(points["loss"]) == 1:  # a line of one point would be invisible
            path += f" {x(end):.1f},{y(points['loss'][0][1], left):.1f}"
        marks.append(f'<polyline class="curve {stage}" points="{path}"/>')
        at, row = place.next(STAGE_NAMES[stage])
        marks.append(f'<line class="curve {stage}" x1="{at}" x2="{at + 22}" y1="{row - 4}" y2="{row - 4}"/>')
        marks.append(f'<text x="{at + 28}" y="{row}">{STAGE_NAMES[stage]}</text>')
    for step, value in dots:
        marks.append(
            f'<circle class="bpb" cx="{x(step):.1f}" cy="{y(value, right):.1f}" r="3.5"><title>{value:.3f} bits per byte</title></circle>'
        )
    if dots:
        at, row = place.next("validation")
        marks.append(f'<circle class="bpb" cx="{at + 6}" cy="{row - 4}" r="3.5"/><text x="{at + 28}" y="{row}">validation</text>')
    return "\n".join([*marks, "</svg>"])


def overlay(runs: Sequence[tuple[str, dict[str, Curve]]], width: int = WIDE) -> str:
    """The losses of several runs in one drawing, with each run's stages in sequence."""
    lines = [(name, _joined(curve)) for name, curve in runs]
    top = 28 + _ROW * len(lines)
    end = max((points[-1][0] for _, points in lines if points), default=1)
    scale = ticks(0.0, max((value for _, points in lines for _, value in points), default=1.0))

    def x(step: float) -> float:
        return _LEFT + (width - _LEFT - 12) * step / max(end, 1)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - top - _BOTTOM) * min(max(value / scale[-1], 0.0), 1.0)

    marks = [f'<svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="Loss by step of the compared runs">']
    for tick in scale:
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{width - 12}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    steps = [tick for tick in ticks(0.0, max(end, 1)) if tick <= end]
    marks += [f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{quantity(tick)}</text>' for tick in steps]
    marks.append('<text x="4" y="16">loss (nats per token)</text>')
    marks.append(f'<text x="{width - 12}" y="{_HEIGHT - 4}" text-anchor="end">steps</text>')
    for number, (name, points) in enumerate(lines):
        row, kind = 16 + _ROW * (number + 1), ("base", "sft", "rl")[number % 3]
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        marks.append(f'<polyline class="curve {kind}" points="{path}"/>')
        marks.append(f'<line class="curve {kind}" x1="{_LEFT}" x2="{_LEFT + 22}" y1="{row - 4}" y2="{row - 4}"/>')
        marks.append(f'<text x="{_LEFT + 28}" y="{row}">{escape(name)}</text>')
    return "\n".join([*marks, "</svg>"])


def _joined(curve: dict[str, Curve]) -> list[tuple[float, float]]:
    """The [step, loss] points of all stages in sequence."""
    points: list[tuple[float, float]] = []
    for own in curve.values():
        begin = points[-1][0] if points else 0.0
        points += [(begin + step, value) for step, value in own["loss"]]
    return points


class _Legend:
    """Position of the next entry: beside the previous one in a wide drawing, below it in a narrow one."""

    def __init__(self, width: int):
        self.wide = width == WIDE
        self.at, self.row = (_LEFT + 130, 16) if self.wide else (_LEFT, 16)

    def next(self, name: str) -> tuple[int, int]:
        """The left edge and the baseline of an entry."""
        if not self.wide:
            self.row += _ROW
            return self.at, self.row
        at, self.at = self.at, self.at + 60 + 7 * len(name)
        return at, self.row


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to at least `high`."""
    raw = max(high - low, 1e-6) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    count = math.ceil((high - low) / step - 1e-9)
    return [round(low + index * step, 10) for index in range(max(count, 1) + 1)]
