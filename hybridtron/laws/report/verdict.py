"""Verdicts from `templates/verdicts`, and sentences that several laws share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hybridtron.reporting.page import render_text


def verdict(
    law: str, parameters: Mapping[str, float], intervals: Mapping[str, list[float]] | None, **facts: Any
) -> list[str]:
    """Render a law's template: a sentence, or a few that belong together, for each line.

    The template knows the parameters as `p`, their intervals as `spans` (None where there is none) and `facts`.
    """
    spans: Mapping[str, Any] = defaultdict(lambda: None, intervals or {})
    text = render_text(__package__, f"verdicts/{law}.txt.j2", p=parameters, spans=spans, **facts)
    return [line.strip() for line in text.splitlines() if line.strip()]


def moves(
    old: Mapping[str, float], new: Mapping[str, float], spans: Mapping[str, Sequence[float]]
) -> list[str]:  # fmt: skip
    """Describe the parameters whose new values lie outside their spans; none when there are no new values."""
    return [
        f"{name} {old[name]:.4g} -> {new[name]:.4g}"
        for name, (low, high) in spans.items()
        if new and not low <= new[name] <= high
    ]
