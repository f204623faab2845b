"""`jaxgen.train`: arrays of one's own without a file, and what is left of them afterwards."""

import json
import tempfile

import jax
import numpy as np
import pytest

import jaxgen
from jaxgen import experiment, notebook
from jaxgen.__main__ import main
from jaxgen.data import Dataset
from jaxgen.data.features import Image
from jaxgen.errors import ConfigError, DataError
from jaxgen.models import VAEConfig

TINY = VAEConfig((5, 4, 1), levels=2, hidden=(16,), latent=2)


def stripes(n: int) -> np.ndarray:
    """[n, 5, 4]: every image is ones in one of its four columns."""
    images = np.zeros((n, 5, 4), np.uint8)
    images[np.arange(n), :, np.arange(n) % 4] = 1
    return images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of a model that was trained on arrays, and the model."""
    folder = tmp_path_factory.mktemp("notebook") / "run"
    return folder, jaxgen.train(TINY, Dataset.from_arrays(stripes(200)), steps=60, workdir=folder, learning_rate=0.01, eval_every=60)


def test_three_lines_train_a_model_and_leave_nothing(tmp_path, monkeypatch, capsys, no_curves):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dataset = Dataset.from_arrays(stripes(200))
    model = jaxgen.train(TINY, dataset, steps=60, learning_rate=0.01, eval_every=60)
    assert np.asarray(model.sample(jax.random.key(0), 4)).shape == (4, 5, 4, 1)
    fresh = jaxgen.models.build(TINY)
    before, after = (jaxgen.evaluation.evaluate(one, dataset)["bits_per_dim_bound"] for one in (fresh, model))
    assert after < 0.8 * before
    assert not any(tmp_path.iterdir()) and capsys.readouterr().err == ""


def test_the_run_directory_takes_the_commands(run, capsys):
    folder, model = run
    capsys.readouterr()
    loaded = jaxgen.load(folder)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True))
    assert main(["sample", str(folder), "--n=4"]) == 0 and (folder / "samples.png").exists()
    assert main(["show", str(folder)]) == 0
    losses = [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 3
    out, err = capsys.readouterr()
    wanted = "jaxgen: arrays: wanted a data set that has a name, got arrays in memory, which are not kept on disk; in Python, "
    assert out == "" and err.startswith(wanted) and err.count("\n") == 1


def test_the_same_call_goes_on(run, capsys, monkeypatch):
    folder, _ = run
    data = Dataset.from_arrays(stripes(200))
    jaxgen.train(TINY, data, steps=60, workdir=folder, learning_rate=0.01, eval_every=60)
    assert "is finished at step 60" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="data fingerprint sha256 changed"):
        jaxgen.train(TINY, Dataset.from_arrays(1 - stripes(200)), steps=60, workdir=folder, learning_rate=0.01, eval_every=60)
    for code, error in ((experiment.INTERRUPTED, KeyboardInterrupt), (experiment.PREEMPTED, SystemExit)):
        monkeypatch.setattr(experiment, "train", lambda *_, code=code, **__: code)
        with pytest.raises(error):
            jaxgen.train(TINY, data)


def test_a_tenth_is_held_out_and_it_is_always_the_same():
    dataset = Dataset.from_arrays(np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8), np.arange(30) % 3)
    (train, validation), (again, _) = notebook.split_off(dataset), notebook.split_off(dataset)
    kept, held = (set(one.images[:, 0, 0, 0].tolist()) for one in (train, validation))
    assert (len(train), len(validation), kept | held) == (27, 3, set(range(30)))
    assert (train.images == again.images).all() and (train.labels == train.images[:, 0, 0, 0] % 3).all()
    assert (train.split, validation.split, train.num_classes) == ("train", "validation", 3)


def test_a_second_set_is_taken_for_validation(monkeypatch):
    seen = {}
    monkeypatch.setattr(experiment, "train", lambda run, sets: seen.update(sets=sets, run=run) or 75)
    one, two = Dataset.from_arrays(stripes(8)), Dataset.from_arrays(stripes(4))
    with pytest.raises(SystemExit):
        jaxgen.train(TINY, one, validation=two)
    assert seen["sets"][0] is one and seen["sets"][1] is two and seen["run"].train.batch_size == 8


def test_what_is_wrong_is_one_line(unchecked):
    with pytest.raises(ConfigError, match=r"^dataset: wanted a jaxgen.data.Dataset, got ndarray; Dataset.from_arrays\(array\) makes one$"):
        jaxgen.train(TINY, stripes(8))
    with pytest.raises(DataError, match=r"^dataset: wanted at least 2 examples in memory, to hold one out, got 1; or validation="):
        jaxgen.train(TINY, Dataset.from_arrays(stripes(1), levels=2))
    with pytest.raises(DataError, match=r"^arrays/train: wanted images of shape \[5, 4, 1\] as the model, got \[5, 3, 1\]$"):
        jaxgen.train(TINY, Dataset.from_arrays(stripes(8)[:, :, 1:]))
    with pytest.raises(ConfigError, match=r"^model: wanted a configuration of jaxgen.models, or one with a method build\(rngs\), got "):
        jaxgen.models.build(Dataset.from_arrays(stripes(8)))
    with pytest.raises(ConfigError, match=r"^model: wanted a configuration, got the class VAEConfig; VAEConfig\(\) makes one"):
        jaxgen.train(VAEConfig, Dataset.from_arrays(stripes(8)))


def test_a_class_of_ones_own_with_the_name_of_one_of_the_library_is_refused_before_the_training(tmp_path):
    """A file names the class, so the checkpoint could not be read again."""
    own = type("VAEConfig", (VAEConfig,), {"build": lambda self, rngs: jaxgen.models.VAE(self, rngs=rngs)})
    with pytest.raises(ConfigError, match="^model: wanted a class with another name than those of jaxgen.models, got VAEConfig"):
        jaxgen.train(own((5, 4, 1), levels=2), Dataset.from_arrays(stripes(8)), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["features", "modelled"])
def test_a_class_of_ones_own_without_what_its_data_are_says_so(name):
    attributes = {"features": {"image": Image((5, 4, 1), 2)}, "modelled": "image", "build": lambda self, rngs: None}
    own = type("OwnConfig", (), {key: value for key, value in attributes.items() if key != name})
    with pytest.raises(ConfigError, match=f"^OwnConfig.{name}: wanted .*, got nothing: the class has no such attribute$"):
        jaxgen.models.build(own())
