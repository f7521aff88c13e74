"""The config of a search: `hybridtron search CONFIG`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from hybridtron.composer.engines.bayesian import Bayesian
from hybridtron.composer.engines.discrete import Engine, Evolution, Exhaustive, RandomSearch
from hybridtron.composer.nas.space import Space
from hybridtron.config.nearest import one_of
from hybridtron.config.schema import Strict, dispatch, problem

FREE = "?"  # a position that is searched
BlockName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class SpaceConfig(Strict):
    """The patterns that may be tried."""

    blocks: list[BlockName] = Field(min_length=1, description="Names of the blocks, as the evaluator knows them.")
    layers: int = Field(ge=1, le=256, description="Layers of a pattern.")
    fixed: str | None = Field(
        None, description="One word for each layer: a block that stands there, or ? where the search decides."
    )
    at_most: dict[str, int] = Field({}, description="Block -> how often it may be used.")
    at_least: dict[str, int] = Field({}, description="Block -> how often it must be used.")
    longest_run: dict[str, int] = Field({}, description="Block -> how many of it may follow one another.")
    never_first: list[str] = Field([], description="Blocks that the first layer may not be.")
    never_last: list[str] = Field([], description="Blocks that the last layer may not be.")
    never_adjacent: list[tuple[str, str]] = Field([], description="Pairs: the second may not follow the first.")

    @model_validator(mode="after")
    def _names_blocks_and_leaves_patterns(self) -> SpaceConfig:
        for error in self._problems():
            raise error
        return self

    def _problems(self) -> Iterator[Exception]:
        if len(set(self.blocks)) < len(self.blocks):
            yield problem("blocks", self.blocks, "different names")
        for key in ("at_most", "at_least", "longest_run"):
            for name, count in getattr(self, key).items():
                if name not in self.blocks:
                    yield problem(f"{key}.{name}", count, f"a block: {one_of(name, self.blocks)}")
                elif count < (key == "longest_run"):
                    yield problem(f"{key}.{name}", count, f"at least {int(key == 'longest_run')}")
        pairs = [name for pair in self.never_adjacent for name in pair]
        for key, names in (
            ("never_first", self.never_first),
            ("never_last", self.never_last),
            ("never_adjacent", pairs),
        ):
            for name in names:
                if name not in self.blocks:
                    yield problem(key, name, one_of(name, self.blocks))
        words = self.fixed_words
        if len(words) != self.layers:
            yield problem("fixed", self.fixed, f"{self.layers} words, one for each layer, {FREE} where it is free")
        for word in words:
            if word != FREE and word not in self.blocks:
                yield problem("fixed", word, one_of(word, [*self.blocks, FREE]))
        if not self.space().size:
            yield problem(
                "", self._constraints(), f"constraints that leave a pattern of {self.layers} layers; {self._culprit()}"
            )

    @property
    def fixed_words(self) -> list[str]:
        return self.fixed.split() if self.fixed is not None else [FREE] * self.layers

    def _constraints(self) -> dict[str, Any]:
        return {key: value for key, value in self.model_dump(exclude={"blocks", "layers"}).items() if value}

    def _culprit(self) -> str:
        """Name the single constraints that leave no pattern, if one does so alone."""
        alone = [
            key
            for key in self._constraints()
            if self.model_copy(update={key: type(self).model_fields[key].default}).space().size
        ]
        return f"without {' or '.join(alone)} there are some" if alone else "several of them must go"

    def space(self) -> Space:
        place = {name: index for index, name in enumerate(self.blocks)}
        return Space(
            tuple(self.blocks),
            self.layers,
            {i: place[word] for i, word in enumerate(self.fixed_words) if word != FREE},
            {place[name]: count for name, count in self.at_most.items()},
            {place[name]: count for name, count in self.at_least.items()},
            {place[name]: count for name, count in self.longest_run.items()},
            frozenset(place[name] for name in self.never_first),
            frozenset(place[name] for name in self.never_last),
            frozenset((place[first], place[second]) for first, second in self.never_adjacent),
        )


ENGINES: dict[str, type[Engine]] = {
    "bayesian": Bayesian,
    "evolution": Evolution,
    "random": RandomSearch,
    "exhaustive": Exhaustive,
}


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
    context: int | Literal["all"] = Field(
        0, description="c of N_c: voters must agree with so many of the layers chosen just before; or all."
    )

    @field_validator("context")
    @classmethod
    def _not_negative(cls, context: int | str) -> int | str:
        if isinstance(context, int) and context < 0:
            raise problem("", context, "at least 0, or all")
        return context

    @model_validator(mode="after")
    def _some_cluster_is_left(self) -> AggregatorConfig:
        if self.top > self.clusters:
            raise problem("top", self.top, f"at most clusters {self.clusters}")
        return self


class CostConfig(Strict):
    """A second objective, to be small: what a pattern costs at a model's widths."""

    measure: Literal["flops", "parameters", "cache"] = Field(
        description="Forward FLOPs per token, parameters of the layers, or elements kept per sequence to generate."
    )
    model: str = Field(description="A run's config file, whose blocks have the names of the space.")
    overrides: list[str] = Field([], description="Overrides of that config, such as size=1b.")
    seq_len: int | None = Field(None, ge=1, description="Tokens of a sequence; by default that config's.")


