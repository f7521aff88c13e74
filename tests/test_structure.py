"""The shape of the code: no circular imports, short files and functions, docstrings that say what a function does."""

from __future__ import annotations

import ast
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import LONG

ROOT = Path(__file__).parent.parent
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
# A docstring begins with an imperative verb; these are the other words that began one most often.
NOT_VERBS = frozenset(
    """A An And Are As At Be Both By Each Every For From How If In Into Is It Its Just Like No Of On One Only Or Says
    Some Such That The Their Them These This Those To Two What When Where Whether Which Who Whose Why With""".split()  # noqa: SIM905
)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of every module of the package, by dotted name."""
    trees = {}
    for path in sorted((ROOT / "hybridtron").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return trees


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function and method of the package, with its module and name."""
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", node


def imported(name: str) -> set[str]:
    """Return the modules of the package that a module imports anywhere, but for type checkers alone."""
    found: set[str] = set()
    pending: list[ast.AST] = [modules()[name]]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = members & modules().keys()
            found |= submodules
            if len(submodules) < len(members):  # something that the package's own __init__ has
                found.add(str(node.module))
        pending += ast.iter_child_nodes(node)
    return found & modules().keys() - {name}


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for following in sorted(graph[node]):
            if following not in index:
                visit(following)
            if following in stack:
                low[node] = min(low[node], low[following])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def is_allowed(cycle: list[str]) -> bool:
    """Return whether a circle is of mixers, whose configs build their modules."""
    return all(name.startswith("hybridtron.mixers.") for name in cycle)


def test_imports_make_no_circle_not_even_inside_functions():
    graph = {name: imported(name) for name in modules()}
    assert [cycle for cycle in cycles(graph) if not is_allowed(cycle)] == []


def test_the_search_for_circles_finds_one():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_verbs_print_json_by_the_function_that_knows_no_nan():
    verbs = [name for name in modules() if name.startswith("hybridtron.cli.")]
    assert [name for name in verbs if "json.dump" in ast.unparse(modules()[name])] == []


def test_files_are_short():
    lines = {str(path): len(path.read_text().splitlines()) for path in (ROOT / "hybridtron").rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_functions_are_short():
    lengths = {place: (node.end_lineno or node.lineno) - node.lineno + 1 for place, node in functions()}
    assert {place: length for place, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_docstrings_of_functions_begin_with_a_verb():
    first = {}
    for place, node in functions():
        if (text := ast.get_docstring(node)) and not is_property(node):
            first[place] = text.split()[0].rstrip(",;:.")
    assert {place: word for place, word in first.items() if word in NOT_VERBS or not word[:1].isupper()} == {}


def is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a method is read like a field, whose docstring may name it."""
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def test_an_installation_has_every_file_of_the_package():
    """A checkout has them anyway; a wheel has what package-data names."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    named = {
        path for package, patterns in settings.items() for each in patterns for path in folder_of(package).glob(each)
    }
    files = {path for path in (ROOT / "hybridtron").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert sorted(path for path in files - named if path.suffix not in (".py", ".so")) == []


def folder_of(package: str) -> Path:
    return ROOT.joinpath(*package.split("."))


def test_files_that_the_tests_begin_with_exist():
    assert [name for name in LONG if not (ROOT / "tests" / name).is_file()] == []
