"""The unit of preparation: some consecutive input, encoded into a folder that appears at once or not at all."""

import base64
import codecs
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from hybridtron.data.datasets.indexed_dataset import MAX_DOCUMENT_TOKENS, token_dtype
from hybridtron.data.preprocessing.documents import DamagedArchive, DamagedLine, LongLine, parse_document, read_lines
from hybridtron.data.preprocessing.long_lines import read_long_document
from hybridtron.data.preprocessing.sources import Source, source_of
from hybridtron.data.preprocessing.text import DocumentText, TextFile
from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from hybridtron.errors import UserError
from hybridtron.files import replace_file

MAX_PIECES = 4096  # bounds a shard of many tiny files
REPORTED_BYTES = 1 << 20  # of input between two reports of progress
KEPT_BYTES = 1 << 20  # of a long damaged line
# One record of documents.bin; `line` is 1-based in the piece, 0 for a whole file.
DOCUMENT = np.dtype([("tokens", "<i4"), ("bytes", "<i8"), ("piece", "<i4"), ("line", "<i8")])


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
    """Counts of one piece. `tokens` include the end of each document, `bytes` are those of the text alone."""

    source_index: int
    lines: int = 0
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
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
    """A finished shard."""

    folder: Path
    documents: np.ndarray  # [n] DOCUMENT
    counts: list[PieceCounts]

    def damaged(self) -> Iterator[dict[str, Any]]:
        """Yield the damaged lines: `piece`, `line`, `reason`, `raw_base64`."""
        with (self.folder / "damaged.jsonl").open(encoding="ascii") as file:
            for line in file:
                yield json.loads(line)


def load_shard(folder: Path) -> Shard:
    """Load a shard that write_shard finished."""
    counts = [PieceCounts(**entry) for entry in json.loads((folder / "counts.json").read_text())]
    return Shard(folder, np.fromfile(folder / "documents.bin", DOCUMENT), counts)


def is_finished(folder: Path, dtype: np.dtype) -> bool:
    """Return True where `folder` holds a whole shard; remove one that lost data, as by a power failure."""
    if not folder.is_dir():
        return False
    try:
        shard = load_shard(folder)
        tokens = int(shard.documents["tokens"].sum(dtype=np.int64))
        whole = (folder / "tokens.bin").stat().st_size == tokens * dtype.itemsize
        whole &= tokens == sum(piece.tokens for piece in shard.counts)
        whole &= sum(piece.damaged for piece in shard.counts) == sum(1 for _ in shard.damaged())
    except (OSError, ValueError, TypeError):
        whole = False
    if not whole:
        shutil.rmtree(folder)
    return whole


@functools.lru_cache(maxsize=1)
def _tokenizer(spec: str, eod_token: str | None, fingerprint: str) -> Tokenizer:
    """Load the tokenizer, once per process; with the fingerprint, a file that changes meanwhile is an error."""
    loaded = load_tokenizer(spec, eod_token)
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
    """Encode the documents of `task` into `work_folder / task.name`, which is complete once it exists.

    `on_bytes` is called with the bytes of input read since its last call. Raises UserError where the input cannot be
    read or has changed, OSError where the shard cannot be written.
    """
    tokenizer = _tokenizer(tokenizer_spec, eod_token, fingerprint)
    temporary = work_folder / f"{task.name}.writing-{os.getpid()}"
    temporary.mkdir()
    read = 0

    def on_read(num_bytes: int) -> None:
        nonlocal read
        read += num_bytes
        if read >= REPORTED_BYTES:
            on_bytes(read)
            read = 0

    try:
        with (
            (temporary / "tokens.bin").open("wb") as tokens,
            (temporary / "documents.bin").open("wb") as documents,
            (temporary / "damaged.jsonl").open("w") as damaged,
        ):
            writer = _ShardWriter(tokenizer, json_key, temporary, tokens, documents, damaged)
            for piece in task.pieces:
                writer.add(piece, on_read)
            for file in (tokens, documents, damaged):
                file.flush()
                os.fsync(file.fileno())
        replace_file(temporary / "counts.json", json.dumps([asdict(counts) for counts in writer.counts]))
        os.rename(temporary, work_folder / task.name)
    except OSError:
        if not (work_folder / task.name).is_dir():  # else another process was quicker, with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    on_bytes(read)


