"""Gated PixelCNN on MNIST with the fixed binarization of Larochelle and Murray (2011): 28x28, 2 levels, nats per image.

    python -m experiments.gated_pixelcnn_mnist                                      TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.gated_pixelcnn_mnist --data.name FOLDER                   train.npz, valid.npz, test.npz of your own
    python -m experiments.gated_pixelcnn_mnist --laptop --data.name FOLDER          a small model, a few minutes on a CPU

Needs an accelerator at full size. Published on this binarization: PixelCNN 81.30, Row LSTM 80.54, Diagonal BiLSTM 79.20 nats (van den
Oord, Kalchbrenner, Kavukcuoglu 2016); the Gated PixelCNN paper gives no number for it. Full size: not run.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import GatedPixelCNNConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=GatedPixelCNNConfig(image_shape=(28, 28, 1), levels=2, layers=10, width=128, head_width=32, dropout=0.3),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=1000),
    train=TrainConfig(steps=60_000, batch_size=128, ema_decay=0.9995, log_every=100, eval_every=2000),
    workdir="runs/gated_pixelcnn_mnist",
)
laptop = replace(
    config,
    model=replace(config.model, layers=3, width=16, head_width=16, dropout=0.0),
    optimizer=replace(config.optimizer, learning_rate=3e-3, warmup_steps=50),
    train=replace(config.train, steps=400, batch_size=32, ema_decay=0.99, log_every=10, eval_every=200),
    workdir="runs/gated_pixelcnn_mnist_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
