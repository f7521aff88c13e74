"""The `cost` section of a search: which costs its patterns have, and where these are read."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from hybridtron.config.nearest import one_of
from hybridtron.config.schema import Strict, problem

Name = Literal["flops", "parameters", "cache", "cache_bytes", "train_ms", "prefill_ms", "decode_ms", "state_bytes"]
COMPUTED, MEASURED = get_args(Name)[:4], get_args(Name)[4:]  # the latter are columns of a table of layers


class Measure(NamedTuple):
    """A cost by its name in the config, MEASURE or MEASURE@TOKENS."""

    key: str  # its place below `cost`
    text: str

    @property
    def name(self) -> str:
        return self.text.partition("@")[0]

    @property
    def tokens(self) -> int | None:
        """Return the tokens of a sequence where the name has them."""
        return int(self.text.partition("@")[2]) if "@" in self.text else None

    def check(self) -> None:
        """Raise a validator's problem for a name that is none."""
        name, at, tokens = self.text.partition("@")
        if name not in (*COMPUTED, *MEASURED):
            raise problem(self.key, self.text, f"MEASURE or MEASURE@TOKENS, with {one_of(name, COMPUTED + MEASURED)}")
        if at and (name == "parameters" or not (tokens.isascii() and tokens.isdecimal() and int(tokens))):
            expected = name if name == "parameters" else f"{name}@TOKENS, such as {name}@8192"
            raise problem(self.key, self.text, expected)


class CostConfig(Strict):
    """What patterns cost at a model's widths: further objectives, to be small, and limits.

    Either one `measure`, an objective or with `limit` a limit, or any number of `objectives` and `limits`.
    """

    measure: Name | None = Field(
        None,
        description="Forward FLOPs per token, parameters of the layers, elements or bytes kept per sequence to "
        "generate; or what was measured: milliseconds of a training step, a prompt or the next token, bytes of state "
        "per sequence.",
    )
    objectives: list[str] = Field(
        [], description="Costs beside the score to make small, each such a measure, at a length: decode_ms@8192."
    )
    limits: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Such a measure -> the most that a pattern may cost."
    )
    model: str | None = Field(None, description="A run's config file, whose blocks have the names of the space.")
    overrides: list[str] = Field([], description="Overrides of that config, such as size=1b.")
    seq_len: int | None = Field(
        None,
        ge=1,
        description="Tokens of a sequence where a name has none; by default that config's, or the table's only ones.",
    )
    table: str | None = Field(None, description="For measured costs: layers.csv of `hybridtron efficiency --by-block`.")
    batch: int = Field(1, ge=1, description="With a table: the batch size that was measured.")
    limit: float | None = Field(
        None,
        gt=0,
        description="The most that a pattern may cost in `measure`; score alone is searched for among those that keep "
        "it.",
    )

    @property
    def measures(self) -> list[Measure]:
        """Return each cost once, objectives first."""
        given = [Measure("measure", self.measure)] if self.measure else []
        given += [Measure(f"objectives[{i}]", text) for i, text in enumerate(self.objectives)]
        given += [Measure(f"limits.{text}", text) for text in self.limits if text not in self.objectives]
        return given

    @model_validator(mode="after")
    def _names_costs_once(self) -> CostConfig:
        several = [*self.objectives, *self.limits]
        if (self.measure is None) == (not several):
            expected = "one, such as decode_ms" if self.measure is None else "none beside objectives and limits"
            raise problem("measure", self.measure, f"{expected}; or objectives, limits" if not several else expected)
        if self.limit is not None and several:
            raise problem("limit", self.limit, "none beside objectives and limits: limits has one for each measure")
        if len(set(self.objectives)) < len(self.objectives):
            raise problem("objectives", self.objectives, "different costs")
        for measure in self.measures:
            measure.check()
        return self

    @model_validator(mode="after")
    def _names_its_sources(self) -> CostConfig:
        names = [measure.name for measure in self.measures]
        measured = [name for name in names if name in MEASURED]
        computed = [name for name in names if name in COMPUTED]
        if measured and self.table is None:
            raise problem("table", None, f"layers.csv of `hybridtron efficiency --by-block`, for {measured[0]}")
        if not computed and self.model is not None:
            raise problem("model", self.model, f"nothing with {measured[0]}, which the table has")
        if computed and self.model is None:
            raise problem("model", None, f"a run's config file, for {computed[0]}")
        if not measured and self.table is not None:
            raise problem("table", self.table, f"nothing with {computed[0]}, which is computed")
        if not computed and self.overrides:
            raise problem("overrides", self.overrides, f"none with {measured[0]}, which the table has")
        if not measured and self.batch != 1:
            raise problem("batch", self.batch, f"1 with {computed[0]}, which is computed")
        return self
