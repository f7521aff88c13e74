"""The releases of megatron-core that hybridtron works with, and what differs between them.

Python 3.11 gets 0.16.1, Python 3.12 and newer get 0.19.2. Both have what this package and the megatron backend use, by
the same names and with the same arguments, and train alike. They differ in what they log.
"""

from __future__ import annotations

import logging
import re
import warnings

OLDEST, BELOW = "0.16.1", "0.20"


def release(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: 0.16.1 of `0.16.1rc0+local`."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def unsupported(text: str) -> str | None:
    """Return why this version of megatron-core is not supported, in one line, or None where it is."""
    if release(OLDEST) <= release(text) < release(BELOW):
        return None
    return f"megatron-core {text} is installed; hybridtron needs at least {OLDEST} and below {BELOW}"


def silence_known_messages() -> None:
    """Keep megatron-core from logging what it tells its callers about and hybridtron leaves to it on purpose.

    It also warns where CUDA has several queues, as on Blackwell, where it does not need one.
    """
    warnings.filterwarnings("ignore", ".*set the environment variable CUDA_DEVICE_MAX_CONNECTIONS to 1")
    logging.getLogger("megatron.core.distributed.distributed_data_parallel").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a record is not 0.19's about the layout of gradient buffers, which it makes as 0.16 did."""
    return "full_param_layout not provided" not in str(record.msg)
