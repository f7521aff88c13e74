"""What a run costs as numbers, its steps from a budget, and keys that follow power laws of these numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hybridtron.ablations.config import BudgetAxis, RuleConfig
from hybridtron.accounting.describe import describe
from hybridtron.config import yaml_text
from hybridtron.config.dotted import value_at
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig

BATCH, STEPS = "train.global_batch_size", "train.steps"


def quantities(config: RunConfig) -> dict[str, float]:
    """Return the numbers of a resolved run that rules and constraints know.

    parameters and non_embedding (without embeddings); flops_per_token of training (three forward passes) and state
    (elements per sequence), both at data.seq_len; steps, tokens and flops of the whole training.
    """
    account = describe(config.model, config.data.seq_len)
    tokens = config.tokens(0, config.train.steps)
    per_token = account.flops_training / config.data.seq_len
    return {
        "parameters": account.total,
        "non_embedding": account.total - account.embedding,
        "flops_per_token": per_token,
        "state": account.state_size,
        "steps": config.train.steps,
        "tokens": tokens,
        "flops": per_token * tokens,
    }


def ruled_overrides(
    config: RunConfig, rules: Mapping[str, RuleConfig], budget: tuple[str, float] | None, axis: BudgetAxis | None
) -> list[str]:
    """Return the overrides that give a run the length of its budget, and its keys the values of the rules.

    Rules see the tokens and FLOPs of the budget, or the config's. Steps follow from the tokens and the batch; rules
    over `steps` come after. Raises UserError for a key that a power law cannot set.
    """
    numbers = quantities(config)
    tokens = _budget_tokens(numbers, budget, axis) if budget else numbers["tokens"]
    numbers |= {"tokens": tokens, "flops": tokens * numbers["flops_per_token"]}
    mapping = config.model_dump(mode="json", serialize_as_any=True)
    values = {key: _value(key, rule, numbers, mapping) for key, rule in rules.items() if "steps" not in rule.powers}
    if budget or BATCH in values:
        sizes = config.train.batch_sizes
        sizes = replace(sizes, final=int(values.get(BATCH, sizes.final)))
        values[STEPS] = max(1, round(sizes.steps(tokens / config.data.seq_len)))
    numbers["steps"] = values.get(STEPS, config.train.steps)
    late = {key: rule for key, rule in rules.items() if "steps" in rule.powers}
    values |= {key: _value(key, rule, numbers, mapping) for key, rule in late.items()}
    return [f"{key}={yaml_text.write_inline(value)}" for key, value in values.items()]


def _budget_tokens(numbers: Mapping[str, float], budget: tuple[str, float], axis: BudgetAxis | None) -> float:
    kind, amount = budget
    if kind == "tokens":
        return amount
    if kind == "flops":
        return amount / numbers["flops_per_token"]
    assert axis is not None
    return amount * numbers[axis.count]


def _value(key: str, rule: RuleConfig, numbers: Mapping[str, float], mapping: Mapping[str, Any]) -> int | float:
    """Return the value of a key by its power law, a whole number for a key that holds one."""
    present = value_at(mapping, key)
    if present is not None and (isinstance(present, bool) or not isinstance(present, int | float)):
        raise UserError(f"rules.{key}: holds {present!r}; expected a key that holds a number")
    logarithm = math.log(rule.coefficient)
    for name, power in rule.powers.items():
        if numbers[name] <= 0:
            raise UserError(f"rules.{key}: {name} is {numbers[name]:g}; expected a quantity above 0")
        logarithm += power * math.log(numbers[name])
    value = math.exp(min(logarithm, 230.0))  # 1e100, the largest number of a config
    value = max(value, rule.at_least) if rule.at_least is not None else value
    value = min(value, rule.at_most) if rule.at_most is not None else value
    if rule.multiple_of is None and not isinstance(present, int):
        return float(f"{value:.6g}")
    step = rule.multiple_of or 1
    return max(1 if rule.multiple_of else 0, round(value / step)) * step
