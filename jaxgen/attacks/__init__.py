"""Attacks on classifiers: pure functions `attack(logits_fn, x, y, key, eps, ...) -> Result` for any function of images in [0, 1] to logits.

    logits_fn = attacks.on_unit_box(jaxgen.load("runs/classifier_digits"))       # or any function of your own
    x = attacks.to_unit(images, levels=17)
    found = jax.jit(partial(attacks.pgd, steps=100))(logits_fn, x, labels, jax.random.key(0), 0.1)
    found.success.mean(), found.x_adv

A function of your own takes a batch of images and answers with logits [B, K]: a Flax model as it is (`model.eval()` first; of Linen
`partial(model.apply, params)`), one of Equinox, which takes one image, as `jax.vmap(eqx.nn.inference_mode(model))`.

losses.py says what is made large, and why it is not the usual cross entropy. Errors are one line.
"""

from jaxgen.attacks.audits import Audit, audit
from jaxgen.attacks.black_box import (
    boundary,
    estimate,
    estimated,
    finite_differences,
    nes,
    principal_directions,
    random_groups,
    spsa,
    transfer,
)
from jaxgen.attacks.functions import ensemble, from_unit, on_unit_box, to_level, to_unit
from jaxgen.attacks.gradient import fast_gradient, fgsm, iterative_sign, least_likely, multi_targeted, pgd
from jaxgen.attacks.inputs import Result
from jaxgen.attacks.inside import activation_maximisation, fooling_images, invert, plane, saliency
from jaxgen.attacks.losses import cross_entropy, log_ratio, margin
from jaxgen.attacks.minimal import cw_l2, deepfool, lbfgs, penalised
from jaxgen.attacks.nets import AttackNet, by_net, train_net
from jaxgen.attacks.physical import brightened, chain, eot, noised, pasted, patch, photographed, rotated, universal
from jaxgen.attacks.robustness import Robustness, robust_accuracy

__all__ = [
    "AttackNet", "Audit", "Result", "Robustness", "activation_maximisation", "audit", "boundary", "brightened", "by_net", "chain",
    "cross_entropy", "cw_l2", "deepfool", "ensemble", "eot", "estimate", "estimated", "fast_gradient", "fgsm", "finite_differences",
    "fooling_images", "from_unit", "invert", "iterative_sign", "lbfgs", "least_likely", "log_ratio", "margin", "multi_targeted", "nes",
    "noised", "on_unit_box", "pasted", "patch", "penalised", "pgd", "photographed", "plane", "principal_directions", "random_groups",
    "robust_accuracy", "rotated", "saliency", "spsa", "to_level", "to_unit", "train_net", "transfer", "universal",
]  # fmt: skip
