"""Charts as inline SVG, drawn for the width of a phone, so that their letters are read there and are no larger elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup
    from numpy.typing import NDArray

    Array = NDArray[Any]

_WIDTH, _HEIGHT = 340, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 8, 10, 34
COLORS = ("#2b6cb0", "#d9730d", "#2f855a", "#9b2c6f", "#6b46c1", "#718096")
_POINTS = 300  # of a line, and of a scatter four times as many
_SPAN = 100  # between least and largest value, beyond which an axis is logarithmic


def lines(series: Mapping[str, tuple[Array, Array]], *, x: str, y: str, mark: float | None = None) -> Markup:
    """Draw series of steps (N,) and values (N,) by their names; `mark` is a step at which a dashed line stands."""
    thin = {name: _thinned(*points) for name, points in series.items()}
    thin = {name: points for name, points in thin.items() if len(points[0])}
    if not thin:
        return _svg([], y)
    values = np.concatenate([v for _, v in thin.values()])
    is_log = bool(values.min() > 0 and values.max() > _SPAN * values.min())
    if is_log:
        thin = {name: (s, np.log10(v)) for name, (s, v) in thin.items()}
    frame = _Frame.around(thin.values())
    drawn = frame.axes(x, y, is_log=is_log)
    if mark is not None:
        at = frame.x(mark)
        drawn.append(f'<line x1="{at}" x2="{at}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" class="mark"/>')
    for color, (steps, each) in zip(COLORS, thin.values(), strict=False):
        points = " ".join(f"{frame.x(a)},{frame.y(b)}" for a, b in zip(steps, each, strict=True))
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        if len(steps) <= 40:
            drawn += [f'<circle cx="{frame.x(a)}" cy="{frame.y(b)}" r="2" fill="{color}"/>' for a, b in zip(steps, each)]  # noqa: B905
    return _svg(drawn, y)


def reliability(tables: Mapping[str, Array]) -> Markup:
    """Draw the share of right decisions over the mean confidence of each bin, for tables (3, 15) by their names."""
    frame = _Frame(0, 1, 0, 1)
    drawn = frame.axes("confidence", "share that is right")
    drawn.append(f'<line x1="{frame.x(0)}" y1="{frame.y(0)}" x2="{frame.x(1)}" y2="{frame.y(1)}" class="mark"/>')
    for color, (count, sure, right) in zip(COLORS, tables.values(), strict=False):
        there = count > 0
        points = [(sure[k] / count[k], right[k] / count[k], count[k]) for k in np.flatnonzero(there)]
        path = " ".join(f"{frame.x(a)},{frame.y(b)}" for a, b, _ in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.4"/>')
        largest = max(n for *_, n in points)
        drawn += [
            f'<circle cx="{frame.x(a)}" cy="{frame.y(b)}" r="{2 + 5 * math.sqrt(n / largest):.1f}" fill="{color}" '
            'fill-opacity="0.55"/>'
            for a, b, n in points
        ]
    return _svg(drawn, "calibration curve")


def scatter(true: Array, predicted: Array, *, name: str) -> Markup:
    """Draw predictions (N,) over targets (N,), and the line on which both are equal."""
    keep = np.linspace(0, len(true) - 1, min(len(true), 4 * _POINTS)).astype(int)
    true, predicted = true[keep], predicted[keep]
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    frame = _Frame(low, high, low, high)
    drawn = frame.axes(f"target {name}".strip(), "predicted")
    drawn.append(f'<line x1="{frame.x(low)}" y1="{frame.y(low)}" x2="{frame.x(high)}" y2="{frame.y(high)}" class="mark"/>')
    drawn += [
        f'<circle cx="{frame.x(a)}" cy="{frame.y(b)}" r="2" fill="{COLORS[0]}" fill-opacity="0.5"/>'
        for a, b in zip(true, predicted, strict=True)
    ]
    return _svg(drawn, f"predicted over target {name}")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers between two, about so many."""
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        return [low]
    values, room = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high), 1e-9 * (high - low)
    return [float(f"{value:.12g}") for value in values if low - room <= value <= high + room]


class _Frame:
    """Where values lie on the paper."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.right = (left, right) if right > left else (left - 0.5, left + 0.5)
        self.low, self.high = (low, high) if high > low else (low - 0.5, low + 0.5)

    @classmethod
    def around(cls, series: Any) -> _Frame:
        xs, ys = (np.concatenate([points[k] for points in series]) for k in (0, 1))
        room = 0.04 * float(np.ptp(ys))
        return cls(float(xs.min()), float(xs.max()), float(ys.min()) - room, float(ys.max()) + room)

    def x(self, value: float) -> float:
        return round(_LEFT + (float(value) - self.left) / (self.right - self.left) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (float(value) - self.low) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def axes(self, x: str, y: str, *, is_log: bool = False) -> list[str]:
        from markupsafe import escape

        drawn = [f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM}" '
                 'class="frame"/>']  # fmt: skip
        for value in ticks(self.left, self.right):
            at = self.x(value)
            drawn.append(f'<text x="{at}" y="{_HEIGHT - _BOTTOM + 13}" text-anchor="middle">{value:g}</text>')
        for value in ticks(self.low, self.high):
            at = self.y(value)
            shown = f"{10**value:.2g}" if is_log else f"{value:g}"
            drawn.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}" class="grid"/>')
            drawn.append(f'<text x="{_LEFT - 4}" y="{at + 3}" text-anchor="end">{shown}</text>')
        middle = (_HEIGHT - _BOTTOM + _TOP) / 2
        drawn.append(f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x[:60])}</text>')
        drawn.append(
            f'<text x="9" y="{middle}" text-anchor="middle" transform="rotate(-90 9 {middle})">{escape(y[:40])}</text>'
        )
        return drawn


def _thinned(steps: Array, values: Array) -> tuple[Array, Array]:
    """Return means of neighbors where there are more points than can be seen; what is not finite is left out."""
    good = np.isfinite(values)
    steps, values = steps[good], values[good]
    if len(steps) <= _POINTS:
        return steps, values
    groups = [*zip(np.array_split(steps, _POINTS), np.array_split(values, _POINTS), strict=True)]
    return np.array([s.mean() for s, _ in groups]), np.array([v.mean() for _, v in groups])


def _svg(drawn: Sequence[str], label: str) -> Markup:
    from markupsafe import Markup, escape

    inner = "".join(drawn)
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{inner}</svg>')
