"""What makes a score of a pattern: a closed form, a short training run, or MAD's tasks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hybridtron.accounting.describe import describe
from hybridtron.composer.evaluation.closed_form import Chain
from hybridtron.composer.evaluation.sizes import Sizes, Width
from hybridtron.composer.nas.config import (
    EqualSizeConfig,
    FunctionConfig,
    MADConfig,
    OutsideConfig,
    SearchConfig,
    ShortRunConfig,
)
from hybridtron.composer.nas.store import Row
from hybridtron.composer.space.baselines import baseline
from hybridtron.config.compose import compose
from hybridtron.config.dotted import with_value_at
from hybridtron.config.load import build
from hybridtron.config.nearest import nearest, one_of
from hybridtron.data.blend_config import without_paths
from hybridtron.errors import UserError
from hybridtron.mad.tasks.protocol import Setting, task
from hybridtron.mixers.identity import block_identity
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig, without_dropped
from hybridtron.pattern import Pattern

if TYPE_CHECKING:
    from hybridtron.mad.models.architecture import Architecture
    from hybridtron.mad.training.presets import Preset
    from hybridtron.training.config import RunConfig
    from hybridtron.training.corpus import Corpus

logger = logging.getLogger(__name__)


TEST = "test"  # in the identity of an evaluator that gives test scores: of which data

Evaluate = Callable[[Sequence[str], int], Row]


@dataclass(frozen=True)
class Evaluator:
    """`evaluate` takes the names of a pattern's layers and a seed, and returns what is recorded: `score`, of which
    larger is better and None is none that is finite, and details beside it.

    `identity` tells two evaluators apart whose scores cannot be compared; `optimum` is the best score, if known.
    `sizes` has the parameters of patterns, where patterns are models. `flops` counts those of the training that one
    evaluation plans, where it trains.
    """

    evaluate: Evaluate
    identity: dict[str, Any]
    quantity: str
    optimum: float | None = None
    sizes: Sizes | None = None
    flops: Callable[[Sequence[str]], float] | None = None

    def cost(self, layers: Sequence[str]) -> float:
        """Return the FLOPs of one evaluation; 0 for a pattern that has no right size, which is not trained."""
        counts = tuple(sorted(layers))
        if counts not in self._costs:
            try:
                self._costs[counts] = self.flops(counts) if self.flops else 0.0
            except UserError:
                self._costs[counts] = 0.0
        return self._costs[counts]

    @cached_property
    def _costs(self) -> dict[tuple[str, ...], float]:
        """Hold the counts of `cost`."""
        return {}


def make_evaluator(config: SearchConfig, tests: bool = True) -> Evaluator:
    """Build the config's evaluator; raises UserError where it lacks a block of the space or a file.

    With `tests` it gives test scores where it can, on data that selects nothing. Without, as searches were once begun,
    `train` selects on all of data.valid, and `mad` on the test split.
    """
    settings = config.evaluator
    if isinstance(settings, FunctionConfig):
        return _function(settings, config)
    if isinstance(settings, OutsideConfig):
        return Evaluator(_outside, settings.model_dump(), settings.quantity)
    if isinstance(settings, ShortRunConfig):
        return _short_run(settings, config, tests)
    return _mad(settings, config, tests)


def _outside(layers: Sequence[str], seed: int) -> Row:
    raise NotImplementedError("scores come from outside")


def _function(settings: FunctionConfig, config: SearchConfig) -> Evaluator:
    blocks = config.space.blocks
    usual = {*MIXERS, "attn", "mamba"}
    for name in blocks:
        if name not in usual and (close := nearest(name, usual)):
            logger.warning(
                "space.blocks: %s is taken as it is, since a function needs no layers; nearest: %s", name, close
            )

    def evaluate(layers: Sequence[str], seed: int) -> Row:
        chain = Chain(len(layers), len(blocks), settings.instance, settings.coupling, settings.noise)
        return {"score": chain(tuple(blocks.index(name) for name in layers), seed)}

    chain = Chain(config.space.layers, len(blocks), settings.instance, settings.coupling)
    one_shot, exact = config.methodology.type == "one_shot", not settings.noise
    known = one_shot and exact and config.space.patterns.allows(chain.optimum)
    return Evaluator(evaluate, settings.model_dump(), "score", 1.0 if known else None)


def _short_run(settings: ShortRunConfig, config: SearchConfig, tests: bool) -> Evaluator:
    from hybridtron.composer.evaluation.held_out import held_out_parts, score_run
    from hybridtron.training.config import RunConfig
    from hybridtron.training.validation.resolve import resolve

    place = f"evaluator.run = {settings.run}"
    for override in settings.overrides:
        key = override.partition("=")[0]
        if key in ("model.pattern", "seed"):
            raise UserError(f"evaluator.overrides: {override}: the search itself sets {key}; expected other keys")
    with _at(place):
        composed = compose(settings.run, settings.overrides)
    model = composed.mapping.get("model")
    known = without_dropped(model.get("blocks")) if isinstance(model, dict) else None
    require_blocks(place, config.space.blocks, known if isinstance(known, dict) else {})

    def run_of(layers: Sequence[str], seed: int, width: Width | None = None) -> RunConfig:
        model = {**composed.mapping["model"], "pattern": " ".join(layers)}
        model = with_value_at(model, *width) if width else model
        keys = {**composed.mapping, "seed": seed, "model": model, "grown_from": None}
        return resolve(build(keys, RunConfig, composed.provenance))

    def model_of(layers: Sequence[str], width: Width | None) -> ModelConfig:
        return run_of(layers, config.seeds[0], width).model

    with _at(place):
        first = run_of([config.space.blocks[0]] * config.space.layers, config.seeds[0])
        corpus = _corpus(first)
        parts = held_out_parts(first, corpus, settings.test) if tests or settings.test else None
    with _at("equal_size"):
        sizes = Sizes(model_of, first.data.seq_len, "parameters", _baseline(config))

    def evaluate(layers: Sequence[str], seed: int) -> Row:
        return score_run(run_of(layers, seed, sizes.width(layers)), parts)

    def flops(layers: Sequence[str]) -> float:
        run = run_of(layers, config.seeds[0], sizes.width(layers))
        sequences = run.tokens(0, run.train.steps) / run.data.seq_len
        return sequences * describe(run.model, run.data.seq_len).flops_training

    identity = first.identity()
    identity.pop("seed")
    identity["model"].pop("pattern")
    identity["data"] = without_paths(identity["data"], corpus.fingerprints)
    return Evaluator(
        _scored(evaluate, sizes),
        {"type": "train", "run": identity, **({TEST: parts.identity} if parts else {}), **_equal(config)},
        "negative held-out loss",
        sizes=sizes,
        flops=flops,
    )


def _corpus(run: RunConfig) -> Corpus:
    """Open the tokens of a search's runs; raises UserError for what they lack, before anything is trained."""
    from hybridtron.training.corpus import open_corpus

    if run.data.valid is None:
        raise UserError("has no data.valid; expected held-out tokens to score on")
    if run.train.init_from is not None:
        raise UserError("has train.init_from; expected none: every pattern is trained from random weights")
    return open_corpus(run)


