"""What a pod is told by its surroundings: every variable and path that two sides spell, once.

Two sides: the operator that makes the pods, the trainer in them, images, and people who run a stage on a laptop. A variable that one
file alone sets and reads stays in that file. Plain strings, as both `os.environ` and a pod's manifest want them.
"""

from __future__ import annotations

from typing import Final

# ------------------------------------------------------------------------------------------------------ variables of every stage

RUN_FILE: Final = "FINETUNE_RUN_FILE"
"""Path of the run file (`RunSpec` as JSON). Default: run.json in the working directory."""

POD_UID: Final = "POD_UID"
"""Names the writer of a stage's folders: no two pods ever write to one. Default: a random one."""

TERMINATION_LOG: Final = "FINETUNE_TERMINATION_LOG"
"""Path that a stage's answer is written to. Default: TERMINATION_LOG_FILE, where Kubernetes reads it."""

DEVICE: Final = "FINETUNE_DEVICE"
"""DEVICE_CPU allows a pod that was given GPUs to train without; set by the test cluster's device plugin, by nothing else."""

DEVICE_CPU: Final = "cpu"

LLAMA_HOME: Final = "FINETUNE_LLAMA_HOME"
"""Folder of llama.cpp's programs, libraries and converters; the trainer image sets it. Default: LLAMA_HOME_FOLDER."""

# ----------------------------------------------------------------------------------------------------------- where progress goes

STATUS_URL: Final = "KUBEFLOW_TRAINER_SERVER_URL"
"""Where progress is posted; without it progress is printed only. Source: Kubeflow Trainer, KEP-2779, as are the next two."""

STATUS_CA: Final = "KUBEFLOW_TRAINER_SERVER_CA_CERT"
"""Path of the PEM file that the endpoint's certificate is checked against; empty: the system's authorities."""

STATUS_TOKEN: Final = "KUBEFLOW_TRAINER_SERVER_TOKEN"
"""Path of the token that a post bears; read again for each connection, as the kubelet renews it."""

# ------------------------------------------------------------------------------------------------------------------------ the hub

HUB_OFFLINE: Final = "HF_HUB_OFFLINE"
"""`1`: no stage after prepare reaches the hub. Source: huggingface_hub."""

MODEL_TOKEN: Final = "FINETUNE_MODEL_TOKEN"
"""The hub's token for the base model, in prepare only."""


def dataset_token(dataset: str) -> str:
    """Name of the variable with the hub's token for a data set, in prepare only. Names have no `_`: no two sets share one."""
    return f"FINETUNE_DATASET_TOKEN_{dataset.upper().replace('-', '_')}"


# --------------------------------------------------------------------------------------------------------------- the model server

MODEL_PATH: Final = "MODEL_PATH"
"""Path of the GGUF that the server image serves."""

MODEL_SHA256: Final = "MODEL_SHA256"
"""SHA-256 that this file must have: the server image refuses another one."""

# ---------------------------------------------------------------------------------------------------------- paths in a stage's pod

RUN_FOLDER: Final = "/etc/finetune"
RUN_FILE_NAME: Final = "run.json"
STATUS_CA_NAME: Final = "ca.crt"

TOKEN_FOLDER: Final = "/var/run/finetune"
TOKEN_NAME: Final = "token"

STORAGE_ROOT: Final = "/storage"
"""The claim that holds the job's files."""

RESUME_ROOT: Final = "/resume"
"""The claim of the older job whose stages are taken over, where it is another one."""

TERMINATION_LOG_FILE: Final = "/dev/termination-log"
LLAMA_HOME_FOLDER: Final = "/opt/llama"


def claim_folder(claim: str) -> str:
    """Where a claim is mounted that model or data are read from."""
    return f"/claims/{claim}"
