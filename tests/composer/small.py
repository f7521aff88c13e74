"""What several tests of searches share."""

from __future__ import annotations

from pathlib import Path

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.config.load import build

SEARCH = {
    "name": "small",
    "evaluations": 10,
    "space": {"blocks": ["attn", "mlp"], "layers": 4},
    "evaluator": {"type": "function", "instance": 1},
    "engine": {"type": "random"},
}
MAD = {  # an evaluator of a second a pattern
    "type": "mad",
    "blocks": {"attn": {"type": "attention", "num_heads": 2}, "mlp": {"type": "swiglu", "ffn_hidden_size": 16}},
    "hidden_size": 16,
    "max_steps": 4,
    "batch_size": 8,
    "eval_examples": 16,
    "tasks": {"selective-copying": {"seq_len": 16, "num_tokens_to_copy": 2, "num_train_examples": 64}},
}


def config(folder: Path, **changes) -> SearchConfig:
    """Return SEARCH in a folder, with other sections in place of its own."""
    return build({**SEARCH, "folder": str(folder), **changes}, SearchConfig)
