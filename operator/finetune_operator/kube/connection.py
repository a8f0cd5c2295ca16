"""The connection to the API server: the only file that imports `kubernetes`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientError, ClientTimeout
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from finetune_operator.kube.client import Request, Response, Send


@asynccontextmanager
async def connect(kubeconfig: str | None, connections: int = 32) -> AsyncIterator[Send]:
    """Requests as a kubeconfig file says, or with the pod's service account where None is given."""
    configuration = Configuration()
    configuration.connection_pool_maxsize = connections
    if kubeconfig:
        await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    async with ApiClient(configuration) as api:
        api.user_agent = "finetune-operator"

        async def send(request: Request) -> Response:
            headers = {"Accept": request.accept, "Content-Type": request.content_type, "User-Agent": api.user_agent}
            # reads the projected token again when it is older than a minute
            await api.update_params_for_auth(headers, [], ["BearerToken"], request.path, request.method, None)
            try:
                answer = await api.call_api(
                    request.method,
                    configuration.host + request.url,
                    headers,
                    request.body,
                    _request_timeout=ClientTimeout(total=request.timeout_s),
                )
                body = await answer.read()
            except ClientError as error:
                raise OSError(str(error) or type(error).__name__) from error
            return Response(answer.status, body, answer.getheader("Retry-After"))

        yield send
