"""What the numbers of `jaxgen quality` say of samples whose faults are known, on scikit-learn's digits, as a table.

    python -m experiments.known_samples              writes for_classifier.npz, a third of the training images
    python -m experiments.classifier_digits --data.name for_classifier.npz --data.levels 17 --workdir runs/classifier_third
    python -m experiments.known_samples runs/classifier_third

Another third takes the place of a model's training images, the last third that of new real images; all are compared with the test images.
So the classifier, the model and the comparison have no image in common. Results: experiments/results/sample_quality.md
"""

from dataclasses import dataclass

import numpy as np
import tyro

import jaxgen
from jaxgen.data import load
from jaxgen.evaluation import (
    accuracy_trained_on,
    classifier_features,
    classifier_score,
    compare_samples,
    logits_of,
    memorisation,
    share_recognised,
    weights_hash,
)

LEVELS, CLASSES, PARTS = 17, 10, 3
COLUMNS = ("frechet_features", "kernel_features", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str] = ""  # run directory of the classifier; none: its data are written
    out: str = "for_classifier.npz"  # where they are written
    seed: int = 0  # of the noise and the Gaussians


def gaussians(image: np.ndarray, label: np.ndarray, wanted: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An image of every wanted class from the Gaussian with the mean and covariance of the images of that class, rounded to levels."""
    drawn = np.empty((len(wanted), *image.shape[1:]))
    for one in range(CLASSES):
        x = image[label == one].reshape((label == one).sum(), -1).astype(np.float64)
        draws = random.multivariate_normal(x.mean(axis=0), np.cov(x, rowvar=False), (wanted == one).sum(), method="eigh")
        drawn[wanted == one] = draws.reshape(-1, *image.shape[1:])
    return pixels(drawn)


def pixels(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, LEVELS - 1).astype(np.uint8)


def sets(training, new, real, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{what: (images, labels)}; training, new and real are such pairs."""
    random, (image, label) = np.random.default_rng(seed), new
    kept = label < 7
    first = np.array([np.flatnonzero(label == one)[0] for one in range(CLASSES)])[np.arange(len(label)) % CLASSES]
    noisy = {sd: pixels(image + (LEVELS - 1) * sd * random.normal(size=image.shape)) for sd in (0.1, 0.3)}
    return {
        "new real images": new,
        **{f"new real images, noise {sd}": (x, label) for sd, x in noisy.items()},
        "without the classes 7 to 9": (image[kept], label[kept]),
        "one image of each class, repeated": (image[first], label[first]),
        "a Gaussian for each class": (gaussians(*training, label, random), label),
        "copies of training images": training,
        "copies of the test images": real,
    }


def main(options: Options) -> None:
    train, test = load("digits", "train"), load("digits", "test")
    thirds = [(train.images[start::PARTS], np.asarray(train.labels[start::PARTS])) for start in range(PARTS)]
    if not options.run:
        np.savez(options.out, image=thirds[0][0], label=thirds[0][1])
        print(f"{options.out}: {len(thirds[0][0])} images")
        return
    classifier, (_, training, new) = jaxgen.load(options.run), thirds
    features, real = classifier_features(classifier), (test.images, np.asarray(test.labels))
    n = min(len(x) for x, _ in sets(training, new, real, options.seed).values())
    print(f"layer {classifier.layers[-2]}, weights {weights_hash(classifier)}; {n} samples and {n} test images\n")
    print("| samples | " + " | ".join(COLUMNS) + " | classifier_score | recognised | trained_on_samples | memorisation_ratio | copies |")
    print("|---" * (len(COLUMNS) + 6) + "|")
    for name, (image, label) in sets(training, new, real, options.seed).items():
        image, label = image[:n], label[:n]
        found = compare_samples(image, real[0], features, more=new[0])
        copies = memorisation(image, real[0], training[0])
        score, (share, _) = classifier_score(logits_of(classifier, image))[0], share_recognised(classifier, image, label)
        numbers = [f"{found[column]:.3g}" for column in COLUMNS]
        others = [score, share, accuracy_trained_on(image, label, *real), copies["memorisation_ratio"], copies["copies"]]
        print(f"| {name} | " + " | ".join(numbers + [f"{x:.3g}" for x in others]) + " |")
    print("| real against real | " + " | ".join(f"{found[f'{column}_floor']:.3g}" for column in COLUMNS) + " | | | | | |")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
