"""`hybridtron laws`: fit a scaling law to finished runs, list the laws."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from hybridtron.cli.arguments import ArgumentParser, run_verb
from hybridtron.errors import UserError
from hybridtron.files import json_text
from hybridtron.laws import LAWS, Law, find_law, fit
from hybridtron.laws.data.columns import SYNONYMS
from hybridtron.reporting.publish import require_usable
from hybridtron.reporting.shown import show
from hybridtron.reporting.table import terminal

EPILOG = """
RUNS are CSV or parquet files, run folders of this project, or folders of them. DIR gets fit.json, plots (PNG) and
report.html:

  hybridtron laws fit parametric runs.csv --out fits/chinchilla --where in_fit=1 --predict "N=7e10,D=1.4e12"
  hybridtron laws fit state-optimal checkpoints/ --context 4096 --out fits/state
"""


class Parser(ArgumentParser):
    """A parser whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message."""
        raise UserError(self.with_misspelt(message))

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Report arguments that the parser does not know; of an option that other laws have, which these are."""
        flag = unknown[0].partition("=")[0]
        option = flag.removeprefix("--").replace("-", "_")
        laws = [law.name for law in LAWS.values() if flag.startswith("--") and option in law.options]
        if laws:
            law = self.prog.rpartition(" ")[2]
            raise UserError(f"{flag}: {law} has no such option; expected it with one of {', '.join(laws)}")
        super().refuse(unknown)


def main(arguments: Sequence[str]) -> int:
    """Run `laws fit` or `laws list` and return the exit code 0; raises UserError for bad input."""
    verb, *rest = arguments or [""]
    if verb == "fit" and rest and not rest[0].startswith("-"):
        find_law(rest[0])  # names the nearest, which argparse does not
    return run_verb(_parser().parse_args(arguments))


def _parser() -> Parser:
    parser = Parser(prog="hybridtron laws", description="Scaling laws of finished runs.")
    verbs = parser.add_subparsers(required=True, metavar="fit|list")
    verb = verbs.add_parser("list", help="the laws and the columns that they need")
    verb.set_defaults(run=_list, parser=verb)
    verb = verbs.add_parser(
        "fit",
        help="fit a law and write a report",
        description="Fit a scaling law to finished runs and write what the data can and cannot support.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    laws = verb.add_subparsers(dest="law", required=True, metavar="LAW")
    for law in LAWS.values():
        summary = law.summary.replace("%", "%%")
        needs = f"Columns: {', '.join(law.columns)}. Parameters: {', '.join(law.parameters)}."
        _add_fit_options(laws.add_parser(law.name, help=summary, description=f"{summary}. {needs}"), law)
    return parser


def _add_fit_options(parser: argparse.ArgumentParser, law: Law) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="CSV, parquet, run folder, or folder of run folders")
    add("--out", required=True, type=Path, metavar="DIR", help="new, empty, or an earlier report (replaced)")
    add(
        "--where",
        action="append",
        default=[],
        metavar="COL=VALUE",
        help="keep these rows (COL!=VALUE: the others; also COL<=VALUE, COL>=VALUE, quoted); repeatable",
    )
    add("--keep-best", action="store_true", help="keep the lowest loss of each cell of equal n_params and tokens")
    add("--group", metavar="COL", help="the run of each row, where rows are checkpoints: resampled together")
    add("--delta", type=float, metavar="X", help="Huber threshold on the residual; inf: least squares")
    add("--bootstrap", type=int, default=1000, metavar="N", help="for the intervals (%(default)s); 0: none")
    add("--seed", type=int, default=0, metavar="N", help="of every random draw (%(default)s)")
    add("--holdout", type=int, metavar="K", help="largest runs held out to check extrapolation; 0: none")
    add("--predict", action="append", default=[], metavar='"N=7e9,D=1e11"', help="repeatable")
    add("--jobs", type=int, default=1, metavar="N", help="threads (%(default)s)")
    help_context = "context length at which attention's state is (run folders) or was (tables) counted"
    add("--context", type=int, metavar="TOKENS", help=help_context)
    add("--json", action="store_true", help="print fit.json instead of a summary")
    for name, (default, meaning, *_) in law.options.items():
        if name != "context":
            kind = type(default) if isinstance(default, int | float) else str
            add(f"--{name.replace('_', '-')}", default=default, type=kind, metavar="X", help=meaning)
    for name in SYNONYMS:
        flag = f"--{name.lower().replace('_', '-')}-column"
        add(flag, dest=f"{name}_column", metavar="COL", help=f"the column that holds {name}")
    parser.set_defaults(run=_fit, parser=parser)


def _list(options: argparse.Namespace) -> int:
    width = max(map(len, LAWS))
    for law in LAWS.values():
        print(f"{law.name:{width}}  {', '.join(law.columns)}: {law.summary}")
    return 0


def _fit(options: argparse.Namespace) -> int:
    """Check, read, fit, and only then write."""
    given: dict[str, Any] = dict(vars(options))
    law, runs, out, as_json = (given.pop(name) for name in ("law", "runs", "out", "json"))
    del given["run"], given["parser"]
    require_usable(out)
    with Console(stderr=True).status(f"fitting {law}"):
        result = fit(law, runs, **given)
        page = result.report(out)
    if as_json:
        print(json_text(result.to_json()))
    else:
        show(result, terminal())
        print(f"\n{page}")
    return 0
