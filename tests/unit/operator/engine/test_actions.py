"""Applying to what is there: lists that are put in place first, and strangers that may be gone."""

from __future__ import annotations

import asyncio
from typing import Any

from finetune_operator.core.names import Object
from finetune_operator.core.plan import ActionProblem, Apply
from finetune_operator.engine.actions import Actor
from finetune_operator.engine.store import Store

LABELS = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune-operator.io/model": "bot"}
OWNER = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "ModelVersion", "name": "bot-v1", "uid": "uid-1"}


def service(port: int, **metadata: Any) -> Object:
    own = {"name": "bot-v1", "namespace": "team", "labels": LABELS, "ownerReferences": [OWNER]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": own | metadata,
        "spec": {"ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}]},
    }


class Server:
    """An API server with at most one object, which notes the writes that it is asked for."""

    def __init__(self, there: Object | None) -> None:
        self.there = there
        self.writes: list[tuple[str, Object]] = []

    async def find(self, resource: Any, namespace: str, name: str) -> Object | None:
        return self.there

    async def merge_patch(self, resource: Any, namespace: str, name: str, patch: Object, subresource: str = "") -> Object:
        self.writes.append(("patch", patch))
        assert self.there is not None
        version = str(int(self.there["metadata"]["resourceVersion"]) + 1)
        self.there = {**self.there, "metadata": {**self.there["metadata"], "resourceVersion": version}, "spec": patch["spec"]}
        return self.there

    async def apply(self, body: Object, force: bool) -> Object:
        self.writes.append(("apply", body))
        stored = {key: value for key, value in body["metadata"].items() if key not in ("uid", "resourceVersion")}
        self.there = {**body, "metadata": {**stored, "uid": "uid-s", "resourceVersion": "9"}}
        return self.there


def do(action: Apply, seen: Object, there: Object | None) -> tuple[Any, Server]:
    store, server = Store(), Server(there)
    store.put(seen)
    client: Any = server
    return asyncio.run(Actor(client, store, may_write=lambda: True, mark=lambda key: None).do(action)), server


def test_a_list_that_is_replaced_is_put_in_place_before_the_apply() -> None:
    """Of ports server-side apply knows number and protocol: it would add ours beside theirs, under the same name, which is refused."""
    live = service(8080, uid="uid-s", resourceVersion="5")
    done, server = do(Apply(service(80), replaces=("ports",)), live, live)
    assert done is True
    assert [verb for verb, _ in server.writes] == ["patch", "apply"]
    assert server.writes[0][1] == {"metadata": {"uid": "uid-s", "resourceVersion": "5"}, "spec": {"ports": service(80)["spec"]["ports"]}}
    assert "resourceVersion" not in server.writes[1][1]["metadata"]


def test_a_stranger_that_was_taken_away_as_asked_is_not_told_of_any_more() -> None:
    stranger = service(80, uid="uid-x", resourceVersion="5", ownerReferences=[], labels={})
    done, server = do(Apply(service(80)), stranger, None)
    assert done is True
    assert [verb for verb, _ in server.writes] == ["apply"]


def test_a_stranger_that_is_still_there_is_told() -> None:
    stranger = service(80, uid="uid-x", resourceVersion="5", ownerReferences=[], labels={})
    done, server = do(Apply(service(80)), stranger, stranger)
    assert isinstance(done, ActionProblem)
    assert done.reason == "NotOwned"
    assert server.writes == []
