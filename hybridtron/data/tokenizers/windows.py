"""Long text encoded in overlapping windows, to the same token ids as the whole."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hybridtron.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding

WINDOW = 1 << 17  # characters
OVERLAP = 1 << 12  # characters before a boundary and behind it that two windows share
MIN_TOKENS = 8  # in each of these parts


class _Tokens(NamedTuple):
    ids: np.ndarray = np.empty(0, np.int32)
    starts: np.ndarray = np.empty(0, np.int64)  # position of each one's first character


def encode_in_windows(
    encode: "Callable[[str], Encoding]", pieces: Iterable[str], window: int = WINDOW, overlap: int = OVERLAP
) -> Iterator[np.ndarray]:
    """Yield the token ids of the text that `pieces` make up, as `encode` gives them for the whole.

    Windows overlap, and one is followed by the next where both have the same tokens. BPE encodes a text as those tokens
    of which it keeps each two neighbours, so that windows with a token in common join to the encoding of the whole;
    other models look no further than a word or a longest token. Where two windows disagree they are joined to one:
    memory grows only for text without a safe boundary. Raises UserError where what is settled would change.
    """
    source = iter(pieces)
    text, size = "", window
    begin, expected = 0, _Tokens()  # tokens from this character of `text` on are not settled; how they must begin
    before: tuple[str, int, _Tokens] | None = None  # what the window before had in front of this one
    settled = np.empty(0, np.int32)  # its tokens, yielded when this window agrees
    while True:
        parts, length = [text], len(text)
        while length < size and (piece := next(source, None)) is not None:
            parts.append(piece)
            length += len(piece)
        text, is_last = "".join(parts), length < size
        encoding = encode(text)
        ids = np.array(encoding.ids, dtype=np.int32)
        if is_last and begin == 0:
            yield ids
            return
        starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
        first = int(np.searchsorted(starts, begin))
        found = slice(first, first + len(expected.ids))
        if not (np.array_equal(ids[found], expected.ids) and np.array_equal(starts[found], expected.starts)):
            if before is None:
                raise UserError("the tokenizer gives the beginning of a long text other ids when more text follows")
            text, begin, expected = before[0] + text, *before[1:]
            size, before, settled = 2 * len(text), None, settled[:0]
            continue
        yield settled
        if is_last:
            yield ids[first:]
            return
        lead, cut, stop = (int(np.searchsorted(starts, len(text) - n)) for n in (2 * overlap, overlap, overlap // 2))
        if min(cut - lead, stop - cut) < MIN_TOKENS or lead < first or (np.diff(starts) < 0).any():
            size, before, settled = 2 * len(text), None, settled[:0]
            continue
        origin = int(starts[lead])
        before, settled, size = (text[:origin], begin, expected), ids[first:cut], window
        text, begin = text[origin:], int(starts[cut]) - origin
        expected = _Tokens(ids[cut:stop], starts[cut:stop] - origin)
