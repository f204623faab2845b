"""Speed of each layer of the library, forward and backward, as a share of the machine's peak of matrix products.

    python -m experiments.layer_speed            # one core: about three minutes; --cores 2 for two, --only conv for some of them

A layer whose gradient takes only a few percent of the peak is computed by a loop over indices where products would do. FLOPs are those
of the products in the traced program of the forward pass; the backward pass has twice as many, for the parameters and for the input.
Results: experiments/results/layer_speed.md
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from jaxgen import benchmark
from jaxgen.layers import (
    attention,
    causal_convolutions,
    convolutions,
    denoising_mlp,
    dit,
    gated_resnet,
    masked,
    recurrent,
    residual_cells,
    unet,
    weight_norm,
)
from jaxgen.layers.convolutions import EXACT
from jaxgen.models import diagonal_bilstm, row_lstm, vqvae

SIZE, WIDTH, BATCH = 16, 64, 64
SLOW = 0.1
"""Share of the peak below which a layer is marked."""
DEPTHWISE, GENERATIVE = "Depthwise 5 x 5", "GenerativeCell, 3 times the channels"
ZEROS = {DEPTHWISE: WIDTH, GENERATIVE: 3 * WIDTH}
"""The channels of a depthwise 5 x 5 convolution in a layer. It is computed as products whose matrices are zero for the most part
(`depthwise` in jaxgen/layers/residual_cells.py): those with zeros are not counted."""


def layers() -> dict[str, tuple[Any, Callable, tuple[int, ...]]]:
    """Name -> (layer, how it is applied, shape of its input)."""
    rngs, image = nnx.Rngs(0), (BATCH, SIZE, SIZE, WIDTH)
    call = lambda layer, x: layer(x)  # noqa: E731
    conv = lambda inputs, outputs, kernel, stride=1: convolutions.Conv(inputs, outputs, kernel, rngs, stride)  # noqa: E731
    wide = (BATCH, 2 * SIZE, 2 * SIZE)
    shape = {"image_shape": (SIZE, SIZE, 1), "width": WIDTH // 2}
    run = gated_resnet.Pass(label=None, key=None, initialise=False)
    blocks = attention.make_blocks(SIZE, SIZE, 1, (SIZE, SIZE), (0, 0))
    norm = lambda form, *size: weight_norm.WeightNorm(form, WIDTH, WIDTH, size, rngs)  # noqa: E731

    def recur(gru, x):
        """The states of all places of a sequence."""
        return jax.lax.scan(lambda h, a: (gru(h, a),) * 2, jnp.zeros((BATCH, WIDTH)), gru.project(x).swapaxes(0, 1))[1]

    return {
        "Linear": (nnx.Linear(WIDTH, WIDTH, precision=EXACT, rngs=rngs), call, (BATCH * SIZE * SIZE, WIDTH)),
        "Conv 3 x 3": (conv(WIDTH, WIDTH, 3), call, image),
        "Conv 3 x 3, 3 features to 64": (conv(3, WIDTH, 3), call, (*wide, 3)),
        "Conv 3 x 3, 64 features to 3": (convolutions.Conv(WIDTH, 3, 3, rngs), call, (*wide, WIDTH)),
        "Conv 4 x 4, stride 2": (conv(WIDTH, WIDTH, 4, 2), call, image),
        "ConvTranspose 4 x 4, stride 2": (convolutions.ConvTranspose(WIDTH, WIDTH, 4, 2, rngs), call, image),
        "ConvTranspose 3 x 3, stride 2": (convolutions.ConvTranspose(WIDTH, WIDTH, 3, 2, rngs), call, image),
        "VerticalConv 3": (causal_convolutions.VerticalConv(WIDTH, WIDTH, 3, False, rngs), call, image),
        "VerticalConv 7, factorized": (causal_convolutions.VerticalConv(WIDTH, 2 * WIDTH, 7, True, rngs), call, image),
        "HorizontalConv 3": (causal_convolutions.HorizontalConv(WIDTH, 2 * WIDTH, 3, 1, "B", rngs), call, image),
        "Masked1x1": (masked.Masked1x1(WIDTH, WIDTH, 1, rngs), call, image),
        "MaskedConv 3": (masked.MaskedConv(WIDTH, WIDTH, 3, "B", 1, rngs), call, image),
        "MaskedConv 7": (masked.MaskedConv(WIDTH, WIDTH, 7, "A", 1, rngs), call, image),
        "WeightNorm Conv 2 x 3": (norm(weight_norm.Conv, 2, 3), call, image),
        "WeightNorm Down 2 x 3": (norm(weight_norm.Down, 2, 3), call, image),
        "WeightNorm Up 2 x 3": (norm(weight_norm.Up, 2, 3), lambda layer, x: layer(x, (2 * SIZE, 2 * SIZE)), image),
        "Resnet 2 x 2": (gated_resnet.Resnet(WIDTH, (2, 2), rngs), lambda layer, x: layer(x, [], run), image),
        "Attention, causal, one block": (attention.Attention(WIDTH, 4, rngs), lambda layer, x: layer(x, blocks), (BATCH, SIZE**2, WIDTH)),
        "RowLSTMLayer": (row_lstm.RowLSTMLayer(row_lstm.RowLSTMConfig(**shape), rngs), lambda layer, x: layer(x, jnp.zeros(())), image),
        "DiagonalLayer": (
            diagonal_bilstm.DiagonalLayer(diagonal_bilstm.DiagonalBiLSTMConfig(**shape), rngs),
            lambda layer, x: layer(x, jnp.zeros(())),
            image,
        ),
        "GRU": (recurrent.GRU(WIDTH, rngs), recur, (BATCH, SIZE**2, WIDTH)),
        DEPTHWISE: (residual_cells.Depthwise(WIDTH, 5, rngs), call, image),
        "Down 2 x 2": (residual_cells.Down(WIDTH, WIDTH, rngs), call, image),
        "Up 2 x 2": (residual_cells.Up(WIDTH, WIDTH, rngs), call, image),
        "EncoderCell": (residual_cells.EncoderCell(WIDTH, rngs), call, image),
        GENERATIVE: (residual_cells.GenerativeCell(WIDTH, 3, rngs), call, image),
        "ResidualBlock of VQ-VAE": (vqvae.ResidualBlock(WIDTH, rngs), call, image),
        "Codebook, nearest of 512": (vqvae.Codebook(512, WIDTH, rngs), lambda layer, z: layer.nearest(z), image),
        "U-Net block": (unet.Block(WIDTH, WIDTH, WIDTH, 0, rngs), lambda layer, x: layer(x, x[:, 0, 0], 0.0, None), image),
        "U-Net attention": (unet.SpatialAttention(WIDTH, 1, rngs), call, image),
        "U-Net Grow": (unet.Grow(WIDTH, rngs), call, image),
        "DiT block": (dit.Block(dit.DiTConfig(width=WIDTH, heads=1), rngs), lambda layer, x: layer(x, x[:, 0]), (BATCH, SIZE**2, WIDTH)),
        "Layer of DenoisingMLP": (denoising_mlp.Layer(WIDTH, rngs), lambda layer, h: layer(h, h), (BATCH * SIZE, WIDTH)),
    }


def zero_flops(channels: int) -> float:
    """FLOPs of products with zeros in a depthwise 5 x 5 convolution of that many channels."""
    if not channels:
        return 0
    x, kernel = jnp.zeros((BATCH, SIZE, SIZE, channels)), jnp.zeros((5, 5, channels))
    return benchmark.product_flops(residual_cells.depthwise, x, kernel) - 2 * 25 * x.size


def measure(name: str, layer, apply: Callable, shape: tuple[int, ...], repetitions: int) -> tuple[float, float, float | None]:
    """(GFLOPs of the forward pass, its share of the peak, the share of the backward pass or None for codes), medians over repetitions."""
    x, channels = jax.random.normal(jax.random.key(0), shape), ZEROS.get(name, 0)
    y = apply(layer, x)
    flops = benchmark.product_flops(apply, layer, x) - zero_flops(channels)
    forward, _ = benchmark.compiled(apply, layer, x)
    if gradient := jnp.issubdtype(y.dtype, jnp.floating):
        direction = jax.random.normal(jax.random.key(1), y.shape)
        # The gradient alone needs some of the forward pass too; its time is the whole program's, less the forward's.
        both, _ = benchmark.compiled(lambda layer, x, direction: jax.vjp(apply, layer, x)[1](direction), layer, x, direction)
    peak, shares = benchmark.Peak("float32"), []
    for _ in range(repetitions + 1):  # the first one is dropped
        _, first, _ = benchmark.timed(forward, layer, x)
        second = benchmark.timed(both, layer, x, direction)[1] if gradient else math.inf
        best = peak(2)
        shares.append((flops / first / best, 2 * flops / second / best))
    forward_share, backward_share = (statistics.median(part) for part in zip(*shares[1:], strict=True))
    return flops / 1e9, forward_share, backward_share if gradient else None


@dataclass(frozen=True)
class Options:
    """The command line."""

    cores: int = 1
    repetitions: int = 5
    only: str = ""  # a part of the names of the layers


def main() -> None:
    """Print the table."""
    options = tyro.cli(Options, description=__doc__)
    cores = benchmark.pin(options.cores)
    facts = benchmark.environment("python -m experiments.layer_speed", cores)
    print(", ".join(f"{name}: {facts[name]}" for name in ("date", "commit", "device", "cores", "second")))
    print("| layer | GFLOP, forward | forward, of the peak | backward, of the peak |\n|---|---|---|---|")
    for name, (layer, apply, shape) in layers().items():
        if options.only.lower() in name.lower():
            flops, forward, backward = measure(name, layer, apply, shape, options.repetitions)
            mark = f", below {SLOW:.0%}" if min(forward, forward if backward is None else backward) < SLOW else ""
            back = "none" if backward is None else f"{backward:.0%}"
            print(f"| {name} | {flops:.2f} | {forward:.0%} | {back}{mark} |", flush=True)


if __name__ == "__main__":
    main()
