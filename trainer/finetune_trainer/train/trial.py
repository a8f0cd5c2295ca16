"""What transformers, TRL and torch refuse of the settings: asked before the model is loaded, and told by field instead of as a crash.

Their checks are theirs to know, so they are not repeated here: configuration, optimizer and schedule are made once for a single number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from finetune_api.outcome import Reason

from finetune_trainer.errors import StageError

_REFUSALS = (ValueError, TypeError, KeyError, AttributeError, AssertionError, ImportError, NotImplementedError, ArithmeticError)
"""How the libraries say no to a setting."""
_TRIED_STEPS = 100

Configure = Callable[[Mapping[str, Any]], Any]
"""`training.args` → the trainer's configuration."""


def refuse_arguments(args: Mapping[str, Any], configure: Configure) -> None:
    """Errors: StageError(InvalidArgument) with the names of the arguments that are to blame, and the library's words."""
    error = _refusal(args, configure)
    if error is None:
        return
    if _refusal({}, configure) is not None:
        raise error  # not theirs to answer for
    to_blame = [name for name in args if _refusal({name: args[name]}, configure) is not None]
    raise StageError(Reason.INVALID_ARGUMENT, f"{_fields(to_blame or list(args))}: {_words(error)}") from error


@contextmanager
def told_by_field(args: Mapping[str, Any]) -> Iterator[None]:
    """Around what only shows on the model itself. Errors: StageError(InvalidArgument) where the words name an argument of the run's own;
    StageError(SettingsRefused) else."""
    try:
        yield
    except _REFUSALS as error:
        words = _words(error)
        named = [name for name in args if name in words]
        if named:
            raise StageError(Reason.INVALID_ARGUMENT, f"{_fields(named)}: {words}") from error
        raise StageError(Reason.SETTINGS_REFUSED, words) from error


def _refusal(args: Mapping[str, Any], configure: Configure) -> Exception | None:
    try:
        _try_out(configure(args))
    except _REFUSALS as error:
        return error
    return None


def _try_out(configuration: Any) -> None:
    """Loader, optimizer and schedule over one number, and the rate at steps of every phase."""
    torch.utils.data.DataLoader(
        [0],
        num_workers=configuration.dataloader_num_workers,
        persistent_workers=configuration.dataloader_persistent_workers,
        prefetch_factor=configuration.dataloader_prefetch_factor,
        multiprocessing_context=configuration.dataloader_multiprocessing_context,
    )
    if configuration.use_liger_kernel and not transformers.utils.is_liger_kernel_available():
        raise ImportError("the trainer image has no liger-kernel")  # transformers looks when the first step is due
    if configuration.activation_offloading and configuration.device.type == "cpu":
        raise ValueError("activations are offloaded from a GPU, and there is none")  # TRL asks torch for its accelerator, which crashes
    if configuration.torch_compile:
        _try_compiler(configuration)
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(configuration)
    optimizer = kind([torch.nn.Parameter(torch.zeros(1, device=configuration.device))], **settings)
    schedule = transformers.get_scheduler(
        configuration.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=configuration.get_warmup_steps(_TRIED_STEPS),
        num_training_steps=_TRIED_STEPS,
        scheduler_specific_kwargs=configuration.lr_scheduler_kwargs,
    )
    for rate in schedule.lr_lambdas:
        for step in (0, 1, _TRIED_STEPS // 2, _TRIED_STEPS):
            rate(step)


def _try_compiler(configuration: Any) -> None:
    """Forward and backward pass of one number. Errors: ValueError in the compiler's words, which come as a RuntimeError, as do crashes."""
    try:
        model = torch.nn.Linear(1, 1, device=configuration.device)
        compiled = torch.compile(model, backend=configuration.torch_compile_backend, mode=configuration.torch_compile_mode)
        compiled(torch.ones(1, device=configuration.device)).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _fields(names: list[str]) -> str:
    return ", ".join(f"training.args.{name}" for name in names)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
