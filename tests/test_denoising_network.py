"""The denoising network that a configuration chooses: shapes, the embedding of the label, guidance."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgen.errors import ConfigError
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.layers.denoising_network import DenoisingNetwork, check_network
from jaxgen.layers.dit import DiTConfig
from jaxgen.layers.unet import UNetConfig


@dataclass(frozen=True)
class Config:
    image_shape: tuple[int, ...] = (4, 4, 2)
    levels: int = 5
    num_classes: int = 3
    network: str = "unet"
    unet: UNetConfig = UNetConfig()
    dit: DiTConfig = DiTConfig()
    mlp: MLPDenoiserConfig = MLPDenoiserConfig()
    dtype: str = "float32"

    def __post_init__(self):
        check_network(self)


CONFIGS = {
    "unet": Config(unet=UNetConfig(width=4, multiples=(1,), attention=())),
    "dit": Config(network="dit", dit=DiTConfig(width=8, depth=1, heads=2)),
    "mlp": Config(network="mlp", mlp=MLPDenoiserConfig(width=4, depth=1)),
    "points": Config((2,), 0, 0, network="mlp", mlp=MLPDenoiserConfig(width=4, depth=1)),
}


def random(config: Config, outputs: int) -> DenoisingNetwork:
    """A network whose weights are all random, also those that are zero at first."""
    shapes = jax.eval_shape(lambda: DenoisingNetwork(config, outputs, nnx.Rngs(0)))
    generator = np.random.default_rng(0)
    return jax.device_put(jax.tree.map(lambda leaf: 0.5 * generator.standard_normal(leaf.shape, np.float32), shapes))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_network_gives_its_outputs_and_guidance_is_the_line_through_two_results(name):
    config = CONFIGS[name]
    network, x = random(config, 2), jax.random.normal(jax.random.key(0), (3, *config.image_shape))
    time, label = jnp.asarray([0.0, 0.3, 1.0]), None if name == "points" else jnp.asarray([0, 2, 1])
    hidden = jnp.asarray([False, True, False])

    @jax.jit
    def program(x, time, label):
        found = {"label": network(x, time, label), "none": network(x, time, None), "w = 2": network.guided(x, time, label, 2.0)}
        if name != "mlp":  # the label is the same for all, and this one compiles in no time
            return found
        found |= {"w = 0": network.guided(x, time, label, 0), "hidden": network(x, time, label, hidden)}
        return found | {"weights": network(x, time, jax.nn.one_hot(label, 3))}

    found = program(x, time, label)
    conditional = found["label"]
    assert conditional.shape == (*x.shape[:-1], 2 * x.shape[-1])
    same = {"w = 0": conditional, "w = 2": conditional, "none": conditional}
    if name != "points":
        free = found["none"]
        assert float(jnp.abs(conditional - free).max()) > 1e-3
        mixed = jnp.where(hidden.reshape(-1, 1, 1, 1), free, conditional)
        same |= {"w = 2": 3 * conditional - 2 * free, "none": free, "hidden": mixed, "weights": conditional}
    for other in found:
        wanted = same.get(other, conditional)
        np.testing.assert_allclose(found[other], wanted, rtol=2e-5, atol=5e-5, err_msg=other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dit": DiTConfig(width=8)}, "dit: wanted its default: the network is unet"),
        ({"network": "dit", "dit": DiTConfig(patch=3)}, "dit.patch: wanted a divisor of the sides"),
        ({"image_shape": (2,), "num_classes": 0}, "network: wanted mlp for points, got unet"),
        ({"image_shape": (2,), "network": "mlp"}, "num_classes: wanted 0 for points"),
    ],
)
def test_sizes_of_another_network_and_networks_that_do_not_fit_are_errors(fields, message):
    with pytest.raises(ConfigError, match=message):
        replace(Config(), **fields)
