"""The last lines of a run."""

from pathlib import Path

import pytest

from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.summary import print_summary


@pytest.mark.parametrize(
    ("bigram", "compared"),
    [(2.5, "2.500"), (None, "not fitted to vocabularies above 1,024 tokens, whose pairs are too rare")],
)
def test_a_missing_bigram_model_says_why(bigram, compared):
    lines = []
    summary = {"valid_bits_per_byte": 1.25, "bigram_bits_per_byte": bigram}
    print_summary(summary, RunFolder(Path("run")), lines.append)
    assert lines[0] == f"held-out text: 1.250 bits per byte; a bigram model of the same training text: {compared}"


def test_without_held_out_text_there_is_nothing_to_compare():
    lines = []
    print_summary({"valid_bits_per_byte": None, "bigram_bits_per_byte": None}, RunFolder(Path("run")), lines.append)
    assert len(lines) == 1
