"""The names that laws know columns by, the names that sources use for them, and what follows from other columns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from hybridtron.config.nearest import nearest, one_of
from hybridtron.errors import UserError

SYNONYMS: dict[str, tuple[str, ...]] = {
    "n_params": ("n", "params", "parameters", "num_params", "num_parameters", "model_params", "total_params"),
    "tokens": ("d", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen", "total_tokens"),
    "flops": ("c", "compute", "budget", "flop_budget", "compute_budget", "train_flops", "training_flops"),
    "loss": ("valid_loss", "val_loss", "validation_loss", "eval_loss", "test_loss", "final_loss", "loss_nats"),
    "ppl": ("perplexity", "valid_ppl", "val_ppl", "eval_ppl", "test_ppl"),
    "M": ("tokens_per_param", "tokens_per_parameter", "token_multiplier"),
    "total_state": ("state_size", "total_state_size", "state"),
    "score": ("proxy", "proxy_score", "mad_score", "mad_mean_acc", "mean_acc", "accuracy"),
    "error": ("err", "avg_err", "avg_error", "mean_error", "error_rate", "downstream_error"),
    "arch": ("architecture", "model_family", "family"),
    "width": ("hidden_size", "d_model", "n_embd"),
    "depth": ("num_layers", "n_layers", "n_layer", "layers"),
    "learning_rate": ("lr", "peak_lr", "max_lr"),
    "batch_tokens": ("batch_size_tokens", "tokens_per_batch", "tokens_per_step"),
    "unique_tokens": ("unique_data", "data_unique"),
    "epochs": ("n_epochs", "num_epochs"),
    "experts": ("num_experts", "n_experts"),
    "active_params": ("activated_params", "num_active_params", "n_params_active"),
    "granularity": ("expert_granularity",),
    "ratio": ("attention_ratio", "attention_share"),
    "weight_bits": ("w_bits",),
    "activation_bits": ("a_bits", "act_bits"),
    "kv_bits": ("kv_cache_bits",),
}
RUN_NAMES = ("run", "run_id", "run_name")  # columns that tell which rows are checkpoints of one run

Columns = dict[str, np.ndarray]
# canonical name -> (columns it follows from, how, in words); tried in this order when a source lacks the column
DERIVED: dict[str, tuple[tuple[tuple[str, ...], Callable[..., np.ndarray], str], ...]] = {
    "tokens": (
        (("M", "n_params"), lambda m, n: m * n, "tokens = M * n_params"),
        (("flops", "n_params"), lambda c, n: c / (6 * n), "tokens = flops / (6 n_params)"),
    ),
    "flops": ((("n_params", "tokens"), lambda n, d: 6 * n * d, "flops = 6 n_params tokens"),),
    "M": ((("tokens", "n_params"), lambda d, n: d / n, "M = tokens / n_params"),),
    "epochs": ((("tokens", "unique_tokens"), lambda d, u: d / u, "epochs = tokens / unique_tokens"),),
    "loss": ((("ppl",), np.log, "loss = log(ppl)"),),
    "ppl": ((("loss",), np.exp, "ppl = exp(loss)"),),
}


def canonical_names(found: Iterable[str], chosen: Mapping[str, str], source: str) -> dict[str, str]:
    """Find the column of the source that each canonical name means: the chosen one, its own name, or its only synonym.

    Raises UserError for a chosen column that is not there and where two synonyms leave a choice.
    """
    found = list(found)
    for name in chosen:
        if name not in SYNONYMS:
            raise UserError(f"columns: no canonical column {name!r}; expected {one_of(name, SYNONYMS)}")
    by_plain = {_plain(name): name for name in reversed(found)}
    names = {}
    for canonical, synonyms in SYNONYMS.items():
        if canonical in chosen:
            if chosen[canonical] not in found:
                raise no_column(chosen[canonical], found, source)
            names[canonical] = chosen[canonical]
        elif canonical in found:
            names[canonical] = canonical
        elif _plain(canonical) in by_plain:
            names[canonical] = by_plain[_plain(canonical)]
        else:
            hits = list(dict.fromkeys(by_plain[s] for s in map(_plain, synonyms) if s in by_plain))
            if len(hits) > 1:
                raise UserError(
                    f"{source}: {' and '.join(hits)} may both be {canonical}; "
                    f"choose with {canonical}_column = {hits[0]}"
                )
            if hits and hits[0] not in chosen.values():
                names[canonical] = hits[0]
    return names


def no_column(name: str, found: Iterable[str], source: str) -> UserError:
    """Build the error for a column that was asked for by name."""
    found = list(found)
    near = difflib.get_close_matches(name, found, n=4, cutoff=0.5)
    listed = ", ".join(found[:12]) + (", ..." if len(found) > 12 else "")
    hint = f"nearest: {', '.join(near)}" if near else f"there are: {listed}"
    return UserError(f"{source}: no column {name!r}; {hint}")


def missing_columns(missing: Sequence[str], found: Iterable[str], source: str) -> UserError:
    """Build the error for columns that the law needs and the source lacks, with the likeliest candidates."""
    found = list(found)
    candidates = []
    for name in missing:
        candidates += [nearest(name, found)] + [one for one in found if name.split("_")[-1] in one.lower()]
    likely = list(dict.fromkeys(name for name in candidates if name))
    shown = ", ".join((likely or found)[:8]) + (", ..." if len(likely or found) > 8 else "")
    lacking = [
        repr(name) + "".join(f" (nor {' and '.join(map(repr, way[0]))})" for way in DERIVED.get(name, ())[:1])
        for name in missing
    ]
    settings = ", ".join(f"{name}_column" for name in missing)
    return UserError(
        f"{source}: no column{'s' if len(missing) > 1 else ''} {' and '.join(lacking)}; choose with {settings} "
        f"({'nearest' if likely else 'there are'}: {shown})"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
