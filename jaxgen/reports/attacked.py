"""`jaxgen attack`: the accuracy of a network under attack as a table, and original | perturbation | adversarial images as a picture."""

import inspect
from collections.abc import Callable
from functools import partial
from math import inf, isnan

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import attacks
from jaxgen.attacks.inputs import BOX, check_ball, row_keys, takes_eps
from jaxgen.data import Dataset
from jaxgen.data.class_names import names_of
from jaxgen.errors import ConfigError
from jaxgen.reports.drawing import write_file
from jaxgen.runs import figures
from jaxgen.sharding import announce

SHOWN = 8
"""Images in the picture."""
MADE_OF = 2000
"""Images of the training split that a universal perturbation is made of."""
NORMS = {"inf": inf, "2": 2, "1": 1}
WORDS = {"steps": "steps", "restarts": "restarts", "budget": "queries"}
COLUMNS = 6
"""Images in a row of the picture: two times original, perturbation, adversarial."""


def print_attack(model, options, read: Callable[[str], Dataset], out) -> None:
    """Prints the table of `commands.Attack` for the first images of a split, and writes the picture to `out`.

    ConfigError for a model that is no classifier of images, an option that the attack does not take, or an eps beyond the box.
    """
    try:
        logits_fn = attacks.on_unit_box(model)
    except ConfigError as error:
        raise ConfigError("RUN", error.wanted.removesuffix(" with a method `relaxed` of real pixel values"), error.got) from None
    levels, key = model.config.features["image"].levels, jax.random.key(options.seed)
    attack, norm, said = chosen(options, lambda: (*first(read("train"), MADE_OF, levels), key))
    dataset = read(options.split)
    x, y = first(dataset, options.n or len(dataset), levels)
    if not options.eps:
        raise ConfigError("--eps", "one or more numbers", "none")
    for eps in options.eps:
        try:
            check_ball(eps, NORMS[norm], x, BOX)
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
    within = (jnp.float32(options.eps[0]),) if takes_eps(attack) else ()
    found = jax.jit(attack)(logits_fn, x[rows], y[rows], row_keys(key, len(x))[rows], *within)
    names = names_of(dataset.features) or tuple(map(str, range(model.config.features["label"].classes)))
    write_file(out, figures.png(picture(x[rows], found.x_adv, logits_fn, names)))
    which = f"the first {len(rows)} that it is right on, {int(np.sum(np.asarray(found.success)))} fooled"
    announce(f"original | perturbation | adversarial, {f'eps {options.eps[0]:g}' if within else 'the smallest found'}: {which}: {out}")


def first(dataset: Dataset, n: int, levels: int):
    """(x, y) of the first n examples, x in 0..1."""
    columns = dataset.source.read(np.arange(min(n, len(dataset))))
    return attacks.to_unit(columns["image"], levels), jnp.asarray(columns["label"], jnp.int32)


def chosen(options, others: Callable[[], tuple]) -> tuple[Callable[..., attacks.Result], str, str]:
    """The attack with its options, its norm, and all in words; ConfigError for an option that it does not take.

    others: gives images, classes and a key, of which a universal perturbation is made.
    """
    attack = {
        "nes": partial(attacks.estimated, directions=attacks.nes),
        "spsa": partial(attacks.estimated, directions=attacks.spsa),
        "universal": partial(universal, others),
    }.get(options.attack) or getattr(attacks, options.attack)
    takes = inspect.signature(attack).parameters
    given = {name: getattr(options, name) for name in ("norm", *WORDS) if getattr(options, name) is not None}
    for name, value in given.items():
        if name not in takes:
            raise ConfigError(f"--{name}", f"none for {options.attack}", value)
    norm = given.get("norm") or ("inf" if takes_eps(attack) else "2")
    if "norm" in takes:
        norm = given.setdefault("norm", next(name for name, value in NORMS.items() if value == takes["norm"].default))
        given["norm"] = NORMS[norm]
    words = [f"norm {norm}", *(f"{given.get(name, takes[name].default)} {word}" for name, word in WORDS.items() if name in takes)]
    return partial(attack, **given), norm, f"{options.attack}, {', '.join(words)}"


def universal(others: Callable[[], tuple], logits_fn, x, y, key, eps, norm: float = inf, *, steps: int = 200) -> attacks.Result:
    """x with the one perturbation that is made of the other images: one query of each image."""
    v = attacks.universal(logits_fn, *others(), eps, norm, steps=steps)
    return attacks.by_net(lambda x: x + v, logits_fn, x, y, key, norm)


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
