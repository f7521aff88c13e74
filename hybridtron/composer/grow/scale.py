"""Grow a small pattern, at a target model's widths, to the target's size."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console

from hybridtron.accounting.describe import Account, describe
from hybridtron.composer.grow.extrapolate import METHODS, TargetTooSmall
from hybridtron.composer.grow.kept_blocks import Source, with_blocks_of
from hybridtron.config.load import build, dump, load
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.files import new_file
from hybridtron.mixers.contract import MixerConfig
from hybridtron.model.config import ModelConfig
from hybridtron.pattern import COMPOSER_NAMES, Dialect, Pattern, PatternError, read, to_composer
from hybridtron.reporting.shown import Shown, show
from hybridtron.training.config import RunConfig
from hybridtron.training.sections.grown_from import GrownFromConfig
from hybridtron.training.validation.resolve import resolve

Method = Literal["stretch", "stack"]
Round = Literal["up", "parameters", "flops"]
LONGEST_NAME = 24  # of a small pattern, in characters of the run's name


@dataclass(frozen=True)
class Scaled(Shown):
    """The target's run with the grown pattern, and what its model and the target's cost at the target's seq_len."""

    config: RunConfig
    target: RunConfig
    rounding: Round
    account: Account
    target_account: Account
    blocks_kept: bool = False

    @property
    def attention_layers(self) -> int:
        blocks = self.config.model.blocks
        return sum(any(mixer.attends for mixer in blocks[layer.block].mixers) for layer in self.account.layers)

    def as_json(self) -> dict[str, Any]:
        size, target_size = (account.total - account.embedding for account in (self.account, self.target_account))
        found = {
            "pattern": self.config.model.pattern,
            "layers": len(self.account.layers),
            "attention_layers": self.attention_layers,
            "parameters": {"total": self.account.total, "non_embedding": size},
            "target_non_embedding": target_size,
            "difference": size - target_size,
        }
        if self.rounding == "flops":
            flops, target_flops = self.account.flops_forward, self.target_account.flops_forward  # of a whole sequence
            found["flops"] = {"total": flops, "target": target_flops, "difference": flops - target_flops}
        return found


def scale(
    pattern: str | Pattern,
    target: str | os.PathLike[str] | Mapping[str, Any] | RunConfig,
    method: Method = "stretch",
    round: Round = "parameters",
    dialect: Dialect = "auto",
    overrides: str | Sequence[str] = (),
    keep_blocks: Source | None = None,
) -> Scaled:
    """Grow a small pattern, at a target model's widths, to the target's size. Cuts into stages are dropped.

    Args:
        pattern: layers with the names of the target's blocks (of those of `keep_blocks`, if given), such as
            `2*attn 4*mlp`, or in another dialect.
        target: a run's config: a YAML file, a dict with its keys, or a resolved config.
        method: `stretch` lengthens runs of equal layers, `stack` adds copies (Composer, arXiv 2510.00379).
        round: up or down in each run to come nearest to the target in `parameters`, or in `flops` at its sequence
            length, in which the ratio of sizes is then taken too; or `up` in every run, as the paper does, which
            overshoots, by up to 37 % for 16 layers at 1B.
        dialect: of `pattern`: `auto`, `native`, `megatron` or `composer`.
        overrides: `key=value` for the target, such as `size=1b`, one or several.
        keep_blocks: the config of the small model's run or search, or its run folder: its blocks keep their types and
            options and take the target's width. By default the target's blocks are used.

    Raises:
        UserError: for an unknown name or layer, a target with errors, and one smaller than the pattern.
    """
    for name, value, known in (
        ("method", method, METHODS),
        ("round", round, get_args(Round)),
        ("dialect", dialect, get_args(Dialect)),
    ):
        if value not in known:
            raise UserError(f"{name} {value!r}: expected {one_of(value, known)}")
    listed = [overrides] if isinstance(overrides, str) else overrides
    run = target if isinstance(target, RunConfig) else resolve(load(target, listed, RunConfig))
    model = run.model if keep_blocks is None else with_blocks_of(keep_blocks, run.model)
    try:
        small = read(str(pattern), model.blocks, "native" if isinstance(pattern, Pattern) else dialect)
    except PatternError as error:
        raise UserError(f"pattern {pattern!r}: {str(error).splitlines()[0].removeprefix('pattern: ')}") from None
    return _grow(small, run, model.blocks, method, round)


