"""The shortest text of a sequence of layers."""

from functools import lru_cache

_LONGEST_PERIOD = 64  # layers of a repeated group that is looked for; bounds the time


@lru_cache(maxsize=256)
def fold(layers: tuple[str, ...]) -> str:
    """Return the shortest text of one stage (fewest characters, then fewest items) of names, runs and repeated groups.

    From the last layer to the first: best[i] is the cost of layers i to the end and the item that they start with.
    """
    best: list[tuple[tuple[int, int], str, int]] = [((0, 0), "", 0)] * (len(layers) + 1)  # cost, item, layers covered
    longest = min(len(layers) // 2, _LONGEST_PERIOD)
    matches = [0] * (longest + 1)  # [p] how many layers from i on equal the one p later
    for i in range(len(layers) - 1, -1, -1):
        items = [(layers[i], 1)]
        periods: list[int] = []
        for period in range(1, longest + 1):
            same = i + period < len(layers) and layers[i] == layers[i + period]
            matches[period] = matches[period] + 1 if same else 0
            repeats = matches[period] // period + 1
            if repeats < 2 or any(
                period % shorter == 0 and matches[shorter] >= 2 * period - shorter for shorter in periods
            ):
                continue
            periods.append(period)
            body = layers[i] if period == 1 else f"({fold(layers[i : i + period])})"
            items.append((f"{repeats}*{body}", repeats * period))
        best[i] = min(
            (
                (best[i + size][0][0] + len(item) + 1 + _split_cost(layers, i + size), best[i + size][0][1] + 1),
                item,
                size,
            )
            for item, size in items
        )
    words = []
    i = 0
    while i < len(layers):
        _, item, size = best[i]
        words.append(item)
        i += size
    return " ".join(words)


def _split_cost(layers: tuple[str, ...], i: int) -> int:
    """Return the cost, in characters, of splitting a run of equal layers before layer i."""
    return 6 if i < len(layers) and layers[i - 1] == layers[i] else 0
