"""Search engines on closed-form objectives with known optimum, at equal budget: regret, and evaluations to the optimum.

    python benchmarks/composer.py --out docs/composer
    python benchmarks/composer.py --out docs/composer --noise 0.08
    python benchmarks/composer.py --replay checkpoints/search-mad-6-layers

Ten instances of each objective, one for each seed. Rows are kept in OUT/engines.jsonl, so that it goes on after a kill.
With --noise scores have noise of that standard deviation, which the Bayesian engine infers, is given, or pools over two
seeds of half as many patterns; the table is the regret without noise of what each rule returns (OUT/noisy.jsonl), of
--seeds instances from --first on, with t intervals over them. Rules were chosen on instances 100 to 139.
With --replay the objective is what an exhaustive search has recorded, and what each rule would return is told too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from scipy.special import bdtr, stdtrit

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.composer.engines import bayesian
from hybridtron.composer.engines.bayesian import Bayesian
from hybridtron.composer.engines.discrete import Engine, Evolution, History, Observation, RandomSearch
from hybridtron.composer.evaluation.closed_form import Chain
from hybridtron.composer.nas.config import AggregatorConfig
from hybridtron.composer.space.space import Pattern, Space
from hybridtron.composer.votes.aggregate import aggregate
from hybridtron.composer.votes.noise import Noise, pooled_noise, with_noise
from hybridtron.composer.votes.vote import vote
from hybridtron.pattern import Pattern as Layers
from hybridtron.pattern import to_composer
from hybridtron.reporting.pictures import HUES, INK, legend_below, new_figure, png, style_axes

SPACES = {  # blocks, layers, evaluations, batch
    "2^6": (2, 6, 30, 1),
    "2^16": (2, 16, 48, 4),
    "3^12": (3, 12, 64, 4),
    "3^8, noise 0.08": (3, 8, 64, 4),
}
NOISE = {"3^8, noise 0.08": 0.08}  # standard deviation of a score, which the engines are given
ENGINES: dict[str, Engine] = {
    "random": RandomSearch(type="random"),
    "evolution": Evolution(type="evolution"),
    "bayesian": Bayesian(type="bayesian"),
}
WAYS = ["inferred", "given", "pooled over two seeds of half as many"]  # what is known of the noise
RULES = ["best single", "N_0", "N_0 of scores", "posterior mean"]
DASHES = ("--", "-", "-")  # of the engines: the first two begin alike


def regrets(
    engine: Engine, space: Space, function: Chain, budget: int, batch: int, seed: int
) -> tuple[list[float], float]:
    """Return the distance without noise of the best so far from the optimum, after every evaluation, and at the end
    that of the pattern which is returned: of noisy scores the one of the highest posterior mean."""
    seen: list[Observation] = []
    while len(seen) < budget:
        generator = np.random.default_rng([seed, len(seen)])
        count = min(batch, budget - len(seen))
        for pattern in engine.propose(History(space, seen, seed=seed), count, generator):
            seen.append(Observation(pattern, function(pattern)))
    exact = replace(function, noise=0.0)
    best = np.maximum.accumulate([exact(o.pattern) for o in seen])
    regret = [round(float(value), 9) for value in 1 - best]
    if not function.noise:
        return regret, regret[-1]
    found = returned_of(space, seen, Noise(function.noise, np.inf))["posterior mean"]
    return regret, round(1 - exact(found), 9)


def fingerprint(engine: Engine, space_name: str) -> str:
    """Return a digest of all settings but the seed that a run's regret depends on; rows of others are not reused."""
    own = engine.model_dump(exclude={"type", "batch"}, exclude_none=True)
    if isinstance(engine, Bayesian):
        own |= {name: getattr(bayesian, name) for name in ("SAMPLES", "PARENTS", "FIT_STEPS", "CLIMBS")}
    settings = json.dumps([type(engine).__name__, own, SPACES[space_name]], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def runs(file: Path, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for every space, seed and engine, from the file or made now."""
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in range(seeds):
        for space_name, (blocks, layers, budget, batch) in SPACES.items():
            for engine_name, plain in ENGINES.items():
                noise = NOISE.get(space_name)
                engine = plain.model_copy(update={"noise": noise})
                settings = fingerprint(engine, space_name)
                key = {"space": space_name, "seed": seed, "engine": engine_name, "settings": settings}
                row = next((row for row in done if key.items() <= row.items()), None)
                if row is None:
                    space = Space(tuple("AMS"[:blocks]), layers)
                    begun = time.process_time()
                    function = Chain(layers, blocks, seed, noise=noise or 0.0)
                    found, last = regrets(engine, space, function, budget, batch, seed)
                    row = {
                        **key,
                        "cpu_seconds": round(time.process_time() - begun, 2),
                        "regret": found,
                        "returned": last,
                    }
                    with file.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
                    print(f"{space_name} seed {seed} {engine_name}: {last:.4f}", flush=True)
                yield row


def replay(folder: Path, seeds: int, budget: int = 30) -> str:
    """Markdown: the ranking that an exhaustive search recorded, and how the engines fare on its scores."""
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    blocks = tuple(rows[0]["space"]["blocks"])
    recorded: dict[Pattern, dict[int, float]] = {}
    for row in rows:
        if row["row"] == "result":
            pattern = tuple(blocks.index(name) for name in row["pattern"].split())
            recorded.setdefault(pattern, {})[row["seed"]] = row["score"]
    seeds_of_all = set.intersection(*map(set, recorded.values()))  # not those of a confirmation
    scores = {pattern: fmean(some[seed] for seed in seeds_of_all) for pattern, some in recorded.items()}
    space = Space(blocks, rows[0]["space"]["layers"])
    ranked = sorted(scores, key=lambda pattern: -scores[pattern])

    def words(pattern: Pattern) -> str:
        rank = ranked.index(pattern) + 1
        return f"`{to_composer(Layers(space.names(pattern)))}` | {scores[pattern]:.4f} | {rank}"

    def returned(seen: list[Observation]) -> dict[str, Pattern]:
        votes = {f"N_{c}": aggregate(space, seen, 5, 1, c).pattern for c in (0, 1)}
        return {**votes, "best single": max(seen, key=lambda o: o.score).pattern}

    everything = [Observation(pattern, scores[pattern]) for pattern in space.enumerate()]
    lines = ["| from all | pattern | score | rank |", "|---|---|---|---|"]
    lines += [f"| {rule} | {words(pattern)} |" for rule, pattern in returned(everything).items()]
    lines += [
        "",
        f"| engine | evaluations to the best, of {len(scores)} | rank after {budget}: best single | N_0 | N_1 |",
    ]
    lines += ["|---|---|---|---|---|"]
    for name, engine in ENGINES.items():
        reached, ranks = [], []
        for seed in range(seeds):
            seen: list[Observation] = []
            while len(seen) < budget or ranked[0] not in [o.pattern for o in seen]:
                history = History(space, seen, seed=seed)
                (pattern,) = engine.propose(history, 1, np.random.default_rng([seed, len(seen)]))
                seen.append(Observation(pattern, scores[pattern]))
            reached.append([o.pattern for o in seen].index(ranked[0]) + 1)
            ranks.append({rule: ranked.index(p) + 1 for rule, p in returned(seen[:budget]).items()})
        found = [reached, *([rank[rule] for rank in ranks] for rule in ("best single", "N_0", "N_1"))]
        cells = [f"{median(some):g} ({'{:g} to {:g}'.format(*median_interval(some))})" for some in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| rank | pattern | score |", "|---|---|---|"]
    lines += [
        f"| {rank} | `{to_composer(Layers(space.names(pattern)))}` | {scores[pattern]:.4f} |"
        for rank, pattern in enumerate(ranked, start=1)
    ]
    return "\n".join(lines)


def rule_regrets(engine: Bayesian, function: Chain, budget: int, batch: int, repeats: int) -> dict[str, float]:
    """Return the regret without noise of what each rule makes of `budget` noisy scores, `repeats` seeds a pattern."""
    space, exact = Space(tuple("AMS"[: function.blocks]), function.layers), replace(function, noise=0.0)
    seen: list[Observation] = []
    scores: dict[Pattern, dict[int, float]] = {}
    while len(seen) < budget // repeats:
        generator = np.random.default_rng([function.instance, len(seen)])
        for pattern in engine.propose(History(space, seen, seed=function.instance), batch, generator):
            scores[pattern] = {seed: function(pattern, seed) for seed in range(repeats)}
            seen.append(Observation(pattern, fmean(scores[pattern].values()), seeds=repeats))
        if repeats > 1:
            seen = with_noise(seen, pooled_noise(scores))
    noise = Noise(engine.noise, np.inf) if engine.noise else pooled_noise(scores)
    return {rule: round(1 - exact(pattern), 9) for rule, pattern in returned_of(space, seen, noise).items()}


def returned_of(space: Space, seen: list[Observation], noise: Noise | None) -> dict[str, Pattern]:
    """Return what each rule makes of noisy scores; N_0 is the vote of posterior means where the noise is known."""
    seen = with_noise(seen, noise)
    means, _ = bayesian.posterior(bayesian.fit(space, seen), space, [o.pattern for o in seen])
    return {
        "best single": max(seen, key=lambda o: o.score).pattern,
        "N_0": vote(AggregatorConfig(), space, seen, noise).pattern,
        "N_0 of scores": aggregate(space, seen, 5, 1, 0).pattern,
        "posterior mean": seen[int(means.argmax())].pattern,
    }


def noisy(
    file: Path, instances: range, ways: list[str], noise: float, layers: int = 8, blocks: int = 3, budget: int = 64
) -> str:
    """Markdown: mean regret of each rule, and half its 95 % interval, with the noise inferred, given and pooled."""
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    lines = [f"| noise | {' | '.join(RULES)} |", "|---|---|---|---|---|"]
    for way in ways:
        known, repeats = (noise if way == "given" else None), (2 if way.startswith("pooled") else 1)
        found = []
        for seed in instances:
            key = {"noise": noise, "space": f"{blocks}^{layers}", "evaluations": budget, "way": way, "seed": seed}
            row = next((row for row in done if key.items() <= row.items() and {*RULES} <= {*row["regret"]}), None)
            if row is None:
                function = Chain(layers, blocks, seed, noise=noise)
                row = {
                    **key,
                    "regret": rule_regrets(Bayesian(type="bayesian", noise=known), function, budget, 4, repeats),
                }
                with file.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
            found.append(row["regret"])
        cells = [mean_interval([regret[rule] for regret in found]) for rule in RULES]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_interval(values: Sequence[float]) -> str:
    """Return the mean over instances and half its 95 % interval (Student's t)."""
    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{fmean(values):.3f} ± {half:.3f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: regret at the end, how often the optimum was found, and after how many evaluations.

    An instance that missed it counts as one evaluation more than there were. The interval of the median is that of
    order statistics: exact, of at least 95 %, whatever the distribution.
    """
    lines = [
        "| space | evaluations | engine | mean regret | median regret | optimum found | median evaluations to it |",
        "|---|---|---|---|---|---|---|",
    ]
    for space, (_, _, budget, batch) in SPACES.items():
        for engine in ENGINES:
            some = [row for row in rows if row["space"] == space and row["engine"] == engine]
            curves = [row["regret"] for row in some]
            last = [row.get("returned", row["regret"][-1]) for row in some]
            hits = [next((i for i, value in enumerate(curve, 1) if value < 1e-9), None) for curve in curves]
            reached = [budget + 1 if hit is None else hit for hit in hits]
            low, high = median_interval(last)
            often = f"{sum(hit is not None for hit in hits)} of {len(curves)}"
            ends = (median(reached), *median_interval(reached))
            words = [f"{n:g}" if n <= budget else f"more than {budget}" for n in ends]
            when = words[0] if words[0] == words[1] == words[2] else f"{words[0]} ({words[1]} to {words[2]})"
            budget_words = f"{budget}, {batch} at a time" if batch > 1 else str(budget)
            regret = f"{mean_interval(last)} | {median(last):.4f} ({low:.4f} to {high:.4f})"
            lines.append(f"| {space} | {budget_words} | {engine} | {regret} | {often} | {when} |")
    return "\n".join(lines)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the narrowest interval of the median between order statistics that holds it with at least 95 %."""
    ordered, n = sorted(values), len(values)
    below = max((k for k in range(1, n // 2 + 1) if 1 - 2 * bdtr(k - 1, n, 0.5) >= 0.95), default=1)
    return ordered[below - 1], ordered[n - below]


def picture(rows: list[dict[str, Any]], file: Path) -> None:
    figure = new_figure(11, 4)
    spaces = [space for space in SPACES if space not in NOISE]
    for axes, space in zip(figure.subplots(1, len(spaces)), spaces, strict=True):
        highest = 0.0
        for hue, dashes, engine in zip(HUES, DASHES, ENGINES, strict=False):
            regret = np.array([row["regret"] for row in rows if row["space"] == space and row["engine"] == engine])
            x = np.arange(1, regret.shape[1] + 1)
            low, middle, high = np.quantile(regret, [0.25, 0.5, 0.75], axis=0)
            axes.plot(x, middle, color=hue, linewidth=2, linestyle=dashes, label=engine, zorder=3 + (dashes != "-"))
            axes.fill_between(x, low, high, color=hue, alpha=0.13, linewidth=0, zorder=1)
            highest = max(highest, float(high.max()))
        axes.set_title(space.replace("^", "$^{") + "}$ patterns", loc="left", fontsize=11, fontweight="bold", color=INK)
        axes.set_xlabel("evaluations", color=INK, fontsize=9.5)
        axes.set_ylim(-0.03 * highest, 1.03 * highest)  # a line at zero stays in sight
        style_axes(axes, 9)
    figure.axes[0].set_ylabel("regret: median, quartiles", color=INK, fontsize=9.5)
    legend_below(figure, figure.axes[:1], len(ENGINES), 10)
    file.write_bytes(png(figure))


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/composer"))
    parser.add_argument("--replay", type=Path, metavar="FOLDER")
    parser.add_argument("--noise", type=float, metavar="DEVIATION")
    parser.add_argument("--seeds", type=int, default=10, help="instances")
    parser.add_argument("--first", type=int, default=0, help="of the instances with --noise")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="of --noise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.replay:
        print(replay(options.replay, options.seeds))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if options.noise:
        instances = range(options.first, options.first + options.seeds)
        print(noisy(options.out / "noisy.jsonl", instances, options.ways, options.noise))
        return
    rows = list(runs(options.out / "engines.jsonl", options.seeds))
    picture(rows, options.out / "engines.png")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(exit_code(main))
