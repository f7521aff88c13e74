"""A real tokenizer file and a folder of sources of several kinds, which the tests of hybridtron.data share."""

import gzip
from pathlib import Path

import pytest
import zstandard

from tests.data.corpora import document, write_jsonl

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Pack my box with five dozen liquor jugs.",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.",
    "ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "いろはにほへと ちりぬるを",
]


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer.json with 400 tokens, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 10, trainer)
    tokenizer.enable_truncation(8)  # must not cut documents
    tokenizer.enable_padding(pad_token="<pad>", pad_id=1, length=16)  # must not lengthen them
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def mixed(tmp_path):
    """Two text files, plain and compressed lines, and a file of another kind."""
    folder = tmp_path / "in"
    (folder / "books").mkdir(parents=True)
    (folder / "books" / "one.txt").write_text("first\nbook")
    (folder / "books" / "two.txt").write_text("second\nbook")
    (folder / "cover.png").write_bytes(b"\x89PNG")
    write_jsonl(folder / "a.jsonl", [document(i) for i in range(40)])
    plain = write_jsonl(tmp_path / "lines", [document(i) for i in range(100, 140)]).read_bytes()
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    plain = write_jsonl(tmp_path / "lines", [document(i) for i in range(200, 240)]).read_bytes()
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(plain))
    return folder
