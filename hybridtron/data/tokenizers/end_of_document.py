"""The end-of-document token of a tokenizer.json: found by its name, and changed so that no text gives it."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError

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
UNREACHABLE = "\uffff<end of document>\uffff"  # U+FFFF is in no text that is meant for exchange


def token_names(config: Any) -> set[str]:
    """Return the names of all tokens of a tokenizer.json, added ones included."""
    vocabulary = config["model"]["vocab"]  # Unigram: pairs of piece and score; others: ids by name
    names = {piece for piece, _ in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
    return names | {token["content"] for token in config.get("added_tokens") or ()}


def end_of_document(
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


def make_unreachable(config: Any, name: str) -> Any:
    """Rename the token `name` to UNREACHABLE, which keeps its id, and return the changed `config`.

    An added token would be found in any text, a piece of Unigram and a word of WordLevel or of BPE with ignore_merges
    where the text has it; BPE would merge up to it. The post-processor, which names tokens too and adds them to text,
    is removed.
    """
    model = config["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[UNREACHABLE if piece == name else piece, score] for piece, score in vocabulary]
    elif name in vocabulary:
        vocabulary[UNREACHABLE] = vocabulary.pop(name)
    if "merges" in model:
        pairs = ((merge, merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"])
        model["merges"] = [merge for merge, (left, right) in pairs if name not in (left, right, left + right)]
    if model.get("unk_token") == name:
        model["unk_token"] = UNREACHABLE
    for token in config.get("added_tokens") or ():
        if token["content"] == name:
            token.update(content=UNREACHABLE, special=True, normalized=False)
    config["post_processor"] = None
    return config
