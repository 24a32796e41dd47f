"""Drive JupyterLab in a real Chromium, as a student would.

`LabServer` serves a folder; `LabNotebook` is a notebook opened in it. Elements are found through Playwright's `page`.
The toolbar calls a kernel idle before it is connected, so readiness is asked of the server, not read off the page.
"""

import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from cme295lab.course.lab import lab_command, lab_environment

START_TIMEOUT_S = 60
OPEN_TIMEOUT_MS = 90_000
MAX_PICTURE_HEIGHT = 16_000
# JupyterLab draws only the cells in view unless told otherwise; tests look at all of them.
_SETTINGS = {"@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"}}
# A traceback and a message on stderr carry the same MIME type on the page.
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^\s*\w*(Error|Exception|Interrupt)\b", re.MULTILINE)
_RUN_STATE = """() => {
  const cells = [...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell')];
  return cells.map(cell => cell.querySelector('.jp-InputPrompt')?.textContent ?? '');
}"""


class LabServer:
    """JupyterLab serving one folder, on a port of its own, without a password, on this machine only."""

    def __init__(self, root: Path, log: Path, port: int) -> None:
        self.root, self.log, self.url = root, log, f"http://127.0.0.1:{port}"
        command = [
            *lab_command(root, port), "--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0",
            "--IdentityProvider.token=", "--PasswordIdentityProvider.hashed_password=",
            "--ServerApp.disable_check_xsrf=True",
        ]  # fmt: skip
        settings = log.parent / "settings"
        for name, values in _SETTINGS.items():
            (settings / name).parent.mkdir(parents=True, exist_ok=True)
            (settings / name).write_text(json.dumps(values))
        environment = {**lab_environment(), "JUPYTERLAB_SETTINGS_DIR": str(settings)}
        with log.open("w") as stream:
            self._process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=root, env=environment)
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.ask("api/status")
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()}") from error
                time.sleep(0.1)

    def ask(self, path: str) -> Any:
        """Ask the server's REST interface."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=5) as answer:
            return json.load(answer)

    def delete(self, path: str) -> None:
        """Delete a resource through the REST interface."""
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{path}", method="DELETE"), timeout=10).close()

    def stop(self) -> None:
        """Stop the server and its kernels."""
        self._process.terminate()
        self._process.wait(20)


class LabNotebook:
    """A notebook opened in JupyterLab, its kernel ready."""

    def __init__(self, server: LabServer, browser: Browser, path: str) -> None:
        self.server = server
        self.page: Page = browser.new_page(viewport={"width": 1300, "height": 2000})
        self.console_errors: list[str] = []
        self.page.on("console", lambda message: self._note_console(message.type, message.text))
        self.page.goto(f"{server.url}/lab/tree/{path}?reset", wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Notebook", timeout=OPEN_TIMEOUT_MS)
        self._session_path = path
        self._wait_for_kernel()

    def _note_console(self, kind: str, text: str) -> None:
        if kind == "error":
            self.console_errors.append(text)

    def _session(self) -> Any:
        sessions = [s for s in self.server.ask("api/sessions") if s["path"] == self._session_path]
        return sessions[0] if sessions else None

    def _wait_for_kernel(self) -> None:
        deadline = time.monotonic() + OPEN_TIMEOUT_MS / 1000
        while True:
            session = self._session()
            if session and session["kernel"]["execution_state"] == "idle" and session["kernel"]["connections"] >= 1:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"no idle kernel for {self._session_path}: {session}")
            self.page.wait_for_timeout(200)

    def run_all(self, timeout_s: float = 300) -> None:
        """Run all cells and wait until none is waiting or running.

        Args:
            timeout_s: how long to wait.
        """
        self.page.click(".jp-NotebookPanel .jp-Notebook .jp-Cell >> nth=0")
        self.page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        self.page.click("li.lm-Menu-item[data-command='runmenu:run-all']")
        self.page.wait_for_timeout(500)
        deadline = time.monotonic() + timeout_s
        while "[*]:" in self.page.evaluate(_RUN_STATE) or self._session()["kernel"]["execution_state"] != "idle":
            if time.monotonic() > deadline:
                raise TimeoutError(f"cells still running after {timeout_s:.0f} s: {self.page.evaluate(_RUN_STATE)}")
            self.page.wait_for_timeout(200)
        self.page.wait_for_timeout(300)

    def num_executed(self) -> int:
        """Number of code cells with an execution count."""
        prompts = self.page.evaluate(_RUN_STATE)
        return sum(prompt.strip("[]: ").isdigit() for prompt in prompts)

    def error_outputs(self) -> list[str]:
        """Text of every traceback on the page, and of every widget that could not be drawn."""
        stderr = self.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")
        undrawn = self.page.get_by_text("Error displaying widget")
        tracebacks = [text.strip() for text in stderr.all_inner_texts() if _TRACEBACK.search(text)]
        return tracebacks + undrawn.all_inner_texts()

    def screenshot(self, path: Path) -> Path:
        """Save a picture of the whole notebook.

        Args:
            path: a PNG file.

        Returns:
            The file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        height = self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
        self.page.set_viewport_size({"width": 1300, "height": min(height + 200, MAX_PICTURE_HEIGHT)})
        self.page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=path)
        return path

    def close(self) -> None:
        """Close the page and end its kernel."""
        session = self._session()
        self.page.close()
        if session:
            self.server.delete(f"api/sessions/{session['id']}")
