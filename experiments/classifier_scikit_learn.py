"""Logistic regression and a support vector machine of scikit-learn on the digits, to compare with experiments.classifier_digits.

    python -m experiments.classifier_scikit_learn          a minute on one CPU core

Fitted on the training images, and on these with all their shifts by up to one and two pixels, zeros coming in at the edges. Measured:
experiments/results/classifier_digits.md.
"""

import itertools

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.svm import SVC

from jaxgen.data import load


def shifted(images: np.ndarray, most: int) -> np.ndarray:
    """Every image moved by all of -most .. most rows and columns: [(2 most + 1)^2 N, H W]."""
    height, width = images.shape[1:3]
    padded = np.pad(images[..., 0], ((0, 0), (most, most), (most, most)))
    places = itertools.product(range(2 * most + 1), repeat=2)
    return np.concatenate([padded[:, top : top + height, left : left + width] for top, left in places]).reshape(-1, height * width)


def main() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    seen = shifted(test.images, 0) / 16
    for most in (0, 1, 2):
        x, y = shifted(train.images, most) / 16, np.tile(train.labels, (2 * most + 1) ** 2)
        for model in (LogisticRegression(max_iter=1000), SVC()):
            model.fit(x, y)
            line = f"{type(model).__name__}, shifts up to {most}: accuracy {model.score(seen, test.labels):.4f}"
            if hasattr(model, "predict_proba"):
                line += f", log-loss {log_loss(test.labels, model.predict_proba(seen)):.3f} nats"
            print(line, flush=True)


if __name__ == "__main__":
    main()
