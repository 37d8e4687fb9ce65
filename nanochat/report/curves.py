"""The curves of a report: loss and bits per byte by step, as SVG without script or address."""

import math
from collections.abc import Sequence

from nanochat.console import quantity
from nanochat.runs.report_schema import Curve

STAGE_NAMES = {"base": "pretraining", "sft": "fine-tuning", "rl": "reinforcement learning"}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 320, 48, 52, 28, 36  # of the drawing, and its margins


def svg(curve: dict[str, Curve]) -> str:
    """The loss of all stages, one after the other, with the bits per byte as dots on the right-hand scale."""
    starts, end = {}, 0.0
    for stage, points in curve.items():
        starts[stage] = end
        end += points["loss"][-1][0]
    losses = [value for points in curve.values() for _, value in points["loss"]]
    dots = [(starts[stage] + step, value) for stage, points in curve.items() for step, value in points["bpb"]]
    left, right = ticks(0.0, max(losses)), ticks(0.0, max((value for _, value in dots), default=1.0))

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(end, 1)

    def y(value: float, scale: Sequence[float]) -> float:
        part = (value - scale[0]) / (scale[-1] - scale[0])
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(max(part, 0.0), 1.0)

    marks = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Loss by step">']
    for tick in left:
        height = y(tick, left)
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{tick:g}</text>')
    if dots:
        marks += [f'<text x="{_WIDTH - _RIGHT + 6}" y="{y(tick, right) + 4:.1f}">{tick:g}</text>' for tick in right]
        marks.append(f'<text x="{_WIDTH - 4}" y="16" text-anchor="end">bits per byte</text>')
    for tick in (tick for tick in ticks(0.0, max(end, 1)) if tick <= end):
        marks.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{quantity(tick)}</text>')
    marks.append('<text x="4" y="16">loss (nats per token)</text>')
    marks.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">steps</text>')
    legend = _LEFT + 130
    for stage, points in curve.items():
        path = " ".join(f"{x(starts[stage] + step):.1f},{y(value, left):.1f}" for step, value in points["loss"])
        if len(points["loss"]) == 1:  # a line of one point would not be seen
            path += f" {x(end):.1f},{y(points['loss'][0][1], left):.1f}"
        marks.append(f'<polyline class="curve {stage}" points="{path}"/>')
        marks.append(f'<line class="curve {stage}" x1="{legend}" x2="{legend + 22}" y1="12" y2="12"/>')
        marks.append(f'<text x="{legend + 28}" y="16">{STAGE_NAMES[stage]}</text>')
        legend += 60 + 7 * len(STAGE_NAMES[stage])
    for step, value in dots:
        marks.append(
            f'<circle class="bpb" cx="{x(step):.1f}" cy="{y(value, right):.1f}" r="3.5"><title>{value:.3f} bits per byte</title></circle>'
        )
    if dots:
        marks.append(f'<circle class="bpb" cx="{legend + 6}" cy="12" r="3.5"/><text x="{legend + 16}" y="16">validation</text>')
    return "\n".join([*marks, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to at least `high`."""
    raw = max(high - low, 1e-6) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    count = math.ceil((high - low) / step - 1e-9)
    return [round(low + index * step, 10) for index in range(max(count, 1) + 1)]
