"""The command line as its users meet it: output, errors on stderr, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cme295lab
from cme295lab import cli
from cme295lab.cli import parse_parameters
from cme295lab.course import browser, doctor
from cme295lab.course.doctor import Reading, what_runs_where
from cme295lab.course.places import Course, CourseError, UsageError, find_course
from cme295lab.parallel.launch import pool

TIMEOUT_S = 60


def run_cli(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cme295lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=TIMEOUT_S, check=False)


def test_version() -> None:
    result = run_cli("--version")
    assert (result.returncode, result.stdout) == (0, f"cme295lab {cme295lab.__version__}\n")


def test_help_names_every_command() -> None:
    result = run_cli("--help")
    assert result.returncode == 0
    for command in ("doctor", "lab", "run", "check", "bench"):
        assert f"\n  {command} " in result.stdout
    assert "..." not in result.stdout.split("Commands:")[1], "a one-line help is cut off"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run", "99_nothing"], "no notebook '99_nothing'"),
        (["check", "99_nothing"], "no notebook '99_nothing'"),
        (["run", "--profile", "slow"], "'slow' is not one of 'fast', 'full'"),
        (["lab", "--port", "99999"], "less than or equal to 65535"),
    ],
)
def test_usage_errors_go_to_stderr_with_exit_code_2(arguments: list[str], message: str) -> None:
    result = run_cli(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_parameters_are_refused() -> None:
    assert parse_parameters(["n=3", "profile=fast", "x=1e-3", "names=['a']"]) == {
        "n": 3,
        "profile": "fast",
        "x": 1e-3,
        "names": ["a"],
    }
    with pytest.raises(UsageError, match="write -p NAME=VALUE"):
        parse_parameters(["profile"])
    with pytest.raises(UsageError, match="write -p NAME=VALUE"):
        parse_parameters(["2n=1"])


def test_notebooks_are_found_by_beginning_name_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    course = Course(tmp_path)
    for name in ("00_start_here", "07_flash_attention"):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    path = tmp_path / "notebooks" / "07_flash_attention.ipynb"
    for name in ("07", "07_flash", "07_flash_attention", "notebooks/07_flash_attention.ipynb", str(path)):
        assert course.find_notebooks([name]) == [path]
    assert course.find_notebooks([]) == course.notebooks()
    with pytest.raises(UsageError, match="did you mean '07_flash_attention'"):
        course.find_notebooks(["07_falsh_attention"])


def test_course_is_found_from_a_folder_inside_it(tmp_path: Path) -> None:
    inside = tmp_path / "notebooks" / "source"
    inside.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    assert find_course(inside).root == tmp_path


def test_lab_opens_the_first_notebook_of_this_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_start_here.ipynb").touch()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "the-users-own")
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(cli.os, "execve", lambda program, command, env: started.append((command, env)))
    with pytest.raises(SystemExit):
        cli.app(["lab", "--port", "8899", "--no-browser"])
    ((command, environment), *_) = started
    assert {f"--ServerApp.root_dir={tmp_path}", "--ServerApp.port=8899", "--no-browser"} <= set(command)
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in command
    config, own = environment["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert own == "the-users-own"
    assert (Path(config) / "labconfig" / "page_config.json").is_file()


def test_doctor_reports_this_machine() -> None:
    result = run_cli("doctor")
    assert result.returncode in (0, 1), result.stderr
    for what in ("Python", "PyTorch", "Triton", "GPU", "CPU cores", "Processes", "Memory", "Course", "Chromium"):
        assert what in result.stdout


def test_doctor_gives_a_fix_for_every_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda package: None)
    monkeypatch.setattr(doctor, "MIN_PYTHON", (99, 0))
    monkeypatch.setattr(doctor, "MIN_MEMORY_BYTES", 10**18)
    monkeypatch.setattr(browser, "find_browser", lambda: None)

    def no_course() -> Course:
        raise CourseError("no course here")

    monkeypatch.setattr(doctor, "find_course", no_course)
    readings = doctor.examine()
    states = {reading.what: reading.state for reading in readings}
    assert {what for what, state in states.items() if state == "problem"} >= {"Python", "PyTorch", "Course"}
    assert all(reading.fix for reading in readings if reading.state != "ok")
    assert what_runs_where(readings) == ["Nothing of the course runs here until the problems above are put right."]


def test_doctor_says_where_no_processes_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._processes().state == "ok"
    monkeypatch.setattr(pool, "why_no_processes", lambda: "use WSL")
    reading = doctor._processes()
    assert (reading.state, reading.fix) == ("note", "use WSL")
    assert "none can be started" in reading.value


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_doctor_says_plainly_what_runs_without_triton(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda package: None if package == "triton" else "2.13.0")
    monkeypatch.setattr(doctor.platform, "system", lambda: system)
    triton = doctor._triton()
    assert triton.state == "note"
    assert f"no wheels for {system}" in triton.value
    others = [Reading("Python", "3.11"), Reading("PyTorch", "2.13"), triton, Reading("GPU", "none", "note", "x")]
    assert "no wheels" in triton.value
    assert "stand-in" in triton.value
    assert "kernels run in the simulator" in what_runs_where(others)[1]
    assert "Compile reports" in what_runs_where(others)[1]


def test_browser_is_found_on_the_path_or_in_playwrights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "playwright"))
    assert browser.find_browser() is None
    own = tmp_path / "playwright" / "chromium-1200" / "chrome-linux" / "chrome"
    own.parent.mkdir(parents=True)
    own.touch(mode=0o755)
    assert browser.find_browser() == own
    (tmp_path / "chromium").touch(mode=0o755)
    assert browser.find_browser() == tmp_path / "chromium"
