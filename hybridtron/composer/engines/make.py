"""From an `engine` section to the engine."""

from __future__ import annotations

from hybridtron.composer.engines.bayesian import Bayesian
from hybridtron.composer.engines.discrete import Engine, Evolution, Exhaustive, RandomSearch
from hybridtron.composer.nas.config import BayesianConfig, EngineConfig, EvolutionConfig, ExhaustiveConfig


def make_engine(config: EngineConfig, seed: int) -> Engine:
    """Build the engine that a config's `engine` section describes; `seed` is the search's."""
    if isinstance(config, EvolutionConfig):
        return Evolution(config.population, config.sample)
    if isinstance(config, BayesianConfig):
        return Bayesian(config.start, config.candidates, seed)
    return Exhaustive() if isinstance(config, ExhaustiveConfig) else RandomSearch()
