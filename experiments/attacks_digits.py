"""Accuracy of a classifier against the size of the perturbation, for every attack, and how attacks do on what they have not seen.

    python -m experiments.classifier_digits --workdir runs/conv
    python -m experiments.classifier_digits --model.architecture mlp --model.hidden 64 64 --workdir runs/mlp
    python -m experiments.attacks_digits runs/conv runs/mlp [--data digits] [--n 200] [--out runs/conv]

All numbers are of the first n test images, with values in [0, 1]. Printed: signs of masked gradients; accuracy, with the mean norm of
perturbations that succeed, the mean queries, and the accuracy after every value went to the nearest level; the root mean squared change
of a value by attacks that look for the smallest norm; success of gradient estimates against queries; which share of images that fool one
network fools the other; a universal perturbation, a patch, a network that attacks, and expectation over transformations, on images and
draws that they have not seen. OUT/attacks.png is the figure of accuracy against eps.

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

EPS = {"inf": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3), "2": (0.1, 0.25, 0.5, 0.75, 1.0, 1.5)}
BUDGET = 2000


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a classifier
    other: tyro.conf.Positional[str | None] = None  # run directory of another classifier of the same images, for transfer
    data: str = "digits"  # the data set that they were trained on
    n: int = 200  # so many test images
    smallest: int = 200  # so many of them for the attacks that look for the smallest norm
    out: str | None = None  # folder of the figure; None: RUN


def balls() -> dict[str, dict[str, Callable]]:
    """Attacks within a ball, by its norm; the last one of each is for two norms."""
    nes = partial(attacks.estimated, budget=BUDGET)
    return {
        "inf": {
            "fgsm": attacks.fgsm,
            "iterative_sign": attacks.iterative_sign,
            "least_likely": attacks.least_likely,
            "pgd": partial(attacks.pgd, restarts=3),
            "multi_targeted": attacks.multi_targeted,
            "nes, 2000 queries": nes,
        },
        "2": {
            "fast_gradient": attacks.fast_gradient,
            "pgd": partial(attacks.pgd, norm=2, restarts=3),
            "multi_targeted": partial(attacks.multi_targeted, norm=2),
        },
    }


SMALLEST = {
    "deepfool": attacks.deepfool,
    "cw_l2": attacks.cw_l2,
    "lbfgs": attacks.lbfgs,
    "boundary": attacks.boundary,
}


def curves(logits_fn, x, y, levels: int, right: np.ndarray, few: int) -> dict[str, dict[str, list[float]]]:
    """{norm: {attack: accuracy at each eps}}, printed on the way; the smallest norms of the first `few` images."""
    found: dict[str, dict[str, list[float]]] = {}
    for norm, named in balls().items():
        found[norm] = {}
        for name, attack in named.items():
            start = time.perf_counter()
            table = attacks.robust_accuracy(logits_fn, x, y, jax.random.key(0), EPS[norm], attack, levels=levels)[1:]
            found[norm][name] = [row.accuracy for row in table]
            print(f"norm {norm}  {name:<18} {time.perf_counter() - start:6.1f} s")
            for row in table:
                said = f"{row.accuracy:.3f} +- {row.standard_error:.3f}, rounded {row.rounded:.3f}"
                print(f"        eps {row.eps:<5} {said}, norm {row.norm:.3f}, {row.queries:.0f} queries")
    x, y, right = x[:few], y[:few], right[:few]
    for weight in (1.0, 10.0, 100.0):
        result = attacks.penalised(logits_fn, x, y, jax.random.key(0), weight)
        share, median = np.asarray(result.success)[right].mean(), np.median(np.asarray(result.norm)[right])
        print(f"norm 2    penalised, weight {weight:<5} {share:.3f} fooled, median norm {median:.3f}")
    for name, attack in SMALLEST.items():
        start = time.perf_counter()
        result = jax.jit(lambda f, x, y, attack=attack: attack(f, x, y, jax.random.key(0)))(logits_fn, x, y)
        norms, success = np.asarray(result.norm), np.asarray(result.success)
        found["2"][name] = [float((right & ~(success & (norms <= eps))).mean()) for eps in EPS["2"]]
        fooled = norms[right & success]
        seconds, change = time.perf_counter() - start, np.sqrt(np.square(fooled).mean() / x[0].size)
        share, queries = f"{len(fooled)} of {right.sum()} fooled", f"{np.mean(np.asarray(result.queries)):.0f} queries"
        kept = np.asarray(logits_fn(attacks.to_level(result.x_adv, levels)).argmax(1) != y)[right & success].mean()
        print(f"norm 2    {name:<18} {seconds:6.1f} s  {share}, median norm {np.median(fooled):.3f}, {queries}")
        print(f"        root mean square of a value's change {change:.4f}; {100 * kept:.0f} % of these still fool when rounded")
        print(f"        accuracy at {EPS['2']}: {np.round(found['2'][name], 3).tolist()}")
    return found


def queries(logits_fn, x, y, right: np.ndarray, train: np.ndarray, eps: float = 0.15) -> None:
    """Share of images fooled within so many queries, by each estimate of the gradient."""
    from sklearn.decomposition import PCA

    size = x[0].size
    principal = jnp.asarray(PCA(size // 4).fit(train.reshape(len(train), -1)).components_, jnp.float32)
    estimates = {
        "finite_differences": attacks.finite_differences,
        f"{size // 4} random_groups": partial(attacks.random_groups, groups=size // 4),
        f"{size // 4} principal_directions": partial(attacks.principal_directions, directions=principal),
        "nes, 25": partial(attacks.nes, samples=25),
        "spsa, 25": partial(attacks.spsa, samples=25),
    }
    limits = (250, 500, 1000, 2000, 4000)
    print(f"share fooled at eps {eps} (infinity) within {limits} queries")
    for name, directions in estimates.items():
        attack = partial(attacks.estimated, directions=directions, budget=limits[-1], step_size=eps / 8)
        result = jax.jit(lambda f, x, y, attack=attack: attack(f, x, y, jax.random.key(0), eps))(logits_fn, x, y)
        asked = np.where(np.asarray(result.success), np.asarray(result.queries), np.inf)[right]
        print(f"        {name:<24} {[round(float((asked <= limit).mean()), 3) for limit in limits]}")


def transferred(functions: dict[str, Callable], x, y, eps: float = 0.15) -> None:
    """Share of images, that both networks are right on, which fool the column's network after an attack on the row's."""
    both = np.logical_and.reduce([np.asarray(f(x).argmax(1) == y) for f in functions.values()])
    sources = functions | {"both": attacks.ensemble(list(functions.values()))}
    for name, attack in (("fgsm", attacks.fgsm), ("pgd", partial(attacks.pgd, keep="last"))):
        print(f"{name}, eps {eps} (infinity), of {both.sum()} images: share that fools {', '.join(functions)}")
        for source, f in sources.items():
            x_adv = attack(f, x, y, jax.random.key(0), eps).x_adv
            shares = [float(np.asarray(g(x_adv).argmax(1) != y)[both].mean()) for g in functions.values()]
            print(f"        made for {source:<6} {[round(share, 3) for share in shares]}")


def unseen(logits_fn, x, y, train_x, train_y) -> None:
    """Universal perturbations on test images, and images made robust against views on new views."""
    for norm, eps in ((inf, 0.1), (inf, 0.2), (2, 1.0)):
        search = jax.jit(lambda f, x, y, eps=eps, norm=norm: attacks.universal(f, x, y, jax.random.key(0), eps, norm))
        v = search(logits_fn, train_x, train_y)
        shares = [float((logits_fn(jnp.clip(part + v, 0, 1)).argmax(1) != label).mean()) for part, label in ((train_x, train_y), (x, y))]
        print(f"universal, norm {norm}, eps {eps}: fools {shares[0]:.3f} of the training images, {shares[1]:.3f} of the test images")
    for size in (x.shape[1] // 4, x.shape[1] // 2):
        square = jax.jit(lambda f, x, size=size: attacks.patch(f, x, 8, jax.random.key(0), size))(logits_fn, train_x)
        shown = attacks.pasted(x, square, jax.random.split(jax.random.key(1), len(x)))
        shares = [float((logits_fn(images).argmax(1) == 8)[y != 8].mean()) for images in (x, shown)]
        print(f"patch of {size} x {size} pixels for class 8: {shares[1]:.3f} of the test images of other classes ({shares[0]:.3f} without)")
    for eps in (0.1, 0.2):
        search = jax.jit(lambda f, x, y, eps=eps: attacks.train_net(f, x, y, jax.random.key(0), eps, steps=1000))
        net = search(logits_fn, train_x, train_y)
        by = [attacks.by_net(net, logits_fn, *part, jax.random.key(0)) for part in ((train_x, train_y), (x, y))]
        by.append(attacks.pgd(logits_fn, x, y, jax.random.key(0), eps))
        own, test, pgd = (float(result.success.mean()) for result in by)
        print(f"a network, eps {eps}: {own:.3f} of its training images misclassified, {test:.3f} of test images (pgd {pgd:.3f})")
    view = attacks.chain(attacks.rotated(20), attacks.brightened(), attacks.noised(), attacks.photographed())
    keys = jax.random.split(jax.random.key(9), (50, len(x)))
    fooled = jax.jit(lambda f, x: jax.lax.map(lambda keys: f(jax.vmap(view)(x, keys)).argmax(1) != y, keys).mean())
    ours = jax.jit(lambda f, x, y: attacks.eot(f, x, y, jax.random.key(0), 0.2, view))(logits_fn, x, y).x_adv
    plain = attacks.pgd(logits_fn, x, y, jax.random.key(0), 0.2).x_adv
    shares = [float(fooled(logits_fn, each)) for each in (x, plain, ours)]
    said = f"{shares[0]:.3f} of x, {shares[1]:.3f} of pgd's images, {shares[2]:.3f} of eot's"
    print(f"share of 50 new views of each image that is misclassified: {said} (eps 0.2, infinity)")


def figure(found: dict[str, dict[str, list[float]]], clean: float, error: float, path: str) -> None:
    """Accuracy against eps."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 4.2), dpi=90, layout="constrained")
    for place, (norm, curves) in enumerate(found.items()):
        axes = picture.add_subplot(1, 2, place + 1)
        for index, (name, values) in enumerate(curves.items()):
            style = {"marker": "osv^Dxp*"[index % 8], "ms": 4, "lw": 1.2}
            axes.plot([0, *EPS[norm]], [clean, *values], label=name, **style)
        axes.set(xlabel=f"eps (norm {norm}, pixels in 0..1)", ylabel="accuracy (higher is better)", ylim=(-0.02, 1.02))
        axes.set_title(f"standard error at most {error:.3f}", fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    picture.savefig(path)
    print(f"accuracy against eps: {path}")


def main() -> None:
    """All tables and the figure."""
    asked = tyro.cli(Options, description=__doc__)
    models = {"first": jaxgen.load(asked.run)} | ({"second": jaxgen.load(asked.other)} if asked.other else {})
    functions = {name: attacks.on_unit_box(model) for name, model in models.items()}
    levels, (train, test) = models["first"].config.levels, (data.load(asked.data, split) for split in ("train", "test"))
    n = min(asked.n, len(test))
    x, y = attacks.to_unit(np.asarray(test.images[:n]), levels), jnp.asarray(test.labels[:n], jnp.int32)
    train_x, train_y = attacks.to_unit(np.asarray(train.images[:2000]), levels), jnp.asarray(train.labels[:2000], jnp.int32)
    logits_fn = functions["first"]
    right = np.asarray(logits_fn(x).argmax(1) == y)
    print(f"{asked.data}: accuracy {right.mean():.3f} on {n} test images, {levels} levels; audit: {attacks.audit(logits_fn, x, y)}")
    found = curves(logits_fn, x, y, levels, right, min(asked.smallest, n))
    figure(found, float(right.mean()), sqrt(0.25 / n), f"{asked.out or asked.run}/attacks.png")
    queries(logits_fn, x, y, right, np.asarray(train_x))
    unseen(logits_fn, x, y, train_x, train_y)
    if asked.other:
        transferred(functions, x, y)


if __name__ == "__main__":
    main()
