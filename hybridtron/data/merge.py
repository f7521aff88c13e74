"""Finished shards into the files of a corpus."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hybridtron.data.hashing import mix, name_key
from hybridtron.data.indexed_format import write_index
from hybridtron.data.report import NUM_LISTED, SplitReport
from hybridtron.data.shards import Shard, load_shard
from hybridtron.data.sources import SourceList

BLOCK_TOKENS = 1 << 22  # tokens in memory at once


@dataclass
class Merged:
    """What was written: per split, and for the whole."""

    splits: dict[str, SplitReport] = field(default_factory=dict)
    documents: int = 0
    empty: int = 0
    repaired: int = 0
    damaged: int = 0
    first_damaged: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _SourceCounts:
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    empty: int = 0
    repaired: int = 0
    damaged: int = 0


def merge_shards(
    folders: list[Path],
    sources: SourceList,
    dtype: np.dtype,
    valid_fraction: float,
    out: Path,
    on_bytes: Callable[[int, int], None],
) -> Merged:
    """Write train and valid .bin/.idx, sources.jsonl and damaged.jsonl of `sources` to the folder `out`.

    Whether a document is held out follows from its file's name and its line alone, unless its source says so. With two
    documents or more neither split is empty. An empty split has no files. `on_bytes(done, total)` counts bytes written.
    """
    merged = Merged()
    counts = [_SourceCounts() for _ in sources.files]
    chooser = _Chooser(sources, valid_fraction)
    total = 0
    with (out / "damaged.jsonl").open("w", encoding="ascii") as damaged:
        for shard, line_bases in _with_line_bases(folders, dtype):
            chooser.look(shard, line_bases)
            total += int(shard.lengths.sum(dtype=np.int64)) * dtype.itemsize
            _count(shard, counts)
            for entry in shard.damaged():
                piece = entry.pop("piece")
                source = sources.files[shard.counts[piece].source_index]
                listed = {"file": str(source.path), **entry, "line": entry["line"] + int(line_bases[piece])}
                damaged.write(json.dumps(listed) + "\n")
                if len(merged.first_damaged) < NUM_LISTED:
                    merged.first_damaged.append({key: listed[key] for key in ("file", "line", "reason")})
    merged.documents = chooser.num_documents
    merged.empty = sum(count.empty for count in counts)
    merged.repaired = sum(count.repaired for count in counts)
    merged.damaged = sum(count.damaged for count in counts)
    with (out / "sources.jsonl").open("w", encoding="ascii") as file:
        for source, count in zip(sources.files, counts, strict=True):
            file.write(json.dumps({"file": str(source.path), **asdict(count)}) + "\n")
        for path in sources.ignored:
            file.write(json.dumps({"file": str(path), "ignored": True}) + "\n")
    chooser.settle()
    merged.splits = _write_tokens(folders, dtype, chooser, out, lambda done: on_bytes(done, total))
    return merged


def _with_line_bases(folders: list[Path], dtype: np.dtype) -> Iterator[tuple[Shard, np.ndarray]]:
    """Yield every shard with the number of lines before each of its pieces in their sources, [num_pieces] int64."""
    source, lines = -1, 0
    for folder in folders:
        shard = load_shard(folder, dtype)
        bases = np.zeros(len(shard.counts), np.int64)
        for i, counts in enumerate(shard.counts):
            if counts.source_index != source:
                source, lines = counts.source_index, 0
            bases[i] = lines
            lines += counts.lines
        yield shard, bases


def _count(shard: Shard, counts: list[_SourceCounts]) -> None:
    size = len(shard.counts)
    documents = np.bincount(shard.pieces, minlength=size)
    # float64 sums are exact up to 2^53
    tokens = np.bincount(shard.pieces, weights=shard.lengths, minlength=size)
    text_bytes = np.bincount(shard.pieces, weights=shard.text_bytes, minlength=size)
    for i, piece in enumerate(shard.counts):
        entry = counts[piece.source_index]
        entry.documents += int(documents[i])
        entry.tokens += int(tokens[i])
        entry.bytes += int(text_bytes[i])
        entry.empty += piece.empty
        entry.repaired += piece.repaired
        entry.damaged += piece.damaged


class _Chooser:
    """Decides which documents are held out: looks at all shards once, is settled, then answers in the same order."""

    def __init__(self, sources: SourceList, valid_fraction: float):
        self._names = np.array([name_key(source.name) for source in sources.files], dtype=np.uint64)
        self._chosen = np.array([{"train": 0, "valid": 1}.get(source.split or "", -1) for source in sources.files])
        self._threshold = np.uint64(min(int(valid_fraction * 2.0**64), 2**64 - 1))
        self._draws = valid_fraction > 0
        self.num_documents = 0
        self._num_valid = 0
        self._num_drawn = 0
        self._lowest = (2**64, -1)  # key and number of the drawn document nearest to being held out
        self._highest = (-1, -1)
        self._changed: tuple[int, bool] | None = None
        self._position = 0

    def look(self, shard: Shard, line_bases: np.ndarray) -> None:
        keys, drawn = self._keys(shard, line_bases)
        self._num_valid += int(self._held_out(shard, line_bases).sum())
        for i in np.flatnonzero(drawn)[[np.argmin(keys[drawn]), np.argmax(keys[drawn])]] if drawn.any() else ():
            candidate = (int(keys[i]), self.num_documents + int(i))
            self._lowest, self._highest = min(self._lowest, candidate), max(self._highest, candidate)
        self._num_drawn += int(drawn.sum())
        self.num_documents += len(shard.lengths)

    def settle(self) -> None:
        """Move one document where a split would stay empty."""
        if self._draws and self._num_drawn > 0 and self.num_documents >= 2:
            if self._num_valid == 0:
                self._changed = (self._lowest[1], True)
            elif self._num_valid == self.num_documents:
                self._changed = (self._highest[1], False)

    def choose(self, shard: Shard, line_bases: np.ndarray) -> np.ndarray:
        """Choose the documents of the next shard that are held out, [n] bool."""
        held_out = self._held_out(shard, line_bases)
        if self._changed is not None and 0 <= self._changed[0] - self._position < len(held_out):
            held_out[self._changed[0] - self._position] = self._changed[1]
        self._position += len(held_out)
        return held_out

    def _keys(self, shard: Shard, line_bases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each document its pseudo-random key [n] uint64, and whether it can be drawn [n] bool."""
        source = np.array([piece.source_index for piece in shard.counts], np.int64)[shard.pieces]
        lines = shard.lines + line_bases[shard.pieces]
        return mix(self._names[source] ^ mix(lines.astype(np.uint64))), self._chosen[source] < 0

    def _held_out(self, shard: Shard, line_bases: np.ndarray) -> np.ndarray:
        keys, drawn = self._keys(shard, line_bases)
        source = np.array([piece.source_index for piece in shard.counts], np.int64)[shard.pieces]
        return np.where(drawn, self._draws & (keys < self._threshold), self._chosen[source] == 1)


