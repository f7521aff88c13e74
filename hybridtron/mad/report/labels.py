"""The names of scores and tasks in tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence

from hybridtron.mad.scoring.score import Score

LABELS = {
    "in-context-recall": "in-context recall",
    "noisy-in-context-recall": "noisy recall",
    "fuzzy-in-context-recall": "fuzzy recall",
    "selective-copying": "selective copying",
    "compression": "compression",
    "memorization": "memorization",
}


def labels(scores: Sequence[Score], with_preset: bool = True) -> list[str]:
    """Return a name for each score, by default with its preset where that was changed."""
    names = [
        f"{score.architecture} ({preset_words(score)})" if with_preset and score.changes else score.architecture
        for score in scores
    ]
    return [f"{name} #{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def preset_words(score: Score) -> str:
    """Return the preset's name, with a remark where it was changed."""
    return f"{score.preset}, changed" if score.changes else score.preset
