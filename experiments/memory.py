"""What every program of a run holds on a device while it works, where the state is split over eight devices (`--train.fsdp 8`); and what a
training step of the denoising networks holds on one device, with and without computing activations again in the backward pass (`remat`).

    python -m experiments.memory      on eight virtual devices of a CPU, a few minutes

The numbers are those of `memory_analysis()` of the compiled programs: nothing is trained. tests/test_born_sharded.py has the other half,
what the devices hold between the programs of a real run. Writes experiments/results/memory.md.
"""

import datetime
import os
import platform
import subprocess
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # before jax starts; whoever imports this file keeps the devices that there are
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxgen import models, training
from jaxgen.evaluation import likelihoods
from jaxgen.training import OptimizerConfig, sharding

RESULTS = Path(__file__).parent / "results" / "memory.md"
MODEL = models.GatedPixelCNNConfig(layers=4, width=128, head_width=256, num_classes=10)
BATCH = 16
DENOISERS = {"U-Net, `--model.unet.remat`": "unet", "DiT, `--model.dit.remat`": "dit"}
IMAGES = 64
"""Images of 32 x 32 x 3 in a batch of the denoising networks."""


def per_device(tree) -> int:
    """Bytes of a tree of shapes with shardings on one device."""
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def programs() -> tuple[dict, dict]:
    """(name: compiled program) of a run, and (name: bytes) of what there is to split."""
    mesh, optimizer = sharding.make_mesh(8), training.make_optimizer(OptimizerConfig(), 1)
    make = lambda: training.new_state(models.build(MODEL, 0), optimizer)  # noqa: E731
    shapes = jax.eval_shape(make)
    state = sharding.placed_shapes(mesh, shapes)
    model, key, rows = training.ema_model(state), jax.random.key(0), sharding.batch_sharding(mesh)

    def column(shape, dtype):
        return jax.ShapeDtypeStruct((BATCH, *shape), dtype, sharding=rows)

    batch = {"image": column(MODEL.image_shape, np.uint8), "label": column((), np.int32)}
    kind, known = likelihoods.kind_of(model, "elbo"), np.arange(64).reshape(8, 8) < 32
    image, label = jnp.zeros((BATCH, *MODEL.image_shape), jnp.uint8), jnp.zeros(BATCH, jnp.int32)
    made = {
        "first state": jax.jit(make, out_shardings=sharding.state_sharding(mesh, shapes)).lower(),
        "train step": training.make_train_step(optimizer, mesh).lower(state, batch, key),
        "validation, test (a batch)": likelihoods.compiled(kind, 1, sharding.whole(mesh)).lower(
            model, batch | {"index": column((), np.uint32)}, key
        ),
        "sampler (validation, report)": jax.jit(lambda model: model.sample(key, BATCH, label=label)).lower(model),
        "completions (report)": jax.jit(lambda model: model.sample(key, BATCH, label=label, known=(image, known))).lower(model),
    }
    whole = {"state": shapes, "model": training.ema_model(shapes)}
    sizes = {f"the whole {name}": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for name, tree in whole.items()}
    sizes |= {"a device's part of the state": per_device(state), "a device's part of the model": per_device(model)}
    return {name: lowered.compile() for name, lowered in made.items()}, sizes


def denoiser(network: str, remat: bool) -> models.DiffusionConfig:
    """Diffusion of images of 32 x 32 x 3 with the default sizes. network: "unet" or "dit"."""
    sizes = replace(getattr(models.DiffusionConfig, network), remat=remat)
    return models.DiffusionConfig((32, 32, 3), 256, network=network, **{network: sizes})


def compiled_step(config: models.DiffusionConfig):
    """The training step of one device, for a batch of 64 images."""
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1])
    optimizer = training.make_optimizer(OptimizerConfig(), 1)
    state = sharding.placed_shapes(mesh, jax.eval_shape(lambda: training.new_state(models.build(config, 0), optimizer)))
    image = jax.ShapeDtypeStruct((IMAGES, *config.image_shape), np.uint8, sharding=sharding.batch_sharding(mesh))
    return training.make_train_step(optimizer, mesh).lower(state, {"image": image}, jax.random.key(0)).compile()


def kept(config: models.DiffusionConfig) -> int:
    """Bytes of the arrays that jax keeps from the loss of 64 images for its gradient, parameters among them; nothing is compiled."""
    graph, params = nnx.split(jax.eval_shape(lambda: models.build(config, 0)))

    def gradient_of(params, image, key):
        return jax.vjp(lambda params: nnx.merge(graph, params).loss({"image": image}, key)[0], params)[1]

    image = jax.ShapeDtypeStruct((IMAGES, *config.image_shape), np.uint8)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(gradient_of, params, image, jax.random.key(0))))


def held(program) -> int:
    """Bytes of all that a program holds while it works; results that take the place of arguments count once."""
    found = program.memory_analysis()
    whole = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return whole + found.temp_size_in_bytes


def main() -> None:
    """The page."""
    compiled, sizes = programs()
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    lines = [
        "# What a program gathers on a device at fsdp = 8",
        "",
        f"- date: {datetime.date.today()}; commit: {git.stdout.strip()}; device: 8 virtual devices on a CPU ({platform.machine()});"
        f" versions: Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}",
        "- command: `python -m experiments.memory`",
        f"- model: `GatedPixelCNNConfig(layers={MODEL.layers}, width={MODEL.width}, head_width={MODEL.head_width}, num_classes=10)`"
        f" with adamw, {BATCH} images of 8 x 8 in a batch, two on a device",
        "- " + "; ".join(f"{name}: {size / 1e6:.2f} MB" for name, size in sizes.items()),
        "- MB of one device as `memory_analysis()` has them. In between: what the program holds beside arguments and results, so the arrays"
        " that it gathers from the other devices, gradients and activations",
        "",
        "| program | arguments | results | in between |",
        "|---|---|---|---|",
    ]
    for name, program in compiled.items():
        found = program.memory_analysis()
        bytes_of = (found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes)
        lines.append(f"| {name} | " + " | ".join(f"{size / 1e6:.2f}" for size in bytes_of) + " |")
    lines += ["| load | - | - | no program: each device reads its part of every array from the checkpoint |"]
    lines += [
        "",
        "# What a training step of a denoising network holds on one device",
        "",
        f"Diffusion with the default sizes, {IMAGES} images of 32 x 32 x 3 in a batch, adamw. With remat the blocks are computed once more"
        " in the backward pass instead of keeping what is between their layers. MB:",
        "",
        "| network | kept from the loss for its gradient | with remat | all that the compiled step holds, CPU | with remat |",
        "|---|---|---|---|---|",
    ]
    for name, network in DENOISERS.items():
        pair = [denoiser(network, remat) for remat in (False, True)]
        sizes = [*map(kept, pair), *(held(compiled_step(config)) for config in pair)]
        lines.append(f"| {name} | " + " | ".join(f"{size / 1e6:.0f}" for size in sizes) + " |")
    lines += [
        "",
        "The first two numbers are those of jax's program, for any device, before a compiler changes it. XLA's compiler for a CPU sees that"
        " the blocks are computed twice, computes them once and keeps the results: there remat saves next to nothing.",
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
