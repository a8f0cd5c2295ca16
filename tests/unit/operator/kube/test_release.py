"""Who owns what the operator makes for itself."""

from __future__ import annotations

import json

import pytest
from finetune_operator.kube.client import Client, Request, Response
from finetune_operator.kube.errors import ApiError
from finetune_operator.kube.release import owned_by_secret


def client(status: int, uid: str = "u") -> Client:
    async def send(request: Request) -> Response:
        assert request.path == "/api/v1/namespaces/system/secrets/tls"
        found = {"metadata": {"name": "tls", "namespace": "system", "uid": uid}, "data": {"ca.key": "c2VjcmV0"}}
        return Response(status, json.dumps(found if status == 200 else {"message": "no"}).encode())

    return Client(send)


async def test_the_charts_secret_owns_it_and_none_of_its_data_is_told() -> None:
    owners = await owned_by_secret(client(200), "system", "tls")()
    assert owners == [{"apiVersion": "v1", "kind": "Secret", "name": "tls", "uid": "u"}]


@pytest.mark.parametrize("status", [403, 404])
async def test_nobody_owns_it_where_there_is_no_secret_to_read(status: int) -> None:
    assert await owned_by_secret(client(status), "system", "tls")() == []


async def test_an_api_server_that_does_not_answer_is_no_absence() -> None:
    """An owner that is left out once is never put in."""
    with pytest.raises(ApiError):
        await owned_by_secret(client(503), "system", "tls")()
