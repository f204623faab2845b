"""Accuracy of a classifier of images against the size of the perturbation, for every attack, in three norms.

    python -m experiments.classifier_digits --workdir runs/conv
    python -m experiments.attacks_curves runs/conv [--data digits] [--n 200] [--out runs/conv]

All numbers are of the first n test images, with values in [0, 1]. Printed: signs of masked gradients; for each attack and eps the accuracy,
the accuracy after every value went to the nearest level (of 256: 8 bits), the mean norm of perturbations that succeed and the mean queries;
for attacks that look for the smallest norm also the root mean squared change of a value, sqrt(sum (x_adv - x)^2 / values), which Szegedy
et al. (2014) call distortion. One perturbation for all images, and a network that attacks, are made of the first 2000 training images. The
images of expectation over transformations are judged on ten new views of each. OUT/attacks.png is the figure of accuracy against eps.

Measured: experiments/results/attacks.md.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxgen
from jaxgen import attacks, data

KEY = jax.random.key(0)
NAMES = {inf: "infinity", 2: "2", 1: "1"}
VIEW = attacks.chain(attacks.rotated(20), attacks.brightened(), attacks.noised(), attacks.photographed())


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a classifier
    data: str = "digits"  # the data set that it was trained on
    n: int = 200  # so many test images
    smallest: int = 200  # so many of them for the attacks that look for the smallest norm
    eps_inf: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # largest norms of the perturbation
    eps_2: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5)
    eps_1: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
    out: str | None = None  # folder of the figure; None: RUN


def balls() -> dict[float, dict[str, Callable]]:
    """Attacks within a ball, by its norm."""

    def of(norm):
        return {
            "pgd": partial(attacks.pgd, norm=norm, restarts=3),
            "multi_targeted": partial(attacks.multi_targeted, norm=norm),
        }

    signs = {"fgsm": attacks.fgsm, "iterative_sign": attacks.iterative_sign, "least_likely": attacks.least_likely}
    found = {inf: signs | of(inf) | {"nes, 2000 queries": partial(attacks.estimated, budget=2000)}}
    return found | {norm: {"fast_gradient": partial(attacks.fast_gradient, norm=norm)} | of(norm) for norm in (2, 1)}


SMALLEST = {
    "deepfool": attacks.deepfool,
    "cw_l2": attacks.cw_l2,
    "lbfgs": attacks.lbfgs,
    "boundary": partial(attacks.boundary, steps=5000),
}


def within(logits_fn, x, y, eps: dict[float, tuple[float, ...]], levels: int) -> dict[float, dict[str, list[float]]]:
    """{norm: {attack: accuracy without attack and at each eps}}, printed on the way."""
    found: dict[float, dict[str, list[float]]] = {norm: {} for norm in eps}
    for norm, named in balls().items():
        for name, attack in named.items():
            start = time.perf_counter()
            table = attacks.robust_accuracy(logits_fn, x, y, KEY, eps[norm], attack, levels=levels)
            found[norm][name] = [row.accuracy for row in table]
            print(f"norm {NAMES[norm]:<8} {name:<18} {time.perf_counter() - start:6.1f} s", flush=True)
            for row in table[1:]:
                said = f"{row.accuracy:.3f} +- {row.standard_error:.3f}, rounded {row.rounded:.3f}"
                print(f"        eps {row.eps:<5} {said}, norm {row.norm:.3f}, {row.queries:.0f} queries", flush=True)
    return found


def made(logits_fn, x, y, train_x, train_y, eps: dict[float, tuple[float, ...]], levels: int) -> dict[float, dict[str, list[float]]]:
    """The same of what is made of training images: a perturbation for all images, and a network."""

    def universal(f, one, norm):
        v = attacks.universal(f, train_x, train_y, KEY, one, norm)
        return lambda x: x + v

    def network(f, one, norm):
        return attacks.train_net(f, train_x, train_y, KEY, one)

    found: dict[float, dict[str, list[float]]] = {inf: {}, 2: {}}
    for name, norm, make in (("universal", inf, universal), ("universal", 2, universal), ("network", inf, network)):
        rows = []
        for one in eps[norm]:
            start = time.perf_counter()

            def attack(f, x, y, key, eps, one=one, norm=norm, make=make):
                return attacks.by_net(make(f, one, norm), f, x, y, key, norm)

            rows += attacks.robust_accuracy(logits_fn, x, y, KEY, [one], attack, levels=levels)[len(rows) > 0 :]
            said = f"{rows[-1].accuracy:.3f} +- {rows[-1].standard_error:.3f}, rounded {rows[-1].rounded:.3f}"
            print(f"norm {NAMES[norm]:<8} {name:<18} {time.perf_counter() - start:6.1f} s  eps {one:<5} {said}", flush=True)
        found[norm][name] = [row.accuracy for row in rows]
    return found


def on_views(logits_fn, x, y, eps: tuple[float, ...], levels: int) -> list[float]:
    """Accuracy on ten new views of each image, of x and of its images by expectation over transformations at each eps, norm infinity."""
    keys = jax.random.split(jax.random.key(9), (10, len(x)))
    share = jax.jit(lambda f, x: jax.lax.map(lambda keys: (f(jax.vmap(VIEW)(x, keys)).argmax(1) == y).mean(), keys).mean())
    attack = jax.jit(lambda f, x, eps: attacks.eot(f, x, y, KEY, eps, VIEW).x_adv)
    found = [float(share(logits_fn, x))]
    print(f"new views of x: {found[0]:.3f} right", flush=True)
    for one in eps:
        start, x_adv = time.perf_counter(), attack(logits_fn, x, one)
        found.append(float(share(logits_fn, x_adv)))
        said = f"{found[-1]:.3f}, rounded {float(share(logits_fn, attacks.to_level(x_adv, levels))):.3f}"
        print(f"norm infinity eot, on new views  {time.perf_counter() - start:6.1f} s  eps {one:<5} {said}", flush=True)
    return found


def smallest(logits_fn, x, y, right: np.ndarray, eps: tuple[float, ...], levels: int) -> dict[str, list[float]]:
    """{attack: accuracy without attack and at each eps of the norm 2}, printed with the norms on the way."""
    for weight in (1.0, 10.0, 100.0):
        result = attacks.penalised(logits_fn, x, y, KEY, weight=weight)
        share, median = np.asarray(result.success)[right].mean(), np.median(np.asarray(result.norm)[right])
        print(f"penalised, weight {weight:<5} {share:.3f} fooled, median norm {median:.3f}", flush=True)
    found = {}
    for name, attack in SMALLEST.items():
        start = time.perf_counter()
        result = jax.jit(lambda f, x, y, attack=attack: attack(f, x, y, KEY))(logits_fn, x, y)
        norms, success = np.asarray(result.norm), np.asarray(result.success)
        seconds, fooled = time.perf_counter() - start, right & success
        found[name] = [float(right.mean()), *(float((right & ~(success & (norms <= most))).mean()) for most in eps)]
        change = norms[fooled] / sqrt(x[0].size)
        holds = np.asarray(logits_fn(attacks.to_level(result.x_adv, levels)).argmax(1) == y)
        again = 1 - holds[fooled].mean()
        rounded = [round(float((right & (holds | (norms > most))).mean()), 3) for most in eps]
        share, queries = f"{fooled.sum()} of {right.sum()} fooled", f"{np.asarray(result.queries).mean():.0f} queries"
        print(f"{name:<18} {seconds:6.1f} s  {share}, median norm {np.median(norms[fooled]):.3f}, {queries}")
        moved = f"{change.mean():.4f}, over all images {sqrt(np.square(change).mean()):.4f}"
        print(f"        root mean squared change of a value {moved}; {100 * again:.0f} % of these still fool when rounded")
        print(f"        accuracy at {eps}: {np.round(found[name][1:], 3).tolist()}, rounded {rounded}", flush=True)
    return found


def towards_one(logits_fn, x, y, right: np.ndarray) -> None:
    """The changes by L-BFGS towards a random other class for each image, instead of the nearest of all, printed."""
    classes = logits_fn(x).shape[1]
    target = (y + jax.random.randint(KEY, y.shape, 1, classes)) % classes
    result = jax.jit(lambda f, x, target: attacks.lbfgs(f, x, target, KEY, targeted=True))(logits_fn, x, target)
    there = right & np.asarray(result.success)
    change = np.asarray(result.norm)[there] / sqrt(x[0].size)
    mean = f"{change.mean():.4f} +- {change.std(ddof=1) / sqrt(len(change)):.4f}"
    print(f"lbfgs towards a random class: {there.sum()} of {right.sum()} there, root mean squared change of a value {mean}", flush=True)


def figure(found: dict[float, dict[str, list[float]]], eps: dict[float, tuple[float, ...]], n: int, path: str) -> None:
    """Accuracy against eps, a panel for each norm."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(13.5, 5), dpi=80, layout="constrained")
    for axes, (norm, curves) in zip(picture.subplots(1, len(found)), found.items(), strict=True):
        for index, (name, values) in enumerate(curves.items()):
            axes.plot([0, *eps[norm]], values, label=name, marker="osv^Dxp*Ph<>"[index % 12], ms=4, lw=1.2)
        axes.set(xlabel=f"eps, norm {NAMES[norm]} (pixels in 0..1)", ylabel="accuracy (higher is better)", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    picture.suptitle(f"{n} test images where no other number is given: standard error at most {sqrt(0.25 / n):.3f}", fontsize=9)
    picture.savefig(path)
    print(f"accuracy against eps: {path}")


def images(dataset, levels: int, n: int):
    """(x in [0, 1], y) of the first n of a data set."""
    return attacks.to_unit(np.asarray(dataset.images[:n]), levels), jnp.asarray(dataset.labels[:n], jnp.int32)


def main() -> None:
    """All tables and the figure."""
    asked = tyro.cli(Options, description=__doc__)
    model, test = jaxgen.load(asked.run), data.load(asked.data, "test")
    logits_fn, levels = attacks.on_unit_box(model), model.config.levels
    n, eps = min(asked.n, len(test)), {inf: asked.eps_inf, 2: asked.eps_2, 1: asked.eps_1}
    x, y = images(test, levels, n)
    right = np.asarray(logits_fn(x).argmax(1) == y)
    print(f"{asked.data}: accuracy {right.mean():.3f} on {n} test images, {levels} levels; audit: {attacks.audit(logits_fn, x, y)}")
    found = within(logits_fn, x, y, eps, levels)
    learnt = made(logits_fn, x, y, *images(data.load(asked.data, "train"), levels, 2000), eps, levels)
    found = {norm: curves | learnt.get(norm, {}) for norm, curves in found.items()}
    found[inf]["eot, on new views"] = on_views(logits_fn, x, y, eps[inf], levels)
    few = min(asked.smallest, n)
    near = smallest(logits_fn, x[:few], y[:few], right[:few], eps[2], levels)
    towards_one(logits_fn, x[:few], y[:few], right[:few])
    found[2] |= {name if few == n else f"{name}, {few} images": values for name, values in near.items()}
    figure(found, eps, n, f"{asked.out or asked.run}/attacks.png")


if __name__ == "__main__":
    main()
