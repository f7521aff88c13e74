"""Presets, and that rows of earlier runs are still recognised."""

from __future__ import annotations

from hybridtron.mad.training.presets import PRESETS


def test_fingerprints_are_those_that_recorded_rows_have():
    """They change with the procedure alone; rows and searches on disk hold them."""
    assert {name: preset.fingerprint() for name, preset in PRESETS.items()} == {
        "paper": "01771d89a98a",
        "madlab": "2d1045b48c97",
        "search": "6dd04b5ea6d3",
        "smoke": "f70b393d7168",
    }
