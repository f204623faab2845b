"""The floor of a Frechet distance: the distance of real examples from real examples, at the same n."""

import numpy as np
import pytest
from test_evaluation import Copy

from jaxgen.data import Dataset, load
from jaxgen.errors import DataError
from jaxgen.evaluation import evaluate, with_floor
from jaxgen.measures import scores
from jaxgen.measures.frechet import frechet_distance, frechet_floor


def test_the_floor_of_gaussian_examples_is_that_of_the_expansion():
    """For n >> D: 2 D / n of the means and D (D + 1) / (2 n) of the covariances; a perfect generator gets the same distance."""
    real = np.random.default_rng(0).normal(size=(8000, 30))
    wanted = (2 * 30 + 30 * 31 / 2) / 2000
    assert frechet_floor(real, 2000) == pytest.approx(wanted, rel=0.05)
    assert frechet_distance(real[:2000], real[2000:4000]) == pytest.approx(wanted, rel=0.1)
    assert frechet_floor(real, 1000) == pytest.approx(2 * wanted, rel=0.1)


def test_the_halves_are_disjoint():
    """With 2 n examples in two far groups of n, halves that shared examples could not hold all of them; n + 1 do not fit."""
    seen = []
    real = np.arange(12.0)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgen.measures.frechet.frechet_distance", lambda a, b: seen.append((set(a[:, 0]), set(b[:, 0]))) or 0.0)
        frechet_floor(real, 6)
    assert len(seen) == 3 and len({frozenset(a) for a, _ in seen}) == 3
    assert all(len(a) == len(b) == 6 and a | b == set(real[:, 0]) for a, b in seen)
    with pytest.raises(DataError, match="frechet_floor: wanted at least 14 examples, got 12"):
        frechet_floor(real, 7)


def test_the_floor_stands_beside_the_distance_at_the_same_n():
    """A generator of training images is as far from the test images as training images are; one of mirrored images is not."""
    train, test = load("digits", "train"), load("digits", "test")
    result = with_floor(evaluate(Copy(train.images), test), None, test, train)
    assert result["n_floor"] == result["n_real"] == 360
    assert 0.7 < result["frechet_pixels"] / result["frechet_pixels_floor"] < 1.5
    lines = list(scores.lines("test", result, "image", None, {}, {}))
    assert f"  real against real         {result['frechet_pixels_floor']:.4f}  (360 images)" in lines
    far = with_floor(evaluate(Copy(train.images[:, ::-1]), test), None, test, train)
    assert far["frechet_pixels_floor"] == result["frechet_pixels_floor"] and far["frechet_pixels"] > 4 * far["frechet_pixels_floor"]
    few = Dataset(train.source.select(slice(100)), "digits", "train")
    assert with_floor(result, None, test, few)["n_floor"] == 230  # of 460 real images
    assert with_floor({"bits_per_dim": 1.0}, None, test, train) == {"bits_per_dim": 1.0}
