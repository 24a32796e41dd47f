"""The page that shows what a run of the course produced: every notebook, how long it took, its figures."""

import html
from pathlib import Path

from cme295lab.course.build import write_atomically
from cme295lab.course.runner import NotebookRun

_MAX_THUMBNAILS = 12
_STYLE = """
:root { color-scheme: light dark; --bad: #d55e00; --good: #009e73;
  --line: color-mix(in srgb, currentColor 20%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } .summary { opacity: .8; }
article { border-top: 1px solid var(--line); padding: 1rem 0; }
h2 { font-size: 1.1rem; margin: 0; } .state { font-size: .9rem; margin: .2rem 0 .6rem; }
.ok { color: var(--good); } .failed { color: var(--bad); font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; gap: .6rem; }
.figures img { height: 8rem; border: 1px solid var(--line); background: white; border-radius: 4px; }
pre { white-space: pre-wrap; border-left: 3px solid var(--bad); padding-left: .8rem; }
"""


def write_index(runs: list[NotebookRun], folder: Path, profile: str) -> Path:
    """Write `index.html` next to the executed copies.

    Args:
        runs: the notebooks that were run.
        folder: where their copies lie.
        profile: the profile they ran with.

    Returns:
        The page.
    """
    failed = sum(not run.ok for run in runs)
    total = sum(run.seconds for run in runs)
    summary = f"{len(runs)} notebooks, {failed} failed, {total:.0f} s, profile {html.escape(profile)}"
    articles = "\n".join(_article(run, folder) for run in runs)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>cme295lab: executed notebooks</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>cme295lab: executed notebooks</h1>\n<p class="summary">{summary}</p>\n{articles}\n</body>\n</html>\n'
    )
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def _article(run: NotebookRun, folder: Path) -> str:
    def link(path: Path) -> str:
        return html.escape(path.relative_to(folder).as_posix(), quote=True)

    state = '<span class="ok">ran</span>' if run.ok else '<span class="failed">failed</span>'
    error = "" if run.ok else f"<pre>cell {html.escape(run.failed_cell)}: {html.escape(run.error)}</pre>\n"
    thumbnails = "".join(
        f'<a href="{link(run.page)}"><img loading="lazy" src="{link(figure)}" '
        f'alt="Figure {number} of {html.escape(run.title, quote=True)}"></a>\n'
        for number, figure in enumerate(run.figures[:_MAX_THUMBNAILS], start=1)
    )
    return (
        f'<article>\n<h2><a href="{link(run.page)}">{html.escape(run.title)}</a></h2>\n'
        f'<p class="state">{state} in {run.seconds:.1f} s, {len(run.figures)} figures, '
        f'<a href="{link(run.notebook)}">notebook</a></p>\n{error}<div class="figures">\n{thumbnails}</div>\n</article>'
    )
