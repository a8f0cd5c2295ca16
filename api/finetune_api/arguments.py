"""`training.args`: which TRL and transformers arguments a user may set by their own names, and what each must be.

`python -m finetune_api.arguments` writes `training_arguments.json` from the installed TRL; reading it needs neither TRL nor torch,
so the operator answers before anything runs. Validation is ours, not TrlParser's: that one takes `2.7` for an integer and `null` for
anything.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.sections.training import Optimizer, Scheduler, Switch, Training

SCHEMA_FILE = Path(__file__).with_name("training_arguments.json")

_CHECKPOINTS = "checkpoints are the platform's own; use checkpoints"
_LOGGING = "every step is logged; remove it"
_HUB = "nothing is pushed while training; remove it"
_PARALLEL = "parallelism is the platform's; use resources.gpusPerNode"
_PREPARED = "rows are prepared before training; use {field}"

OWNED: dict[str, str] = {
    "output_dir": "the platform chooses the folder; remove it",
    "resume_from_checkpoint": "runs resume by themselves; remove it",
    "ignore_data_skip": "runs resume exactly; remove it",
    "restore_callback_states_from_checkpoint": "runs resume exactly; remove it",
    "trust_remote_code": "code of a model never runs; remove it",
    "model_init_kwargs": "use model (dtype, attentionImplementation, revision) and quantization",
    "learning_rate": "use training.learningRate",
    "num_train_epochs": "use training.epochs",
    "max_steps": "use training.maxSteps",
    "lr_scheduler_type": "use training.scheduler",
    "warmup_steps": "use training.warmup.steps or training.warmup.ratio",
    "warmup_ratio": "use training.warmup.ratio",
    "per_device_train_batch_size": "use training.perDeviceBatchSize",
    "per_device_eval_batch_size": "use training.perDeviceBatchSize",
    "gradient_accumulation_steps": "use training.globalBatchSize and training.perDeviceBatchSize",
    "auto_find_batch_size": "use training.perDeviceBatchSize",
    "optim": "use training.optimizer",
    "weight_decay": "use training.weightDecay",
    "max_grad_norm": "use training.maxGradNorm",
    "neftune_noise_alpha": "use training.neftuneNoiseAlpha",
    "bf16": "use training.precision",
    "fp16": "use training.precision",
    "bf16_full_eval": "use training.precision",
    "fp16_full_eval": "use training.precision",
    "gradient_checkpointing": "use training.gradientCheckpointing",
    "activation_checkpointing": "use training.gradientCheckpointing",
    "eval_strategy": "use training.evalEverySteps",
    "eval_steps": "use training.evalEverySteps",
    "prediction_loss_only": "evaluation while training takes the loss only; remove it",
    "batch_eval_metrics": "evaluation while training takes the loss only; remove it",
    "include_for_metrics": "evaluation while training takes the loss only; remove it",
    "seed": "use training.seed",
    "data_seed": "use training.seed",
    "max_length": "use training.maxLength",
    "packing": "use training.packing",
    "packing_strategy": "use training.packing",
    "eval_packing": "use training.packing",
    "padding_free": "use training.packing (None is padding-free)",
    "pad_to_multiple_of": "rows are not padded; remove it",
    "dataset_text_field": _PREPARED.format(field="datasets.columns.text"),
    "dataset_kwargs": _PREPARED.format(field="datasets"),
    "dataset_num_proc": _PREPARED.format(field="stages.prepare.cpu"),
    "truncation_mode": _PREPARED.format(field="training.maxLength"),
    "shuffle_dataset": "rows are drawn anew each epoch by training.seed; remove it",
    "completion_only_loss": "use method.sft.loss: Completion",
    "assistant_only_loss": "use method.sft.loss: AssistantTurns",
    "chat_template_path": "use model.chatTemplate",
    "eos_token": "use model.chatTemplate: its end of turn is the end of an answer",
    "pad_token": "rows are not padded; remove it",
    "remove_unused_columns": "rows hold token ids and labels only; remove it",
    "label_names": "rows hold token ids and labels only; remove it",
    "length_column_name": "rows hold token ids and labels only; remove it",
    "save_strategy": _CHECKPOINTS,
    "save_steps": _CHECKPOINTS + ".everySteps",
    "save_total_limit": _CHECKPOINTS + ".keep",
    "save_only_model": _CHECKPOINTS,
    "save_on_each_node": _CHECKPOINTS,
    "save_safetensors": "weights are safetensors always; remove it",
    "enable_jit_checkpoint": _CHECKPOINTS + ".onPreemption",
    "load_best_model_at_end": "the last step is what is published; remove it",
    "metric_for_best_model": "the last step is what is published; remove it",
    "greater_is_better": "the last step is what is published; remove it",
    "logging_strategy": _LOGGING,
    "logging_steps": _LOGGING,
    "logging_first_step": _LOGGING,
    "logging_dir": _LOGGING,
    "logging_nan_inf_filter": "a loss that is not finite ends the run; remove it",
    "disable_tqdm": "progress is in status.progress; remove it",
    "report_to": "progress is in status.progress; remove it",
    "run_name": "progress is in status.progress; remove it",
    "project": "progress is in status.progress; remove it",
    "trackio_space_id": "progress is in status.progress; remove it",
    "trackio_bucket_id": "progress is in status.progress; remove it",
    "trackio_static_space_id": "progress is in status.progress; remove it",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "use_cache": "documents of one batch would see each other; remove it",
    "use_cpu": "the device follows from resources.gpusPerNode; remove it",
    "local_rank": _PARALLEL,
    "ddp_backend": _PARALLEL,
    "fsdp": _PARALLEL,
    "fsdp_config": _PARALLEL,
    "deepspeed": _PARALLEL,
    "parallelism_config": _PARALLEL,
    "accelerator_config": _PARALLEL,
    "do_train": "stages are the platform's; remove it",
    "do_eval": "stages are the platform's; remove it",
    "do_predict": "stages are the platform's; remove it",
    "optim_target_modules": "no choice of training.optimizer reads it; remove it",
    # Names of older releases, of other tools, and of what TRL's command line takes beside its SFTConfig.
    **dict.fromkeys(("torch_dtype", "dtype", "model_dtype"), "use model.dtype"),
    **dict.fromkeys(("attn_implementation", "use_flash_attention_2", "flash_attn"), "use model.attentionImplementation"),
    **dict.fromkeys(("model_name_or_path", "model_name"), "use model.source"),
    "model_revision": "use model.revision",
    "chat_template": "use model.chatTemplate",
    **dict.fromkeys(("tokenizer", "processing_class", "tokenizer_name"), "the tokenizer is the model's own; remove it"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "model_max_length", "cutoff_len", "block_size"), "use training.maxLength"),
    **dict.fromkeys(("lr", "learning_rate_scheduler"), "use training.learningRate and training.scheduler"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "use training.epochs"),
    **dict.fromkeys(("scheduler", "lr_scheduler"), "use training.scheduler"),
    **dict.fromkeys(("optimizer", "adafactor"), "use training.optimizer"),
    **dict.fromkeys(("gradient_clipping", "clip_grad_norm"), "use training.maxGradNorm"),
    **dict.fromkeys(
        ("per_gpu_train_batch_size", "per_gpu_eval_batch_size", "micro_batch_size", "train_batch_size"), "use training.perDeviceBatchSize"
    ),
    **dict.fromkeys(("batch_size", "global_batch_size"), "use training.globalBatchSize"),
    **dict.fromkeys(("evaluation_strategy", "do_eval_steps"), "use training.evalEverySteps"),
    **dict.fromkeys(("half_precision_backend", "fp16_backend", "fp16_opt_level", "precision"), "use training.precision"),
    **dict.fromkeys(("no_cuda", "use_mps_device", "device", "device_map"), "the device follows from resources.gpusPerNode; remove it"),
    "group_by_length": "padding-free batches gain nothing from it, and such an order does not resume exactly; remove it",
    **dict.fromkeys(("lora_r", "lora_rank"), "use adapter.lora.rank"),
    "lora_alpha": "use adapter.lora.alpha",
    "lora_dropout": "use adapter.lora.dropout",
    **dict.fromkeys(("lora_target_modules", "lora_target", "target_modules"), "use adapter.lora.targetModules"),
    **dict.fromkeys(("lora_modules_to_save", "modules_to_save"), "use adapter.lora.modulesToSave"),
    **dict.fromkeys(("use_peft", "peft_config", "finetuning_type"), "use adapter.type"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "quantization_config"), "use quantization.type"),
    **dict.fromkeys(("bnb_4bit_use_double_quant", "use_bnb_nested_quant"), "use quantization.nf4.doubleQuantization"),
    "bnb_4bit_compute_dtype": "use quantization.nf4.computeDtype",
    **dict.fromkeys(("response_template", "instruction_template", "train_on_inputs"), "use method.sft.loss"),
    **dict.fromkeys(("dataset_batch_size", "num_of_sequences", "chars_per_token"), _PREPARED.format(field="training.packing")),
    **dict.fromkeys(("overwrite_output_dir",), "the platform chooses the folder; remove it"),
    **dict.fromkeys(("push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"), _HUB),
    **dict.fromkeys(("early_stopping_patience",), "the last step is what is published; use training.maxSteps"),
    **dict.fromkeys(("sharded_ddp", "dispatch_batches", "split_batches", "mp_parameters"), _PARALLEL),
    **dict.fromkeys(
        ("jit_mode_eval", "use_ipex", "past_index", "torchdynamo", "ray_scope", "tpu_num_cores", "tpu_metrics_debug"),
        "transformers no longer has it; remove it",
    ),
}
"""Arguments that the platform sets itself, or that are called otherwise here, with what to use instead."""

_NARROWED: dict[str, tuple[list[str], str]] = {
    "train_sampling_strategy": (
        ["random", "sequential"],
        "random or sequential: padding-free batches gain nothing from rows grouped by length, and such an order does not resume exactly",
    ),
    "torch_compile_mode": (["default", "lite", "max-autotune", "max-autotune-no-cudagraphs", "reduce-overhead"], ""),
    # Those that accelerate and torch both know and that need no package of their own.
    "torch_compile_backend": (["aot_eager", "cudagraphs", "eager", "inductor"], ""),
}
"""Choices that are fewer than the schema's, or that it does not tell, and why. Source: torch._inductor.list_mode_options;
torch._dynamo.list_backends and accelerate's DynamoBackend."""


