"""Names of classes: which class a word means, a set with the names of a run, and classes without examples."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxgen.data.archives import listed
from jaxgen.errors import ConfigError, DataError, did_you_mean


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC). Systems write a letter with an accent as one sign or as two; it is the same name."""
    return unicodedata.normalize("NFC", name)


def names_of(features: Any) -> tuple[str, ...]:
    """The names of the classes in the features of a set; () where it has no labels or no names."""
    return getattr(features.get("label"), "names", ())


def find(word: str | int, names: Sequence[str], classes: int, argument: str) -> int:
    """The label in {0 .. classes-1} that a word means: that of the class with this name, else the number that it is.

    So of the classes "5" and "10", the word "10" is label 1 and the word "1" is label 1 too. An int is a label. ConfigError otherwise.
    """
    text, known = composed(str(word)), [composed(name) for name in names]
    if isinstance(word, str) and text in known:
        return known.index(text)
    number = int(text) if text.removeprefix("-").isdecimal() and text.isascii() else None
    if number is not None and (0 <= number < classes or not names):
        return number  # without names, the model says which values it takes
    if not names:
        raise ConfigError(argument, f"a class in 0..{classes - 1} (the run has no names of classes)", repr(word))
    raise ConfigError(argument, f"a class: {listed(tuple(names))}, or 0..{classes - 1}", repr(word), did_you_mean(text, known))


def named(source: Any, names: Sequence[str], origin: str) -> Any:
    """The source, its classes named so. DataError where it has no labels, more classes than names, or other names."""
    if not names:
        return source
    label = source.features.get("label")
    if label is None:
        raise DataError(origin, f"labels of {len(names)} classes, as data.class_names has", "no labels")
    if len(names) < label.classes or label.names and len(names) > label.classes:
        raise DataError(origin, f"{len(names)} classes, as data.class_names has", label.classes)
    for index, (wanted, have) in enumerate(zip(names, label.names, strict=False)):
        if composed(wanted) != composed(have):
            hint = "a run keeps the names of its classes"
            raise DataError(origin, f"class {index} to be {wanted!r}, as data.class_names has", repr(have), hint)
    return source.named(tuple(names))


def without_examples(dataset: Any) -> str:
    """A warning where classes of a set in memory have no example, so that they are not trained; "" where all have one.

    Of a set on disk nothing is said: it would have to be read as a whole.
    """
    label = dataset.features["label"]
    missing = [] if dataset.source.on_disk else np.flatnonzero(np.bincount(dataset.labels, minlength=label.classes) == 0)
    if not len(missing):
        return ""
    said = listed([label.names[index] if label.names else str(index) for index in missing])
    why = f"labels go from 1 to {label.classes - 1}; they are numbered from 0 here, so subtract 1" if list(missing) == [0] else ""
    what = f"class{'es' * (len(missing) > 1)} {said} of {label.classes} {'have' if len(missing) > 1 else 'has'} no example"
    return f"{dataset.name}/{dataset.split}: {what}" + (f": {why}" if why and not label.names else "")
