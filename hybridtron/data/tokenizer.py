"""Tokenizers: raw bytes, or a Hugging Face tokenizer.json."""

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hybridtron.data.indexed_format import looked_in
from hybridtron.data.unreachable import UNREACHABLE, make_unreachable, token_names
from hybridtron.data.windows import encode_in_windows
from hybridtron.errors import UserError
from hybridtron.files import read_object, replace_file

if TYPE_CHECKING:
    from tokenizers import Encoding

FILE_NAME, CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
# What published tokenizers call the end of a document, most telling first.
END_OF_DOCUMENT_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<EOS>",
    "[EOS]",
    "<|eos|>",
    "<｜end▁of▁sentence｜>",
)


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


class ByteTokenizer:
    """Ids 0-255 are the bytes of UTF-8 text, 256 is the end of a document."""

    name = "byte"
    fingerprint = "byte-257"
    vocab_size = 257
    eod = 256

    def encode(self, text: str) -> np.ndarray:
        return self.encode_bytes(text.encode("utf-8"))

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        return map(self.encode, pieces)

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Encode bytes as they are, UTF-8 or not."""
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        # A model whose vocabulary is padded can emit ids past 256; they stand for no byte either.
        return bytes(i for i in map(int, ids) if i < 256).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write nothing: `byte` needs no file."""


class HuggingFaceTokenizer:
    """A `tokenizer.json` of the `tokenizers` library.

    Text is only ever text: names of special tokens inside it are encoded like other characters, and no text gives the
    end-of-document token, so that a document cannot end itself. The file's own truncation and padding are switched off.

    `eod_token` names the end-of-document token; without it the `eos_token` of a tokenizer_config.json beside the file
    is taken, then the first of END_OF_DOCUMENT_NAMES in the vocabulary. Raises UserError where there is none.
    """

    def __init__(self, path: Path, eod_token: str | None = None, key: str = "data.tokenizer"):
        from tokenizers import Tokenizer as Backend

        try:
            content = path.read_bytes()
            self.text = content.decode()
            config = json.loads(content)
            beside = read_object(path.with_name(CONFIG_NAME))
            self.eod_name = _end_of_document(path, token_names(config), eod_token, beside, key)
            self._backend = Backend.from_str(json.dumps(make_unreachable(config, self.eod_name)))
        except OSError as error:
            raise UserError(f"{key} = {path}: cannot be read: {error.strerror}") from None
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception for a file that it cannot parse
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{key} = {path}: is not a tokenizer.json of the tokenizers library: {reason}") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1  # ids may have holes
        self.eod = vocabulary[UNREACHABLE]
        of_path = path.parent.name if path.name == FILE_NAME and path.parent.name else path.stem
        self.name = str(beside.get("name_or_path") or of_path)
        self.fingerprint = f"{hashlib.sha256(content).hexdigest()[:32]}-{self.eod}"

    def encode(self, text: str) -> np.ndarray:
        return self._without_eod(np.array(self._encoding(text).ids, dtype=np.int32))

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        return map(self._without_eod, encode_in_windows(self._encoding, pieces))

    def _encoding(self, text: str) -> "Encoding":
        return self._backend.encode(text, add_special_tokens=False)

    def _without_eod(self, ids: np.ndarray) -> np.ndarray:
        if (ids == self.eod).any():
            raise UserError(
                f"tokenizer {self.name}: text becomes the end-of-document token {self.eod}, which stands for unknown "
                "text; expected another eod_token"
            )
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        kept = [i for i in map(int, ids) if i != self.eod and i < self.vocab_size]
        return self._backend.decode(kept, skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and, with the end-of-document token and the name, tokenizer_config.json."""
        replace_file(folder / FILE_NAME, self.text)
        config = {"eos_token": self.eod_name, "name_or_path": self.name}
        replace_file(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")


def load(spec: str, eod_token: str | None = None, key: str = "data.tokenizer") -> Tokenizer:
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


def _end_of_document(
    path: Path, vocabulary: Container[str], eod_token: str | None, beside: Mapping[str, Any], key: str
) -> str:
    """Return the name of the end-of-document token. Raises UserError where there is none."""
    if eod_token is not None:
        if eod_token not in vocabulary:
            raise UserError(f"eod_token = {eod_token}: is not in the vocabulary of {path}")
        return eod_token
    token = beside.get("eos_token")
    configured = token.get("content") if isinstance(token, dict) else token  # either of its two spellings
    for name in (configured, *END_OF_DOCUMENT_NAMES):
        if name is not None and name in vocabulary:
            return name
    raise UserError(
        f"{key} = {path}: has no end-of-document token (looked for {' '.join(END_OF_DOCUMENT_NAMES)}); name it with "
        "eod_token of the prepared corpus, and as eos_token in a tokenizer_config.json beside it"
    )
