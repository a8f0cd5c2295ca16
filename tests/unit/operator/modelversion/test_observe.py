"""What a pass over a model reads beside the store."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_operator.core.names import Object
from finetune_operator.engine.store import MODEL, Key
from finetune_operator.modelversion.observe import with_successors

from tests.unit.operator.modelversion.world import model_version


def version(number: int, **status: Any) -> Object:
    return model_version(number) | {"status": status}


class Reads:
    """Stands for the API server, in which version 2 is."""

    def __init__(self, *there: Object) -> None:
        self.there = {item["metadata"]["name"]: item for item in there}
        self.asked: list[str] = []

    async def read(self, resource: Any, namespace: str, name: str) -> Object | None:
        self.asked.append(name)
        return self.there.get(name)


def names_of(*seen: Object, there: tuple[Object, ...] = ()) -> tuple[list[str], list[str]]:
    """Names of the versions of a pass, and of those that it asked for."""
    reads = Reads(*there)
    world: Any = SimpleNamespace(lookups=reads)
    found = asyncio.run(with_successors(Key(MODEL, "team", "bot"), seen, world))
    return [item["metadata"]["name"] for item in found], reads.asked


def test_one_that_took_over_and_that_no_watch_told_of_is_not_gone() -> None:
    second = version(2, stage="Staging")
    assert names_of(version(1, stage="Archived", replacedBy="bot-v2"), there=(second,)) == (["bot-v1", "bot-v2"], ["bot-v2"])


def test_one_that_took_over_is_where_it_is_and_not_where_the_watch_last_saw_it() -> None:
    reads = Reads(version(2, stage="Production"))
    world: Any = SimpleNamespace(lookups=reads)
    seen = version(1, stage="Archived", replacedBy="bot-v2"), version(2, stage="Staging")
    found = asyncio.run(with_successors(Key(MODEL, "team", "bot"), seen, world))
    assert [item["status"]["stage"] for item in found] == ["Archived", "Production"]


def test_one_that_is_gone_is_asked_for() -> None:
    assert names_of(version(1, stage="Archived", replacedBy="bot-v2")) == (["bot-v1"], ["bot-v2"])


def test_nobody_is_asked_for_while_one_is_in_production() -> None:
    seen = version(1, stage="Archived", replacedBy="bot-v2"), version(3, stage="Production")
    assert names_of(*seen) == (["bot-v1", "bot-v3"], [])


@pytest.mark.parametrize("name", [None, 7, ["bot-v2"]])
def test_odd_words_of_a_successor_ask_for_nobody(name: Any) -> None:
    assert names_of(version(1, stage="Archived", replacedBy=name)) == (["bot-v1"], [])


def test_one_of_another_model_is_none_of_this_one() -> None:
    other = version(2)
    other["spec"]["model"] = "cat"
    assert names_of(version(1, stage="Archived", replacedBy="bot-v2"), there=(other,)) == (["bot-v1"], ["bot-v2"])
