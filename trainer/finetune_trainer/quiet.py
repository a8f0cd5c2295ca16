"""Logs of a stage are for people: its own lines, not what libraries tell their developers."""

from __future__ import annotations

import logging
import warnings

_CHATTY = ("accelerate", "bitsandbytes", "deepspeed", "DeepSpeed", "httpx", "peft", "torch", "transformers")


def quiet_libraries() -> None:
    """No progress bars, no deprecation notices, only errors of the libraries. To be called before torch's companions are imported,
    which talk while they are; imports transformers itself."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.simplefilter("ignore", category)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
