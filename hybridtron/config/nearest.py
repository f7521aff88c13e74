"""The nearest right name for a wrong one."""

import difflib
from collections.abc import Iterable


def nearest(wrong: str, choices: Iterable[str]) -> str | None:
    """Return the choice most like `wrong`, letter case aside; None if none is close."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(wrong.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def one_of(wrong: object, choices: Iterable[str]) -> str:
    """Return `one of a, b (nearest: a)`, to follow the word "expected"."""
    choices = list(choices)
    close = nearest(wrong, choices) if isinstance(wrong, str) else None
    listed = f"one of {', '.join(choices)}" if len(choices) > 1 else "".join(choices) or "nothing"
    return listed + (f" (nearest: {close})" if close and len(choices) > 1 else "")
