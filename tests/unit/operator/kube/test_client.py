"""Requests as the API server wants them, and its answers as typed errors in its own words."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from finetune_operator.kube import errors
from finetune_operator.kube.client import APPLY_PATCH, MERGE_PATCH, Client, Request, Response
from finetune_operator.kube.resources import FINETUNEJOB, HTTPROUTE, JOB, LEASE, NODE, POD, SECRET, SERVICE, WATCHED, resource_of

SERVICE_BODY = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "team"}}


class Server:
    """Answers from a list, and keeps what was asked."""

    def __init__(self, *answers: tuple[int, Any], retry_after: str | None = None) -> None:
        self.answers = list(answers) or [(200, {})]
        self.retry_after = retry_after
        self.requests: list[Request] = []

    async def send(self, request: Request) -> Response:
        self.requests.append(request)
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Response(status, body if isinstance(body, bytes) else json.dumps(body).encode(), self.retry_after)

    @property
    def last(self) -> Request:
        return self.requests[-1]

    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(self.last.query).items()}


PATHS = {
    "/apis/finetune-operator.io/v1alpha1/namespaces/team/finetunejobs/demo/status": FINETUNEJOB.path("team", "demo", "status"),
    "/apis/batch/v1/namespaces/team/jobs/demo": JOB.path("team", "demo"),
    "/api/v1/namespaces/team/pods": POD.path("team"),
    "/api/v1/pods": POD.path(),
    "/api/v1/nodes": NODE.path(),
}


@pytest.mark.parametrize("path", PATHS)
def test_paths(path: str) -> None:
    assert PATHS[path] == path


async def test_apply_names_the_field_manager_and_forces_unless_told_otherwise() -> None:
    server = Server()
    await Client(server.send).apply(SERVICE_BODY)
    assert (server.last.method, server.last.content_type) == ("PATCH", APPLY_PATCH)
    assert server.query() == {"fieldManager": "finetune-operator", "force": "true"}
    await Client(server.send).apply(SERVICE_BODY, force=False)
    assert server.query()["force"] == "false"


async def test_a_dry_run_says_so_and_is_counted_apart() -> None:
    server = Server((201, {}))
    calls: list[tuple[str, str, int]] = []
    client = Client(server.send, lambda *call: calls.append(call))
    await client.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-", "namespace": "team"}}, dry_run=True)
    assert server.query()["dryRun"] == "All"
    assert server.query()["fieldValidation"] == "Strict", "a misspelt member of a toleration would be dropped without a word"
    assert calls == [("dryrun-create", "pods", 201)]


async def test_delete_names_the_uid_that_was_seen() -> None:
    server = Server()
    await Client(server.send).delete(JOB, "team", "demo", uid="u1", propagation="Foreground")
    assert server.last.method == "DELETE"
    assert server.last.body is not None
    assert server.last.body["preconditions"] == {"uid": "u1"}
    assert server.last.body["propagationPolicy"] == "Foreground"


async def test_a_status_patch_goes_to_the_subresource() -> None:
    server = Server()
    await Client(server.send).merge_patch(FINETUNEJOB, "team", "demo", {"status": {}}, "status")
    assert server.last.path.endswith("/finetunejobs/demo/status")
    assert server.last.content_type == MERGE_PATCH


async def test_a_list_is_read_page_by_page_with_the_watchs_selector() -> None:
    first = {"metadata": {"resourceVersion": "7", "continue": "next"}, "items": [{"metadata": {"name": "a"}}]}
    second = {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]}
    server = Server((200, first), (200, second))
    pages = [page async for page in Client(server.send).pages(POD, "team")]
    assert [item["metadata"]["name"] for page in pages for item in page.items] == ["a", "b"]
    assert pages[0].items[0]["kind"] == "Pod"
    assert server.query()["continue"] == "next"
    assert server.query()["labelSelector"] == "app.kubernetes.io/managed-by=finetune-operator"


async def test_a_metadata_only_list_that_found_nothing_has_null_items() -> None:
    server = Server((200, {"metadata": {"resourceVersion": "7"}, "items": None}))
    pages = [page async for page in Client(server.send).pages(POD, metadata_only=True)]
    assert [list(page.items) for page in pages] == [[]]
    assert "PartialObjectMetadataList" in server.last.accept


STATUSES: dict[str, tuple[int, dict[str, str], type[errors.ApiError]]] = {
    "not found": (404, {"reason": "NotFound"}, errors.NotFound),
    "name taken": (409, {"reason": "AlreadyExists"}, errors.AlreadyExists),
    "changed meanwhile": (409, {"reason": "Conflict"}, errors.Conflict),
    "too old": (410, {"reason": "Expired"}, errors.Gone),
    "not allowed": (403, {"reason": "Forbidden"}, errors.Forbidden),
    "malformed": (422, {"reason": "Invalid"}, errors.Invalid),
    "too many": (429, {"reason": "TooManyRequests"}, errors.Retryable),
    "webhook down": (500, {"reason": "InternalError"}, errors.Retryable),
    "token over": (401, {"reason": "Unauthorized"}, errors.Retryable),
}


@pytest.mark.parametrize("case", STATUSES)
async def test_refusals_are_typed_and_keep_the_servers_words(case: str) -> None:
    status, body, kind = STATUSES[case]
    with pytest.raises(kind) as caught:
        await Client(Server((status, {**body, "message": f"{case}, it said"})).send).get(SERVICE, "team", "s")
    assert caught.value.message == f"{case}, it said"
    assert type(caught.value) is kind


async def test_retry_after_is_kept() -> None:
    with pytest.raises(errors.Retryable) as caught:
        await Client(Server((429, {}), retry_after="7").send).get(SERVICE, "team", "s")
    assert caught.value.retry_after_s == 7.0


async def test_an_answer_that_is_no_json_is_still_an_error() -> None:
    with pytest.raises(errors.Retryable, match="bad gateway"):
        await Client(Server((502, b"<html>bad gateway</html>")).send).get(SERVICE, "team", "s")


@pytest.mark.parametrize("failure", [TimeoutError(), ConnectionResetError("reset by peer")])
async def test_no_answer_is_told_from_a_refusal_and_counted_as_zero(failure: Exception) -> None:
    async def send(request: Request) -> Response:
        raise failure

    calls: list[tuple[str, str, int]] = []
    with pytest.raises(errors.Unreachable):
        await Client(send, lambda *call: calls.append(call)).get(SECRET, "team", "s")
    assert calls == [("get", "secrets", 0)]


async def test_find_answers_none_where_there_is_none() -> None:
    assert await Client(Server((404, {"reason": "NotFound"})).send).find(LEASE, "team", "x") is None


async def test_whether_a_kind_is_served() -> None:
    assert await Client(Server((200, {"resources": [{"name": "httproutes"}]})).send).is_served(HTTPROUTE)
    assert not await Client(Server((200, {"resources": [{"name": "gateways"}]})).send).is_served(HTTPROUTE)
    assert not await Client(Server((404, {})).send).is_served(HTTPROUTE)


async def test_a_token_is_reviewed_for_one_audience() -> None:
    server = Server((201, {"status": {"authenticated": True}}))
    assert await Client(server.send).review_token("t", "finetune-operator.io/team/demo") == {"authenticated": True}
    assert server.last.body is not None
    assert server.last.body["spec"] == {"token": "t", "audiences": ["finetune-operator.io/team/demo"]}


def test_every_watched_kind_but_our_own_and_those_who_scale_it_is_narrowed_on_the_server() -> None:
    wide = [resource.kind for resource in WATCHED if not resource.label_selector and not resource.field_selector]
    assert wide == ["FineTuneJob", "ModelVersion", "HorizontalPodAutoscaler"]


def test_a_kind_nobody_speaks_of_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        resource_of("v1", "Namespace")
