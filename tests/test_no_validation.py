"""`--data.validation 0`: the validation split is trained on too, nothing is validated, and the newest step counts as the best."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxgen
from jaxgen import data
from jaxgen.__main__ import main
from jaxgen.data import DataConfig, Dataset
from jaxgen.errors import ConfigError
from jaxgen.runs import checkpoint

VAE = ["train", "vae", "--model.hidden=16", "--model.latent=2", "--train.eval_every=2", "--train.batch_size=16"]


def rows(dataset) -> list[bytes]:
    return sorted(row.tobytes() for row in np.asarray(dataset.images))


@pytest.mark.parametrize("kind", ["digits", "number_words", "archive", "parts", "three parts", "pictures"])
def test_the_training_split_is_both(kind, tmp_path):
    name, images = str(tmp_path), np.random.default_rng(0).integers(0, 256, (30, 3, 3), np.uint8)
    if kind in ("digits", "number_words"):
        name = kind
    elif kind == "archive":
        name = f"{tmp_path}/x.npz"
        np.savez(name, image=images, label=np.arange(30) % 3)
    elif kind == "pictures":
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{number}.png")
    else:
        for part in ("train", "test") + ("validation",) * (kind == "three parts"):
            np.savez(tmp_path / f"{part}.npz", image=images if part == "train" else images[:4] ^ 1)
    parts = {split: data.load(name, split) for split in ("train", "validation", "test")}
    whole = data.load(name, "train", validation=0)
    assert rows(whole) == sorted(rows(parts["train"]) + rows(parts["validation"]))
    assert whole.features == parts["train"].features and (whole.labels is None) == (parts["train"].labels is None)
    assert rows(data.load(name, "test", validation=0)) == rows(parts["test"])
    with pytest.raises(ConfigError, match="^split: wanted train or test, got validation; .* with --data.validation 0 all is trained on$"):
        data.load(name, "validation", validation=0)


def test_wrong_values_are_named():
    with pytest.raises(ConfigError, match="data.validation: wanted 0, to train on all examples, .*, got 5"):
        DataConfig("digits", validation=5)

    class Own(DataConfig):
        def load(self, split: str) -> Dataset:
            return data.load("digits", split)

    with pytest.raises(ConfigError, match="data.validation: wanted nothing, for a class with its own load, got 0 for Own"):
        Own("x", validation=0)


def test_a_run_without_validation_takes_every_command(tmp_path, capsys, no_curves):
    run, options = tmp_path / "run", ["--data.validation=0", "--report.samples=2", "--report.rulers=False"]
    words = [*VAE, *options, f"--workdir={run}"]
    assert main([*words, "--train.steps=4"]) == 0
    out = capsys.readouterr().out
    assert "on all examples: nothing is validated, the newest step counts as the best" in out and "  validation " not in out
    assert "step 4  not validated" in out and "validation  none, trained on all examples: this is the newest step" in out
    assert checkpoint.list_metrics(run) == {2: {}, 4: {}} and checkpoint.read_fingerprint(run)["n"] == 1293 + 144
    assert "validation" not in checkpoint.read_fingerprint(run) and "test" in checkpoint.read_fingerprint(run)
    best, newest, older = (jax.tree.leaves(jaxgen.load(run, **how)) for how in ({}, {"step": 4}, {"step": 2}))
    assert all((a == b).all() for a, b in zip(best, newest, strict=True))
    assert not all((a == b).all() for a, b in zip(best, older, strict=True))
    assert not any("validation" in name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line))
    for command in (["evaluate"], ["evaluate", "--split=train"], ["sample", "--n=2"], ["show"]):
        assert main([command[0], str(run), *command[1:]]) == 0, capsys.readouterr().err
    assert "step        4  not validated" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--split=validation"]) == 2
    assert capsys.readouterr().err.startswith("jaxgen: --split: wanted train or test, got validation; ")
    assert main([*words, "--train.steps=6"]) == 0
    assert list(checkpoint.list_metrics(run)) == [4, 6]
    assert main([*VAE, f"--workdir={run}", "--train.steps=6"]) == 2
    assert "data.validation changed from 0 to None" in capsys.readouterr().err


def test_a_model_in_closed_form_needs_no_validation(tmp_path, capsys):
    assert main(["train", "pca", "--model.components=2", "--data.validation=0", f"--workdir={tmp_path}/run"]) == 0
    assert "on all examples" in capsys.readouterr().out and Path(tmp_path, "run", "curve.png").exists()
    assert main(["evaluate", f"{tmp_path}/run"]) == 0
