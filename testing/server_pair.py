"""Two servers, one that prefills and one that decodes, asked as if they were one."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from testing.server import Port, Server

COPYING_ENGINE = ("-m", "testing.copying_engine")
ROOMS = 1 << 62


class ServerPair:
    """A Server for each of the modes ``prefill`` and ``decode``, as a context manager.

    model, arguments: of both. prefill, decode: further arguments of one. environment, program: as Server takes them.
    """

    def __init__(
        self,
        model: Path,
        *arguments: str,
        prefill: Sequence[str] = (),
        decode: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        program: tuple[str, ...] = COPYING_ENGINE,
    ):
        self._meeting = Port()
        meet = "--disaggregation-bootstrap-port", str(self._meeting.number)
        self.prefill, self.decode = (
            Server(
                model, *arguments, "--disaggregation-mode", mode, *meet, *own, environment=environment, program=program
            )
            for mode, own in (("prefill", prefill), ("decode", decode))
        )
        self.servers = self.prefill, self.decode
        self._stack = ExitStack()

    def __enter__(self) -> "ServerPair":
        with ThreadPoolExecutor(2) as pool:
            starts = [pool.submit(self._stack.enter_context, server) for server in self.servers]
        try:
            for start in starts:
                start.result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._meeting.release()

    def meeting(self) -> dict[str, Any]:
        """What a router adds to a request, so that both servers find each other for it."""
        room = {"bootstrap_room": random.randrange(ROOMS)}
        return {"bootstrap_host": "127.0.0.1", "bootstrap_port": self._meeting.number} | room

    def post(self, path: str, body: dict) -> Any:
        """The decoding server's answer to a request that both get."""
        return self.post_both(path, body)[1]

    def post_both(self, path: str, body: dict) -> list:
        """JSON answers of both. Raises urllib.error.URLError where one of them has none."""
        whole = body | self.meeting()
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(server.post, path, whole) for server in self.servers]
        return [answer.result() for answer in answers]

    def flush_cache(self) -> None:
        for server in self.servers:
            server.flush_cache()
