"""How JupyterLab is started on a course: for `cme295lab lab`, and for the browser tests, in the same way.

The folder `jupyter_config` switches off the question about news, and nbgrader's panel for editing exercises in place
(they are written as text). It is added to the user's own settings, which stay as they are.
"""

import os
import sys
from pathlib import Path

CONFIG_FOLDER = Path(__file__).with_name("jupyter_config")


def lab_command(root: Path, port: int, start: str = "/lab") -> list[str]:
    """The command that serves a folder with JupyterLab.

    Args:
        root: the folder.
        port: port to serve on; if it is taken, JupyterLab takes the next free one.
        start: path of the first page.

    Returns:
        Program and arguments; it serves on this machine only, with a token.
    """
    command = [
        sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", f"--ServerApp.port={port}",
        f"--LabApp.default_url={start}",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # in containers
    return command


def lab_environment() -> dict[str, str]:
    """The environment to start it in.

    Returns:
        This process's environment with the course's settings, and with the programs of this Python's environment on the
        PATH (nbgrader looks for some of its own there).
    """
    config = [str(CONFIG_FOLDER), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(config), "PATH": os.pathsep.join(path)}
