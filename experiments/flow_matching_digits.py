"""Flow matching on scikit-learn's digits, 8x8, 17 levels; bits/dim here is a bound, since the flow has a density of digits plus noise.

    python -m experiments.flow_matching_digits                a few minutes of training on 2 CPU cores
    python -m experiments.flow_matching_digits --laptop       a few seconds of training

The density is by 20 steps of the ODE with Hutchinson's estimate of the trace; `jaxgen evaluate RUN` prints the errors of both.
With --model.num_classes 10 every digit is given its class, and `jaxgen sample RUN --guidance 2` goes further towards it.
Measured: experiments/results/flow_matching.md.
"""

from dataclasses import replace

from jaxgen.cli import Experiment, main
from jaxgen.models import FlowMatchingConfig
from jaxgen.training import OptimizerConfig, TrainConfig

MLP = replace(FlowMatchingConfig.mlp, width=256, depth=4)  # a step of the default U-Net takes about ten times as long on a CPU

config = Experiment(
    model=FlowMatchingConfig(image_shape=(8, 8, 1), levels=17, network="mlp", mlp=MLP, density_steps=20),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=100),
    train=TrainConfig(steps=10000, batch_size=64, ema_decay=0.999, log_every=200, eval_every=2500),
    workdir="runs/flow_matching_digits",
)
laptop = replace(
    config,
    model=replace(config.model, mlp=replace(MLP, width=32, depth=2), density_steps=5, sample_steps=10),
    train=replace(config.train, steps=200, eval_every=100),
    workdir="runs/flow_matching_digits_laptop",
)

if __name__ == "__main__":
    main(config, laptop)