@dataclass
class _ShardWriter:
    tokenizer: Tokenizer
    json_key: str
    folder: Path
    tokens: IO[bytes]
    documents: IO[bytes]
    damaged: IO[str]
    counts: list[PieceCounts] = field(default_factory=list)

    def add(self, piece: Piece, on_bytes: Callable[[int], None]) -> None:
        """Encode the documents of one piece."""
        source = piece.source
        self.counts.append(PieceCounts(piece.source_index))
        _require_unchanged(source)
        if source.is_jsonl:
            self._add_lines(piece, on_bytes)
        else:
            file = TextFile(source.path, on_bytes)
            self._add_document(_readable(source, file.blocks()), 0, source)
            self.counts[-1].repaired += file.repaired
        _require_unchanged(source)

    def _add_lines(self, piece: Piece, on_bytes: Callable[[int], None]) -> None:
        source, counts = piece.source, self.counts[-1]
        lines = read_lines(source.path, piece.start, piece.end, on_bytes, self.folder)
        try:
            for line in _readable(source, lines):
                counts.lines += 1
                if piece.start == 0 and counts.lines == 1:
                    line = _without_mark(line)
                if not (isinstance(line, bytes) and not line.strip()):
                    self._add_line(line, source)
        except DamagedArchive as damage:
            counts.lines += 1
            try:
                if damage.rest:
                    self._document_of(damage.rest, source)
                    damage.rest = b""
            except DamagedLine:
                pass
            self._report(str(damage), damage.rest)

    def _add_line(self, line: bytes | LongLine, source: Source) -> None:
        try:
            self._document_of(line, source)
        except DamagedLine as damage:
            self._report(str(damage), line)

    def _document_of(self, line: bytes | LongLine, source: Source) -> None:
        if isinstance(line, LongLine):
            blocks = read_long_document(line, self.json_key)
        else:  # JSON can name half a surrogate pair, which is no character
            blocks = iter([parse_document(line, self.json_key).encode("utf-8", "surrogatepass")])
        self._add_document(blocks, self.counts[-1].lines, source)

    def _add_document(self, blocks: Iterator[bytes], line: int, source: Source) -> None:
        """Write the tokens of one document, or nothing where it is empty or, as DamagedLine says, damaged."""
        counts, text = self.counts[-1], DocumentText(blocks)
        dtype, begin, num_tokens = token_dtype(self.tokenizer.vocab_size), self.tokens.tell(), 1
        if isinstance(self.tokenizer, ByteTokenizer) and not source.is_jsonl:
            encoded: Iterator[np.ndarray] = map(self.tokenizer.encode_bytes, text.blocks())  # UTF-8 or not
        else:
            encoded = self.tokenizer.encode_pieces(text.pieces())
        try:
            for ids in encoded:
                self.tokens.write(ids.astype(dtype).tobytes())
                num_tokens += len(ids)
                if num_tokens > MAX_DOCUMENT_TOKENS:
                    most = f"the format holds at most {MAX_DOCUMENT_TOKENS} tokens"
                    raise UserError(f"{source.path}: a document is too long: {most}")
        except DamagedLine:
            self.tokens.seek(begin)
            self.tokens.truncate()
            raise
        if text.num_bytes == 0:
            counts.empty += 1
            return
        self.tokens.write(dtype.type(self.tokenizer.eod).tobytes())
        self.documents.write(np.array((num_tokens, text.num_bytes, len(self.counts) - 1, line), DOCUMENT).tobytes())
        counts.documents += 1
        counts.tokens += num_tokens
        counts.bytes += text.num_bytes
        counts.repaired += text.repaired

    def _report(self, reason: str, raw: bytes | LongLine) -> None:
        """Note a damaged line with its bytes, of a long one the first KEPT_BYTES."""
        counts = self.counts[-1]
        counts.damaged += 1
        entry: dict[str, Any] = {"piece": len(self.counts) - 1, "line": counts.lines, "reason": reason}
        if isinstance(raw, LongLine):
            entry["raw_bytes"] = raw.end - raw.start
            raw = raw.read(raw.start, KEPT_BYTES)
        self.damaged.write(json.dumps({**entry, "raw_base64": base64.b64encode(raw).decode("ascii")}) + "\n")


Read = TypeVar("Read")


def _readable(source: Source, content: Iterator[Read]) -> Iterator[Read]:
    """Yield what is read from a source. Raises UserError where that fails."""
    try:
        yield from content
    except OSError as error:
        raise UserError(f"cannot read {source.path}: {error.strerror}") from None


def _require_unchanged(source: Source) -> None:
    """Raise UserError where the file is gone, or other than it was when it was listed."""
    found = source_of(source.path, source.name)
    if (found.size, found.modified_ns) != (source.size, source.modified_ns):
        raise UserError(f"{source.path} has changed since it was listed; expected files that stay as they are")


def _without_mark(line: bytes | LongLine) -> bytes | LongLine:
    """Return the first line of a file without the byte order mark that some editors write."""
    if isinstance(line, bytes):
        return line.removeprefix(codecs.BOM_UTF8)
    is_marked = line.read(line.start, len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    return replace(line, start=line.start + len(codecs.BOM_UTF8) * is_marked)
