"""What this process makes for itself goes with the release that it belongs to: Helm knows nothing of it, the garbage collector does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from finetune_operator.core.names import Object, owner_reference
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import Forbidden
from finetune_operator.kube.resources import SECRET

Owners = Callable[[], Awaitable[list[Object]]]
"""Owner references of what is made now; raises ApiError."""


async def owned_by_nobody() -> list[Object]:
    return []


def owned_by_secret(client: Client, namespace: str, name: str) -> Owners:
    """The chart's own Secret, the one object of the release that may be read; nobody where it is not there or may not be. Looked up
    each time, as one that was deleted and made again has another uid, and what names the old one as its owner is deleted."""

    async def owners() -> list[Object]:
        try:
            secret = await client.find(SECRET, namespace, name)
        except Forbidden:
            return []
        return [owner_reference({**secret, "apiVersion": SECRET.api_version, "kind": SECRET.kind}, controller=False)] if secret else []

    return owners
