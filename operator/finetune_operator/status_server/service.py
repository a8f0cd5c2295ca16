"""The progress endpoint of the leader, from its keys to the address that pods are sent to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ssl import SSLContext
from urllib.parse import urlsplit

from aiohttp import web

from finetune_operator.core.settings import Settings
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reports import Reports
from finetune_operator.engine.store import Store
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import ApiError
from finetune_operator.kube.release import Owners
from finetune_operator.status_server.certificates import Keys, load_into, server_context
from finetune_operator.status_server.endpoint import make_endpoint_slice
from finetune_operator.status_server.keystore import KeyStore
from finetune_operator.status_server.listener import Listener
from finetune_operator.status_server.server import StatusServer
from finetune_operator.status_server.tokens import Tokens

log = logging.getLogger(__name__)

_START_S = 10.0
_RETRY_S = 15.0


@dataclass(frozen=True)
class Listening:
    """Where this replica listens, and the names of the chart's Service and Secret."""

    port: int
    pod_ip: str
    service: str
    secret: str


@dataclass
class StatusService:
    client: Client
    settings: Settings
    listening: Listening
    store: Store
    reports: Reports
    metrics: Metrics
    leading: Callable[[], bool]
    owners: Owners
    """Of the EndpointSlice: without any it would outlive the release."""
    ca: str = ""
    """CA certificate (PEM) by which pods know the endpoint; empty until it was read."""
    _up: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serves in the background. Entered once it is up, or after a while without it: progress is not worth standing still for."""
        if not self.settings.status_url:
            yield
            return
        task = asyncio.create_task(self._run(), name="status-server")
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._up.wait(), _START_S)
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._serve()
            except (ApiError, OSError, ValueError) as error:
                log.warning("progress endpoint is not up: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _serve(self) -> None:
        host = urlsplit(self.settings.status_url).hostname or ""
        keystore = KeyStore(self.client, self.settings.namespace, self.listening.secret, (host,))
        keys = await keystore.ensure()
        context = server_context(keys.server)
        tokens = Tokens(self.client, self.settings.status_audience)
        server = StatusServer(tokens, self.store, self.reports, self.metrics, self.leading)
        runner = web.AppRunner(server.application(), access_log=None)
        await runner.setup()
        assert runner.server is not None
        listener = Listener(runner.server, self.listening.port, context, self.metrics.progress_refused.inc)
        listener.start()
        try:
            await self._announce()
            self._show(keys)
            while True:
                await asyncio.sleep(self.settings.resync_s)
                await self._refresh(keystore, context)
        finally:
            await listener.stop()
            await runner.cleanup()

    async def _refresh(self, keystore: KeyStore, context: SSLContext) -> None:
        """Keys are renewed when they are due; what was deleted by hand, the address or the keys, is there again."""
        try:
            keys = await keystore.ensure()
            await self._announce()
        except ApiError as error:
            log.warning("progress endpoint could not be refreshed: %s", error)
            return
        load_into(context, keys.server)
        self._show(keys)

    async def _announce(self) -> None:
        where = self.listening
        if where.pod_ip:
            owners = await self.owners()
            await self.client.apply(make_endpoint_slice(self.settings.namespace, where.service, where.pod_ip, where.port, owners))

    def _show(self, keys: Keys) -> None:
        self.ca = keys.ca.certificate.decode()
        self._up.set()
