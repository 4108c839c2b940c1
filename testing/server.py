"""A running SGLang server: start, requests, log, counters, end."""

import http.client
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import torch

from testing import fork_server

# Deadlines for what a correct server always does, on a machine however busy: only a failure ever waits for their ends.
# Whatever ends before is noticed at once.
START_SECONDS = 1800
ANSWER_SECONDS = 900
# At rest SGLang publishes its gauges at least every 30 seconds. With a decode report at every step it also does so
# as soon as the last request has ended.
GAUGE_SECONDS = 300
STOP_SECONDS = 20  # to end by itself; it is killed afterwards
POLL_SECONDS = 0.2
PORTS = 20_000, 32_768
SERVER_ARGUMENTS = ("--enable-metrics", "--decode-log-interval", "1", "--log-level-http", "warning", "--sleep-on-idle")

# What ends this process, `timeout` for example, interrupts it as Ctrl-C does, so that its servers end with it.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def server_environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment for a server: compiled kernels whatever the tests use, and one thread.

    The tiny model is too small for more, and threads that wait for each other on a busy machine take minutes.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    patience = dict.fromkeys(
        ("SGLANG_HEALTH_CHECK_TIMEOUT", "SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT"), str(ANSWER_SECONDS)
    )
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | patience
    return environment | extra


def given_number(arguments: tuple[str, ...], option: str) -> int:
    """Value of an option among the server's arguments; 1 where it is not there."""
    return int(arguments[arguments.index(option) + 1]) if option in arguments else 1


def ranks_environment(ranks: int) -> dict[str, str]:
    """Variables that a server with several ranks needs on a small machine without a GPU."""
    if ranks == 1:
        return {}
    # SGLang binds each rank to cores and wants to be told which when there are more ranks than NUMA nodes.
    # Its embedding is compiled with a C++ compiler under tensor parallelism, which a test machine need not have.
    cores = "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(ranks))
    return {"SGLANG_CPU_OMP_THREADS_BIND": cores, "TORCH_COMPILE_DISABLE": "1"}


class Port:
    """A port that nothing listens on, and that no other process which asks this class gets before this one's end.

    It lies outside the range from which systems give ports to outgoing connections: one of those could be taken by
    anybody until a server binds it, which may be minutes later.
    """

    def __init__(self) -> None:
        while True:
            self.number = random.randrange(*PORTS)
            self._claim = socket.socket(socket.AF_UNIX)
            with suppress(OSError), socket.socket() as probe:
                # A name without a file, which is free again when the process ends that bound it.
                self._claim.bind(f"\0sala-sglang-port-{self.number}")
                probe.bind(("127.0.0.1", self.number))
                return
            self._claim.close()

    def release(self) -> None:
        self._claim.close()


class Server:
    """``python -m sglang.launch_server`` on a free port, as a context manager.

    model: directory of the checkpoint. arguments: further arguments of the server, after this class's own.
    environment: variables to add to this process's environment. program: what Python runs in place of SGLang.
    anew: every process imports everything itself, as on a user's machine, also where there is a fork server.
    Raises RuntimeError with the end of the log when the server ends or is not ready after START_SECONDS.
    """

    def __init__(
        self,
        model: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        program: tuple[str, ...] = ("-m", "sglang.launch_server"),
        anew: bool = False,
    ):
        self._ports = Port(), Port()
        self.port, ranks_meet_at = (port.number for port in self._ports)
        device = () if torch.cuda.is_available() else ("--device", "cpu")
        self.command = [*program, "--model-path", str(model), *device]
        options = "--tokenizer-worker-num", "--dp-size", "--tp-size", "--pp-size"
        fronts, replicas, *sizes = (given_number(arguments, name) for name in options)
        ranks = replicas * math.prod(sizes)
        meet = () if replicas > 1 else ("--nccl-port", str(ranks_meet_at))  # replicas find a port each
        self.command += ["--port", str(self.port), *meet, *SERVER_ARGUMENTS, *arguments]
        # Schedulers, the detokenizer, HTTP servers. Those of replicas are started by a process that divides requests.
        schedulers, self._nested = (1, ranks) if replicas > 1 else (ranks, 0)
        self._spares = schedulers + 1 + (fronts if fronts > 1 else 0)
        self._anew = anew
        self.environment = server_environment(ranks_environment(ranks) | (environment or {}))
        self.base_url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Server":
        self._log = tempfile.NamedTemporaryFile(prefix="sglang-server-", suffix=".log")
        log = self._log.fileno()
        self.process: fork_server.Process | subprocess.Popen
        if self._anew:
            self.process = fork_server.start_anew(self.command, self.environment, log, log)
        else:
            self.process = fork_server.start(self.command, self.environment, log, log, self._spares, self._nested)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    @property
    def log(self) -> str:
        """Everything the server has printed so far."""
        return Path(self._log.name).read_text(errors="replace")

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="none", max_retries=0, timeout=ANSWER_SECONDS)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def get(self, path: str) -> str:
        """Body of the answer to GET ``path``. Raises urllib.error.URLError where there is none."""
        with urllib.request.urlopen(f"{self.base_url}{path}", timeout=ANSWER_SECONDS) as answer:
            return answer.read().decode()

    def post(self, path: str, body: dict) -> Any:
        """JSON answer to POST ``path``, such as SGLang's own ``/generate``."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.base_url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)

    def get_server_info(self) -> dict:
        """Resolved options of the server and the state of its schedulers (``internal_states``)."""
        return json.loads(self.get("/server_info"))

    def flush_cache(self) -> None:
        """Drop the prefix cache, and with it every page and snapshot that no request holds."""
        self.get(f"/flush_cache?timeout={ANSWER_SECONDS}")

    def idle_counters(self) -> dict[str, float]:
        """SGLang's counters at rest; zero each, unless something is still queued, running or leaked.

        Waits for the requests to end, and then for the gauges to show it, which takes SGLang up to 30 seconds;
        what is not zero by then is returned as it is. Pages and states that the prefix cache keeps count as free.
        SGLang checks at rest that nothing is missing from its pools, and ends the server otherwise: see is_running.
        """
        deadline = time.monotonic() + GAUGE_SECONDS
        while True:
            counters = self._counters()
            if not any(counters.values()) or time.monotonic() > deadline:
                return counters
            time.sleep(POLL_SECONDS)

    def _counters(self) -> dict[str, float]:
        (load,) = json.loads(self.get("/v1/loads?include=core,queues"))["loads"]
        counters = {name: load[name] for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")}
        counters["num_grammar_reqs"] = load["queues"]["grammar"]
        gauges = self.gauges()
        for name in ("kv_used_tokens", "mamba_used_tokens"):
            counters[name] = gauges[name]
        return counters

    def gauges(self) -> dict[str, float]:
        """SGLang's metrics of one value each, by their names without the prefix ``sglang:``."""
        lines = re.finditer(r"^sglang:(\w+)(?:\{[^}]*\})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        return {match[1]: float(match[2]) for match in lines}

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.is_running():
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self._log_tail()}")
            try:
                self.get("/health")
                return
            except (OSError, http.client.HTTPException):
                time.sleep(POLL_SECONDS)
        raise RuntimeError(f"the server was not ready after {START_SECONDS} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log.splitlines()[-60:])

    def _stop(self) -> None:
        # SGLang looks every five seconds whether it is to end. Without a GPU there is nothing that it must release.
        if torch.cuda.is_available() and self.is_running():
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
        for port in self._ports:
            port.release()
