"""Numbers that carry their derivatives by the parameters of a formula (forward differentiation).

An operation of numpy on a `Dual` gives another, by the chain rule. What is not among the rules below raises TypeError,
and the formula is then differentiated by the complex step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from hybridtron.laws.fitting.optimize.problem import Array

ONE = 1.0  # a slope that leaves the others as they are
_LN10 = math.log(10.0)
_RULES: dict[Any, tuple[Callable[..., Any], ...]] = {  # of inputs and result: derivatives by each of the inputs
    np.positive: (lambda x, y: ONE,),
    np.negative: (lambda x, y: -1.0,),
    np.exp: (lambda x, y: y,),
    np.expm1: (lambda x, y: y + 1,),
    np.log: (lambda x, y: 1 / x,),
    np.log1p: (lambda x, y: 1 / (1 + x),),
    np.log10: (lambda x, y: 1 / (_LN10 * x),),
    np.sqrt: (lambda x, y: 0.5 / y,),
    np.square: (lambda x, y: 2 * x,),
    np.tanh: (lambda x, y: 1 - y * y,),
    np.add: (lambda x, z, y: ONE, lambda x, z, y: ONE),
    np.subtract: (lambda x, z, y: ONE, lambda x, z, y: -1.0),
    np.multiply: (lambda x, z, y: z, lambda x, z, y: x),
    np.divide: (lambda x, z, y: 1 / z, lambda x, z, y: -y / z),
    np.power: (lambda x, z, y: z * x ** (z - 1), lambda x, z, y: y * np.log(np.where(x == 0, 1.0, x))),  # 0^z: 0
    np.minimum: (lambda x, z, y: np.where(x <= z, 1.0, 0.0), lambda x, z, y: np.where(x <= z, 0.0, 1.0)),
    np.maximum: (lambda x, z, y: np.where(x >= z, 1.0, 0.0), lambda x, z, y: np.where(x >= z, 0.0, 1.0)),
}
_COMPARISONS = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal)


class Dual(NDArrayOperatorsMixin):
    """Values of k parameter vectors, [k, n] or [k, 1], and their slopes by the parameters they depend on, likewise."""

    def __init__(self, value: Any, slopes: dict[int, Any]) -> None:
        self.value = value
        self.slopes = slopes  # by the number of the parameter

    def __bool__(self) -> bool:
        raise TypeError("the truth of a parameter is not defined")

    def __array__(self, *unused: Any, **named: Any) -> Any:
        raise TypeError("parameters do not go into arrays")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **named: Any) -> Any:
        """Apply an operation of numpy by the chain rule."""
        if method != "__call__" or named:
            return NotImplemented
        values = [one.value if isinstance(one, Dual) else one for one in inputs]
        if ufunc in _COMPARISONS:
            return ufunc(*values)
        if (rule := _RULES.get(ufunc)) is None:
            return NotImplemented
        result = ufunc(*values)
        slopes: dict[int, Any] = {}
        for one, factor_of in zip(inputs, rule, strict=True):
            if isinstance(one, Dual):
                factor = factor_of(*values, result)
                for i, slope in one.slopes.items():
                    part = slope if factor is ONE else slope * factor
                    slopes[i] = slopes[i] + part if i in slopes else part
        return Dual(result, slopes)

    def __array_function__(self, function: Any, types: Any, given: Sequence[Any], named: Any) -> Any:
        """Choose by np.where; no other function of numpy is differentiated."""
        if function is not np.where or len(given) != 3 or named:
            return NotImplemented
        chosen, first, second = (one.value if isinstance(one, Dual) else one for one in given)
        of_first, of_second = (one.slopes if isinstance(one, Dual) else {} for one in given[1:])
        return Dual(
            np.where(chosen, first, second),
            {i: np.where(chosen, of_first.get(i, 0.0), of_second.get(i, 0.0)) for i in {*of_first, *of_second}},
        )


def parameters(theta: Array) -> list[Dual]:
    """Return each of the parameters theta [k, p] as a value [k, 1] that depends on itself alone."""
    return [Dual(theta[:, i, None], {i: 1.0}) for i in range(theta.shape[1])]
