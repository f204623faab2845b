"""GANs compared: five objectives on two sets of narrow Gaussians, and three GANs of digits beside a Gaussian for each class.

    python -m experiments.compare_gans                   whatever experiments/results/gan.json lacks; all of it is an hour of one CPU core
    python -m experiments.compare_gans --only ring       one part: ring, grid or digits
    python -m experiments.compare_gans --laptop          one seed and two steps each, to see that it runs; writes nothing

Every run is written into gan.json when it ends, so the same command goes on after an interruption. Prints the tables of
experiments/results/gan.md. Points: 10,000 samples of the averaged generator at the last step, beside the known centres. Digits: half of the
training images are for the classifier whose features are compared, the other half for the GAN and for the Gaussians (one for the images of
each class); both are compared with the 360 test images, as many samples of each. So the three sets of images are disjoint.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

import jaxgen
from experiments import classifier_digits, conditional_gan_digits, gan_digits
from experiments.known_samples import gaussians
from jaxgen import evaluation, models, sharding, training
from jaxgen.data import Dataset, load
from jaxgen.models import GANConfig
from jaxgen.training import OptimizerConfig, TrainConfig

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2, 3)
SAMPLES, LEVELS = 10_000, 17
POINTS = GANConfig((2,), 0, latent=2, hidden=128, depth=3)
OF_POINTS = TrainConfig(steps=8000, batch_size=256, ema_decay=0.99)
OF_MODES = ("high_quality_fraction", "smallest_mode_share", "mode_kl")
COMPARED = ("frechet_features", "kernel_features", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Setting:
    """A GAN and how it is trained."""

    model: GANConfig
    optimizer: OptimizerConfig
    train: TrainConfig


def of_points(generator: float, discriminator: float, every: int = 1, **model) -> Setting:
    """A GAN of points whose rates go to zero along a cosine; `every` steps of the discriminator for one of the generator."""
    rates = (("generator", generator), ("discriminator", discriminator))
    optimizer = OptimizerConfig(name="adam", schedule="cosine", b1=0.0, clip_norm=None, players=rates, every=(("generator", every),))
    return Setting(replace(POINTS, **model), optimizer, OF_POINTS)


R1 = {"penalty": "r1", "penalty_weight": 0.1}
SETTINGS = {
    "minimax": of_points(1e-3, 1e-3, objective="minimax"),
    "minimax, R1": of_points(1e-3, 1e-3, objective="minimax", **R1),
    "non-saturating": of_points(1e-3, 1e-3),
    "non-saturating, R1": of_points(1e-3, 1e-3, **R1),
    "least squares": of_points(1e-3, 1e-3, objective="least_squares"),
    "least squares, R1": of_points(1e-3, 1e-3, objective="least_squares", **R1),
    "hinge": of_points(1e-3, 1e-3, objective="hinge"),
    "hinge, R1": of_points(1e-3, 1e-3, objective="hinge", **R1),
    "Wasserstein, gradient penalty": of_points(1e-3, 1e-3, 5, objective="wasserstein", penalty="gradient"),
    "Wasserstein, R1": of_points(1e-3, 1e-3, objective="wasserstein", **R1),
}
CONDITIONAL = conditional_gan_digits.config
UNCONDITIONAL = GANConfig((8, 8, 1), LEVELS, 32, 64, architecture="conv", objective="hinge", spectral=True)
OF_DIGITS = {
    "DCGAN": Setting(gan_digits.config.model, gan_digits.config.optimizer, gan_digits.config.train),
    "SNGAN": Setting(UNCONDITIONAL, CONDITIONAL.optimizer, CONDITIONAL.train),
    "conditional, projection": Setting(CONDITIONAL.model, CONDITIONAL.optimizer, CONDITIONAL.train),
}


def trained(setting: Setting, dataset: Dataset, seed: int, events: tuple = ()) -> Any:
    """The averaged model after the setting's steps. events: those of `training.fit`."""
    options, mesh = replace(setting.train, seed=seed), sharding.make_mesh()
    optimizer = training.make_optimizer(setting.optimizer, options.steps)
    state = training.init_state(models.build(setting.model, seed), optimizer, mesh)
    step = training.make_train_step(optimizer, mesh, options.ema_decay)
    batches = (sharding.place_batch(mesh, batch) for batch in dataset.batches(0, options.batch_size, seed))
    return training.ema_model(training.fit(state, step, batches, jax.random.key(seed), options.steps, events=events))


def brief(setting: Setting) -> Setting:
    """Two steps of it."""
    return replace(setting, train=replace(setting.train, steps=2))


def measure_points(name: str, setting: Setting, seed: int) -> dict:
    """A row: the modes of a set of points that samples cover."""
    model = trained(setting, load(name, "train"), seed)
    samples = jax.jit(lambda model, key: model.sample(key, SAMPLES))(model, jax.random.key(seed))
    return evaluation.mode_coverage(np.asarray(samples), **load(name, "test").facts)


def halves() -> tuple[Dataset, Dataset]:
    """The training digits: those for the classifier, and those for the GAN."""
    train = load("digits", "train")
    parts = [(train.images[start::2], np.asarray(train.labels[start::2])) for start in range(2)]
    return tuple(Dataset.from_arrays(*part, levels=LEVELS) for part in parts)


def classifier(steps: int) -> Any:
    """The extractor, trained once and kept in runs/."""
    settings = {"learning_rate": 3e-3, "eval_every": steps, "workdir": f"runs/compare_gans_classifier_{steps}"}
    return jaxgen.train(classifier_digits.config.model, halves()[0], steps, **settings)


