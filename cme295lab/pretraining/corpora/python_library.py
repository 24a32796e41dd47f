"""Real text that is on any machine with Python: the language reference, the library's docstrings and its source.

CPython ships the chapters of its language reference as `pydoc_data.topics` (what `help("if")` prints), a good 0.4 MB of
careful English, and more in the docstrings of its standard library. The library's source is the course's code. Nothing
is downloaded and no module but the reference is imported: sources are parsed, not run.

No text is in two domains: long docstrings are English and are cut out of the source; short ones stay in the code, where
they belong to how Python looks. Docstrings and source of a file are one family, so that validation on the one says
nothing that training on the other has given away. Chapters of which one contains the other are found later, by
`duplicates`.

The text depends on the Python version, and a little on the installation (some distributions leave files out). On one
installation it is always the same.
"""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
import tokenize
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cme295lab.pretraining.corpora.document import Document
from cme295lab.pretraining.corpora.quality import (
    Filter,
    FilterReport,
    apply_filters,
    from_folders,
    generated_table,
    length_outside,
    not_printable,
    too_many_repeated_lines,
)

LONG_DOCSTRING_CHARACTERS = 200
# Tests, applications with their own text, and the reference itself, which is English
UNWANTED_FOLDERS = (
    "test", "tests", "idle_test", "idlelib", "lib2to3", "distutils", "turtledemo", "pydoc_data", "__phello__",
)  # fmt: skip
SOURCE_FILTERS = (
    from_folders(UNWANTED_FOLDERS),
    length_outside(200, 300_000),
    not_printable(0.001),
    generated_table(0.4),
    too_many_repeated_lines(0.6),
)

_NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class PythonLibrary:
    """The standard library, taken apart.

    Attributes:
        docstrings: the long ones; domain "english".
        code: the files without them; domain "code".
        report: which files were left out, and why.
    """

    docstrings: list[Document]
    code: list[Document]
    report: FilterReport


def python_docs() -> list[Document]:
    """The language reference that ships with Python, and the long docstrings of the standard library.

    Returns:
        Documents of the domain "english", in a fixed order, not yet filtered or free of duplicates.

    Raises:
        RuntimeError: if this Python comes without its reference or without source files.
    """
    return [*language_reference(), *standard_library().docstrings]


def standard_library_code() -> list[Document]:
    """The source files of the standard library without their long docstrings.

    Returns:
        Documents of the domain "code", in a fixed order; tests, demonstrations and tables are left out.

    Raises:
        RuntimeError: if this Python comes without source files.
    """
    return standard_library().code


def language_reference() -> list[Document]:
    """The chapters of the language reference, as `help()` prints them."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError(
            "this Python has no language reference (pydoc_data.topics): some distributions put it into a package of "
            "its own; install Python from python.org, conda or pyenv"
        ) from error
    return [Document(text.strip() + "\n", "english", f"pydoc_data#{name}") for name, text in sorted(topics.items())]


def standard_library(*, one_in: int = 1) -> PythonLibrary:
    """Read the standard library's source files once: docstrings here, code there, and a report.

    Args:
        one_in: read one file of so many, chosen by a hash of its name; 1 reads all.

    Raises:
        RuntimeError: if this Python comes without source files.
        ValueError: if `one_in` is not positive.
    """
    if one_in < 1:
        raise ValueError(f"one_in must be positive, got {one_in}")
    files = list(_files(one_in))
    if not files:
        raise RuntimeError(
            f"this Python has no source files of its standard library in {_folder()}: it may be a frozen or zipped one"
        )
    trees: dict[str, ast.Module] = {}

    def does_not_parse(document: Document) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the library's own making, such as old escape sequences
                trees[document.source] = ast.parse(document.text)
        except (SyntaxError, ValueError):
            return True
        return False

    kept, report = apply_filters(files, [*SOURCE_FILTERS, Filter(name="does not parse", drops=does_not_parse)])
    docstrings: list[Document] = []
    code: list[Document] = []
    for file in kept:
        nodes = list(_documented(trees[file.source]))
        docstrings += _docstrings(file, nodes)
        code.append(replace(file, text=_without_docstrings(file.text, nodes)))
    return PythonLibrary(docstrings=docstrings, code=code, report=report)


def _folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _files(one_in: int) -> Iterator[Document]:
    """Python files of the modules that belong to the standard library (not of what was installed beside it)."""
    folder = _folder()
    for module_name in sorted(sys.stdlib_module_names):
        module = folder / f"{module_name}.py"
        for path in [module] if module.is_file() else sorted((folder / module_name).rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            if zlib.crc32(name.encode()) % one_in:
                continue
            try:
                with tokenize.open(path) as file:  # heeds the encoding that the file declares
                    text = file.read()
            except (SyntaxError, UnicodeDecodeError):
                text = path.read_bytes().decode("latin-1")  # a test of wrong encodings; it will not parse either
            yield Document(text, "code", name)


def _docstrings(file: Document, nodes: Sequence[tuple[str, _Documented]]) -> Iterator[Document]:
    for name, node in nodes:
        docstring = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if len(docstring) >= LONG_DOCSTRING_CHARACTERS:
            yield Document(docstring + "\n", "english", f"{file.source}#{name}", family=file.family)


def _documented(tree: ast.Module) -> Iterator[tuple[str, _Documented]]:
    """All nodes that may have a docstring, with their dotted names; in the order of the file."""
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, _Documented):
            yield name, node
        inner = [
            (f"{name}.{child.name}".lstrip(".") if isinstance(child, _NAMED) else name, child)
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)  # no definition is in an expression
        ]
        waiting += reversed(inner)


def _without_docstrings(text: str, nodes: Sequence[tuple[str, _Documented]]) -> str:
    """Cut long docstrings out, by whole lines; a body of nothing else becomes `pass`."""
    lines = text.splitlines(keepends=True)
    for _, node in nodes:
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None or len(inspect.cleandoc(docstring)) < LONG_DOCSTRING_CHARACTERS:
            continue
        statement = node.body[0]
        first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
        before = lines[first].encode()[: statement.col_offset].decode()
        after = lines[last].encode()[statement.end_col_offset :].decode()
        if before.strip() or after.strip():
            continue  # other code on the same line: rare, and not worth cutting
        alone = len(node.body) == 1 and not isinstance(node, ast.Module)
        lines[first : last + 1] = [f"{before}pass\n" if alone else "", *[""] * (last - first)]
    return "".join(lines).lstrip("\n")