class Range(NamedTuple):
    """Numbers from `least` to `most`; without `most` to the largest that is finite."""

    least: float
    most: float = sys.float_info.max
    below_most: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is one of them; NaN is none."""
        return self.least <= value <= self.most and not (self.below_most and value == self.most)

    def __str__(self) -> str:
        if self.most == sys.float_info.max:
            return f"a number from {self.least:g} on"
        return f"from {self.least:g} to {'below ' if self.below_most else ''}{self.most:g}"


_RANGES: dict[str, Range] = {
    "adam_beta1": Range(0, 1, below_most=True),
    "adam_beta2": Range(0, 1, below_most=True),
    "adam_epsilon": Range(0),
    "dataloader_num_workers": Range(0),
    "dataloader_prefetch_factor": Range(1),
    "ddp_bucket_cap_mb": Range(1),
    "ddp_timeout": Range(1),
    "eval_accumulation_steps": Range(1),
    "eval_delay": Range(0),
    "every_n_layers": Range(1),
    "label_smoothing_factor": Range(0, 1),
    "router_aux_loss_coef": Range(0),
    "torch_empty_cache_steps": Range(1),
}
"""Numbers that mean something. Some the libraries refuse too, when a GPU is taken already; others they take in silence. Source:
torch.optim.Adam, torch.utils.data.DataLoader, torch.nn.CrossEntropyLoss, transformers.TrainingArguments."""

_CHECKPOINTING = {
    "debug": "boolean",
    "determinism_check": "string",
    "early_stop": "boolean",
    "every_n_layers": "integer",
    "offload": "boolean",
    "preserve_rng_state": "boolean",
    "respect_saved_tensors_hooks": "boolean",
    "selective": "boolean",
    "use_reentrant": "boolean",
}
_MEMBERS = {"activation_checkpointing_kwargs": _CHECKPOINTING, "gradient_checkpointing_kwargs": _CHECKPOINTING}
"""Members of arguments that are objects, and their types: others end the first step. Source: torch.utils.checkpoint.checkpoint,
transformers.PreTrainedModel.activation_checkpointing_enable, TRL's SFTTrainer (selective)."""

