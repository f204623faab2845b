"""Draws samples of a trained model and writes them into a file: unconditional or conditioned on columns of a data set (labels, vectors),
completions of partly given images, and upscaled small images."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import sharding
from jaxgen.data import Dataset, features, text
from jaxgen.data.class_names import names_of
from jaxgen.data.features import given_to
from jaxgen.data.series import before_and_after
from jaxgen.errors import ConfigError
from jaxgen.runs import directory, figures

KEEP = ("top", "bottom", "left", "right", "outside")
"""What a completion may be given: half of the image, or all but the middle."""


def draw(model, key, n: int, label: int | np.ndarray | None = None, **options) -> np.ndarray:
    """n samples; sample i of a class-conditional model is of class i mod classes, unless `label` is a class, or one for each sample.

    options: the other conditions, {name: array [n, ...]}, and options of the sampler. ConfigError for a label of a model without classes.
    """
    if "label" in given(model):
        options["label"] = _each_in_turn(model, n) if label is None else label
    elif label is not None:
        raise ConfigError("label", "none, since the model is not class-conditional", label)
    return sharding.to_host(jnp.asarray(model.sample(key, n, **options)))


def draw_for(model, dataset: Dataset, key, n: int, label: int | np.ndarray | None = None, **options) -> np.ndarray:
    """n samples; a model with conditions other than a label is conditioned on the set's first examples, four samples for each, or one for
    a model of pairs."""
    if given(model) - {"label"}:
        return draw(model, key, n, **given_with(model, _examples_for(model, dataset, n), label), **options)
    return draw(model, key, n, label, **options)


def with_inputs(model, dataset: Dataset, samples: np.ndarray) -> np.ndarray:
    """What a picture of samples of `draw_for` shows: of a model of pairs input | output | true output, [n, H, 3 W + 2, C] with white lines
    between them; else the samples."""
    if not hasattr(model, "translate"):
        return samples
    batch, feature = _examples_for(model, dataset, len(samples)), modelled(model)
    top, of_input = feature.levels - 1, model.config.features["input"].levels - 1
    scaled = (2 * top * batch["input"].astype(np.int64) + of_input) // (2 * of_input)
    images = [scaled.astype(samples.dtype), samples, batch["image"]]
    channels = max(image.shape[3] for image in images)
    images = [image.repeat(channels, axis=3) if image.shape[3] == 1 else image for image in images]
    line = np.full((*images[0].shape[:2], 1, channels), top, samples.dtype)
    return np.concatenate([images[0], line, images[1], line, images[2]], axis=2)


def _examples_for(model, dataset: Dataset, n: int) -> dict:
    """The batch of n rows for which `draw_for` draws."""
    return first_examples(dataset, n, 1 if hasattr(model, "translate") else figures.COMPLETIONS_EACH)


def _each_in_turn(model, n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int32) % model.config.features["label"].classes


def captions(model, names: tuple[str, ...], n: int, label: int | np.ndarray | None = None, batch: dict | None = None) -> dict:
    """{"names": [name of the class of each of n samples]} for `feature.show`; {} where the model or the picture has none.

    names: of the classes. label: as in `draw`; None: that of the batch, else each in turn. A sample that mixes classes has "". A name with
    letters that no font here has is replaced by the number of its label.
    """
    if not names or "label" not in given(model) or "names" not in inspect.signature(modelled(model).show).parameters:
        return {}
    label = (_each_in_turn(model, n) if batch is None else batch["label"]) if label is None else label
    if np.ndim(label) == 2:  # weights of the classes
        label = np.where(np.max(label, axis=1) == 1, np.argmax(label, axis=1), -1)
    drawn = [int(index) for index in np.broadcast_to(label, n)]
    written = {index: names[index] if figures.can_write(names[index]) else str(index) for index in set(drawn) - {-1}}
    return {"names": [written.get(index, "") for index in drawn]}


def captions_for(model, dataset: Dataset, n: int, label: int | np.ndarray | None = None) -> dict:
    """`captions` of what `draw_for` draws."""
    if "label" not in given(model):
        return {}
    batch = _examples_for(model, dataset, n) if given(model) - {"label"} else None
    return captions(model, names_of(dataset.features), n, label, batch)


def given(model) -> set[str]:
    """The names of the columns on which a model is conditioned."""
    return set(model.config.features) - {model.config.modelled}


def given_with(model, batch: dict, label: int | np.ndarray | None = None) -> dict:
    """The model's conditions, taken from a batch; a `label` replaces those of the batch."""
    return given_to(model.config, batch) | ({} if label is None else {"label": label})


