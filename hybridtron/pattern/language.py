"""The native pattern language."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hybridtron.pattern.errors import fail, read_count, require_known, require_size
from hybridtron.pattern.pattern import NAME, Pattern

Entry = tuple[str, int]  # a block name or "|", and its position in the text
_TOKEN = re.compile(rf"(?P<count>[0-9]+)(?P<times>\s*\*)?|(?P<name>{NAME.pattern})|(?P<sign>[*()|])")


def parse(text: str, known_names: Iterable[str] | None = None) -> Pattern:
    """Read the pattern language. With `known_names`, every block name must be one of them.

    Raises PatternError for anything malformed, unknown, or above 100,000 layers.
    """
    entries = _expand(text, None if known_names is None else list(known_names))
    return from_entries(text, entries)


@dataclass
class _Group:
    """A group being read: how often it repeats, where it opened, what it holds so far."""

    count: int
    position: int
    entries: list[Entry] = field(default_factory=list)


def _expand(text: str, known: list[str] | None) -> list[Entry]:
    """Return every layer and cut of `text` in order, with groups and counts unrolled."""
    tokens = _tokens(text)
    groups = [_Group(1, 0)]
    count, counted = 1, None  # the product of the counts read before the next item, and the last of them
    for index, token in enumerate(tokens):
        word, position = token["count"] or token[0], token.start()
        following = tokens[index + 1] if index + 1 < len(tokens) else None
        before = tokens[index - 1] if index else None
        if word == "*":
            if before and before["name"] and following and following["count"]:
                fail("the count comes before the block", text, position, f"{following['count']}*{before[0]}")
            fail("'*' without a count before it", text, position, "a count, as in 4*attn")
        if before and word not in ("|", ")") and before.end() == position and (before[0] == ")" or before["name"]):
            fail("items run together", text, position, "a blank between them")
        if token["count"]:
            repeats = read_count(word, text, position)
            if not token["times"]:
                example = following[0].replace("(", "(...)") if following and following[0] not in "|)" else "attn"
                fail(f"count {word} without '*'", text, position, f"{word}*{example}")
            count, counted = count * repeats, token
            require_size(count, text, position)
            continue
        if counted and word in ("|", ")"):
            fail(f"count {counted['count']} has no block", text, counted.start(), "a block name or '(' after '*'")
        group = groups[-1]
        if word == "(":
            groups.append(_Group(count, position))
        elif word == ")":
            if len(groups) == 1:
                fail("')' without '('", text, position)
            if not group.entries:
                fail("empty group", text, group.position, "at least one layer in it")
            groups.pop()
            require_size(len(groups[-1].entries) + group.count * len(group.entries), text, group.position)
            groups[-1].entries += group.entries * group.count
        else:
            if token["name"]:
                require_known(word, known, text, position)
            require_size(len(group.entries) + count, text, position)
            group.entries += [(word, position)] * count
        count, counted = 1, None
    if counted:
        fail(f"count {counted['count']} has no block", text, counted.start(), "a block name or '(' after '*'")
    if len(groups) > 1:
        fail("'(' is never closed", text, groups[-1].position, "')'")
    return groups[0].entries


def _tokens(text: str) -> list[re.Match[str]]:
    """Split a text into counts, names and signs. Raises PatternError for any other character."""
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
            fail(f"unexpected {text[position]!r}", text, position, expected)
        tokens.append(token)
        position = token.end()
    return tokens


def from_entries(text: str, entries: Sequence[Entry]) -> Pattern:
    """Build a pattern from layers and cuts. Raises PatternError for an empty stage."""
    layers: list[str] = []
    cuts: list[int] = []
    for word, position in entries:
        if word != "|":
            layers.append(word)
        elif len(layers) == (cuts[-1] if cuts else 0):
            fail("empty pipeline stage before '|'", text, position, "at least one layer")
        else:
            cuts.append(len(layers))
    if not entries:
        fail("empty pattern", expected="at least one layer, as in 4*attn")
    if cuts and cuts[-1] == len(layers):
        fail("empty pipeline stage after '|'", text, entries[-1][1], "at least one layer")
    return Pattern(tuple(layers), tuple(cuts))
