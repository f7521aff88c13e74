"""The settings of a config.json of Hugging Face, of which none may be left unread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.errors import UserError


class Settings:
    """The settings of config.json, of which every one must be read, or be known to change nothing.

    A setting that nobody asks for is one that the importer does not know, and it may change results.
    """

    def __init__(self, values: Mapping[str, Any], file: str = "config.json") -> None:
        self.values = values
        self.file = file
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return a setting, or the default where it is missing or null."""
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def get_or_null(self, key: str, default: Any) -> Any:
        """Return a setting, None where it is null, or the default where it is missing."""
        self._read.add(key)
        return self.values.get(key, default)

    def need(self, key: str) -> Any:
        """Return a setting. Raises UserError where it is missing or null."""
        value = self.get(key)
        if value is None:
            raise UserError(f"{self.file}: {key} is missing")
        return value

    def need_window(self, window: int | None) -> None:
        """Raise UserError where layer_types has sliding_attention, and there is no window, as transformers does."""
        if window is None:
            raise UserError(
                f"{self.file}: sliding_window = null: expected a width, for layer_types has sliding_attention"
            )

    def require(self, key: str, *allowed: Any, default: Any = None) -> None:
        """Raise UserError unless a setting has one of these values; a missing one has the default."""
        value = self.get(key, default)
        if value not in allowed:
            expected = " or ".join(repr(each) for each in allowed)
            raise UserError(f"{self.file}: {key} = {value!r}: expected {expected}, for which there are layers here")

    def agree(self, key: str, value: Any) -> None:
        """Raise UserError where a setting that repeats what others say is there and says another thing."""
        found = self.get(key)
        if found is not None and found != value:
            raise UserError(f"{self.file}: {key} = {found!r}: expected {value!r}, as the other settings say")

    def ignore(self, *keys: str) -> None:
        """Take note of settings that change nothing here."""
        self._read.update(keys)

    def check_all_read(self) -> None:
        """Raise UserError for the first setting that nobody has read."""
        for key, value in self.values.items():
            if key not in self._read | GENERAL and value not in (None, False):
                raise UserError(f"{self.file}: {key} = {value!r}: not known for this architecture")


# Of every architecture: training, generation, and what transformers writes for itself.
GENERAL = frozenset(
    """architectures attention_dropout attn_implementation auto_map bos_token_id chunk_size_feed_forward dtype
    eos_token_id id2label initializer_range is_decoder is_encoder_decoder label2id model_type name_or_path
    output_attentions output_hidden_states pad_token_id problem_type return_dict tokenizer_class torch_dtype
    transformers_version use_cache _name_or_path max_position_embeddings pretraining_tp""".split()  # noqa: SIM905
)
