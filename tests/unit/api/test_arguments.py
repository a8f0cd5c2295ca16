"""`training.args` against the schema of the installed TRL."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
from finetune_api.arguments import OWNED, argument_findings, schema, training_findings
from finetune_api.run import RunSpec
from finetune_api.section import Section
from finetune_api.sections.adapter import Adapter
from finetune_api.sections.checkpoints import Checkpoints
from finetune_api.sections.data import Dataset
from finetune_api.sections.method import Method
from finetune_api.sections.model import Model
from finetune_api.sections.quantization import Quantization
from finetune_api.sections.training import Training


def finding(name: str, value: Any) -> str | None:
    findings = argument_findings({name: value})
    assert all(found == name for found, _ in findings)
    return findings[0][1] if findings else None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adam_beta2", 0.95),
        ("adam_beta2", 0),
        ("adam_epsilon", 1e-6),
        ("label_smoothing_factor", 0),
        ("label_smoothing_factor", 1.0),
        ("adam_epsilon", 0),
        ("eval_accumulation_steps", None),
        ("torch_compile_mode", "max-autotune"),
        ("torch_compile_backend", "inductor"),
        ("gradient_checkpointing_kwargs", {"use_reentrant": False}),
        ("activation_checkpointing_kwargs", {"every_n_layers": 2, "offload": True}),
        ("dataloader_num_workers", 2),
        ("tf32", None),
        ("tf32", True),
        ("optim_args", None),
        ("lr_scheduler_kwargs", {"num_cycles": 2}),
        ("loss_type", "dft"),
        ("train_sampling_strategy", "sequential"),
    ],
)
def test_arguments_of_the_right_type_pass(name: str, value: Any) -> None:
    assert finding(name, value) is None


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "adam_epsilon",
            "4e-5",
            "must be number, is a string: write 4.0e-05, without quotes (in YAML an exponent needs a point before it)",
        ),
        (
            "adam_epsilon",
            "1.5E-8",
            "must be number, is a string: write 1.5e-08, without quotes (in YAML an exponent needs a point before it)",
        ),
        (
            "dataloader_num_workers",
            "2",
            "must be integer, is a string: write 2, without quotes (in YAML an exponent needs a point before it)",
        ),
        ("adam_beta1", "high", "must be number, is string"),
        ("dataloader_num_workers", 2.7, "must be integer, is number"),
        ("dataloader_num_workers", True, "must be integer, is boolean"),
        ("dataloader_num_workers", [1], "must be integer, is array"),
        ("adam_beta1", None, "must be number, is null"),
        ("tf32", "yes", "must be boolean or null, is string"),
        ("loss_type", "nil", "must be one of chunked_nll, dft, nll"),
        ("adam_beta3", 0.9, "no such argument; did you mean adam_beta2?"),
        ("lora_rank_of_the_moon", 1, "no such argument; see the TrainingArguments of transformers and SFTConfig of TRL"),
    ],
)
def test_others_are_refused_with_what_to_write(name: str, value: Any, sentence: str) -> None:
    assert finding(name, value) == sentence


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("label_smoothing_factor", 2.0, "must be from 0 to 1"),
        ("label_smoothing_factor", -1, "must be from 0 to 1"),
        ("label_smoothing_factor", float("nan"), "must be from 0 to 1"),
        ("adam_beta2", 1, "must be from 0 to below 1"),
        ("adam_beta1", -3, "must be from 0 to below 1"),
        ("adam_epsilon", -1, "must be a number from 0 on"),
        ("adam_epsilon", float("inf"), "must be a number from 0 on"),
        ("ddp_timeout", -5, "must be a number from 1 on"),
        ("eval_accumulation_steps", -2, "must be a number from 1 on"),
        ("torch_empty_cache_steps", 0, "must be a number from 1 on"),
        ("dataloader_num_workers", -1, "must be a number from 0 on"),
        ("torch_compile_mode", "nope", "must be one of default, lite, "),
        ("torch_compile_backend", "nope", "must be one of aot_eager, cudagraphs, "),
        ("gradient_checkpointing_kwargs", {"nope": 1}, "nope is not read; debug, determinism_check, "),
        ("gradient_checkpointing_kwargs", "{}", "must be null or object, is string"),
        ("activation_checkpointing_kwargs", {"use_reentrant": "no"}, "use_reentrant must be boolean, is string"),
        ("activation_checkpointing_kwargs", {"every_n_layers": 0}, "every_n_layers must be a number from 1 on"),
    ],
)
def test_values_that_mean_nothing_are_refused_before_a_library_is_asked(name: str, value: Any, sentence: str) -> None:
    assert (finding(name, value) or "").startswith(sentence)


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"scheduler": "Cosine", "args": {"lr_scheduler_kwargs": {"num_cycle": 2}}}, "num_cycle is not read; num_cycles would be"),
        ({"scheduler": "Polynomial", "args": {"lr_scheduler_kwargs": {"lr_end": "low"}}}, "lr_end must be number, is string"),
        ({"scheduler": "Linear", "args": {"lr_scheduler_kwargs": {"power": 2}}}, "training.scheduler Linear does not read it (Cosine, "),
        (
            {"gradientCheckpointing": "Disabled", "args": {"gradient_checkpointing_kwargs": {"use_reentrant": True}}},
            "training.gradientCheckpointing Disabled does not read it",
        ),
        ({"args": {"gradient_checkpointing_kwargs": {}, "activation_checkpointing_kwargs": {}}}, "activation_checkpointing_kwargs is read"),
        ({"args": {"dataloader_prefetch_factor": 2}}, "only workers read it; set dataloader_num_workers too"),
        ({"args": {"dataloader_persistent_workers": True, "dataloader_num_workers": 0}}, "only workers read it"),
        ({"args": {"torch_compile_mode": "default", "torch_compile_backend": "eager"}}, "only the backend inductor reads it"),
    ],
)
def test_what_the_other_fields_would_not_read_is_refused(training: dict[str, Any], sentence: str) -> None:
    ((_, said),) = training_findings(Training.model_validate(training))
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    ("args", "on_cpu_alone"),
    [
        ({"tf32": True}, True),
        ({"use_liger_kernel": True}, True),
        ({"activation_offloading": True}, True),
        ({"torch_compile_backend": "cudagraphs"}, True),
        ({"tf32": False, "use_liger_kernel": False, "torch_compile_backend": "inductor", "torch_compile": True}, False),
    ],
)
def test_what_a_cpu_cannot_serve_is_refused_where_no_gpu_is_asked_for(args: dict[str, Any], on_cpu_alone: bool) -> None:
    training = Training(args=args)
    assert training_findings(training, gpus=1) == training_findings(training) == []
    said = training_findings(training, gpus=0)
    assert [name for name, _ in said] == (list(args) if on_cpu_alone else [])
    assert all("needs a GPU, and resources.gpusPerNode is 0" in words for _, words in said)


def test_what_is_suggested_for_an_exponent_is_a_number_in_yaml() -> None:
    import yaml

    text = finding("adam_epsilon", "4e-5")
    assert text is not None
    suggested = text.split("write ")[1].split(",")[0]
    assert yaml.safe_load(suggested) == 4e-5
    assert isinstance(yaml.safe_load("4e-5"), str)


def test_values_are_not_quoted() -> None:
    assert "secret" not in (finding("adam_beta1", "secret words") or "")


@pytest.mark.parametrize("name", ["group_by_length", "batch_rebalance"])
def test_orders_that_do_not_resume_are_refused(name: str) -> None:
    assert (finding("train_sampling_strategy", name) or "").startswith("must be random or sequential")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("learning_rate", "training.learningRate"),
        ("num_train_epochs", "training.epochs"),
        ("max_steps", "training.maxSteps"),
        ("bf16", "training.precision"),
        ("packing", "training.packing"),
        ("save_steps", "checkpoints.everySteps"),
        ("save_total_limit", "checkpoints.keep"),
        ("deepspeed", "resources.gpusPerNode"),
        ("assistant_only_loss", "method.sft.loss"),
        ("model_init_kwargs", "model (dtype"),
    ],
)
def test_owned_arguments_name_the_field_to_use(name: str, field: str) -> None:
    assert field in (finding(name, 1) or "")


def test_the_dangerous_ones_are_owned() -> None:
    assert {
        "trust_remote_code", "model_init_kwargs", "hub_token", "push_to_hub", "output_dir", "resume_from_checkpoint", "deepspeed", "fsdp",
        "report_to", "auto_find_batch_size", "use_cpu", "local_rank", "logging_nan_inf_filter", "full_determinism",
    } - {"full_determinism"} <= OWNED.keys()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("torch_dtype", "model.dtype"),
        ("evaluation_strategy", "training.evalEverySteps"),
        ("max_seq_length", "training.maxLength"),
        ("per_gpu_train_batch_size", "training.perDeviceBatchSize"),
        ("no_cuda", "resources.gpusPerNode"),
        ("lora_alpha", "adapter.lora.alpha"),
        ("target_modules", "adapter.lora.targetModules"),
        ("load_in_4bit", "quantization.type"),
        ("attn_implementation", "model.attentionImplementation"),
        ("maxSteps", "training.maxSteps"),
        ("learningRate", "training.learningRate"),
        ("global_batch_size", "training.globalBatchSize"),
        ("learnin_rate", "did you mean learning_rate? use training.learningRate"),
        ("torch_compil", "did you mean torch_compile?"),
    ],
)
def test_renamed_and_misspelt_keys_lead_to_the_right_field(name: str, field: str) -> None:
    assert field in (finding(name, 1) or "")


@pytest.mark.parametrize("name", ["torch_dtyp", "tocrh_dtype", "evaluation_strateg"])
def test_a_slip_in_a_renamed_key_leads_there_too(name: str) -> None:
    assert "torch_compile" not in (finding(name, 1) or "")
    assert "use " in (finding(name, 1) or "")


@pytest.mark.parametrize(
    ("optimizer", "args", "sentence"),
    [
        ("AdamW", {"optim_args": "momentum=0.9"}, "training.optimizer AdamW does not read it (SGD would); remove it"),
        ("Adafactor", {"optim_args": "scale_parameter=True"}, "training.optimizer Adafactor does not read it"),
        ("SGD", {"adam_beta2": 0.95}, "training.optimizer SGD does not read it (AdamW"),
        ("SGD", {"optim_args": "momentun=0.9"}, "SGD reads momentum=<number>"),
        ("SGD", {"optim_args": "weight_decay=0.1"}, "SGD reads momentum=<number>"),
    ],
)
def test_what_the_optimizer_would_not_read_is_refused(optimizer: str, args: dict[str, Any], sentence: str) -> None:
    ((name, said),) = training_findings(Training(optimizer=optimizer, args=args))
    assert name in args
    assert sentence in said


@pytest.mark.parametrize(
    ("optimizer", "args"),
    [
        ("AdamW", {"adam_beta1": 0.8}),
        ("PagedAdamW8bit", {"adam_epsilon": 1e-6}),
        ("SGD", {"optim_args": "momentum=0.9, nesterov=True"}),
        ("AdamW", {"optim_args": None}),
        ("SGD", {"tf32": None}),
        ("AdamW", {"dataloader_persistent_workers": False}),
        ("AdamW", {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4, "dataloader_num_workers": 2}),
        ("AdamW", {"torch_compile_mode": "max-autotune"}),
        ("AdamW", {"torch_compile_mode": "max-autotune", "torch_compile_backend": "inductor"}),
    ],
)
def test_what_the_optimizer_reads_passes(optimizer: str, args: dict[str, Any]) -> None:
    assert training_findings(Training(optimizer=optimizer, args=args)) == []


def test_every_field_that_is_pointed_to_exists() -> None:
    sections = {
        "training": Training, "checkpoints": Checkpoints, "model": Model, "datasets": Dataset, "method": Method, "adapter": Adapter,
        "quantization": Quantization,
    }  # fmt: skip
    pointed = {word.strip(".,:;()") for sentence in OWNED.values() for word in sentence.split() if "." in word.strip(".,:;()")}
    assert len(pointed) > 15
    for path in pointed:
        first, *rest = path.split(".")
        if first in ("resources", "stages", "status"):
            continue
        section: Any = sections[first]
        for name in rest:
            fields = {field.alias: field.annotation for field in section.model_fields.values()}
            assert name in fields, path
            section = next(
                (part for part in (fields[name], *get_args(fields[name])) if isinstance(part, type) and issubclass(part, Section)), None
            )


def test_all_of_trl_is_either_open_or_owned() -> None:
    """What stays open is listed, so that a TRL release that brings an argument needs a decision."""
    assert sorted(schema().keys() - OWNED.keys()) == [
        "activation_checkpointing_kwargs", "activation_offloading", "adam_beta1", "adam_beta2", "adam_epsilon",
        "average_tokens_across_devices", "dataloader_drop_last", "dataloader_in_order", "dataloader_multiprocessing_context",
        "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
        "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout", "debug",
        "eval_accumulation_steps", "eval_delay", "eval_do_concat_batches", "eval_on_start", "eval_use_gather_object",
        "full_determinism", "gradient_checkpointing_kwargs", "include_num_input_tokens_seen", "label_smoothing_factor",
        "liger_kernel_config", "log_level", "log_level_replica", "log_on_each_node", "loss_type", "lr_scheduler_kwargs", "optim_args",
        "router_aux_loss_coef", "skip_memory_metrics", "tf32", "torch_compile", "torch_compile_backend",
        "torch_compile_mode", "torch_empty_cache_steps", "train_sampling_strategy", "use_liger_kernel",
    ]  # fmt: skip


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, finetune_api.arguments as a; a.argument_findings({'tf32': True}); print([m for m in ('torch', 'trl', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_run_file_takes_them_as_they_are() -> None:
    args = {"adam_beta2": 0.95, "lr_scheduler_kwargs": {"num_cycles": 2}}
    run = RunSpec.model_validate(
        {"storage": {"root": "/s", "prefix": "p"}, "model": {"source": "hf://a/b"}, "datasets": [], "training": {"args": args}}
    )
    assert argument_findings(run.training.args) == []
