"""The harness itself: it leaves no server behind, and what comes from the fork server is like what is started anew."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from testing import fork_server
from testing.server import ANSWER_SECONDS, POLL_SECONDS, START_SECONDS, Port

ROOT = Path(__file__).parents[2]
# A server that tells its number and never gets ready: what is told to end waits for it.
SERVER = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); time.sleep(86_400)"
WAITS = f"""
import sys
from pathlib import Path
from testing.server import Server

with Server(Path("nowhere"), program=("-c", {SERVER!r}, sys.argv[1]), anew=sys.argv[2] == "anew"):
    pass
"""


def started(path: Path, process: psutil.Popen) -> psutil.Process:
    """The server that tells its number in the file."""
    while not (path.exists() and path.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(POLL_SECONDS)
    return psutil.Process(int(path.read_text()))


@pytest.mark.parametrize(
    ("how", "end"),
    [("anew", signal.SIGTERM), ("forked", signal.SIGTERM), ("forked", signal.SIGKILL)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_server_ends_with_the_process_that_is_told_to_end(tmp_path, how, end):
    if fork_server.ADDRESS not in os.environ and how == "forked":
        pytest.skip("there is no fork server")
    process = psutil.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path / "number"), how], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    server = started(tmp_path / "number", process)
    process.send_signal(end)
    _, alive = psutil.wait_procs([process, server], timeout=ANSWER_SECONDS)
    for survivor in alive:
        survivor.kill()
    assert not alive


def test_ports_are_not_given_twice():
    ports = [Port() for _ in range(200)]
    assert len({port.number for port in ports}) == 200
    for port in ports:
        port.release()


WORKER = """
import multiprocessing, os, sys

os.environ["CHANGED"] = "yes"
with multiprocessing.get_context("spawn").Pool(1) as workers:
    assert workers.apply(os.getppid) == os.getpid()
    assert workers.apply(os.getenv, ["CHANGED"]) == "yes"
    loaded = "[name in __import__('sys').modules for name in ('torch', 'sglang', 'sala_sglang')]"
    print(workers.apply(eval, [loaded]), eval(loaded), sys.argv[1:], os.environ["GIVEN"])
sys.exit(3)
"""


def test_a_forked_process_and_its_workers():
    """Libraries are there and nothing else; a worker is a child, with the environment that its parent has by then."""
    environment = {**os.environ, "GIVEN": "here"}
    done = fork_server.run_to_end(["-c", WORKER, "a", "b"], environment, START_SECONDS, spares=2)
    forked = fork_server.ADDRESS in os.environ
    assert (done.returncode, done.stdout) == (3, f"{[forked, False, False]} {[forked, False, False]} ['a', 'b'] here\n")


def test_failures_of_a_forked_process_are_seen():
    done = fork_server.run_to_end(["-m", "testing.no_such_module"], dict(os.environ), START_SECONDS)
    assert done.returncode == 1 and "no_such_module" in done.stderr
