"""The TLS connections of pods: so many at a time, so many of one address, and none for long."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

_HANDSHAKE_S = 5.0
_LOOK_S = 0.1
_BACKLOG = 128


@dataclass
class Listener:
    """Accepts connections and hands them to `protocol`. What is beyond the bounds is closed before it costs a TLS state of 280 KiB.

    A pod reports by a connection of its own that lasts for milliseconds, so a connection that is older than `life_s` is nobody's.
    """

    protocol: Callable[[], asyncio.BaseProtocol]
    port: int
    """0: any free one; the one it listens at once it was started."""
    context: ssl.SSLContext
    refused: Callable[[], None] = field(default=lambda: None)
    most: int = 128
    most_of_one: int = 64
    """From one address: behind a node's there may be many pods."""
    life_s: float = 20.0
    _peers: Counter[str] = field(default_factory=Counter)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def start(self) -> None:
        """Listens from now on. Raises OSError where the port is taken."""
        self._socket = _listening(self.port)
        self.port = self._socket.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept_all(), name="status-listener")

    async def stop(self) -> None:
        """Cuts every connection."""
        for task in (self._accepting, *self._tasks):
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        self._socket.close()

    async def _accept_all(self) -> None:
        while True:
            try:
                connection, address = await asyncio.get_running_loop().sock_accept(self._socket)
            except OSError as error:  # the peer is gone again, or no file descriptor is left
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(1.0)
                continue
            self._admit(connection, str(address[0]))

    def _admit(self, connection: socket.socket, peer: str) -> None:
        if len(self._tasks) >= self.most or self._peers[peer] >= self.most_of_one:
            connection.close()
            self.refused()
            return
        self._peers[peer] += 1
        task = asyncio.create_task(self._attend(connection, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, connection: socket.socket, peer: str) -> None:
        try:
            async with asyncio.timeout(self.life_s):
                await self._serve(connection)
        except OSError:  # its own affair: TLS that failed, a reset, a life that was too long
            pass
        finally:
            connection.close()
            self._peers -= Counter([peer])

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(
            self.protocol, connection, ssl=self.context, ssl_handshake_timeout=_HANDSHAKE_S, ssl_shutdown_timeout=_HANDSHAKE_S
        )
        try:
            while not transport.is_closing():  # noqa: ASYNC110 - asyncio tells nobody but the protocol
                await asyncio.sleep(_LOOK_S)
        finally:
            with suppress(AttributeError):  # asyncio's, of a TLS connection that was lost a moment before
                transport.abort()


def _listening(port: int) -> socket.socket:
    """At every address, of both families where the machine has both."""
    if socket.has_dualstack_ipv6():
        try:
            made = socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
        except OSError:  # IPv6 is switched off, or the port is taken: then so it is below
            made = socket.create_server(("", port), backlog=_BACKLOG)
    else:
        made = socket.create_server(("", port), backlog=_BACKLOG)
    made.setblocking(False)
    return made
