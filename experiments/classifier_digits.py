"""Convolutional classifier on scikit-learn's digits, 8x8, 17 levels, to compare with scikit-learn's logistic regression and SVM.

    python -m experiments.classifier_digits                half a minute of training on 2 CPU cores
    python -m experiments.classifier_digits --laptop       a few seconds

Measured: experiments/results/classifier_digits.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import ClassifierConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=ClassifierConfig(image_shape=(8, 8, 1), levels=17, num_classes=10, hidden=(32, 64), dropout=0.3),
    optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", weight_decay=0.01),
    train=TrainConfig(steps=2000, batch_size=64, log_every=50, eval_every=500),
    workdir="runs/classifier_digits",
)
laptop = replace(config, train=replace(config.train, steps=100, eval_every=50), workdir="runs/classifier_digits_laptop")

if __name__ == "__main__":
    main(config, laptop)
