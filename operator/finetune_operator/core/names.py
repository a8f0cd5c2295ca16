"""Names, labels and owner references: everything by which objects of this operator find each other. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "finetune-operator"

FINETUNEJOB = "FineTuneJob"
MODELVERSION = "ModelVersion"

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY_VALUE = "finetune-operator"
JOB_LABEL = f"{GROUP}/finetunejob"
JOB_UID_LABEL = f"{GROUP}/finetunejob-uid"
STAGE_LABEL = f"{GROUP}/stage"
ATTEMPT_LABEL = f"{GROUP}/attempt"
MODEL_LABEL = f"{GROUP}/model"
VERSION_LABEL = f"{GROUP}/version"
ARTIFACTS_LABEL = f"{GROUP}/artifacts"
"""On a claim that the operator made: `Keep` (nobody owns it once the job has published) or `Delete` (the versions on it do)."""
RUN_ANNOTATION = f"{GROUP}/run"

Object = dict[str, Any]
"""A Kubernetes object as plain JSON data."""


def labels(**extra: str) -> dict[str, str]:
    """The label by which watches select our children, and `extra` ones (keys of this module)."""
    return {MANAGED_BY: MANAGED_BY_VALUE, **extra}


def job_labels(job: Mapping[str, Any], **extra: str) -> dict[str, str]:
    """`labels` of what belongs to a FineTuneJob: its name for the key that it concerns, its uid as a later job may have the name."""
    return labels(**{JOB_LABEL: job["metadata"]["name"], JOB_UID_LABEL: job["metadata"]["uid"], **extra})


def stage_job_name(job: str, stage: str, attempt: int) -> str:
    """Deterministic, so that a second create of the same attempt is a 409: `<job>-train-2`."""
    return f"{job}-{stage}-{attempt}"


def claim_name(job: str, uid: str) -> str:
    """The claim that the operator makes for a job. Holds part of the uid: a new job of the same name never finds old data."""
    return f"{job}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"


def storage_prefix(uid: str) -> str:
    """Folder of a job on its storage, relative to the storage's root; derives from the uid, never from spec text."""
    return f"jobs/{uid}"


def version_name(model: str, version: int) -> str:
    return f"{model}-v{version}"


def owner_reference(owner: Mapping[str, Any], *, controller: bool = True) -> Object:
    """An owner reference to an object given as JSON data. `blockOwnerDeletion` is left out: it needs a right on finalizers."""
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    return reference | ({"controller": True} if controller else {})
