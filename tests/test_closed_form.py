"""A model without a loss is fitted once by `Model.fit(dataset, config, key)`; every command takes its run like any other."""

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxgen
from jaxgen import cli, data, experiment
from jaxgen.data.features import OfImages
from jaxgen.experiment import Experiment


@dataclass(frozen=True)
class HistogramConfig(OfImages):
    """log p(x) = sum_i log p_i(x_i), p_i the share of the level among the training images, with one image of each level added."""

    image_shape: tuple[int, int, int] = (8, 8, 1)
    levels: int = 17

    def build(self, rngs):
        return Histogram(self, rngs=rngs)


class Histogram(nnx.Module):
    def __init__(self, config, *, rngs):
        self.config = config
        self.log_share = nnx.Param(jnp.zeros((*config.image_shape, config.levels)))

    @classmethod
    def fit(cls, dataset, config, key):
        counts = 1 + (np.asarray(dataset.images)[..., None] == np.arange(config.levels)).sum(axis=0)
        model = cls(config, rngs=nnx.Rngs(0))
        model.log_share[...] = jnp.log(jnp.float32(counts / counts.sum(axis=-1, keepdims=True)))
        return model

    def log_prob(self, image):
        return (jax.nn.one_hot(image, self.config.levels) * self.log_share[...][None]).sum(axis=(1, 2, 3, 4))

    def sample(self, key, n):
        return jax.random.categorical(key, self.log_share[...], shape=(n, *self.config.image_shape)).astype(jnp.uint8)


def test_a_closed_form_model_is_fitted_saved_and_taken_by_the_commands(tmp_path, capsys):
    run = Experiment(HistogramConfig(), workdir=str(tmp_path / "run"))
    assert experiment.train(run) == 0
    model = jaxgen.load(tmp_path / "run", models=[HistogramConfig])
    train = np.asarray(data.load("digits", "train").images)
    expected = np.log((1 + (train == 5).sum(axis=0)) / (len(train) + 17))
    np.testing.assert_allclose(model.log_share[..., 5], expected, rtol=1e-6)
    for command in ("show", "evaluate", "sample"):
        assert cli.command(command, [str(tmp_path / "run")] + ["--n=4"] * (command == "sample"), models=[HistogramConfig]) == 0
    out = capsys.readouterr().out
    assert re.search(r"validation bits_per_dim [12]\.", out) and "step        1  bits_per_dim" in out and "test bits_per_dim" in out
    assert experiment.train(run) == 0 and "is finished" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]
