"""No write where the live object already is what we want; the smallest patch where it is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from finetune_operator.core.containment import contains, merge_patch, without_nulls
from hypothesis import given
from hypothesis import strategies as st

CASES: dict[str, tuple[Any, Any, bool]] = {
    "defaults of the server are no difference": ({"a": 1, "b": 2}, {"a": 1}, True),
    "a missing member is": ({"b": 2}, {"a": 1}, False),
    "another value is": ({"a": 2}, {"a": 1}, False),
    "deep inside": ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 1}}}, True),
    "list items are matched by name": (
        [{"name": "y", "value": "2"}, {"name": "x", "value": "1", "more": True}],
        [{"name": "x", "value": "1"}, {"name": "y", "value": "2"}],
        True,
    ),
    "an item too many is a difference": ([{"name": "x"}, {"name": "y"}], [{"name": "x"}], False),
    "plain lists are compared in order": (["a", "b"], ["b", "a"], False),
    "an empty map may be dropped by the server": ({}, {"a": {}}, True),
    "an empty list too": ({}, {"a": []}, True),
    "true is not one": ({"a": 1}, {"a": True}, False),
    "whole floats are integers on the wire": ({"a": 1}, {"a": 1.0}, True),
    "amounts are compared by value": ({"limits": {"cpu": "500m", "memory": "1Gi"}}, {"limits": {"cpu": "0.5", "memory": "1024Mi"}}, True),
    "and by any of their spellings": (
        {"requests": {"cpu": "1500m", "memory": "129M", "storage": "1Ei"}},
        {"requests": {"cpu": "15e-1", "memory": "129e6", "storage": "1024Pi"}},
        True,
    ),
    "other amounts differ": ({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1G"}}, False),
    "texts that look like amounts are texts": ({"value": "1000"}, {"value": "1k"}, False),
    "a port is matched by its number": ([{"containerPort": 80, "protocol": "TCP"}], [{"containerPort": 80}], True),
}


@pytest.mark.parametrize("case", CASES)
def test_containment(case: str) -> None:
    live, desired, wanted = CASES[case]
    assert contains(live, desired) is wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


def applied(live: Any, patch: Any) -> Any:
    """RFC 7386, as the API server does it."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = applied(merged.get(key), value)
    return merged


@given(OBJECTS, OBJECTS)
def test_a_patch_leads_from_any_state_to_what_is_wanted(live: Any, wanted: Any) -> None:
    live, wanted = without_nulls(live), without_nulls(wanted)
    before = copy.deepcopy(live)
    patched = applied(live, merge_patch(live, wanted))
    assert patched == wanted
    assert live == before
    assert merge_patch(patched, wanted) == {}


@given(OBJECTS)
def test_an_object_contains_itself_and_whatever_is_added_to_it(live: Any) -> None:
    live = without_nulls(live)
    assert contains(live, live)
    assert contains({**live, "added by the server": 1}, live)
