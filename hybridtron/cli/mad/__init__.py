"""`hybridtron mad`: six synthetic tasks for architectures.

Its verbs are one module each: SUMMARY, add_arguments, run. Beside them:
    architecture  options that say what is trained
    settings      words such as vocab_size=32
    jobs          `mad run --launch`
    mad_lab       what takes the place of mad-lab's flags
"""

from __future__ import annotations

from collections.abc import Sequence

from hybridtron.cli.arguments import ArgumentParser, make_verb, run_verb
from hybridtron.cli.mad import data, report, run
from hybridtron.cli.mad.mad_lab import MAD_LAB_FLAGS

VERBS = (data, run, report)


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code: 0 done, 1 failed. Raises UserError for bad input."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if options.run is data.run:  # what differs from the baseline may stand before options and after them
        options.changes += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    for word in rest:
        flag = word.partition("=")[0].replace("--no-", "--")
        if flag in MAD_LAB_FLAGS:
            options.parser.error(f"{flag}: is a flag of mad-lab; expected {MAD_LAB_FLAGS[flag]}")
    if rest:
        options.parser.refuse(rest)
    return run_verb(options)


def build_parser() -> ArgumentParser:
    """Return the parser of all verbs of `mad`."""
    parser = ArgumentParser(prog="hybridtron mad", description="Six synthetic tasks for architectures (MAD).")
    verbs = parser.add_subparsers(required=True, metavar="data|run|report")
    for module in VERBS:
        make_verb(verbs.add_parser(module.__name__.rpartition(".")[2], help=module.SUMMARY), module)
    return parser
