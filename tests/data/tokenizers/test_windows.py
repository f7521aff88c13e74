"""Long text in windows has the ids of the whole, with every kind of tokenizer."""

import random

import numpy as np
import pytest

from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.data.tokenizers.windows import encode_in_windows
from tests.data.kinds import KINDS, SENTENCES, byte_level_bpe, saved, sentencepiece_bpe


def texts():
    """Ordinary text; runs without a boundary; words of one letter, spaces and lines; nothing."""
    rng = random.Random(3)
    yield "".join(rng.choices(SENTENCES, k=300))
    yield "".join(rng.choices([*SENTENCES, "a" * 900, " " * 700, "\n" * 400, "ab" * 500, "1" * 300, "🙂é"], k=150))
    yield "".join(rng.choices("aabb  c\n</s>.,éれ🙂", k=9000))
    yield ""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_windows_give_the_ids_of_the_whole(kind, tmp_path):
    tokenizer = load_tokenizer(str(saved(kind(), tmp_path)))
    longest = []

    def encoding(text):
        longest.append(len(text))
        return tokenizer._encoding(text)

    for text in texts():
        pieces = [text[start : start + 333] for start in range(0, len(text), 333)]
        for window, overlap in ((1000, 100), (3000, 400)):
            parts = list(encode_in_windows(encoding, pieces, window, overlap))
            assert np.concatenate(parts).tolist() == tokenizer.encode(text).tolist()
    assert len(longest) > 20


@pytest.mark.parametrize("kind", [byte_level_bpe, sentencepiece_bpe], ids=lambda kind: kind.__name__)
def test_windows_stay_short_where_text_has_boundaries(kind, tmp_path):
    tokenizer = load_tokenizer(str(saved(kind(), tmp_path)))
    longest = 0

    def encoding(text):
        nonlocal longest
        longest = max(longest, len(text))
        return tokenizer._encoding(text)

    pieces = [random.Random(number).choice(SENTENCES) for number in range(3000)]
    found = np.concatenate(list(encode_in_windows(encoding, pieces, 4000, 600)))
    assert longest < 5000
    assert found.tolist() == tokenizer.encode("".join(pieces)).tolist()
