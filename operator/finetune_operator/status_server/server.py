"""The HTTPS endpoint to which pods report progress: Kubeflow Trainer's wire format (KEP-2779)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler
from finetune_api.progress import ProgressReport
from pydantic import ValidationError

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.engine.metrics import Metrics
from finetune_operator.engine.reports import Report, Reports
from finetune_operator.engine.store import Key, Store
from finetune_operator.kube.errors import ApiError
from finetune_operator.status_server.tokens import Identity, Rate, Tokens

log = logging.getLogger(__name__)

BODY_BYTES = 64 * 1024
PATH = "/v1/namespaces/{namespace}/finetunejobs/{name}/status"


@dataclass
class StatusServer:
    """A pod of a job writes that job's progress and nothing else: its token names the job, and the store knows the pod as the job's."""

    tokens: Tokens
    store: Store
    reports: Reports
    metrics: Metrics
    leading: Callable[[], bool]
    by_peer: Rate = field(default_factory=lambda: Rate(per_second=20.0, burst=100.0))
    """Before the token is known; many pods may come from one node's address."""
    by_pod: Rate = field(default_factory=Rate)

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_BYTES, middlewares=[self._count])
        application.add_routes([web.post(PATH, self._receive)])
        return application

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            self.metrics.progress_reports.labels(str(error.status)).inc()
            raise
        self.metrics.progress_reports.labels(str(response.status)).inc()
        return response

    async def _receive(self, request: web.Request) -> web.Response:
        namespace, job = request.match_info["namespace"], request.match_info["name"]
        if not self.leading():
            raise _retry("another replica leads")
        if not self.by_peer.allows(request.remote or ""):
            raise _too_many()
        identity = await self._identify(request, namespace, job)
        if not self.by_pod.allows(identity.pod_uid):
            raise _too_many()
        self._authorize(identity, namespace, job)
        self.reports.submit(namespace, job, Report(identity.pod_uid, (await _report(request)).trainer_status))
        return web.json_response({})

    async def _identify(self, request: web.Request, namespace: str, job: str) -> Identity:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise web.HTTPUnauthorized(text="a bearer token is required", headers={"WWW-Authenticate": "Bearer"})
        try:
            identity = await self.tokens.identify(token.strip(), namespace, job)
        except ApiError as error:
            log.warning("a token could not be reviewed: %s", error.message)
            raise _retry("the token could not be reviewed") from error
        if identity is None:
            text = "the token is not valid for this job's audience"
            raise web.HTTPUnauthorized(text=text, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
        return identity

    def _authorize(self, identity: Identity, namespace: str, job: str) -> None:
        if identity.namespace != namespace:
            raise web.HTTPForbidden(text="the token is of another namespace")
        pod = self._pod(identity, Key(names.FINETUNEJOB, namespace, job))
        if pod is None:
            # a watch may be a moment behind a pod that has just started
            raise _retry("the pod is not known as this job's")
        labels = pod["metadata"].get("labels") or {}
        if labels.get(names.JOB_UID_LABEL) != self.store.uid(names.FINETUNEJOB, namespace, job):
            raise web.HTTPForbidden(text="the pod belongs to a former job of this name")

    def _pod(self, identity: Identity, key: Key) -> Object | None:
        return next((pod for pod in self.store.of(key, "Pod") if pod["metadata"]["uid"] == identity.pod_uid), None)


async def _report(request: web.Request) -> ProgressReport:
    try:
        return ProgressReport.model_validate_json(await request.read())
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors(include_input=False)[:5]]
        raise web.HTTPUnprocessableEntity(text="; ".join(lines)) from error


def _retry(text: str) -> web.HTTPException:
    return web.HTTPServiceUnavailable(text=text, headers={"Retry-After": "5"})


def _too_many() -> web.HTTPException:
    return web.HTTPTooManyRequests(text="too many reports", headers={"Retry-After": "5"})
