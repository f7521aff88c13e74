"""Operations without values, worked out once: what they return depends on the layouts of their arguments alone."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.utils._pytree import tree_leaves


class Layout(NamedTuple):
    """What a new tensor on the meta device is made of."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        """Make a tensor of this layout."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


Returns = Literal["new", "first argument", "unknown"]
Result = Layout | tuple[Layout | None, ...] | Literal["first argument"] | None  # None where it cannot be remembered


class RememberedLayouts:
    """Calls operations on the meta device; one called again in the same way gives new tensors of the same layouts.

    What an operation returns is worked out by Python code of PyTorch, which takes ten times as long as to make a
    tensor. Views, collectives, and other devices or kinds of tensors are called every time.
    """

    def __init__(self) -> None:
        self._results: dict[Any, Result] = {}
        self._returns: dict[Any, Returns] = {}

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what `func(*args, **kwargs)` returns, for an overload of an operation."""
        if func not in self._returns:
            self._returns[func] = _returns(func)
        returns = self._returns[func]
        key = _key([func, args, kwargs]) if returns != "unknown" else None
        if key is None:
            return func(*args, **kwargs)
        if result := self._results.get(key):
            return args[0] if result == "first argument" else _make(result)
        made = func(*args, **kwargs)
        if key not in self._results:
            self._results[key] = "first argument" if returns == "first argument" else _layouts(made, args, kwargs)
        return made


def _returns(func: Any) -> Returns:
    """Return what an operation of PyTorch declares to return: its first argument where it changes values in place."""
    schema = func._schema
    aliases = [each.alias_info for each in (*schema.arguments, *schema.returns)]
    if func.namespace != "aten":
        return "unknown"
    if not any(aliases):
        return "new"
    in_place = aliases[0] and aliases[0].is_write and not any(aliases[1:-1]) and len(schema.returns) == 1
    return "first argument" if in_place and torch.Tag.inplace_view not in func.tags else "unknown"


def _key(value: Any) -> Any:
    """Return what of an argument a result can depend on, as a thing to hash; None where that is not known."""
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        plain = value.is_meta and value.layout is torch.strided and not value.is_complex()  # nor conjugated
        return (value.shape, value.stride(), value.dtype) if plain else None
    if kind is list or kind is tuple:
        keys = tuple(map(_key, value))
        return None if None in keys else (kind, keys)
    if kind is dict:
        keys = tuple(map(_key, value.values()))
        return None if None in keys else (tuple(value), keys)
    return None if isinstance(value, Tensor) else (kind, value)


def _make(result: Layout | tuple[Layout | None, ...]) -> Any:
    """Make the tensors of an operation's result."""
    with DisableTorchFunction():
        return result.make() if isinstance(result, Layout) else tuple(each and each.make() for each in result)


def _layouts(made: Any, args: Any, kwargs: Any) -> Layout | tuple[Layout | None, ...] | None:
    """Return the layouts of what an operation made; None where it made anything but new tensors on the meta device."""
    storages = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
    layouts: list[Layout | None] = []
    for each in made if type(made) is tuple else (made,):
        if each is None:
            layouts.append(None)
            continue
        if type(each) is not Tensor or not each.is_meta or each.layout is not torch.strided or each.is_complex():
            return None
        storage, layout = each.untyped_storage(), Layout(each.shape, each.stride(), each.dtype)
        if storage._cdata in storages or storage.nbytes() != layout.make().untyped_storage().nbytes():
            return None
        storages.add(storage._cdata)
        layouts.append(layout)
    return tuple(layouts) if type(made) is tuple else layouts[0]
