"""Tokenizers and generation settings of a Hugging Face folder, from those of a run and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.data.tokenizers.hugging_face import CONFIG_NAME, FILE_NAME, HuggingFaceTokenizer
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import UserError
from hybridtron.files import read_object, read_plain
from hybridtron.training.config import RunConfig

GENERATION = "generation_config.json"
END_OF_DOCUMENT = "<|endoftext|>"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def byte_tokenizer() -> dict[str, Any]:
    """Return our byte tokenizer as a tokenizer.json: ids 0-255 are bytes, 256 is the end of a document."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ByteTokenizer.eod, "content": END_OF_DOCUMENT, **flags}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letters[byte]: byte for byte in range(256)} | {END_OF_DOCUMENT: ByteTokenizer.eod},
            "merges": [],
        },
    }


def their_files(config: RunConfig, folder: Path) -> dict[str, bytes]:
    """Return the files of tokenizer and generation for a Hugging Face folder, by name, from those of a run folder."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        file = Path(config.data.tokenizer)
        file = file / FILE_NAME if file.is_dir() else file
        content, settings = read_plain(file), read_object(file.with_name(CONFIG_NAME))
        settings.setdefault("eos_token", tokenizer.eod_name)
    else:
        content = _json(byte_tokenizer())
        settings = {"eos_token": END_OF_DOCUMENT, "bos_token": END_OF_DOCUMENT, "split_special_tokens": True}
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    generation = read_object(folder / GENERATION) or {"bos_token_id": tokenizer.eod, "eos_token_id": tokenizer.eod}
    return {FILE_NAME: content, CONFIG_NAME: _json(settings), GENERATION: _json(generation)}


def our_files(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of the tokenizer for a run folder, by name, from a Hugging Face folder, and notes on them.

    `settings` are those of its config.json. Without a tokenizer.json the run has the byte tokenizer. Raises UserError
    for one that is damaged, or has no end-of-document token.
    """
    generation = read_object(folder / GENERATION) or {key: settings[key] for key in IDS if key in settings}
    files = {GENERATION: _json(generation)}
    file = folder / FILE_NAME
    if not file.exists():
        return files, [f"{folder}: has no {FILE_NAME}; the run gets the byte tokenizer"]
    content, own = read_plain(file), read_object(folder / CONFIG_NAME)
    try:
        vocabulary = json.loads(content)
    except (ValueError, RecursionError):
        raise UserError(f"{file}: damaged: is no JSON") from None
    if vocabulary == byte_tokenizer():
        return files, []
    name = None if own.get("eos_token") else _name_of(vocabulary, generation.get("eos_token_id"))
    tokenizer = HuggingFaceTokenizer(file, name, "tokenizer")
    if name is not None:
        own["eos_token"] = name
    vocabulary_size, rows = tokenizer.vocab_size, settings.get("vocab_size")
    notes = (
        [f"{file}: has {vocabulary_size:,} tokens, and the model {rows:,}"] if _is_more(vocabulary_size, rows) else []
    )
    return {**files, FILE_NAME: content, CONFIG_NAME: _json(own)}, notes


def _is_more(tokens: int, rows: object) -> bool:
    return isinstance(rows, int) and tokens > rows


def _name_of(vocabulary: Any, wanted: Any) -> str | None:
    """Return the name of the added token with an id, or with the first of several."""
    first = wanted[0] if isinstance(wanted, list) and wanted else wanted
    added = vocabulary.get("added_tokens") if isinstance(vocabulary, dict) else None
    return next((str(token["content"]) for token in added or () if token.get("id") == first), None)


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
