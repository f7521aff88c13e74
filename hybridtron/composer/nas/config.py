"""The config of a search: `hybridtron search CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from hybridtron.accounting.equal_size import Measure
from hybridtron.composer.costs.config import CostConfig
from hybridtron.composer.engines.bayesian import Bayesian
from hybridtron.composer.engines.discrete import Evolution, Exhaustive, RandomSearch
from hybridtron.composer.engines.listed import Listed
from hybridtron.composer.space.config import Count, SpaceConfig
from hybridtron.composer.space.layouts import read_layers
from hybridtron.config.schema import FolderName, Strict, problem
from hybridtron.data.blend_config import Sources
from hybridtron.model.config import without_dropped


class MethodologyConfig(Strict):
    """Whether all layers are searched at once, or some at a time around those already found."""

    type: Literal["one_shot", "end_incremental", "middle_incremental"] = Field(
        "one_shot",
        description="one_shot: all. end_incremental: append to what was found. middle_incremental: insert in it.",
    )
    step_layers: int | None = Field(None, ge=1, description="Incremental: layers searched at a time.")
    keep: Literal["aggregate", "best"] = Field(
        "aggregate",
        description="Incremental: what a step hands on, the aggregator's pattern or the best that was tried.",
    )


class AggregatorConfig(Strict):
    """How many evaluations become one pattern: cluster the scores, then vote layer by layer (N_c)."""

    clusters: int = Field(5, ge=1, description="Clusters of scores.")
    top: int = Field(1, ge=1, description="Best clusters that vote.")
    context: Count | Literal["all"] = Field(
        0, description="c of N_c: voters must agree with so many of the layers chosen just before; or all."
    )
    by: Literal["posterior_mean", "score"] = Field(
        "posterior_mean",
        description="What is clustered and votes: posterior means where the noise of scores is known and BoTorch is "
        "installed, else scores; or always scores, as in the paper.",
    )

    @model_validator(mode="after")
    def _some_cluster_is_left(self) -> AggregatorConfig:
        if self.top > self.clusters:
            raise problem("top", self.top, f"at most clusters {self.clusters}")
        return self


class EqualSizeConfig(Strict):
    """Compare patterns at equal size: one width of each is changed until it is as large as a baseline."""

    pattern: str = Field(
        description="The baseline: a pattern of the evaluator's blocks, such as `3*(attn mlp)`, or a name: "
        "striped 1:4, striped 1:8, nemotron-like, 3:1."
    )
    of: Measure = Field(
        "parameters",
        description="What is made equal: parameters, those without embeddings, forward FLOPs per token, or state. MAD "
        "counts parameters without embeddings.",
    )
    key: str | None = Field(
        None,
        description="The width: model.hidden_size or model.blocks.NAME.KEY; by default that of a pattern's largest "
        "feed-forward block, or model.hidden_size where it has none.",
    )
    tolerance: float = Field(
        0.01, gt=0, lt=1, description="Largest relative difference; a pattern that is farther off gets no score."
    )


class FunctionConfig(Strict):
    """A closed-form objective with a known optimum, to test engines: a random field with couplings of neighbours."""

    type: Literal["function"]
    instance: int = Field(0, ge=0, description="Which one: seed of its coefficients.")
    coupling: float = Field(1.0, ge=0, description="Strength of the couplings beside the fields.")
    noise: float = Field(0.0, ge=0, description="Standard deviation of what is added to a score, by pattern and seed.")


class ShortRunConfig(Strict):
    """A short training run; the score is the negative held-out loss."""

    type: Literal["train"]
    run: str = Field(description="A run's config file, whose blocks have the names of the space; data.valid is needed.")
    overrides: list[str] = Field([], description="Overrides of that config, such as train.steps=200.")
    test: Sources = Field(
        None,
        description="Held-out tokens of test scores, in the form of data.valid, which selects. By default the first "
        "half of data.valid's sequences selects, and the second gives test scores.",
    )


class MADConfig(Strict):
    """Mean accuracy on MAD's token-manipulation tasks, trained as a preset of hybridtron.mad says.

    The validation split selects, and the test split gives test scores. With a preset that chooses cells on the test
    split, as mad-lab does, that selects, and there are no test scores.
    """

    type: Literal["mad"]
    blocks: Annotated[dict[str, dict[str, Any]], BeforeValidator(without_dropped)] = Field(
        description="Block -> its type and keys, as in a run's model.blocks."
    )
    hidden_size: int = Field(128, ge=1, description="Width of the residual stream.")
    residual: dict[str, Any] = Field(
        {}, description="Residual topology, its type and keys, as in a run's model.residual; by default plain."
    )
    preset: str = Field("search", description="How each task is trained.")
    max_steps: int | None = Field(None, ge=1, description="Steps of each task at most; by default the preset's.")
    evaluations: int | None = Field(None, ge=1, description="How often a task is evaluated; by default the preset's.")
    batch_size: int | None = Field(None, ge=1, description="Examples of a step; by default the preset's.")
    eval_examples: int | None = Field(None, ge=1, description="Examples of an evaluation; by default the preset's.")
    tasks: dict[str, dict[str, int | float]] = Field(
        {}, description="Task -> changes of its baseline setting; by default all six at their baseline."
    )


class OutsideConfig(Strict):
    """Scores that all come from outside: `hybridtron search ask` gives out patterns, `tell` takes their scores."""

    type: Literal["outside"]
    quantity: str = Field("score", description="What a score is, in words; larger is better.")


class BudgetConfig(Strict):
    """What the evaluations of a search may cost together; it stops before the one that would exceed this.

    Seeds of `confirm` come on top.
    """

    evaluations: int | None = Field(None, ge=1, description="Patterns, as `evaluations` beside it.")
    flops: float | None = Field(
        None, gt=0, description="FLOPs of training, three forward passes over the tokens of each evaluation."
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="Hours of evaluation, over all workers; the next one is expected to take the longest yet.",
    )

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetConfig:
        if not self.model_dump(exclude_none=True):
            raise problem("", {}, "one of evaluations, flops, hours")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """Return the limits of cost that are set: flops, hours."""
        return self.model_dump(include={"flops", "hours"}, exclude_none=True)


class ConfirmConfig(Strict):
    """Seeds that the search has not seen, for its vote, its best patterns and baselines, compared in pairs.

    A finished search goes on with it in its folder, and with more `seeds` evaluates those alone.
    """

    top: int = Field(
        3, ge=1, description="Best patterns, by posterior mean where the noise of scores is known, else by score."
    )
    seeds: int = Field(5, ge=2, description="Fresh seeds, those after the largest of the search's own.")
    baselines: list[str] = Field(
        [],
        description="Patterns beside them, of as many layers, in any dialect, or names: striped 1:4, striped 1:8, "
        "nemotron-like, 3:1.",
    )


class SearchConfig(Strict):
    """One search."""

    name: FolderName = Field(description="Names the folder.")
    folder: str | None = Field(None, description="Where the search is kept; by default checkpoints/search-NAME.")
    seed: int = Field(0, ge=0, description="Of the engine's draws.")
    seeds: list[int] = Field([0], min_length=1, description="Every pattern is evaluated once with each of these seeds.")
    evaluations: int | None = Field(
        None,
        ge=1,
        description="Patterns to evaluate, in each step of an incremental methodology; fewer where no more exist. "
        "May be left out with a `budget` or a list.",
    )
    budget: BudgetConfig | None = Field(None, description="Limits of what the evaluations cost together.")
    space: SpaceConfig
    evaluator: FunctionConfig | ShortRunConfig | MADConfig | OutsideConfig = Field(
        discriminator="type", description="What scores a pattern."
    )
    engine: Bayesian | Evolution | RandomSearch | Exhaustive | Listed = Field(
        discriminator="type", description="What chooses the patterns to evaluate."
    )
    methodology: MethodologyConfig = MethodologyConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    cost: CostConfig | None = Field(
        None, description="With it, a Pareto front of score and costs is looked for, or the best score within limits."
    )
    equal_size: EqualSizeConfig | None = Field(
        None, description="With it, all patterns are as large as a baseline; by default blocks are as they are written."
    )

    confirm: ConfirmConfig | None = Field(
        None, description="With it, what was found is evaluated again on fresh seeds before it is called better."
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise problem("", seeds, "different whole numbers, each at least 0")
        return sorted(seeds)  # in any order they are the same search

    @model_validator(mode="after")
    def _has_models_to_size(self) -> SearchConfig:
        if self.equal_size and self.evaluator.type in ("function", "outside"):
            raise problem("equal_size", self.equal_size.pattern, f"nothing with evaluator.type {self.evaluator.type}")
        return self

    @model_validator(mode="after")
    def _ends_somewhere(self) -> SearchConfig:
        budget = self.budget
        if self.evaluations is None and budget is None and not isinstance(self.engine, Listed):
            raise problem("evaluations", None, "a whole number, at least 1, or a budget")
        if self.evaluations is not None and budget and budget.evaluations is not None:
            raise problem("budget.evaluations", budget.evaluations, f"nothing beside evaluations {self.evaluations}")
        one_shot, without = self.methodology.type == "one_shot", {"outside": ("flops", "hours"), "function": ("flops",)}
        for key, value in (budget.limits if budget else {}).items():
            if key in without.get(self.evaluator.type, ()):
                raise problem(f"budget.{key}", value, f"budget.evaluations with evaluator.type {self.evaluator.type}")
            if not one_shot:
                raise problem(
                    f"budget.{key}", value, f"budget.evaluations with methodology.type {self.methodology.type}"
                )
        if isinstance(self.engine, Listed) and not one_shot:
            raise problem("methodology.type", self.methodology.type, "one_shot with engine.type list")
        return self

    @model_validator(mode="after")
    def _baselines_are_patterns(self) -> SearchConfig:
        for text, layers in zip(self.confirm.baselines if self.confirm else (), self.baselines, strict=True):
            if len(layers) != self.space.layers:
                raise problem("confirm.baselines", text, f"a pattern of {self.space.layers} layers")
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> SearchConfig:
        method, layers = self.methodology, self.space.layers
        if method.type == "one_shot":
            if method.step_layers is not None:
                raise problem("methodology.step_layers", method.step_layers, "nothing with type one_shot")
            return self
        if method.step_layers is None or layers % method.step_layers:
            raise problem("methodology.step_layers", method.step_layers, f"a divisor of space.layers {layers}")
        if method.type == "middle_incremental" and self.space.fixed is not None:
            raise problem("space.fixed", self.space.fixed, "nothing with middle_incremental, which moves positions")
        return self

    @property
    def baselines(self) -> list[Sequence[str]]:
        """Return the layers of each baseline of the confirmation."""
        texts = self.confirm.baselines if self.confirm else []
        return [read_layers(text, self.space) for text in texts]

    def most_evaluations(self, possible: int) -> int:
        """Return how many of the possible patterns may be evaluated, in a step."""
        given = self.evaluations or (self.budget.evaluations if self.budget else None)
        return min(given or possible, possible)

    @property
    def fresh_seeds(self) -> range:
        """Return the seeds of the confirmation, none without one."""
        first = max(self.seeds) + 1
        return range(first, first + (self.confirm.seeds if self.confirm else 0))

    @property
    def search_folder(self) -> Path:
        return Path(self.folder) if self.folder else Path("checkpoints") / f"search-{self.name}"