def _grow(
    small: Pattern, target: RunConfig, blocks: Mapping[str, MixerConfig], method: Method, rounding: Round
) -> Scaled:
    """Grow the pattern of these blocks, which have the target's width, to the target's size."""
    seq_len, names = target.data.seq_len, target.model.layer_names
    residual = sum(target.model.residual.flops(target.model, i, seq_len) for i in range(len(names))) // len(names)

    def cost(block: MixerConfig) -> int:
        return block.flops(seq_len) + residual if rounding == "flops" else block.parameters()

    goal = sum(cost(target.model.blocks[name]) for name in names)
    costs = {name: cost(block) for name, block in blocks.items()}
    try:
        layers = METHODS[method](small.layers, costs, goal, "up" if rounding == "up" else "nearest")
    except TargetTooSmall as error:
        measure = "FLOPs" if rounding == "flops" else "parameters"
        raise UserError(
            f"{target.name}: is smaller than the pattern {small} at its widths: {error} {measure} in its layers; "
            "expected a larger target or a shorter pattern"
        ) from None
    recompute = target.parallel.recompute
    named = {*layers, *target.model.mtp_layer_names, *(recompute if isinstance(recompute, dict) else ())}
    used = {name: block for name, block in {**target.model.blocks, **blocks}.items() if name in named}
    grown = target.model.model_copy(update={"pattern": str(Pattern(layers)), "blocks": used})
    try:
        grown = build(grown.model_dump(serialize_as_any=True), ModelConfig)  # also renews what is cached
    except UserError as error:
        raise UserError(f"{target.name}, grown to {grown.pattern}: model.{error}") from None
    kept = blocks is not target.model.blocks
    parts = (target.name, method, _short(small), *[rounding] * (rounding != "parameters"), *["kept"] * kept)
    source = GrownFromConfig(pattern=str(Pattern(small.layers)), method=method)
    changes = {"name": "-".join(parts), "folder": None, "model": grown, "grown_from": source}
    config = target.model_copy(update=changes)
    return Scaled(config, target, rounding, describe(grown, seq_len), describe(target.model, seq_len), kept)


def _short(small: Pattern) -> str:
    """Return the pattern as part of a run's name, each block by as few letters as tell it from the others: 2a4m."""
    names = set(small.layers)

    def letters(name: str) -> str:
        others = names - {name}
        return next((name[:n] for n in range(1, len(name)) if not any(o.startswith(name[:n]) for o in others)), name)

    runs = "".join(f"{len(list(run))}{letters(block)}" for block, run in groupby(small.layers))
    return runs if len(runs) <= LONGEST_NAME else f"{runs[: LONGEST_NAME - 9]}-{zlib.crc32(runs.encode()):08x}"


def write_config(scaled: Scaled, out: Path) -> Path:
    """Write the grown model's training config to a new file, in a folder as NAME.yaml, and return its path.

    Raises UserError where the file exists or cannot be written.
    """
    if out.is_dir():
        out /= f"{scaled.config.name}.yaml"
    with new_file(out) as file:
        file.write(dump(scaled.config).encode())
    return out


@show.register(Scaled)
def show_scaled(scaled: Scaled, console: Console) -> None:
    """Print the grown pattern and its sizes beside the target's."""
    model, account, target, found = scaled.config.model, scaled.account, scaled.target_account, scaled.as_json()
    difference, target_size = found["difference"], found["target_non_embedding"]
    letters = {letter: name for letter, name in COMPOSER_NAMES.items() if name in model.blocks}
    fits = set(letters.values()) >= set(model.layer_names)
    runs = f"  = {to_composer(model.parsed_pattern, letters)}" if fits else ""
    ratio = target.state_size / account.state_size if account.state_size else None
    state = "none" if ratio is None else f"the target's is {ratio:.2f} times as large"
    types = ", ".join(f"{name} is {model.blocks[name].type}" for name in dict.fromkeys(model.layer_names))
    kept, given = f"kept, at the width of {scaled.target.name}", f"those of {scaled.target.name}"
    nearest = "up" if scaled.rounding == "up" else f"to the nearest {scaled.rounding.replace('flops', 'FLOPs')}"
    origin = kept if scaled.blocks_kept else f"{given}, whatever the small model had"
    console.print(
        f"pattern     {model.pattern}{runs}\n"
        f"blocks      {types}: {origin}\n"
        f"layers      {len(account.layers)}, {scaled.attention_layers} with attention; {scaled.target.name} has "
        f"{len(target.layers)}\n"
        f"parameters  {account.total:,}, {account.total - account.embedding:,} without embeddings\n"
        f"target      {target_size:,} without embeddings: {difference:+,} ({difference / target_size:+.2%}), "
        f"runs rounded {nearest}\n"
        f"FLOPs       {account.flops_forward:.4g} forward, {target.flops_forward:.4g} of the target "
        f"({account.flops_forward / target.flops_forward - 1:+.2%})\n"
        f"state       {state}, at {target.seq_len} tokens",
        markup=False,
        soft_wrap=True,
    )
