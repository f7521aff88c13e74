"""`hybridtron search tell`: scores from elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.errors import UserError

SUMMARY = "record scores that were measured elsewhere"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file")
    results = "JSON: a list of objects with id or pattern, and score; seed, error, test_score, seconds may follow"
    verb.add_argument("results", metavar="RESULTS", type=Path, nargs="?", help=results)
    verb.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config")
    verb.add_argument("--pattern", metavar="P", help="in place of a file: one pattern, in any dialect")
    verb.add_argument("--score", type=float, metavar="S", help="its score, larger is better; nan: it failed")
    verb.add_argument("--seed", type=int, metavar="N", help="its seed, where the search has several")
    verb.add_argument("--seconds", type=float, metavar="S", help="how long it took, which a budget of hours needs")
    verb.add_argument("--unasked", action="store_true", help="take patterns too that nobody proposed")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Record the scores, all or none, and print where the search is."""
    from hybridtron.composer.nas.driving import open_search
    from hybridtron.composer.nas.outside import read_results
    from hybridtron.files import json_text

    overrides = list(options.overrides)
    if options.results is not None and "=" in options.results.name:  # an override stands where a file may
        overrides, options.results = [str(options.results), *overrides], None
    if (options.results is None) == (options.pattern is None):
        raise UserError("RESULTS: expected a file of results, or --pattern and --score")
    if options.pattern is not None and options.score is None:
        raise UserError("--score: expected a number with --pattern")
    results = read_results(options.results) if options.results else []
    with open_search(options.config, *overrides) as search:
        told = search.tell(
            results,
            pattern=options.pattern,
            score=options.score,
            seed=options.seed,
            seconds=options.seconds,
            unasked=options.unasked,
        )
    if options.json:
        print(json_text(told.as_json()))
        return 0
    counts = told.as_json()
    again = f", {told.repeated} were there" if told.repeated else ""
    end = "; the search is complete" if counts["complete"] else ""
    evaluated, planned = counts["evaluated"], counts["evaluations"]
    where = (
        f"{evaluated} of {planned} evaluated" if evaluated <= planned else f"{evaluated} evaluated, {planned} planned"
    )
    print(f"{told.recorded} recorded{again}; {where}, {counts['failed']} failed{end}")
    return 0
