"""Pipeline stages: which run of a model's layers each holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hybridtron.model.config import ModelConfig
from hybridtron.tensors import TensorSpec


@dataclass(frozen=True)
class Stage:
    """Layers `start` to `stop` - 1; the first stage embeds, the last one computes logits and loss."""

    index: int
    count: int
    start: int
    stop: int

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


def whole(config: ModelConfig) -> Stage:
    return Stage(0, 1, 0, len(config.layer_names))


def cut(config: ModelConfig, count: int, seq_len: int) -> list[Stage]:
    """Cut the model into `count` stages: as the pattern's `|` say, where there are any, else balanced by FLOPs.

    A single stage ignores the cuts that a pattern writes. Expects cuts for `count` stages, and at least as many layers.
    """
    written = config.parsed_pattern.cuts
    if count == 1:
        return [whole(config)]
    if written:
        cuts = list(written)
    else:
        costs = stage_costs(config, [Stage(0, 1, i, i + 1) for i in range(len(config.layer_names))], seq_len, False)
        cuts = balanced_cuts(costs, count, *_edges(config, seq_len))
    bounds = pairwise((0, *cuts, len(config.layer_names)))
    return [Stage(index, count, start, stop) for index, (start, stop) in enumerate(bounds)]


def stage_costs(config: ModelConfig, stages: Sequence[Stage], seq_len: int, edges: bool = True) -> list[int]:
    """Count the forward FLOPs of each stage for one sequence, with `edges` also of embedding, output projection and
    multi-token prediction."""
    flops = {name: block.flops(seq_len) for name, block in config.blocks.items() if name in set(config.layer_names)}
    first, last = _edges(config, seq_len) if edges else (0, 0)
    layers = [flops[name] + config.residual.flops(config, i, seq_len) for i, name in enumerate(config.layer_names)]
    return [
        sum(layers[stage.start : stage.stop]) + first * (edges and stage.is_first) + last * (edges and stage.is_last)
        for stage in stages
    ]


def imbalance(costs: Sequence[float], processes: int) -> float:
    """Compute how far the most loaded process is above the mean, as a share of the mean; stage k is on process
    k mod `processes`."""
    each = [sum(costs[rank::processes]) for rank in range(processes)]
    return max(each) * processes / sum(each) - 1


def balanced_cuts(costs: Sequence[float], count: int, first: float = 0, last: float = 0) -> list[int]:
    """Find cuts of layers of these costs into `count` non-empty runs that make the largest cost of a run smallest.

    `first` and `last` are added to the first and last run. Among equally good cuts the later runs are kept short:
    they wait for the earlier ones.
    """
    if not 1 <= count <= len(costs):
        raise ValueError(f"{len(costs)} layers cannot make {count} stages")
    before: list[float] = [0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[i]: the largest cost when layers 0 .. i - 1 make the stages so far; came[k][i]: where the k-th of them begins
    best: list[float] = [float("inf")] + [before[i] + first for i in range(1, len(costs) + 1)]
    came: list[list[int]] = [[0] * (len(costs) + 1)]
    for stage in range(1, count):
        extra = last if stage == count - 1 else 0
        new, where = [float("inf")] * (len(costs) + 1), [0] * (len(costs) + 1)
        for stop in range(stage + 1, len(costs) + 1):
            for start in range(stop - 1, stage - 1, -1):
                run = before[stop] - before[start] + extra
                if run > new[stop]:
                    break
                if max(best[start], run) < new[stop]:
                    new[stop], where[stop] = max(best[start], run), start
        best = new
        came.append(where)
    cuts, stop = [], len(costs)
    for where in reversed(came[1:]):
        stop = where[stop]
        cuts.append(stop)
    return cuts[::-1]


def _edges(config: ModelConfig, seq_len: int) -> tuple[int, int]:
    """Count the forward FLOPs of the embedding (a row added per token, as its gradient), and those of the output
    projection and multi-token prediction."""
    head = 2 * seq_len * config.hidden_size * config.vocab_size
    return seq_len * config.hidden_size, head + mtp_flops(config, seq_len)


def mtp_flops(config: ModelConfig, seq_len: int) -> int:
    """Count the forward FLOPs of multi-token prediction for one sequence: at each depth a projection of two widths to
    one, the layers and the output projection."""
    if config.mtp is None:
        return 0
    layers = sum(config.blocks[name].flops(seq_len) for name in config.mtp_layer_names)
    width = config.hidden_size
    return config.mtp.depth * (layers + 2 * seq_len * width * (2 * width + config.vocab_size))


def stage_tensors(config: ModelConfig, specs: dict[str, TensorSpec], stage: Stage) -> dict[str, TensorSpec]:
    """Return the parameters that a stage holds. An embedding that the last stage needs too belongs to both."""
    held = {f"layers.{i}" for i in range(stage.start, stage.stop)}
    if stage.is_first or (stage.is_last and config.last_stage_embeds):
        held.add("embedding")
    if stage.is_last:
        held |= {"final_norm", "head", "residual_end", "mtp"}

    def owner(name: str) -> str:
        first, second, *_ = name.split(".")
        return f"layers.{second}" if first == "layers" else first

    return {name: spec for name, spec in specs.items() if owner(name) in held}
