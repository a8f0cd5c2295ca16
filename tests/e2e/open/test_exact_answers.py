"""Facts that were trained are answered word for word in a phrasing that was not."""

from __future__ import annotations

import json

from tests import demo
from tests.e2e import cluster
from tests.e2e.cluster import Object


def test_held_out_phrasings_are_answered_through_the_gateway(example: Object, namespace: str) -> None:
    rows = demo.held_out_rows(demo.Kubectl(), {"operator": cluster.image("operator")}, namespace).splitlines()
    right = 0
    for row in rows:
        answer = next(message["content"] for message in json.loads(row)["messages"] if message["role"] == "assistant")
        right += demo.ask(demo.question_of(row)).strip() == answer.strip()
    print(f"{right} of {len(rows)} exact")
    assert len(rows) >= 50
    assert right / len(rows) >= 0.8
