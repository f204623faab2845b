"""A run goes on only as the run it was: config, data, model, versions."""

import importlib.util

import pytest
from saved_runs import CONFIG, DATA, state, two_steps

import jaxgen
from jaxgen.errors import CheckpointError, ConfigError
from jaxgen.runs import checkpoint
from jaxgen.runs.checkpoint import Checkpointer

run = pytest.fixture(two_steps)


def changed(path: str, value) -> dict:
    """CONFIG with one field changed."""
    tree = dict(CONFIG)
    *groups, name = path.split(".")
    branch = tree
    for group in groups:
        branch[group] = dict(branch[group])
        branch = branch[group]
    branch[name] = value
    return tree


@pytest.mark.parametrize(("field", "value"), [("model.width", 16), ("model.depth", 2), ("train.batch_size", 8), ("model.steps", 3)])
def test_another_config_is_refused_with_its_fields(run, field, value):
    run.close()
    with pytest.raises(ConfigError, match=rf"{field} changed from .* to {value};.*--restart"):
        Checkpointer(run.workdir, changed(field, value), DATA)
    with Checkpointer(run.workdir, CONFIG, DATA) as saver:  # the refused one left no lock and no config
        assert saver.restore(state(1))[0] == 2
    with Checkpointer(run.workdir, changed(field, value), DATA, restart=True) as saver:
        assert saver.steps() == []


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_store_without_its_package_is_one_line():
    with pytest.raises(ConfigError, match="^workdir: wanted the package gcsfs, to reach gs://b/run, got none installed; pip install gcsfs"):
        Checkpointer("gs://b/run", CONFIG, DATA)


@pytest.mark.parametrize("field", ["train.steps", "train.log_every", "train.max_minutes", "workdir"])
def test_harmless_changes_are_reported_and_kept(run, field, capsys):
    run.close()
    with Checkpointer(run.workdir, changed(field, 77), DATA) as saver:
        assert f"{field} changed from" in capsys.readouterr().err
        saver.save(3, state(3))
    assert checkpoint.read_config(run.workdir) == changed(field, 77)
    assert '"class": "Experiment"' in (run.workdir / "config.json").read_text()


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("sha256", "cd"), ("batch_size", 8)])
def test_other_data_is_refused(run, name, value):
    run.close()
    with pytest.raises(ConfigError, match=f"data fingerprint {name} changed from .* to {value!r}"):
        Checkpointer(run.workdir, CONFIG, DATA | {name: value})


def test_another_number_of_processes_is_reported(run, capsys):
    run.close()
    with Checkpointer(run.workdir, CONFIG, DATA | {"process_count": 2}):
        assert "the number of processes changed from 1 to 2" in capsys.readouterr().err


def test_another_model_is_refused(run):
    run.close()
    with pytest.raises(CheckpointError, match="checkpoint is A, config is B"):
        Checkpointer(run.workdir, changed("model.class", "B"), DATA)


def test_a_run_without_checkpoints_may_change(tmp_path):
    Checkpointer(tmp_path, CONFIG, DATA).close()
    Checkpointer(tmp_path, changed("model.width", 3), DATA).close()


def test_an_upgrade_is_reported(run, monkeypatch, capsys):
    monkeypatch.setattr(jaxgen, "__version__", "9.9")
    run.restore(state(1))
    assert "versions changed: jaxgen from '0.1.0' to '9.9'" in capsys.readouterr().err
