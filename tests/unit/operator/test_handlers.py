"""kopf is told to watch and nothing more."""

from __future__ import annotations

from typing import Any, cast

import kopf
import pytest
from finetune_operator.handlers import configure, register
from finetune_operator.kube.resources import WATCHED
from finetune_operator.runtime import Runtime


class Ear:
    """Hears what a runtime would be told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str | None, Any]] = []

    def seen(self, type: str | None, live: Any) -> None:
        self.heard.append((type, live))


@pytest.fixture
def registry() -> kopf.OperatorRegistry:
    return register(cast(Runtime, Ear()))


def test_every_watched_kind_has_one_event_handler(registry: kopf.OperatorRegistry) -> None:
    assert sorted(handler.id for handler in registry._watching.get_all_handlers()) == sorted(resource.plural for resource in WATCHED)


def test_nothing_that_would_write_to_an_object_is_registered(registry: kopf.OperatorRegistry) -> None:
    assert list(registry._changing.get_all_handlers()) == []
    assert list(registry._spawning.get_all_handlers()) == []
    assert list(registry._indexing.get_all_handlers()) == []
    assert list(registry._webhooks.get_all_handlers()) == []


async def test_an_event_reaches_the_runtime_with_its_kind() -> None:
    ear = Ear()
    handlers = register(cast(Runtime, ear))._watching.get_all_handlers()
    handler = next(handler for handler in handlers if handler.id == "jobs")
    await cast(Any, handler.fn)(event={"type": "MODIFIED", "object": {"metadata": {"name": "x"}}}, logger=None)
    assert ear.heard == [("MODIFIED", {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}})]


def test_kopf_scans_posts_and_peers_nothing_and_filters_on_the_server() -> None:
    settings = kopf.OperatorSettings()
    configure(settings)
    assert not settings.posting.enabled
    assert settings.scanning.disabled
    assert settings.peering.standalone
    narrowed = len([resource for resource in WATCHED if resource.label_selector])
    assert len(settings.watching.label_selectors) == narrowed
    assert list(settings.watching.field_selectors.values()) == ["involvedObject.kind=Job,reason=FailedCreate"]


def test_kopf_copies_no_object_to_compare_it_with_its_former_self() -> None:
    settings = kopf.OperatorSettings()
    configure(settings)
    body = kopf.Body({"metadata": {"annotations": {"kopf.zalando.org/last-handled-configuration": '{"spec": {}}'}}, "spec": {"large": "x"}})
    assert settings.persistence.diffbase_storage.fetch(body=body) is None
    assert settings.persistence.diffbase_storage.build(body=body, extra_fields=None) == {}
