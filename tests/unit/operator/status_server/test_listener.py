"""Strangers who open many connections, or say nothing, cost little and keep nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import ClientSession, TCPConnector, web
from finetune_operator.status_server.certificates import renewed, server_context
from finetune_operator.status_server.listener import Listener

HOST = "status.system.svc"


@dataclass
class Bench:
    listener: Listener
    trusted: ssl.SSLContext
    refused: int = 0

    async def ask(self) -> str:
        async with (
            ClientSession(connector=TCPConnector(ssl=self.trusted)) as session,
            session.get(f"https://127.0.0.1:{self.listener.port}/", server_hostname=HOST) as response,
        ):
            return await response.text()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that never says a word, not even of TLS."""
        return await asyncio.open_connection("127.0.0.1", self.listener.port)

    async def until(self, live: int) -> None:
        async with asyncio.timeout(10):
            while len(self.listener._tasks) != live:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(**bounds: Any) -> AsyncIterator[Bench]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    keys = renewed(None, (HOST,), datetime.now(UTC))
    application = web.Application()
    application.add_routes([web.get("/", answer)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    assert runner.server is not None
    trusted = ssl.create_default_context(cadata=keys.ca.certificate.decode())
    bench = Bench(Listener(runner.server, 0, server_context(keys.server), **bounds), trusted)

    def count() -> None:
        bench.refused += 1

    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    bench.listener.refused = count
    bench.listener.start()
    try:
        yield bench
    finally:
        await bench.listener.stop()
        await runner.cleanup()
    gc.collect()
    assert not told, "an exception that nobody took"


async def test_a_request_is_answered_and_its_place_is_free_again() -> None:
    async with serving(most=1) as bench:
        for _ in range(3):
            assert await bench.ask() == "ok"
            await bench.until(live=0)


async def test_beyond_the_bound_of_an_address_connections_are_closed_at_once() -> None:
    async with serving(most_of_one=3) as bench:
        opened = [await bench.open() for _ in range(8)]
        await bench.until(live=3)
        for reader, _ in opened[3:]:
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert bench.refused == 5
        for _, writer in opened:
            writer.close()
        await bench.until(live=0)
        assert await bench.ask() == "ok"


async def test_beyond_the_bound_of_all_too() -> None:
    async with serving(most=2) as bench:
        opened = [await bench.open() for _ in range(5)]
        await bench.until(live=2)
        assert len(opened) == 5
        assert bench.refused == 3


async def test_whoever_says_nothing_is_cut_off_and_another_gets_its_place() -> None:
    async with serving(most=1, life_s=0.2) as bench:
        reader, _ = await bench.open()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await bench.until(live=0)
        assert await bench.ask() == "ok"


async def test_whoever_sends_half_a_request_over_tls_is_cut_off_too() -> None:
    async with serving(most=1, life_s=0.5) as bench:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.listener.port, ssl=bench.trusted, server_hostname=HOST)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 5)
        await bench.until(live=0)
        assert await bench.ask() == "ok"


async def test_a_port_that_is_taken_is_told() -> None:
    async with serving() as bench:
        second = Listener(bench.listener.protocol, bench.listener.port, bench.listener.context)
        with contextlib.suppress(OSError):
            second.start()
            await second.stop()
            raise AssertionError("two listen at one port")


async def test_both_families_are_served_where_there_are_both() -> None:
    async with serving() as bench:
        assert await bench.ask() == "ok"
        if socket.has_dualstack_ipv6():
            _, writer = await asyncio.open_connection("::1", bench.listener.port)
            writer.close()
