"""Our tokenizers as tokenizers of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hybridtron.data.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from hybridtron.data.tokenizer import HuggingFaceTokenizer

END_OF_DOCUMENT = "<|endoftext|>"  # name of the byte tokenizer's id


def as_transformers(tokenizer: ByteTokenizer | HuggingFaceTokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer of transformers with the same ids, whose end-of-sequence token is the end of a document."""
    if isinstance(tokenizer, ByteTokenizer):
        backend, end = _bytes(tokenizer.eod), END_OF_DOCUMENT
    else:
        backend, end = Backend.from_str(tokenizer.text), tokenizer.eod_name
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)


def _bytes(end: int) -> Backend:
    """Return the byte tokenizer: a token for each byte, by the letters that stand for bytes in byte-level BPE."""
    letters = {letter: byte for byte, letter in _letters().items()}
    backend = Backend(models.BPE(vocab={**letters, END_OF_DOCUMENT: end}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _letters() -> dict[int, str]:
    """Return the letter of each byte in byte-level BPE (Radford et al. 2019): its own where that is visible."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)}
