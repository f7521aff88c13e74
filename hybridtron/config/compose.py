"""A config from several files and the command line, and where each of its values came from.

`base: other.yaml`, or a list of files, at the top of a file names what it builds on, relative to that file. Later
bases override earlier ones, the file overrides its bases, and dotted overrides (`optimizer.lr=3e-4`) come last.
Mappings merge key by key; lists and scalars replace. `NAME: null` in a mapping `blocks` drops a block of a base, which
must have one of this name. An override sets the value of its key whole:
`schedule={type: constant}` leaves nothing of what `schedule` held.

One file may describe a model in several sizes: `sizes: {1b: {...}, 3b: {...}}` holds what belongs to each, and
`size: 1b` in a file or `size=1b` among the overrides chooses the one that is merged over the rest. Tables of several
files merge. `8b: 7b` is another name of 7b.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybridtron.config import yaml_text
from hybridtron.config.nearest import nearest, one_of
from hybridtron.config.type_words import value_text
from hybridtron.errors import UserError
from hybridtron.files import as_path

BASE_KEY = "base"
SIZE_KEY, SIZES_KEY = "size", "sizes"
OVERRIDE = "an override"
BLOCKS_KEY = "blocks"
MAPPING = "the config"  # the source of what a mapping sets, whose bases are relative to the current folder
_MAX_LEVELS = 100


@dataclass(frozen=True)
class Provenance:
    """Which file, or OVERRIDE, set each value last: `sources` by dotted key of the leaf, `main` for the rest."""

    sources: Mapping[str, str]
    main: str | None = None

    def source(self, key: str) -> str | None:
        """Return who set `key`; for a key that nobody set, who set everything beside it, else the main file."""
        while key:
            if key in self.sources:
                return self.sources[key]
            below = {source for leaf, source in self.sources.items() if leaf.startswith(f"{key}.")}
            if len(below) == 1:
                return below.pop()
            key = key.rpartition(".")[0]
        return self.main

    def suffix(self, key: str) -> str:
        """Return ` (in FILE)` or ` (in an override)`, to end an error about `key`; empty if unknown."""
        source = self.source(key)
        return "" if source is None else f" (in {source})"


@dataclass(frozen=True)
class Composed:
    """Plain mappings, lists and scalars, with their provenance."""

    mapping: dict[str, Any]
    provenance: Provenance


def compose(config: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Composed:
    """Read a config file, or a mapping like one, with its bases; apply overrides of the form `dotted.key=YAML value`.

    Raises UserError for a missing or malformed file, a cycle of bases, an override that is malformed or leads through
    something that is not a mapping, a size that is missing or that the files do not have, and a block to drop that no
    base has.
    """
    if isinstance(config, Mapping):
        main: str = MAPPING
        tree = _over_bases(dict(config), main, ())
    else:
        main = os.fspath(as_path(config, "config", "the path of a YAML file, or a dict"))
        if not main:
            raise UserError("expected the path of a config file, found ''")
        tree = _read_tree(main, ())
    if SIZES_KEY in tree:
        for override in filter(_sets_size, overrides):
            _override(tree, override)
        _choose_size(tree, main)
        overrides = [override for override in overrides if not _sets_size(override)]
    for override in overrides:
        _override(tree, override)
    _require_dropped(tree)
    sources = {".".join(key): leaf.source for key, leaf in _leaves(tree)}
    return Composed(_plain(tree), Provenance(sources, main))


@dataclass(frozen=True)
class _Leaf:
    value: Any
    source: str
    replaces: bool = False  # a null in place of what was written before


_Tree = dict[str, Any]  # of _Tree and _Leaf


def _read_tree(path: str, users: tuple[str, ...], named_in: str = "") -> _Tree:
    """Read one file over its bases; `users` are the files whose bases led here."""
    if any(os.path.realpath(path) == os.path.realpath(user) for user in users):
        raise UserError(f"{users[-1]}: {BASE_KEY} leads in a circle: {' -> '.join((*users, path))}")
    _check_exists(path, named_in)
    content = yaml_text.read(path, is_argument=not users)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys at the top level, found {value_text(content)}")
    return _over_bases(content, path, users)


def _over_bases(content: dict[str, Any], path: str, users: tuple[str, ...]) -> _Tree:
    """Merge the content of one file, or of a mapping, over its bases."""
    bases = content.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) and base for base in bases):
        raise UserError(f"{BASE_KEY} = {value_text(bases)}: expected a file name or a list of file names (in {path})")
    tree: _Tree = {}
    for base in bases:
        base_path = os.path.normpath(os.path.join(os.path.dirname(path), base))
        _merge(tree, _read_tree(base_path, (*users, path), f" (named as {BASE_KEY} in {path})"))
    _merge(tree, _tree(content, path))
    return tree


def _sets_size(override: str) -> bool:
    return override.partition("=")[0].strip() == SIZE_KEY


def _choose_size(tree: _Tree, main: str) -> None:
    """Merge what belongs to the chosen size over the rest, and remove the choice and the table."""
    table, chosen = tree.pop(SIZES_KEY), tree.pop(SIZE_KEY, None)
    table = _without_aliases(table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or any(isinstance(entry, _Leaf) for entry in table.values()):
        raise UserError(f"{SIZES_KEY} = {value_text(_plain(table))}: expected a mapping from size to keys (in {main})")
    if chosen is None:
        raise UserError(f"{SIZE_KEY}: required key is missing: expected {one_of(None, table)} (in {main})")
    name = _plain(chosen)
    if not isinstance(name, str) or name not in table:
        place = Provenance({SIZE_KEY: chosen.source} if isinstance(chosen, _Leaf) else {}, main).suffix(SIZE_KEY)
        raise UserError(f"{SIZE_KEY} = {value_text(name)}: expected {one_of(name, table)}{place}")
    _merge(tree, table[name])


def _without_aliases(table: _Tree) -> _Tree:
    """Put the keys of a size in place of its other names: `8b: 7b` is another name of 7b."""
    named = {name: entry.value if isinstance(entry, _Leaf) else None for name, entry in table.items()}
    return {
        name: table[other] if isinstance(other := named[name], str) and other in table else entry
        for name, entry in table.items()
    }


def _check_exists(path: str, named_in: str) -> None:
    if os.path.isdir(path):
        raise UserError(f"{path}: expected a YAML file, found a folder{named_in}")
    if os.path.exists(path):
        return
    folder = os.path.dirname(path)
    if not os.path.isdir(folder or "."):
        raise UserError(f"{path}: no such file: there is no folder {folder}{_nearest_entry(folder)}{named_in}")
    raise UserError(f"{path}: no such file{_nearest_entry(path)}{named_in}")


def _nearest_entry(path: str) -> str:
    """Return ` (nearest: PATH)` for a path whose last part does not exist; empty if nothing beside it is close.

    The suffix of the path is that of most files, and makes none of them closer.
    """
    folder, name = os.path.split(path)
    entries = sorted(entry.name for entry in Path(folder or ".").iterdir()) if os.path.isdir(folder or ".") else []
    stem, suffix = os.path.splitext(name)
    beginnings = {entry.removesuffix(suffix): entry for entry in entries}
    close = nearest(stem, beginnings)
    return f" (nearest: {os.path.join(folder, beginnings[close])})" if close else ""


def _override(tree: _Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts) or any(part != part.strip() for part in parts) or len(parts) > _MAX_LEVELS:
        raise UserError(f"override {override!r}: expected key=value with dots between the levels of the key")
    if key == BASE_KEY:
        raise UserError(f"{BASE_KEY}: cannot be set in {OVERRIDE}, only in a file")
    try:
        value = yaml_text.parse(text)
    except UserError as error:
        raise UserError(f"override {override!r}: {error}; expected a YAML value, in quotes if it is text") from None
    node: Any = tree
    for depth, part in enumerate(parts[:-1], start=1):
        if isinstance(held := node.get(part), _Leaf) and held.value is None:
            del node[part]  # as a resolved config has it: a key below makes a mapping of it
        node = node.setdefault(part, {})
        if isinstance(node, _Leaf):
            held, found = ".".join(parts[:depth]), value_text(node.value)
            raise UserError(f"override {override!r}: {held} = {found}: expected a mapping to set {parts[depth]!r} in")
    node[parts[-1]] = _in_place_of(node.get(parts[-1]), _tree(value, OVERRIDE))


def _tree(value: Any, source: str) -> Any:
    if isinstance(value, dict):
        return {key: _tree(item, source) for key, item in value.items()}
    return _Leaf(value, source)


def _merge(lower: _Tree, upper: _Tree) -> None:
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(lower.get(key), dict):
            _merge(lower[key], value)
        else:
            lower[key] = _in_place_of(lower.get(key), value)


def _in_place_of(before: Any, value: Any) -> Any:
    """Return a value; a null with whether it takes the place of anything."""
    if isinstance(value, _Leaf) and value.value is None:
        return replace(value, replaces=before is not None and not _drops_nothing(before))
    return value


def _drops_nothing(value: Any) -> bool:
    return isinstance(value, _Leaf) and value.value is None and not value.replaces


def _require_dropped(tree: _Tree, prefix: str = "") -> None:
    """Raise UserError for a null in a mapping `blocks` that drops no block."""
    for key, value in tree.items():
        if not isinstance(value, dict):
            continue
        for name, block in value.items() if key == BLOCKS_KEY else ():
            if _drops_nothing(block):
                others = [other for other, held in value.items() if not _drops_nothing(held)]
                raise UserError(
                    f"{prefix}{key}.{name} = null: there is no such block to drop; expected {one_of(name, others)}"
                    f" (in {block.source})"
                )
        _require_dropped(value, f"{prefix}{key}.")


def _plain(tree: Any) -> Any:
    return tree.value if isinstance(tree, _Leaf) else {key: _plain(value) for key, value in tree.items()}


def _leaves(tree: _Tree, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Leaf]]:
    for key, value in tree.items():
        if isinstance(value, _Leaf):
            yield (*prefix, key), value
        else:
            yield from _leaves(value, (*prefix, key))
