"""The commands on the codes of a run's model, the check of its samples on memorising, and its classifier by Bayes' rule.

Each takes the command's options (a dataclass of commands.py), the experiment, the model, `read(split)`, which reads a split of its data,
and `out(name)`, the path of the picture to write; it writes the picture and prints what it measured.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgen import latent, sharding
from jaxgen.data import Dataset
from jaxgen.data.class_names import names_of
from jaxgen.data.features import Image
from jaxgen.errors import ConfigError
from jaxgen.latent.codes import check_codes, check_reconstructs, check_walks
from jaxgen.latent.generative_classifier import check_model
from jaxgen.latent.neighbours import check_distances
from jaxgen.reports.drawing import draw_for, modelled, write_file
from jaxgen.runs import figures
from jaxgen.sharding import announce

Read = Callable[[str], Dataset]
TEST_EXAMPLES = 1000
"""The most examples of a split whose distances to the training set stand beside those of samples."""


def reconstruct(options: Any, experiment: Any, model: Any, read: Read, out: Callable) -> None:
    """Images outlined, each beside its reconstruction; the mean squared error of all images of the split."""
    _check_images(model)
    check_reconstructs(model)
    path, dataset = out("reconstructions.png"), read(options.split)
    pictures, images = latent.reconstruct(model, dataset, experiment.train.batch_size), np.asarray(dataset.columns["image"])
    errors = (((pictures.astype(np.float64) - images) / (modelled(model).levels - 1)) ** 2).reshape(len(images), -1).mean(1)
    n = min(options.n, len(images))
    both = np.stack([images[:n], pictures[:n]], axis=1).reshape(-1, *images.shape[1:])
    columns = figures.columns_of(2 * n, 2)
    _write(path, model, both, columns, np.arange(2 * n) % 2 == 0)
    announce(f"{options.split} squared error of reconstructions, |x - x'|^2 / D of pixels in [0, 1]: {_mean(errors)}")
    announce(f"{n} images (outlined in orange), each beside its reconstruction: {path}")


def interpolate(options: Any, experiment: Any, model: Any, read: Read, out: Callable) -> None:
    """Pairs of images, outlined, and between them what decodes from the codes between theirs; of a model without an encoder what decodes
    between two draws of noise."""
    _check_images(model)
    check_walks(model)
    path, dataset = out("interpolations.png"), read(options.split)
    first, last = (dataset.source.read((2 * np.arange(options.n) + end) % len(dataset)) for end in (0, 1))
    pictures = latent.interpolate(model, first, last, options.steps, options.way, jax.random.key(options.seed))
    if not hasattr(model, "encode"):
        _write(path, model, pictures.reshape(-1, *pictures.shape[2:]), options.steps)
        announce(f"{options.n} {options.way} ways of {options.steps} codes between two draws of noise: {path}")
        return
    rows = np.concatenate([first["image"][:, None], pictures, last["image"][:, None]], axis=1)
    columns = options.steps + 2
    ends = np.arange(options.n * columns) % columns
    _write(path, model, rows.reshape(-1, *rows.shape[2:]), columns, (ends == 0) | (ends == columns - 1))
    announce(f"{options.n} {options.way} ways of {options.steps} codes between two {options.split} images (outlined in orange): {path}")


def traverse(options: Any, experiment: Any, model: Any, read: Read, out: Callable) -> None:
    """The image, outlined, and in each row what decodes where one number of its code is changed."""
    _check_images(model)
    check_codes(model)
    path, dataset = out("traversal.png"), read(options.split)
    if options.image >= len(dataset):
        raise ConfigError("--image", f"a number in 0..{len(dataset) - 1}, an image of the {options.split} split", options.image)
    batch, codes = dataset.source.read(np.array([options.image])), latent.encoded(model, dataset, experiment.train.batch_size)
    said, values = codes.importance()
    chosen = np.argsort(-values, kind="stable")[: options.dimensions]
    steps = np.linspace(-options.reach, options.reach, options.steps)
    pictures = latent.traverse(model, batch, codes, chosen, steps)
    rows = np.concatenate([np.broadcast_to(batch["image"][:, None], (len(chosen), 1, *pictures.shape[2:])), pictures], axis=1)
    names = [name for j in chosen for name in ("image", *(f"z{j} {step:+.3g}" for step in steps))]
    given = np.arange(len(names)) % (options.steps + 1) == 0
    _write(path, model, rows.reshape(-1, *rows.shape[2:]), options.steps + 1, given, names)
    announce(f"{said} of each dimension over {len(dataset)} {options.split} images, the largest first:")
    more = f"  ({len(values) - len(chosen)} more)" if len(chosen) < len(values) else ""
    announce("  " + "  ".join(f"z{j} {values[j]:.3g}" for j in chosen) + more)
    announce(f"image {options.image} (outlined in orange), one number of its code in each row set to the mean {options.reach:g} standard")
    announce(f"deviations below to {options.reach:g} above: {path}")


def codemap(options: Any, experiment: Any, model: Any, read: Read, out: Callable) -> None:
    """The codes of a split as points, coloured by class where the split has labels."""
    check_codes(model)
    path, dataset = out("codemap.png"), read(options.split)
    drawn = latent.code_map(latent.encoded(model, dataset, experiment.train.batch_size))
    label = dataset.features.get("label")
    names = names_of(dataset.features) or tuple(map(str, range(label.classes if label else 0)))
    title = f"codes of {len(dataset)} {options.split} {modelled(model).noun}s"
    labels = None if label is None else np.asarray(dataset.labels)
    write_file(path, figures.png(figures.class_plot(drawn.points, labels, names, drawn.axes, title)))
    announce(f"{title}, {' against '.join(drawn.axes[::-1])}: {path}")


def neighbours(options: Any, experiment: Any, model: Any, read: Read, out: Callable) -> None:
    """Samples, outlined, beside their nearest training examples; the distances of samples and of a split's examples to the nearest."""
    feature = modelled(model)
    check_distances(feature)
    if not hasattr(model, "sample"):
        raise ConfigError("model", "a model that draws samples", type(model).__name__)
    column, pixels = model.config.modelled, isinstance(feature, Image)
    path = out("neighbours.png") if pixels else None
    train, other = read("train"), read(options.split)
    samples = draw_for(model, other, jax.random.key(options.seed), options.n)
    real = other.source.read(np.unique(np.linspace(0, len(other) - 1, TEST_EXAMPLES).astype(int)))[column]
    found = latent.nearest(np.concatenate([samples, real]), train, column, options.k)
    nearest, k = found.distance[:, 0], found.distance.shape[1]
    unit = "|x - x'|^2 / D of pixels in [0, 1]" if pixels else "|x - x'|^2"
    announce(f"distance to the nearest of {len(train)} training {feature.noun}s, {unit}:")
    for name, distance in (("samples", nearest[: options.n]), (f"{options.split} {feature.noun}s", nearest[options.n :])):
        announce(f"{f'  {name}':<27} {_mean(distance)}, {np.sum(distance == 0)} at distance 0")
    low = np.quantile(nearest[options.n :], 0.05)
    share = np.mean(nearest[: options.n] < low)
    announce(f"  {share:.1%} of the samples are nearer than the nearest 5 % of the {options.split} {feature.noun}s are (below {low:.4g})")
    if path is None:
        return
    rows = min(options.rows, options.n)
    examples = train.source.read(found.index[:rows].reshape(-1))[column].reshape(rows, k, *feature.shape)
    grid = np.concatenate([samples[:rows, None], examples], axis=1)
    names = [name for row in found.distance[:rows] for name in ("sample", *(f"{distance:.4f}" for distance in row))]
    _write(path, model, grid.reshape(-1, *feature.shape), k + 1, np.arange(len(names)) % (k + 1) == 0, names)
    announce(f"{rows} samples (outlined in orange), each beside its {k} nearest training images, with their distances: {path}")