_OF_WORKERS = frozenset({"dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"})
"""Arguments that torch's loader refuses without workers. Source: torch.utils.data.DataLoader."""

_NEEDS_GPU: dict[str, Any] = {
    "activation_offloading": True,
    "tf32": True,
    "torch_compile_backend": "cudagraphs",
    "use_liger_kernel": True,
}
"""Values that a CPU cannot serve. Source: transformers.TrainingArguments (tf32), TRL's OffloadActivations, torch._dynamo's cudagraphs
(passed over on a CPU), Liger's Triton kernels."""

_SCHEDULER_MEMBERS: dict[Scheduler, dict[str, str]] = {
    Scheduler.COSINE: {"num_cycles": "number"},
    Scheduler.POLYNOMIAL: {"lr_end": "number", "power": "number"},
    Scheduler.INVERSE_SQRT: {"timescale": "integer"},
}
"""What each schedule reads of `lr_scheduler_kwargs`; the others read none. Source: transformers.optimization."""


_ADAM = frozenset({Optimizer.ADAMW, Optimizer.ADAMW_FUSED, Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT, Optimizer.PAGED_ADAMW_32BIT})
_READ_BY: dict[str, frozenset[Optimizer]] = {
    "adam_beta1": _ADAM,
    "adam_beta2": _ADAM,
    "adam_epsilon": _ADAM,
    "optim_args": frozenset({Optimizer.SGD}),
}
"""Arguments that only some optimizers read; transformers passes over them in silence for the others. Source: its trainer_optimizer.py."""
_SGD_ARGS = re.compile(r"(momentum|dampening)=[0-9.e+-]+|nesterov=(true|false)", re.IGNORECASE)
"""Of `optim_args`, what SGD reads and no field owns."""


