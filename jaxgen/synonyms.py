"""Other words for fields and options, for the hint beside an unknown one: `--optimizer.lr`: did you mean --optimizer.learning_rate?"""

import difflib
from collections.abc import Iterable

SYNONYMS = {
    "learning_rate": ("lr", "alpha", "eta", "step_size"),
    "batch_size": ("bs", "batch", "minibatch", "minibatch_size"),
    "steps": ("epochs", "iterations", "iters", "num_steps", "n_steps", "max_steps", "total_steps", "train_steps"),
    "max_minutes": ("minutes", "max_time", "time_limit", "timeout"),
    "weight_decay": ("wd", "l2", "decay"),
    "warmup_steps": ("warmup",),
    "b1": ("beta1", "beta_1"),
    "b2": ("beta2", "beta_2"),
    "clip_norm": ("clip", "clipnorm", "grad_clip", "gradient_clip", "max_grad_norm"),
    "ema_decay": ("ema", "polyak"),
    "accumulate": ("accumulation_steps", "grad_accum", "gradient_accumulation", "microbatches"),
    "log_every": ("log_interval", "log_steps"),
    "eval_every": ("checkpoint_every", "eval_interval", "eval_steps", "save_every", "val_every"),
    "width": ("channels", "d_model", "dim", "embed_dim", "features", "filters", "hidden_dim", "hidden_size", "nr_filters", "num_filters"),
    "hidden": ("d_ff", "hidden_dim", "hidden_size", "mlp_dim", "units"),
    "layers": ("blocks", "depth", "n_layers", "num_layers"),
    "heads": ("n_heads", "num_heads"),
    "resnets": ("nr_resnet",),
    "mixtures": ("mix", "n_mix", "nr_logistic_mix", "num_mixtures"),
    "dropout": ("drop", "drop_rate", "dropout_rate", "p_drop"),
    "latent": ("latent_dim", "latent_size", "z", "z_dim"),
    "components": ("n_components", "num_components"),
    "num_classes": ("classes", "n_classes"),
    "image_shape": ("image_size", "img_size", "input_shape", "resolution", "shape"),
    "levels": ("bits", "n_bits", "num_levels"),
    "vocabulary": ("vocab", "vocab_size"),
    "length": ("max_len", "max_length", "seq_len", "sequence_length"),
    "dtype": ("precision",),
    "data.name": ("data", "dataset", "file", "path"),
    "optimizer.name": ("optim", "optimiser", "optimizer"),
    "workdir": ("dir", "folder", "log_dir", "logdir", "out", "out_dir", "output", "output_dir", "run_dir", "save_dir"),
    "n": ("count", "n_samples", "num", "num_samples", "number", "samples"),
    "label": ("class", "cls", "y"),
    "temperature": ("t", "temp"),
    "step": ("checkpoint", "ckpt"),
    "seed": ("key", "random_seed", "rng"),
    "keep": ("given", "known", "mask"),
    "out": ("file", "output", "output_file", "path", "save"),
}
"""A field, or its whole path, and what other libraries call it."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Which of `names` was meant by the unknown `name`: the same last part elsewhere, a synonym, or a similar spelling; None if none is.

    Of several the one in the most similar place (the words before the last dot) goes first. Names are compared by their last parts: in
    `optimizer.lr` and `optimizer.b2` most letters are equal, and they have nothing to do with each other.
    """
    names = list(names)
    place, _, last = name.rpartition(".")
    close = difflib.get_close_matches(last, [_last(other) for other in names], n=1)
    found = [other for other in names if _last(other) == last]
    found = found or [other for other in names if last in SYNONYMS.get(other, ()) or last in SYNONYMS.get(_last(other), ())]
    found = found or [other for other in names if _last(other) in close]
    found = found or ([] if place else difflib.get_close_matches(name, names, n=1))
    return max(found, key=lambda other: difflib.SequenceMatcher(None, place, other.rpartition(".")[0]).ratio(), default=None)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
