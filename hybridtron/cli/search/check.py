"""`hybridtron search check`: which patterns of a file a search would take."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument

SUMMARY = "check a file of patterns against the space of a search; exit code 2 where one is invalid"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file")
    layouts = "CSV or JSONL with a column pattern and an optional name, or one column without a header"
    verb.add_argument("layouts", metavar="LAYOUTS", type=Path, help=layouts)
    verb.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="dotted keys of the config")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print every invalid row with its reasons. Returns 2 where there is one."""
    from hybridtron.composer.nas.config import SearchConfig
    from hybridtron.composer.nas.driving import check_layouts
    from hybridtron.config.load import load
    from hybridtron.files import json_text

    layouts = check_layouts(load(options.config, options.overrides, SearchConfig), options.layouts)
    bad = [layout for layout in layouts if layout.pattern is None]
    if options.json:
        rows = [layout.as_json() for layout in layouts]
        print(json_text({"valid": len(layouts) - len(bad), "invalid": len(bad), "rows": rows}))
    else:
        for layout in bad:
            print(f"{options.layouts}:{layout.line}: {layout.text}: {layout.reason}")
        print(f"{len(layouts) - len(bad)} of {len(layouts)} rows are patterns of the space")
    return 2 if bad else 0
