"""Random runs: a model, its data and optimizer, and the layouts in which it is trained one after another."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import asdict, dataclass
from typing import Any

from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.mixers.registry import MIXERS
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import data_parallel_size, resolve
from tests.distributed.drawn_blocks import Block, draw_block

ENDS = (3, 6, 8)
PROCESSES = 4
Rounding = tuple[float, int]  # by what share each weight is moved, and the seed of its normal numbers
_TRIES = 1000
# Processes of tensor, context and pipeline parallelism, and runs of layers of each of the last: their turns.
_SHAPES = [
    (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 2, 2), (2, 2, 1, 1), (2, 1, 2, 1), (1, 2, 2, 2), (2, 1, 2, 2),
    (1, 1, 1, 1), (4, 1, 1, 1), (1, 1, 1, 1), (1, 4, 1, 1), (1, 1, 4, 1), (3, 1, 1, 1), (1, 3, 1, 1), (1, 1, 3, 1),
]  # fmt: skip


@dataclass(frozen=True)
class Leg:
    """One layout: `data` copies of the model; `recorded` by tapes in place of CUDA graphs, or `compiled`."""

    data: int = 1
    parallel: dict[str, Any] | None = None
    recorded: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class Case:
    """Sections of a run's config, the layouts in which it is trained, and the steps up to which each trains it."""

    sections: dict[str, Any]
    legs: list[Leg]
    ends: tuple[int, ...] = ENDS

    @property
    def steps(self) -> list[range]:
        """Return the steps of each layout."""
        return [range(*ends) for ends in itertools.pairwise((0, *self.ends))]

    def config(self, leg: Leg) -> RunConfig:
        """Return the resolved config in one layout. Raises UserError where it is refused."""
        train = {**self.sections["train"], "cuda_graphs": leg.recorded, "compile": leg.compiled}
        return resolve(build({**self.sections, "train": train, "parallel": leg.parallel or {}}, RunConfig))

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)


def from_json(written: dict[str, Any]) -> Case:
    """Return a case that `as_json` wrote."""
    return Case(written["sections"], [Leg(**leg) for leg in written["legs"]], tuple(written["ends"]))


def draw_cases(count: int, seed: int, compiled: float = 0.0, ends: tuple[int, ...] = ENDS) -> list[Case]:
    """Draw runs in which every primitive has its turn; `compiled` is the share of layouts with torch.compile."""
    draw, bag = random.Random(seed), list[str]()
    cases, turns = list[Case](), itertools.count(seed)
    while len(cases) < count:
        size = draw.randint(5, 6)
        if len(bag) < size:
            bag += draw.sample(list(MIXERS), len(MIXERS))
        kinds, bag = bag[:size], bag[size:]
        sections = _draw_sections(draw, kinds, len(cases) + seed)
        sections["train"]["steps"] = ends[-1]
        legs = [_draw_leg(draw, sections, next(turns), compiled) for _ in ends[:-1]]
        legs.append(_draw_leg(draw, sections, next(turns), compiled) if draw.random() < 0.3 else Leg())
        cases.append(Case(sections, legs, ends))
    return cases


def _draw_sections(draw: random.Random, kinds: list[str], turn: int) -> dict[str, Any]:
    """Draw all sections but the layout, of a model with a layer of each kind."""
    hidden = draw.choice([32, 32, 48, 24])
    ways = draw.choice([1, 2, 2, 4]) if hidden != 24 else draw.choice([1, 2, 3])
    blocks = {f"{kind}{index}": draw_block(draw, kind, hidden, ways) for index, kind in enumerate(kinds)}
    layers = list(blocks)
    if draw.random() < 0.3:
        layers.append(draw.choice(layers))
    residual = _residual(draw, turn, len(layers))
    if residual["type"] not in ("sandwich", "parallel"):
        for block in blocks.values():
            if draw.random() < 0.15:
                block["norm_position"] = "post"
    model: dict[str, Any] = {
        "hidden_size": hidden, "blocks": blocks, "pattern": _with_cuts(draw, layers), "residual": residual,
        "vocab_size": draw.choice([320, 320, 264, 258, 324, 324, 257]), "tie_embeddings": draw.random() < 0.3,
        "zero_centered_norms": draw.random() < 0.2, "embedding_multiplier": draw.choice([1.0, 1.0, 3.0]),
        "residual_multiplier": draw.choice([1.0, 1.0, 0.5]), "logits_scaling": draw.choice([1.0, 1.0, 2.0]),
        "init_std": draw.choice([0.02, 0.1]),
    }  # fmt: skip
    if draw.random() < 0.35 and (further := [name for name in layers if blocks[name]["type"] != "rwkv7"]):
        chosen = [draw.choice(further) for _ in range(draw.choice([1, 2]))]
        model["mtp"] = {"pattern": " ".join(chosen), "depth": draw.choice([1, 2, 3]), "shared": draw.random() < 0.5}
    return {
        "name": "drawn",
        "seed": draw.randrange(1000),
        "model": model,
        "data": {
            "train": "none", "tokenizer": "byte", "seq_len": draw.choice([16, 16, 24, 12, 20, 48]),
            "documents": _documents(draw, blocks),
        },
        "train": _draw_train(draw),
        "optimizer": _draw_optimizer(draw, list(blocks)),
        "precision": {"format": draw.choice(["fp32", "fp32", "fp32", "bf16"])},
    }  # fmt: skip


