"""Pictures of figures over size: SVG, both axes logarithmic, all sides in one panel."""

import dataclasses
import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 400, 340  # of a panel, with its axes
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 34, 48
LEGEND_ROW, LEGEND_COLUMN = 20, 165
# Colours that the colour-blind can tell apart (Okabe and Ito); what is ours is thick and black.
COLOURS = ["#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b0a000", "#777777"]
MARKS = ["circle", "square", "triangle", "diamond"]


@dataclasses.dataclass
class Point:
    x: float
    y: float
    low: float  # quartiles
    high: float


@dataclasses.dataclass
class Panel:
    title: str
    unit: str
    lines: dict[str, list[Point]]


def bytes_text(value: float) -> str:
    for step, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= step:
            return f"{value / step:g} {unit}"
    return f"{value:g} B"


class Axis:
    """From values to places; logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._span = math.log(low), max(math.log(high) - math.log(low), 1e-9)
        self._start, self._length = start, end - start

    def at(self, value: float) -> float:
        return self._start + (math.log(value) - self._low) / self._span * self._length


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade, or only the decades where these would be too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    return [s * 10.0**e for e in range(first, last + 1) for s in steps if low * 0.999 <= s * 10.0**e <= high * 1.001]


def mark(shape: str, x: float, y: float, colour: str) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>'
    corners = {
        "square": [(-3, -3), (3, -3), (3, 3), (-3, 3)],
        "triangle": [(0, -4), (3.8, 3), (-3.8, 3)],
        "diamond": [(0, -4.2), (4.2, 0), (0, 4.2), (-4.2, 0)],
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'


def text(x: float, y: float, words: str, anchor: str = "middle", size: int = 11, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" {extra}>{escape(words)}</text>'


def draw_panel(panel: Panel, left: float, styles: dict[str, tuple[str, str]]) -> list[str]:
    points = [p for line in panel.lines.values() for p in line]
    sizes = sorted({p.x for p in points})
    low, high = min(p.low for p in points) / 1.25, max(p.high for p in points) * 1.25
    x_axis = Axis(sizes[0], sizes[-1], left + LEFT, left + WIDTH - RIGHT)
    y_axis = Axis(low, high, HEIGHT - BOTTOM, TOP)
    right, bottom = left + WIDTH - RIGHT, HEIGHT - BOTTOM
    out = [text((left + LEFT + right) / 2, 20, panel.title, size=14)]
    for value in ticks(low, high):
        y = y_axis.at(value)
        out.append(f'<line x1="{left + LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        out.append(text(left + LEFT - 6, y + 4, f"{value:g}", "end"))
    for size in sizes:
        x = x_axis.at(size)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="#eeeeee"/>')
        out.append(text(x, bottom + 16, bytes_text(size), size=9))
    out.append(f'<rect x="{left + LEFT}" y="{TOP}" width="{right - left - LEFT}" height="{bottom - TOP}" '
               'fill="none" stroke="#555555"/>')
    middle = (TOP + bottom) / 2
    out.append(text(left + 16, middle, panel.unit, size=12, extra=f'transform="rotate(-90 {left + 16:.1f} {middle:.1f})"'))
    for name in reversed(list(panel.lines)):  # ours, which is first, on top
        colour, shape = styles[name]
        line = sorted(panel.lines[name], key=lambda p: p.x)
        path = " ".join(f"{x_axis.at(p.x):.1f},{y_axis.at(p.y):.1f}" for p in line)
        width = 2.6 if colour == COLOURS[0] else 1.4
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        for p in line:
            x = x_axis.at(p.x)
            out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_axis.at(p.low):.1f}" y2="{y_axis.at(p.high):.1f}" '
                       f'stroke="{colour}" stroke-width="1"/>')
            out.append(mark(shape, x, y_axis.at(p.y), colour))
    return out


def draw(path: str, title: str, panels: list[Panel]) -> None:
    """Writes the picture. Each line keeps its colour in all panels; the first one is ours."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    styles = {name: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, name in enumerate(names)}
    width = WIDTH * len(panels)
    columns = max(1, width // LEGEND_COLUMN)
    height = HEIGHT + LEGEND_ROW * -(-len(names) // columns) + 34
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
           f'viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#222222">',
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for i, panel in enumerate(panels):
        out += draw_panel(panel, i * WIDTH, styles)
    for i, name in enumerate(names):
        colour, shape = styles[name]
        x, y = LEFT + i % columns * LEGEND_COLUMN, HEIGHT + 6 + i // columns * LEGEND_ROW
        out.append(f'<line x1="{x}" x2="{x + 26}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        out.append(mark(shape, x + 13, y, colour))
        out.append(text(x + 33, y + 4, name, "start", 12))
    out.append(text(LEFT, height - 10, title, "start", 11))
    out.append("</svg>")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")
