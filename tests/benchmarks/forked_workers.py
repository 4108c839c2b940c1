"""In place of ``subprocess`` in a benchmark: the processes of its engines are forks with their libraries imported."""

import os
import subprocess
import sys

from testing import fork_server
from testing.server import START_SECONDS

PIPE = subprocess.PIPE
STARTS = 2  # processes that an engine starts: scheduler and detokenizer


class Popen:
    """A Python process whose standard error is read."""

    def __init__(self, command: list[str], env: dict[str, str], **text: object):
        environment = {name: value for name, value in env.items() if name != "TRITON_INTERPRET"}
        reads, writes = os.pipe()
        self._process = fork_server.start(command[1:], environment, 1, writes, STARTS)
        os.close(writes)
        self.stderr = os.fdopen(reads, errors="replace")
        self.returncode: int | None = None

    def __enter__(self) -> "Popen":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stderr.close()
        self.returncode = self._process.wait(START_SECONDS)


def run(command: list[str], env: dict[str, str]) -> Popen:
    """The process after its end; what it wrote to its standard error is shown with a failure."""
    with Popen(command, env) as process:
        sys.stderr.write(process.stderr.read())
    return process
