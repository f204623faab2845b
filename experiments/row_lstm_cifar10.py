"""Row LSTM on CIFAR-10, 32x32x3, 256 levels, with the paper's sizes
(12 layers, h = 128 there, 129 here: a multiple of the three channels).

    python -m experiments.row_lstm_cifar10                                    TFDS's cifar10 (extra: tfds), one command on all hosts
    python -m experiments.row_lstm_cifar10 --data.name FOLDER                 train.npz, test.npz of your own
    python -m experiments.row_lstm_cifar10 --laptop --data.name FOLDER        a small model for a CPU

Needs an accelerator at full size. Published: 3.07 bits/dim (van den Oord, Kalchbrenner, Kavukcuoglu 2016, "Pixel Recurrent Neural
Networks"). Departures: Adam with a cosine schedule and batch 64; the paper, as we remember it, has RMSProp and batch 16.
Ours at full size: not run.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.data import DataConfig
from jaxgen.models import RowLSTMConfig
from jaxgen.training import OptimizerConfig, TrainConfig

config = Experiment(
    model=RowLSTMConfig(image_shape=(32, 32, 3), levels=256, layers=12, width=129, head_width=1026, dtype="bfloat16"),
    data=DataConfig("cifar10"),
    optimizer=OptimizerConfig(learning_rate=4e-4, schedule="cosine", warmup_steps=2000),
    train=TrainConfig(steps=200_000, batch_size=64, ema_decay=0.9995, log_every=100, eval_every=5000),
    workdir="runs/row_lstm_cifar10",
)
laptop = replace(
    config,
    model=replace(config.model, layers=2, width=12, head_width=48, dtype="float32"),
    optimizer=replace(config.optimizer, learning_rate=2e-3, warmup_steps=20),
    train=replace(config.train, steps=100, batch_size=16, ema_decay=0.99, log_every=10, eval_every=50),
    workdir="runs/row_lstm_cifar10_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
