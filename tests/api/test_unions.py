"""Discriminated unions on a real API server: what each type takes, and what the server adds to it."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
from finetune_api.union import types_of

from tests.api.client import Answer, Api, Object
from tests.api.manifests import JOBS, VERSIONS, job, version, with_
from tests.unions import Case, Place, cases, defaults_of, places

PUBLISHED: dict[str, Any] = {"publish": {"model": "bot"}, "export": {"gguf": ["Q8_0"]}}


def whole(case: Case) -> Object:
    return with_(job(**PUBLISHED) if case.place.kind == "FineTuneJob" else version(), case.place.path, case.value)


def apply(api: Api, body: Object) -> Answer:
    path = JOBS if body["kind"] == "FineTuneJob" else VERSIONS
    return api.apply(f"{path}/{body['metadata']['name']}", body, dryRun="All")


def at(body: Object, path: str) -> Any:
    return reduce(lambda node, name: node[name], path.split("."), body)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_each_type_takes_its_own_member_and_no_other(api: Api, case: Case) -> None:
    answer = apply(api, whole(case))
    if case.refused:
        assert answer.code == 422
        assert case.refused in answer.message
    else:
        assert answer.ok, answer.message


@pytest.mark.parametrize("place", places(), ids=str)
def test_the_server_adds_nothing_but_what_holds_under_every_type(api: Api, place: Place) -> None:
    accepted = [case for case in cases() if case.place == place and not case.refused]
    assert {case.value["type"] for case in accepted} == set(types_of(place.union)), "every type can be asked for"
    for case in accepted:
        live = apply(api, whole(case)).body
        added = {name: value for name, value in at(live, place.path).items() if name not in case.value}
        assert added == defaults_of(place)
