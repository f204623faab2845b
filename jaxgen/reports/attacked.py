"""`jaxgen attack`: the accuracy of a network under attack as a table, and original | perturbation | adversarial images as a picture."""

import inspect
from collections.abc import Callable
from functools import partial
from math import inf, isnan

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import attacks
from jaxgen.attacks.inputs import BOX, check_ball, row_keys
from jaxgen.data import Dataset
from jaxgen.data.class_names import names_of
from jaxgen.errors import ConfigError
from jaxgen.reports.drawing import write_file
from jaxgen.runs import figures
from jaxgen.sharding import announce

SHOWN = 8
"""Images in the picture."""
NORMS = {"inf": inf, "2": 2, "1": 1}
COLUMNS = 6
"""Images in a row of the picture: two times original, perturbation, adversarial."""


def print_attack(model, options, dataset: Dataset, out) -> None:
    """Prints the table of `commands.Attack` for the first images of a set, and writes the picture to `out`.

    ConfigError for a model that is no classifier of images, an option that the attack does not take, or an eps beyond the box.
    """
    try:
        logits_fn = attacks.on_unit_box(model)
    except ConfigError as error:
        raise ConfigError("RUN", error.wanted.removesuffix(" with a method `relaxed` of real pixel values"), error.got) from None
    attack, said = chosen(options)
    levels = model.config.features["image"].levels
    columns = dataset.source.read(np.arange(min(options.n or len(dataset), len(dataset))))
    x, y, key = attacks.to_unit(columns["image"], levels), jnp.asarray(columns["label"], jnp.int32), jax.random.key(options.seed)
    if not options.eps:
        raise ConfigError("--eps", "one or more numbers", "none")
    for eps in options.eps:
        try:
            check_ball(eps, NORMS[options.norm], x, BOX)
        except ConfigError as error:
            raise ConfigError("--eps", error.wanted, error.got) from None
    table = attacks.robust_accuracy(logits_fn, x, y, key, options.eps, attack, levels=levels)
    announce(f"attack      {said}: {len(x)} {dataset.split} images, values in 0..1; rounded: to their {levels} levels")
    announce(f"{'eps':<10}  {'accuracy':<18}  {'rounded':<8}  {'norm':<8}  queries")
    for row in table:
        norm = "-" if isnan(row.norm) else f"{row.norm:.4g}"
        accuracy = f"{row.accuracy:.4f} +- {row.standard_error:.4f}"
        announce(f"{row.eps:<10.4g}  {accuracy:<18}  {row.rounded:<8.4f}  {norm:<8}  {row.queries:.4g}")
    rows = np.flatnonzero(table[0].right)[:SHOWN]
    if not len(rows):
        announce("no picture: the network is right on none of the images")
        return
    found = jax.jit(attack)(logits_fn, x[rows], y[rows], row_keys(key, len(x))[rows], jnp.float32(options.eps[0]))
    names = names_of(dataset.features) or tuple(map(str, range(model.config.features["label"].classes)))
    write_file(out, figures.png(picture(x[rows], found.x_adv, logits_fn, names)))
    fooled = int(np.sum(np.asarray(found.success)))
    which = f"the first {len(rows)} that it is right on, {fooled} fooled"
    announce(f"original | perturbation | adversarial, eps {options.eps[0]:g}: {which}: {out}")


def chosen(options) -> tuple[Callable[..., attacks.Result], str]:
    """The attack with its options, and both in words; ConfigError for an option that it does not take."""
    attack = getattr(attacks, options.attack)
    takes = inspect.signature(attack).parameters
    given = {name: getattr(options, name) for name in ("steps", "restarts") if getattr(options, name) is not None}
    if options.norm != "inf" or "norm" in takes:
        given["norm"] = NORMS[options.norm]
    for name in given:
        if name not in takes:
            raise ConfigError(f"--{name}", f"none for {options.attack}", getattr(options, name))
    words = [f"norm {options.norm}", *(f"{given.get(name, takes[name].default)} {name}" for name in ("steps", "restarts") if name in takes)]
    return partial(attack, **given), f"{options.attack}, {', '.join(words)}"


def picture(x, x_adv, logits_fn, names: tuple[str, ...]) -> np.ndarray:
    """Triples of images with what is predicted and how sure; perturbations are grey where they are 0, and scaled to the whole range."""
    x, x_adv = np.asarray(x), np.asarray(x_adv)
    change = x_adv - x
    most = np.abs(change).max(axis=tuple(range(1, change.ndim)), keepdims=True)
    shown = np.stack([x, 0.5 + change / np.maximum(2 * most, 1e-12), x_adv], axis=1).reshape(-1, *x.shape[1:])
    captions = []
    for before, after, size in zip(_said(logits_fn, x, names), _said(logits_fn, x_adv, names), most.ravel(), strict=True):
        captions += [before, f"max {size:.2g}", after]
    return figures.image_grid(np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8), 256, columns=COLUMNS, names=captions)


def _said(logits_fn, x, names: tuple[str, ...]) -> list[str]:
    p = np.asarray(jax.nn.softmax(logits_fn(jnp.asarray(x))))
    return [f"{names[best]} {100 * row[best]:.0f}%" for row, best in zip(p, p.argmax(axis=1), strict=True)]
