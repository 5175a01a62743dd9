"""The command as a user runs it: a process of its own, in a folder, with a home of its own."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

NORMASCOPE = (sys.executable, "-c", "from flows.cli import main; main()")


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of the command's local cluster, which are forked from one of its children."""
    return [
        worker
        for server in psutil.Process(process.pid).children()
        if "multiprocessing.forkserver" in " ".join(server.cmdline())
        for worker in server.children()
    ]


class Workplace:
    """A folder, and in it the home with the history and the server of the commands that are called there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment["NORMASCOPE_HOME"] = str(folder / "home")

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run to the end; nothing is checked."""
        return subprocess.run([*NORMASCOPE, *arguments], env=self.environment, cwd=self.folder, capture_output=True, text=True)
