"""What `train` leaves on storage, and where later stages find it.

train/<writer>/
    adapter/                    the adapter as PEFT reads it: adapter_model.safetensors, adapter_config.json
    model/                      or full weights: safetensors in the base's type, its config.json unchanged
    metrics.jsonl               the loss curve
"""

from __future__ import annotations

ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""Source: peft.utils.SAFETENSORS_WEIGHTS_NAME."""
ADAPTER_CONFIG = "adapter_config.json"
"""Source: peft.utils.CONFIG_NAME."""
MODEL_FOLDER = "model"
CURVE_FILE = "metrics.jsonl"
