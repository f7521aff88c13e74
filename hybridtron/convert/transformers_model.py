"""Models of transformers from a folder alone: without code from it, without the network, without advice on speed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError

# Without these transformers asks the terminal whether it may run the Python files of a folder.
FROM_FOLDER_ONLY: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}

_SLOW = "is falling back to its reference PyTorch implementation"  # said of kernels that are not installed
_LOGGER = "transformers.integrations.hub_kernels"


def load_transformers_model(folder: Path, **options: Any) -> Any:
    """Load a causal language model of transformers, native or ours, in eval mode; `options` are of from_pretrained.

    Raises ImportError where transformers is missing, and UserError where it cannot build the model.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    import hybridtron.convert.hf  # noqa: F401  # registers the models of ours

    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(folder, **FROM_FOLDER_ONLY, **options).eval()
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever its many modules raise for files that do not fit together
        raise UserError(f"{folder}: transformers cannot build it: {' '.join(str(error).split())[:200]}") from None


@contextlib.contextmanager
def without_kernel_warnings() -> Iterator[None]:
    """Drop transformers' warnings that a kernel is missing and a slower one computes the same."""

    def keep(record: logging.LogRecord) -> bool:
        return _SLOW not in record.getMessage()

    logger = logging.getLogger(_LOGGER)
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
