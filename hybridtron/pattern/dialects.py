"""Patterns in the notations of Megatron and Composer."""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Literal

from hybridtron.config.nearest import one_of
from hybridtron.pattern.errors import PatternError, fail, legend, read_count, require_known, require_size
from hybridtron.pattern.language import Entry, from_entries, parse
from hybridtron.pattern.pattern import NAME, Pattern

Dialect = Literal["auto", "native", "megatron", "composer"]
MEGATRON_NAMES: Mapping[str, str] = {"M": "mamba", "*": "attn", "-": "mlp", "E": "moe"}
COMPOSER_NAMES: Mapping[str, str] = {"A": "attn", "M": "mlp"}


def read(
    text: str,
    known_names: Iterable[str],
    dialect: Dialect = "auto",
    megatron_names: Mapping[str, str] = MEGATRON_NAMES,
    composer_names: Mapping[str, str] = COMPOSER_NAMES,
) -> Pattern:
    """Read a pattern of any dialect over the block names `known_names`.

    `auto` takes the one dialect in which the text is well-formed and names known blocks only, the native language
    first. Raises PatternError if there is none, or if Megatron's and Composer's reading both fit (`MMMM`).
    """
    known = list(known_names)
    readers: dict[str, Callable[[], Pattern]] = {
        "native": lambda: parse(text, known),
        "megatron": lambda: from_megatron(text, megatron_names, known),
        "composer": lambda: from_composer(text, composer_names, known),
    }
    if dialect != "auto":
        if dialect not in readers:
            fail(f"unknown dialect {dialect!r}", expected=one_of(dialect, ["auto", *readers]))
        return readers[dialect]()
    readings: dict[str, Pattern] = {}
    for name, reader in readers.items():
        try:
            readings[name] = reader()
        except PatternError:
            continue
        if name == "native":
            break
    if not readings:
        readers[_likely_dialect(text, megatron_names, composer_names)]()  # raises the error of that dialect
    if len(set(readings.values())) > 1:
        meanings = " or ".join(f"{pattern} ({name} dialect)" for name, pattern in readings.items())
        fail(f"ambiguous {text!r}", expected=f"the name of a dialect with it; it may mean {meanings}")
    return next(iter(readings.values()))


def from_megatron(
    text: str, names: Mapping[str, str] = MEGATRON_NAMES, known_names: Iterable[str] | None = None
) -> Pattern:
    """Read Megatron's hybrid pattern: one symbol per layer, `|` between pipeline stages; `names` maps symbol to block.

    Raises PatternError for a symbol that `names` lacks, and for a multi-token-prediction part after `/`.
    """
    known = None if known_names is None else list(known_names)
    entries: list[Entry] = []
    for position, symbol in enumerate(text):
        if symbol == "/":
            fail("a multi-token-prediction part ('/') cannot be expressed", text, position)
        if symbol == "|":
            entries.append((symbol, position))
        elif symbol in names:
            require_known(names[symbol], known, text, position, f" (Megatron symbol {symbol!r})")
            entries.append((names[symbol], position))
        elif not symbol.isspace() or (text[position:].strip() and text[:position].strip()):
            fail(f"unknown Megatron symbol {symbol!r}", text, position, legend(names))
    require_size(len(entries), text, 0)
    return from_entries(text, entries)


def to_megatron(pattern: Pattern, names: Mapping[str, str] = MEGATRON_NAMES) -> str:
    """Write Megatron's hybrid pattern, `|` included. Raises PatternError for a block without a symbol."""
    symbols = _symbols(pattern, names, "Megatron")
    return "|".join("".join(symbols[layer] for layer in stage) for stage in pattern.stages())


def from_composer(
    text: str, names: Mapping[str, str] = COMPOSER_NAMES, known_names: Iterable[str] | None = None
) -> Pattern:
    """Read Composer's pattern: letters (`AAMMMM`), runs (`2A+4M`) or both; `names` maps letter to block.

    Raises PatternError for a letter that `names` lacks, and for stage cuts and groups, which Composer cannot say.
    """
    known = None if known_names is None else list(known_names)
    entries: list[Entry] = []
    position, plus = 0, None
    for match in re.finditer(r"\s*(?:(?P<plus>\+)|(?P<count>[0-9]*)\s*(?P<letter>\S))", text):
        position = match.start("letter")
        if match["plus"]:
            if plus is not None or not entries:
                fail("misplaced '+'", text, match.start("plus"), "one between two runs, as in 2A+4M")
            plus = match.start("plus")
            continue
        if match["letter"] not in names:
            if match["letter"].isdigit():
                fail(f"count {match['count']}{match['letter']} has no letter", text, position, legend(names))
            what = {"|": "a stage cut ('|')", "(": "a group ('(')"}.get(match["letter"])
            if what:
                fail(f"{what} does not exist in Composer's form", text, position)
            fail(f"unknown Composer letter {match['letter']!r}", text, position, legend(names))
        count = read_count(match["count"], text, match.start("count")) if match["count"] else 1
        require_known(names[match["letter"]], known, text, position, f" (Composer letter {match['letter']!r})")
        require_size(len(entries) + count, text, position)
        entries += [(names[match["letter"]], position)] * count
        plus = None
    if plus is not None:
        fail("nothing follows '+'", text, plus, "a run, as in 2A+4M")
    return from_entries(text, entries)


def to_composer(
    pattern: Pattern, names: Mapping[str, str] = COMPOSER_NAMES, form: Literal["runs", "letters"] = "runs"
) -> str:
    """Write Composer's pattern as `runs` (`2A+4M`) or `letters` (`AAMMMM`).

    Raises PatternError for a block without a letter and for stage cuts, which Composer cannot express.
    """
    if pattern.cuts:
        text = str(pattern)
        fail("a stage cut ('|') cannot be expressed in Composer's form", text, text.index("|"))
    symbols = _symbols(pattern, names, "Composer")
    if form == "letters":
        return "".join(symbols[layer] for layer in pattern.layers)
    return "+".join(f"{len(list(run))}{symbols[layer]}" for layer, run in groupby(pattern.layers))


def _likely_dialect(text: str, megatron_names: Mapping[str, str], composer_names: Mapping[str, str]) -> str:
    """Return the dialect that an unreadable text most probably is in, whose error is then shown."""
    if "+" in text or re.search(r"[0-9][A-Z]", text):
        return "composer"
    if re.search(r"[a-z_()0-9]|\S\s+\S", text):
        return "native"
    if set(text) <= set(composer_names):
        return "composer"
    return "megatron" if set(text) <= {*megatron_names, "|"} or set(text) & set("*-/") else "native"


def _symbols(pattern: Pattern, names: Mapping[str, str], dialect: str) -> dict[str, str]:
    """Map block names to symbols. Raises PatternError for a block of `pattern` without one."""
    symbols = {name: symbol for symbol, name in reversed(list(names.items()))}
    for layer in pattern.counts():
        if layer not in symbols:
            text = str(pattern)
            place = next(match for match in NAME.finditer(text) if match[0] == layer)
            fail(f"block {layer!r} has no symbol in {dialect}'s form", text, place.start(), legend(names))
    return symbols