def _documents(draw: random.Random, blocks: dict[str, Block]) -> str:
    limited = any(block.get("capacity_factor") for block in blocks.values())  # is a share of whole sequences
    return "isolate" if draw.random() < 0.35 and not limited else "flow"


def _with_cuts(draw: random.Random, layers: list[str]) -> str:
    """Write the pattern, some with uneven pipeline stages."""
    count = draw.choice([0, 0, 0, 1, 2, 3])
    cuts = sorted(draw.sample(range(1, len(layers)), min(count, len(layers) - 1)))
    bounds = itertools.pairwise([0, *cuts, len(layers)])
    return " | ".join(" ".join(layers[start:stop]) for start, stop in bounds)


def _residual(draw: random.Random, turn: int, count: int) -> dict[str, Any]:
    """Return the topology whose turn it is."""
    groups = [size for size in range(2, count + 1) if count % size == 0]
    topologies: list[dict[str, Any]] = [
        {"type": "hyper_connections", "streams": draw.choice([2, 3]), "sinkhorn_iterations": 4},
        {"type": "attention_residuals", "block_size": draw.choice([1, 2, 3]), "normed_values": draw.random() < 0.5},
        {"type": "plain"},
        {"type": "sandwich"},
        {"type": "parallel", "layers": draw.choice(groups)},
    ]
    return topologies[turn % 5]


def _draw_train(draw: random.Random) -> dict[str, Any]:
    size = draw.choice([8, 8, 12])
    train = {
        "steps": ENDS[-1],
        "global_batch_size": size,
        "micro_batch_size": draw.choice([1, 2]),
        "z_loss": draw.choice([0.0, 1e-3, 1e-2]),
    }
    if draw.random() < 0.3:
        train["batch_warmup"] = [{"steps": draw.choice([1, 2, 4]), "global_batch_size": size // 2}]
    return train


def _draw_optimizer(draw: random.Random, blocks: list[str]) -> dict[str, Any]:
    optimizer: dict[str, Any] = {
        "lr": draw.choice([1e-3, 3e-3]), "clip_grad": draw.choice([1.0, 0.1, 0.0]),
        "weight_decay": draw.choice([0.1, 0.0]),
    }  # fmt: skip
    if draw.random() < 0.4:
        muon = {"scale": draw.choice(["spectral", "match_rms_adamw"]), "nesterov": draw.random() < 0.5}
        optimizer |= {"type": "muon", "muon": {**muon, "lr_ratio": draw.choice([1.0, 2.0])}}
    if draw.random() < 0.4:
        optimizer["ema"] = {"decay": draw.choice([0.5, 0.9]), "every": draw.choice([1, 2])}
    if draw.random() < 0.4:
        limits = {name: draw.choice([0.01, 0.1, 1.0]) for name in ("embedding", "norms", draw.choice(blocks))}
        optimizer["clip_groups"] = limits
    return optimizer


def _draw_leg(draw: random.Random, sections: dict[str, Any], turn: int, compiled: float) -> Leg:
    """Draw layouts of 2 to 4 processes until one is accepted, first of the shape whose turn it is."""
    refusal: UserError | None = None
    for attempt in range(_TRIES):
        shape = _SHAPES[turn % len(_SHAPES)] if attempt < 20 else draw.choice(_SHAPES)
        size = math.prod(shape[:3])
        copies = draw.choice([copies for copies in range(1, 5) if 2 <= copies * size <= PROCESSES])
        leg = any_leg(draw, sections, shape, copies, compiled)
        world_size = copies * size
        try:
            if data_parallel_size(Case(sections, []).config(leg), world_size) == leg.data:
                return leg
        except UserError as error:
            refusal = error
    raise AssertionError(f"{sections}: no layout is accepted: {refusal}")


def any_leg(draw: random.Random, sections: dict[str, Any], shape: tuple[int, ...], copies: int, compiled: float) -> Leg:
    """Draw the other keys of a layout, which may be refused."""
    tensor, context, pipeline, virtual = shape
    blocks = sections["model"]["blocks"]
    routes = any(block["type"] == "moe" for block in blocks.values())
    flows = sections["data"]["documents"] == "flow"
    recorded = tensor * context * pipeline == 1 and flows and not routes and draw.random() < 0.7
    flags = {"distributed_optimizer": draw.random() < 0.5, "overlap_grad_reduce": draw.random() < 0.5 and not recorded}
    flags["overlap_param_gather"] = all(flags.values()) and draw.random() < 0.7
    flags["sequence"] = tensor > 1 and (routes or draw.random() < 0.5)
    flags["tp_comm_overlap"] = tensor > 1 and draw.random() < 0.5
    recompute: Any = draw.choice(["none", "none", "selective", "full"])
    if draw.random() < 0.3:
        chosen = draw.sample(sorted(blocks), 2)
        recompute = {name: draw.choice(["none", "selective", "full"]) for name in chosen}
    numbers = {
        "tensor": tensor, "context": context, "pipeline": pipeline, "virtual_pipeline": virtual,
        "expert": draw.choice([1, 2, 2, 3, 4]) if routes else 1, "expert_tensor": draw.choice([1, 2]) if routes else 1,
    }  # fmt: skip
    parallel = {key: value for key, value in numbers.items() if value > 1} | {key: True for key in flags if flags[key]}
    parallel |= {"recompute": recompute} if recompute != "none" else {}
    parallel |= {"cpu_offload_layers": draw.choice([1, 2, 9])} if draw.random() < 0.3 and not recorded else {}
    return Leg(copies, parallel, recorded, not recorded and draw.random() < compiled)
