"""Environment variables: which ones are recorded, and which ones look like secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

# Variables that change how a job runs. Everything else of the environment may be private, and is left out.
RECORDED = re.compile(
    r"(CUDA|NCCL|TORCH|TORCHINDUCTOR|TORCHDYNAMO|TORCHELASTIC|PYTORCH|GLOO|OMP|MKL|KMP|FI|UCX|NVTE|TRITON|HYBRIDTRON"
    r"|SLURM|SLURMD|SBATCH|PYTHON|LD|VIRTUAL|CONDA)(_[A-Z0-9_]*)?"
    r"|PYTHON(PATH|HOME|HASHSEED|OPTIMIZE|UNBUFFERED|WARNINGS)|PATH|HOSTNAME|LANG|TZ"
)
# The partition key of InfiniBand (NCCL_IB_PKEY) and TOKENIZERS_PARALLELISM are no secrets.
SECRET = re.compile(
    r"(?<!IB_P)KEY|TOKEN(?!IZER)|SECRET|PASS|CRED|AUTH|COOKIE|SESSION|PRIVATE|JWT|(?<![^_])(PW|PWD|PAT)(?![^_])",
    re.IGNORECASE,
)


def looks_secret(name: str) -> bool:
    """Return whether the name of a variable looks like that of a secret."""
    return SECRET.search(name) is not None


def recorded_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that say how a job runs, without those whose name looks like that of a secret."""
    names = (name for name in sorted(environment) if RECORDED.fullmatch(name) and not looks_secret(name))
    return {
        name: environment[name] for name in names if "://" not in environment[name]
    }  # an address may hold a password
