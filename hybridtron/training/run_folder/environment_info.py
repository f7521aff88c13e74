"""Record the environment of a run: versions, commit, device, layout."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from hybridtron import __version__
from hybridtron.accounting.doctor import installed_version
from hybridtron.checkout import commit
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import Corpus

PACKAGES = ("torch", "megatron-core", "numpy", "transformer-engine", "mamba-ssm", "flash-attn", "causal-conv1d")


def environment_info(
    config: RunConfig,
    parallel_context: ParallelContext,
    corpus: Corpus,
    initial_weights: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the content of environment.json; `tokens` are fingerprints of the data.

    `initial_weights` says which checkpoint's weights the run began with (init_from), and what came from elsewhere.
    """
    cuda = parallel_context.device.type == "cuda"
    return {
        "hybridtron": __version__,
        "git_hash": commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := installed_version(name))},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(parallel_context.device)
        if cuda
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "layout": {
            "world_size": parallel_context.world_size,
            **config.parallel.model_dump(),
            "data": parallel_context.data_size,
        },
        "tokens": corpus.fingerprints,
        **initial_weights,
    }
