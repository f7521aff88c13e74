"""Match the parameters of a new model with those of a checkpoint that it begins with.

Names and shapes only, as a checkpoint stores them: one tensor for each packed part of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from hybridtron.config.nearest import nearest
from hybridtron.errors import UserError

Shape = tuple[int, ...]
Vocabulary = Literal["same", "extend", "cut"]

VOCABULARY = ("embedding.weight", "head.weight")  # parameters with a row for each token
_MAX_LINES = 3  # of each kind of difference


@dataclass(frozen=True)
class WeightRules:
    """Which parameter begins with which of the checkpoint, and which may have no partner.

    `prefixes` maps a name in the model, or the beginning of one up to a dot, to that in the checkpoint; None keeps the
    initial values. Parameters outside it have the same name in both, but those of layers where `maps_layers` is set:
    then a layer that it lacks has no partner. `missing` and `left_over` are names, beginnings of names up to a dot, or
    patterns with `*`: parameters of the model, and of the checkpoint, that may have no partner.
    """

    prefixes: Mapping[str, str | None] = field(default_factory=dict)
    maps_layers: bool = False
    missing: Sequence[str] = ()
    left_over: Sequence[str] = ()
    vocabulary: Vocabulary = "same"

    def partner(self, name: str) -> str | None:
        """Return the name in the checkpoint of a parameter of the model; None where it has none."""
        for prefix in sorted(self.prefixes, key=len, reverse=True):
            if _begins(prefix, name):
                source = self.prefixes[prefix]
                return None if source is None else source + name[len(prefix) :]
        return None if self._is_unmapped(name) else name

    def requires_partner(self, name: str) -> bool:
        """Return whether a parameter of the model may not keep its initial values."""
        kept = any(_begins(prefix, name) and source is None for prefix, source in self.prefixes.items())
        return not kept and not any(_names(pattern, name) for pattern in self.missing)

    def _is_unmapped(self, name: str) -> bool:
        return self.maps_layers and name.startswith("layers.")


@dataclass(frozen=True)
class MatchedWeights:
    """`sources` maps a stored tensor of the model to the checkpoint's; what it lacks keeps its initial values."""

    sources: Mapping[str, str]
    random: tuple[str, ...]  # stored tensors of the model that keep their initial values
    left_over: tuple[str, ...]  # stored tensors of the checkpoint that are not used
    new_rows: int  # of the vocabulary, which keep their initial values


def match_weights(stored: Mapping[str, Shape], expected: Mapping[str, Shape], rules: WeightRules) -> MatchedWeights:
    """Return the tensor of a checkpoint that each tensor of a model begins with.

    Args:
        stored: shape of each parameter's tensors in the checkpoint.
        expected: the same of the model.
        rules: what may differ.

    Raises:
        UserError: with a line for each tensor that is missing, left over or of another shape, and the nearest names.
    """
    _require_used("init_map", rules.prefixes, expected, _begins)
    _require_used("init_missing", rules.missing, expected)
    _require_used("init_left_over", rules.left_over, stored)
    partners = {name: partner for name in expected if (partner := rules.partner(name)) is not None}
    sources = {name: partner for name, partner in partners.items() if partner in stored}
    unused = sorted(stored.keys() - sources.values())
    random = sorted(expected.keys() - sources.keys())
    lacking = [name for name in random if rules.requires_partner(name)]
    unmapped = brief(name for name in lacking if rules.partner(name) is None)
    absent = [name for name in lacking if rules.partner(name) is not None]
    other = [name for name, source in sorted(sources.items()) if not _fits(name, stored[source], expected[name], rules)]
    extra = [name for name in unused if not any(_names(pattern, name) for pattern in rules.left_over)]
    lines = [
        *_lines(unmapped, lambda name: f"{name} has no source in train.init_map; expected a layer there, or null"),
        *_lines(other, lambda name: _other_shape(name, sources[name], stored[sources[name]], expected[name], rules)),
        *_lines(absent, lambda name: _absent(name, expected[name], rules, unused)),
        *_lines(extra, lambda name: _left_over(name, stored[name], random)),
    ]
    if lines:
        raise UserError("\n".join(lines))
    rows = [expected[name][0] - stored[sources[name]][0] for name in VOCABULARY if name in sources]
    return MatchedWeights(sources, tuple(random), tuple(unused), max([0, *rows]))


def brief(names: Iterable[str]) -> list[str]:
    """Return names of stored tensors with one entry for each layer, and one for each parameter outside layers."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))


def _names(pattern: str, name: str) -> bool:
    """Return whether a name, the beginning of one or a pattern stands for this stored tensor."""
    return name.startswith(f"{pattern}.") or fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _begins(prefix: str, name: str) -> bool:
    """Return whether a prefix is this stored tensor's name, or the beginning of it up to a dot."""
    return name == prefix or name.startswith(f"{prefix}.")


def _require_used(
    key: str, entries: Iterable[str], names: Iterable[str], stands_for: Callable[[str, str], bool] = _names
) -> None:
    """Raise UserError for an entry that stands for no parameter."""
    names = list(names)
    pattern = ", the beginning of one or a pattern such as layers.3.*" if stands_for is _names else ", or its beginning"
    for entry in entries:
        if not any(stands_for(entry, name) for name in names):
            where = "the checkpoint" if key == "init_left_over" else "the model"
            close = nearest(entry, {*names, *brief(names)})
            raise UserError(
                f"train.{key}: {entry}: stands for no parameter of {where}; expected a name{pattern}"
                + (f" (nearest: {close})" if close else "")
            )


def _fits(name: str, there: Shape, here: Shape, rules: WeightRules) -> bool:
    """Return whether a tensor of the model can begin with one of this shape."""
    if there == here:
        return True
    if name not in VOCABULARY or there[1:] != here[1:]:
        return False
    return rules.vocabulary == ("extend" if there[0] < here[0] else "cut")


def _lines(names: Sequence[str], line: Callable[[str], str]) -> list[str]:
    """Return the line of each name, of a few where they are many."""
    left = len(names) - _MAX_LINES
    return [*map(line, names[:_MAX_LINES]), *([f"and {left} more such names"] if left > 0 else [])]


def _left_over(name: str, shape: Shape, random: Iterable[str]) -> str:
    return (
        f"parameter {name} is {_text(shape)} there; expected absent, as the config says{_close(name, random)}; "
        "train.init_left_over can name it"
    )


def _absent(name: str, shape: Shape, rules: WeightRules, unused: Iterable[str]) -> str:
    source = rules.partner(name) or name
    called = "" if source == name else f", as {source},"
    return (
        f"parameter {name} is absent there{called}; expected {_text(shape)}, as the config says"
        f"{_close(source, unused)}; train.init_missing can name it"
    )


def _other_shape(name: str, source: str, there: Shape, here: Shape, rules: WeightRules) -> str:
    called = "" if source == name else f", as {source},"
    line = f"parameter {name} is {_text(there)} there{called}; expected {_text(here)}, as the config says"
    if name in VOCABULARY and there[1:] == here[1:]:
        way = "extend, to keep initial values in the new rows" if there[0] < here[0] else "cut, to drop the last rows"
        line += f", or train.init_vocabulary {way}"
    return line


def _close(name: str, choices: Iterable[str]) -> str:
    close = nearest(name, choices)
    return f" (nearest: {close})" if close else ""


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape))
