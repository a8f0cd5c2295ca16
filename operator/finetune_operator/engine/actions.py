"""One action of a plan against the API: done, or a problem in the API's words. What the API answers goes into the store at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from finetune_api.outcome import Reason
from finetune_api.status import cut

from finetune_operator.core import names
from finetune_operator.core.containment import DESIRED_ANNOTATION, contains, desired_mark, owners_of
from finetune_operator.core.names import Object
from finetune_operator.core.plan import Action, ActionProblem, Apply, Create, Delete, SetOwners
from finetune_operator.engine.store import Key, Name, Store, name_of
from finetune_operator.kube.client import Client
from finetune_operator.kube.errors import AlreadyExists, ApiError, Conflict, Forbidden, Invalid, NotFound, Retryable
from finetune_operator.kube.resources import CLAIM, HTTPROUTE, MODELVERSION, Resource, resource_of

log = logging.getLogger(__name__)


class NotLeading(Exception):
    """A write was about to be made by a replica that no longer leads."""


class Stale(Exception):
    """The object changed since it was read. It was read again: the pass must be run again."""


Done = bool | ActionProblem
"""True: something changed by it. False: there was nothing to do. A problem: the API refused, in its words."""


@dataclass
class Actor:
    """Does actions. `may_write` is asked before every write; `mark` is told the keys that an answer of the API concerns."""

    client: Client
    store: Store
    may_write: Callable[[], bool]
    mark: Callable[[Key], None]

    async def do(self, action: Action) -> Done:
        """Does an action, or finds that it is done. Raises Stale, NotLeading and Retryable."""
        try:
            if isinstance(action, Create):
                return await self._create(action)
            if isinstance(action, Apply):
                return await self._apply(action)
            if isinstance(action, Delete):
                return await self._delete(action)
            return await self._set_owners(action)
        except (Retryable, Conflict):
            raise
        except ApiError as error:
            return problem_of(action, error)

    async def write_status(self, live: Object, patch: Object) -> Object:
        """One write of status at the resourceVersion it was computed from. Raises Stale where that is over."""
        resource = resource_of(live["apiVersion"], live["kind"])
        metadata = live["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "uid": metadata["uid"]}, "status": patch}
        return await self._patch_seen(resource, metadata["namespace"], metadata["name"], body, "status")

    async def refresh(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object as it is now, also put into the store: for where the store was seen to be stale."""
        asked = self.store.moment
        live = await self.client.find(resource, namespace, name)
        if live is not None:
            self._tell(self.store.put(live, read_after=asked))
        else:
            uid = self.store.uid(resource.kind, namespace, name)
            if uid:
                self._tell(self.store.forget(Name(resource.kind, namespace, name), uid))
        return live

    async def _create(self, action: Create) -> Done:
        body = action.body
        if action.dry_run_pod is not None:
            with suppress(AlreadyExists):  # a stranger's pod has the name that the dry run uses
                await self.client.create(action.dry_run_pod, dry_run=True)
        self._fence()
        try:
            self._learn(await self.client.create(body))
            log.info("%s %s was created", body["kind"], body["metadata"]["name"], extra={"namespace": body["metadata"]["namespace"]})
        except AlreadyExists:
            return await self._settle(body)
        return True

    async def _settle(self, body: Object) -> Done:
        """The name is taken: by our own object (a write whose answer was lost, a stale store), its dying predecessor, or a stranger."""
        resource = resource_of(body["apiVersion"], body["kind"])
        metadata = body["metadata"]
        asked = self.store.moment
        live = await self.client.find(resource, metadata["namespace"], metadata["name"])
        if live is None:
            raise Stale
        if is_ours(live, body):
            self._tell(self.store.put(live, read_after=asked))
            await self._relabel(resource, live, body)
            return True
        return stranger_problem(live, body)

    async def _relabel(self, resource: Resource, live: Object, wanted: Object) -> None:
        """Puts back labels of an own object that somebody took away: without them no watch tells of it, and no pass finds it."""
        metadata, labels = live["metadata"], wanted["metadata"].get("labels") or {}
        if not resource.label_selector or contains(metadata.get("labels") or {}, labels):
            return
        patch = {"metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"], "labels": labels}}
        self._fence()
        log.warning(
            "labels of %s %s were taken away and are put back", live["kind"], metadata["name"], extra={"namespace": metadata["namespace"]}
        )
        try:
            self._learn(await self.client.merge_patch(resource, metadata["namespace"], metadata["name"], patch))
        except (Conflict, NotFound) as error:
            raise Stale from error

    async def _apply(self, action: Apply) -> Done:
        body = _marked(action.body)
        resource, metadata = resource_of(body["apiVersion"], body["kind"]), body["metadata"]
        live = self.store.get(body["kind"], metadata["namespace"], metadata["name"])
        if live is not None and not is_ours(live, body):
            # no watch tells of one that has not our label: it may be gone by now
            live = await self.refresh(resource, metadata["namespace"], metadata["name"])
        if live is not None:
            if not is_ours(live, body):
                return stranger_problem(live, body)
            live = await self._replace(resource, live, body, action.replaces)
            body = _yielding(body, live, action.yields)
            if contains(live, body) and not action.exactly:
                return bool(action.replaces)
            body = _pinned(body, live, to_version=bool(action.yields))
        self._fence()
        try:
            # an object never seen is not forced: should a stranger's have this name, its fields conflict
            answer = await self.client.apply(body, force=live is not None)
        except (Conflict, NotFound) as error:
            found = await self.refresh(resource, metadata["namespace"], metadata["name"])
            if found is not None and not is_ours(found, body):
                return stranger_problem(found, body)
            raise Stale from error
        self._learn(answer)
        return live is None or answer["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]

    async def _replace(self, resource: Resource, live: Object, body: Object, members: tuple[str, ...]) -> Object:
        """The live object with lists of its spec as they are wanted, which server-side apply would only have added to."""
        if not members:
            return live
        metadata = live["metadata"]
        held = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        patch = {"metadata": held, "spec": {name: body["spec"][name] for name in members}}
        return await self._patch_seen(resource, metadata["namespace"], metadata["name"], patch)

    async def _patch_seen(self, resource: Resource, namespace: str, name: str, patch: Object, subresource: str = "") -> Object:
        """One write to an object as it was seen, by the uid and resourceVersion that `patch` names. Raises Stale where that is over."""
        self._fence()
        try:
            answer = await self.client.merge_patch(resource, namespace, name, patch, subresource)
        except (Conflict, NotFound) as error:
            await self.refresh(resource, namespace, name)
            raise Stale from error
        self._learn(answer)
        return answer

    async def _delete(self, action: Delete) -> Done:
        resource = resource_of(action.api_version, action.kind)
        live = self.store.get(action.kind, action.namespace, action.name)
        if live is not None and live["metadata"]["uid"] == action.uid and "deletionTimestamp" in live["metadata"]:
            return False
        self._fence()
        name = Name(action.kind, action.namespace, action.name)
        try:
            log.info("%s %s is deleted", action.kind, action.name, extra={"namespace": action.namespace})
            answer = await self.client.delete(resource, action.namespace, action.name, uid=action.uid, propagation=action.propagation)
        except NotFound:
            self._tell(self.store.forget(name, action.uid))
            return True
        except Conflict as error:
            await self.refresh(resource, action.namespace, action.name)
            raise Stale from error
        if answer.get("kind") == action.kind and "resourceVersion" in answer.get("metadata", {}):
            self._learn(answer)
        else:
            self._tell(self.store.forget(name, action.uid))
        return True

    async def _set_owners(self, action: SetOwners) -> Done:
        resource = resource_of(action.api_version, action.kind)
        patch = {
            "metadata": {
                "uid": action.uid,
                "resourceVersion": action.resource_version,
                "ownerReferences": [dict(owner) for owner in action.owners] or None,
            }
        }
        await self._patch_seen(resource, action.namespace, action.name, patch)
        return True

    def _fence(self) -> None:
        if not self.may_write():
            raise NotLeading

    def _learn(self, answer: Object) -> None:
        self._tell(self.store.put(answer))

    def _tell(self, keys: set[Key]) -> None:
        for key in keys:
            self.mark(key)


def is_ours(live: Object, wanted: Object) -> bool:
    """Whether a live object is the one that `wanted` describes, and not a stranger's of the same name.

    By an owner's uid; claims and versions change owners or have none, so theirs is the job's uid that they carry; a route outlives
    each single version, so its model is what counts.
    """
    labels, own = live["metadata"].get("labels") or {}, wanted["metadata"].get("labels") or {}
    if wanted["kind"] == CLAIM.kind:
        return _equal(labels, own, names.JOB_UID_LABEL)
    if wanted["kind"] == MODELVERSION.kind:
        lineage, own_lineage = live.get("spec", {}).get("lineage", {}), wanted["spec"]["lineage"]
        return _equal(lineage, own_lineage, "jobUid") and _equal(lineage, own_lineage, "runDigest")
    if wanted["kind"] == HTTPROUTE.kind:
        return _equal(labels, own, names.MANAGED_BY) and _equal(labels, own, names.MODEL_LABEL)
    return bool(owners_of(live) & owners_of(wanted))


def _equal(live: Object, wanted: Object, key: str) -> bool:
    return bool(wanted.get(key)) and live.get(key) == wanted[key]


def stranger_problem(live: Object, wanted: Object) -> ActionProblem:
    name = name_of(live)
    if "deletionTimestamp" in live["metadata"] or _is_of_a_former_owner(live, wanted):
        message = f"{name.kind} {name.name} of a former owner is still being deleted"
        return _problem(name.kind, name.name, Reason.WAITING_FOR_PREVIOUS_OWNER, message)
    message = f"{name.kind} {name.name} exists and was not made by this operator for this object; delete or rename it"
    return _problem(name.kind, name.name, Reason.NOT_OWNED, message)


def _is_of_a_former_owner(live: Object, wanted: Object) -> bool:
    """An object of the owner's name had it before and is gone, as names are unique: the garbage collector has not come by yet."""
    names_of = [[(owner["kind"], owner["name"]) for owner in one["metadata"].get("ownerReferences") or ()] for one in (live, wanted)]
    return bool(names_of[0]) and set(names_of[0]) <= set(names_of[1])


def problem_of(action: Action, error: ApiError) -> ActionProblem:
    if isinstance(action, (Create, Apply)):
        kind, name = action.body["kind"], action.body["metadata"]["name"]
    else:
        kind, name = action.kind, action.name
    return problem_about(kind, name, error)


def problem_about(kind: str, name: str, error: ApiError) -> ActionProblem:
    return _problem(kind, name, _reason(error), error.message)


def _problem(kind: str, name: str, reason: Reason, message: str) -> ActionProblem:
    return ActionProblem(kind, name, reason, cut(message))


def _reason(error: ApiError) -> Reason:
    if isinstance(error, Forbidden):
        return Reason.QUOTA_EXCEEDED if "exceeded quota" in error.message else Reason.FORBIDDEN
    return Reason.INVALID if isinstance(error, Invalid) else Reason.API_ERROR


def _yielding(body: Object, live: Object, members: tuple[str, ...]) -> Object:
    """The body with the live object's values for members of spec that are somebody else's."""
    theirs = {member: live["spec"][member] for member in members if member in live["spec"]}
    return {**body, "spec": {**body["spec"], **theirs}} if theirs else body


def _pinned(body: Object, live: Object, *, to_version: bool) -> Object:
    """The API then refuses to bring back an object that is gone and, `to_version`, to overwrite what changed since it was read."""
    held = {"uid": live["metadata"]["uid"], **({"resourceVersion": live["metadata"]["resourceVersion"]} if to_version else {})}
    return {**body, "metadata": {**body["metadata"], **held}}


def _marked(body: Object) -> Object:
    metadata = body["metadata"]
    annotations = {**(metadata.get("annotations") or {}), DESIRED_ANNOTATION: desired_mark(body)}
    return {**body, "metadata": {**metadata, "annotations": annotations}}
