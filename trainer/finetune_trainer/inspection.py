"""An architecture, found by building it on torch's meta device: no weight is read, no memory taken.

    python -m finetune_trainer.inspection <model folder>      prints an `Architecture`, or {"refused": …} in words

Run as a child by stages that import no torch (`Inspection`). Which tensor becomes which parameter is asked of transformers' own
loader, and which names PEFT takes for something else of PEFT: both change with their releases, and this follows them.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from finetune_api.environment import HUB_OFFLINE
from finetune_api.outcome import Reason

from finetune_trainer.architecture import Architecture, Kind, Layer, Parameter
from finetune_trainer.errors import StageError, refuse_killed
from finetune_trainer.weight_files import stored_tensors

log = logging.getLogger(__name__)

_REFUSED = "refused"
_TRIED_TOKENS = 8


class Inspection:
    """A look at a model folder, under way in a child process from the start."""

    def __init__(self, folder: Path) -> None:
        # files, for a pipe that nobody reads yet would stop the child
        self._said, self._log = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "finetune_trainer.inspection", str(folder)]
        self._child = subprocess.Popen(command, stdout=self._said, stderr=self._log, env={**os.environ, HUB_OFFLINE: "1"})

    @property
    def finished(self) -> bool:
        return self._child.poll() is not None

    def result(self) -> Architecture | None:
        """What transformers builds of it; None, and a line in the log, where that cannot be told.

        Errors: StageError(UnsupportedArchitecture) for one that transformers does not have, or not as a model that continues text;
        StageError(OutOfMemory).
        """
        refuse_killed("the look at the architecture", self._child.wait())
        try:
            answer = json.loads(_lines(self._said)[-1])
        except (IndexError, ValueError):
            words = (_lines(self._log) or ["no words"])[-1][:200]
            log.warning("the architecture cannot be looked at before training (%s)", words)
            return None
        if _REFUSED in answer:
            raise StageError(Reason.UNSUPPORTED_ARCHITECTURE, answer[_REFUSED])
        return Architecture.model_validate(answer)

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        self._said.close()
        self._log.close()


def _lines(file: TextIO) -> list[str]:
    file.seek(0)
    return file.read().strip().splitlines()


def inspect(folder: Path) -> Architecture:
    """Errors: ValueError, in transformers' words, for a config.json that it builds no causal language model of."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return describe(model, stored_tensors(folder))


def describe(model: Any, stored: Iterable[str]) -> Architecture:
    """The architecture of a model. `stored`: names of the checkpoint's tensors."""
    places, converted = _places(model, stored)
    embedding, head = _path_of(model, model.get_input_embeddings()), _path_of(model, model.get_output_embeddings())
    decoder = _path_of(model, _decoder(model))
    layers = list(_layers(model))
    uncalled = _uncalled(model, [layer.path for layer in layers])
    barred = _barred(model, {layer.path.rpartition(".")[2] for layer in layers})
    return Architecture(
        parameters=[
            # One that the checkpoint lacks keeps its name: loading says so, and in other words.
            Parameter(name=name, shape=list(parameter.shape), tensor=places.get(name, None if name in converted else name))
            for name, parameter in model.named_parameters()
        ],
        layers=[
            layer.model_copy(
                update={
                    "reserved": _is_reserved(model, layer.path),
                    "barred": layer.path.rpartition(".")[2] in barred,
                    "beside": _is_beside(layer.path, decoder, head),
                    "uncalled": layer.path in uncalled and not _is_beside(layer.path, decoder, head),
                }
            )
            for layer in layers
        ],
        embedding=embedding,
        head=head,
        tied=_is_tied(model),
        containers=_containers(model),
    )


def _layers(model: Any) -> Iterable[Layer]:
    import torch
    import transformers

    kinds: list[tuple[Any, Kind, tuple[str, str]]] = [
        (torch.nn.Linear, "Linear", ("in_features", "out_features")),
        (transformers.pytorch_utils.Conv1D, "Conv1D", ("nx", "nf")),
        (torch.nn.Embedding, "Embedding", ("num_embeddings", "embedding_dim")),
    ]
    for path, module in model.named_modules():
        for kind, name, (inputs, outputs) in kinds:
            if isinstance(module, kind):
                yield Layer(path=path, kind=name, inputs=getattr(module, inputs), outputs=getattr(module, outputs))


