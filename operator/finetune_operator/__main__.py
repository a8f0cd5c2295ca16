"""`python -m finetune_operator`: flags and environment → Settings → kopf.run."""

from __future__ import annotations

import argparse
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import kopf
import yaml

from finetune_operator import handlers, logs
from finetune_operator.core.settings import Settings
from finetune_operator.kube.connection import connect
from finetune_operator.planners import PLANNERS
from finetune_operator.runtime import Options, Runtime
from finetune_operator.status_server.service import Listening


def main() -> None:
    flags = _parser().parse_args()
    logs.configure(flags.log_level)
    settings = _settings(flags)
    listening = Listening(flags.status_port, os.environ.get("POD_IP", ""), flags.status_service, flags.status_secret)
    options = Options(listening, lease=flags.lease, health_port=flags.health_port, metrics_port=flags.metrics_port, workers=flags.workers)
    runtime = Runtime(settings, options, partial(connect, _kubeconfig()), PLANNERS)
    kopf.run(
        registry=handlers.register(runtime),
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        stop_flag=runtime.stopping,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune_operator", description="Runs FineTuneJobs and ModelVersions.")
    parser.add_argument("--settings", metavar="FILE", help="YAML file with the members of Settings. Default: none.")
    parser.add_argument("--lease", default="finetune-operator", help="Lease by which one replica leads. Default: %(default)s")
    parser.add_argument("--health-port", type=int, default=8080, help="port of /healthz and /readyz. Default: %(default)s")
    parser.add_argument("--metrics-port", type=int, default=9090, help="port of /metrics. Default: %(default)s")
    parser.add_argument("--status-port", type=int, default=8443, help="port of the progress endpoint. Default: %(default)s")
    parser.add_argument("--status-service", default="finetune-status", help="its Service. Default: %(default)s")
    parser.add_argument("--status-secret", default="finetune-status-tls", help="Secret with its keys. Default: %(default)s")
    parser.add_argument("--workers", type=int, default=8, help="passes at a time. Default: %(default)s")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="Default: %(default)s")
    return parser


def _settings(flags: argparse.Namespace) -> Settings:
    given: dict[str, Any] = yaml.safe_load(Path(flags.settings).read_text()) or {} if flags.settings else {}
    given.setdefault("identity", os.environ.get("POD_NAME") or socket.gethostname())
    if "POD_NAMESPACE" in os.environ:
        given.setdefault("namespace", os.environ["POD_NAMESPACE"])
    return Settings.model_validate(given)


def _kubeconfig() -> str | None:
    """None inside a pod, unless told otherwise."""
    default = Path.home() / ".kube" / "config"
    given = os.environ.get("KUBECONFIG")
    return given or (None if os.environ.get("KUBERNETES_SERVICE_HOST") else str(default))


if __name__ == "__main__":
    main()
