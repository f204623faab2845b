"""Classifiers against scikit-learn's on the digits, and what their layers give."""

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from jaxgen.data import Dataset, load
from jaxgen.data.features import ClassLabel, Image, Points, Vector
from jaxgen.errors import ConfigError, DataError
from jaxgen.evaluation import evaluate
from jaxgen.models import Classifier, ClassifierConfig

SMALL = ClassifierConfig((5, 4, 1), 4, 3, (6, 5))


def batch_of(n, config=SMALL):
    image = jax.random.randint(jax.random.key(1), (n, *config.image_shape), 0, config.levels).astype(jnp.uint8)
    return {"image": image, "label": jnp.arange(n, dtype=jnp.int32) % config.num_classes}


@pytest.fixture(scope="module")
def digits():
    train, test = load("digits", "train"), load("digits", "test")
    return (np.asarray(train.images), np.asarray(train.labels)), (np.asarray(test.images), np.asarray(test.labels))


def trained(images, labels, steps=200, size=128):
    """A perceptron after `steps` of Adam, in one compiled loop."""
    graph, params = nnx.split(Classifier(ClassifierConfig(hidden=(64,), architecture="mlp"), rngs=nnx.Rngs(0)))
    optimizer, generator = optax.adam(3e-3), np.random.default_rng(0)
    rows = generator.integers(0, len(images), (steps, size))

    def step(carry, rows):
        params, state = carry
        batch = {"image": jnp.asarray(images)[rows], "label": jnp.asarray(labels)[rows]}
        gradient = jax.grad(lambda params: nnx.merge(graph, params).loss(batch, jax.random.key(0))[0])(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        (params, _), _ = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), rows))(params)
    return nnx.merge(graph, params)


def test_a_short_training_on_digits_is_within_two_standard_errors_of_logistic_regression(digits):
    """The convolutional one, which a longer training makes as good as an SVM, is in experiments/classifier_digits.py."""
    (images, labels), (test_images, test_labels) = digits
    x, test_x = (each.reshape(len(each), -1) / 16 for each in (images, test_images))
    logistic = LogisticRegression(max_iter=100).fit(x, labels)
    logits = np.asarray(jax.jit(Classifier.predict)(trained(images, labels), jnp.asarray(test_images)))
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits)), np.float64)
    assert (logits.argmax(1) == test_labels).mean() >= logistic.score(test_x, test_labels) - 0.015  # two standard errors
    assert log_loss(test_labels, p / p.sum(1, keepdims=True)) < log_loss(test_labels, logistic.predict_proba(test_x))


@pytest.mark.parametrize("architecture", ["mlp", "conv"])
def test_the_layers_by_name(architecture):
    model = Classifier(ClassifierConfig((5, 4, 1), 4, 3, (6, 5), architecture), rngs=nnx.Rngs(0))
    image = batch_of(2)["image"]
    assert model.layers == ("hidden1", "hidden2", "logits")
    shapes = [model.activations(image, name).shape for name in model.layers]
    assert shapes == ([(2, 6), (2, 5), (2, 3)] if architecture == "mlp" else [(2, 5, 4, 6), (2, 3, 2, 5), (2, 3)])
    last = model.activations(image, "hidden2").reshape(2, -1)
    np.testing.assert_allclose(model.logits(last), model.predict(image), rtol=1e-6)
    assert float(last.min()) >= 0
    with pytest.raises(ConfigError, match="name: wanted one of hidden1, hidden2, logits, got hidden3"):
        model.activations(image, "hidden3")


def test_the_loss_is_scikit_learns_log_loss():
    model, batch = Classifier(SMALL, rngs=nnx.Rngs(0)), batch_of(7)
    value, metrics = model.loss(batch, jax.random.key(0))
    p = np.asarray(jax.nn.softmax(model.predict(batch["image"])), np.float64)
    np.testing.assert_allclose(value, log_loss(batch["label"], p / p.sum(1, keepdims=True)), rtol=1e-6)
    assert metrics["log_loss"] == value and metrics["accuracy"] == np.float32((p.argmax(1) == batch["label"]).mean())


@dataclasses.dataclass(frozen=True)
class TwoColumns:
    """The configuration of a classifier of two numbers, whose features are in another order than its arguments."""

    features: ClassVar[dict] = {"low": Vector(1), "label": ClassLabel(2), "high": Vector(1)}
    modelled: ClassVar[str] = "label"


class Higher(nnx.Module):
    """Class 1 where high > low."""

    config = TwoColumns()

    def predict(self, high, low):
        return 1000.0 * jnp.concatenate([low, high], axis=-1)


class OneColumn(nnx.Module):
    """The same for low = 0, with a name of its own for its one column."""

    config = SimpleNamespace(features={"high": Vector(1), "label": ClassLabel(2)}, modelled="label")

    def predict(self, x):
        return 1000.0 * jnp.concatenate([jnp.zeros_like(x), x], axis=-1)


@pytest.mark.parametrize("model", [Higher(), OneColumn()])
def test_a_classifier_gets_its_columns_by_name_in_any_order(model):
    rows = np.float32([[0, 1], [0, -1], [0, 2], [0, 3]])
    columns = {"high": rows[:, 1:], "low": rows[:, :1], "label": np.int32([1, 0, 1, 0])}
    columns = {name: columns[name] for name in model.config.features}
    result = evaluate(model, Dataset.from_columns(columns, model.config.features), batch_size=4)
    assert result["accuracy"] == 0.75


def test_features_and_errors():
    assert SMALL.features == {"image": Image((5, 4, 1), 4), "label": ClassLabel(3)}
    assert ClassifierConfig(**ClassifierConfig.sizes_from(SMALL.features), hidden=(6, 5)) == SMALL
    with pytest.raises(DataError, match="images with labels"):
        ClassifierConfig.sizes_from({"point": Points(2)})
    for wrong in ({"num_classes": 1}, {"hidden": ()}, {"levels": 1}, {"image_shape": (0, 1, 1)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ClassifierConfig(**wrong)
    with pytest.raises(ConfigError, match="an entry 'label'"):
        Classifier(SMALL, rngs=nnx.Rngs(0)).loss({"image": batch_of(2)["image"]}, jax.random.key(0))