def _mad(settings: MADConfig, config: SearchConfig, tests: bool) -> Evaluator:
    from hybridtron.mad.models.architecture import Architecture
    from hybridtron.mad.models.candidate import SEQ_LEN
    from hybridtron.mad.tasks.protocol import TASKS, complete
    from hybridtron.mad.training.presets import preset

    require_blocks("evaluator.blocks", config.space.blocks, settings.blocks)
    changes = {key: getattr(settings, key) for key in ("max_steps", "evaluations", "batch_size", "eval_examples")}
    wanted = settings.tasks or {name: {} for name in TASKS}
    with _at("evaluator.preset"):
        protocol = preset(settings.preset, **changes)
    tests = tests and protocol.select_split != "test"
    with _at("evaluator.tasks"):
        chosen = {name: complete(name, setting) for name, setting in wanted.items()}

    def architecture(layers: Sequence[str], width: Width | None = None) -> Architecture:
        used = {name: settings.blocks[name] for name in dict.fromkeys(layers)}
        keys: dict[str, Any] = {"blocks": used, "hidden_size": settings.hidden_size}
        keys = with_value_at(keys, *width) if width else keys
        pattern = str(Pattern(tuple(layers)))
        return Architecture(pattern, keys["blocks"], pattern, keys["hidden_size"], residual=settings.residual)

    def model_of(layers: Sequence[str], width: Width | None) -> ModelConfig:
        require_blocks("equal_size.pattern", layers, settings.blocks)
        return architecture(layers, width).model(vocab_size=16, seq_len=SEQ_LEN)

    with _at("evaluator"):
        for name in config.space.blocks:
            layers = config.methodology.step_layers or config.space.layers
            architecture([name] * layers).account()  # tells what is wrong with a block before anything is trained
    with _at("equal_size"):
        sizes = Sizes(model_of, SEQ_LEN, "non_embedding", _baseline(config))

    def evaluate(layers: Sequence[str], seed: int) -> Row:
        from hybridtron.mad.training.loop import train_setting
        from hybridtron.training.process.device import take_device

        candidate, device = architecture(layers, sizes.width(layers)), take_device()
        rows = [
            row
            for name, setting in chosen.items()
            for row in train_setting(candidate, name, setting, protocol, [seed], device=device)
        ]
        return _mad_row(rows, tests)

    def flops(layers: Sequence[str]) -> float:
        return _mad_flops(architecture(layers, sizes.width(layers)), chosen, protocol)

    identity = settings.model_dump(include={"type", "hidden_size"}) | {
        "blocks": {name: block_identity(settings.blocks[name]) for name in config.space.blocks},
        "tasks": chosen,
        "protocol": protocol.as_json(),
        **({"residual": settings.residual} if settings.residual else {}),
        **({TEST: "test split"} if tests else {}),
        **_equal(config),
    }
    return Evaluator(_scored(evaluate, sizes), identity, "mean accuracy", sizes=sizes, flops=flops)


