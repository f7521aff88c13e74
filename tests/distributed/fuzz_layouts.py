"""Random runs in random layouts, each against one process: losses, gradients, weights, evaluation and generation.

    python -m tests.distributed.fuzz_layouts --cases 100 --seed 3 --float64

`drawn_cases` draws models of every primitive, topology and option, and three layouts for each, which train it one after
another from each other's checkpoints. It prints a line for each case and exits with 1 where one differs by more than
BOUNDS, and by more than NOISE times what rounding does: how far one process comes from itself with each weight moved
by about half a unit in the last place. Where tokens choose experts, rounding alone makes some choose others, though not
each time: there weights are moved up to MOVES times, and the furthest counts. With `--float64` rounding counts only
where a model divides by next to nothing; without, cases have the kernels in C, and bf16 where it was drawn. `--only 24`
runs one case, `--write FILE` writes the cases that differ, `--read FILE` runs what was written: cases of a seed change
whenever what is drawn does.

Normalised linear attention of feature map relu is such a model: sums of its weights may be near 0. In float64 case 2 of
seed 305 (2026-11-28) differed in the loss of step 5 by 1.2e-4, and so did one process from itself.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from itertools import accumulate, chain, zip_longest
from pathlib import Path
from typing import Any

from tests.distributed.drawn_cases import PROCESSES, Case, Rounding, draw_cases, from_json
from tests.warm import launch

CASES = 5
SHOWN = 3000  # characters of what processes show last
TOGETHER = 8  # cases of one set of processes: what is lost when one of them ends it
NOISE = 4
MOVES = 6  # of the weights of models with experts
UNITS = {"float64": 1e-16, "fp32": 6e-8, "bf16": 2e-3}  # half a unit in the last place
# Of losses, logits and loads, absolute; of norms, relative; of gradients and weights, relative to their norms.
BOUNDS = {
    "float64": {"loss": 1e-7, "norm": 1e-6, "gradient": 1e-6, "weight": 1e-5, "load": 1e-9},
    "fp32": {"loss": 2e-5, "norm": 1e-3, "gradient": 2e-4, "weight": 1e-3, "load": 1e-2},
    "bf16": {"loss": 2e-3, "norm": 2e-2, "gradient": 2e-2, "weight": 1e-2, "load": 3e-2},
}
Distances = dict[tuple[str, str], float]  # by the kind of bound and what it is


def run(cases: dict[str, Case], folder: Path, float64: bool = False) -> dict[str, str]:
    """Train all cases; return what differs in each, "" where nothing does."""
    failed = _train(cases, folder, float64)
    found = {name: differences(case, name, folder, float64) for name, case in cases.items() if name not in failed}
    for move in range(1, MOVES + 1):  # what rounding does is measured where it is asked for
        far = {name: cases[name] for name in found if found[name] and (move == 1 or _routes(cases[name]))}
        for kind, unit in UNITS.items():
            some = {name: case for name, case in far.items() if _format(case, float64) == kind}
            failed |= _train(some, folder, float64, (unit, move))
        found = {name: wrong for name, wrong in found.items() if name not in failed}
        found |= {name: differences(far[name], name, folder, float64, move) for name in far if name in found}
    return {name: failed.get(name) or ", ".join(found[name]) for name in cases}


def _routes(case: Case) -> bool:
    """Say whether tokens choose experts, which may be others after rounding."""
    blocks = case.sections["model"]["blocks"].values()
    branches = [branch for block in blocks for branch in (block, *block.get("branches", []))]
    return any(branch["type"] in ("moe", "hyena_experts") for branch in branches)


def _format(case: Case, float64: bool) -> str:
    return "float64" if float64 else str(case.sections["precision"]["format"])


def _train(cases: dict[str, Case], folder: Path, float64: bool, rounding: Rounding | None = None) -> dict[str, str]:
    """Train cases, some in a set of processes; return those that ended their set, the last if all had been trained."""
    names, failed = list(cases), {}
    while names:
        some, names = names[:TOGETHER], names[TOGETHER:]
        written = {name: _for_format(cases[name], float64) for name in some}
        (folder / "cases.json").write_text(json.dumps({"float64": float64, "rounding": rounding, "cases": written}))
        with (folder / "output").open("w") as output:
            code = launch([sys.executable, "-m", "tests.distributed.trained_cases", str(folder)], PROCESSES, output)
        if code:
            left = [name for name in some if not _result(folder, name, cases[name], rounding).exists()]
            shown = (folder / "output").read_text(errors="replace")[-SHOWN:]
            failed[left[0] if left else some[-1]] = f"its processes end with {code}:\n{shown}"
            names = left[1:] + names
    return failed


def _result(folder: Path, name: str, case: Case, rounding: Rounding | None) -> Path:
    """Return the file that a case writes last."""
    return folder / f"{name} {f'moved {rounding[1]}' if rounding else len(case.legs) - 1}.json"


def _for_format(case: Case, float64: bool) -> dict[str, Any]:
    written = case.as_json()
    return written | {"sections": {**written["sections"], "precision": {}}} if float64 else written


def differences(case: Case, name: str, folder: Path, float64: bool, moves: int = 0) -> list[str]:
    """Say what is further from one process than the bounds, and than NOISE times what rounding does in `moves`."""
    bounds = BOUNDS[_format(case, float64)]
    alone = json.loads((folder / f"{name} alone.json").read_text())
    noise: Distances = {}
    for move in range(1, moves + 1):
        moved = _distances(alone, json.loads((folder / f"{name} moved {move}.json").read_text()), 0)
        # Where rounding makes NaN, it explains nothing.
        noise |= {key: max(far, noise.get(key, 0.0)) for key, far in moved.items() if math.isfinite(far)}
    found = []
    for leg, steps in enumerate(case.steps):
        laid_out = json.loads((folder / f"{name} {leg}.json").read_text())
        assert len(laid_out["losses"]) == len(steps)
        for key, far in _distances(alone, laid_out, steps.start).items():
            if not far <= max(bounds[key[0]], NOISE * noise.get(key, 0.0)):
                rounding = f", by rounding {noise[key]:.1e}" if key in noise else ""
                found.append(f"{key[1]}, layout {leg}: {far:.1e}{rounding}")
    return found


def _distances(alone: dict[str, Any], other: dict[str, Any], first: int) -> Distances:
    """Return how far what was found from step `first` on is from one process; of a step, so far."""
    found: Distances = {}

    def series(kind: str, what: str, key: str, relative: bool = False) -> None:
        pairs = zip(alone[key][first:], other[key], strict=False)
        far = (_apart(a, b, relative) for a, b in pairs)
        for step, largest in enumerate(accumulate(far, max), first):
            found[kind, f"{what} of step {step}"] = largest

    series("loss", "loss", "losses")
    series("loss", "further loss", "mtp_losses")
    series("norm", "norm", "grad_norms", relative=True)
    for step, (before, after) in enumerate(
        zip(alone["expert_loads"][first:], other["expert_loads"], strict=False), first
    ):
        for layer, shares in before.items():
            found["load", f"load of {layer} in step {step}"] = max(
                _apart(a, b) for a, b in zip_longest(shares, after[layer], fillvalue=1.0)
            )
    for step, gradients in other["gradients"].items():
        found |= {("gradient", f"gradient of {name} in step {step}"): far for name, far in gradients.items()}
    if "weights" in other:
        for key in ("evaluated", "averaged"):
            if key in alone:
                found["loss", key] = _apart(alone[key], other[key])
        found |= {("weight", name): far for name, far in other["weights"].items()}
        rows = zip(chain(*alone["logits"]), chain(*other["logits"]), strict=True)
        found["loss", "generated"] = max(_apart(a, b) for a, b in rows)
    return found


def _apart(one: float | None, other: float | None, relative: bool = False) -> float:
    """Return how far two values are apart: 0 where both are NaN or neither is there, infinity where one of them is."""
    if one == other or (one != one and other != other):
        return 0.0
    if one is None or other is None:
        return math.inf
    far = abs(one - other) / (abs(one) or 1.0 if relative else 1.0)
    return far if math.isfinite(far) else math.inf  # `max` would drop NaN


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compiled", type=float, default=0.0, help="share of layouts with torch.compile")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--only", type=int, metavar="INDEX", help="of one case, counted from 0")
    parser.add_argument("--read", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.read:
        cases = {name: from_json(case) for name, case in json.loads(options.read.read_text()).items()}
    else:
        drawn = draw_cases(options.cases, options.seed, options.compiled)
        cases = {f"{options.seed}.{index}": case for index, case in enumerate(drawn)}
    names = list(cases) if options.only is None else [list(cases)[options.only]]
    with tempfile.TemporaryDirectory() as folder:
        found = run({name: cases[name] for name in names}, Path(folder), options.float64)
    for name, wrong in found.items():
        print(f"{name} {cases[name].sections['model']['pattern']}: {wrong or 'equal'}")
    wrong_cases = {name: cases[name].as_json() for name, wrong in found.items() if wrong}
    if options.write and wrong_cases:
        options.write.write_text(json.dumps(wrong_cases))
    return 1 if wrong_cases else 0


if __name__ == "__main__":
    sys.exit(main())
