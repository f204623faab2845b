"""Class-conditional samples of a run, judged by a classifier: how many are of the class that they were drawn for, in its eyes.

    python -m experiments.judge_samples runs/vqvae2_digits runs/classifier_digits --data digits
    python -m experiments.judge_samples RUN CLASSIFIER --data FOLDER --n 2000
    python -m experiments.judge_samples RUN CLASSIFIER --data FOLDER --guidance 0 1 2 4 --sampler multistep --steps 20 --out guidance.png

Beside them stand the test images of the data, judged by the same classifier: samples can hardly do better. A model whose samples are one
image of each class does well too: so the spread stands beside it, the mean over the pixels of the standard deviation among samples (or
test images) of one class, pixels in [0, 1]. The picture has a row of samples for each guidance, with the same noise at the start.
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


def spread(images, labels, levels: int) -> float:
    """The mean over classes and pixels of the standard deviation, pixels in [0, 1]."""
    x = images.astype(np.float64) / (levels - 1)
    return float(np.mean([x[labels == label].std(0).mean() for label in np.unique(labels)]))


def said(name: str, classifier, images, labels) -> str:
    """One line: a share with its standard error, and the spread."""
    share, labels = right(classifier, images, labels).mean(), np.asarray(labels)
    error, spreads = (share * (1 - share) / len(labels)) ** 0.5, spread(images, labels, classifier.config.levels)
    return f"{name:<22} {share:.4f} +- {error:.4f} of their class  (n = {len(labels)}), spread {spreads:.4f}"


def write_rows(out: str, rows: list[np.ndarray], levels: int) -> None:
    """A picture of the first images of each row, every pixel twice as large."""
    from matplotlib.image import imsave

    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows]).repeat(2, 0).repeat(2, 1) / (levels - 1)
    imsave(out, picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a class-conditional model
    classifier: tyro.conf.Positional[str]  # run directory of a classifier of the same images
    data: str = "digits"  # data set whose test images are judged too
    n: int = 1000  # samples, of each class in turn
    temperature: float = 1.0  # of the sampler
    guidance: tuple[float, ...] = ()  # of diffusion models and flows: a line of the table and a row of the picture for each
    sampler: str | None = None  # of diffusion models and flows; None: the model's own
    steps: int | None = None  # of that sampler; None: the model's own number
    out: str | None = None  # a PNG file of the first two samples of every class


def main() -> None:
    """A line for the test images, and one for the samples, or for those of each guidance."""
    options = tyro.cli(Options, description=__doc__)
    model, classifier, test = jaxgen.load(options.run), jaxgen.load(options.classifier), load(options.data, "test")
    print(said("test images", classifier, np.asarray(test.images), test.labels))
    labels = np.arange(options.n, dtype=np.int32) % model.config.num_classes
    more = {} if options.temperature == 1 else {"temperature": options.temperature}
    more |= {name: value for name in ("sampler", "steps") if (value := getattr(options, name)) is not None}
    parts, rows = range(0, options.n, BATCH), []
    for given in [{"guidance": w} for w in options.guidance] or [{}]:
        draw = jax.jit(lambda model, key, label, given=given: model.sample(key, len(label), label=label, **more, **given))
        drawn = [np.asarray(draw(model, jax.random.key(start), labels[start : start + BATCH])) for start in parts]
        samples = np.concatenate(drawn)
        rows.append(samples[: 2 * model.config.num_classes])
        name = "samples" + "".join(f", guidance {w:g}" for w in given.values())
        print(said(name, classifier, samples, labels), flush=True)
    if options.out:
        write_rows(options.out, rows, model.config.levels)


if __name__ == "__main__":
    main()
