"""The config of an ablation: `hybridtron ablate CONFIG`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hybridtron.ablations.expressions import parse_expression
from hybridtron.accounting.equal_size import Measure
from hybridtron.config.nearest import one_of
from hybridtron.config.schema import FolderName, Strict, problem
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig

COLUMNS = (  # of the results, which no axis may have the name of
    "run", "cell", "seed", "loss", "bits_per_byte", "train_loss", "n_params", "n_params_non_embedding", "tokens",
    "flops", "total_state", "steps", "learning_rate", "batch_tokens", "seconds", "device_hours", "cost",
)  # fmt: skip
OWN_KEYS = ("name", "folder", "seed")  # of a run, which the study sets
Key = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
AxisName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=24)]
LevelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=40)]
Quantity = Literal["parameters", "non_embedding", "flops_per_token", "state", "tokens", "flops", "steps"]


class GridAxis(Strict):
    """One key with each of the listed values."""

    type: Literal["grid"]
    key: Key = Field(description="Key of the run, such as optimizer.lr.")
    values: list[Any] = Field(min_length=1, description="Its values.")


class VariantsAxis(Strict):
    """Named sets of overrides, the first of which is the reference."""

    type: Literal["variants"]
    variants: dict[LevelName, list[str]] = Field(
        min_length=1, description="Name -> overrides `key=value`, such as size=1b; an empty list is the base run."
    )


class RangeConfig(Strict):
    """A range that values are drawn from."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    scale: Literal["linear", "log"] = Field("linear", description="Uniform in the value, or in its logarithm.")
    multiple_of: int | None = Field(
        None, ge=1, description="Round to a whole multiple of this; by default values are not rounded."
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> RangeConfig:
        if self.high < self.low or (self.scale == "log" and self.low <= 0):
            raise problem("high", self.high, f"at least low {self.low:g}, which is above 0 with scale log")
        return self


class RandomAxis(Strict):
    """Random points over several keys, beside the base run as the reference."""

    type: Literal["random"]
    draws: int = Field(ge=1, le=10_000, description="Points to draw.")
    seed: int = Field(0, ge=0, description="Of the draws; more draws keep the first ones.")
    keys: dict[Key, RangeConfig] = Field(min_length=1, description="Key of the run -> its range.")


class BudgetAxis(Strict):
    """Lengths of training, from which train.steps follows; one kind of budget."""

    type: Literal["budget"]
    flops: list[float] | None = Field(None, min_length=1, description="Training FLOPs of a run: IsoFLOP groups.")
    tokens: list[float] | None = Field(None, min_length=1, description="Tokens of a run.")
    tokens_per_parameter: list[float] | None = Field(
        None, min_length=1, description="Tokens per parameter: over-training ratios."
    )
    count: Literal["parameters", "non_embedding"] = Field(
        "parameters", description="Parameters that tokens_per_parameter counts."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> BudgetAxis:
        given = [name for name in ("flops", "tokens", "tokens_per_parameter") if getattr(self, name) is not None]
        if len(given) != 1:
            raise problem("", given, "one of flops, tokens, tokens_per_parameter")
        if min(self.amounts) <= 0:
            raise problem(given[0], self.amounts, "numbers above 0")
        return self

    @property
    def kind(self) -> str:
        return next(name for name in ("flops", "tokens", "tokens_per_parameter") if getattr(self, name) is not None)

    @property
    def amounts(self) -> list[float]:
        return list(getattr(self, self.kind))


class RuleConfig(Strict):
    """A power law that sets a key: coefficient times the product of quantities raised to their powers."""

    coefficient: float = Field(gt=0, description="Value where every quantity is 1.")
    powers: dict[Quantity, float] = Field(
        {}, description="Quantity of the run -> its exponent; flops are those of the whole training."
    )
    multiple_of: int | None = Field(
        None, ge=1, description="Round to a whole multiple of this; by default only keys that are whole are rounded."
    )
    at_least: float | None = Field(None, description="Smallest value.")
    at_most: float | None = Field(None, description="Largest value.")


class EqualConfig(Strict):
    """Cells made as large as their reference by one key."""

    key: Key = Field(description="Whole number that is adjusted, such as model.hidden_size.")
    of: Measure = Field(
        "parameters",
        description="What is made equal: parameters, those without embeddings, FLOPs per token, or the state that "
        "generating keeps per sequence; the last two at data.seq_len.",
    )
    tolerance: float = Field(0.01, gt=0, lt=1, description="Largest relative difference.")
    multiple_of: int = Field(1, ge=1, description="The key's values are multiples of this.")
    within: list[AxisName] = Field(
        [],
        description="Axes whose level the reference shares, such as a ladder's sizes; by default every cell is "
        "compared with the one reference of the study.",
    )


class AblationConfig(Strict):
    """One ablation."""

    KEYS_OF_OTHERS: ClassVar[Mapping[str, str]] = dict.fromkeys(
        RunConfig.model_fields.keys() - {*OWN_KEYS},
        "a key of the base run; expected it in its file, or as a text in overrides",
    )

    name: FolderName = Field(description="Names the folder.")
    folder: str | None = Field(None, description="Where the study is kept; by default checkpoints/ablation-NAME.")
    run: str = Field(description="The base run's config file; data.valid is needed.")
    overrides: list[str] = Field([], description="Overrides of the base run, such as train.steps=200.")
    seeds: list[int] = Field([0], min_length=1, description="Every cell is trained once with each of these seeds.")
    axes: dict[AxisName, GridAxis | VariantsAxis | RandomAxis | BudgetAxis] = Field(
        min_length=1, description="Name -> what is varied."
    )
    combine: Literal["product", "one_at_a_time"] = Field(
        "product",
        description="product: every combination of levels. one_at_a_time: the base run, and each level alone.",
    )
    constraints: list[str] = Field(
        [],
        description="Comparisons that a cell must fulfil, over keys of its config, axes and quantities: "
        "`model.hidden_size * 2 <= 1024`, `axis != 'level' or parameters < 1e6`.",
    )
    exclude: list[dict[AxisName, Any]] = Field(
        [], description="Cells left out: axis -> level or list of levels, all of which must match."
    )
    equal: EqualConfig | None = None
    rules: dict[Key, RuleConfig] = Field(
        {}, description="Key of the run -> power law that sets it, such as a learning-rate rule of a ladder."
    )
    max_parallel: int = Field(1, ge=1, description="Runs at the same time, here or as jobs of a cluster.")
    price_per_device_hour: float | None = Field(None, ge=0, description="For the cost of the runs, in any currency.")

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise problem("", seeds, "different whole numbers, each at least 0")
        return seeds

    @field_validator("constraints")
    @classmethod
    def _are_comparisons(cls, constraints: list[str]) -> list[str]:
        for text in constraints:
            try:
                parse_expression(text)
            except UserError as error:
                raise problem("", text, str(error)) from None
        return constraints

    @model_validator(mode="after")
    def _names_agree(self) -> AblationConfig:
        for name in self.axes:
            if name in COLUMNS:
                raise problem(f"axes.{name}", name, "a name that is no column of the results")
        if sum(isinstance(axis, BudgetAxis) for axis in self.axes.values()) > 1:
            raise problem("axes", list(self.axes), "at most one axis of type budget")
        named = [("exclude", name) for some in self.exclude for name in some]
        named += [("equal.within", name) for name in (self.equal.within if self.equal else ())]
        for key, name in named:
            if name not in self.axes:
                raise problem(key, name, f"an axis: {one_of(name, self.axes)}")
        for place, key in self._keys():
            if key in OWN_KEYS:
                raise problem(place, key, "another key: the study sets name, folder and seed itself")
        if "train.steps" in self.rules:
            raise problem("rules", "train.steps", "an axis of type budget instead, from which steps follow")
        return self

    def _keys(self) -> list[tuple[str, str]]:
        """Return the keys of runs that the study sets, each with its place in this config."""
        keys = [("overrides", override.partition("=")[0].strip()) for override in self.overrides]
        keys += [("rules", key) for key in self.rules] + ([("equal.key", self.equal.key)] if self.equal else [])
        for name, axis in self.axes.items():
            if isinstance(axis, GridAxis):
                keys.append((f"axes.{name}.key", axis.key))
            elif isinstance(axis, RandomAxis):
                keys += [(f"axes.{name}.keys", key) for key in axis.keys]
            elif isinstance(axis, VariantsAxis):
                for level, overrides in axis.variants.items():
                    keys += [(f"axes.{name}.variants.{level}", text.partition("=")[0].strip()) for text in overrides]
        return keys

    @property
    def study_folder(self) -> Path:
        return Path(self.folder) if self.folder else Path("checkpoints") / f"ablation-{self.name}"
