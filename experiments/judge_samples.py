"""Class-conditional samples of a run, judged by a classifier: how many are of the class that they were drawn for, in its eyes.

    python -m experiments.judge_samples runs/vqvae2_digits runs/classifier_digits --data digits
    python -m experiments.judge_samples RUN CLASSIFIER --data FOLDER --n 2000

Beside them stand the test images of the data, judged by the same classifier: samples can hardly do better. A model whose samples are one
image of each class does well too: the number says nothing about variety.
"""

from dataclasses import dataclass

import jax
import numpy as np
import tyro

import jaxgen
from jaxgen.data import load

BATCH = 200


def right(classifier, images, labels) -> np.ndarray:
    """Whether the classifier gives each image its label, bool [N]."""
    predict = jax.jit(lambda classifier, images: classifier.predict(images).argmax(-1))
    parts = [predict(classifier, images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return np.concatenate(parts) == np.asarray(labels)


def said(name: str, correct: np.ndarray) -> str:
    """One line: a share with its standard error."""
    share = correct.mean()
    return f"{name:<12} {share:.4f} +- {(share * (1 - share) / len(correct)) ** 0.5:.4f} of their class  (n = {len(correct)})"


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a class-conditional model
    classifier: tyro.conf.Positional[str]  # run directory of a classifier of the same images
    data: str = "digits"  # data set whose test images are judged too
    n: int = 1000  # samples, of each class in turn
    temperature: float = 1.0  # of the sampler


def main() -> None:
    """Two lines: test images and samples."""
    options = tyro.cli(Options, description=__doc__)
    model, classifier, test = jaxgen.load(options.run), jaxgen.load(options.classifier), load(options.data, "test")
    print(said("test images", right(classifier, np.asarray(test.images), test.labels)))
    labels = np.arange(options.n, dtype=np.int32) % model.config.num_classes
    more = {} if options.temperature == 1 else {"temperature": options.temperature}
    draw = jax.jit(lambda model, key, label: model.sample(key, len(label), label=label, **more))
    parts = range(0, options.n, BATCH)
    samples = [np.asarray(draw(model, jax.random.key(start), labels[start : start + BATCH])) for start in parts]
    print(said("samples", right(classifier, np.concatenate(samples), labels)))


if __name__ == "__main__":
    main()
