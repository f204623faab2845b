"""Tools for models with codes and for class-conditional models: the space of codes, nearest training examples, a generative classifier."""

from jaxgen.latent.codes import CodeMap, Codes, code_map, encoded, interpolate, linear, reconstruct, spherical, traverse
from jaxgen.latent.generative_classifier import classify, log_likelihoods, log_prior
from jaxgen.latent.neighbours import Nearest, nearest

__all__ = [
    "CodeMap", "Codes", "Nearest", "classify", "code_map", "encoded", "interpolate", "linear", "log_likelihoods", "log_prior", "nearest",
    "reconstruct", "spherical", "traverse",
]  # fmt: skip
