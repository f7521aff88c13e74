"""`hybridtron efficiency`: what models cost to train and to generate with, measured here."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "measure training, prefill, decoding and memory of several models"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument(
        "configs",
        metavar="CONFIG",
        nargs="+",
        help="YAML files, run folders or patterns; the first is the base of ratios",
    )
    verb.add_argument("--set", metavar="key=value", nargs="+", action="extend", default=[], dest="overrides",
                      help="overrides of all configs, such as size=1b; they may also stand by themselves")  # fmt: skip
    verb.add_argument(
        "--lengths", type=_sizes, default=(512, 2048), metavar="N,N", help="tokens of context (default: 512,2048)"
    )
    verb.add_argument("--batch-sizes", type=_sizes, default=(1,), metavar="N,N", help="sequences at once (default: 1)")
    verb.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="repeats of each measurement (default: %(default)s)"
    )
    verb.add_argument("--by-block", action="store_true",
                      help="measure each distinct layer by itself, and add up")  # fmt: skip
    verb.add_argument("--threads", type=int, metavar="N", help="threads on a CPU (default: torch's)")
    verb.add_argument("--out", type=Path, metavar="FOLDER", help="write a page, pictures, JSON and a table of layers")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the measured rates, and write the page where --out is given."""
    from hybridtron.api.efficiency import measure_efficiency
    from hybridtron.reporting.progress import ProgressView

    configs = [word for word in options.configs if "=" not in word or Path(word).exists()]  # no pattern has a =
    view = ProgressView(seconds_between_lines=10)
    try:
        measured = measure_efficiency(
            configs,
            *options.overrides,
            *(word for word in options.configs if word not in configs),
            lengths=options.lengths,
            batch_sizes=options.batch_sizes,
            repeats=options.repeats,
            by_block=options.by_block,
            threads=options.threads,
            out=options.out,
            progress=lambda done, total, setting: view.update("efficiency", done, total, setting),
        )
    finally:
        view.close()
    print_result(measured, options.json)
    if options.out and not options.json:
        print(f"page {options.out / 'report.html'}")
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected whole numbers such as 512,2048") from None
