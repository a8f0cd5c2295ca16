"""`spec.storage` and `spec.retention`: where the files lie and how long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.quantity import StorageSize
from finetune_api.section import ObjectName, Section, rules
from finetune_api.union import Union, member_of


class ClaimTemplate(Section):
    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.claimName) != has(self.size)", "set claimName (a claim that is there) or size (one is made), exactly one of them"),
            ("!has(self.claimName) || !has(self.storageClassName)", "storageClassName goes with size"),
        )
    )

    claim_name: ObjectName | None = Field(default=None, description="An existing PersistentVolumeClaim in the job's namespace. No default.")
    size: StorageSize | None = Field(default=None, description="Size of a claim made for this job, in bytes. No default.")
    storage_class_name: ObjectName | None = Field(default=None, description="StorageClass of the claim made. Default: the cluster's.")
    access_modes: Annotated[list[Literal["ReadWriteOnce", "ReadWriteMany"]], Field(min_length=1, max_length=2)] = Field(
        default=["ReadWriteOnce"],
        description="Access modes of the claim made. Default: ReadWriteOnce.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class Storage(Union):
    type: Literal["PersistentVolumeClaim"] = Field(
        default="PersistentVolumeClaim", description="Kind of storage. Default: PersistentVolumeClaim."
    )
    persistent_volume_claim: ClaimTemplate | None = Field(
        default=None,
        description="The claim that holds the job's files; with type PersistentVolumeClaim only, and required there. No default.",
        json_schema_extra=member_of("PersistentVolumeClaim", required=True),
    )


class Retention(Section):
    checkpoints: Literal["Delete", "Keep"] = Field(default="Delete", description="Checkpoints after success. Default: Delete.")
    artifacts: Literal["Keep", "Delete"] = Field(
        default="Delete",
        description="Files on a claim made by the operator once neither job nor version is left: Delete removes the claim, Keep leaves it. Default: Delete.",
    )