def classify(options: Any, experiment: Any, model: Any, read: Read, out: Callable) -> None:
    """Accuracy and log-loss of argmax over y of log p(x | y) + log p(y), and which likelihood it is."""
    check_model(model)
    dataset, mesh = read(options.split), sharding.split_mesh(experiment.train.fsdp) or sharding.make_mesh()
    size = options.batch_size or experiment.train.batch_size
    more = {"batch_size": size, "samples": options.samples, "bound": options.bound, "mesh": mesh}
    result = latent.classify(model, dataset, latent.log_prior(read("train")), **more)
    for name, error in (("accuracy", "standard_error"), ("log_loss", "log_loss_standard_error")):
        shown = f" +- {result[error]:.4f}" if np.isfinite(result[error]) else ""
        announce(f"{f'{options.split} {name}':<27} {result[name]:.4f}{shown}  ({result['n']} {modelled(model).noun}s)")
    announce(f"{'  most frequent class':<27} {result['most_frequent']:.4f}")
    announce(f"  log p(x | y): {result['likelihood']}; log p(y): the frequencies of the training split")


def _check_images(model: Any) -> None:
    if not isinstance(modelled(model), Image):
        raise ConfigError("model", "a model of images", f"{type(model).__name__} of {modelled(model).said}")


def _write(
    path: Any, model: Any, images: np.ndarray, columns: int, outlined: np.ndarray | None = None, names: list[str] | None = None
) -> None:
    """A grid of images, some of them outlined, bool [n], with a caption each."""
    mask = None if outlined is None else np.broadcast_to(outlined[:, None, None], images.shape[:3])
    write_file(path, figures.png(figures.image_grid(images, modelled(model).levels, mask, columns, names)))


def _mean(values: np.ndarray) -> str:
    """The mean with its standard error and the number of values."""
    error = f" +- {values.std(ddof=1) / np.sqrt(len(values)):.4g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{error}  (n = {len(values)})"
