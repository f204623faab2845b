"""FLOPs of matrix products and convolutions, counted from a traced program."""

import math
from collections.abc import Callable

import jax


def product_flops(function: Callable, *args) -> int:
    """FLOPs of all matrix products and convolutions of function(*args), 2 for a multiply-add.

    The body of a loop counts once for each of its steps, a `cond` as its branch with more FLOPs. A `while` loop whose number
    of steps is not known counts once.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, out_features = equation.invars[1].aval, params["dimension_numbers"].rhs_spec[0]
        return 2 * equation.outvars[0].aval.size * (kernel.size // kernel.shape[out_features])
    inner = _inner(params)
    return max(inner, default=0) if name == "cond" else sum(inner) * (params["length"] if name == "scan" else 1)


def _inner(params: dict) -> list[int]:
    """FLOPs of the programs among the parameters of an equation: the bodies of loops, branches and calls."""
    values = [item for value in params.values() for item in (value if isinstance(value, tuple | list) else [value])]
    programs = [getattr(value, "jaxpr", value) for value in values]
    return [_flops(program) for program in programs if hasattr(program, "eqns")]
