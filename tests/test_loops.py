"""`attacks.loops`: the same functions, with convolutions whose gradients are fast in a loop on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import convolutions, equations

from jaxgen import attacks
from jaxgen.attacks.loops import in_loops

KEY = jax.random.key(0)
ORDER = [(0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)]
"""NHWC, HWIO, NHWC, in the words of jax: where batch and feature are, of the kernel where output and input are, then rows and columns."""
FIRST = ("NCHW", "OIHW", "NCHW")


def drawn(*shape):
    """An array of normal numbers, of a size that suits a kernel."""
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape) / 3, jnp.float32)


def convolved(x, kernel, stride=1, order=("NHWC", "HWIO", "NHWC"), padding="SAME", **options):
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=order, **options)


class Network(nnx.Module):
    """Flax's convolutions with the averages of batch normalisation."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.norm = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(4, 3, (3, 3), strides=2, padding="VALID", rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x)))).sum(axis=(1, 2))


def one_image(image):
    """One image with the channels first, as libraries of single examples have it."""
    h = convolved(image.transpose(2, 0, 1)[None], drawn(4, 2, 3, 3), order=FIRST)
    return convolved(jax.nn.relu(h), drawn(3, 4, 3, 3), 2, FIRST)[0].sum(axis=(1, 2))


@jax.jit
def inside(x):
    a, _, b = jnp.split(convolved(x, drawn(3, 3, 2, 6)), 3, axis=3)
    return a * jax.nn.sigmoid(b)


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda primals, tangents: (2 * primals[0], 20 * tangents[0]))  # not its own derivative, so that a lost rule is seen


def rule_inside(x):
    slope = jnp.exp(drawn(3).mean())

    @jax.custom_vjp
    def same(h):
        return h

    same.defvjp(lambda h: (h, None), lambda _, g: (slope * g,))
    return same(convolved(x, drawn(3, 3, 2, 3))).sum(axis=(1, 2))


def of_scan(x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(convolved(h, drawn(3, 3, 2, 2))), None), x, None, length=2)[0].sum(axis=1)[..., 0]


