"""Presets, and that rows of earlier runs are still recognised."""

from __future__ import annotations

from hybridtron.mad.training.presets import PRESETS


def test_fingerprints_are_those_that_recorded_rows_have():
    """They change with the procedure alone; rows and searches on disk hold them."""
    assert {name: preset.fingerprint() for name, preset in PRESETS.items()} == {
        "paper": "e3ce85b6f65b",
        "madlab": "2f34ef19915b",
        "madlab-2024-03": "4a3d8516f43a",
        "search": "84a855f9e406",
        "smoke": "743f4d45d770",
    }
