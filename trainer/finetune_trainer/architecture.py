"""What transformers builds of a model's config.json: its parameters, where they lie in the checkpoint, and what an adapter can be put on.

Found once by a child process that imports torch (`inspection.py`), recorded by prepare, and asked by everything that plans, refuses or
merges: so a module that cannot be adapted, counted or merged is known before a GPU is taken. Plain data, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from math import prod
from typing import Literal

from finetune_api.answer import Answer
from finetune_api.outcome import Reason
from finetune_api.sections.adapter import LoRA

from finetune_trainer.errors import StageError

Kind = Literal["Linear", "Conv1D", "Embedding"]
_SHOWN_NAMES = 40
_SAVED = "adapter.lora.modulesToSave"


class Parameter(Answer):
    """`name`: in the model; `tensor`: the checkpoint's tensor that it is, None where it is made of several, or of none."""

    name: str
    shape: list[int]
    tensor: str | None = None


class Layer(Answer):
    """A module that LoRA can be put on. `inputs` and `outputs`: sizes of the product that its update joins."""

    path: str
    kind: Kind
    inputs: int
    outputs: int
    reserved: bool = False
    """PEFT takes this name for parts of fused experts, wherever it stands. Source: peft.utils.transformers_weight_conversion."""

    barred: bool = False
    """PEFT puts no LoRA on a module of this name in a model of this type: a fused kernel reads its weight past the update."""

    beside: bool = False
    """It is no part of the decoder: a vision tower, which rows of text never reach."""

    uncalled: bool = False
    """The model never calls it on rows of text: it reads the weight itself, past an update that stands beside it."""

    @property
    def weight(self) -> str:
        return f"{self.path}.weight"


