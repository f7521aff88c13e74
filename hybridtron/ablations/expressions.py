"""Constraints: comparisons of dotted keys and numbers, parsed and evaluated without running code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hybridtron.errors import UserError

LONGEST = 500  # characters
_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne, ast.In: lambda one, many: one in many, ast.NotIn: lambda one, many: one not in many,
}  # fmt: skip
_FORM = "a comparison of keys and numbers, such as a.b * 2 <= c"


@dataclass(frozen=True)
class Expression:
    """A parsed constraint. `names` are the dotted names in it."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Return whether the constraint holds where `value_of` gives the values of names.

        Raises UserError where values cannot be compared or divided.
        """
        try:
            return bool(_evaluate(self.tree, value_of))
        except (TypeError, ZeroDivisionError, OverflowError) as error:
            raise UserError(f"constraint {self.text!r}: {error}") from None


def parse_expression(text: str) -> Expression:
    """Parse a constraint. Raises UserError, whose text is what was expected, for anything beside comparisons, `and`,
    `or`, `not`, arithmetic, names, numbers, texts and lists."""
    try:
        if len(text) > LONGEST:
            raise ValueError
        tree = ast.parse(text.strip(), mode="eval").body
        names = frozenset(_names(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(_FORM) from None
    if not isinstance(tree, ast.Compare | ast.BoolOp | ast.UnaryOp) or not names:
        raise UserError(_FORM)
    return Expression(text, tree, names)


def _names(node: ast.expr) -> list[str]:
    """Return the names of an expression; raises ValueError for a part that is not allowed."""
    if isinstance(node, ast.Name | ast.Attribute):
        return [_dotted(node)]
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return []
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _names(node.left) + _names(node.right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        return _names(node.operand)
    if isinstance(node, ast.BoolOp):
        return [name for value in node.values for name in _names(value)]
    if isinstance(node, ast.List | ast.Tuple):
        return [name for value in node.elts for name in _names(value)]
    if isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
        return [name for value in (node.left, *node.comparators) for name in _names(value)]
    raise ValueError


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError


def _evaluate(node: ast.expr, value_of: Callable[[str], Any]) -> Any:
    if isinstance(node, ast.Name | ast.Attribute):
        return value_of(_dotted(node))
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_evaluate(value, value_of) for value in node.elts]
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, value_of)
        return not value if isinstance(node.op, ast.Not) else -value
    if isinstance(node, ast.BinOp):
        sides = [_evaluate(side, value_of) for side in (node.left, node.right)]
        if not all(isinstance(side, int | float) for side in sides):
            raise TypeError("expected numbers on both sides of + - * / // %")
        return _OPERATORS[type(node.op)](*sides)
    if isinstance(node, ast.BoolOp):
        values = (_evaluate(value, value_of) for value in node.values)
        return all(values) if isinstance(node.op, ast.And) else any(values)
    assert isinstance(node, ast.Compare)
    left = _evaluate(node.left, value_of)
    for op, side in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(side, value_of)
        if not _OPERATORS[type(op)](left, right):
            return False
        left = right
    return True