KERNEL = drawn(3, 3, 1, 3)
FAST = {
    "flax": Network(),
    "channels first, one image at a time": jax.vmap(one_image),
    "a kernel of 5 x 3, stride 2": lambda x: convolved(x, drawn(5, 3, 2, 3), 2).mean(axis=(1, 2)),
    "a transposed convolution": lambda x: convolved(x, drawn(4, 4, 2, 3), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2)).mean(axis=(1, 2)),
    "compiled inside": lambda x: inside(x).sum(axis=(1, 2)),
    "an activation with a rule of derivatives": lambda x: jax.nn.silu(jax.nn.relu(convolved(x, drawn(3, 3, 2, 3)))).max(axis=(1, 2)),
    "the kernel on the left": lambda x: convolved(drawn(3, 3, 3, 2), x, order=("NHWC", "OHWI", "NHWC")).sum(axis=(0, 1)),
}
AS_THEY_ARE = {
    "grouped": lambda x: convolved(x, drawn(3, 3, 1, 4), feature_group_count=2).sum(axis=(1, 2)),
    "dilated": lambda x: convolved(x, drawn(3, 3, 2, 3), rhs_dilation=(2, 2)).sum(axis=(1, 2)),
    "another stride down than across": lambda x: jax.lax.conv_general_dilated(
        x, drawn(3, 3, 2, 3), (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).sum(axis=(1, 2)),
    "along a line": lambda x: jax.lax.conv_general_dilated(
        x.reshape(len(x), -1, 2), drawn(3, 2, 3), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ).sum(axis=1),
    "a loop": of_scan,
    "a rule of derivatives": lambda x: doubled(convolved(x, drawn(3, 3, 2, 3))).max(axis=(1, 2)),
    "a rule that uses what was computed beside it": rule_inside,
    "in groups of images": lambda x: convolved(jnp.concatenate([x, x]), drawn(3, 3, 2, 4), batch_group_count=2).sum(axis=(1, 2)),
    "a stride between zeros": lambda x: convolved(x, drawn(3, 3, 2, 3), 2, padding=((1, 1), (2, 1)), lhs_dilation=(2, 2)).sum(axis=(1, 2)),
    "a result of more bits": lambda x: convolved(
        x.astype(jnp.bfloat16), drawn(3, 3, 2, 3).astype(jnp.bfloat16), preferred_element_type=jnp.float32
    ).sum(axis=(1, 2)),
    "complex numbers": lambda x: jnp.abs(convolved(jax.lax.complex(x, x)[..., :1], jax.lax.complex(KERNEL, -KERNEL)).sum(axis=(1, 2))),
    "none": lambda x: jnp.sort(x.reshape(len(x), -1), axis=1)[:, :3],
}


def orders(function, *arguments) -> list:
    """The orders of axes of all convolutions of a function."""
    return [list(params["dimension_numbers"]) for params in convolutions(function, *arguments)]


def gradient_of(function):
    return jax.grad(lambda x: jnp.sin(function(x)).sum())


# `convolution` has a form for few images and one for many; a function that is left as it is has neither.
@pytest.mark.parametrize("name, n", [(name, n) for name in (*FAST, *AS_THEY_ARE) for n in ((2, 9) if name in FAST else (9,))])
def test_values_and_gradients_are_those_of_the_function(name, n):
    function = (FAST | AS_THEY_ARE)[name]
    x = drawn(n, 7, 6, 2)
    found, wanted = jax.jit(lambda x: [(f(x), gradient_of(f)(x)) for f in (in_loops(function), function)])(x)
    np.testing.assert_allclose(found[0], wanted[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found[1], wanted[1], rtol=2e-5, atol=2e-5)
    if name in FAST:  # of the others the program is the same, see below
        np.testing.assert_array_equal(in_loops(function)(x), function(x))


@pytest.mark.parametrize("name", [name for name in FAST if name != "the kernel on the left"])
def test_gradients_have_the_order_of_axes_that_is_fast_in_a_loop(name):
    x = drawn(9, 7, 6, 2)
    plain, fast = (orders(gradient_of(f), x) for f in (FAST[name], in_loops(FAST[name])))
    assert any(order != ORDER for order in plain) and all(order == ORDER for order in fast)


@pytest.mark.parametrize("name", [*AS_THEY_ARE, "a negative padding", "integers"])
def test_other_convolutions_are_left_alone(name):
    functions = AS_THEY_ARE | {
        "a negative padding": lambda x: convolved(x, drawn(3, 3, 2, 3), padding=((-1, 1), (0, 0))),  # not computed: XLA may get it wrong
        "integers": lambda x: convolved(x.astype(jnp.int32), jnp.full((1, 1, 2, 1), 5001)),
    }
    function, x = functions[name], drawn(9, 7, 6, 2)
    found, wanted = (jax.make_jaxpr(f)(x) for f in (in_loops(function), function))
    names = [[equation.primitive.name for equation in equations(program)] for program in (found, wanted)]
    assert names[0] == [name for name in names[1] if name != "jit"]
    assert convolutions(in_loops(function), x) == convolutions(function, x)


def test_weights_may_be_traced_and_rows_mapped():
    x, kernel = drawn(9, 7, 6, 2), drawn(3, 3, 2, 3)

    @jax.jit
    def value(kernel, x):
        function = in_loops(lambda x: convolved(x, kernel).sum(axis=(1, 2)))
        return function(x), jax.vmap(lambda image: function(image[None])[0])(x)

    for found in value(kernel, x):
        np.testing.assert_allclose(found, convolved(x, kernel).sum(axis=(1, 2)), rtol=1e-5, atol=1e-5)


def test_elsewhere_than_on_a_cpu_it_is_the_function(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert in_loops(one_image) is one_image


classify = jax.vmap(one_image)
ATTACKS = {
    "pgd": lambda x, y: attacks.pgd(classify, x, y, KEY, 0.1),
    "multi_targeted": lambda x, y: attacks.multi_targeted(classify, x, y, KEY, 0.1),
    "penalised": lambda x, y: attacks.penalised(classify, x, y, KEY),
    "cw_l2": lambda x, y: attacks.cw_l2(classify, x, y, KEY),
    "deepfool": lambda x, y: attacks.deepfool(classify, x, y, KEY),
    "lbfgs": lambda x, y: attacks.lbfgs(classify, x, y, KEY),
    "eot": lambda x, y: attacks.eot(classify, x, y, KEY, 0.1, attacks.rotated(10)),
    "universal": lambda x, y: attacks.universal(classify, x, y, KEY, 0.1),
    "patch": lambda x, y: attacks.patch(classify, x, 1, KEY, 3),
    "train_net": lambda x, y: attacks.train_net(classify, x, y, KEY, 0.1)(x),
    "estimated": lambda x, y: attacks.estimated(classify, x, y, KEY, 0.1),
    "boundary": lambda x, y: attacks.boundary(classify, x, y, KEY),
    "activation_maximisation": lambda x, y: attacks.activation_maximisation(classify, y, x.shape[1:], KEY),
    "fooling_images": lambda x, y: attacks.fooling_images(classify, y, x.shape[1:], KEY),
    "invert": lambda x, y: attacks.invert(classify, drawn(9, 3), x.shape[1:], KEY),
    "plane": lambda x, y: attacks.plane(classify, x[0], x[1], KEY, side=9),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_compute_convolutions_in_that_order(name):
    x, y = jnp.clip(drawn(9, 7, 6, 2) + 0.5, 0, 1), jnp.arange(9) % 3
    assert all(order == ORDER for order in orders(ATTACKS[name], x, y))
