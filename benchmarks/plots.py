"""Charts of lines, and of means with intervals, as SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, MARGIN = 380, 230, 46
ROW = 17  # pixels of a recipe in a chart of intervals
LABEL, SCALE = 190, 420
COLOURS = ("#2980b9", "#c0392b", "#27ae60", "#e67e22", "#8e44ad", "#16a085", "#7f8c8d")
GREY = "#999"


@dataclass(frozen=True)
class Line:
    """A curve over the windows. Lines without a name are not in the legend."""

    values: Sequence[float]
    colour: str
    name: str = ""
    thick: bool = False


@dataclass(frozen=True)
class Panel:
    """A chart. `levels` are dashed lines by what is written beside them; `mark` is a window."""

    title: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    mark: int | None = None
    low: float = 0.0
    high: float = 1.0

    def y(self, value: float) -> float:
        """Return where a value is drawn; outside of the panel it is at its border."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return MARGIN + HEIGHT * (1 - share)


def line_charts(panels: Sequence[Panel]) -> str:
    """Draw panels side by side, with the windows from left to right, and a legend below each."""
    wide = WIDTH + 2 * MARGIN
    rows = max(sum(bool(line.name) for line in panel.lines) for panel in panels)
    height = HEIGHT + 2 * MARGIN + 16 * ((rows + 1) // 2)
    parts = _opened(wide * len(panels), height)
    for column, panel in enumerate(panels):
        parts += _panel(panel, column * wide + MARGIN)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _opened(width: float, height: float) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]


def _panel(panel: Panel, left: float) -> list[str]:
    last = max(len(line.values) for line in panel.lines) - 1
    parts = _axes(panel, left, last)
    for line in panel.lines:
        points = " ".join(
            f"{left + WIDTH * at / max(1, last):.1f},{panel.y(value):.1f}"
            for at, value in enumerate(line.values)
        )
        look = 'stroke-width="3"' if line.thick else 'stroke-width="1" stroke-opacity="0.55"'
        parts.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" {look}/>')
    named = [line for line in panel.lines if line.name]
    for at, line in enumerate(named):
        x = left + WIDTH / 2 * (at % 2)
        y = HEIGHT + MARGIN + 38 + 16 * (at // 2)
        parts.append(_text(x, y, line.name, fill=line.colour))
    return parts


def _axes(panel: Panel, left: float, last: int) -> list[str]:
    bottom, right = MARGIN + HEIGHT, left + WIDTH
    parts = [
        _text(left, MARGIN - 12, panel.title, weight="bold"),
        f'<rect x="{left}" y="{MARGIN}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
        f'stroke="{GREY}"/>',
        _text(left, bottom + 18, "before the first window"),
        _text(right, bottom + 18, f"after {last}", anchor="end"),
    ]
    for tick in (value for value in (-1, -0.5, 0, 0.5, 1) if panel.low <= value <= panel.high):
        parts.append(_text(left - 6, panel.y(tick) + 4, f"{tick:g}", anchor="end"))
    for name, level in panel.levels:
        y = panel.y(level)
        parts.append(_dashed(left, right, y, y))
        parts.append(_text(right - 4, y - 3, name, anchor="end", fill=GREY, size=10))
    if panel.mark is not None:
        x = left + WIDTH * panel.mark / max(1, last)
        parts.append(_dashed(x, x, MARGIN, bottom))
    return parts


def intervals_chart(title: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """Draw the mean and the interval of each row (name, mean, reach) between 0 and 1."""
    height = MARGIN + ROW * len(rows) + 30
    parts = _opened(LABEL + SCALE + 40, height)
    parts.append(_text(10, 20, title, weight="bold"))
    for tick in (0.0, 0.5, 1.0):
        x = LABEL + SCALE * tick
        parts.append(_dashed(x, x, MARGIN - 8, height - 24))
        parts.append(_text(x, height - 8, f"{tick:g}", anchor="middle"))
    for number, (name, mean, reach) in enumerate(rows):
        y = MARGIN + ROW * number
        low, high = (
            LABEL + SCALE * min(max(end, -0.05), 1.05) for end in (mean - reach, mean + reach)
        )
        parts += [
            _text(LABEL - 20, y + 4, name, anchor="end"),
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{COLOURS[0]}"/>',
            f'<circle cx="{LABEL + SCALE * mean:.1f}" cy="{y}" r="4" fill="{COLOURS[0]}"/>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _dashed(x1: float, x2: float, y1: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="{GREY}" '
        'stroke-dasharray="4"/>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = "black",
    weight: str = "normal", size: int = 12,
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{fill}" '
        f'font-weight="{weight}" font-size="{size}">{escape(text)}</text>'
    )
