"""Curves over steps as an SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 360, 220, 40
COLOURS = ("#c0392b", "#e67e22", "#7f8c8d", "#2980b9", "#27ae60", "#8e44ad", "#16a085")


def svg(
    panels: Mapping[str, Mapping[str, Sequence[float]]], limits: Mapping[str, float], last: int
) -> str:
    """Draw one panel for each title, with one curve for each name.

    Values are from 0 to 1, evenly spaced over steps 0 to `last`.

    `limits` has the value of each panel's dashed line.
    """
    wide = WIDTH + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide * len(panels)}" '
        f'height="{HEIGHT + 3 * MARGIN}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for column, (title, curves) in enumerate(panels.items()):
        left_edge = column * wide + MARGIN
        parts.append(_axes(left_edge, title, limits[title], last))
        for colour, (name, values) in zip(COLOURS, curves.items(), strict=False):
            points = " ".join(
                f"{left_edge + WIDTH * at / (len(values) - 1):.0f},{_y(value):.0f}"
                for at, value in enumerate(values)
            )
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            place = MARGIN + 110 * COLOURS.index(colour)
            if column == 0:
                text = f'<text x="{place}" y="{HEIGHT + 2.6 * MARGIN}" fill="{colour}">'
                parts.append(f"{text}{name}</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _y(value: float) -> float:
    return MARGIN + HEIGHT * (1 - value)


def _axes(left_edge: int, title: str, limit: float, last: int) -> str:
    bottom = MARGIN + HEIGHT
    ticks = "".join(
        f'<text x="{left_edge - 6}" y="{_y(tick) + 4:.0f}" text-anchor="end">{tick:g}</text>'
        for tick in (0, 0.5, 1)
    )
    return (
        f'<text x="{left_edge}" y="{MARGIN - 12}" font-weight="bold">{title}</text>'
        f'<rect x="{left_edge}" y="{MARGIN}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
        f'stroke="#999"/><line x1="{left_edge}" x2="{left_edge + WIDTH}" y1="{_y(limit):.0f}" '
        f'y2="{_y(limit):.0f}" stroke="#999" stroke-dasharray="4"/>{ticks}'
        f'<text x="{left_edge}" y="{bottom + 18}">step 0</text>'
        f'<text x="{left_edge + WIDTH}" y="{bottom + 18}" text-anchor="end">{last}</text>'
    )
