"""What every tokenizer can do, and the one that a config names."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.data.tokenizers.hugging_face import FILE_NAME, HuggingFaceTokenizer
from hybridtron.errors import UserError
from hybridtron.files import looked_in


class Tokenizer(Protocol):
    """Text to token ids and back.

    `eod` is the id that ends every document; `fingerprint` is equal exactly where the same text gives the same ids.
    """

    name: str
    fingerprint: str
    vocab_size: int
    eod: int

    def encode(self, text: str) -> np.ndarray:
        """Encode `text` to token ids, [num_tokens], without an end-of-document id."""
        ...

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """Encode the text that `pieces` make up to the same ids, in blocks: memory does not grow with the text."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decode `ids` to text; end-of-document ids are left out."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` needs into `folder`, which then names a tokenizer of the same fingerprint."""
        ...


def load_tokenizer(spec: str, eod_token: str | None = None, key: str = "data.tokenizer") -> Tokenizer:
    """Load the tokenizer that `spec` names: `byte`, a tokenizer.json, or a folder that holds one.

    Raises UserError where it is none of these, or has no end-of-document token; `key` says where the user named it.
    """
    if spec == "byte":
        if eod_token is not None:
            raise UserError(f"eod_token = {eod_token}: expected none, since the byte tokenizer has its own (id 256)")
        return ByteTokenizer()
    path = Path(spec)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"{key} = {spec}: no such file{looked_in(path)}; expected 'byte', a path to a tokenizer.json, or a folder "
            "that holds one"
        )
    return HuggingFaceTokenizer(path, eod_token, key)
