"""`in_loops`: a function of images as attacks follow it, step by step, on a CPU.

XLA's CPU backend has its fast convolutions for one order of the axes. Outside of a loop it brings others into that order; inside of one,
and the steps of an attack are a loop, it computes them number by number. The gradient of every convolution has another order, and so have
the images of libraries with the channels first. Here the convolutions of the function are computed by `layers.convolutions.convolution`,
which has fast gradients in loops: a step of PGD on a small network is 4 to 11 times as fast (experiments/results/attacks.md).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from jaxgen.layers.convolutions import convolution

KNOWN = tuple(str(Path(file).parent) for file in (jax.__file__, Path(__file__).parent))
"""Folders whose rules of derivatives use nothing but their arguments."""
TYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
"""Others would lose bits: the sums are float32."""


def in_loops(function: Callable) -> Callable:
    """The same function of one array, up to rounding, for the loops of an attack; elsewhere than on a CPU the function itself.

    The convolutions that `_is_plain` does not name stay as they are, and so do those inside of loops, branches and `remat`. A function with
    rules of derivatives of its own (`custom_jvp`, `custom_vjp`) stays as it is: they may use what was computed beside them, which is gone
    after the function was traced.
    """
    if jax.default_backend() != "cpu":
        return function

    def same(x):
        if not isinstance(x, jax.core.Tracer):
            return function(x)
        closed, shape = jax.make_jaxpr(function, return_shape=True)(x)
        if not all(map(_is_known, _equations(closed))):
            return function(x)
        return jax.tree.unflatten(jax.tree.structure(shape), _computed(closed.jaxpr, closed.consts, [x]))

    return same


def _computed(jaxpr: Jaxpr, consts: list, inputs: list) -> list:
    """The outputs of a program, operation by operation."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(name):
        return name.val if isinstance(name, Literal) else values[name]

    for equation in jaxpr.eqns:
        given = [read(name) for name in equation.invars]
        if equation.primitive.name == "jit":
            inner = equation.params["jaxpr"]
            found = _computed(inner.jaxpr, inner.consts, given)
        elif equation.primitive is jax.lax.conv_general_dilated_p and _is_plain(equation.params, *given):
            found = [_convolved(equation.params, *given)]
        else:
            named = [value for name, value in zip(equation.invars, given, strict=True) if not isinstance(name, Literal)]
            found = jaxpr_as_fun(_alone(equation))(*named)
        values.update(zip(equation.outvars, found, strict=True))
    return [read(name) for name in jaxpr.outvars]


def _alone(equation: JaxprEqn) -> ClosedJaxpr:
    """The program of one operation."""
    names = [name for name in equation.invars if not isinstance(name, Literal)]
    about = DebugInfo("in_loops", equation.primitive.name, None, None)
    return ClosedJaxpr(Jaxpr((), names, equation.outvars, [equation], equation.effects, about), ())


def _equations(program) -> Iterator[JaxprEqn]:
    """All operations, those of the programs inside it too."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _is_known(equation: JaxprEqn) -> bool:
    """Whether it has no rule of derivatives, or one of jax or of this library."""
    if equation.primitive.name not in ("custom_jvp_call", "custom_vjp_call"):
        return True
    program = equation.params["call_jaxpr"]
    return any(folder in str(getattr(program, "jaxpr", program).debug_info.func_src_info) for folder in KNOWN)


def _is_plain(params: dict, x, kernel) -> bool:
    """Whether it is a convolution of images of real numbers, not grouped or dilated, with one stride for rows and columns, no negative
    padding, and a result of the type of both factors."""
    strides, spreads = set(params["window_strides"]), set(params["lhs_dilation"])
    plain = params["feature_group_count"] == params["batch_group_count"] == 1 and set(params["rhs_dilation"]) == {1}
    square = len(params["window_strides"]) == 2 and len(strides) == len(spreads) == 1 and 1 in strides | spreads
    padded = all(zeros >= 0 for pair in params["padding"] for zeros in pair)
    same = x.dtype == kernel.dtype and params["preferred_element_type"] in (None, x.dtype)
    return plain and square and padded and same and x.dtype in TYPES


def _convolved(params: dict, x, kernel):
    """By `convolution`, with the axes in its order and back."""
    (batch, features, *image), (out, into, *window), result = params["dimension_numbers"]
    y = convolution(
        jnp.transpose(x, (batch, *image, features)),
        jnp.transpose(kernel, (*window, into, out)),
        tuple(map(tuple, params["padding"])),
        params["window_strides"][0],
        params["lhs_dilation"][0],
    )
    back = [(result[0], 0), (result[1], 3), (result[2], 1), (result[3], 2)]
    return y.transpose([axis for _, axis in sorted(back)])
