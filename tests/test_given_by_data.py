"""What is given beside images comes from the data: sizes of labels and vectors, and the first line of a run says what is not used."""

import numpy as np
import pytest

from jaxgen import cli, config
from jaxgen.data import Dataset
from jaxgen.data.features import Image as Images
from jaxgen.experiment import Experiment
from jaxgen.models import ClassifierConfig, GatedPixelCNNConfig, PCAConfig, PixelCNNConfig, VAEConfig
from jaxgen.reports import first_line
from jaxgen.runs import checkpoint


def test_the_size_of_vectors_is_a_field_of_models_that_can_be_given_one() -> None:
    features = Dataset.from_arrays(np.zeros((4, 3, 4), np.uint8), vector=np.ones((4, 2))).features
    assert GatedPixelCNNConfig.sizes_from(features) == {"image_shape": (3, 4, 1), "levels": 2, "vector_size": 2}
    assert VAEConfig.sizes_from(features) == {"image_shape": (3, 4, 1), "levels": 2, "vector_size": 2}
    assert PixelCNNConfig.sizes_from(features) == {"image_shape": (3, 4, 1), "levels": 2}


def test_vector_size_is_that_of_the_data_unless_it_is_0_and_a_run_keeps_its_own(tmp_path, monkeypatch) -> None:
    random = np.random.default_rng(0)
    arrays = {"image": random.integers(0, 2, (20, 3, 4)), "label": np.arange(20) % 3, "vector": random.normal(size=(20, 5))}
    np.savez(tmp_path / "a.npz", **arrays)
    words = ["gated_pixelcnn", f"--data.name={tmp_path / 'a.npz'}", f"--workdir={tmp_path / 'run'}"]

    seen = []
    monkeypatch.setattr(cli, "train", lambda experiment, *more, **options: seen.append(experiment) or 1)

    def sizes(*more: str) -> tuple[int, int]:
        assert cli.command("train", [*words, *more]) == 1
        model = seen[-1].model
        return model.num_classes, model.vector_size

    assert sizes() == (3, 5) and sizes("--model.vector_size=0") == (3, 0) and sizes("--model.num_classes=0") == (0, 5)
    begun = config.to_json(Experiment(GatedPixelCNNConfig((3, 4, 1), 2, num_classes=3)))
    monkeypatch.setattr(checkpoint, "begun_config", lambda workdir: begun)
    assert sizes() == (3, 0) and sizes("--restart") == (3, 5)  # a run of before goes on as it was begun


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (GatedPixelCNNConfig((3, 4, 1), 2, num_classes=3, vector_size=5), ", given the label (3 classes) and vectors of size 5"),
        (GatedPixelCNNConfig((3, 4, 1), 2, vector_size=5), ", given vectors of size 5, without the data's label"),
        (GatedPixelCNNConfig((3, 4, 1), 2, num_classes=3), ", given the label (3 classes), without the data's vector"),
        (VAEConfig((3, 4, 1), 2), ", without the data's label and vector"),
        (PCAConfig((3, 4, 1), 2, components=2), ", without the data's label and vector"),
        (ClassifierConfig((3, 4, 1), 2, num_classes=3), ", without the data's vector"),
    ],
)
def test_the_first_line_says_what_is_given_and_what_is_not_used(model, said: str) -> None:
    dataset = Dataset.from_arrays(np.eye(12, dtype=np.uint8).reshape(12, 3, 4), np.arange(12) % 3, vector=np.ones((12, 5)))
    assert first_line.beginning(Experiment(model), 0, dataset) == f"training to step 1000 in runs/experiment{said}"


def test_a_column_from_which_another_is_made_is_used() -> None:
    dataset = Dataset.from_arrays(np.zeros((4, 2, 2), np.uint8), np.zeros(4, int))
    assert dataset.unused_by({"small": Images((1, 1, 1), 2, of="image")}) == ["label"]
