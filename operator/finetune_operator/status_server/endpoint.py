"""Where pods find the leader: the EndpointSlice behind a Service without selector, written by whoever leads."""

from __future__ import annotations

from ipaddress import ip_address

from finetune_operator.core import names
from finetune_operator.core.names import Object
from finetune_operator.kube.resources import ENDPOINTSLICE


def make_endpoint_slice(namespace: str, service: str, pod_ip: str, port: int, owners: list[Object]) -> Object:
    """One slice with one address. Two replicas never write different slices: the name is the Service's."""
    return {
        "apiVersion": ENDPOINTSLICE.api_version,
        "kind": ENDPOINTSLICE.kind,
        "metadata": {
            "name": service,
            "namespace": namespace,
            "ownerReferences": owners,
            "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": names.GROUP},
        },
        "addressType": f"IPv{ip_address(pod_ip).version}",
        "endpoints": [{"addresses": [pod_ip], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }
