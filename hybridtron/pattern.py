"""The layer-pattern language: which block stands at which layer, and where pipeline stages are cut.

Grammar, items separated by blanks::

    pattern = item { item }
    item    = name | count "*" item | "(" item { item } ")" | "|"

`4*attn` is four layers, `3*(mamba mlp)` repeats a group, `|` starts a new pipeline stage. A cut inside a repeated group
cuts at every repetition; a stage is never empty. Two foreign dialects are read and written where they can say the same
thing: Megatron's hybrid strings (`M-M*-E`, one symbol per layer) and Composer's (`AAMMMM` or `2A+4M`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Literal, NoReturn

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError

MAX_LAYERS = 100_000
MEGATRON_NAMES: Mapping[str, str] = {"M": "mamba", "*": "attn", "-": "mlp", "E": "moe"}
COMPOSER_NAMES: Mapping[str, str] = {"A": "attn", "M": "mlp"}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(rf"(?P<count>[0-9]+)|(?P<name>{_NAME.pattern})|(?P<sign>[*()|])")
_LONGEST_PERIOD = 64  # of a repeated group that str() looks for, in layers; bounds its time
_SHOWN_WIDTH = 100


def is_name(text: str) -> bool:
    """Whether a block can be called so in a pattern."""
    return _NAME.fullmatch(text) is not None


class PatternError(UserError, ValueError):
    """A malformed pattern. The text is one line, then the pattern and a caret under the place where that is known.

    It is a ValueError too, so that a config validator may let it pass: the config engine puts the key in front.
    """


@dataclass(frozen=True)
class Pattern:
    """The block name of every layer, and `cuts`: the indices of the layers at which a new pipeline stage starts.

    `str(pattern)` is its canonical text: runs and repeated groups folded, equal under `parse`.
    """

    layers: tuple[str, ...]
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a pattern needs at least one layer")
        if any(a >= b for a, b in pairwise((0, *self.cuts, len(self.layers)))):
            raise ValueError(f"cuts {self.cuts} leave an empty stage in a pattern of {len(self.layers)} layers")

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        return " | ".join(_folded(stage) for stage in self.stages())

    def stages(self) -> list[tuple[str, ...]]:
        """The layers of each pipeline stage as written, in order; one stage if there is no cut."""
        return [self.layers[start:end] for start, end in pairwise((0, *self.cuts, len(self.layers)))]

    def counts(self) -> dict[str, int]:
        """How many layers use each block, in order of first appearance."""
        return dict(Counter(self.layers))


def parse(text: str, known_names: Iterable[str] | None = None) -> Pattern:
    """Reads the pattern language. With `known_names`, every block name must be one of them.

    Raises PatternError for anything malformed, unknown, or above 100,000 layers.
    """
    entries = _expand(text, None if known_names is None else list(known_names))
    return _with_cuts(text, entries)


Dialect = Literal["auto", "native", "megatron", "composer"]


def read(
    text: str,
    known_names: Iterable[str],
    dialect: Dialect = "auto",
    megatron_names: Mapping[str, str] = MEGATRON_NAMES,
    composer_names: Mapping[str, str] = COMPOSER_NAMES,
) -> Pattern:
    """Reads a pattern of any dialect over the block names `known_names`.

    `auto` takes the one dialect in which the text is well-formed and names known blocks only, the native language
    first. Raises PatternError if there is none, or if Megatron's and Composer's reading both fit (`MMMM`).
    """
    known = list(known_names)
    readers = {
        "native": lambda: parse(text, known),
        "megatron": lambda: from_megatron(text, megatron_names, known),
        "composer": lambda: from_composer(text, composer_names, known),
    }
    if dialect != "auto":
        if dialect not in readers:
            _fail(f"unknown dialect {dialect!r}", expected=one_of(dialect, ["auto", *readers]))
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
        _fail(f"ambiguous {text!r}", expected=f"the name of a dialect with it; it may mean {meanings}")
    return next(iter(readings.values()))


def from_megatron(
    text: str, names: Mapping[str, str] = MEGATRON_NAMES, known_names: Iterable[str] | None = None
) -> Pattern:
    """Reads Megatron's hybrid pattern: one symbol per layer, `|` between pipeline stages; `names` maps symbol to block.

    Raises PatternError for a symbol that `names` lacks, and for a multi-token-prediction part after `/`.
    """
    known = None if known_names is None else list(known_names)
    entries: list[_Entry] = []
    for position, symbol in enumerate(text):
        if symbol == "/":
            _fail("a multi-token-prediction part ('/') cannot be expressed", text, position)
        if symbol == "|":
            entries.append((symbol, position))
        elif symbol in names:
            _check_known(names[symbol], known, text, position, f" (Megatron symbol {symbol!r})")
            entries.append((names[symbol], position))
        elif not symbol.isspace() or (text[position:].strip() and text[:position].strip()):
            _fail(f"unknown Megatron symbol {symbol!r}", text, position, _legend(names))
    _check_size(len(entries), text, 0)
    return _with_cuts(text, entries)


def to_megatron(pattern: Pattern, names: Mapping[str, str] = MEGATRON_NAMES) -> str:
    """Writes Megatron's hybrid pattern, `|` included. Raises PatternError for a block without a symbol."""
    symbols = _symbols(pattern, names, "Megatron")
    return "|".join("".join(symbols[layer] for layer in stage) for stage in pattern.stages())


def from_composer(
    text: str, names: Mapping[str, str] = COMPOSER_NAMES, known_names: Iterable[str] | None = None
) -> Pattern:
    """Reads Composer's pattern: letters (`AAMMMM`), runs (`2A+4M`) or both; `names` maps letter to block.

    Raises PatternError for a letter that `names` lacks, and for stage cuts and groups, which Composer cannot say.
    """
    known = None if known_names is None else list(known_names)
    entries: list[_Entry] = []
    position, plus = 0, None
    for match in re.finditer(r"\s*(?:(?P<plus>\+)|(?P<count>[0-9]*)\s*(?P<letter>\S))", text):
        position = match.start("letter")
        if match["plus"]:
            if plus is not None or not entries:
                _fail("misplaced '+'", text, match.start("plus"), "one between two runs, as in 2A+4M")
            plus = match.start("plus")
            continue
        if match["letter"] not in names:
            if match["letter"].isdigit():
                _fail(f"count {match['count']}{match['letter']} has no letter", text, position, _legend(names))
            what = {"|": "a stage cut ('|')", "(": "a group ('(')"}.get(match["letter"])
            if what:
                _fail(f"{what} does not exist in Composer's form", text, position)
            _fail(f"unknown Composer letter {match['letter']!r}", text, position, _legend(names))
        count = _count(match["count"], text, match.start("count")) if match["count"] else 1
        _check_known(names[match["letter"]], known, text, position, f" (Composer letter {match['letter']!r})")
        _check_size(len(entries) + count, text, position)
        entries += [(names[match["letter"]], position)] * count
        plus = None
    if plus is not None:
        _fail("nothing follows '+'", text, plus, "a run, as in 2A+4M")
    return _with_cuts(text, entries)


def to_composer(
    pattern: Pattern, names: Mapping[str, str] = COMPOSER_NAMES, form: Literal["runs", "letters"] = "runs"
) -> str:
    """Writes Composer's pattern as `runs` (`2A+4M`) or `letters` (`AAMMMM`).

    Raises PatternError for a block without a letter and for stage cuts, which Composer cannot express.
    """
    if pattern.cuts:
        text = str(pattern)
        _fail("a stage cut ('|') cannot be expressed in Composer's form", text, text.index("|"))
    symbols = _symbols(pattern, names, "Composer")
    if form == "letters":
        return "".join(symbols[layer] for layer in pattern.layers)
    return "+".join(f"{len(list(run))}{symbols[layer]}" for layer, run in groupby(pattern.layers))


_Entry = tuple[str, int]  # a block name or "|", and its position in the text


@dataclass
class _Group:
    """A group being read: how often it repeats, where it opened, what it holds so far."""

    count: int
    position: int
    entries: list[_Entry] = field(default_factory=list)


def _expand(text: str, known: list[str] | None) -> list[_Entry]:
    """Every layer and cut of `text` in order, with groups and counts unrolled."""
    tokens = _tokens(text)
    groups = [_Group(1, 0)]
    count, counted = 1, None  # the product of the counts read before the next item, and the last of them
    skip = False
    for index, token in enumerate(tokens):
        if skip:  # the "*" that followed a count
            skip = False
            continue
        kind, word, position = token.lastgroup, token[0], token.start()
        following = tokens[index + 1] if index + 1 < len(tokens) else None
        before = tokens[index - 1] if index else None
        if word == "*":
            if before and before.lastgroup == "name" and following and following.lastgroup == "count":
                _fail("the count comes before the block", text, position, f"{following[0]}*{before[0]}")
            _fail("'*' without a count before it", text, position, "a count, as in 4*attn")
        if before and word not in ("|", ")") and before.end() == position and (before[0] == ")" or before["name"]):
            _fail("items run together", text, position, "a blank between them")
        if kind == "count":
            repeats = _count(word, text, position)
            if following is None or following[0] != "*":
                example = following[0].replace("(", "(...)") if following and following[0] not in "|)" else "attn"
                _fail(f"count {word} without '*'", text, position, f"{word}*{example}")
            count, counted, skip = count * repeats, token, True
            _check_size(count, text, position)
            continue
        if counted and word in ("|", ")"):
            _fail(f"count {counted[0]} has no block", text, counted.start(), "a block name or '(' after '*'")
        group = groups[-1]
        if word == "(":
            groups.append(_Group(count, position))
        elif word == ")":
            if len(groups) == 1:
                _fail("')' without '('", text, position)
            if not group.entries:
                _fail("empty group", text, group.position, "at least one layer in it")
            groups.pop()
            _check_size(len(groups[-1].entries) + group.count * len(group.entries), text, group.position)
            groups[-1].entries += group.entries * group.count
        else:
            if kind == "name":
                _check_known(word, known, text, position)
            _check_size(len(group.entries) + count, text, position)
            group.entries += [(word, position)] * count
        count, counted = 1, None
    if counted:
        _fail(f"count {counted[0]} has no block", text, counted.start(), "a block name or '(' after '*'")
    if len(groups) > 1:
        _fail("'(' is never closed", text, groups[-1].position, "')'")
    return groups[0].entries


def _tokens(text: str) -> list[re.Match[str]]:
    tokens, position = [], 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        token = _TOKEN.match(text, position)
        if token is None:
            hints = {
                ",": "blanks between layers, no commas",
                ".": "a whole number as count",
                "-": "a count of at least 1, or letters, digits and _ in a name",
                "[": "'(' for a group",
                "]": "')' for a group",
                "×": "'*' after a count",
                "+": "blanks between layers",
            }
            expected = hints.get(text[position], "a block name, a count such as 4*attn, '(', ')' or '|'")
            _fail(f"unexpected {text[position]!r}", text, position, expected)
        tokens.append(token)
        position = token.end()
    return tokens


def _with_cuts(text: str, entries: Sequence[_Entry]) -> Pattern:
    """Separates layers from cuts, and refuses empty stages."""
    layers: list[str] = []
    cuts: list[int] = []
    for word, position in entries:
        if word != "|":
            layers.append(word)
        elif len(layers) == (cuts[-1] if cuts else 0):
            _fail("empty pipeline stage before '|'", text, position, "at least one layer")
        else:
            cuts.append(len(layers))
    if not entries:
        _fail("empty pattern", expected="at least one layer, as in 4*attn")
    if cuts and cuts[-1] == len(layers):
        _fail("empty pipeline stage after '|'", text, entries[-1][1], "at least one layer")
    return Pattern(tuple(layers), tuple(cuts))


@lru_cache(maxsize=256)
def _folded(layers: tuple[str, ...]) -> str:
    """A short text of one stage (fewest characters, then fewest items) made of names, runs and repeated groups.

    From the last layer to the first: best[i] is the cost of layers i to the end and the item that they start with.
    """
    best: list[tuple[tuple[int, int], str, int]] = [((0, 0), "", 0)] * (len(layers) + 1)  # cost, item, layers covered
    longest = min(len(layers) // 2, _LONGEST_PERIOD)
    matches = [0] * (longest + 1)  # [p] how many layers from i on equal the one p later
    for i in range(len(layers) - 1, -1, -1):
        items = [(layers[i], 1)]
        periods: list[int] = []
        for period in range(1, longest + 1):
            same = i + period < len(layers) and layers[i] == layers[i + period]
            matches[period] = matches[period] + 1 if same else 0
            repeats = matches[period] // period + 1
            if repeats < 2 or any(
                period % shorter == 0 and matches[shorter] >= 2 * period - shorter for shorter in periods
            ):
                continue
            periods.append(period)
            body = layers[i] if period == 1 else f"({_folded(layers[i : i + period])})"
            items.append((f"{repeats}*{body}", repeats * period))
        best[i] = min(
            ((best[i + size][0][0] + len(item) + 1 + _split(layers, i + size), best[i + size][0][1] + 1), item, size)
            for item, size in items
        )
    words = []
    i = 0
    while i < len(layers):
        _, item, size = best[i]
        words.append(item)
        i += size
    return " ".join(words)


def _split(layers: tuple[str, ...], i: int) -> int:
    """Characters that a text may be longer for not tearing a run of equal layers apart before layer i."""
    return 6 if i < len(layers) and layers[i - 1] == layers[i] else 0


def _likely_dialect(text: str, megatron_names: Mapping[str, str], composer_names: Mapping[str, str]) -> str:
    """The dialect that the author of an unreadable text most probably meant: it decides whose error is shown."""
    if "+" in text or re.search(r"[0-9][A-Z]", text):
        return "composer"
    if re.search(r"[a-z_()0-9]|\S\s+\S", text):
        return "native"
    if set(text) <= set(composer_names):
        return "composer"
    return "megatron" if set(text) <= {*megatron_names, "|"} or set(text) & set("*-/") else "native"


def _symbols(pattern: Pattern, names: Mapping[str, str], dialect: str) -> dict[str, str]:
    """Block name to symbol, for the blocks of `pattern`."""
    symbols = {name: symbol for symbol, name in reversed(list(names.items()))}
    for layer in pattern.counts():
        if layer not in symbols:
            text = str(pattern)
            place = next(match for match in _NAME.finditer(text) if match[0] == layer)
            _fail(f"block {layer!r} has no symbol in {dialect}'s form", text, place.start(), _legend(names))
    return symbols


def _legend(names: Mapping[str, str]) -> str:
    return "one of " + ", ".join(f"{symbol} ({name})" for symbol, name in names.items())


def _count(digits: str, text: str, position: int) -> int:
    digits = digits.lstrip("0")
    if not digits:
        _fail("count 0", text, position, "at least 1")
    _check_size(int(digits[:9]), text, position)  # enough digits to be too many
    return int(digits)


def _check_size(layers: int, text: str, position: int) -> None:
    if layers > MAX_LAYERS:
        _fail("too many layers", text, position, f"at most {MAX_LAYERS:,} in a pattern")


def _check_known(name: str, known: list[str] | None, text: str, position: int, written: str = "") -> None:
    if known is not None and name not in known:
        expected = one_of(name, known) if known else "the name of a block, but model.blocks defines none"
        _fail(f"unknown block {name!r}{written}", text, position, expected)


def _fail(what: str, text: str = "", position: int | None = None, expected: str = "") -> NoReturn:
    place = "" if position is None else f" at column {position + 1}"
    caret = "" if position is None else _caret(text, position)
    raise PatternError(f"pattern: {what}{place}" + (f": expected {expected}" if expected else "") + caret)


def _caret(text: str, position: int) -> str:
    """Two lines: the text, cut to a readable window if it is long, and a caret under `position`."""
    shown = "".join(" " if char.isspace() else char if char.isprintable() else "?" for char in text)
    start = max(0, min(position - _SHOWN_WIDTH // 2, len(shown) - _SHOWN_WIDTH))
    left, right = "..." if start else "", "..." if start + _SHOWN_WIDTH < len(shown) else ""
    return f"\n  {left}{shown[start : start + _SHOWN_WIDTH]}{right}\n  {' ' * (len(left) + position - start)}^"
