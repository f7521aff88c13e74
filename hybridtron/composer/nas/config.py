"""The config of a search: `hybridtron search CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from hybridtron.accounting.equal_size import Measure
from hybridtron.composer.engines.bayesian import Bayesian
from hybridtron.composer.engines.discrete import Evolution, Exhaustive, RandomSearch
from hybridtron.composer.nas.cost_config import CostConfig
from hybridtron.composer.nas.space import Space
from hybridtron.config.nearest import one_of
from hybridtron.config.schema import FolderName, Strict, problem
from hybridtron.pattern import read

FREE = "?"  # a position that is searched
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
BlockName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class SpaceConfig(Strict):
    """The patterns that may be tried."""

    blocks: list[BlockName] = Field(min_length=1, description="Names of the blocks, as the evaluator knows them.")
    layers: int = Field(ge=1, le=256, description="Layers of a pattern.")
    fixed: str | None = Field(
        None, description="One word for each layer: a block that stands there, or ? where the search decides."
    )
    at_most: dict[str, Count] = Field({}, description="Block -> how often it may be used.")
    at_least: dict[str, Count] = Field({}, description="Block -> how often it must be used.")
    longest_run: dict[str, PositiveCount] = Field({}, description="Block -> how many of it may follow one another.")
    never_first: list[str] = Field([], description="Blocks that the first layer may not be.")
    never_last: list[str] = Field([], description="Blocks that the last layer may not be.")
    never_adjacent: list[tuple[str, str]] = Field([], description="Pairs: the second may not follow the first.")

    @model_validator(mode="after")
    def _names_blocks_and_leaves_patterns(self) -> SpaceConfig:
        if len(set(self.blocks)) < len(self.blocks):
            raise problem("blocks", self.blocks, "different names")
        if len(self.fixed_words) != self.layers:
            raise problem("fixed", self.fixed, f"{self.layers} words, one for each layer, {FREE} where it is free")
        named = [("fixed", word, word) for word in self.fixed_words if word != FREE]
        for key in ("at_most", "at_least", "longest_run"):
            named += [(f"{key}.{name}", count, name) for name, count in getattr(self, key).items()]
        for key in ("never_first", "never_last"):
            named += [(key, name, name) for name in getattr(self, key)]
        named += [("never_adjacent", name, name) for pair in self.never_adjacent for name in pair]
        for key, value, name in named:
            if name not in self.blocks:
                choices = [*self.blocks, FREE] if key == "fixed" else self.blocks
                raise problem(key, value, f"a block: {one_of(name, choices)}")
        if not self.patterns.size:
            constraints = {k: value for k, value in self.model_dump(exclude={"blocks", "layers"}).items() if value}
            none = {key: type(getattr(self.patterns, key))() for key in constraints}
            alone = [key for key in constraints if replace(self.patterns, **{key: none[key]}).size]
            reason = f"without {' or '.join(alone)} there are some" if alone else "several of them must go"
            raise problem("", constraints, f"constraints that leave a pattern of {self.layers} layers; {reason}")
        return self

    @property
    def fixed_words(self) -> list[str]:
        return self.fixed.split() if self.fixed is not None else [FREE] * self.layers

    @cached_property
    def patterns(self) -> Space:
        """Return the patterns that keep the constraints."""
        index = {name: i for i, name in enumerate(self.blocks)}
        return Space(
            tuple(self.blocks),
            self.layers,
            {i: index[word] for i, word in enumerate(self.fixed_words) if word != FREE},
            {index[name]: count for name, count in self.at_most.items()},
            {index[name]: count for name, count in self.at_least.items()},
            {index[name]: count for name, count in self.longest_run.items()},
            frozenset(index[name] for name in self.never_first),
            frozenset(index[name] for name in self.never_last),
            frozenset((index[first], index[second]) for first, second in self.never_adjacent),
        )


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

    pattern: str = Field(description="The baseline: a pattern of the evaluator's blocks, such as `3*(attn mlp)`.")
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


class MADConfig(Strict):
    """Mean test accuracy on MAD's token-manipulation tasks, trained as a preset of hybridtron.mad says."""

    type: Literal["mad"]
    blocks: dict[str, dict[str, Any]] = Field(description="Block -> its type and keys, as in a run's model.blocks.")
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


class ConfirmConfig(Strict):
    """Seeds that the search has not seen, for its vote, its best patterns and baselines, compared in pairs.

    A finished search goes on with it in its folder, and with more `seeds` evaluates those alone.
    """

    top: int = Field(
        3, ge=1, description="Best patterns, by posterior mean where the noise of scores is known, else by score."
    )
    seeds: int = Field(5, ge=2, description="Fresh seeds, those after the largest of the search's own.")
    baselines: list[str] = Field([], description="Patterns beside them, of as many layers, in any dialect.")


class SearchConfig(Strict):
    """One search."""

    name: FolderName = Field(description="Names the folder.")
    folder: str | None = Field(None, description="Where the search is kept; by default checkpoints/search-NAME.")
    seed: int = Field(0, ge=0, description="Of the engine's draws.")
    seeds: list[int] = Field([0], min_length=1, description="Every pattern is evaluated once with each of these seeds.")
    evaluations: int = Field(
        ge=1, description="Patterns to evaluate, in each step of an incremental methodology; fewer where no more exist."
    )
    space: SpaceConfig
    evaluator: FunctionConfig | ShortRunConfig | MADConfig = Field(
        discriminator="type", description="What scores a pattern."
    )
    engine: Bayesian | Evolution | RandomSearch | Exhaustive = Field(
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
        return seeds

    @model_validator(mode="after")
    def _has_models_to_size(self) -> SearchConfig:
        if self.equal_size and self.evaluator.type == "function":
            raise problem("equal_size", self.equal_size.pattern, "nothing with evaluator.type function")
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
        return [read(text, self.space.blocks).layers for text in texts]

    @property
    def fresh_seeds(self) -> range:
        """Return the seeds of the confirmation, none without one."""
        first = max(self.seeds) + 1
        return range(first, first + (self.confirm.seeds if self.confirm else 0))

    @property
    def search_folder(self) -> Path:
        return Path(self.folder) if self.folder else Path("checkpoints") / f"search-{self.name}"
