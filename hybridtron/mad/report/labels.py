"""The names of scores, tasks and settings in tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from hybridtron.mad.scoring.score import Score
from hybridtron.mad.tasks.protocol import setting_text

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


def setting_names(settings: Mapping[str, Iterable[str]]) -> str:
    """Return the names of settings, which are given as JSON by task."""
    return "; ".join(
        f"{task} {setting_text(task, json.loads(text))}" for task, some in settings.items() for text in some
    )
