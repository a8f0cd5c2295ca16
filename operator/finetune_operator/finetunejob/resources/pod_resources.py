"""What a stage's pod asks for. Pure."""

from __future__ import annotations

from decimal import Decimal

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.quantity import amount_of
from finetune_api.run import Stage

from finetune_operator.core.names import Object
from finetune_operator.finetunejob.resources.run_spec import StageRequest

_OTHER_STAGES = {"cpu": "1", "memory": "4Gi"}


def pod_resources(spec: FineTuneJobSpec, request: StageRequest) -> Object:
    """`requests` and `limits` of the stage's container."""
    on_gpu = request.stage.access.gpus and not request.report
    resources = spec.resources
    gpus = {resources.gpu_resource_name: str(resources.gpus_per_node)} if on_gpu and resources.gpus_per_node else {}
    own = resources if on_gpu else getattr(spec.stages, request.stage.value, None)
    cpu = (own.cpu if own else None) or _OTHER_STAGES["cpu"]
    memory = (own.memory if own else None) or _OTHER_STAGES["memory"]
    limit = (own.cpu_limit if own else None) or _inherited_limit(spec, cpu)
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {**({"cpu": limit} if limit else {}), "memory": memory, **gpus}}


def _inherited_limit(spec: FineTuneJobSpec, request: str) -> str | None:
    """The train stage's, or the request where that is more: a limit below its request is refused."""
    limit = spec.resources.cpu_limit
    return max(limit, request, key=lambda text: amount_of(text) or 0) if limit else None


def largest_request(spec: FineTuneJobSpec) -> dict[str, Decimal]:
    """What a node must offer to hold each of the stages, one at a time: amounts by resource."""
    most: dict[str, Decimal] = {}
    for stage in Stage:
        wanted = pod_resources(spec, StageRequest(stage, 1, ""))
        for name, amount in {**wanted["limits"], **wanted["requests"]}.items():
            most[name] = max(most.get(name, Decimal(0)), amount_of(amount) or Decimal(0))
    return most
