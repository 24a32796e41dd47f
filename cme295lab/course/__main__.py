"""Commands for those who maintain the course: `python -m cme295lab.course build | check | release | setup-browser`."""

import sys
from typing import Annotated

import typer

from cme295lab.course import browser, build, checks, links
from cme295lab.course.places import CourseError, find_course
from cme295lab.course.release import release_exercises, stale_exercises

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.command("build")
def build_command(
    names: Annotated[list[str] | None, typer.Argument(help="Stems of sources; all if none.")] = None,
    force: Annotated[bool, typer.Option(help="Build even what has not changed.")] = False,
) -> None:
    """Build notebooks from their text where it, or the library, has changed."""
    build.build_notebooks(find_course(), names, force=force)


@app.command("check")
def check_command() -> None:
    """Check the stored notebooks, the links and the exercises; nothing is executed."""
    course = find_course()
    findings = [*checks.check_course(course), *links.check_links(course), *stale_exercises(course)]
    for finding in findings:
        print(finding, file=sys.stderr)
    print(f"course: {len(course.notebooks())} notebooks, {len(course.solutions())} exercises, {len(findings)} findings")
    if findings:
        raise typer.Exit(1)


@app.command("release")
def release_command() -> None:
    """Generate the students' exercises from the solutions."""
    for path in release_exercises(find_course()):
        print(path)


@app.command("setup-browser")
def setup_browser_command() -> None:
    """Find a Chromium for the browser tests, or install one."""
    print(browser.install_browser())


if __name__ == "__main__":
    try:
        app()
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
