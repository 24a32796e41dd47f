"""Running notebooks: parameters, copies, figures, failures, and what an interruption leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from cme295lab.course.build import build_notebook
from cme295lab.course.index_page import write_index
from cme295lab.course.places import Course, UsageError
from cme295lab.course.runner import NotebookRun, check_parameters, parameter_names, resolve_parameters, run_notebook
from cme295lab.course.sources import NotebookSource
from cme295lab.course.validation import parameterised_copy, validate

pytestmark = pytest.mark.notebook
WriteLesson = Callable[..., NotebookSource]
FIGURE = "# %% [markdown]\n# # Figures <&>\n\n# %%\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n"
TIMEOUT_S = 60


def built(source: NotebookSource) -> Path:
    build_notebook(source)
    return source.notebook


def test_run_passes_parameters_and_saves_copy_page_and_figures(course: Course, write_lesson: WriteLesson) -> None:
    path = built(write_lesson(FIGURE + '\n# %% tags=["parameters"]\nn: int = 1\n\n# %% id="out"\nprint("n", n)\n'))
    run = run_notebook(path, course.build / "run", {"n": 7}, progress=False)
    assert run.ok
    assert run.title == "Figures <&>"
    assert [figure.name for figure in run.figures] == ["01_lesson_01.png"]
    assert run.figures[0].read_bytes().startswith(b"\x89PNG")
    printed = [
        o.text for c in nbformat.read(run.notebook, as_version=4).cells for o in c.get("outputs", ()) if "text" in o
    ]
    assert printed == ["n 7\n"]
    page = write_index([run], course.build / "run", "fast").read_text()
    assert "Figures &lt;&amp;&gt;" in page
    assert 'src="figures/01_lesson_01.png"' in page
    assert 'alt="Figure 1 of' in page


def test_failure_is_reported_with_cell_and_error(course: Course, write_lesson: WriteLesson) -> None:
    source = write_lesson('# %% tags=["parameters"]\nd = 1\n\n# %% id="divide"\n1 / d\n')
    run = run_notebook(built(source), course.build / "run", {"d": 0}, progress=False)
    assert (run.failed_cell, run.error) == ("divide", "ZeroDivisionError: division by zero")
    assert run.page.is_file()
    page = write_index([run], course.build / "run", "full").read_text()
    assert "1 failed" in page
    assert "cell divide: ZeroDivisionError" in page


def test_parameters_are_those_of_the_tagged_cell(course: Course, write_lesson: WriteLesson) -> None:
    source = write_lesson('# %% tags=["parameters"]\nprofile = "full"\nn: int = 3\n\n# %%\nother = 1\n')
    notebook = nbformat.v4.new_notebook()
    path = course.root / "notebooks" / "x.ipynb"
    notebook.cells = [nbformat.v4.new_code_cell(c.source, metadata=c.metadata) for c in _cells(source)]
    nbformat.write(notebook, path)
    assert parameter_names(path) == ["profile", "n"]
    assert resolve_parameters(path, {"profile": "fast", "unknown": 1}) == {"profile": "fast"}
    with pytest.raises(UsageError, match="no notebook here has a parameter 'm'; there are: n, profile"):
        check_parameters([path], {"n": 1, "m": 2})


def _cells(source: NotebookSource) -> list[nbformat.NotebookNode]:
    from cme295lab.course.sources import read_source

    return list(read_source(source.text).cells)


def test_interruption_leaves_no_half_written_file(course: Course, write_lesson: WriteLesson) -> None:
    text = '# %% tags=["parameters"]\nflag = ""\n\n# %%\nimport pathlib, time\nif flag:\n'
    path = built(write_lesson(f"{text}    pathlib.Path(flag).touch()\n    time.sleep(60)\n"))
    flag, output = course.root / "started", course.root / "out"
    command = [sys.executable, "-m", "cme295lab", "run", str(path), "--output", str(output), "-p", f"flag={flag}"]
    process = subprocess.Popen(command, cwd=course.root, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + TIMEOUT_S
    while not flag.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the cell never started"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "cme295lab: interrupted"
    assert [p.name for p in output.rglob("*")] == []


def test_nbval_passes_with_the_fast_profile_and_fails_on_a_changed_output(
    course: Course, write_lesson: WriteLesson
) -> None:
    path = built(write_lesson())
    assert validate(course, [path]) == 0
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].outputs[0].data["text/plain"] = "41"
    nbformat.write(notebook, path)
    assert validate(course, [path]) == 1


def test_copy_for_nbval_keeps_stored_outputs(course: Course, write_lesson: WriteLesson) -> None:
    path = built(write_lesson())
    copy = nbformat.read(parameterised_copy(path, course.build / "copies", "fast"), as_version=4)
    injected = [c.source for c in copy.cells if "injected-parameters" in c.metadata.get("tags", ())]
    assert len(injected) == 1
    assert 'profile = "fast"' in injected[0]
    assert copy.cells[-1].outputs[0].data["text/plain"] == "42"
    assert [c.id for c in copy.cells if c.source == "6 * 7"] == [nbformat.read(path, as_version=4).cells[-1].id]


def test_index_lists_every_run(tmp_path: Path) -> None:
    runs = [
        NotebookRun(name=n, title=n, seconds=1.0, notebook=tmp_path / f"{n}.ipynb", page=tmp_path / f"{n}.html")
        for n in ("a", "b")
    ]
    page = write_index(runs, tmp_path, "fast").read_text()
    assert "2 notebooks, 0 failed, 2 s, profile fast" in page
    assert page.count("<article>") == 2