def _write_tokens(
    folders: list[Path], dtype: np.dtype, chooser: _Chooser, out: Path, on_bytes: Callable[[int], None]
) -> dict[str, SplitReport]:
    names = ("train", "valid")
    lengths: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int32)] for name in names}
    text_bytes = dict.fromkeys(names, 0)
    done = 0
    with (out / "train.bin").open("wb") as train, (out / "valid.bin").open("wb") as valid:
        for shard, line_bases in _with_line_bases(folders, dtype):
            held_out = chooser.choose(shard, line_bases)
            for name, chosen in (("train", ~held_out), ("valid", held_out)):
                lengths[name].append(shard.lengths[chosen])
                text_bytes[name] += int(shard.text_bytes[chosen].sum())
            tokens = shard.tokens()
            ends = np.cumsum(shard.lengths, dtype=np.int64)
            document = 0
            while document < len(ends):
                first = int(ends[document]) - int(shard.lengths[document])
                # at least one document, however long
                stop = max(document + 1, int(np.searchsorted(ends, first + BLOCK_TOKENS, side="right")))
                block = tokens[first : int(ends[stop - 1])]
                is_valid = np.repeat(held_out[document:stop], shard.lengths[document:stop])
                valid.write(block[is_valid].tobytes())
                train.write(block[~is_valid].tobytes())
                document, done = stop, done + block.nbytes
                on_bytes(done)
        for file in (train, valid):
            file.flush()
            os.fsync(file.fileno())
    splits = {}
    for name in names:
        all_lengths = np.concatenate(lengths[name])
        if len(all_lengths) == 0:
            (out / f"{name}.bin").unlink()
            continue
        write_index(out / f"{name}.idx", all_lengths, dtype)
        splits[name] = SplitReport(len(all_lengths), int(all_lengths.sum(dtype=np.int64)), text_bytes[name])
    return splits
