"""`hybridtron scale`: grow a pattern to the size of a target model."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "grow a small pattern to the size of a target model"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("pattern", metavar="PATTERN", help="2*attn 4*mlp, or in another dialect: AAMMMM, 2A+4M, **----")
    verb.add_argument("--method", choices=["stretch", "stack"], required=True, help="longer runs, or more copies")
    target = "a YAML file whose size and widths count"
    verb.add_argument("--target", type=Path, required=True, metavar="CONFIG", help=target)
    overrides = "dotted keys of the target, such as size=1b"
    verb.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=overrides)
    rounding = (
        "runs up or down, whichever comes nearest to the target in parameters or in FLOPs; up: every run, as the paper "
        "does, up to 37 %% over the target (%(default)s)"
    )
    verb.add_argument("--round", choices=["parameters", "flops", "up"], default="parameters", help=rounding)
    dialects = ["auto", "native", "megatron", "composer"]
    verb.add_argument("--dialect", choices=dialects, default="auto", help="of PATTERN (%(default)s)")
    kept = "the small model's run config, run folder or search config: keep its blocks, at the target's width"
    verb.add_argument("--keep-blocks", metavar="CONFIG", help=kept)
    out = "write a training config to a new file, in a folder under the run's name"
    verb.add_argument("--out", type=Path, metavar="FILE", help=out)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Grow the pattern, print the result and write it as a config to --out."""
    from hybridtron.composer.grow.scale import scale, write_config

    scaled = scale(
        options.pattern, options.target, options.method, options.round, options.dialect, options.overrides,
        options.keep_blocks,
    )  # fmt: skip
    written = write_config(scaled, options.out) if options.out else None
    print_result(scaled, options.json)
    if written and not options.json:
        print(f"written     {written}")
    return 0
