"""YAML text to plain values and back, by the rules that a config author expects.

Only mappings with text keys, lists, text, numbers, true/false and null. As in YAML 1.2, `1e-3` is a number, and `yes`,
`on`, `10:30` and dates are text. Duplicate keys and tags that would build objects are errors.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from hybridtron.errors import UserError
from hybridtron.files import read_plain

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_MAX_NODES = 1_000_000  # after expanding aliases
_MAX_DEPTH = 100
_SHORT_LIST = 80  # characters
_SCALARS = (  # tag, text that has it, first characters
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("int", re.compile(r"(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)\Z"), list("-+0123456789")),
    (
        "float",
        re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))\Z|\.nan\Z"),
        list("-+.0123456789"),
    ),
    ("merge", re.compile(r"<<\Z"), ["<"]),
)
# Where libyaml takes for valid, or for something else, what PyYAML's own reader does not.
_READ_DIFFERENTLY = re.compile(r"[\t!?\ufeff]|[|>][-+0-9]*#")


def read(path: str, is_argument: bool = False) -> Any:
    """Read a YAML file; None if it is empty. Raises UserError with file, line and column.

    Only where the user gave the path, and no file names it, may it be a pipe of the shell, as `<(command)`.
    """
    try:
        piped = is_argument and path.startswith("/dev/") and Path(path).is_fifo()
        text = (Path(path).read_bytes() if piped else read_plain(Path(path))).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected YAML text in UTF-8, found other bytes") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return parse(text, path)


def parse(text: str, source: str | None = None) -> Any:
    """Parse a YAML text. Raises UserError, which begins with source:line:column if a source is given."""
    if _FastLoader is not None and not _READ_DIFFERENTLY.search(text):
        # What it refuses is read again, for the places and words of PyYAML's own reader.
        with contextlib.suppress(UserError, yaml.YAMLError, UnicodeError, RecursionError):
            return _parse(text, source, _FastLoader)
    try:
        return _parse(text, source, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        details = ", ".join(part for part in (error.context, error.problem) if part)
        _fail(source, mark, f"not valid YAML: {details}")
    except yaml.reader.ReaderError as error:
        character = chr(error.character) if isinstance(error.character, int) else error.character
        _fail(source, None, f"not valid YAML: character {character!r} at position {error.position}")
    except RecursionError:
        _fail(source, None, f"nested deeper than {_MAX_DEPTH} levels")


def _parse(text: str, source: str | None, loader: Any) -> Any:
    node = yaml.compose(text, Loader=loader)
    return None if node is None else _Builder(source).build(node)


def write(value: Any) -> str:
    """Write block-style YAML, short lists on one line, that `parse` reads back as an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


def write_inline(value: Any) -> str:
    """Write YAML on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Loader(yaml.SafeLoader):
    """Loader that stops at YAML nodes, so that our own rules make the values."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's own attribute


def _fast_loader() -> Any:
    """Return the same loader on libyaml, 16 times as fast, or None: without a limit of nesting it could crash."""
    if not yaml.__with_libyaml__ or yaml._yaml.get_version() < (0, 2, 6):
        return None
    return type("_FastLoader", (yaml.CSafeLoader,), {"yaml_implicit_resolvers": {}})


_FastLoader = _fast_loader()


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text that YAML 1.1 readers or `parse` would take for something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _SCALARS:
    for _class in filter(None, (_Loader, _FastLoader, _Dumper)):
        _class.add_implicit_resolver(_TAG + _name, _pattern, _first)


def _represent_list(dumper: yaml.SafeDumper, items: Sequence[Any]) -> yaml.Node:
    plain = all(not isinstance(item, dict | list | tuple) for item in items)
    flow = plain and sum(len(str(item)) + 2 for item in items) <= _SHORT_LIST
    return dumper.represent_sequence(f"{_TAG}seq", items, flow_style=flow or dumper.default_flow_style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)


class _Builder:
    """Plain values from YAML nodes."""

    def __init__(self, source: str | None):
        self.source = source
        self.open: set[int] = set()  # ids of the nodes being built: an alias to one of them would never end
        self.nodes = 0

    def build(self, node: yaml.Node) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            self.fail(node, f"more than {_MAX_NODES:,} values after expanding aliases")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if id(node) in self.open:
            self.fail(node, "an alias (*) inside what it stands for")
        if len(self.open) >= _MAX_DEPTH:
            self.fail(node, f"nested deeper than {_MAX_DEPTH} levels")
        expected = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != _TAG + expected:
            self.fail(node, f"tag {_short(node.tag)} is not allowed")
        self.open.add(id(node))
        value = self.mapping(node) if isinstance(node, yaml.MappingNode) else [self.build(item) for item in node.value]
        self.open.remove(id(node))
        return value

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        value: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for part in self.merge_parts(value_node):
                    merged = {**part, **merged}
                continue
            key = self.build(key_node)
            if not isinstance(key, str):
                self.fail(key_node, f"key {write_inline(key)} is not text: expected a name, or quotes around it")
            if key in lines:
                self.fail(key_node, f"duplicate key {key!r} (first on line {lines[key]})")
            lines[key] = key_node.start_mark.line + 1
            value[key] = self.build(value_node)
        return {**merged, **value}

    def merge_parts(self, node: yaml.Node) -> list[dict[str, Any]]:
        value = self.build(node)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            self.fail(node, "'<<' expected a mapping or a list of mappings")
        return parts

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text, tag = node.value, node.tag.removeprefix(_TAG)
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        try:
            match tag:
                case "str" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[text.lower()]
                case "int":
                    digits = text.replace("_", "")
                    return int(digits, {"0x": 16, "0o": 8}.get(digits[:2], 10))
                case "float":
                    return float(re.sub(r"_|\.(?=[in])", "", text.lower()))
                case _:
                    self.fail(node, f"tag {_short(node.tag)} is not allowed")
        except (ValueError, KeyError):
            self.fail(node, f"{shown!r} cannot be read as {tag}")

    def fail(self, node: yaml.Node, message: str) -> NoReturn:
        _fail(self.source, node.start_mark, message)


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")


def _fail(source: str | None, mark: yaml.Mark | None, message: str) -> NoReturn:
    place = "" if source is None else f"{source}: " if mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}: "
    raise UserError(place + " ".join(message.split()))
