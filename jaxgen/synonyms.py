"""Other words for fields and options, for the hint beside an unknown one: `--optimizer.lr`: did you mean --optimizer.learning_rate?"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

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
    "depth": ("blocks", "layers", "n_layers", "num_layers"),
    "width": (
        *("channels", "d_model", "dim", "embed_dim", "features", "filters", "hidden_dim", "hidden_size"),
        *("n_filters", "nr_filters", "num_filters"),
    ),
    "layers": ("blocks", "depth", "n_layers", "num_layers"),
    "blocks": ("depth", "layers", "n_blocks", "n_layers", "num_blocks", "num_layers"),
    "heads": ("n_heads", "num_heads"),
    "resnets": ("blocks", "depth", "layers", "n_layers", "nr_resnet", "num_layers"),
    "hidden": ("channels", "d_ff", "depth", "hidden_dim", "hidden_size", "layers", "mlp_dim", "num_layers", "units", "width"),
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
"""A field, or its whole path, and what other libraries call it. Of several fields with a word, the first of them that there is is meant."""


def nearest(name: str, names: Iterable[str], values: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str | None:
    """Which of `names` was meant by the unknown `name`: the same last part elsewhere, a synonym, a value, or a similar spelling; or None.

    values: of the fields with a few values, these; `optimizer.adam` is answered by "optimizer.name adam". Of several answers the one in the
    most similar place (the words before the last dot) goes first. Names are compared by their last parts: in `optimizer.lr` and
    `optimizer.b2` most letters are equal, and they have nothing to do with each other.
    """
    names = list(names)
    place, _, last = name.rpartition(".")
    pairs = [(field, value) for field, some in values.items() for value in some]

    def close(words):
        return difflib.get_close_matches(last, words, n=1)

    found = [other for other in names if _last(other) == last]
    found = found or [other for meant, words in SYNONYMS.items() if last in words for other in names if meant in (other, _last(other))]
    found = found or [f"{field} {value}" for field, value in pairs if value == last]
    found = found or [other for other in names if _last(other) in close([_last(other) for other in names])]
    found = found or ([] if place else difflib.get_close_matches(name, names, n=1))
    found = found or [f"{field} {value}" for field, value in pairs if value in close([value for _, value in pairs])]
    return max(found, key=lambda other: difflib.SequenceMatcher(None, place, other.rpartition(".")[0]).ratio(), default=None)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
