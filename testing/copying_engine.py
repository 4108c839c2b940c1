"""``sglang.launch_server`` with a transfer engine of our own under SGLang's mooncake backend: memory copied over TCP.

Mooncake's own engine needs libraries that a test machine does not have. Everything above the engine is SGLang's: who
sends which bytes where, and when. Takes the arguments of ``sglang.launch_server``. SGLang's worker processes import
this file again as their main module, and with it the engine; whoever imports only a name from it replaces nothing.
"""

import ctypes
import os
import runpy
import socket
import struct
import sys
import threading
import time
import types

# Seconds between the call of a transfer and its first read: what has to stay as it was meanwhile, and does not, shows.
DELAY_VARIABLE = "COPYING_ENGINE_DELAY"
DELAY_SECONDS = float(os.environ.get(DELAY_VARIABLE, "0"))
FAILED = -1
_LENGTH = struct.Struct("!Q")


class TransferEngine:
    """What SGLang asks of ``mooncake.engine.TransferEngine``: 0 is success, and below it failure."""

    def __init__(self) -> None:
        self._listener: socket.socket
        self._peers: dict[tuple[str, threading.Thread], socket.socket] = {}
        self._regions: dict[int, int] = {}  # address -> bytes

    def initialize(self, hostname: str, metadata: str, protocol: str, device: str) -> int:
        self._listener = socket.create_server((hostname, 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return 0

    def get_rpc_port(self) -> int:
        return self._listener.getsockname()[1]

    def batch_register_memory(self, addresses: list[int], lengths: list[int]) -> int:
        self._regions.update(zip(addresses, lengths, strict=True))
        return 0

    def batch_unregister_memory(self, addresses: list[int]) -> int:
        for address in addresses:
            del self._regions[address]
        return 0

    def transfer_sync_write(self, session: str, source: int, target: int, length: int) -> int:
        return self.batch_transfer_sync_write(session, [source], [target], [length])

    def batch_transfer_sync_write(
        self, session: str, sources: list[int], targets: list[int], lengths: list[int]
    ) -> int:
        """Copy ``lengths`` bytes each to the memory of the engine that listens at ``session``, host:port."""
        if not all(map(self._is_registered, sources, lengths)):
            return FAILED
        time.sleep(DELAY_SECONDS)
        try:
            peer = self._connection(session)
            peer.sendall(_LENGTH.pack(len(targets)))
            for source, target, length in zip(sources, targets, lengths, strict=True):
                peer.sendall(_LENGTH.pack(target) + _LENGTH.pack(length) + ctypes.string_at(source, length))
            return 0 if _receive(peer, 1) == b"\1" else FAILED
        except OSError:
            self._peers.pop((session, threading.current_thread()), None)
            return FAILED

    def send_probe(self, session: str) -> int:
        return self.batch_transfer_sync_write(session, [], [], [])

    def _connection(self, session: str) -> socket.socket:
        """One for every thread, so that answers come to who asked."""
        key = session, threading.current_thread()
        if key not in self._peers:
            host, _, port = session.rpartition(":")
            self._peers[key] = socket.create_connection((host, int(port)))
        return self._peers[key]

    def _accept(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        try:
            while True:
                whole = True
                for _ in range(*_LENGTH.unpack(_receive(peer, _LENGTH.size))):
                    (target,), (length,) = (_LENGTH.unpack(_receive(peer, _LENGTH.size)) for _ in range(2))
                    content = _receive(peer, length)
                    if whole := whole and self._is_registered(target, length):
                        ctypes.memmove(target, content, length)
                peer.sendall(b"\1" if whole else b"\0")
        except OSError:
            peer.close()

    def _is_registered(self, address: int, length: int) -> bool:
        return any(begin <= address and address + length <= begin + size for begin, size in self._regions.items())


def _receive(peer: socket.socket, length: int) -> bytes:
    content = bytearray(length)
    view = memoryview(content)
    while view:
        received = peer.recv_into(view)
        if not received:
            raise ConnectionError("the other engine has ended")
        view = view[received:]
    return bytes(content)


if __name__ in ("__main__", "__mp_main__"):
    package, module = types.ModuleType("mooncake"), types.ModuleType("mooncake.engine")
    module.TransferEngine = TransferEngine  # type: ignore[attr-defined]
    sys.modules |= {"mooncake": package, "mooncake.engine": module}

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
