"""Image Transformer on MNIST with the fixed binarization of Larochelle and Murray (2011): 28x28, 2 levels, full causal attention.

    python -m experiments.image_transformer_mnist                                   TFDS's own binarized_mnist (extra: tfds)
    python -m experiments.image_transformer_mnist --data.name FOLDER                train.npz, valid.npz, test.npz of your own
    python -m experiments.image_transformer_mnist --laptop --data.name FOLDER       a small model for a CPU

8 layers, d 64, 2 heads: the size of the speed comparison. Needs an accelerator at full size. The paper gives no number for this set;
published on it: PixelCNN 81.30, Row LSTM 80.54, Diagonal BiLSTM 79.20 nats (van den Oord, Kalchbrenner, Kavukcuoglu 2016).
Full size: not run.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import ImageTransformerConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=ImageTransformerConfig(image_shape=(28, 28, 1), levels=2, layers=8, width=64, heads=2, hidden=256, dropout=0.1),
    data=DataConfig("binarized_mnist"),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=2000),
    train=TrainConfig(steps=100_000, batch_size=128, ema_decay=0.9995, log_every=100, eval_every=2000),
    workdir="runs/image_transformer_mnist",
)
laptop = replace(
    config,
    model=replace(config.model, layers=2, width=32, hidden=64, block=(7, 7), memory=(7, 7), dropout=0.0),
    optimizer=replace(config.optimizer, learning_rate=3e-3, warmup_steps=50),
    train=replace(config.train, steps=200, batch_size=16, ema_decay=0.99, log_every=10, eval_every=100),
    workdir="runs/image_transformer_mnist_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
