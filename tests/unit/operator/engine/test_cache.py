"""What is looked up is kept for a while, and never more of it than fits."""

from __future__ import annotations

import json
from typing import Any

from finetune_operator.engine.cache import Cache
from finetune_operator.engine.world import _REMEMBERED_BYTES, Lookups
from finetune_operator.kube.client import Client, Request, Response
from finetune_operator.kube.resources import CONFIGMAP


def test_the_oldest_make_room_by_number_and_by_bytes() -> None:
    cache = Cache(entries=3, bytes=100)
    for name in "abcd":
        cache["ConfigMap", "team", name] = 1.0, {}
    assert cache.get(("ConfigMap", "team", "a")) is None
    assert cache.get(("ConfigMap", "team", "b")) == (1.0, {})
    cache["ConfigMap", "team", "large"] = 2.0, {"x": "y" * 91}
    assert cache.get(("ConfigMap", "team", "d")) is None
    assert cache.get(("ConfigMap", "team", "large")) is not None
    assert cache.size <= 100


def test_what_alone_is_too_large_is_not_held() -> None:
    cache = Cache(entries=3, bytes=10)
    cache["ConfigMap", "team", "a"] = 1.0, {"x": "y" * 90}
    assert (cache.get(("ConfigMap", "team", "a")), cache.size) == (None, 0)


def test_what_is_set_again_counts_once_and_absence_costs_nothing() -> None:
    cache = Cache(entries=3, bytes=100)
    for _ in range(20):
        cache["ConfigMap", "team", "a"] = 1.0, {"x": "y" * 40}
    assert cache.size < 60
    cache["ConfigMap", "team", "a"] = 2.0, None
    assert (cache.get(("ConfigMap", "team", "a")), cache.size) == ((2.0, None), 0)


async def test_hundreds_of_large_config_maps_stay_within_bounds() -> None:
    reads = 0

    async def send(request: Request) -> Response:
        nonlocal reads
        reads += 1
        return Response(200, json.dumps({"metadata": {"name": "x"}, "data": {"template": "x" * 1_000_000}}).encode())

    lookups: Any = Lookups(Client(send))
    for number in range(60):
        assert await lookups.find(CONFIGMAP, "team", f"map-{number}")
    assert lookups._known.size <= _REMEMBERED_BYTES
    assert await lookups.find(CONFIGMAP, "team", "map-59")
    assert reads == 60
