"""The Kubernetes API: dicts in, dicts out, typed errors, every call counted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

from finetune_operator.core.names import FIELD_MANAGER, Object
from finetune_operator.kube.errors import NotFound, Unreachable, error_of
from finetune_operator.kube.resources import TOKENREVIEW, Resource, resource_of

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_PAGE = 500

Propagation = Literal["Foreground", "Background"]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str = ""
    body: Object | None = None
    content_type: str = "application/json"
    accept: str = "application/json"
    timeout_s: float = 10.0

    @property
    def url(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes
    retry_after: str | None = None


Send = Callable[[Request], Awaitable[Response]]
"""Carries one request to an API server. Raises OSError or TimeoutError when no answer came."""

OnCall = Callable[[str, str, int], None]
"""Told (verb, resource, status) of every call; status 0 where no answer came. A dry run's verb is `dryrun-create`."""


@dataclass(frozen=True)
class Page:
    """One page of a LIST; `resource_version` is that of the whole LIST."""

    items: Sequence[Object]
    resource_version: str


@dataclass
class Client:
    """Each method raises the errors of `errors.py`; none tries again by itself."""

    send: Send
    on_call: OnCall = field(default=lambda verb, resource, status: None)
    timeout_s: float = 10.0

    async def pages(self, resource: Resource, namespace: str = "", *, metadata_only: bool = False) -> AsyncIterator[Page]:
        """The objects of a resource by its selectors, page by page. Raises Gone where paging took too long."""
        token = ""
        while True:
            query = {
                "limit": str(_PAGE),
                **({"labelSelector": resource.label_selector} if resource.label_selector else {}),
                **({"fieldSelector": resource.field_selector} if resource.field_selector else {}),
                **({"continue": token} if token else {}),
            }
            request = Request(
                "GET",
                resource.path(namespace),
                urlencode(query),
                accept=_METADATA_ONLY if metadata_only else "application/json",
                timeout_s=max(self.timeout_s, 60.0),
            )
            listing = await self._call("list", resource.plural, request)
            items = listing.get("items") or []  # null where a metadata-only LIST found nothing
            for item in items:
                item["apiVersion"], item["kind"] = resource.api_version, resource.kind
            yield Page(items, listing["metadata"]["resourceVersion"])
            token = listing["metadata"].get("continue") or ""
            if not token:
                return

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        return await self._call("get", resource.plural, self._request("GET", resource.path(namespace, name)))

    async def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return await self.get(resource, namespace, name)
        except NotFound:
            return None

    async def create(self, body: Object, *, dry_run: bool = False) -> Object:
        """Raises AlreadyExists where the name is taken. A dry run is strict: what the API server does not know is refused, not dropped."""
        resource = resource_of(body["apiVersion"], body["kind"])
        query = {"fieldManager": FIELD_MANAGER, **({"dryRun": "All", "fieldValidation": "Strict"} if dry_run else {})}
        request = self._request("POST", resource.path(body["metadata"].get("namespace", "")), query, body)
        return await self._call("dryrun-create" if dry_run else "create", resource.plural, request)

    async def apply(self, body: Object, *, force: bool = True) -> Object:
        """Server-side apply. With `metadata.uid` in `body` an object that is gone is not brought back: Conflict."""
        resource = resource_of(body["apiVersion"], body["kind"])
        metadata = body["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}
        request = self._request("PATCH", resource.path(metadata["namespace"], metadata["name"]), query, body, APPLY_PATCH)
        return await self._call("apply", resource.plural, request)

    async def replace(self, body: Object) -> Object:
        """PUT; Conflict where the object is no longer at `metadata.resourceVersion`."""
        resource = resource_of(body["apiVersion"], body["kind"])
        metadata = body["metadata"]
        request = self._request("PUT", resource.path(metadata["namespace"], metadata["name"]), {"fieldManager": FIELD_MANAGER}, body)
        return await self._call("update", resource.plural, request)

    async def merge_patch(self, resource: Resource, namespace: str, name: str, patch: Object, subresource: str = "") -> Object:
        """Conflict where `patch` names a resourceVersion or uid that the object no longer has."""
        request = self._request("PATCH", resource.path(namespace, name, subresource), {"fieldManager": FIELD_MANAGER}, patch, MERGE_PATCH)
        return await self._call("patch", f"{resource.plural}/{subresource}" if subresource else resource.plural, request)

    async def delete(self, resource: Resource, namespace: str, name: str, *, uid: str, propagation: Propagation) -> Object:
        """What the API server answers: the object where it is still going, a Status where it is gone. Conflict: another uid."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}, "propagationPolicy": propagation}
        return await self._call("delete", resource.plural, self._request("DELETE", resource.path(namespace, name), body=body))

    async def review_token(self, token: str, audience: str) -> Object:
        """Status of a TokenReview of `token` for one audience."""
        body = {
            "apiVersion": TOKENREVIEW.api_version,
            "kind": TOKENREVIEW.kind,
            "metadata": {},
            "spec": {"token": token, "audiences": [audience]},
        }
        review = await self._call("create", TOKENREVIEW.plural, self._request("POST", TOKENREVIEW.path(), body=body))
        status: Object = review.get("status", {})
        return status

    async def is_served(self, resource: Resource) -> bool:
        """Whether the API server knows the resource: by discovery, which every account may read."""
        try:
            groups = await self._call("get", "discovery", self._request("GET", resource.group_path))
        except NotFound:
            return False
        return any(entry["name"] == resource.plural for entry in groups.get("resources", []))

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Request:
        return Request(method, path, urlencode(query or {}), body, content_type, timeout_s=self.timeout_s)

    async def _call(self, verb: str, resource: str, request: Request) -> Object:
        try:
            response = await self.send(request)
        except (OSError, TimeoutError) as error:
            self.on_call(verb, resource, 0)
            raise Unreachable(f"no answer from the API server: {str(error) or type(error).__name__}") from error
        self.on_call(verb, resource, response.status)
        if response.status >= 300:
            raise error_of(response.status, _decoded(response.body), response.retry_after)
        answer: Object = json.loads(response.body)
        return answer


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")[:500]