@cache
def schema() -> dict[str, dict[str, Any]]:
    """Each argument's `types` (JSON: boolean, integer, number, string, array, object, null) and, where it has them, `choices`."""
    loaded: dict[str, dict[str, Any]] = json.loads(SCHEMA_FILE.read_bytes())["arguments"]
    return loaded


def argument_findings(args: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with `training.args`: `(name, sentence)` each, in the order given; empty where all can be passed on.

    Values are never quoted but for short numbers written as strings, which the sentence shows how to write.
    """
    findings = []
    for name, value in args.items():
        finding = _finding(name, value)
        if finding:
            findings.append((name, finding))
    return findings


def training_findings(training: Training, gpus: int | None = None) -> list[tuple[str, str]]:
    """What is wrong with the `args` of a `training` section: as `argument_findings`, and what its other fields would not read.

    `gpus`: of each node, where that is known; 0 trains on the CPU.
    """
    return argument_findings(training.args) + [
        (name, finding)
        for name, value in training.args.items()
        if value is not None and (finding := _finding_beside(name, value, training) or _finding_of_device(name, value, gpus))
    ]


def _finding_of_device(name: str, value: Any, gpus: int | None) -> str | None:
    if gpus != 0 or name not in _NEEDS_GPU or value != _NEEDS_GPU[name]:
        return None
    return f"{json.dumps(value)} needs a GPU, and resources.gpusPerNode is 0: remove it, or train on one"


def _finding_beside(name: str, value: Any, training: Training) -> str | None:
    if name == "lr_scheduler_kwargs":
        return _finding_of_scheduler(value, training.scheduler)
    return _finding_of_companions(name, value, training) or _finding_of_optimizer(name, value, training.optimizer)


def _finding_of_companions(name: str, value: Any, training: Training) -> str | None:
    """What is not read, or crashes, for what another argument or field says."""
    args = training.args
    if name in _MEMBERS and training.gradient_checkpointing is Switch.DISABLED:
        return "training.gradientCheckpointing Disabled does not read it; remove it"
    if name == "gradient_checkpointing_kwargs" and args.get("activation_checkpointing_kwargs") is not None:
        return "activation_checkpointing_kwargs is read instead of it; remove one"
    if name in _OF_WORKERS and value and not args.get("dataloader_num_workers"):
        return "only workers read it; set dataloader_num_workers too, or remove it"
    if name == "torch_compile_mode" and args.get("torch_compile_backend") not in (None, "inductor"):
        return "only the backend inductor reads it; remove it"
    return None


def _finding_of_scheduler(value: Any, scheduler: Scheduler) -> str | None:
    members = _SCHEDULER_MEMBERS.get(scheduler)
    if members is None:
        return f"training.scheduler {scheduler} does not read it ({', '.join(sorted(_SCHEDULER_MEMBERS))} would); remove it"
    return _finding_of_members(value, members) if isinstance(value, dict) else None


def _finding_of_optimizer(name: str, value: Any, optimizer: Optimizer) -> str | None:
    readers = _READ_BY.get(name)
    if readers is None:
        return None
    if optimizer not in readers:
        return f"training.optimizer {optimizer} does not read it ({', '.join(sorted(readers))} would); remove it"
    if name == "optim_args" and not all(_SGD_ARGS.fullmatch(part) for part in str(value).replace(" ", "").split(",")):
        return "SGD reads momentum=<number>, dampening=<number> and nesterov=<true|false>, joined by commas"
    return None


def _finding(name: str, value: Any) -> str | None:
    if name in OWNED:
        return OWNED[name]
    if name not in schema():
        return f"no such argument; {_hint(name)}"
    return _finding_of_type(name, value) or _finding_of_value(name, value)


def _finding_of_type(name: str, value: Any) -> str | None:
    kinds = schema()[name]["types"]
    if "object" in kinds:
        kinds = [kind for kind in kinds if kind != "string"]  # JSON in a string is for command lines
    return None if any(_is_of(value, kind) for kind in kinds) else _type_sentence(value, kinds)


def _finding_of_value(name: str, value: Any) -> str | None:
    choices, why = _NARROWED.get(name, (schema()[name].get("choices"), ""))
    if choices and isinstance(value, str) and value not in choices:
        return f"must be {why}" if why else f"must be one of {', '.join(choices)}"
    if name in _MEMBERS and value is not None:
        return _finding_of_members(value, _MEMBERS[name])
    return _finding_of_range(name, value)


def _finding_of_range(name: str, value: Any) -> str | None:
    bounds = _RANGES.get(name)
    if bounds is None or value is None or bounds.holds(value):
        return None
    return f"must be {bounds}"


def _finding_of_members(value: Mapping[str, Any], members: Mapping[str, str]) -> str | None:
    for name, inner in value.items():
        if name not in members:
            return f"{name} is not read; {', '.join(members)} would be"
        finding = _type_sentence(inner, [members[name]]) if not _is_of(inner, members[name]) else _finding_of_range(name, inner)
        if finding:
            return f"{name} {finding}"
    return None


def _hint(name: str) -> str:
    field = Training.model_fields.get(_snake(name))
    if field is not None:
        return f"use training.{field.alias}"
    near = get_close_matches(name, {*schema(), *OWNED}, n=1, cutoff=0.75)
    if not near:
        return "see the TrainingArguments of transformers and SFTConfig of TRL"
    return f"did you mean {near[0]}? {OWNED.get(near[0], '')}".rstrip()


def _snake(name: str) -> str:
    """`maxSteps` → `max_steps`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _is_of(value: Any, kind: str) -> bool:
    match kind:
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case _:
            return value is None


def _type_sentence(value: Any, kinds: list[str]) -> str:
    wanted = " or ".join(kinds)
    if isinstance(value, str) and {"number", "integer"} & set(kinds):
        number = _as_number(value)
        if number is not None:
            return f"must be {wanted}, is a string: write {number}, without quotes (in YAML an exponent needs a point before it)"
    return f"must be {wanted}, is {_kind_of(value)}"


def _as_number(text: str) -> str | None:
    """How to write a number that YAML 1.1 takes for text (`4e-5`, `"3"`): with a point in the mantissa."""
    if len(text) > 32:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    mantissa, letter, exponent = text.strip().lower().partition("e")
    if not letter:
        return mantissa
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+03d}" if number == number else None


