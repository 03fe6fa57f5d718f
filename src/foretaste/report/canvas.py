"""A canvas for charts as inline SVG that follows the page: its fonts, its colours, light or dark."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

__all__ = ["CLEAN", "HEIGHT", "INK", "LINE", "MUTED", "PAPER", "POISONED", "SHADE", "STYLE", "WIDTH", "as_svg",
           "new_canvas", "per_cent", "share_axis"]  # fmt: skip

# Drawn in colours nobody uses, then replaced by the page's CSS variables: one SVG serves light, dark and print.
VARIABLES = {
    f"#01010{i}": name for i, name in enumerate(["ink", "muted", "line", "paper", "shade", "clean", "poisoned"])
}
INK, MUTED, LINE, PAPER, SHADE, CLEAN, POISONED = VARIABLES
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "foretaste",
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
    "lines.linewidth": 2,
}
WIDTH, HEIGHT = 420, 284


def per_cent(share: float) -> str:
    """Print a share so that 0 % and 100 % mean exactly that.

    >>> [per_cent(share).replace(chr(0x202F), " ") for share in (0, 0.0001, 0.9978, 0.9999, 1)]
    ['0 %', '<0.1 %', '99.8 %', '>99.9 %', '100 %']
    """
    if share in (0, 1):
        number = f"{share * 100:.0f}"
    elif share < 0.0005:
        number = "<0.1"
    elif share >= 0.9995:
        number = ">99.9"
    else:
        number = f"{share * 100:.1f}"
    return f"{number}\u202f%"


def new_canvas(height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """Return a figure as wide as half a page, `height` points high, with these margins around its axes."""
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height)
    return figure, figure.add_axes(box)


def share_axis(axes: Axes, which: str) -> None:
    """Make the axis `x` or `y` one of shares, with a grid at the quarters."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:.0f}\u202f%"))
    axis.grid(True)


def as_svg(figure: Figure, name: str, label: str) -> str:
    """Return the figure as one `<svg>` element for HTML: unique ids, CSS variables for colours, `label` for readers."""
    stream = io.StringIO()
    with_nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=with_nothing)
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", stream.getvalue()))
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _restyle(value, name) for key, value in element.attrib.items()}
        identity = element.attrib.pop("id", None)
        if identity in used:
            element.set("id", f"{name}-{identity}")
        if element.tag == "text":
            element.set("style", re.sub(r"font-family:[^;]*;?", "", _unshorthand(element.attrib["style"])))
        element.text = (element.text or "").strip() or None
        element.tail = None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _restyle(value: str, name: str) -> str:
    for colour, variable in VARIABLES.items():
        value = value.replace(colour, f"var(--{variable})")
    value = value.replace("url(#", f"url(#{name}-")
    return f"#{name}-{value[1:]}" if value.startswith("#") else value


def _unshorthand(text_style: str) -> str:
    """Turn `font: 700 12px 'DejaVu Sans', ...` into size and weight, so that the page's font is inherited."""
    return re.sub(r"font: (?:(\d+|bold) )?([\d.]+px)[^;]*", lambda m: _font(m[1], m[2]), text_style)


def _font(weight: str | None, size: str) -> str:
    return f"font-size: {size}" + (f"; font-weight: {weight}" if weight else "")


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]