def _places(model: Any, stored: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """The checkpoint's tensor of each parameter that is one tensor, unchanged but for its name; and the parameters that are made of others.

    Source: transformers.core_model_loading.convert_and_load_state_dict_in_model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    wanted = model.state_dict()
    targets = {source: converter.target_patterns for converter in converters for source in converter.source_patterns}
    found: dict[str, str] = {}
    converted: set[str] = set()
    for tensor in stored:
        name, source = rename_source_key(tensor, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and tensor in wanted:
            name, source = rename_source_key(tensor, [], [], model.base_model_prefix, wanted)
        if source is not None:
            converted |= {name.replace(targets[source][0], target) for target in targets[source]}
        elif name in wanted:
            found[name] = tensor
    return found, converted


def _is_reserved(model: Any, path: str) -> bool:
    """Whether PEFT puts no adapter on the layer of this path when it is given it, but on a parameter that it stands for elsewhere."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if get_checkpoint_conversion_mapping(model.config.model_type) is None:
        return False  # PEFT asks the same first, and importing it takes as long as torch
    import peft
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    asked = peft.LoraConfig(target_modules=[path])
    try:
        convert_peft_config_for_transformers(asked, model, None)
    except ValueError:
        return True
    return path not in asked.target_modules


def _barred(model: Any, names: Iterable[str]) -> set[str]:
    """Those of the layers' last names that PEFT refuses in a model of this type. Source: peft.tuners.tuners_utils.BaseTuner.inject_adapter."""
    import peft

    def is_barred(name: str) -> bool:
        try:
            # Its own check alone, which needs no tuner: to have the adapter put on would change the model.
            peft.LoraModel._check_target_module_compatiblity(None, peft.LoraConfig(target_modules=[name]), model, name)
        except ValueError:
            return True
        return False

    return {name for name in names if is_barred(name)}


def _uncalled(model: Any, paths: Iterable[str]) -> set[str]:
    """Those of the layers that a pass over a row of text does not call: an update beside such a weight gets no gradient. Empty where the
    pass cannot be made without values."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    called: set[str] = set()

    def noting(path: str) -> Callable[..., None]:
        return lambda *_: called.add(path)

    wanted = set(paths)
    hooks = [model.get_submodule(path).register_forward_pre_hook(noting(path)) for path in wanted]
    try:
        # As while tracing, where transformers asks for no values of its own: those on the meta device alone end such a question.
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            model(input_ids=torch.zeros((1, _TRIED_TOKENS), dtype=torch.long, device=model.device), use_cache=False)
    except Exception as error:  # whatever a model of somebody's says of tensors without values
        log.info("no pass over the architecture (%s)", type(error).__name__)
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return wanted - called


def _containers(model: Any) -> list[str]:
    """Modules without a forward pass of their own: PEFT cannot put a trained copy in their place, for nobody calls them."""
    import torch

    return [path for path, module in model.named_modules() if path and type(module).forward is torch.nn.Module.forward]


def _is_beside(path: str, decoder: str | None, head: str | None) -> bool:
    return decoder is not None and path != head and not path.startswith(f"{decoder}.")


def _decoder(model: Any) -> Any:
    try:
        return model.get_decoder()
    except (AttributeError, NotImplementedError):
        return None


def _is_tied(model: Any) -> bool:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", False)


def _path_of(model: Any, module: Any) -> str | None:
    return next((path for path, found in model.named_modules() if found is module), None) if module is not None else None


def main(arguments: list[str]) -> None:
    from finetune_trainer.quiet import quiet_libraries

    quiet_libraries()
    try:
        print(inspect(Path(arguments[0])).model_dump_json(by_alias=True, exclude_defaults=True))
    except ValueError as error:
        print(json.dumps({_REFUSED: " ".join(str(error).split())[:400]}))


if __name__ == "__main__":
    main(sys.argv[1:])
