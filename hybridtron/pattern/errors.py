"""Errors in patterns: one line, the pattern, and a caret under the place."""

from collections.abc import Mapping
from typing import NoReturn

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError

MAX_LAYERS = 100_000
_SHOWN_WIDTH = 100  # columns of a long pattern that an error shows


class PatternError(UserError, ValueError):
    """A malformed pattern. The text is one line, then the pattern and a caret under the place where that is known.

    It is a ValueError too, so that a config validator may let it pass: the config engine puts the key in front.
    """


def fail(what: str, text: str = "", position: int | None = None, expected: str = "") -> NoReturn:
    """Raise PatternError: `what` at `position` of `text`, and what was expected there."""
    place = "" if position is None else f" at column {position + 1}"
    caret = "" if position is None else _caret(text, position)
    raise PatternError(f"pattern: {what}{place}" + (f": expected {expected}" if expected else "") + caret)


def _caret(text: str, position: int) -> str:
    """Return two lines: the text, cut to a window if it is long, and a caret under `position`."""
    shown = "".join(" " if char.isspace() else char if char.isprintable() else "?" for char in text)
    start = max(0, min(position - _SHOWN_WIDTH // 2, len(shown) - _SHOWN_WIDTH))
    left, right = "..." if start else "", "..." if start + _SHOWN_WIDTH < len(shown) else ""
    return f"\n  {left}{shown[start : start + _SHOWN_WIDTH]}{right}\n  {' ' * (len(left) + position - start)}^"


def require_size(layers: int, text: str, position: int) -> None:
    """Raise PatternError above MAX_LAYERS layers."""
    if layers > MAX_LAYERS:
        fail("too many layers", text, position, f"at most {MAX_LAYERS:,} in a pattern")


def require_known(name: str, known: list[str] | None, text: str, position: int, written: str = "") -> None:
    """Raise PatternError for a block that is not among `known`; None allows all."""
    if known is not None and name not in known:
        expected = one_of(name, known) if known else "the name of a block, but model.blocks defines none"
        fail(f"unknown block {name!r}{written}", text, position, expected)


def legend(names: Mapping[str, str]) -> str:
    """Return `one of M (mamba), ...` for a dialect's symbols."""
    return "one of " + ", ".join(f"{symbol} ({name})" for symbol, name in names.items())


def read_count(digits: str, text: str, position: int) -> int:
    """Return the repeat count that `digits` write. Raises PatternError for 0 and too large ones."""
    digits = digits.lstrip("0")
    if not digits:
        fail("count 0", text, position, "at least 1")
    require_size(int(digits[:9]), text, position)  # enough digits to be too many
    return int(digits)
