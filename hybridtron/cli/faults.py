"""`hybridtron faults`: inject faults into tiny runs and compare what they recover to with undisturbed ones."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.files import json_text

SUMMARY = "inject faults into tiny runs, and check that they recover bit by bit"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="keys of the runs, such as checkpoint.verify=sampled",
    )
    verb.add_argument("--kinds", nargs="+", metavar="KIND", help="by default all; `--kinds help` lists them")
    verb.add_argument("--count", type=int, default=100, metavar="N", help="faults in all (100)")
    verb.add_argument(
        "--launched", type=int, default=0, metavar="N",
        help="how many of them hit runs of the local launcher, with supervisors and restarts; the others hit ranks "
        "forked from this process, which start in a second (0)",
    )  # fmt: skip
    verb.add_argument("--seed", type=int, default=0, help="of ranks, moments and places (0)")
    verb.add_argument(
        "--processes", nargs="+", type=int, default=[1, 2], metavar="P", help="of a run: 1, 2, 4 or 8, in turn (1 2)"
    )
    verb.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="a new folder for the runs and results.jsonl; by default a temporary one",
    )
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Run the campaign and print its table. Returns 1 where an outcome was wrong."""
    from hybridtron.faults.campaign import run_campaign
    from hybridtron.faults.outcome import WRONG
    from hybridtron.faults.plan import KINDS
    from hybridtron.faults.report import as_json, table_of

    if options.kinds == ["help"]:
        width = max(map(len, KINDS))
        print("\n".join(f"{name:{width}}  {kind.description}" for name, kind in KINDS.items()))
        return 0
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="hybridtron-faults-") as temporary:
        folder = options.out or Path(temporary) / "faults"
        results = list(
            run_campaign(
                folder, options.kinds, options.count, options.launched, options.seed, options.processes,
                options.overrides, lambda line: print(line, file=sys.stderr, flush=True),
            )
        )  # fmt: skip
    if options.json:
        conditions = {
            "seed": options.seed,
            "processes": options.processes,
            "overrides": options.overrides,
            "cores": os.cpu_count(),
            "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
            "seconds": round(time.time() - began),
        }
        print(json_text(as_json(results, conditions), indent=1))
    else:
        print(table_of(results).to_terminal())
    return 1 if any(result.outcome == WRONG for result in results) else 0
