"""What is kept of an output."""

import base64
import io

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from cme295lab.course.outputs import MAX_BLOB_BYTES, WIDGET_VIEW, normalise_outputs, shrink_png


def normalised(*outputs: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    notebook = new_notebook(cells=[new_code_cell("x", outputs=list(outputs), execution_count=17)])
    notebook.metadata["widgets"] = {"state": {}}
    normalise_outputs(notebook)
    assert notebook.cells[0].execution_count == 1
    assert "widgets" not in notebook.metadata
    return notebook.cells[0].outputs


def stream(name: str, text: str) -> nbformat.NotebookNode:
    return new_output("stream", name=name, text=text)


def png(width: int) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (width, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_pieces_of_a_stream_are_joined() -> None:
    (output,) = normalised(stream("stdout", "a\n"), stream("stdout", "b\n"))
    assert output.text == "a\nb\n"


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [("stdout", "1%\r50%\r100%\nend\n", "100%\nend\n"), ("stderr", "1%|\r100%|\nwarning\n", "warning\n")],
)
def test_rewritten_lines_keep_their_end_and_progress_bars_vanish(name: str, text: str, kept: str) -> None:
    (output,) = normalised(stream(name, text))
    assert output.text == kept


def test_stream_of_a_progress_bar_alone_is_dropped() -> None:
    assert normalised(stream("stderr", "\r0%\r100%")) == []


def test_widget_keeps_its_still_picture_and_says_how_to_use_it() -> None:
    data = {WIDGET_VIEW: {"model_id": "1"}, "text/plain": "TileWalk(children=(...))", "image/png": png(4)}
    (output,) = normalised(new_output("display_data", data))
    assert output.data == {
        "text/plain": "[interactive TileWalk: run this notebook to use it]",
        "image/png": data["image/png"],
    }


def test_counter_of_a_result_follows_its_cell() -> None:
    (output,) = normalised(new_output("execute_result", {"text/plain": "42"}, execution_count=17))
    assert output.execution_count == 1


def test_plotly_and_scripts_are_replaced_by_text() -> None:
    data = {"application/vnd.plotly.v1+json": {}, "text/html": "<div><script>draw()</script></div>"}
    (output,) = normalised(new_output("display_data", data))
    assert output.data == {"text/plain": "[interactive figure: run this notebook to use it]"}


def test_small_table_is_kept_and_large_page_is_not() -> None:
    small, large = "<table><tr><td>1</td></tr></table>", "<p>" + "x" * 30_000
    kept = normalised(*(new_output("display_data", {"text/html": h, "text/plain": "T"}) for h in (small, large)))
    assert [set(output.data) for output in kept] == [{"text/html", "text/plain"}, {"text/plain"}]


def test_large_picture_is_reduced_and_small_one_untouched() -> None:
    small, large = png(20), png(220)
    assert shrink_png(small) == small
    assert len(base64.b64decode(large)) > MAX_BLOB_BYTES
    assert len(base64.b64decode(shrink_png(large))) <= MAX_BLOB_BYTES
