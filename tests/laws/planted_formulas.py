"""Synthetic runs of the laws that are one formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hybridtron.laws.data.points import read_points
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import data_repetition, hybrid_ratio, outer_exponent, precision
from hybridtron.laws.families.moe import fine_grained, optimal_sparsity, routed_moe, sparse
from hybridtron.laws.families.symbols import SYMBOLS
from tests.laws.planted import Seed, scattered_sizes

Columns = dict[str, np.ndarray]


class Planted(NamedTuple):
    """A formula, its true parameters, how the columns of runs are drawn, and a point to predict."""

    loss: Callable[..., Any]
    truth: dict[str, float]
    draw: Callable[[np.random.Generator, Columns], Columns]
    point: str

    def columns(self, rng: np.random.Generator, n: int) -> Columns:
        sizes, tokens = scattered_sizes(rng, n)
        columns = {"n_params": sizes, "tokens": tokens}
        return columns | self.draw(rng, columns)

    def runs(self, seed: Seed, noise: float, n: int = 150) -> Runs:
        rng = np.random.default_rng(seed)
        columns = self.columns(rng, n)
        losses = self.true_loss(columns) * np.exp(noise * rng.standard_normal(n))
        return Runs.of("data", **columns, loss=losses)

    def far(self, runs: Runs, factor: float) -> dict[str, float]:
        """The point to predict, its sizes and its tokens moved to `factor` times the largest of some runs."""
        named = read_points(self.point)[0]
        at = {column: value for name, value in named.items() for column in SYMBOLS.get(name, (name,)) if column in runs}
        for whole, part in (("n_params", "active_params"), ("tokens", "unique_tokens")):
            moved = factor * float(runs[whole].max()) / at.get(whole, 1.0)
            at |= {name: at[name] * moved for name in (whole, part) if name in at}
        return at

    def true_loss(self, columns: Any) -> Any:
        named = {
            name: column for name, column in columns.items() if self.loss is not routed_moe.loss or name != "tokens"
        }
        return self.loss(**named, **self.truth)


def _of(name: str, *values: float) -> Callable[[np.random.Generator, Columns], Columns]:
    return lambda rng, columns: {name: rng.choice(values, len(columns["tokens"]))}


def _bits(rng: np.random.Generator, columns: Columns) -> Columns:
    return {name: rng.integers(2, 13, len(columns["tokens"])).astype(float) for name in precision.BITS}


def _active(rng: np.random.Generator, columns: Columns) -> Columns:
    return {"active_params": columns["n_params"] * rng.choice([1, 1 / 2, 1 / 4, 1 / 8, 1 / 16], len(columns["tokens"]))}


def _active_as_published(rng: np.random.Generator, columns: Columns) -> Columns:
    sparsity = rng.choice([0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98], len(columns["tokens"]))
    return {"active_params": columns["n_params"] * (1 - sparsity)}


def _unique(rng: np.random.Generator, columns: Columns) -> Columns:
    epochs = np.exp(rng.uniform(np.log(0.5), np.log(100), len(columns["tokens"])))
    return {"unique_tokens": columns["tokens"] / np.maximum(1, epochs)}


LAWS = {
    "outer-exponent": Planted(
        outer_exponent.loss,
        {"E": 1.7, "A": 60.0, "alpha": 0.5, "B": 700.0, "beta": 0.55, "gamma": 0.65},
        lambda rng, columns: {},
        "N=7B,D=140B",
    ),
    "hybrid-ratio": Planted(
        hybrid_ratio.loss,
        {"E": 1.8, "A": 400.0, "A1": -0.5, "A2": 0.9, "alpha": 0.34, "B": 1500.0, "B1": -0.3, "B2": 0.4, "beta": 0.36},
        _of("ratio", 0, 0.125, 0.25, 0.5, 0.75, 1),
        "N=7B,D=140B,r=0",
    ),
    "data-repetition": Planted(
        data_repetition.loss,
        {"E": 1.8, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.36, "R_D": 15.0, "R_N": 5.0},
        _unique,
        "N=7B,D=140B,U=20B",
    ),
    "routed-moe": Planted(
        routed_moe.loss,
        {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.85, "E_max": 314.0},
        _of("experts", 1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        "N=7B,experts=64",
    ),
    "sparse": Planted(
        sparse.loss,
        {"a": 84.0, "b": 0.72, "g": 225.0, "alpha": 0.3, "B": 1500.0, "beta": 0.36, "E": 1.7},
        _active,
        "N=7B,D=140B,active=1B",
    ),
    "optimal-sparsity": Planted(
        optimal_sparsity.loss,
        {
            "E": 0.94, "a": 16612.5, "alpha": 0.5962, "b": 5455.67, "beta": 0.3954, "c": 0.4598, "lam": -0.1666,
            "d": 17.26, "delta": 0.1603, "gamma": 0.1595,
        },
        _active_as_published,
        "N=7B,D=140B,active=1B",
    ),
    "fine-grained": Planted(
        fine_grained.loss,
        {"g": 30.0, "gamma": 0.58, "a": 180.0, "alpha": 0.3, "b": 1500.0, "beta": 0.36, "E": 1.7},
        _of("granularity", 1, 2, 4, 8, 16),
        "N=7B,D=140B,G=8",
    ),
    "precision": Planted(
        precision.loss,
        {
            "E": 1.9, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.36, "gamma_w": 2.67, "gamma_a": 2.2,
            "gamma_kv": 0.96,
        },
        _bits,
        "N=7B,D=140B,P=8",
    ),
}  # fmt: skip

PUBLISHED = LAWS | {  # with the parameters of a paper where it gives all of them
    law: LAWS[law]._replace(truth=truth)
    for law, truth in {
        "data-repetition": {  # 2305.16264
            "E": math.exp(0.6254804), "A": math.exp(6.255414), "alpha": 0.3526596, "B": math.exp(7.3049974),
            "beta": 0.3526596, "R_D": 15.387756, "R_N": 5.309743,
        },
        "sparse": {  # 2309.08520, text
            "a": 16.8, "b": 0.722, "g": 45.0, "alpha": 0.245, "B": 6.9e8**0.203, "beta": 0.203, "E": 0.651,
        },
        "fine-grained": {"g": 2.1, "gamma": 0.58, "a": 18.1, "alpha": 0.115, "b": 30.8, "beta": 0.147, "E": 0.47},
    }.items()
}  # fmt: skip
