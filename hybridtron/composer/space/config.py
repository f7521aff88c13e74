"""The section `space` of a search's config: its blocks, their letters and the constraints of its patterns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, model_validator

from hybridtron.composer.space.space import Space
from hybridtron.config.nearest import one_of
from hybridtron.config.schema import Strict, problem

FREE = "?"  # a position that is searched
LETTERS: Mapping[str, str] = {  # of blocks by their names, where a space gives none
    "attn": "A", "attention": "A", "mlp": "M", "swiglu": "M", "mamba": "B", "mamba2": "B", "mamba3": "B", "moe": "E",
    "swa": "W", "gdn": "G", "kda": "K", "hyena": "H",
}  # fmt: skip
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
BlockName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Letter = Annotated[str, Field(pattern=r"^[A-Z]$")]


class SpaceConfig(Strict):
    """The patterns that may be tried."""

    blocks: list[BlockName] = Field(min_length=1, description="Names of the blocks, as the evaluator knows them.")
    layers: int = Field(ge=1, le=256, description="Layers of a pattern.")
    letters: dict[Letter, str] = Field(
        {},
        description="Letter -> block, for patterns such as AAMMBM in lists, told scores and results. By default attn "
        "is A, mlp M, mamba B, moe E.",
    )
    fixed: str | None = Field(
        None,
        description="One word or letter for each layer: a block that stands there, or ? where the search decides. "
        "Letters may stand without blanks: A????M.",
    )
    at_most: dict[str, Count] = Field({}, description="Block -> how often it may be used.")
    at_least: dict[str, Count] = Field({}, description="Block -> how often it must be used.")
    longest_run: dict[str, PositiveCount] = Field({}, description="Block -> how many of it may follow one another.")
    never_first: list[str] = Field([], description="Blocks that the first layer may not be.")
    never_last: list[str] = Field([], description="Blocks that the last layer may not be.")
    never_adjacent: list[tuple[str, str]] = Field([], description="Pairs: the second may not follow the first.")

    @model_validator(mode="after")
    def _names_blocks_and_leaves_patterns(self) -> SpaceConfig:
        if len(set(self.blocks)) < len(self.blocks):
            raise problem("blocks", self.blocks, "different names")
        if len(set(self.letters.values())) < len(self.letters):
            raise problem("letters", self.letters, "one letter for each block")
        if len(self.fixed_words) != self.layers:
            raise problem("fixed", self.fixed, f"{self.layers} words, one for each layer, {FREE} where it is free")
        for letter, name in self.letters.items():
            if letter in self.blocks and letter != name:
                raise problem(f"letters.{letter}", name, f"{letter}, which is the name of a block")
        named = [("fixed", word, word) for word in self.fixed_words if word != FREE]
        for key in ("at_most", "at_least", "longest_run"):
            named += [(f"{key}.{name}", count, name) for name, count in getattr(self, key).items()]
        for key in ("never_first", "never_last"):
            named += [(key, name, name) for name in getattr(self, key)]
        named += [("never_adjacent", name, name) for pair in self.never_adjacent for name in pair]
        named += [(f"letters.{letter}", name, name) for letter, name in self.letters.items()]
        for key, value, name in named:
            if name not in self.blocks:
                choices = [*self.blocks, FREE] if key == "fixed" else self.blocks
                raise problem(key, value, f"a block: {one_of(name, choices)}")
        if not self.patterns.size:
            constraints = {
                key: value for key, value in self.model_dump(exclude={"blocks", "layers", "letters"}).items() if value
            }
            none = {key: type(getattr(self.patterns, key))() for key in constraints}
            alone = [key for key in constraints if replace(self.patterns, **{key: none[key]}).size]
            reason = f"without {' or '.join(alone)} there are some" if alone else "several of them must go"
            raise problem("", constraints, f"constraints that leave a pattern of {self.layers} layers; {reason}")
        return self

    @property
    def fixed_words(self) -> list[str]:
        """Return the block of each layer, or ? where it is free."""
        if self.fixed is None:
            return [FREE] * self.layers
        words, known = self.fixed.split(), {FREE, *self.letter_names}
        if len(words) == 1 and len(words[0]) == self.layers and {*words[0]} <= known and words[0] not in self.blocks:
            words = list(words[0])
        return [word if word in self.blocks else self.letter_names.get(word, word) for word in words]

    @cached_property
    def letter_names(self) -> dict[str, str]:
        """Return letter -> block: those given, else by the blocks' names; of two for one letter the first has it."""
        if self.letters:
            return dict(self.letters)
        found: dict[str, str] = {}
        for name in self.blocks:
            if name in LETTERS:
                found.setdefault(LETTERS[name], name)
        return found

    def identity(self) -> dict[str, Any]:
        """Return what makes two spaces the same; letters are only another way to write it."""
        sections = self.model_dump(mode="json", exclude={"letters"})
        if self.fixed is not None and self.fixed.split() != self.fixed_words:
            sections["fixed"] = " ".join(self.fixed_words)
        return sections

    @cached_property
    def patterns(self) -> Space:
        """Return the patterns that keep the constraints."""
        index = {name: i for i, name in enumerate(self.blocks)}
        return Space(
            tuple(self.blocks),
            self.layers,
            {i: index[word] for i, word in enumerate(self.fixed_words) if word != FREE},
            {index[name]: count for name, count in self.at_most.items()},
            {index[name]: count for name, count in self.at_least.items()},
            {index[name]: count for name, count in self.longest_run.items()},
            frozenset(index[name] for name in self.never_first),
            frozenset(index[name] for name in self.never_last),
            frozenset((index[first], index[second]) for first, second in self.never_adjacent),
        )
