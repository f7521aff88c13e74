"""Documents, files of them and what a prepared corpus holds, for the tests of preparation."""

import json
import os
from pathlib import Path

import numpy as np

from hybridtron.data.datasets.indexed_dataset import read_index
from hybridtron.data.tokenizers.tokenizer import load_tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg.",
    "ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία",
    "いろはにほへと ちりぬるを",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
FILES = ("train.bin", "train.idx", "valid.bin", "valid.idx", "damaged.jsonl", "sources.jsonl", "report.json")


def document(number: int) -> str:
    """Text that no other number has."""
    return f"{number}: " + " ".join(SENTENCES[(number * 7 + k) % len(SENTENCES)] for k in range(1 + number % 4))


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(documents)))
    return path


def documents_in(prefix: Path, tokenizer: str = "byte") -> list[str]:
    """The documents of a split, as megatron-core's layout divides them."""
    loaded = load_tokenizer(tokenizer)
    stream = read_index(prefix).tokens()
    ends = np.flatnonzero(stream == loaded.eod)
    assert ends[-1] == len(stream) - 1
    assert len(ends) == read_index(prefix).num_documents
    return [loaded.decode(part) for part in np.split(stream, ends[:-1] + 1)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
