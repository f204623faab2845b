"""Gated PixelCNN on scikit-learn's digits, 8x8, 17 levels: the quickstart.

    python -m experiments.gated_pixelcnn_digits            about 90 s of training on 2 CPU cores
    python -m experiments.gated_pixelcnn_digits --laptop   a few seconds: the same path end to end, a poor model

Data: 1,293 train, 144 validation (chooses the step), 360 test images. Measured numbers: README.md, table of models.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import GatedPixelCNNConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=GatedPixelCNNConfig(image_shape=(8, 8, 1), levels=17, layers=4, width=48, input_kernel=5, dropout=0.15),
    optimizer=OptimizerConfig(learning_rate=4e-3, schedule="cosine", warmup_steps=50),
    train=TrainConfig(steps=800, batch_size=64, ema_decay=0.99, eval_every=100),
    workdir="runs/gated_pixelcnn_digits",
)
laptop = replace(
    config,
    model=replace(config.model, layers=2, width=16, head_width=16),
    train=replace(config.train, steps=60, eval_every=20),
    workdir="runs/gated_pixelcnn_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
