"""The harness itself: it leaves no server behind."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

from testing.server import ANSWER_SECONDS, POLL_SECONDS

ROOT = Path(__file__).parents[2]
# A server that never gets ready: what is told to end waits for it.
SERVER = "import time; time.sleep(86_400)"
WAITS = f"""
from pathlib import Path
from testing.server import Server

with Server(Path("nowhere"), program=("-c", {SERVER!r})):
    pass
"""


def servers_of(process: psutil.Process) -> list[psutil.Process]:
    """Importing libraries may start other processes for a moment."""
    return [child for child in process.children() if SERVER in (child.as_dict(["cmdline"])["cmdline"] or ())]


def test_a_server_ends_with_the_process_that_is_told_to_end():
    process = psutil.Popen([sys.executable, "-c", WAITS], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (servers := servers_of(process)):
        assert process.poll() is None
        time.sleep(POLL_SECONDS)
    process.terminate()
    _, alive = psutil.wait_procs([process, *servers], timeout=ANSWER_SECONDS)
    for survivor in alive:
        survivor.kill()
    assert len(servers) == 1 and not alive
