"""Find a Chromium for the browser tests, or install one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from cme295lab.course.places import CourseError

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOW_TO_GET_ONE = "run `make setup-browser`"
LAUNCH_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


def find_browser() -> Path | None:
    """The Chromium to drive: one on the PATH, else the one that Playwright installed.

    Returns:
        Its executable, or None if there is none.
    """
    for command in COMMANDS:
        if found := shutil.which(command):
            return Path(found)
    caches = {"darwin": "Library/Caches", "win32": "AppData/Local"}
    default = Path.home() / caches.get(sys.platform, ".cache") / "ms-playwright"
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or default)
    names = {"chrome", "Chromium", "chrome.exe"}
    installed = sorted(path for path in cache.glob("chromium-*/*/**/*") if path.name in names and path.is_file())
    return installed[-1] if installed else None


def install_browser() -> Path:
    """Install a Chromium where there is none: Debian's package where there is apt, else Playwright's own.

    Returns:
        Its executable.

    Raises:
        CourseError: if neither could be installed, with what was tried.
    """
    if found := find_browser():
        return found
    attempts = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get"):
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        update, install = [*sudo, "apt-get", "update"], [*sudo, "apt-get", "install", "-y", "chromium"]
        attempts.insert(0, ["sh", "-c", f"{' '.join(update)} && {' '.join(install)}"])
    for command in attempts:
        finished = subprocess.run(command, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        if finished.returncode == 0 and (found := find_browser()):
            return found
    tried = "; ".join(" ".join(command) for command in attempts)
    raise CourseError(f"could not install Chromium (tried: {tried}): install chromium or google-chrome yourself")
