"""Our tokenizers as tokenizers of transformers."""

from __future__ import annotations

import json

from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from hybridtron.convert.tokenizer import END_OF_DOCUMENT, byte_tokenizer
from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.data.tokenizers.hugging_face import HuggingFaceTokenizer


def as_transformers(tokenizer: ByteTokenizer | HuggingFaceTokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer of transformers with the same ids, whose end-of-sequence token is the end of a document."""
    if isinstance(tokenizer, ByteTokenizer):
        content, end = json.dumps(byte_tokenizer()), END_OF_DOCUMENT
    else:
        content, end = tokenizer.text, tokenizer.eod_name
    return PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(content), eos_token=end, pad_token=end)
