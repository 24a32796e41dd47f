"""A matplotlib figure that shows itself in a notebook as a small PNG with a text alternative."""

import io
from base64 import b64encode
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

_PIXELS_PER_INCH = 192  # twice what a page shows, so that text is sharp on dense screens
_NUM_COLOURS = 128


class Picture(Figure):
    """A figure with a text alternative; as a cell's last value it is shown as a PNG of a few dozen kilobytes.

    It is a `matplotlib.figure.Figure` and stands outside pyplot: nothing is shown twice, nothing needs closing.

    Args:
        alt_text: what the picture says, in words, for readers who cannot see it.
        **figure_options: passed to `Figure` (figsize, layout, ...).
    """

    def __init__(self, alt_text: str, **figure_options: Any) -> None:
        super().__init__(**({"layout": "constrained", "facecolor": "white"} | figure_options))
        self.alt_text = alt_text

    def png(self) -> bytes:
        """The picture as a PNG with a palette of 128 colours, a third of the size of a true-colour one."""
        raw = io.BytesIO()
        self.savefig(raw, format="png", dpi=_PIXELS_PER_INCH)
        small = io.BytesIO()
        Image.open(raw).convert("RGB").quantize(_NUM_COLOURS, dither=Image.Dither.NONE).save(
            small, "PNG", optimize=True
        )
        return small.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        shown = {"width": round(self.get_figwidth() * _PIXELS_PER_INCH / 2), "alt": self.alt_text}
        return {"image/png": b64encode(self.png()).decode(), "text/plain": self.alt_text}, {"image/png": shown}
