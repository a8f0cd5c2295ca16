"""What an adapter would train of an architecture, and what is refused of it, from recorded facts alone."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.outcome import ExitCode
from finetune_api.sections.adapter import LoRA
from finetune_trainer.adapters.lora import LoRAAdapter
from finetune_trainer.architecture import Architecture, Layer, Parameter
from finetune_trainer.errors import StageError

RANK = 4


def parameter(name: str, *shape: int, stored: bool = True) -> Parameter:
    return Parameter(name=name, shape=list(shape), tensor=name if stored else None)


def made(tied: bool = False, **more: list[Any]) -> Architecture:
    """One layer of a model of width 8: attention of two projections, a gated MLP, a norm; `more` adds parameters and layers."""
    layers = [
        Layer(path="model.embed_tokens", kind="Embedding", inputs=32, outputs=8),
        Layer(path="model.layers.0.self_attn.q_proj", kind="Linear", inputs=8, outputs=8),
        Layer(path="model.layers.0.self_attn.o_proj", kind="Linear", inputs=8, outputs=8),
        Layer(path="model.layers.0.mlp.up_proj", kind="Linear", inputs=8, outputs=16),
        Layer(path="lm_head", kind="Linear", inputs=8, outputs=32),
        *more.get("layers", []),
    ]
    parameters = [
        parameter("model.embed_tokens.weight", 32, 8),
        parameter("model.layers.0.self_attn.q_proj.weight", 8, 8),
        parameter("model.layers.0.self_attn.o_proj.weight", 8, 8),
        parameter("model.layers.0.mlp.up_proj.weight", 16, 8),
        parameter("model.layers.0.input_layernorm.weight", 8),
        *([] if tied else [parameter("lm_head.weight", 32, 8)]),
        *more.get("parameters", []),
    ]
    containers = more.get("containers", [])
    return Architecture(
        parameters=parameters, layers=layers, embedding="model.embed_tokens", head="lm_head", tied=tied, containers=containers
    )


FUSED = {
    "parameters": [
        parameter("model.layers.0.mlp.experts.gate_up_proj", 4, 32, 8, stored=False),
        parameter("model.layers.0.mlp.shared.gate_proj.weight", 16, 8),
        parameter("vision.fc1.weight", 8, 8),
        parameter("model.layers.0.self_attn.qkv.weight", 24, 8, stored=False),
    ],
    "layers": [
        Layer(path="model.layers.0.mlp.shared.gate_proj", kind="Linear", inputs=8, outputs=16, reserved=True),
        Layer(path="vision.fc1", kind="Linear", inputs=8, outputs=8, beside=True),
        Layer(path="model.layers.0.self_attn.qkv", kind="Linear", inputs=8, outputs=24),
    ],
}


def lora(names: list[str] | None = None, saved: list[str] | None = None) -> LoRA:
    targets = {"type": "Names", "names": names} if names else {}
    return LoRA.model_validate({"rank": RANK, "targetModules": targets, "modulesToSave": saved or []})


@pytest.mark.parametrize(
    ("architecture", "asked", "trained"),
    [
        (made(), lora(), RANK * (16 + 16 + 24)),
        (made(**FUSED), lora(), RANK * (16 + 16 + 24)),
        (made(), lora(["q_proj"]), RANK * 16),
        (made(), lora(["self_attn.q_proj", "mlp.up_proj"]), RANK * (16 + 24)),
        (made(), lora(["embed_tokens"]), RANK * 40),
        (made(), lora(["q_proj"], ["lm_head"]), RANK * 16 + 32 * 8),
        (made(), lora(["q_proj"], ["embed_tokens", "lm_head"]), RANK * 16 + 2 * 32 * 8),
        (made(tied=True), lora(["q_proj"], ["embed_tokens", "lm_head"]), RANK * 16 + 32 * 8),
        (made(tied=True), lora(["q_proj"], ["lm_head"]), RANK * 16 + 32 * 8),
        (made(), lora(["q_proj"], ["input_layernorm"]), RANK * 16 + 8),
    ],
)
def test_what_is_counted_is_what_is_trained(architecture: Architecture, asked: LoRA, trained: int) -> None:
    assert architecture.count(asked) == trained
    architecture.refuse_unmergeable(asked)


BARRED = {
    "parameters": [parameter("model.layers.0.mamba.out_proj.weight", 8, 8)],
    "layers": [Layer(path="model.layers.0.mamba.out_proj", kind="Linear", inputs=8, outputs=8, barred=True)],
    "containers": ["model.layers"],
}


def test_layers_that_peft_refuses_are_left_out_of_all_linear_and_refused_by_name() -> None:
    built = made(**BARRED)
    built.refuse_unmergeable(lora())
    assert (built.count(lora()), built.passed_over()) == (made().count(lora()), ["mamba.out_proj"])
    with pytest.raises(StageError, match=r"adapter.lora.targetModules.names: PEFT puts no LoRA on out_proj") as error:
        built.refuse_unmergeable(lora(["q_proj", "out_proj"]))
    assert (error.value.reason, error.value.exit_code) == ("UnsupportedModules", ExitCode.INVALID_INPUT)


UNCALLED = {
    "parameters": [parameter("model.layers.0.mixer.dt_proj.weight", 8, 8), parameter("model.layers.0.cross.q_proj.weight", 8, 8)],
    "layers": [
        Layer(path="model.layers.0.mixer.dt_proj", kind="Linear", inputs=8, outputs=8, uncalled=True),
        Layer(path="model.layers.0.cross.q_proj", kind="Linear", inputs=8, outputs=8, uncalled=True),
    ],
}


def test_layers_whose_weight_is_read_past_an_update_are_left_out_told_and_refused_by_name() -> None:
    built = made(**UNCALLED)
    built.refuse_unmergeable(lora())
    assert (built.count(lora()), built.passed_over()) == (made().count(lora()), ["cross.q_proj", "mixer.dt_proj"])
    with pytest.raises(
        StageError, match=r"targetModules.names: the model reads the weight of dt_proj \(model.layers.0.mixer.dt_proj\)"
    ) as error:
        built.refuse_unmergeable(lora(["q_proj", "dt_proj"]))
    assert (error.value.reason, error.value.exit_code) == ("UnsupportedModules", ExitCode.INVALID_INPUT)


def test_a_name_that_fits_called_layers_too_trains_those_alone() -> None:
    built, asked = made(**UNCALLED), lora(["q_proj"])
    built.refuse_unmergeable(asked)
    assert [layer.path for layer in built.targets(asked)] == ["model.layers.0.self_attn.q_proj"]
    assert built.names_of(built.targets(asked)) == ["model.layers.0.self_attn.q_proj"]
    assert LoRAAdapter(asked).passed_over(built) == ["cross.q_proj"]
    assert LoRAAdapter(lora(["o_proj"])).passed_over(built) == []


def test_a_layer_inside_a_module_that_is_trained_in_full_gets_no_update() -> None:
    assert made().count(lora(saved=["mlp"])) == RANK * (16 + 16) + 16 * 8


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lora(saved=["layers"]), r"layers \(model.layers\) only holds other modules.*name those inside it: .*q_proj"),
        (lora(saved=["model"]), "every layer that would get an update lies inside these modules"),
        (lora(["q_proj"], ["self_attn"]), "every layer that would get an update lies inside these modules"),
        (lora(["q_proj"], ["proj"]), "proj is the end of model.layers.0.self_attn.q_proj too"),
    ],
)
def test_modules_that_cannot_be_trained_in_full_are_refused(asked: LoRA, words: str) -> None:
    with pytest.raises(StageError, match=f"adapter.lora.modulesToSave: {words}") as error:
        made(**BARRED).refuse_unmergeable(asked)
    assert (error.value.reason, error.value.exit_code) == ("UnsupportedModules", ExitCode.INVALID_INPUT)


def test_what_all_linear_leaves_out_is_told() -> None:
    assert made(**FUSED).passed_over() == ["experts.gate_up_proj", "self_attn.qkv", "shared.gate_proj", "vision.fc1"]
    assert made().passed_over() == []


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        (lora(["q_prj"]), "UnknownModules", "adapter.lora.targetModules.names: the model has no module q_prj; it has .*q_proj"),
        (lora(["q_proj"], ["haed"]), "UnknownModules", "adapter.lora.modulesToSave: the model has no module haed"),
        (lora(["mlp"]), "UnsupportedModules", "targetModules.names: mlp is no linear layer.*name those inside it: gate_proj, up_proj"),
        (lora(["input_layernorm"]), "UnsupportedModules", "input_layernorm is no linear layer"),
        (lora(["lm_head"]), "UnsupportedModules", "lm_head is the output head.*modulesToSave"),
        (lora(["gate_proj"]), "UnsupportedModules", "gate_proj is taken by PEFT"),
        (lora(["qkv"]), "UnsupportedModules", "qkv.weight is no single tensor of the checkpoint"),
        (lora(["q_proj"], ["experts"]), "UnsupportedModules", "modulesToSave: .*experts.gate_up_proj is no single tensor"),
    ],
)
def test_what_cannot_be_adapted_or_merged_is_refused_with_the_field(asked: LoRA, reason: str, words: str) -> None:
    with pytest.raises(StageError, match=words) as error:
        made(**FUSED).refuse_unmergeable(asked)
    assert (error.value.reason, error.value.exit_code) == (reason, ExitCode.INVALID_INPUT)


def test_peft_is_told_short_names_where_they_fit_no_other_module() -> None:
    plain, fused = made(), made(**FUSED)
    assert plain.names_of(plain.targets(lora())) == ["o_proj", "q_proj", "up_proj"]
    twin = Layer(path="vision.q_proj", kind="Linear", inputs=8, outputs=8, beside=True)
    both = made(layers=[twin], parameters=[parameter("vision.q_proj.weight", 8, 8)])
    assert both.names_of(both.targets(lora())) == [
        "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj",
    ]  # fmt: skip
    assert fused.names_of(fused.targets(lora())) == ["o_proj", "q_proj", "up_proj"]


def test_a_recorded_architecture_is_read_back() -> None:
    recorded = made(**FUSED).model_dump_json(by_alias=True, exclude_defaults=True)
    assert Architecture.model_validate_json(recorded) == made(**FUSED)
