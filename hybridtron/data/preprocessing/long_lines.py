"""JSON lines that are too long for memory: the text inside, in blocks."""

import re
import secrets
from collections.abc import Iterator

from hybridtron.data.preprocessing.documents import BLOCK, LongLine, parse_document

LONG_TEXT = BLOCK  # bytes of a JSON string that is read in blocks
STRING_PART = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# Whole characters and escapes: a block may end behind each. A pair of surrogates is one character.
CHARACTERS = re.compile(
    rb"(?:[^\\\x80-\xff]++|[\xc0-\xff][\x80-\xbf]*+(?=.)|[\x80-\xbf]|\\[^u]|\\u(?![dD][89abAB])...."
    rb"|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])(?=......))*+",
    re.DOTALL,
)


def read_long_document(line: LongLine, json_key: str) -> Iterator[bytes]:
    """Yield the text under `json_key` in blocks of UTF-8; half a surrogate pair stays what it is.

    Raises DamagedLine where there is none, and behind some blocks where the text goes wrong.
    """
    mark = secrets.token_hex(16)
    skeleton, texts = _without_long_texts(line, mark)
    text = parse_document(skeleton, json_key)
    if not text.startswith(mark):
        yield text.encode("utf-8", "surrogatepass")
        return
    position, end = texts[int(text.removeprefix(mark))]
    while position < end:
        block = line.read(position, min(BLOCK, end - position))
        if position + len(block) < end:
            part = CHARACTERS.match(block)
            block = part[0] if part and part[0] else block
        position += len(block)
        yield parse_document(b'{"": "' + block + b'"}', "").encode("utf-8", "surrogatepass")


def _without_long_texts(line: LongLine, mark: str) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the line with `mark` and a number in place of each long string, and where in the file those lie."""
    skeleton, texts = bytearray(), list[tuple[int, int]]()
    begin = -1  # of the string that is being read
    kept = 0  # length of the skeleton before it
    is_long = False
    position = line.start
    while block := line.read(position, BLOCK):
        i = 0
        while i < len(block):
            if begin < 0:
                stop = block.find(b'"', i) + 1 or len(block)
                skeleton += block[i:stop]
                if block[stop - 1 : stop] == b'"':
                    begin, kept, is_long = position + stop, len(skeleton), False
            else:
                part = STRING_PART.match(block, i)
                stop = part.end() if part else i
                if stop == len(block) - 1 and block[stop:] == b"\\" and position + len(block) < line.end:
                    block = block[:stop]  # the next block begins with this escape
                is_long |= len(skeleton) + stop - i - kept > LONG_TEXT
                if is_long:
                    del skeleton[kept:]
                else:
                    skeleton += block[i:stop]
                if block[stop : stop + 1] == b'"':
                    if is_long:
                        skeleton += f"{mark}{len(texts)}".encode()
                        texts.append((begin, position + stop))
                    skeleton += b'"'
                    begin, stop = -1, stop + 1
                elif stop < len(block):  # a backslash ends the line
                    skeleton += block[stop:]
                    stop = len(block)
            i = stop
        position += len(block)
    return bytes(skeleton), texts
