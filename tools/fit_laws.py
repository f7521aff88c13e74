"""Fit a scaling law to finished runs and write what the data can and cannot support.

    python tools/fit_laws.py parametric runs.csv --out fits/chinchilla --where in_fit=1 --predict "N=7e10,D=1.4e12"
    python tools/fit_laws.py state-optimal checkpoints/ --context 4096 --out fits/state

RUNS are CSV or parquet files, run folders of this project, or folders of them. DIR gets fit.json, plots (PNG) and
report.html.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.laws import LAWS, Fit, Law, Settings, fit
from hybridtron.laws.data.columns import SYNONYMS, option
from hybridtron.laws.data.read import read_runs
from hybridtron.laws.report.page import html_report
from hybridtron.laws.report.plots import draw
from hybridtron.laws.report.wording import predicted
from hybridtron.reporting.publish import publish, require_usable


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    laws = parser.add_subparsers(dest="law", required=True, metavar="LAW")
    for law in LAWS.values():
        summary = law.summary.replace("%", "%%")
        needs = f"Columns: {', '.join(law.columns)}. Parameters: {', '.join(law.parameters)}."
        law_parser = laws.add_parser(law.name, help=summary, description=f"{summary}. {needs}", allow_abbrev=False)
        add = law_parser.add_argument
        add("runs", nargs="+", type=Path, metavar="RUNS", help="CSV, parquet, run folder, or folder of run folders")
        add("--out", required=True, type=Path, metavar="DIR", help="new, empty, or an earlier report (replaced)")
        add("--where", action="append", default=[], type=_pair, metavar="COL=VALUE", help="keep these rows; repeatable")
        add("--group", metavar="COL", help="the run of each row, where rows are checkpoints: resampled together")
        add("--delta", type=float, metavar="X", help="Huber threshold on the residual; inf: least squares")
        add("--bootstrap", type=_at_least(0), default=1000, metavar="N", help="for the intervals (1000); 0: none")
        add("--seed", type=_at_least(0), default=0, help="of every random draw (0)")
        add("--holdout", type=_at_least(0), metavar="K", help="largest runs held out to check extrapolation; 0: none")
        add("--predict", action="append", default=[], type=_point, metavar='"N=7e9,D=1e11"', help="repeatable")
        add("--jobs", type=_at_least(1), default=1, metavar="N", help="threads (1)")
        help_context = "context length at which attention's state is (run folders) or was (tables) counted"
        add("--context", type=_at_least(1), dest="option_context", metavar="TOKENS", help=help_context)
        add("--json", action="store_true", help="print fit.json instead of a summary")
        for name, (default, meaning) in law.options.items():
            if name != "context":
                flag = f"--{name.replace('_', '-')}"
                add(flag, dest=f"option_{name}", default=default, help=meaning, **_kind(default))
        for name in SYNONYMS:
            add(option(name), dest=f"column_{name}", metavar="COL", help=f"the column that holds {name}")
    return parser


def _pair(text: str) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected COL=VALUE")
    return column, value


def _point(text: str) -> dict[str, float]:
    try:
        point = {name.strip(): float(value) for name, value in map(_pair, text.split(","))}
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=NUMBER,NAME=NUMBER") from None
    for name, value in point.items():
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{name}={value:g}: expected a finite number above zero")
    return point


def _at_least(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
        return int(text)

    return read


def _kind(default: object) -> dict[str, Any]:
    """How argparse reads an option whose default is this."""
    if isinstance(default, bool):
        return {"action": argparse.BooleanOptionalAction}
    return {"type": type(default) if isinstance(default, int | float) else str, "metavar": "X"}


def run(options: argparse.Namespace, law: Law) -> Fit:
    """Check, read, fit, and only then write."""
    given = vars(options)
    require_usable(options.out)
    columns = {name: given[f"column_{name}"] for name in SYNONYMS if given[f"column_{name}"]}
    reading = read_runs(
        options.runs, law.columns, law.optional_columns,
        columns=columns, where=options.where, group=options.group, context=options.option_context,
    )  # fmt: skip
    chosen = {name: given[f"option_{name}"] for name in law.options}
    settings = Settings(
        **{field.name: given[field.name] for field in fields(Settings) if field.name != "options"}, options=chosen
    )
    with Console(stderr=True).status(f"fitting {law.name} to {len(reading.runs)} rows"):
        result = reading.annotate(fit(law.name, reading.runs, settings))
        images = draw(result.curves)
        page = html_report(result, law, images).encode()
    text = json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n"
    publish(options.out, {"fit.json": text.encode(), "report.html": page, **images})
    return result


def show(result: Fit, out: Path) -> None:
    print("\n".join(result.verdict))
    for name, value in result.parameters.items():
        low, high = (result.intervals or {}).get(name, (None, None))
        print(f"  {name:8} {value:<12.6g}" + (f" 95 %: {low:.5g} to {high:.5g}" if low is not None else ""))
    for point in result.predictions:
        print("  at " + predicted(point))
    for warning in result.warnings:
        print(f"warning: {warning}")
    print(f"\n{out / 'report.html'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and not given[0].startswith("-") and given[0] not in LAWS:
            raise UserError(f"law {given[0]!r}: expected {one_of(given[0], LAWS)}")
        options = parser().parse_args(given)
        result = run(options, LAWS[options.law])
    except UserError as error:
        print(f"hybridtron: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result.to_json(), indent=2, allow_nan=False)) if options.json else show(result, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
