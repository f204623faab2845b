"""Looking into a classifier of images: what its classes look like, what fools it, what its layers keep, where it looks, where classes end.

    python -m experiments.classifier_digits --workdir runs/conv
    python -m experiments.attacks_pictures runs/conv [--data digits] [--n 6] [--out runs/conv]

OUT/inside.png has a row each for: the image of the highest logit for every class; images made from noise that the network gives 99 % to
every class; the first test images, their inversions from every layer, first layer to last, and the saliency of their class. OUT/plane.png
is the class at x + a u + b v, u towards an adversarial image and v random. Printed: for every layer the mean error of the inverted
representation and the root mean squared difference of the image from x, with standard errors over images.

Measured: experiments/results/attacks_inside.md.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxgen
from jaxgen import attacks, data

KEY = jax.random.key(0)


@dataclass(frozen=True)
class Options:
    """The command line."""

    run: tyro.conf.Positional[str]  # run directory of a classifier
    data: str = "digits"  # the data set that it was trained on
    n: int = 6  # so many test images in the picture
    measured: int = 50  # of so many the errors of inversions are printed
    out: str | None = None  # folder of the pictures; None: RUN


def inverted(model, x, few: int) -> dict[str, np.ndarray]:
    """{layer: the first images made from its output}; the errors of all are printed."""
    found = {}
    for name in model.layers:
        features = attacks.on_unit_box(model, name)
        made = jax.jit(lambda f, w: attacks.invert(f, w, x.shape[1:], KEY))(features, features(x))
        distance = np.sqrt(np.square(np.asarray(made.image - x)).reshape(len(x), -1).mean(axis=1))
        said = f"{distance.mean():.3f} +- {distance.std(ddof=1) / len(x) ** 0.5:.3f}"
        print(f"inverted from {name:<10} error of the representation {np.asarray(made.error).mean():.4f}, image off by {said}")
        found[name] = np.asarray(made.image[:few])
    return found


def main() -> None:
    """The pictures and the table of inversions."""
    from matplotlib.figure import Figure

    asked = tyro.cli(Options, description=__doc__)
    model, test = jaxgen.load(asked.run), data.load(asked.data, "test")
    levels, classes, shape, folder = model.config.levels, model.config.num_classes, model.config.image_shape, asked.out or asked.run
    logits_fn = attacks.on_unit_box(model)
    x = attacks.to_unit(np.asarray(test.images[: asked.measured]), levels)
    y = jnp.asarray(test.labels[: asked.measured], jnp.int32)
    every = np.arange(classes)
    fooling, sure = attacks.fooling_images(logits_fn, every, shape, KEY)
    print(f"fooling images: the least sure of its class is {float(sure.min()):.4f}")
    rows = {"most active": attacks.activation_maximisation(logits_fn, every, shape, KEY), "fooling": fooling, "test images": x[: asked.n]}
    rows |= {f"from {name}": images for name, images in inverted(model, x, asked.n).items()}
    slopes = attacks.saliency(logits_fn, x[: asked.n], y[: asked.n])[..., None]
    rows["saliency"] = slopes / slopes.max(axis=(1, 2, 3), keepdims=True)
    picture = Figure(figsize=(classes * 0.9, len(rows)), dpi=90, layout="constrained")
    places = picture.subplots(len(rows), max(classes, asked.n))
    for (name, images), row in zip(rows.items(), places, strict=True):
        for place in row:
            place.axis("off")
        row[0].set_title(name, fontsize=8, loc="left")
        for image, place in zip(np.asarray(images), row, strict=False):
            place.imshow(image.squeeze(), vmin=0, vmax=1, cmap="gray")
    picture.savefig(f"{folder}/inside.png")

    picture = Figure(figsize=(9, 3.2), dpi=90, layout="constrained")
    adversarial = attacks.deepfool(logits_fn, x, y, KEY)
    chosen = np.flatnonzero(np.asarray(adversarial.success & (adversarial.norm > 0)))[:3]
    for place, i in zip(picture.subplots(1, 3), chosen, strict=True):
        seen = attacks.plane(logits_fn, x[i], adversarial.x_adv[i], KEY, side=81)
        place.imshow(seen, origin="lower", extent=(-2, 2, -2, 2), cmap="tab10", vmin=0, vmax=9)
        place.plot([0, 1], [0, 0], "k.-", lw=1)
        for k in np.unique(seen):
            b, a = np.argwhere(np.asarray(seen) == k).mean(axis=0) / 20 - 2
            place.text(a, b, str(k), color="white", ha="center", va="center")
        place.set_title(f"a test image of class {int(y[i])}")
        place.set(xlabel="towards an adversarial image", ylabel=f"random, in units of {float(adversarial.norm[i]):.2f}")
    picture.savefig(f"{folder}/plane.png")
    print(f"pictures: {folder}/inside.png, {folder}/plane.png")


if __name__ == "__main__":
    main()
