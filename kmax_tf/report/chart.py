"""A chart of curves over training steps, as HTML with an SVG."""

import html
import itertools
import json
import math
from collections.abc import Sequence

# Visible on white and on black.
COLORS = (
    "#3b82f6", "#f97316", "#10b981", "#ef4444", "#a855f7", "#eab308", "#06b6d4", "#ec4899",
)  # fmt: skip
POINTS = 400  # of a curve, at most
LEFT, RIGHT, TOP, BOTTOM = 44, 340, 10, 172  # edges of the plot in its 360 x 196 box


def draw_chart(
    title: str,
    steps: Sequence[int],
    curves: dict[str, Sequence[float | None]],
    bands: dict[str, Sequence[tuple[float, float] | None]] | None = None,
) -> str:
    """Draws curves over the steps; the caption shows the values under the pointer.

    Args:
        title: of the figure.
        steps: ascending.
        curves: {name: values}, one for each step; a curve goes straight on over non-finite values.
        bands: {name: (low, high) for each step}, drawn behind the curve of that name.

    Returns:
        HTML, empty if there is nothing to draw.
    """
    colors = dict(zip(curves, itertools.cycle(COLORS)))
    every = -(-len(steps) // POINTS) or 1
    kept = sorted({*range(0, len(steps), every), len(steps) - 1} - {-1})
    steps = [steps[i] for i in kept]
    curves = {name: [_finite(values[i]) for i in kept] for name, values in curves.items()}
    bands = {name: [values[i] for i in kept] for name, values in (bands or {}).items()}
    heights = [v for values in curves.values() for v in values if v is not None]
    heights += [high for values in bands.values() for _, high in filter(None, values)]
    if not heights:
        return ""
    if len(steps) == 1:  # in the middle
        x = _scale(steps[0] - 1, steps[0] + 1, LEFT, RIGHT)
        x.ticks = steps
    else:  # so wide that ticks are whole steps
        x = _scale(steps[0], max(steps[-1], steps[0] + 5), LEFT, RIGHT)
    y = _scale(min(0, *heights), max(*heights, 0) or 1, BOTTOM, TOP)
    notes = [
        f"step {step:,}"
        + "".join(
            f' <b style="color:{colors[name]}">{html.escape(name)} {format_number(values[i])}</b>'
            for name, values in curves.items()
        )
        for i, step in enumerate(steps)
    ]
    data = html.escape(json.dumps({"x": [x(step) for step in steps], "notes": notes}))
    lines = "".join(
        _band(color, [(x(s), y(v[0]), y(v[1])) for s, v in zip(steps, bands.get(name, ())) if v])
        for name, color in colors.items()
    )
    lines += "".join(
        _line(colors[name], [(x(s), y(v)) for s, v in zip(steps, values) if v is not None])
        for name, values in curves.items()
    )
    return (
        f"<figure><figcaption><strong>{html.escape(title)}</strong> <output>{notes[-1]}</output>"
        f'</figcaption><svg viewBox="0 0 360 196" data-chart="{data}">{_rules(x, y)}{lines}'
        f'<path class="cursor" d="M0 {TOP}V{BOTTOM}"/></svg></figure>'
    )


def _scale(low, high, start, end):
    """A function that maps a value to its place in the box; its `ticks` are round values."""

    def place(value):
        return round(start + (end - start) * (value - low) / (high - low), 1)

    place.ticks = _ticks(low, high)
    return place


def _ticks(low, high):
    """Three to six round numbers in [low, high]."""
    size = 10 ** math.floor(math.log10((high - low) / 3))
    size *= max(factor for factor in (1, 2, 5) if factor * size <= (high - low) / 3 * 1.000001)
    return [i * size for i in range(math.ceil(low / size), math.floor(high / size + 1e-6) + 1)]


def _rules(x, y):
    marks = ""
    for tick in y.ticks:
        marks += f'<path class="rule" d="M{LEFT} {y(tick)}H{RIGHT}"/>'
        marks += (
            f'<text x="{LEFT - 6}" y="{y(tick) + 4}" text-anchor="end">{format_number(tick)}</text>'
        )
    for tick in x.ticks:
        marks += f'<text x="{x(tick)}" y="190" text-anchor="middle">{format_number(tick)}</text>'
    return marks


def _line(color, points):
    line = " ".join(f"{a},{b}" for a, b in points)
    dots = points if len(points) <= 30 else []
    radius = 4 if len(points) == 1 else 2.5
    return f'<polyline points="{line}" stroke="{color}"/>' + "".join(
        f'<circle cx="{a}" cy="{b}" r="{radius}" fill="{color}"/>' for a, b in dots
    )


def _band(color, points):
    upper = [f"{x},{high}" for x, _, high in points]
    lower = [f"{x},{low}" for x, low, _ in reversed(points)]
    return f'<polygon points="{" ".join(upper + lower)}" fill="{color}" opacity=".15"/>'


def _finite(value):
    return value if value is not None and math.isfinite(value) else None


def format_number(value: float) -> str:
    """Formats with at most two decimals, or two significant digits below 0.1."""
    if _finite(value) is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def format_percent(value: float | None) -> str:
    """Formats with two decimals; None becomes a dash."""
    return "–" if _finite(value) is None else f"{value:.2f}"
