"""The front door: names, folders, files, and what is said when something is not there."""

from pathlib import Path

import pytest
import torch

from cme295lab.transformer import load_pretrained, pretrained_or_course, save_pretrained
from cme295lab.transformer.pretrained import registry
from cme295lab.transformer.pretrained.fetch import fetch
from cme295lab.transformer.pretrained.load import NotFetchedError
from tests.transformer.pretrained.tiny import CONFIGS, logits_of, random_model, tiny_tokenizer
from tests.transformer.pretrained.tiny_gguf import CONFIG


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A small model in the place of the course's own."""
    monkeypatch.setattr(registry, "WEIGHTS_FOLDER", tmp_path / "weights")
    save_pretrained(tmp_path / "weights" / "course-4m", random_model(CONFIGS["tied"]), tiny_tokenizer())
    return tmp_path / "weights"


def test_published_model_is_loaded_by_either_name_once_it_is_fetched(published):
    fetch(published.model, progress=False)
    for name in ("smollm2-135m-instruct", "smollm2"):
        loaded = load_pretrained(name)
        assert loaded.name == "smollm2-135m-instruct"
        assert loaded.source == published.model.about
        assert loaded.model.config.num_parameters == CONFIG.num_parameters
        assert loaded.tokenizer.encode("the text") == tiny_tokenizer().encode("the text")


def test_published_model_that_is_not_here_says_which_command_fetches_it(cache):
    with pytest.raises(NotFetchedError, match=r"is not on this machine .*Run: cme295lab fetch smollm2   \(98 MB"):
        load_pretrained("smollm2-135m-instruct")
    assert issubclass(NotFetchedError, FileNotFoundError)
    assert not cache.exists(), "asking is not fetching"


def test_own_model_stands_in_and_says_so(own, cache):
    loaded = pretrained_or_course()
    assert loaded.name == "course-4m"
    assert torch.equal(logits_of(loaded.model), logits_of(random_model(CONFIGS["tied"])))
    assert "the course's own course-4m" in loaded.source
    assert "smollm2-135m-instruct is not on this machine; `cme295lab fetch smollm2` fetches it" in loaded.source
    assert not cache.exists()


def test_published_model_is_preferred_once_it_is_here(own, published):
    fetch(published.model, progress=False)
    assert pretrained_or_course(dtype=torch.bfloat16).name == "smollm2-135m-instruct"


def test_dtype_and_device_are_handed_on(own):
    loaded = load_pretrained("course-4m", dtype=torch.float64, device="cpu")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float64}


def test_unknown_name_suggests_one(cache):
    with pytest.raises(ValueError, match=r"unknown model 'course4m'. Did you mean 'course-4m'\? Known: course-4m"):
        load_pretrained("course4m")
    with pytest.raises(ValueError, match=r"unknown model 'gpt2'\. .*or give the path of a folder"):
        load_pretrained("gpt2")


@pytest.mark.parametrize("path", ["no/such/folder", "model.gguf", Path("folder")], ids=str)
def test_path_that_does_not_exist_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is no folder and no file {path}"):
        load_pretrained(path)


def test_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"model.bin is neither a folder nor a .gguf file: give the folder that holds"):
        load_pretrained(tmp_path / "model.bin")
    with pytest.raises(TypeError, match=r"name_or_path must be a name or a path, got int"):
        load_pretrained(3)
