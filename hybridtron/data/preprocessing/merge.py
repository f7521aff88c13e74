"""Finished shards into the files of a corpus."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from hybridtron.data.datasets.hashing import mix, name_key
from hybridtron.data.datasets.indexed_dataset import write_index
from hybridtron.data.preprocessing.report import NUM_LISTED, CorpusReport, SplitReport
from hybridtron.data.preprocessing.shards import PieceCounts, Shard, load_shard
from hybridtron.data.preprocessing.sources import SourceList
from hybridtron.data.preprocessing.work_folder import FINAL_NAME
from hybridtron.files import replace_file

MERGED_NAME = "merged.json"  # in the work folder
COPIED_BYTES = 1 << 22  # of tokens in memory at once
COUNTED = [entry.name for entry in fields(PieceCounts) if entry.name not in ("source_index", "lines")]


@dataclass(frozen=True)
class Merged:
    """The state of a merge: so many shards lie whole in so many bytes of each split's .bin."""

    shards: int = 0
    train: int = 0
    valid: int = 0


def read_merged(work_folder: Path) -> Merged:
    """Read how far the merge in `work_folder` came; nothing counts of one whose files lost data."""
    try:
        merged = Merged(**json.loads((work_folder / MERGED_NAME).read_text()))
        sizes = [(work_folder / FINAL_NAME / f"{name}.bin").stat().st_size for name in ("train", "valid")]
    except (OSError, ValueError, TypeError):
        return Merged()
    return merged if sizes[0] >= merged.train and sizes[1] >= merged.valid else Merged()


def merge_shards(
    folders: list[Path],
    sources: SourceList,
    tokenizer: dict[str, Any],
    dtype: np.dtype,
    valid_fraction: float,
    work_folder: Path,
    on_bytes: Callable[[int, int], None],
) -> CorpusReport:
    """Write train and valid .bin/.idx, sources.jsonl and damaged.jsonl of `sources` to WORK_FOLDER/final.

    Whether a document is held out follows from its file's name and its line alone, unless its source says so. With two
    documents or more neither split is empty. An empty split has no files. A shard's tokens are deleted when they are
    merged; the same call continues where a killed one stopped. `tokenizer` goes into the report;
    `on_bytes(done, total)` counts bytes written.
    """
    out = work_folder / FINAL_NAME
    out.mkdir(exist_ok=True)
    counts = [dict.fromkeys(COUNTED, 0) for _ in sources.files]
    first_damaged: list[dict[str, Any]] = []
    with (out / "damaged.jsonl").open("w", encoding="ascii") as damaged:
        for shard, line_bases in _load(folders):
            for piece in shard.counts:
                for name in COUNTED:
                    counts[piece.source_index][name] += getattr(piece, name)
            for entry in shard.damaged():
                number = entry.pop("piece")
                source = sources.files[shard.counts[number].source_index]
                listed = {"file": str(source.path), **entry, "line": entry["line"] + line_bases[number]}
                damaged.write(json.dumps(listed) + "\n")
                if len(first_damaged) < NUM_LISTED:
                    first_damaged.append({key: listed[key] for key in ("file", "line", "reason")})
    with (out / "sources.jsonl").open("w", encoding="ascii") as file:
        for source, count in zip(sources.files, counts, strict=True):
            file.write(json.dumps({"file": str(source.path), **count}) + "\n")
        for path in sources.ignored:
            file.write(json.dumps({"file": str(path), "ignored": True}) + "\n")
    total = {name: sum(count[name] for count in counts) for name in COUNTED}
    held_out = _choose_held_out(folders, sources, valid_fraction)
    num_bytes = total["tokens"] * dtype.itemsize
    return CorpusReport(
        tokenizer=tokenizer,
        dtype=dtype.name,
        splits=_write_tokens(folders, dtype, held_out, work_folder, lambda done: on_bytes(done, num_bytes)),
        files=len(sources.files),
        ignored_files=len(sources.ignored),
        first_ignored=[str(path) for path in sources.ignored[:NUM_LISTED]],
        empty_documents=total["empty"],
        repaired_documents=total["repaired"],
        damaged_lines=total["damaged"],
        first_damaged=first_damaged,
    )


def _load(folders: list[Path]) -> Iterator[tuple[Shard, list[int]]]:
    """Yield every shard, its documents' lines counted from the start of the source, and the lines before each piece."""
    source, lines = -1, 0
    for folder in folders:
        shard = load_shard(folder)
        bases = []
        for piece in shard.counts:
            if piece.source_index != source:
                source, lines = piece.source_index, 0
            bases.append(lines)
            lines += piece.lines
        shard.documents["line"] += np.array(bases, np.int64)[shard.documents["piece"]]
        yield shard, bases