def first_examples(dataset: Dataset, n: int, each: int = figures.COMPLETIONS_EACH) -> dict:
    """A batch of n rows: the set's first examples, each repeated `each` times in a row."""
    return dataset.source.read(np.arange(n) // each % len(dataset))


def small_shape(model) -> tuple[int, int, int] | None:
    """(h, w, C) of the small images that a model upscales; None for all other models."""
    feature = model.config.features.get("low_resolution")
    return None if feature is None else feature.shape


def all_rows(dataset: Dataset, column: str) -> np.ndarray:
    """A column of a set, read at once."""
    return np.asarray(dataset.source.read(np.arange(len(dataset)))[column])


def has(model, argument: str) -> bool:
    """Whether `model.sample` has this argument, for example `known`, `method` or `temperature`."""
    return hasattr(model, "sample") and argument in inspect.signature(model.sample).parameters


def complete_examples(model, dataset: Dataset, keep: str, n: int, path, key, label: int | None = None, **options) -> str:
    """Write a picture of n completions of images, or of the continuation of a series; returns what was given, in words."""
    if hasattr(model, "forecast"):
        if keep != KEEP[0]:
            raise ConfigError("--keep", "nothing for a series, of which all before the split is given", keep)
        return continue_series(model, dataset, n, path, key, **options)
    complete_images(model, dataset, keep, n, path, key, label, **options)
    return f"{keep} given (outlined in orange)"


def continue_series(model, dataset: Dataset, n: int, path, key, **options) -> str:
    """Write a plot of a series, of the forecast of the values of a set given all before, with its 95 % band, and of n draws of them."""
    before, values = before_and_after(dataset)
    forecast = model.forecast(len(values), before)
    draws = sharding.to_host(jnp.asarray(model.continuations(key, n, len(values), before, **options)))
    if jax.process_index() == 0:
        write_file(path, figures.png(figures.forecast_plot(before, forecast, values, draws)))
    inside = int(((forecast.low <= values) & (values <= forecast.high)).sum())
    return f"{len(before)} values given, {inside} of the next {len(values)} in the 95 % band of the forecast"


def complete_images(model, dataset: Dataset, keep: str, n: int, path, key, label: int | None = None, **options) -> None:
    """Write a grid of completions of the set's first images, four of each, with the given pixels outlined."""
    mask = known_mask(modelled(model).shape, keep)
    batch = first_examples(dataset, n)
    images = draw(model, key, n, **given_with(model, batch, label), known=(batch["image"], mask), **options)
    write_grid(path, images, model, mask, **captions(model, names_of(dataset.features), n, label, batch))


def complete_strings(model, start: str, n: int, path, key, **options) -> None:
    """Write a file of n strings that begin with `start`. DataError where the model's tokens are no text that could do so."""
    feature = modelled(model)
    given = text.beginning(start, feature, "--start")
    values, mask = np.zeros(feature.length, given.dtype), np.arange(feature.length) < len(given)
    values[: len(given)] = given
    write_grid(path, draw(model, key, n, known=(values, mask), **options), model)


def upscale_images(model, dataset: Dataset, n: int, path, key, label: int | None = None, **options) -> None:
    """Write a grid: for each of the set's first images its small version, enlarged and outlined, then three samples given it."""
    batch = first_examples(dataset, n)
    conditions = given_with(model, batch, label)
    images, small = np.array(draw(model, key, n, **conditions, **options)), conditions["low_resolution"]
    enlarged = small.repeat(images.shape[1] // small.shape[1], axis=1).repeat(images.shape[2] // small.shape[2], axis=2)
    given = np.arange(n) % figures.COMPLETIONS_EACH == 0
    images[given] = enlarged[given]
    outlined = np.broadcast_to(given[:, None, None], images.shape[:3])
    write_grid(path, images, model, outlined, **captions(model, names_of(dataset.features), n, label, batch))


def known_mask(image_shape: tuple[int, ...], keep: str) -> np.ndarray:
    """bool [H, W], True where pixels are given: the half `keep`, or for "outside" all but the middle H/2 x W/2."""
    height, width = image_shape[:2]
    row, column = np.mgrid[:height, :width]
    middle = (abs(2 * row - height + 1) < height / 2) & (abs(2 * column - width + 1) < width / 2)
    top, left = row < height // 2, column < width // 2
    return dict(zip(KEEP, (top, ~top, left, ~left, ~middle), strict=True))[keep]


def completes(model) -> bool:
    """Whether the model can complete images of which some pixels are given or strings of which the beginning is, or forecast a series."""
    return hasattr(model, "forecast") or has(model, "known") and isinstance(modelled(model), features.Image | features.Tokens)


def modelled(model):
    """The feature that the model models."""
    return features.modelled(model.config)


def noun(model_config) -> str:
    """How an example of what a model models is called."""
    return features.modelled(model_config).noun


def write_grid(path, samples: np.ndarray, model, mask: np.ndarray | None = None, **more) -> None:
    """Write a file of samples: a PNG grid of images, plotted points, or lines of text. Only process 0 writes; ConfigError if it cannot.

    mask: of given pixels. more: what else the picture shows, as `feature.show` takes it: `captions`.
    """
    if jax.process_index() == 0:
        write_file(path, modelled(model).show(samples, **more, **({} if mask is None else {"mask": mask})))


def write_file(path, content: bytes) -> None:
    """Write a picture; ConfigError if it cannot."""
    try:
        directory.write_bytes(path, content)
    except OSError as error:
        got = f"{path} ({error.strerror or error})"
        hint = "the checkpoints of the run are whole; jaxgen sample, complete and upscale draw pictures of it anew"
        raise ConfigError("picture", "a file that can be written", got, hint) from None
