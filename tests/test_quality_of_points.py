"""`jaxgen quality` of models of points: their coordinates are compared, beside the modes of a mixture."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import commands, run_commands
from jaxgen.data import load
from jaxgen.data.features import Points
from jaxgen.errors import ConfigError
from jaxgen.evaluation import compare_samples, draw_like, memorisation, mode_coverage
from jaxgen.measures.metrics import OF_FEATURES, OF_MODES
from jaxgen.reports.quality import print_quality

EXPERIMENT = SimpleNamespace(train=SimpleNamespace(batch_size=64, fsdp=1))
NONE_OF_POINTS = {"classifier_score", "recognised", "trained_on_samples"}


@jax.tree_util.register_static
class OneMode:
    """A collapsed generator: the first mode of the ring, a little too wide."""

    config = SimpleNamespace(features={"point": Points(2)}, modelled="point")

    def sample(self, key, n):
        return jnp.array([[2.0, 0.0]]) + 0.03 * jax.random.normal(key, (n, 2))


def test_the_numbers_of_points_are_those_of_their_coordinates(capsys):
    options = commands.Quality("run", n=100, seed=1)
    print_quality(EXPERIMENT, OneMode(), None, options, lambda split: load("ring", split))
    found = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    test, train = load("ring", "test"), load("ring", "train")
    columns, samples = draw_like(OneMode(), test, jax.random.key(1), n=100)
    assert found[:3] == [
        "features the coordinates of the points",
        "compared 100 samples with 100 test points; real against real 100 of each",
        "splits 0 of the 100 test points are among the 50000 that the model was trained on",
    ]
    lines = {line.split()[0]: (line, under) for line, under in zip(found[3::2], found[4::2], strict=True)}
    assert list(lines) == [name for name in (*OF_FEATURES, *OF_MODES) if name not in NONE_OF_POINTS]
    more = train.images[np.random.default_rng(0).permutation(len(train))[:100]]
    result = compare_samples(samples, columns["point"], lambda x: x, more)
    assert lines["frechet_features"][0] == f"frechet_features {result['frechet_features']:.4f} (lower is better)"
    assert lines["recall"][1] == f"real against real {result['recall_floor']:.4f}"
    ratio = memorisation(samples, columns["point"], train.images)["memorisation_ratio"]
    assert lines["memorisation_ratio"][0] == f"memorisation_ratio {ratio:.4f} (higher is better)"
    modes, real = (mode_coverage(points, **test.facts) for points in (samples, columns["point"]))
    assert lines["modes_covered"] == ("modes_covered 1 (higher is better)", "of the real points 8")
    assert lines["mode_kl"] == (f"mode_kl {np.log(8):.4g} (lower is better)", f"of the real points {real['mode_kl']:.4g}")
    assert lines["high_quality_fraction"][0] == f"high_quality_fraction {modes['high_quality_fraction']:.4g} (higher is better)"


@pytest.mark.parametrize(("option", "value"), [("features", "runs/classifier"), ("layer", "hidden1")])
def test_points_have_no_classifier(monkeypatch, option, value):
    monkeypatch.setattr(run_commands, "_open", lambda options, models: (EXPERIMENT, OneMode()))
    monkeypatch.setattr(run_commands, "_reader", lambda options, experiment: load)
    message = f"^--{option}: wanted none for a model of points, whose coordinates are compared, got {value}$"
    with pytest.raises(ConfigError, match=message):
        run_commands.quality(commands.Quality("run", **{option: value}))
