"""Where fetched models are kept.

    <user cache>/cme295lab/models/<name>/<file>          the model, complete and checked
                                        /<file>.part     a download that was interrupted, to be continued
                                        /.lock           held while a fetch is running

The user cache is ~/.cache on Linux (or XDG_CACHE_HOME), ~/Library/Caches on macOS, %LOCALAPPDATA% on Windows. The
environment variable CME295LAB_CACHE names another folder instead; only `models_folder` reads it.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from cme295lab.transformer.pretrained.registry import PublishedModel

CACHE_VARIABLE = "CME295LAB_CACHE"


def models_folder() -> Path:
    """The folder that holds a folder for each fetched model; it may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    root = Path(chosen).expanduser() if chosen else user_cache_path("cme295lab", appauthor=False)
    return root.absolute() / "models"


def cached_file(model: PublishedModel) -> Path:
    """Where the model's file is, once it is fetched."""
    return models_folder() / model.name / model.file


def is_fetched(model: PublishedModel) -> bool:
    """Whether the model is there, complete.

    A file gets its name only after its checksum was right, so its size is enough to see here.
    """
    file = cached_file(model)
    return file.is_file() and file.stat().st_size == model.size_bytes