def _kind_of(value: Any) -> str:
    for kind in ("boolean", "integer", "number", "string", "array", "object"):
        if _is_of(value, kind):
            return kind
    return "null"


# ------------------------------------------------------------------------------------------------------------------- the generator


def generated_schema() -> dict[str, Any]:
    """The schema of the installed TRL's SFTConfig. Imports TRL and torch: takes seconds."""
    import transformers
    import trl

    hints = typing.get_type_hints(trl.SFTConfig)
    arguments = {field.name: _entry(hints[field.name], field.metadata.get("choices")) for field in dataclasses.fields(trl.SFTConfig)}
    return {"trl": trl.__version__, "transformers": transformers.__version__, "arguments": dict(sorted(arguments.items()))}


def _entry(annotation: Any, choices: Any) -> dict[str, Any]:
    kinds: set[str] = set()
    enums: set[str] = set()
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, Enum):
            enums |= {str(member.value) for member in option}
        kinds.add(_json_kind(option))
    entry: dict[str, Any] = {"types": sorted(kinds)}
    named = sorted(str(choice) for choice in choices) if choices else sorted(enums)
    if named:
        entry["choices"] = named
    return entry


def _options(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    return [annotation]


def _json_kind(option: Any) -> str:
    origin = typing.get_origin(option) or option
    if origin is typing.Literal:
        return {bool: "boolean", str: "string", int: "integer"}[type(typing.get_args(option)[0])]
    kinds: dict[Any, str] = {
        bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null",
    }  # fmt: skip
    if origin in kinds:
        return kinds[origin]
    return "string" if isinstance(origin, type) and issubclass(origin, Enum) else "object"


def main() -> None:
    SCHEMA_FILE.write_text(json.dumps(generated_schema(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
