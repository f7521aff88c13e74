"""Command-line arguments shared by the verbs, and errors in one form."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hybridtron.config.nearest import nearest, one_of
from hybridtron.errors import UserError, parameters_renamed

_PARAMETER = re.compile(
    r"^(?P<first>\w+)(?=[ :])"
    r"|(?<![\w.-])(?P<flag>\w+)=True\b"
    r"|`(?P<quoted>\w+)`"
    r"|(?<![\w./-])(?P<name>\w+_\w+)(?![\w./]| = )"  # with an underscore, as no word of a sentence has
)


class ArgumentParser(argparse.ArgumentParser):
    """Parser that reports bad arguments in one line and exits with code 2; --help shows the usage.

    Options are written out: what begins like one may be another, misspelt.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Return the parsed arguments, and those that are unknown."""
        self._given = sys.argv[1:] if args is None else list(args)
        options, unknown = super().parse_known_args(args, namespace)
        return options, list(unknown)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        print(f"hybridtron: error: {self.with_misspelt(message)} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def with_misspelt(self, message: str) -> str:
        """Return argparse's message; where something is missing, with an option that is unknown and may be it."""
        if re.search(" are required: | is required$", message) and (unknown := self._unknown_option()):
            return f"{message}; unrecognized: {unknown}{self._nearest_option(unknown)}"
        return message

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the parsed arguments; those that are unknown are an error of the verb's own parser."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(options, "parser", self).refuse(unknown)
        return options

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Report arguments that the parser does not know, with the option nearest to the first that looks like one."""
        wrong = next((word.partition("=")[0] for word in unknown if word.startswith("--")), "")
        self.error(f"unrecognized arguments: {' '.join(unknown)}{self._nearest_option(wrong)}")

    def _unknown_option(self) -> str:
        """Return the first option that was given and that there is not; empty where there is none."""
        given = (word.partition("=")[0] for word in self._given if re.match("--[a-z]", word))
        return next((option for option in given if option not in self._option_string_actions), "")

    def _nearest_option(self, wrong: str) -> str:
        """Return ` (nearest: --NAME)`; empty where none is close."""
        close = nearest(wrong[2:], [option[2:] for option in self._option_string_actions if option.startswith("--")])
        return f" (nearest: --{close})" if close else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError for a value that is not among the choices, with the nearest of them."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}: expected {one_of(value, action.choices)}")


def add_config_arguments(verb: argparse.ArgumentParser, example: str = "optimizer.lr=1e-3") -> None:
    """Add the positional arguments `config` and `overrides`, of which the help shows an example."""
    verb.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file")
    verb.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=f"dotted keys, such as {example}")


def add_json_argument(verb: argparse.ArgumentParser) -> None:
    """Add --json."""
    verb.add_argument("--json", action="store_true", help="for programs")


def add_print_argument(verb: argparse.ArgumentParser) -> None:
    """Add --print, as `show`."""
    verb.add_argument("--print", action="store_true", dest="show", help="show the config with its defaults and stop")


def make_verb(parser: argparse.ArgumentParser, module: Any) -> None:
    """Make a parser that of a verb's module: SUMMARY, add_arguments, run. It sets `run`, and `parser`, itself."""
    module.add_arguments(parser)
    parser.set_defaults(run=module.run, parser=parser)


def run_verb(options: argparse.Namespace) -> int:
    """Run the verb of parsed options and return its exit code; errors that name its parameters name its options."""
    with naming_options(options.parser, options):
        return int(options.run(options))


@contextmanager
def naming_options(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Iterator[None]:
    """Write the Python parameters in messages of the block, and in a UserError, as options of the parser.

    `seeds = 0: ...` becomes `--seeds = 0: ...` where `seeds` is the dest of an option, and so does a name in backticks.
    Other names are left alone.
    A key that an override set was given on the command line. A UserError that names no option, but is about the value
    of one, gets that option's name before it; an OSError of a file that an option gave, before the file. A value that
    was given without an option too is left alone.
    """
    actions = [action for action in parser._actions if action.option_strings]
    options = {action.dest: max(action.option_strings, key=len) for action in actions}

    def rename(text: str) -> str:
        named = _PARAMETER.sub(lambda match: options.get(match[match.lastgroup or 0], match[0]), text)
        return named.replace("in an override", "on the command line")

    words = {one.dest: _words(getattr(given, one.dest, None), one.default) for one in parser._actions}
    unnamed = {word for one in parser._actions if not one.option_strings for word in words[one.dest]}
    values = {option: [word for word in words[dest] if word not in unnamed] for dest, option in options.items()}
    try:
        with parameters_renamed(rename):
            yield
    except UserError as error:
        raise UserError(_naming_the_value(str(error), values)) from error
    except OSError as error:
        of = next((option for option, words in values.items() if error.filename and str(error.filename) in words), "")
        if not of:
            raise
        raise OSError(error.errno, error.strerror, f"{of} {error.filename}") from error


def _words(value: Any, default: Any) -> list[str]:
    """Return the words that were given to an option; none for numbers and flags, and where it has its default."""
    words = value if isinstance(value, list | tuple) else [value]
    return [] if value == default else [str(word) for word in words if isinstance(word, str | Path)]


def _naming_the_value(text: str, values: Mapping[str, Sequence[str]]) -> str:
    """Write the option before a message that begins with its value, or quotes it, where the message names none."""
    if any(re.search(rf"{re.escape(option)}(?![\w-])", text) for option in values):
        return text
    pairs = [(option, word) for option, words in values.items() for word in words if word]
    begun = [(option, word) for option, word in pairs if re.match(rf"{re.escape(word)}(?=[:,/ ])", text)]
    if begun:
        return f"{max(begun, key=lambda pair: len(pair[1]))[0]} {text}"
    quoted = [option for option, word in pairs if f"'{word}'" in text]
    return f"{quoted[0]}: {text}" if quoted else text
