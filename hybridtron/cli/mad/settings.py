"""Settings of a task on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from hybridtron.errors import UserError


def changed_settings(words: Sequence[str]) -> dict[str, int | float]:
    """Read `key=value` words as a setting; what the keys may be is for the task to say."""
    setting: dict[str, int | float] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UserError(f"{word!r}: expected setting=value, such as vocab_size=32")
        if key in setting:
            raise UserError(f"{word!r}: {key} is given already; expected each setting once")
        try:
            setting[key] = int(value)
        except ValueError:
            try:
                setting[key] = float(value)
            except ValueError:
                raise UserError(f"{key} = {value}: expected a number") from None
    return setting
