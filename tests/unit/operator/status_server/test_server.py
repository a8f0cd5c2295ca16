"""Progress over HTTPS: a pod writes its own job's progress and nothing else; keys live in one Secret."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, web
from aiohttp.test_utils import TestClient, TestServer
from cryptography import x509
from finetune_api.progress import ProgressReport
from finetune_operator.core import names
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.queue import Queue
from finetune_operator.engine.reports import Report, Reports
from finetune_operator.engine.store import Key, Store
from finetune_operator.kube.client import Client, Request, Response
from finetune_operator.kube.errors import Retryable
from finetune_operator.status_server import tokens as tokens_module
from finetune_operator.status_server.certificates import (
    CA_MARGIN,
    SERVER_LIFE,
    SERVER_MARGIN,
    KeyPair,
    Keys,
    load_into,
    renewed,
    server_context,
)
from finetune_operator.status_server.endpoint import make_endpoint_slice
from finetune_operator.status_server.keystore import KeyStore
from finetune_operator.status_server.server import BODY_BYTES, StatusServer
from finetune_operator.status_server.tokens import Rate, Tokens

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOST = "finetune-status.system.svc"
KEY = Key(names.FINETUNEJOB, "team", "demo")
BODY = {"trainerStatus": {"progressPercentage": 42, "metrics": [{"name": "loss", "value": "1.5"}]}}


class Reviewer:
    """A TokenReview API: tokens are `<pod uid>@<namespace>:<audience>`."""

    def __init__(self) -> None:
        self.reviews = 0
        self.down = False

    async def send(self, request: Request) -> Response:
        self.reviews += 1
        if self.down:
            raise ConnectionRefusedError
        assert request.body is not None
        spec = request.body["spec"]
        who, _, audience = spec["token"].partition(":")
        uid, _, namespace = who.partition("@")
        extra = {"authentication.kubernetes.io/pod-name": ["p"], "authentication.kubernetes.io/pod-uid": [uid]}
        user = {"username": f"system:serviceaccount:{namespace}:default", "extra": extra if uid else {}}
        good = {"authenticated": True, "audiences": [audience], "user": user}
        return Response(201, json.dumps({"status": good if audience in spec["audiences"] else {"authenticated": False}}).encode())


class Bench:
    def __init__(self) -> None:
        self.reviewer = Reviewer()
        self.store = Store()
        self.queue = Queue()
        self.reports = Reports(self.queue, every_s=10)
        self.leading = True
        self.tokens = Tokens(Client(self.reviewer.send), "aud")
        self.metrics = Metrics()
        self.server = StatusServer(self.tokens, self.store, self.reports, self.metrics, lambda: self.leading)
        self.add("FineTuneJob", "demo", "job-uid")
        self.add("FineTuneJob", "other", "other-uid")
        self.add("Pod", "pod", "pod-uid", {names.JOB_LABEL: "demo", names.JOB_UID_LABEL: "job-uid"})

    def add(self, kind: str, name: str, uid: str, labels: dict[str, str] | None = None) -> None:
        metadata = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": "1", "labels": labels or {}}
        self.store.put({"apiVersion": "v1", "kind": kind, "metadata": metadata})


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
async def http(bench: Bench) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with TestClient(TestServer(bench.server.application())) as client:
        yield client


async def post(http: Any, token: str | None, body: Any = BODY, job: str = "demo", namespace: str = "team") -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = body if isinstance(body, bytes) else json.dumps(body)
    async with http.post(f"/v1/namespaces/{namespace}/finetunejobs/{job}/status", data=data, headers=headers) as response:
        return response.status, await response.text()


OWN = "pod-uid@team:aud/team/demo"
CASES = {
    "its own": (OWN, {}, 200),
    "no token": (None, {}, 401),
    "a token of another audience": ("pod-uid@team:aud/team/other", {}, 401),
    "its own token for another job": (OWN, {"job": "other"}, 401),
    "a token for a job whose pod it is not": ("pod-uid@team:aud/team/other", {"job": "other"}, 503),
    "an unknown pod": ("x@team:aud/team/demo", {}, 503),
    "a token bound to no pod": ("@team:aud/team/demo", {}, 401),
    "an account of another namespace": ("pod-uid@rogue:aud/team/demo", {}, 403),
    "not JSON": (OWN, {"body": b"{"}, 422),
    "another shape": (OWN, {"body": {"x": 1}}, 422),
    "a percentage over 100": (OWN, {"body": {"trainerStatus": {"progressPercentage": 101}}}, 422),
    "too large": (OWN, {"body": b" " * (BODY_BYTES + 1)}, 413),
}


@pytest.mark.parametrize("case", CASES)
async def test_who_may_report_what(case: str, bench: Bench, http: Any) -> None:
    token, request, wanted = CASES[case]
    status, text = await post(http, token, **request)
    assert status == wanted, text
    assert (bench.reports.newest("team", "demo") is not None) == (wanted == 200)
    assert bench.reports.newest("team", "other") is None
    assert bench.metrics.progress_reports.labels(str(wanted))._value.get() == 1


async def test_a_pod_of_a_former_job_of_the_name_is_refused(bench: Bench, http: Any) -> None:
    bench.add("Pod", "old", "old-uid", {names.JOB_LABEL: "demo", names.JOB_UID_LABEL: "former-uid"})
    assert (await post(http, "old-uid@team:aud/team/demo"))[0] == 403


async def test_a_follower_sends_reporters_away(bench: Bench, http: Any) -> None:
    bench.leading = False
    assert (await post(http, OWN))[0] == 503
    assert bench.reviewer.reviews == 0


async def test_a_refusal_never_repeats_what_was_sent(bench: Bench, http: Any) -> None:
    _, text = await post(http, OWN, {"trainerStatus": {"progressPercentage": "secret text"}})
    assert "secret text" not in text
    assert "progressPercentage" in text


async def test_a_token_is_reviewed_once_and_a_bad_one_too(bench: Bench, http: Any) -> None:
    for _ in range(5):
        await post(http, OWN)
        await post(http, "nonsense")
    assert bench.reviewer.reviews == 2


async def test_a_review_that_fails_is_not_remembered(bench: Bench, http: Any) -> None:
    bench.reviewer.down = True
    assert (await post(http, OWN))[0] == 503
    bench.reviewer.down = False
    assert (await post(http, OWN))[0] == 200


async def test_a_pod_that_floods_is_slowed(bench: Bench, http: Any) -> None:
    answers = [(await post(http, OWN))[0] for _ in range(30)]
    assert answers[:10] == [200] * 10
    assert 429 in answers


async def test_a_review_is_trusted_for_a_minute_at_most() -> None:
    reviewer, now = Reviewer(), 0.0
    tokens = Tokens(Client(reviewer.send), "aud", monotonic=lambda: now)
    assert await tokens.identify(OWN, "team", "demo")
    now = 61.0
    assert await tokens.identify(OWN, "team", "demo")
    assert reviewer.reviews == 2


@pytest.mark.parametrize("audiences", [None, [], ["aud/team/other"], ["https://kubernetes.default.svc"]])
async def test_a_review_that_does_not_name_the_audience_proves_nothing(audiences: list[str] | None) -> None:
    async def send(request: Request) -> Response:
        extra = {"authentication.kubernetes.io/pod-uid": ["pod-uid"]}
        user = {"username": "system:serviceaccount:team:default", "extra": extra}
        named = {} if audiences is None else {"audiences": audiences}
        return Response(201, json.dumps({"status": {"authenticated": True, "user": user, **named}}).encode())

    assert await Tokens(Client(send), "aud").identify("t", "team", "demo") is None


async def test_few_reviews_run_at_a_time_and_few_wait() -> None:
    running = most = 0

    async def send(request: Request) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return Response(201, b'{"status": {"authenticated": false}}')

    tokens = Tokens(Client(send), "aud")
    answers = await asyncio.gather(*(tokens.identify(f"t{number}", "team", "demo") for number in range(200)), return_exceptions=True)
    assert most == tokens_module._AT_ONCE
    refused = [answer for answer in answers if isinstance(answer, Retryable)]
    assert len(refused) == 200 - tokens_module._WAITING
    assert await tokens.identify("later", "team", "demo") is None


def test_a_rate_lets_bursts_through_and_refills() -> None:
    now = 0.0
    rate = Rate(per_second=1, burst=3, monotonic=lambda: now)
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]
    assert rate.allows("b")
    now = 1.0
    assert [rate.allows("a"), rate.allows("a")] == [True, False]


# ------------------------------------------------------------------------------------------------------------------ reports


def report(percent: int) -> Report:
    body = {"trainerStatus": {"progressPercentage": percent}}
    return Report("pod-uid", ProgressReport.model_validate(body).trainer_status)


async def test_passes_see_a_new_value_at_most_every_ten_seconds_and_always_the_newest() -> None:
    now = 100.0
    queue = Queue(monotonic=lambda: now)
    reports = Reports(queue, every_s=10, monotonic=lambda: now)
    reports.submit("team", "demo", report(1))
    assert await asyncio.wait_for(queue.take(), 1) == KEY
    assert reports.newest("team", "demo") == report(1)
    for percent in (2, 3):
        now += 1
        reports.submit("team", "demo", report(percent))
        assert reports.newest("team", "demo") == report(1)
    assert queue.depth == 0
    now += 8
    assert reports.newest("team", "demo") == report(3)


# ------------------------------------------------------------------------------------------------------------- certificates


def names_of(pair: KeyPair) -> list[str]:
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)


def test_keys_that_hold_on_are_kept() -> None:
    keys = renewed(None, (HOST,), NOW)
    assert renewed(keys, (HOST,), NOW + timedelta(days=1)) == keys
    assert names_of(keys.server) == [HOST]


def test_a_server_certificate_is_renewed_in_time_under_the_same_ca() -> None:
    keys = renewed(None, (HOST,), NOW)
    later = renewed(keys, (HOST,), NOW + SERVER_LIFE - SERVER_MARGIN + timedelta(minutes=1))
    assert later.ca == keys.ca
    assert later.server != keys.server


def test_another_host_gets_another_certificate() -> None:
    keys = renewed(None, (HOST,), NOW)
    moved = renewed(keys, ("other.system.svc",), NOW)
    assert moved.ca == keys.ca
    assert names_of(moved.server) == ["other.system.svc"]


def test_a_ca_near_its_end_is_replaced_with_all_it_signed() -> None:
    keys = renewed(None, (HOST,), NOW)
    later = renewed(keys, (HOST,), NOW + timedelta(days=3650) - CA_MARGIN + timedelta(minutes=1))
    assert later.ca != keys.ca


BROKEN = {
    "text": lambda keys: Keys(KeyPair(b"x", b"y"), keys.server),
    "a CA with another's key": lambda keys: Keys(KeyPair(keys.ca.certificate, keys.server.key), keys.server),
    "a server of another CA": lambda keys: Keys(keys.ca, renewed(None, (HOST,), NOW).server),
    "a server with another's key": lambda keys: Keys(keys.ca, KeyPair(keys.server.certificate, keys.ca.key)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_keys_are_replaced(case: str) -> None:
    keys = renewed(None, (HOST,), NOW)
    broken = BROKEN[case](keys)
    healed = renewed(broken, (HOST,), NOW)
    assert healed.server != broken.server
    assert renewed(healed, (HOST,), NOW) == healed


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    application = web.Application()
    application.add_routes([web.get("/", answer)])
    server = TestServer(application)
    await server.start_server(ssl=context)
    try:
        assert server.port is not None
        yield server.port
    finally:
        await server.close()


async def fetch(port: int, ca: bytes) -> str:
    trusted = ssl.create_default_context(cadata=ca.decode())
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT
    async with (
        ClientSession(connector=TCPConnector(ssl=trusted)) as session,
        session.get(f"https://127.0.0.1:{port}/", server_hostname=HOST) as response,
    ):
        return await response.text()


async def test_pods_that_know_the_ca_trust_the_server_before_and_after_a_renewal() -> None:
    now = datetime.now(UTC)
    keys = renewed(None, (HOST,), now)
    context = server_context(keys.server)
    async with serving(context) as port:
        assert await fetch(port, keys.ca.certificate) == "ok"
        later = renewed(Keys(keys.ca, keys.ca), (HOST,), now)
        load_into(context, later.server)
        assert await fetch(port, keys.ca.certificate) == "ok"
        with pytest.raises(Exception, match="certificate"):
            await fetch(port, renewed(None, (HOST,), now).ca.certificate)


# ----------------------------------------------------------------------------------------------------------------- keystore


class SecretServer:
    def __init__(self) -> None:
        self.secret: dict[str, Any] = {"metadata": {"name": "tls", "namespace": "system", "resourceVersion": "1"}}
        self.puts = 0
        self.conflicts = 0

    async def send(self, request: Request) -> Response:
        if request.method == "PUT":
            if self.conflicts:
                self.conflicts -= 1
                return Response(409, b'{"reason": "Conflict", "message": "changed"}')
            self.puts += 1
            self.secret = dict(request.body or {})
        return Response(200, json.dumps(self.secret).encode())


def make_keystore(server: SecretServer) -> KeyStore:
    return KeyStore(Client(server.send), "system", "tls", (HOST,), now=lambda: NOW)


async def test_an_empty_secret_is_filled_once_and_read_by_the_next_leader() -> None:
    server = SecretServer()
    keys = await make_keystore(server).ensure()
    assert await make_keystore(server).ensure() == keys
    assert server.puts == 1
    assert base64.b64decode(server.secret["data"]["ca.crt"]) == keys.ca.certificate


async def test_two_leaders_at_once_end_with_the_same_keys() -> None:
    server = SecretServer()
    server.conflicts = 1
    keys = await make_keystore(server).ensure()
    assert server.puts == 1
    assert await make_keystore(server).ensure() == keys


@pytest.mark.parametrize(("ip", "family"), [("10.0.0.5", "IPv4"), ("fd00::5", "IPv6")])
def test_the_slice_leads_to_the_leader_alone(ip: str, family: str) -> None:
    owner = {"apiVersion": "v1", "kind": "Secret", "name": "tls", "uid": "u"}
    made = make_endpoint_slice("system", "finetune-status", ip, 8443, [owner])
    assert made["addressType"] == family
    assert [endpoint["addresses"] for endpoint in made["endpoints"]] == [[ip]]
    assert made["metadata"]["labels"]["kubernetes.io/service-name"] == "finetune-status"
    assert made["metadata"]["ownerReferences"] == [owner]
