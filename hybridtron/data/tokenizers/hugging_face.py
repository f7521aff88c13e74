"""A tokenizer.json of Hugging Face's `tokenizers` library."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hybridtron.data.tokenizers.end_of_document import UNREACHABLE, end_of_document, make_unreachable, token_names
from hybridtron.data.tokenizers.windows import encode_in_windows
from hybridtron.errors import UserError
from hybridtron.files import read_object, replace_file

if TYPE_CHECKING:
    from tokenizers import Encoding

FILE_NAME, CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"


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
            self.eod_name = end_of_document(path, token_names(config), eod_token, beside, key)
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
