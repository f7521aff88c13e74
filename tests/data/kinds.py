"""Tokenizers of every kind, small, with their end-of-document token within reach of text."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog. ",
    "Pack my box with five dozen liquor jugs, 12345 of them!\n",
    "Zwölf Boxkämpfer jagen Viktor </s> quer über den Sylter Deich.\n\n",
    "ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "いろはにほへと ちりぬるを",
]
EOD = "</s>"


def _words(size: int = 60) -> dict[str, int]:
    words = sorted({word for sentence in SENTENCES for word in sentence.split()} - {EOD})[:size]
    return {word: number for number, word in enumerate(["[UNK]", EOD, *words])}


def byte_level_bpe() -> Tokenizer:
    """GPT-2's kind, whose end-of-document token was added as an ordinary one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES * 10, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_tokens([AddedToken(EOD, special=False)])
    return tokenizer


def bpe_that_merges_to_it() -> Tokenizer:
    """Byte-level BPE that met its end-of-document token as text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [*SENTENCES, f"{EOD} {EOD} {EOD}"] * 10
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    assert EOD in tokenizer.get_vocab()
    return tokenizer


def bpe_that_ignores_merges() -> Tokenizer:
    """Llama 3's kind: a word of the vocabulary is one token, whatever the merges."""
    config = json.loads(bpe_that_merges_to_it().to_str())
    config["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(config))


def sentencepiece_bpe() -> Tokenizer:
    """Llama 2's kind: the whole text is one word, unknown characters are bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", EOD, *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = [text.replace(EOD, "") for text in SENTENCES[:3]]
    tokenizer.train_from_iterator(
        texts * 10, trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    )
    config = json.loads(tokenizer.to_str())
    config["added_tokens"] = [token for token in config["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(config))


def unigram() -> Tokenizer:
    """T5's kind, with its end-of-document token as a piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        SENTENCES * 10, trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", show_progress=False)
    )
    config = json.loads(tokenizer.to_str())
    config["model"]["vocab"].insert(1, [EOD, 0.0])
    config["model"]["unk_id"] = next(i for i, (piece, _) in enumerate(config["model"]["vocab"]) if piece == "<unk>")
    return Tokenizer.from_str(json.dumps(config))


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(_words(), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def word_piece() -> Tokenizer:
    pieces = {"##" + char: None for sentence in SENTENCES for char in sentence if not char.isspace()}
    starts = {char.removeprefix("##"): None for char in pieces}
    vocabulary = {**_words(), **{piece: 1000 + i for i, piece in enumerate([*pieces, *starts])}}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


KINDS: list[Callable[[], Tokenizer]] = [
    byte_level_bpe,
    bpe_that_merges_to_it,
    bpe_that_ignores_merges,
    sentencepiece_bpe,
    unigram,
    word_level,
    word_piece,
]


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
