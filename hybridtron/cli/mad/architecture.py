"""Options that say what `hybridtron mad run` trains."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.config import yaml_text
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import (
    Architecture,
    from_layers,
    from_model,
    from_pattern,
    with_residual,
    with_width,
)
from hybridtron.mad.models.equal_size import with_size_of
from hybridtron.mad.models.iso_state import iso_state
from hybridtron.mad.models.layers import LAYERS, WIDTH
from hybridtron.mad.models.shrink import DEPTH
from hybridtron.mad.training.presets import Preset


def add_architecture_arguments(verb: ArgumentParser) -> None:
    """Add the options that say what is trained."""
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--layers", nargs="+", action="extend", metavar="LAYER", help=f"in their order, of {', '.join(LAYERS)}"
    )
    what.add_argument("--pattern", metavar="PATTERN", help='of layers, such as "2*(mamba mlp)"')
    what.add_argument("--config", type=Path, metavar="CONFIG", help="a run's config, or its folder: made small")
    verb.add_argument("--depth", type=int, metavar="N", help=f"layers kept of --config ({DEPTH})")
    verb.add_argument(
        "--dim", type=int, metavar="N", dest="hidden_size", help=f"width of --layers and --pattern ({WIDTH})"
    )
    verb.add_argument(
        "--residual", nargs="+", metavar="TYPE key=value",
        help="residual topology, as a run's model.residual (that of --config, else plain)",
    )  # fmt: skip
    verb.add_argument("--iso-state", action="store_true", help="change layers so that the state is 4,096 in all")
    verb.add_argument(
        "--match-parameters", metavar="PATTERN", help="a baseline of MAD layers, whose number of parameters to have"
    )
    verb.add_argument(
        "--adjust", metavar="KEY",
        help="the width changed for that, such as model.hidden_size (that of the largest feed-forward layer)",
    )  # fmt: skip


def chosen_architecture(options: argparse.Namespace, chosen: Preset) -> Architecture:
    """Return the architecture that the options say. Raises UserError where they do not fit each other."""
    if options.config is None and options.depth is not None:
        raise UserError(f"--depth {options.depth}: is for --config, whose layers may be many; expected none here")
    if options.config is not None and options.hidden_size is not None:
        raise UserError(f"--dim {options.hidden_size}: is for --layers and --pattern; expected none with --config")
    if options.layers is not None:
        made = from_layers(options.layers, chosen.match_mad_lab)
    elif options.pattern is not None:
        made = from_pattern(options.pattern, chosen.match_mad_lab)
    else:
        from hybridtron.config.load import load
        from hybridtron.training.config import RunConfig

        of_run = options.config / "config.yaml"
        config = load(of_run if of_run.is_file() else options.config, [], RunConfig)
        made = from_model(config.name, config.model, DEPTH if options.depth is None else options.depth)
        if chosen.match_mad_lab:
            made = replace(made, notes=(*made.notes, "its own layers, without mad-lab's routing and heads"))
    if options.hidden_size is not None:
        made = with_width(made, options.hidden_size)
    if options.residual is not None:
        made = with_residual(made, _residual(options.residual))
    made = iso_state(made) if options.iso_state else made
    if options.match_parameters is None:
        if options.adjust is not None:
            raise UserError(f"adjust = {options.adjust}: is for match_parameters; expected a baseline there")
        return made
    try:
        baseline = from_pattern(options.match_parameters, chosen.match_mad_lab)
    except UserError as error:
        raise UserError(f"match_parameters = {options.match_parameters}: {error}") from None
    if options.hidden_size is not None:
        baseline = with_width(baseline, options.hidden_size)
    return with_size_of(made, baseline, adjust=options.adjust)


def _residual(words: Sequence[str]) -> dict[str, Any]:
    """Read a topology's type and its `key=value` words as a `model.residual` section."""
    section: dict[str, Any] = {"type": words[0]}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not (key and equals) or key in section:
            raise UserError(f"residual: {word!r}: expected key=value, such as streams=4, each once")
        section[key] = yaml_text.parse(value)
    return section
