"""What of an output is stored in the repository.

A stored output is read in a repository browser and compared when the course is rebuilt, so it keeps text, small
pictures and small tables, and drops what needs a live kernel (widgets), what is large, and what differs between two
runs of the same code (the order in which a stream arrives, execution times, stale counters).
"""

import base64
import io
import re
from collections.abc import Iterable
from typing import Any

import nbformat
from PIL import Image

from cme295lab.course.sources import NOTEBOOK_METADATA

MAX_BLOB_BYTES = 100_000
MAX_HTML_CHARACTERS = 20_000
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_TYPES = ("text/plain", "text/markdown", "text/latex", "text/html", "image/svg+xml", "image/png", "image/jpeg")
_PALETTE_SIZES = (256, 64)
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")
_PROGRESS_BAR = re.compile(r"^[^\n]*\r(?!\n)[^\n]*\n?", re.MULTILINE)


def normalise_outputs(notebook: nbformat.NotebookNode) -> None:
    """Reduce the outputs of an executed notebook, in place, to what is stored.

    Args:
        notebook: an executed notebook.
    """
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for count, cell in enumerate(code_cells, start=1):
        cell.execution_count = count
        cell.metadata.pop("execution", None)
        cell.outputs = [_normalise(output, count) for output in _merge_streams(cell.outputs)]
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)


def _merge_streams(outputs: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join the pieces in which a stream arrived; drop progress bars, keep of other rewritten lines the last state."""
    merged: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and merged and merged[-1].get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(nbformat.from_dict(output))
    for output in merged:
        if output.output_type == "stream":
            rewritten = _PROGRESS_BAR if output.name == "stderr" else _OVERWRITTEN
            output.text = rewritten.sub("", output.text)
    return [output for output in merged if output.output_type != "stream" or output.text]


def _normalise(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode:
    if output.output_type not in ("display_data", "execute_result"):
        return output
    if output.output_type == "execute_result":
        output.execution_count = count
    output.data = nbformat.from_dict(_kept_data(output.data))
    output.metadata = nbformat.from_dict({key: value for key, value in output.metadata.items() if key in output.data})
    return output


def _kept_data(data: dict[str, Any]) -> dict[str, Any]:
    kept = {mime: value for mime, value in data.items() if mime in KEPT_TYPES}
    html = kept.get("text/html", "")
    if len(html) > MAX_HTML_CHARACTERS or "<script" in html:
        del kept["text/html"]
    if "image/png" in kept:
        kept["image/png"] = shrink_png(kept["image/png"])
    is_live = any(mime == WIDGET_VIEW or mime.startswith("application/vnd.plotly") for mime in data)
    if is_live:
        kept["text/plain"] = _placeholder(data)
    return kept


def _placeholder(data: dict[str, Any]) -> str:
    name = re.match(r"\w+", data.get("text/plain", ""))
    return f"[interactive {name[0] if name else 'figure'}: run this notebook to use it]"


def shrink_png(encoded: str) -> str:
    """Reduce a picture to a palette of colours if it is larger than what may be stored.

    Args:
        encoded: a PNG in base64.

    Returns:
        The same picture in base64: unchanged where it fits, else with 256 or 64 colours.
    """
    if len(base64.b64decode(encoded)) <= MAX_BLOB_BYTES:
        return encoded
    shrunk = encoded
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    for colours in _PALETTE_SIZES:
        buffer = io.BytesIO()
        picture.quantize(colors=colours, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
        shrunk = base64.b64encode(buffer.getvalue()).decode()
        if len(buffer.getvalue()) <= MAX_BLOB_BYTES:
            break
    return shrunk