def measure_digits(setting: Setting, seed: int, extractor: Any) -> dict:
    """A row: samples of a GAN, and of a Gaussian for each class of its training images, beside the test images."""
    training_set, test = halves()[1], load("digits", "test")
    model, label = trained(setting, training_set, seed), np.asarray(test.labels)
    given = {"label": label} if "label" in model.config.features else {}
    draw = jax.jit(lambda model, key, given: model.sample(key, len(label), **given))
    samples = np.asarray(draw(model, jax.random.key(seed), given))
    features, image = evaluation.classifier_features(extractor), training_set.images
    drawn = gaussians(image, np.asarray(training_set.labels), label, np.random.default_rng(seed))
    found, beside = (evaluation.compare_samples(one, test.images, features, more=image) for one in (samples, drawn))
    row = {one: found[one] for one in COMPARED} | {f"{one}_gaussian": beside[one] for one in COMPARED}
    row |= {f"{one}_floor": found[f"{one}_floor"] for one in COMPARED} | {"n": found["n"], "extractor": evaluation.weights_hash(extractor)}
    row |= {one: evaluation.memorisation(samples, test.images, image)[one] for one in ("memorisation_ratio", "copies")}
    if given:
        row |= {"recognised": evaluation.share_recognised(extractor, samples, label)[0]}
        row |= {"recognised_real": evaluation.share_recognised(extractor, test.images, label)[0]}
    return row


def table_of_points(name: str, rows: list[dict]) -> list[str]:
    """A line for each setting, with every seed."""
    test = load(name, "test")
    real = evaluation.mode_coverage(test.images, **test.facts)
    lines = [f"| {name} | modes, of {real['modes_covered']} | share within 3 sigma | least mode | KL of modes | steps | CPU s a seed |"]
    lines.append("|---|---|---|---|---|---|---|")
    for setting, found in _by_setting(rows):
        cells = [" ".join(str(row["modes_covered"]) for row in found)]
        cells += [" ".join(f"{row[one]:.3f}" for row in found) for one in OF_MODES]
        cells += [f"{found[0]['steps']}", f"{np.mean([row['seconds'] for row in found]):.0f}"]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    real = [f"{real['modes_covered']}", *(f"{real[one]:.3f}" for one in OF_MODES), "", ""]
    return [*lines, "| 10,000 real points | " + " | ".join(real) + " |"]


def table_of_digits(rows: list[dict]) -> list[str]:
    """A line for each GAN, one for its Gaussians and one for real images, with every seed."""
    lines = ["| samples | " + " | ".join(f"`{one}`" for one in COMPARED) + " | recognised | `memorisation_ratio` | copies | CPU s a seed |"]
    lines.append("|---" * (len(COMPARED) + 5) + "|")
    for setting, found in _by_setting(rows):
        more = [" ".join(f"{row[one]:.3f}" for row in found if one in row) for one in ("recognised", "memorisation_ratio", "copies")]
        more.append(f"{np.mean([row['seconds'] for row in found]):.0f}")
        lines.append(f"| {setting} | " + " | ".join([_cell(found, one) for one in COMPARED] + more) + " |")
    for name, of in ("a Gaussian for each class", rows[: len(SEEDS) - 1]), ("real against real", rows[:1]):  # the same for all GANs
        end = "gaussian" if "Gaussian" in name else "floor"
        lines.append(f"| {name} | " + " | ".join(_cell(of, f"{one}_{end}") for one in COMPARED) + " | | | | |")
    return lines


def _cell(rows: list[dict], name: str) -> str:
    return " ".join(f"{row[name]:.3g}" for row in rows)


def _by_setting(rows: list[dict]) -> Iterable[tuple[str, list[dict]]]:
    for setting in (*SETTINGS, *OF_DIGITS):
        if found := [row for row in rows if row["setting"] == setting]:
            yield setting, found


@dataclass(frozen=True)
class Options:
    """The command line."""

    only: Literal["ring", "grid", "digits", "all"] = "all"  # the part that is run
    seeds: tuple[int, ...] = SEEDS  # of points; of digits the first three
    laptop: tyro.conf.FlagCreatePairsOff[bool] = False  # one seed and two steps each; writes nothing


def main() -> None:
    """Every setting of every part with every seed that the file lacks."""
    options, path = tyro.cli(Options, description=__doc__), RESULTS / "gan.json"
    saved = json.loads(path.read_text())["rows"] if path.exists() and not options.laptop else []
    seeds = options.seeds[:1] if options.laptop else options.seeds
    parts = {"ring": SETTINGS, "grid": SETTINGS, "digits": OF_DIGITS}
    if options.laptop:
        parts = {part: {name: brief(setting) for name, setting in settings.items()} for part, settings in parts.items()}
    rows, extractor = {(row["set"], row["setting"], row["seed"]): row for row in saved}, None
    for part, settings in parts.items():
        for name, setting in settings.items():
            for seed in seeds[: len(SEEDS) - 1] if part == "digits" else seeds:
                if (part, name, seed) in rows or options.only not in (part, "all"):
                    continue
                if part == "digits" and extractor is None:
                    extractor = classifier(2 if options.laptop else 1000)
                start = time.process_time()
                row = measure_digits(setting, seed, extractor) if part == "digits" else measure_points(part, setting, seed)
                where = {"set": part, "setting": name, "seed": seed, "steps": setting.train.steps}
                rows[part, name, seed] = where | row | {"seconds": time.process_time() - start}
                print(rows[part, name, seed], flush=True)
                if not options.laptop:
                    path.write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")
    for part in parts:
        found = [row for row in rows.values() if row["set"] == part]
        print("\n".join(["", *(table_of_digits(found) if part == "digits" else table_of_points(part, found))]))


if __name__ == "__main__":
    main()
