"""The scores of a search's patterns, and which of them are to be grown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hybridtron.composer.nas.store import EVALUATIONS
from hybridtron.composer.space.baselines import baseline
from hybridtron.composer.votes.noise import LEAST_FREEDOM, Noise, pooled_noise
from hybridtron.errors import UserError
from hybridtron.files import is_number, read_lines, read_plain
from hybridtron.pattern import PatternError, read
from hybridtron.reporting.numbers import plural

Layers = tuple[str, ...]
QUANTITIES = {"train": "negative held-out loss", "mad": "mean accuracy"}  # of evaluators; of others it is the score


@dataclass(frozen=True)
class SearchScores:
    """The patterns of a search with scores by seed, the best first; all have the same seeds."""

    folder: Path
    blocks: tuple[str, ...]
    quantity: str
    by_seed: dict[Layers, dict[int, float]]
    noise: Noise | None  # of one score, where several seeds of the patterns tell it

    @property
    def means(self) -> dict[Layers, float]:
        return {layers: fmean(scores.values()) for layers, scores in self.by_seed.items()}

    @property
    def seeds(self) -> int:
        return len(next(iter(self.by_seed.values())))


@dataclass(frozen=True)
class Candidate:
    """A pattern to grow; `score` and `rank` (from 1) in the search are None where that has not tried it."""

    layers: Layers
    role: str
    score: float | None = None
    rank: int | None = None


def read_scores(folder: Path) -> SearchScores:
    """Read the patterns of a search that have a score on all of its seeds.

    Of an incremental search those of the last step count. Raises UserError where the folder holds no search, its record
    is damaged, or no pattern has a score.
    """
    file = folder / EVALUATIONS
    try:
        lines = [line for line in read_lines(read_plain(file)) if not line.is_cut]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"search folder {folder}: holds no search; expected a folder with {EVALUATIONS}") from None
    header = lines[0].value if lines else None
    if not isinstance(header, dict) or header.get("row") != "search" or not {"space", "seeds"} <= header.keys():
        raise UserError(f"{file}:1: expected the beginning of a search")
    blocks, depth = tuple(header["space"]["blocks"]), header["space"]["layers"]
    found: dict[Layers, dict[int, float]] = {}
    for line in lines:
        row = line.value
        if not isinstance(row, dict) or not _is_whole(row, blocks):
            raise UserError(f"{file}:{line.number}: damaged line; expected a row of a search")
        layers = tuple(row["pattern"].split()) if row["row"] == "result" else ()
        if len(layers) == depth and row["score"] is not None:
            found.setdefault(layers, {}).setdefault(row["seed"], float(row["score"]))
    noise = pooled_noise(by_indices(found, blocks))
    whole = {layers: scores for layers, scores in found.items() if {*header["seeds"]} <= scores.keys()}
    if not whole:
        raise UserError(f"search folder {folder}: no pattern has a score yet; expected at least one")
    common = set.intersection(*({*scores} for scores in whole.values()))
    kept = {layers: {seed: scores[seed] for seed in sorted(common)} for layers, scores in whole.items()}
    ordered = dict(sorted(kept.items(), key=lambda item: -fmean(item[1].values())))
    quantity = QUANTITIES.get(header.get("evaluator", {}).get("type"), "score")
    known = noise if noise and noise.freedom >= LEAST_FREEDOM else None
    return SearchScores(folder, blocks, quantity, ordered, known)


def by_indices(found: dict[Layers, dict[int, float]], blocks: Sequence[str]) -> dict[tuple[int, ...], dict[int, float]]:
    """Return scores by patterns as indices of blocks, as the noise of a search takes them."""
    return {tuple(blocks.index(name) for name in layers): scores for layers, scores in found.items()}


def _is_whole(row: dict[str, Any], blocks: Sequence[str]) -> bool:
    if row.get("row") != "result":
        return "row" in row
    pattern, score = row.get("pattern"), row.get("score", "")
    named = isinstance(pattern, str) and all(name in blocks for name in pattern.split())
    return named and isinstance(row.get("seed"), int) and (score is None or is_number(score))


def choose(scores: SearchScores, patterns: int, baselines: Sequence[str] = ()) -> list[Candidate]:
    """Return the best and the worst pattern of a search, others at evenly spaced ranks between, and the baselines.

    Raises UserError for more patterns than have a score, fewer than two, and a baseline of other blocks.
    """
    ranked = list(scores.means.items())
    if len(ranked) < 2:
        raise UserError(
            f"search folder {scores.folder}: has {plural(len(ranked), 'pattern')} with a score; expected two"
        )
    if not 2 <= patterns <= len(ranked):
        raise UserError(f"patterns = {patterns}: expected 2 to {len(ranked)}, the patterns with a score")
    places = [round(i * (len(ranked) - 1) / (patterns - 1)) for i in range(patterns)]
    roles: dict[Layers, str] = {}
    for place in places:
        named = {0: "best", len(ranked) - 1: "worst", (len(ranked) - 1) // 2: "median"}
        roles[ranked[place][0]] = named.get(place, f"rank {place + 1}")
    for text in baselines:
        try:
            layers = baseline(text, scores.blocks, len(ranked[0][0])) or read(text, scores.blocks).layers
        except PatternError as error:
            raise UserError(f"baselines: {text}: {str(error).splitlines()[0].removeprefix('pattern: ')}") from None
        roles[layers] = f"{roles[layers]}, baseline" if layers in roles else "baseline"
    rank = {layers: number for number, (layers, _) in enumerate(ranked, start=1)}
    return [Candidate(layers, role, scores.means.get(layers), rank.get(layers)) for layers, role in roles.items()]
