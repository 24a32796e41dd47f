"""A little SVG: pieces of text that follow the page's colours, light or dark."""

from __future__ import annotations

import html
from typing import Any

FONT = "font-family:var(--jp-ui-font-family, system-ui, sans-serif)"
FAINT = 0.65  # opacity of what explains


def _attributes(values: dict[str, Any]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_number(v)}"' for name, v in values.items() if v is not None
    )


def _number(value: Any) -> str:
    text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
    return html.escape(text)


def element(tag: str, content: str = "", **attributes: Any) -> str:
    """`<tag a="b">content</tag>`; underscores in names become hyphens, content is taken as it is."""
    return f"<{tag}{_attributes(attributes)}>{content}</{tag}>" if content else f"<{tag}{_attributes(attributes)}/>"


def text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", **attributes: Any) -> str:
    """Escaped text in the page's colour."""
    made = {"x": x, "y": y, "font_size": size, "text_anchor": anchor, "fill": "currentColor"} | attributes
    return element("text", html.escape(words), **made)


def rect(x: float, y: float, width: float, height: float, **attributes: Any) -> str:
    """A rectangle."""
    return element("rect", x=x, y=y, width=width, height=height, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: Any) -> str:
    """A line in the page's colour, unless told otherwise."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **({"stroke": "currentColor"} | attributes))


def arrow(x1: float, x2: float, y: float, thickness: float, colour: str) -> str:
    """A horizontal arrow from x1 to x2."""
    head, half = 9.0, thickness / 2
    sign = 1 if x2 > x1 else -1
    neck, wing = x2 - sign * head, half + 4
    points = [
        (x1, y - half),
        (neck, y - half),
        (neck, y - wing),
        (x2, y),
        (neck, y + wing),
        (neck, y + half),
        (x1, y + half),
    ]
    return element("polygon", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in points), fill=colour)


def picture(width: int, height: int, body: list[str], label: str) -> str:
    """A picture with a text alternative, as wide as the page allows up to its own width."""
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="width:100%;max-width:{width}px;{FONT}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{html.escape(label)}</title>{''.join(body)}</svg>"
    )
