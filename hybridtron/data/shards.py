"""The unit of preparation: some consecutive input, encoded into a folder that appears at once or not at all."""

import base64
import functools
import json
import os
import shutil
import zipfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from hybridtron.data import tokenizer as tokenizers
from hybridtron.data.documents import DamagedArchive, DamagedLine, parse_document, read_lines
from hybridtron.data.indexed_format import MAX_DOCUMENT_TOKENS, token_dtype
from hybridtron.data.sources import Source
from hybridtron.errors import UserError

MAX_PIECES = 4096  # bounds a shard of many tiny files


@dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of one source; `source_index` is its position in the corpus."""

    source_index: int
    source: Source
    start: int
    end: int


@dataclass(frozen=True)
class ShardTask:
    name: str
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.end - piece.start for piece in self.pieces)


@dataclass
class PieceCounts:
    """What reading a piece met. Documents, tokens and bytes of text are kept per document, not here."""

    source_index: int
    lines: int = 0
    empty: int = 0
    repaired: int = 0
    damaged: int = 0


def plan_shards(files: list[Source], shard_bytes: int) -> list[ShardTask]:
    """Cut the corpus into shards of about `shard_bytes`; depends on the files alone."""
    groups: list[list[Piece]] = [[]]
    room = shard_bytes
    for index, source in enumerate(files):
        step = shard_bytes if source.can_be_cut else max(1, source.size)
        for start in range(0, source.size, step):
            piece = Piece(index, source, start, min(start + step, source.size))
            if groups[-1] and (room < piece.end - piece.start or len(groups[-1]) == MAX_PIECES):
                groups.append([])
                room = shard_bytes
            groups[-1].append(piece)
            room -= piece.end - piece.start
        if source.size == 0:
            groups[-1].append(Piece(index, source, 0, 0))
    return [ShardTask(f"{number:05d}", tuple(group)) for number, group in enumerate(groups) if group]


@dataclass
class Shard:
    """A finished shard. Per document: tokens, bytes of text, piece, and line (1-based in the piece; 0 = whole file)."""

    folder: Path
    dtype: np.dtype
    lengths: np.ndarray  # [n] int32
    text_bytes: np.ndarray  # [n] int64
    pieces: np.ndarray  # [n] int32
    lines: np.ndarray  # [n] int64
    counts: list[PieceCounts]

    def tokens(self) -> np.ndarray:
        path = self.folder / "tokens.bin"
        return np.memmap(path, self.dtype, "r") if path.stat().st_size else np.empty(0, self.dtype)

    def damaged(self) -> Iterator[dict[str, Any]]:
        with (self.folder / "damaged.jsonl").open(encoding="ascii") as file:
            for line in file:
                yield json.loads(line)


def load_shard(folder: Path, dtype: np.dtype) -> Shard:
    with np.load(folder / "documents.npz", allow_pickle=False) as arrays:
        values = {name: arrays[name] for name in ("lengths", "text_bytes", "pieces", "lines")}
    counts = [PieceCounts(**entry) for entry in json.loads((folder / "counts.json").read_text())]
    return Shard(folder, dtype, counts=counts, **values)


def is_finished(folder: Path, dtype: np.dtype) -> bool:
    """Return True where `folder` holds a whole shard; remove one that lost data, as by a power failure."""
    if not folder.is_dir():
        return False
    try:
        shard = load_shard(folder, dtype)
        found = (folder / "tokens.bin").stat().st_size
        if found == int(shard.lengths.sum(dtype=np.int64)) * dtype.itemsize:
            whole = sum(piece.damaged for piece in shard.counts) == sum(1 for _ in shard.damaged())
        else:
            whole = False
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        whole = False
    if not whole:
        shutil.rmtree(folder)
    return whole


@functools.lru_cache(maxsize=1)
def _tokenizer(spec: str, eod_token: str | None, fingerprint: str) -> tokenizers.Tokenizer:
    """Load the tokenizer, once per process; with the fingerprint, a file that changes meanwhile is an error."""
    loaded = tokenizers.load(spec, eod_token)
    if loaded.fingerprint != fingerprint:
        raise UserError(f"tokenizer = {spec}: changed while the corpus was being prepared")
    return loaded


def write_shard(
    task: ShardTask,
    on_bytes: Callable[[int], None],
    *,
    work_folder: Path,
    tokenizer_spec: str,
    eod_token: str | None,
    fingerprint: str,
    json_key: str,
) -> None:
    """Encode the documents of `task` into `work_folder / task.name`, which is complete once it exists."""
    tokenizer = _tokenizer(tokenizer_spec, eod_token, fingerprint)
    temporary = work_folder / f"{task.name}.writing-{os.getpid()}"
    temporary.mkdir()
    try:
        with (temporary / "tokens.bin").open("wb") as tokens, (temporary / "damaged.jsonl").open("w") as damaged:
            writer = _ShardWriter(tokenizer, json_key, tokens, damaged)
            for piece in task.pieces:
                writer.add(piece, on_bytes)
        writer.finish(temporary)
        os.rename(temporary, work_folder / task.name)
    except OSError as error:
        if (work_folder / task.name).is_dir():  # another process was quicker, with the same content
            return
        where = f" {error.filename}" if error.filename else ""
        raise UserError(f"cannot prepare shard {task.name}:{where}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class _ShardWriter:
    tokenizer: tokenizers.Tokenizer
    json_key: str
    tokens: IO[bytes]
    damaged: IO[str]
    counts: list[PieceCounts] = field(default_factory=list)
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    text_bytes: "array[int]" = field(default_factory=lambda: array("q"))
    pieces: "array[int]" = field(default_factory=lambda: array("i"))
    lines: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self, piece: Piece, on_bytes: Callable[[int], None]) -> None:
        self.counts.append(PieceCounts(piece.source_index))
        if piece.source.is_jsonl:
            self._add_lines(piece, on_bytes)
        else:
            data = piece.source.path.read_bytes()
            self._add_document(data, line=0, where=str(piece.source.path))
            on_bytes(len(data))

    def finish(self, folder: Path) -> None:
        np.savez(
            folder / "documents.npz",
            lengths=np.array(self.lengths, np.int32),
            text_bytes=np.array(self.text_bytes, np.int64),
            pieces=np.array(self.pieces, np.int32),
            lines=np.array(self.lines, np.int64),
        )
        (folder / "counts.json").write_text(json.dumps([asdict(counts) for counts in self.counts]))

    def _add_lines(self, piece: Piece, on_bytes: Callable[[int], None]) -> None:
        path, counts = piece.source.path, self.counts[-1]
        try:
            for line in read_lines(path, piece.start, piece.end, on_bytes):
                counts.lines += 1
                if piece.start == 0 and counts.lines == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write
                self._add_line(line, path)
        except DamagedArchive as damage:
            counts.lines += 1
            try:
                if damage.rest:
                    self._document_of(damage.rest, path)
                    damage.rest = b""
            except DamagedLine:
                pass
            self._report(str(damage), damage.rest)

    def _add_line(self, line: bytes, path: Path) -> None:
        if not line.strip():
            return
        try:
            self._document_of(line, path)
        except DamagedLine as damage:
            self._report(str(damage), line)

    def _document_of(self, line: bytes, path: Path) -> None:
        number = self.counts[-1].lines
        self._add_document(parse_document(line, self.json_key), line=number, where=str(path))

    def _add_document(self, content: str | bytes, line: int, where: str) -> None:
        if not content:
            self.counts[-1].empty += 1
            return
        data, ids, repaired = _encode(self.tokenizer, content)
        if len(ids) >= MAX_DOCUMENT_TOKENS:
            raise UserError(f"{where}: a document of {len(ids)} tokens; the format holds at most {MAX_DOCUMENT_TOKENS}")
        dtype = token_dtype(self.tokenizer.vocab_size)
        self.tokens.write(ids.astype(dtype).tobytes() + dtype.type(self.tokenizer.eod).tobytes())
        self.counts[-1].repaired += repaired
        self.lengths.append(len(ids) + 1)
        self.text_bytes.append(data)
        self.pieces.append(len(self.counts) - 1)
        self.lines.append(line)

    def _report(self, reason: str, raw: bytes) -> None:
        counts = self.counts[-1]
        counts.damaged += 1
        entry = {"piece": len(self.counts) - 1, "line": counts.lines, "reason": reason}
        self.damaged.write(json.dumps({**entry, "raw_base64": base64.b64encode(raw).decode("ascii")}) + "\n")


def _encode(tokenizer: tokenizers.Tokenizer, content: str | bytes) -> tuple[int, np.ndarray, bool]:
    """Return bytes of text, token ids, and whether characters that cannot be encoded were replaced by U+FFFD."""
    if isinstance(content, bytes):
        if isinstance(tokenizer, tokenizers.ByteTokenizer):
            return len(content), tokenizer.encode_bytes(content), False
        text = content.decode("utf-8", errors="replace")
        repaired = text.encode("utf-8") != content
    else:  # JSON can name half a surrogate pair, which is no character
        text = content.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
        repaired = text != content
    return len(text.encode("utf-8")), tokenizer.encode(text), repaired
