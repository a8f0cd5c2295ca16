"""The one Secret of the operator: the endpoint's CA and server key. Only the leader fills and renews it."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_operator.core.names import Object
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import Conflict
from finetune_operator.kube.resources import SECRET
from finetune_operator.status_server.certificates import KeyPair, Keys, renewed

log = logging.getLogger(__name__)


@dataclass
class KeyStore:
    """`name` is a Secret that the chart ships without data; it is read and updated, never created or listed."""

    client: Client
    namespace: str
    name: str
    hosts: tuple[str, ...]
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    async def ensure(self) -> Keys:
        """Keys that hold on for a while, as they stand in the Secret. Raises ApiError."""
        while True:
            secret = await self.client.get(SECRET, self.namespace, self.name)
            found = _keys(secret.get("data") or {})
            keys = renewed(found, self.hosts, self.now())
            if keys == found:
                return keys
            try:
                await self.client.replace({**secret, "apiVersion": SECRET.api_version, "kind": SECRET.kind, "data": _data(keys)})
            except Conflict:
                continue
            log.info("status certificate renewed", extra={"new_ca": found is None or found.ca != keys.ca})
            return keys


def _keys(data: Object) -> Keys | None:
    try:
        parts = [base64.b64decode(data[name]) for name in ("ca.crt", "ca.key", "tls.crt", "tls.key")]
    except (KeyError, binascii.Error):
        return None
    return Keys(KeyPair(parts[0], parts[1]), KeyPair(parts[2], parts[3]))


def _data(keys: Keys) -> dict[str, str]:
    parts = {"ca.crt": keys.ca.certificate, "ca.key": keys.ca.key, "tls.crt": keys.server.certificate, "tls.key": keys.server.key}
    return {name: base64.b64encode(part).decode() for name, part in parts.items()}
