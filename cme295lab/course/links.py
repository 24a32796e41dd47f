"""Check that every relative link in the documents and notebooks leads somewhere."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat

from cme295lab.course.checks import Finding
from cme295lab.course.places import Course

_LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"]+)\"")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def check_links(course: Course) -> list[Finding]:
    """Check the relative links of all Markdown files and notebooks, headings included.

    Args:
        course: the course.

    Returns:
        Links that lead to no file, or to no heading of it.
    """
    findings = []
    for path in _documents(course.root):
        for cell_id, text in _texts(path):
            for link in links_of(text):
                if problem := _problem(path, link):
                    findings.append(
                        Finding(course.relative(path), cell_id, f"link {link!r} {problem}", "correct the link")
                    )
    return findings


def links_of(markdown: str) -> list[str]:
    """The relative links of a text, pictures included.

    Args:
        markdown: a document or text cell.

    Returns:
        Link targets, in order; links to the web are left out.
    """
    found = [match[1] or match[2] for match in _LINK.finditer(_CODE.sub("", markdown))]
    return [link for link in found if not re.match(r"[a-z]+:|//|attachment:", link, re.IGNORECASE)]


def anchors_of(markdown: str) -> set[str]:
    """The anchors that a repository browser gives to the headings of a text.

    Args:
        markdown: a document.

    Returns:
        Anchors without the leading `#`.
    """
    headings = re.findall(r"^#+\s+(.+?)\s*$", _CODE.sub(lambda code: code[0].strip("`\n"), markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _documents(root: Path) -> list[Path]:
    """Markdown files and notebooks under version control, or, outside a clone, all there are."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", "*.md", "*.ipynb"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        return sorted({root / line for line in listed.stdout.splitlines() if (root / line).is_file()})
    return sorted([*root.rglob("*.md"), *root.rglob("*.ipynb")])


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix == ".md":
        yield "", path.read_text(encoding="utf-8")
        return
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            yield cell.get("id", ""), cell.source


def _problem(path: Path, link: str) -> str:
    file_part, _, anchor = unquote(link).partition("#")
    target = (path.parent / file_part) if file_part else path
    if not target.exists():
        return "leads to no file"
    if anchor and target.suffix == ".md" and anchor not in anchors_of(target.read_text(encoding="utf-8")):
        return "leads to no heading"
    return ""
