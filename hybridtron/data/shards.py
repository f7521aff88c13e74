"""The unit of preparation: some consecutive input, encoded into a folder that appears at once or not at all."""

import base64
import functools
import json
import os
import shutil
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

    def tokens(self, dtype: np.dtype) -> np.ndarray:
        """Map the token ids of all documents, end to end."""
        path = self.folder / "tokens.bin"
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)

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
        with (
            (temporary / "tokens.bin").open("wb") as tokens,
            (temporary / "documents.bin").open("wb") as documents,
            (temporary / "damaged.jsonl").open("w") as damaged,
        ):
            writer = _ShardWriter(tokenizer, json_key, tokens, documents, damaged)
            for piece in task.pieces:
                writer.add(piece, on_bytes)
        (temporary / "counts.json").write_text(json.dumps([asdict(counts) for counts in writer.counts]))
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
    documents: IO[bytes]
    damaged: IO[str]
    counts: list[PieceCounts] = field(default_factory=list)

    def add(self, piece: Piece, on_bytes: Callable[[int], None]) -> None:
        """Encode the documents of one piece."""
        self.counts.append(PieceCounts(piece.source_index))
        if piece.source.is_jsonl:
            self._add_lines(piece, on_bytes)
        else:
            data = piece.source.path.read_bytes()
            self._add_document(data, line=0, where=str(piece.source.path))
            on_bytes(len(data))

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
            rest = damage.rest
            try:
                if rest:
                    self._document_of(rest, path)
                    rest = b""
            except DamagedLine:
                pass
            self._report(str(damage), rest)

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
        counts = self.counts[-1]
        if not content:
            counts.empty += 1
            return
        num_bytes, ids, repaired = _encode(self.tokenizer, content)
        if len(ids) >= MAX_DOCUMENT_TOKENS:
            raise UserError(f"{where}: a document of {len(ids)} tokens; the format holds at most {MAX_DOCUMENT_TOKENS}")
        dtype = token_dtype(self.tokenizer.vocab_size)
        self.tokens.write(ids.astype(dtype).tobytes() + dtype.type(self.tokenizer.eod).tobytes())
        self.documents.write(np.array((len(ids) + 1, num_bytes, len(self.counts) - 1, line), DOCUMENT).tobytes())
        counts.documents += 1
        counts.tokens += len(ids) + 1
        counts.bytes += num_bytes
        counts.repaired += repaired

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