class Architecture(Answer):
    """`embedding`, `head`: paths of the input embedding and of the output layer; `tied`: they share one tensor.

    `containers`: paths of modules that only hold others, such as lists of layers.
    """

    parameters: list[Parameter]
    layers: list[Layer]
    embedding: str | None = None
    head: str | None = None
    tied: bool = False
    containers: list[str] = []

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def paths(self) -> set[str]:
        """Every module that holds parameters, at any depth."""
        own = {layer.path for layer in self.layers} | {parameter.name.rpartition(".")[0] for parameter in self.parameters}
        return {".".join(parts[:count]) for path in own for parts in [path.split(".")] for count in range(1, len(parts) + 1)}

    @property
    def total(self) -> int:
        """Parameters of the whole model; those that are tied count once."""
        return sum(prod(parameter.shape) for parameter in self.parameters)

    def targets(self, lora: LoRA) -> list[Layer]:
        """The layers that get an update. Errors: StageError(UnknownModules | UnsupportedModules) for a name that cannot be adapted."""
        return [layer for layer in self._named(lora) if not any(_is_within(layer.path, saved) for saved in lora.modules_to_save)]

    def names_of(self, layers: Iterable[Layer]) -> list[str]:
        """How PEFT is told of layers, and of no other module: by last names, or by whole paths where those fit others too."""
        paths = {layer.path for layer in layers}
        short = {path.rpartition(".")[2] for path in paths}
        fit = {path for path in self.paths if path.rpartition(".")[2] in short}
        return sorted(short if fit == paths else paths)

    def passed_over(self) -> list[str]:
        """Names that all-linear leaves out beside the output head: fused experts, and layers that PEFT refuses, that could not be merged or
        are never reached."""
        stacked = [parameter.name for parameter in self.parameters if len(parameter.shape) == 3 and min(parameter.shape[:2]) > 1]
        linear = [layer for layer in self.layers if layer.kind != "Embedding" and layer.path != self.head and not self._is_plain(layer)]
        return sorted({*map(_pattern, stacked), *(_branch(layer.path) if layer.beside else _pattern(layer.path) for layer in linear)})

    def passed_over_of(self, names: Iterable[str]) -> list[str]:
        """Layers that are named and get no update, because the model never calls them."""
        uncalled = (layer for layer in self.layers if layer.uncalled and any(_matches(layer.path, name) for name in names))
        return sorted({_pattern(layer.path) for layer in uncalled})

    def saved(self, names: Iterable[str]) -> list[Parameter]:
        """Parameters of the modules that are trained in full.

        Errors: StageError(UnknownModules | UnsupportedModules) for a name that is no module's, or of one that only holds others.
        """
        found: dict[str, Parameter] = {}
        for name in names:
            modules = self._matching(name, _SAVED, _ends_with)
            self._refuse_containers(name, modules)
            for parameter in self._within(modules):
                found[parameter.name] = parameter
        return list(found.values())

    def count(self, lora: LoRA) -> int:
        """Parameters that LoRA trains."""
        update = sum(lora.rank * (layer.inputs + layer.outputs) for layer in self.targets(lora))
        return update + sum(prod(parameter.shape) for parameter in self.saved(lora.modules_to_save))

    def refuse_unmergeable(self, lora: LoRA) -> None:
        """Errors: StageError(UnknownModules | UnsupportedModules) for what could be trained, or not even that, and never be merged."""
        saved, targets = self.saved(lora.modules_to_save), self.targets(lora)
        if not targets:
            raise self._nothing_left(lora)
        for layer in targets:
            self._refuse_without_tensor(layer.weight, "adapter.lora.targetModules.names")
        for parameter in saved:
            self._refuse_without_tensor(parameter.name, _SAVED)
        self._refuse_saved_twice(lora, targets)

    def tensor_of(self, parameter: str) -> str | None:
        """The checkpoint's name of a parameter; its own where the checkpoint has not got it because it is tied to another."""
        found = self.by_name.get(parameter)
        if found is None or (self.tied and self.head and parameter == f"{self.head}.weight" and found.tensor is None):
            return parameter
        return found.tensor

    def _named(self, lora: LoRA) -> list[Layer]:
        names = lora.target_modules.names
        if names is None:
            return [layer for layer in self.layers if self._is_plain(layer)]
        self._refuse_names(names)
        return [layer for layer in self.layers if not layer.uncalled and any(_matches(layer.path, name) for name in names)]

    def _is_plain(self, layer: Layer) -> bool:
        return (
            layer.kind != "Embedding"
            and not (layer.reserved or layer.barred or layer.beside or layer.uncalled)
            and layer.path != self.head
            and self.tensor_of(layer.weight) is not None
        )

    def _within(self, modules: list[str]) -> Iterator[Parameter]:
        for parameter in self.parameters:
            if any(parameter.name.startswith(f"{module}.") for module in modules):
                yield parameter
        head = f"{self.head}.weight"
        if self.tied and self.head in modules and head not in self.by_name and self.embedding:
            yield self.by_name[f"{self.embedding}.weight"]

    def _matching(self, name: str, field: str, fits: Callable[[str, str], bool]) -> list[str]:
        found = [path for path in self.paths if fits(path, name)]
        if not found:
            known = sorted({path.rpartition(".")[2] for path in self.paths if not path.rpartition(".")[2].isdigit()})
            raise StageError(Reason.UNKNOWN_MODULES, f"{field}: the model has no module {name}; it has {', '.join(known[:_SHOWN_NAMES])}")
        return found

    def _refuse_names(self, names: Iterable[str]) -> None:
        field, layers = "adapter.lora.targetModules.names", {layer.path: layer for layer in self.layers}
        for name in names:
            paths = sorted(self._matching(name, field, _matches))
            if all(path in layers and layers[path].uncalled for path in paths):
                raise _unsupported(
                    field, f"the model reads the weight of {name} ({paths[0]}) past LoRA, which would learn nothing; take it out"
                )
            for path in paths:
                layer = layers.get(path)
                if layer is None:
                    raise _unsupported(field, f"{name} is no linear layer or embedding ({path}){self._inside(path)}")
                if path == self.head:
                    raise _unsupported(field, f"{name} is the output head, on which TRL trains no adapter; name it in modulesToSave")
                if layer.reserved:
                    raise _unsupported(field, f"{name} is taken by PEFT for a part of this model's fused experts, which are not trained")
                if layer.barred:
                    raise _unsupported(field, f"PEFT puts no LoRA on {name} ({path}) of this kind of model; take it out")

    def _refuse_containers(self, name: str, modules: Iterable[str]) -> None:
        for path in modules:
            if path in self.containers:
                raise _unsupported(_SAVED, f"{name} ({path}) only holds other modules and cannot be trained as one{self._inside(path)}")

    def _refuse_saved_twice(self, lora: LoRA, targets: Iterable[Layer]) -> None:
        for layer in targets:
            for name in lora.modules_to_save:
                if _ends_with(layer.path, name):
                    raise _unsupported(
                        _SAVED, f"{name} is the end of {layer.path} too, which gets an update; write the module's whole name"
                    )

    def _nothing_left(self, lora: LoRA) -> StageError:
        if self._named(lora):
            return _unsupported(_SAVED, "every layer that would get an update lies inside these modules; name smaller ones")
        return _unsupported(
            "adapter.lora.targetModules", "no linear layer of this model can be adapted and merged; set adapter.type to None"
        )

    def _inside(self, path: str) -> str:
        inner = sorted({layer.path.rpartition(".")[2] for layer in self.layers if layer.path.startswith(f"{path}.")})
        return f"; name those inside it: {', '.join(inner[:_SHOWN_NAMES])}" if inner else "; take it out"

    def _refuse_without_tensor(self, parameter: str, field: str) -> None:
        if self.tensor_of(parameter) is None:
            raise _unsupported(field, f"{parameter} is no single tensor of the checkpoint, so an update could not be merged into it")


def _matches(path: str, name: str) -> bool:
    """Source: peft.tuners.tuners_utils.check_target_module_exists."""
    return path == name or path.endswith(f".{name}")


def _is_within(path: str, module: str) -> bool:
    """Whether a layer is (part of) a module that is trained in full, where PEFT puts no update. Source: as `_matches`."""
    return f".{module}." in f".{path}."


def _ends_with(path: str, name: str) -> bool:
    """Source: peft.utils.other._set_trainable, by which `norm` is `input_layernorm` too."""
    return path.endswith(name)


def _pattern(path: str) -> str:
    """`model.layers.0.mlp.gate` → `mlp.gate`: two names are what people know a layer by."""
    return ".".join([part for part in path.split(".") if not part.isdigit()][-2:])


def _branch(path: str) -> str:
    """`model.vision_tower.encoder.layers.0.fc1` → `model.vision_tower`."""
    return ".".join(path.split(".")[:2])


def _unsupported(field: str, problem: str) -> StageError:
    return StageError(Reason.UNSUPPORTED_MODULES, f"{field}: {problem}")
