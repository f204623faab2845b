"""Bounds of runs on the same images, each of their terms, and what a further run loses or gains on the first, paired by image.

    python -m experiments.paired_bounds runs/latent_diffusion_digits/codes runs/latent_diffusion_digits --samples 16
    python -m experiments.paired_bounds runs/diffusion_mnist --data FOLDER --n 50 --terms 0

Images are the first n of the test split. Bounds of two models go up and down together from image to image, so the mean of their differences
has a smaller standard error than the two means suggest. --terms: how many terms of the diffusion part are drawn for an image; for models of
T steps 0 takes all of them, and then the error of the diffusion part is that of the images and of one draw of x_t at every step. Errors are
standard errors over the images.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np
import tyro

import jaxgen
from experiments.completions import said
from jaxgen.data import Dataset, load
from jaxgen.evaluation import bits_per_dim
from jaxgen.evaluation.likelihoods import kind_of, numbers
from jaxgen.models import Diffusion

BATCH = 64


@dataclass(frozen=True)
class Options:
    """The command line."""

    runs: tyro.conf.Positional[tuple[str, ...]]  # run directories of models of the same images, with bounds or exact likelihoods
    data: str = "digits"  # the data set that they were trained on
    n: int | None = None  # test images; None: all
    samples: int = 1  # draws of each bound for an image
    terms: int | None = None  # of diffusion; None: the run's own number


def opened(run: str, terms: int | None):
    """The model of a run, with another number of terms if one is given."""
    model = jaxgen.load(run)
    if terms is not None:
        if not isinstance(model, Diffusion):
            raise SystemExit(f"--terms: wanted none, since {run} is no diffusion of images, got {terms}")
        model.config = replace(model.config, terms=terms)
    return model


def first_images(data: str, n: int | None) -> Dataset:
    """The first n examples of the test split."""
    test = load(data, "test")
    return Dataset.from_columns({name: np.asarray(column[:n]) for name, column in test.columns.items()}, test.features, split="test")


def main() -> None:
    """For every run its bound and terms, and its difference to the first."""
    options = tyro.cli(Options, description=__doc__)
    test, first = first_images(options.data, options.n), None
    for run in options.runs:
        model = opened(run, options.terms)
        kind = "terms" if hasattr(model, "bound_terms") else kind_of(model, "elbo")
        terms = -numbers(model, test, kind, min(BATCH, len(test)), jax.random.key(0), options.samples).reshape(len(test), -1)
        bits = np.asarray(bits_per_dim(terms.sum(1), int(np.prod(test.image_shape))))
        print(f"{run}: {said(bits)} bits/dim  ({len(bits)} images, {options.samples} draws of each)")
        if kind == "terms":
            for name, values in zip(model.term_names, terms.T, strict=True):
                print(f"  {name:<16} {said(values)} nats of an image")
        if first is not None:
            print(f"  less the first   {said(bits - first)} bits/dim, paired")
        first = bits if first is None else first


if __name__ == "__main__":
    main()
