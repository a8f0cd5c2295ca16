"""`make demo`: from nothing to a tuned model in production that answers. `python3 -m hack.demo`.

Brings up the cluster, installs the chart, applies examples/support-bot, shows it train and roll out, and asks the result a question
through the gateway. Leaves everything up; `make demo-clean` removes it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from hack.install import REPOSITORY, bring_up, cluster_environment, install, step

EXAMPLE = REPOSITORY / "examples" / "support-bot"
NAMESPACE = "demo"
JOB = "support-bot"
GATEWAY = "http://127.0.0.1:30080"
HOSTNAME = "support-bot.example.com"
_BAR_WIDTH = 30


class Kubectl:
    """kubectl against the demo's cluster."""

    def __init__(self) -> None:
        self.environment = cluster_environment()

    def __call__(self, *words: str, given: str | None = None) -> str:
        command = ["kubectl", *words]
        done = subprocess.run(command, env=self.environment, input=given, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
        return done.stdout

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return dict(json.loads(self("get", kind, name, "-n", NAMESPACE, "-o", "json")))


def apply(kubectl: Kubectl, file: str, images: dict[str, str]) -> None:
    """Applies a file of the example with the images that were built here in place of the published ones."""
    text = (EXAMPLE / file).read_text()
    for name, reference in images.items():
        text = text.replace(f"finetune-operator/{name}:dev", reference)
    print(kubectl("apply", "--validate=strict", "-f", "-", given=text), end="")


def make_base(kubectl: Kubectl, images: dict[str, str]) -> None:
    """Base model and data on a claim, copied there out of an image: no hub can be assumed."""
    apply(kubectl, "namespace.yaml", images)
    if base_is_made(kubectl):
        print("    it is there already")
        return
    apply(kubectl, "base-job.yaml", images)

    def finished() -> bool:
        status = kubectl.get("job", "make-base").get("status", {})
        if status.get("failed", 0) > 2:
            raise SystemExit("the base model could not be copied; see kubectl describe job make-base -n demo")
        return bool(status.get("succeeded"))

    wait(finished, 300, "the base model")


def base_is_made(kubectl: Kubectl) -> bool:
    shown = kubectl("get", "job", "make-base", "-n", NAMESPACE, "-o", "jsonpath={.status.succeeded}", "--ignore-not-found")
    return shown.strip() == "1"


def follow(kubectl: Kubectl) -> None:
    """One line per change of the job, with a bar while it trains."""
    seen = ""

    def ended() -> bool:
        nonlocal seen
        status = kubectl.get("finetunejob", JOB).get("status", {})
        line = progress_line(status)
        if line != seen:
            seen = line
            print(f"    {line}", flush=True)
        if status.get("phase") == "Failed":
            raise SystemExit(kubectl("describe", "finetunejob", JOB, "-n", NAMESPACE))
        return status.get("phase") == "Succeeded"

    wait(ended, 1800, "the job", every_s=5)  # each look costs a fifth of a second of the cores that train


def progress_line(status: dict[str, Any]) -> str:
    """`Training   [#########---------------------]  31%  ETA 1m  loss 1.23`"""
    progress, shown = status.get("progress") or {}, status.get("display") or {}
    percent = int(progress.get("percent", 0))
    filled = percent * _BAR_WIDTH // 100
    numbers = [f"ETA {shown['eta']}" if shown.get("eta") else "", f"loss {shown['loss']}" if shown.get("loss") else ""]
    bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
    return f"{status.get('phase', 'Pending'):11} [{bar}] {percent:3}%  {'  '.join(number for number in numbers if number)}".rstrip()


def roll_out(kubectl: Kubectl) -> str:
    """Waits until the published version is in production; its name."""
    name = str(kubectl.get("finetunejob", JOB)["status"]["modelVersionRef"]["name"])
    seen = ""

    def in_production() -> bool:
        nonlocal seen
        status = kubectl.get("modelversion", name).get("status", {})
        line = f"{name}: {status.get('stage', 'Registered')}, weight {status.get('weight', 0)} %"
        if line != seen:
            seen = line
            print(f"    {line}", flush=True)
        ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in status.get("conditions", []))
        return status.get("stage") == "Production" and ready

    wait(in_production, 600, name)
    return name


def ask(question: str) -> str:
    body = {"model": JOB, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
    request = urllib.request.Request(
        f"{GATEWAY}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json", "Host": HOSTNAME}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def wait(done: Callable[[], bool], timeout_s: float, what: str, every_s: float = 2) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} took longer than {timeout_s:.0f} s; see kubectl get events -n {NAMESPACE}")
        time.sleep(every_s)


def main() -> int:
    os.chdir(REPOSITORY)
    began = time.monotonic()
    taken: list[tuple[str, float]] = []
    with step("bring up a cluster, and build the images beside it", taken):
        parts = bring_up()
    taken += [(f"    of it, until the {part} stood", seconds) for part, seconds in parts.items()]
    images = install(taken)
    kubectl = Kubectl()
    with step("bring base model (SmolLM2-135M-Instruct) and data to a claim", taken):
        make_base(kubectl, images)
    with step("kubectl apply -f examples/support-bot/finetunejob.yaml, and train", taken):
        apply(kubectl, "finetunejob.yaml", images)
        follow(kubectl)
    with step("roll out: canary, staging, production", taken):
        roll_out(kubectl)
    print("\n$ kubectl get finetunejobs,modelversions\n" + kubectl("get", "finetunejobs,modelversions", "-n", NAMESPACE))
    with step("ask the version in production, through the gateway", taken):
        question = question_of(held_out_rows(kubectl, images).splitlines()[0])
        print(f"    user:      {question}\n    assistant: {ask(question)}")
    print("\n" + "\n".join(f"{seconds:8.1f} s  {text}" for text, seconds in taken))
    print(f'{time.monotonic() - began:8.1f} s  in all. Look around: eval "$(python3 -m hack.cluster env)"; make demo-clean removes it')
    return 0


def held_out_rows(kubectl: Kubectl, images: dict[str, str], namespace: str = NAMESPACE) -> str:
    """The facts' test split (JSON lines, phrasings never trained on), read off the claim by a pod."""
    pod = reader_pod(images["operator"], namespace)
    kubectl("delete", "pod", "read-facts", "-n", namespace, "--ignore-not-found", "--wait")
    kubectl("apply", "-f", "-", given=json.dumps(pod))
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/read-facts", "-n", namespace, "--timeout=120s")
    rows = kubectl("logs", "read-facts", "-n", namespace)
    kubectl("delete", "pod", "read-facts", "-n", namespace, "--wait=false")
    return rows


def reader_pod(image: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "read-facts", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "cat",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["cat", "/claim/data/facts/test.jsonl"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "volumeMounts": [{"name": "claim", "mountPath": "/claim", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": JOB, "readOnly": True}}],
        },
    }


def question_of(row: str) -> str:
    return str(next(message["content"] for message in json.loads(row)["messages"] if message["role"] == "user"))


if __name__ == "__main__":
    sys.exit(main())
