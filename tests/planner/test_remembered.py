"""Operations called again without values give what the operations would."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridtron.planner.remembered import RememberedLayouts

aten = torch.ops.aten


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def layouts(result):
    return [(each.shape, each.stride(), each.dtype, each.untyped_storage().nbytes()) for each in tree_leaves(result)]


class Called(TorchDispatchMode):
    """Notes the operations that reach PyTorch."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


NEW = {
    "product": (aten.mm.default, (empty(4, 3).t(), empty(4, 5))),
    "mixed formats": (aten.add.Tensor, (empty(2, 3, dtype=torch.bfloat16), empty(3))),
    "several": (aten.max.dim, (empty(2, 3), 1)),
    "list": (aten.cat.default, ([empty(2, 3), empty(4, 3)],)),
    "order of memory": (aten.clone.default, (empty(3, 2).t(),)),
}


@pytest.mark.parametrize("name", NEW)
def test_new_tensors_have_the_layouts_of_the_first_call(name):
    func, args = NEW[name]
    remembered, expected = RememberedLayouts(), layouts(func(*args))
    with Called() as called:
        first = remembered.call(func, args, {})
        again = remembered.call(func, args, {})
    assert called.operations.count(func) == 1
    assert layouts(first) == layouts(again) == expected
    assert all(a is not b for a, b in zip(tree_leaves(first), tree_leaves(again), strict=True))


def test_calls_that_differ_in_anything_are_calls_of_their_own():
    remembered, x = RememberedLayouts(), empty(4, 4)
    calls = [(x, 0), (x, 1), (empty(4, 3), 0), (empty(3, 4).t(), 0), (empty(4, 4, dtype=torch.int32), 0)]
    for args in calls * 2:
        assert layouts(remembered.call(aten.cumsum.default, args, {})) == layouts(aten.cumsum.default(*args))
    for scalar in (2, 2.0, True) * 2:
        made = remembered.call(aten.mul.Scalar, (empty(2, dtype=torch.int64), scalar), {})
        assert made.dtype == (torch.float32 if isinstance(scalar, float) else torch.int64)


def test_operations_in_place_return_their_tensor():
    remembered, kept = RememberedLayouts(), [empty(2, 3), empty(2, 3)]
    for x in kept:
        assert remembered.call(aten.add_.Tensor, (x, empty(3)), {"alpha": 2}) is x
    with pytest.raises(RuntimeError):
        remembered.call(aten.add_.Tensor, (empty(3), empty(2, 3)), {"alpha": 2})


def test_views_values_and_changes_of_layout_are_never_remembered():
    remembered = RememberedLayouts()
    for _ in range(2):
        x = empty(2, 3)
        view = remembered.call(aten._unsafe_view.default, (x, [3, 2]), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert remembered.call(aten.t_.default, (x,), {}).shape == (3, 2)
    for value in (1.0, 2.0):
        assert remembered.call(aten.neg.default, (torch.full((2,), value),), {}).tolist() == [-value] * 2