def _mad_row(rows: Sequence[Row], tests: bool) -> Row:
    """Return the accuracies of trained tasks as a row of the record, and their means.

    Those that select are of the split that chose the cells, or without `tests` of the test split.
    """
    from hybridtron.mad.scoring.aggregate import scores

    (score,) = scores(rows)
    kind = score.headline
    tested = score.overall[kind].mean
    if tests:
        tasks = {name: task.selecting(kind) for name, task in score.tasks.items()}
        return {"score": fmean(tasks.values()), "tasks": tasks, "test_score": tested}
    return {"score": tested, "tasks": {name: task.accuracy[kind].mean for name, task in score.tasks.items()}}


def _mad_flops(candidate: Architecture, settings: Mapping[str, Setting], protocol: Preset) -> float:
    """Return the FLOPs of the training steps that a preset plans on these settings of tasks."""
    total = 0.0
    for name, setting in settings.items():
        seq_len, examples = task(name).sequence_length(setting), int(setting["num_train_examples"])
        account = describe(candidate.model(int(setting["vocab_size"]), seq_len), seq_len)
        sequences = protocol.steps(examples) * min(protocol.batch_size, examples) * len(protocol.cells)
        total += sequences * account.flops_training
    return total


def _baseline(config: SearchConfig) -> EqualSizeConfig | None:
    """Return `equal_size` with the layers of a baseline in place of its name."""
    equal, space = config.equal_size, config.space
    named = baseline(equal.pattern, space.blocks, space.layers) if equal else None
    return equal.model_copy(update={"pattern": str(Pattern(named))}) if equal and named else equal


def _equal(config: SearchConfig) -> dict[str, Any]:
    """Return what equal sizes add to the identity of an evaluator; nothing where sizes are left alone."""
    return {"equal_size": config.equal_size.model_dump()} if config.equal_size else {}


def _scored(evaluate: Evaluate, sizes: Sizes) -> Evaluate:
    """Return an evaluation that records an error in place of a score for a pattern that has no right size."""

    def scored(layers: Sequence[str], seed: int) -> Row:
        try:
            sizes.width(layers)
        except UserError as error:
            return {"score": None, "error": str(error)}
        return evaluate(layers, seed)

    return scored


@contextlib.contextmanager
def _at(place: str) -> Iterator[None]:
    """Prefix the UserErrors of the block with a place in the search's config."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def require_blocks(place: str, blocks: Sequence[str], known: Mapping[str, Any]) -> None:
    """Raise UserError where `known`, which is found at `place` of the search's config, lacks a block."""
    for name in blocks:
        if name not in known:
            raise UserError(f"{place}: has no block {name!r} of space.blocks; expected {one_of(name, known)}")
