"""How attacks do on what they have not seen: a network without gradients, another network, new images, new views.

    python -m experiments.classifier_digits --workdir runs/conv
    python -m experiments.classifier_digits --model.architecture mlp --model.hidden 64 64 --workdir runs/mlp
    python -m experiments.attacks_unseen runs/conv runs/mlp [--data digits] [--n 200] [--out runs/conv]

On the first n test images, with values in [0, 1], and eps of the norm infinity: which share of images that fool one network fools the
other; the share fooled by estimated gradients against queries, also OUT/queries.png; universal perturbations, a network that attacks and
patches, made of the first 2000 training images; images made by expectation over transformations, on new draws of the transformations.

Measured: experiments/results/attacks_unseen.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxgen
from experiments.attacks_curves import KEY, VIEW, images
from jaxgen import attacks, data


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a classifier
    other: tyro.conf.Positional[str]  # run directory of another classifier of the same images
    data: str = "digits"  # the data set that they were trained on
    n: int = 200  # so many test images
    eps: float = 0.15  # largest change of a value
    queries: int = 4000  # budget of attacks that ask only
    out: str | None = None  # folder of the figure; None: RUN


def transferred(functions: dict[str, Callable], x, y, eps: float) -> None:
    """Share of images, that both networks are right on, which fool the column's network after an attack on the row's."""
    both = np.logical_and.reduce([np.asarray(f(x).argmax(1) == y) for f in functions.values()])
    sources = functions | {"both": attacks.ensemble(list(functions.values()))}
    for name, attack in (("fgsm", attacks.fgsm), ("pgd", partial(attacks.pgd, keep="last"))):
        print(f"{name}, eps {eps}, of {both.sum()} images: share that fools {', '.join(functions)}")
        for source, f in sources.items():
            x_adv = jax.jit(lambda x, y, f=f, attack=attack: attack(f, x, y, KEY, eps).x_adv)(x, y)
            shares = [float(np.asarray(g(x_adv).argmax(1) != y)[both].mean()) for g in functions.values()]
            print(f"        made for {source:<6} {[round(share, 3) for share in shares]}", flush=True)


def asked_for(logits_fn, x, y, right: np.ndarray, train: np.ndarray, eps: float, budget: int) -> dict[str, np.ndarray]:
    """{estimate of the gradient: after how many queries each image was fooled, infinity where it was not}."""
    from sklearn.decomposition import PCA

    size = x[0].size
    principal = jnp.asarray(PCA(size // 4, random_state=0).fit(train.reshape(len(train), -1)).components_, jnp.float32)
    estimates = {
        "finite differences": attacks.finite_differences,
        f"{size // 4} random groups": partial(attacks.random_groups, groups=size // 4),
        f"{size // 4} principal directions": partial(attacks.principal_directions, directions=principal),
        "NES, 25 directions": partial(attacks.nes, samples=25),
        "SPSA, 25 directions": partial(attacks.spsa, samples=25),
    }
    limits, found = [budget // 16, budget // 8, budget // 4, budget // 2, budget], {}
    print(f"share fooled at eps {eps} within {limits} queries")
    for name, directions in estimates.items():
        attack = partial(attacks.estimated, directions=directions, budget=budget, step_size=eps / 8)
        result = jax.jit(lambda f, x, y, attack=attack: attack(f, x, y, KEY, eps))(logits_fn, x, y)
        found[name] = np.where(np.asarray(result.success), np.asarray(result.queries), np.inf)[right]
        print(f"        {name:<24} {[round(float((found[name] <= limit).mean()), 3) for limit in limits]}", flush=True)
    return found


def figure(found: dict[str, np.ndarray], white: float, eps: float, budget: int, path: str) -> None:
    """Share fooled against queries."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6, 3.6), dpi=90, layout="constrained")
    axes = picture.subplots()
    for name, queries in found.items():
        asked = np.sort(queries[np.isfinite(queries)])
        shares = np.arange(1, len(asked) + 1) / len(queries)
        axes.step([*asked, budget], [*shares, len(asked) / len(queries)], where="post", label=name, lw=1.3)
    axes.axhline(white, color="black", lw=0.8, ls=":", label="pgd, with gradients")
    axes.set(xlabel="queries of an image", ylabel=f"share fooled, eps {eps:g}", xscale="log", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    picture.savefig(path)
    print(f"share fooled against queries: {path}")


def new_images(logits_fn, x, y, train_x, train_y) -> None:
    """Universal perturbations, patches and a network that attacks, made of training images."""
    for norm, eps in ((inf, 0.1), (inf, 0.2), (2, x[0].size ** 0.5 / 8)):
        search = jax.jit(lambda f, x, y, eps=eps, norm=norm: attacks.universal(f, x, y, KEY, eps, norm))
        v = search(logits_fn, train_x, train_y)
        shares = [float((logits_fn(jnp.clip(part + v, 0, 1)).argmax(1) != label).mean()) for part, label in ((train_x, train_y), (x, y))]
        print(
            f"universal, norm {norm}, eps {eps}: fools {shares[0]:.3f} of the training images, {shares[1]:.3f} of the test images",
            flush=True,
        )
    for size in (x.shape[1] // 4, x.shape[1] // 2, 3 * x.shape[1] // 4):
        square = jax.jit(lambda f, x, size=size: attacks.patch(f, x, 8, KEY, size))(logits_fn, train_x)
        shown = attacks.pasted(x, square, jax.random.split(jax.random.key(1), len(x)))
        shares = [float((logits_fn(images).argmax(1) == 8)[y != 8].mean()) for images in (x, shown)]
        said = f"{shares[1]:.3f} of the test images of other classes ({shares[0]:.3f} without)"
        print(f"patch of {size} x {size} pixels for class 8: {said}", flush=True)
    for eps in (0.1, 0.2):
        search = jax.jit(lambda f, x, y, eps=eps: attacks.train_net(f, x, y, KEY, eps))
        net = search(logits_fn, train_x, train_y)
        by = [attacks.by_net(net, logits_fn, *part, KEY) for part in ((train_x, train_y), (x, y))]
        by.append(attacks.pgd(logits_fn, x, y, KEY, eps))
        own, test, pgd = (float(result.success.mean()) for result in by)
        print(
            f"a network, eps {eps}: {own:.3f} of its training images misclassified, {test:.3f} of test images (pgd {pgd:.3f})", flush=True
        )


def new_views(logits_fn, x, y, eps: float = 0.2) -> None:
    """Images made robust against views, on new views."""
    keys = jax.random.split(jax.random.key(9), (50, len(x)))
    fooled = jax.jit(lambda f, x: jax.lax.map(lambda keys: f(jax.vmap(VIEW)(x, keys)).argmax(1) != y, keys).mean())
    ours = jax.jit(lambda f, x, y: attacks.eot(f, x, y, KEY, eps, VIEW))(logits_fn, x, y).x_adv
    plain = attacks.pgd(logits_fn, x, y, KEY, eps).x_adv
    shares = [float(fooled(logits_fn, each)) for each in (x, plain, ours)]
    said = f"{shares[0]:.3f} of x, {shares[1]:.3f} of pgd's images, {shares[2]:.3f} of eot's"
    print(f"share of 50 new views of each image that is misclassified: {said} (eps {eps})", flush=True)


def main() -> None:
    """All tables and the figure."""
    asked = tyro.cli(Options, description=__doc__)
    models = {"first": jaxgen.load(asked.run), "second": jaxgen.load(asked.other)}
    functions = {name: attacks.on_unit_box(model) for name, model in models.items()}
    levels, (train, test) = models["first"].config.levels, (data.load(asked.data, split) for split in ("train", "test"))
    (x, y), (train_x, train_y) = images(test, levels, min(asked.n, len(test))), images(train, levels, 2000)
    logits_fn = functions["first"]
    right = np.asarray(logits_fn(x).argmax(1) == y)
    transferred(functions, x, y, asked.eps)
    found = asked_for(logits_fn, x, y, right, np.asarray(train_x), asked.eps, asked.queries)
    white = float(np.asarray(attacks.pgd(logits_fn, x, y, KEY, asked.eps).success)[right].mean())
    figure(found, white, asked.eps, asked.queries, f"{asked.out or asked.run}/queries.png")
    new_images(logits_fn, x, y, train_x, train_y)
    new_views(logits_fn, x, y)


if __name__ == "__main__":
    main()