def _choose_held_out(folders: list[Path], sources: SourceList, valid_fraction: float) -> list[np.ndarray]:
    """Choose the documents of each shard that are held out, [num_documents] bool."""
    names = np.array([name_key(source.name) for source in sources.files], dtype=np.uint64)
    chosen = np.array([{"train": 0, "valid": 1}.get(source.split or "", -1) for source in sources.files])
    threshold = np.uint64(min(int(valid_fraction * 2.0**64), 2**64 - 1))

    def keys_and_chosen(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
        """Return each document's pseudo-random key, [n] uint64, and its split: 0, 1, or -1 where it is drawn."""
        source = np.array([piece.source_index for piece in shard.counts])[shard.documents["piece"]]
        return mix(names[source] ^ mix(shard.documents["line"].astype(np.uint64))), chosen[source]

    held_out = []
    for shard, _ in _load(folders):
        keys, split = keys_and_chosen(shard)
        held_out.append(np.where(split < 0, keys < threshold, split == 1))
    size, num_valid = sum(map(len, held_out)), sum(int(part.sum()) for part in held_out)
    if valid_fraction > 0 and size >= 2 and num_valid in (0, size):  # move the document nearest to the other split
        candidates = []
        for number, (shard, _) in enumerate(_load(folders)):
            keys, split = keys_and_chosen(shard)
            if (drawn := np.flatnonzero(split < 0)).size:
                nearest = drawn[keys[drawn].argmax() if num_valid else keys[drawn].argmin()]
                candidates.append((int(keys[nearest]), number, nearest))
        if candidates:
            _, number, i = max(candidates) if num_valid else min(candidates)
            held_out[number][i] = not num_valid
    return held_out


def _write_tokens(
    folders: list[Path], dtype: np.dtype, held_out: list[np.ndarray], work_folder: Path, on_bytes: Callable[[int], None]
) -> dict[str, SplitReport]:
    """Write both splits' files and delete those of an empty one."""
    out, merged = work_folder / FINAL_NAME, read_merged(work_folder)
    lengths = {name: [np.empty(0, np.int32)] for name in ("train", "valid")}
    num_bytes = dict.fromkeys(lengths, 0)
    with (out / "train.bin").open("ab") as train, (out / "valid.bin").open("ab") as valid:
        train.seek(train.truncate(merged.train))
        valid.seek(valid.truncate(merged.valid))
        for number, (folder, is_valid) in enumerate(zip(folders, held_out, strict=True)):
            documents = load_shard(folder).documents
            for name, chosen in (("train", ~is_valid), ("valid", is_valid)):
                lengths[name].append(documents["tokens"][chosen])
                num_bytes[name] += int(documents["bytes"][chosen].sum())
            if number >= merged.shards:
                ends = np.cumsum(documents["tokens"], dtype=np.int64) * dtype.itemsize
                _copy_tokens(folder / "tokens.bin", ends, is_valid, train, valid)
                for file in (train, valid):
                    file.flush()
                    os.fsync(file.fileno())
                state = Merged(number + 1, train.tell(), valid.tell())
                replace_file(work_folder / MERGED_NAME, json.dumps(asdict(state)))
            (folder / "tokens.bin").unlink(missing_ok=True)
            on_bytes(train.tell() + valid.tell())
    reports = {}
    for name, parts in lengths.items():
        all_lengths = np.concatenate(parts)
        if len(all_lengths) == 0:
            (out / f"{name}.bin").unlink()
            continue
        write_index(out / f"{name}.idx", all_lengths, dtype)
        reports[name] = SplitReport(len(all_lengths), int(all_lengths.sum(dtype=np.int64)), num_bytes[name])
    return reports


def _copy_tokens(path: Path, ends: np.ndarray, is_valid: np.ndarray, train: IO[bytes], valid: IO[bytes]) -> None:
    """Append the documents in `path`, which end at `ends` bytes, each to the file of its split."""
    lasts = np.flatnonzero(np.append(np.diff(is_valid), True)[: len(ends)])  # of each run of one split
    with path.open("rb") as tokens:
        for last in lasts:
            while block := tokens.read(min(COPIED_BYTES, int(ends[last]) - tokens.tell())):
                (valid if is_valid[last] else train).write(block)
