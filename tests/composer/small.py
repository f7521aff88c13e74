"""What several tests of searches share."""

from __future__ import annotations

MAD = {  # an evaluator of a second a pattern
    "type": "mad",
    "blocks": {"attn": {"type": "attention", "num_heads": 2}, "mlp": {"type": "swiglu", "ffn_hidden_size": 16}},
    "hidden_size": 16,
    "max_steps": 4,
    "batch_size": 8,
    "eval_examples": 16,
    "tasks": {"selective-copying": {"seq_len": 16, "num_tokens_to_copy": 2, "num_train_examples": 64}},
}
