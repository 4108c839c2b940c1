"""Python processes that begin with their libraries imported: forks of a process that has imported them once.

Importing SGLang takes a process 17 seconds, 13 of them for other libraries, and a server is three processes or more.
Here ``python -m testing.fork_server`` imports those libraries and forks itself for whoever asks; ``start`` asks. SGLang
and sala-sglang are not among them: every process imports these anew, after its environment is set, and registers the
plugin as it always does.

What such a process starts with multiprocessing's method "spawn", as SGLang's launcher starts its workers, is a fork as
well: its *spares* wait from its beginning, before it has done anything, and are its children as SGLang expects.
"""

import fcntl
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from tempfile import TemporaryFile

ROOT = Path(__file__).parents[1]
ADDRESS = "SALA_FORK_SERVER"  # variable with the abstract address of the fork server, where there is one
MESSAGE_BYTES = 1 << 20
# What SGLang 0.5.23 imports and takes 30 ms or more; 13 of its 17 seconds altogether.
LIBRARIES = (
    "torch._inductor.compile_fx",
    "torchvision",
    "torchaudio",
    "cutlass.cute",
    "flashinfer",
    "quack",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.modeling_layers",
    "timm",
    "scipy.stats",
    "scipy.signal",
    "openai.types.responses",
    "openai.types.realtime",
    "aiohttp",
    "fastapi",
    "uvloop",
    "xgrammar",
    "compressed_tensors",
    "gguf",
    "IPython",
)


class Process:
    """A process that the fork server has started; as far as it goes, like subprocess.Popen."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self.returncode: int | None = None
        self.pid = self._receive()

    def poll(self) -> int | None:
        return self._end(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired after ``timeout`` seconds."""
        code = self._end(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _end(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = self._receive()
            self._connection.close()
        return self.returncode

    def _receive(self) -> int:
        message = self._connection.recv(MESSAGE_BYTES)
        if not message:
            raise RuntimeError("the fork server has ended")
        return json.loads(message)


class ForkServer:
    """The process that forks, as a context manager: ``start`` uses it in this process and in those that it starts.

    environment: what libraries may read while they are imported.
    """

    def __init__(self, environment: dict[str, str]):
        self._environment = environment

    def __enter__(self) -> "ForkServer":
        os.environ[ADDRESS] = f"sala-fork-server-{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind("\0" + os.environ[ADDRESS])
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "testing.fork_server", str(listener.fileno())],
                env=self._environment,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the tests, which end what they have started
            )
        return self

    def __exit__(self, *exception: object) -> None:
        del os.environ[ADDRESS]
        self._process.communicate()  # closes its standard input, which ends it


def start(
    arguments: list[str], environment: dict[str, str], stdout: int, stderr: int, spares: int = 0, nested: int = 0
) -> Process | subprocess.Popen:
    """Python with these arguments, in the root of the repository and a session of its own.

    It comes from the fork server where there is one, and ends then at the latest when the caller does. stdout, stderr:
    file descriptors. spares: processes that it is going to start itself. nested: those that one of these starts.
    """
    if ADDRESS not in os.environ:
        return start_anew(arguments, environment, stdout, stderr)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect("\0" + os.environ[ADDRESS])
    request = {"arguments": arguments, "environment": environment, "spares": spares, "nested": nested}
    socket.send_fds(connection, [json.dumps(request).encode()], [stdout, stderr])
    return Process(connection)


def start_anew(arguments: list[str], environment: dict[str, str], stdout: int, stderr: int) -> subprocess.Popen:
    """The same without the fork server: a process that imports everything itself, as on a user's machine."""
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=stdout, stderr=stderr, start_new_session=True)


def run_to_end(
    arguments: list[str], environment: dict[str, str], timeout: float | None, spares: int = 0
) -> subprocess.CompletedProcess:
    """As subprocess.run with captured text, from the fork server where there is one."""
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        code = start(arguments, environment, stdout.fileno(), stderr.fileno(), spares).wait(timeout)
        for stream in (stdout, stderr):
            stream.seek(0)
        return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())


def serve(listener: socket.socket) -> list[str]:
    """Fork for every connection until the standard input ends. Returns in the forks: the arguments to run."""
    imported = False
    while True:
        ready = select.select([listener.fileno(), 0], [], [])[0]
        if 0 in ready:
            sys.exit()
        connection = listener.accept()[0]
        if not imported:
            import_libraries()
            imported = True
        if os.fork() == 0:
            listener.close()
            return become(connection)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def import_libraries() -> None:
    import setproctitle

    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    setproctitle.getproctitle()  # finds where titles are written, which it cannot do once the environment has changed
    # Closes the files that libraries log to, until they need them: a process may get another file under their numbers.
    logging.shutdown()
    gc.collect()
    gc.freeze()  # a collection would write to the pages that all processes share


def become(connection: socket.socket) -> list[str]:
    """Fork what the other side of the connection asks for, and return in it: the arguments to run.

    The process itself tells its number, and this one, its parent, how it ended.
    """
    message, streams, *_ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
    request = json.loads(message)
    process = os.fork()
    if process:
        watch(process, connection)
    os.setsid()
    connection.send(json.dumps(os.getpid()).encode())
    connection.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, number in zip((nothing, *streams), (0, 1, 2), strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    return provide_spares(request["spares"], request["nested"]) or request["arguments"]


def watch(process: int, connection: socket.socket) -> None:
    """Wait for the end of a child and tell its code. A child that nobody waits for any more is killed."""
    ended = os.pidfd_open(process)
    if ended not in select.select([ended, connection.fileno()], [], [])[0]:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(OSError):
        connection.send(json.dumps(code).encode())
    os._exit(0)


def provide_spares(count: int, nested: int = 0) -> list[str] | None:
    """Fork children, and let ``multiprocessing`` give them the work for which it would start Python anew.

    nested: children that each of them has in turn.
    Returns None, and in a child that has got work the arguments to run.
    """
    spares: list[tuple[int, socket.socket]] = []
    spawn = util.spawnv_passfds
    for _ in range(count):
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = os.fork()
        if process == 0:
            for other in (here, *(connection for _, connection in spares)):
                other.close()
            return provide_spares(nested) or wait_for_work(there)
        there.close()
        spares.append((process, here))

    def give(path: bytes, args: Sequence, passfds: Sequence[int]) -> int:
        if not spares or "--multiprocessing-fork" not in args:
            return spawn(path, args, passfds)
        process, connection = spares.pop()
        work = {"arguments": args[1:], "environment": dict(os.environ), "numbers": list(passfds)}
        with connection:
            socket.send_fds(connection, [json.dumps(work).encode()], list(passfds))
        return process

    util.spawnv_passfds = give
    return None


def wait_for_work(connection: socket.socket) -> list[str]:
    """The arguments to run, with the given files open under the numbers that they have in the parent."""
    message, files, *_ = socket.recv_fds(connection, MESSAGE_BYTES, 64)
    if not message:
        os._exit(0)
    connection.close()
    work = json.loads(message)
    # First out of the way of the numbers that they are to have.
    high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 256) for file in files]
    for file in files:
        os.close(file)
    for file, number in zip(high, work["numbers"], strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(work["environment"])
    return work["arguments"]


def run(arguments: list[str]) -> None:
    """Do what Python does with these arguments, ``-m MODULE …`` or ``-c CODE …``; options before them are left out."""
    start = next(index for index, argument in enumerate(arguments) if argument in ("-m", "-c"))
    how, what, *rest = arguments[start:]
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    sys.argv = [how, *rest]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