class EvaluatorConfig(Strict):
    """Base of every evaluator's config."""

    type: str


class FunctionConfig(EvaluatorConfig):
    """A closed-form objective with a known optimum, to test engines: a random field with couplings of neighbours."""

    type: Literal["function"]
    instance: int = Field(0, ge=0, description="Which one: seed of its coefficients.")
    coupling: float = Field(1.0, ge=0, description="Strength of the couplings beside the fields.")
    noise: float = Field(0.0, ge=0, description="Standard deviation of what is added to a score, by pattern and seed.")


class ShortRunConfig(EvaluatorConfig):
    """A short training run; the score is the negative held-out loss."""

    type: Literal["train"]
    run: str = Field(description="A run's config file, whose blocks have the names of the space; data.valid is needed.")
    overrides: list[str] = Field([], description="Overrides of that config, such as train.steps=200.")


class MADConfig(EvaluatorConfig):
    """Mean test accuracy on MAD's token-manipulation tasks, trained as a preset of hybridtron.mad says."""

    type: Literal["mad"]
    blocks: dict[str, dict[str, Any]] = Field(description="Block -> its type and keys, as in a run's model.blocks.")
    hidden_size: int = Field(128, ge=1, description="Width of the residual stream.")
    preset: str = Field("search", description="How each task is trained.")
    max_steps: int | None = Field(None, ge=1, description="Steps of each task at most; by default the preset's.")
    evaluations: int | None = Field(None, ge=1, description="How often a task is evaluated; by default the preset's.")
    batch_size: int | None = Field(None, ge=1, description="Examples of a step; by default the preset's.")
    eval_examples: int | None = Field(None, ge=1, description="Examples of an evaluation; by default the preset's.")
    tasks: dict[str, dict[str, int | float]] = Field(
        {}, description="Task -> changes of its baseline setting; by default all six at their baseline."
    )


EVALUATORS: dict[str, type[EvaluatorConfig]] = {"function": FunctionConfig, "train": ShortRunConfig, "mad": MADConfig}

AnyEngine = Annotated[SerializeAsAny[Engine], BeforeValidator(lambda value: dispatch(value, ENGINES))]
AnyEvaluator = Annotated[SerializeAsAny[EvaluatorConfig], BeforeValidator(lambda value: dispatch(value, EVALUATORS))]


class SearchConfig(Strict):
    """One search."""

    name: str = Field(description="Names the folder.")
    folder: str | None = Field(None, description="Where the search is kept; by default checkpoints/search-NAME.")
    seed: int = Field(0, ge=0, description="Of the engine's draws.")
    seeds: list[int] = Field([0], min_length=1, description="Every pattern is evaluated once with each of these seeds.")
    evaluations: int = Field(
        ge=1, description="Patterns to evaluate, in each step of an incremental methodology; fewer where no more exist."
    )
    space: SpaceConfig
    evaluator: AnyEvaluator
    engine: AnyEngine
    methodology: MethodologyConfig = MethodologyConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    cost: CostConfig | None = Field(None, description="With it, a Pareto front of score and cost is looked for.")

    @field_validator("name")
    @classmethod
    def _usable_as_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise problem("", name, "letters, digits, '.', '_' and '-', beginning with a letter or digit")
        return name

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise problem("", seeds, "different whole numbers, each at least 0")
        return seeds

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
    def search_folder(self) -> Path:
        return Path(self.folder) if self.folder else Path("checkpoints") / f"search-{self.name}"
