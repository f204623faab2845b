"""Two languages that need a counter, a^n b^n and a^n b^n c^n: learnt from n = 1 .. 10, tested at n = 11 .. 20, with stacks and without.

    python -m experiments.counting_languages               five seeds, about ten minutes of one CPU core
    python -m experiments.counting_languages --laptop      one seed and few steps, to see that it runs

The plain GRU has as many parameters as the GRU with four stacks. After the first b all is determined, the rest of the string and its stop
token: a string counts as right if at all these places the token is the likeliest. The GRUs with stacks have a second number, for hard
controls: the largest of push, pop and keep is 1, the others are 0.

A GRU counts to ten in its state, so nothing asks it to use a stack, and what it counts so does not go on to eleven. In training, Gaussian
noise is therefore added to the state h after every place, and none to the stack: h can tell some few cases apart, as the states of an
automaton, but hold no exact number (Jim, Giles, Horne 1996, "An analysis of noise in recurrent neural networks", trained such cells with
noise first). All models are trained with it and without; nothing is noisy in the tests. Results: experiments/results/counting_languages.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from jaxgen.data import text
from jaxgen.models import LanguageModelConfig, StackGRUConfig, build, count_parameters

LANGUAGES = {"a^n b^n": "ab", "a^n b^n c^n": "abc"}
LEARNT, TESTED = range(1, 11), range(11, 21)
SEEDS, STEPS, RATE = range(5), 3000, 1e-2
NOISE = (0.3, 0.0)
"""Standard deviations of the noise on the state."""
HARD = 1e4
"""Logits of the controls times this are as good as hard."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    laptop: bool = False  # one seed and few steps


def strings(letters: str, counts: Iterable[int]) -> np.ndarray:
    """Tokens [N, L] of the strings with these n, L long enough for n = 20 and the stop token."""
    lines = ["".join(letter * n for letter in letters) for n in counts]
    return text.encode(lines, tuple(letters), max(TESTED) * len(letters) + 1)


def right(model, tokens: np.ndarray) -> np.ndarray:
    """Whether all tokens after the first b are the likeliest ones, [N]."""
    likeliest = np.asarray(jax.jit(lambda model, tokens: jnp.argmax(model.logits(tokens), -1))(model, tokens))
    lengths, n = (tokens != 0).sum(1, keepdims=True), (tokens == 1).sum(1, keepdims=True)
    place = np.arange(tokens.shape[1])
    return ((likeliest == tokens) | (place <= n) | (place > lengths)).all(1)


def hardened(model):
    """The model with hard controls."""
    graph, state = nnx.split(model)
    for name in ("controls", "controls_bias"):
        state[name][...] = state[name][...] * HARD
    return nnx.merge(graph, state)


def plain_of_as_many(model: StackGRUConfig) -> LanguageModelConfig:
    """The plain GRU whose number of parameters is nearest."""

    def size(config) -> int:
        return count_parameters(jax.eval_shape(lambda: build(config)))

    plain = LanguageModelConfig(model.length, model.vocabulary, model.symbols)
    widths = range(model.width, 2 * model.width)
    return min((replace(plain, width=width) for width in widths), key=lambda config: abs(size(config) - size(model)))


def noisy_loss(model, tokens, key, noise: float):
    """Bits per character of the strings [N, L], with noise on the state after every place: the array [N, D] of the sampler's cache."""
    previous = jnp.concatenate([jnp.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
    disturbances = noise * jax.random.normal(key, (tokens.shape[1], len(tokens), model.config.width))

    def place(cache, inputs):
        i, previous, disturbance = inputs
        cache, logits = model.step(cache, previous, i)
        return jax.tree.map(lambda x: x + disturbance if x.shape == disturbance.shape else x, cache), logits

    inputs = jnp.arange(tokens.shape[1]), previous.T, disturbances
    _, logits = jax.lax.scan(place, model.init_cache(len(tokens)), inputs)
    counted = jnp.arange(tokens.shape[1])[None] <= (tokens != 0).sum(1)[:, None]  # with the stop token
    return -jnp.where(counted, model.head.log_prob(logits.swapaxes(0, 1), tokens), 0).sum() / (counted.sum().astype(jnp.float32) * log(2))


def trained(config, tokens, noise: float, seeds: Sequence[int], steps: int) -> tuple[list, np.ndarray]:
    """A model of each seed, trained on all strings at every step, and the mean loss of its last hundred steps; all seeds at once."""
    graph, _ = nnx.split(build(config))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, steps)))

    def of_seed(params, key):
        def step(carry, i):
            params, state = carry
            of = jax.value_and_grad(lambda params: noisy_loss(nnx.merge(graph, params), tokens, jax.random.fold_in(key, i), noise))
            loss, gradient = of(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
        return params, losses[-100:].mean()

    begun = [nnx.split(build(config, seed))[1] for seed in seeds]
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    params, losses = jax.jit(jax.vmap(of_seed))(jax.tree.map(lambda *x: jnp.stack(x), *begun), keys)
    return [nnx.merge(graph, jax.tree.map(lambda x: x[i], params)) for i in range(len(seeds))], np.asarray(losses)  # noqa: B023


def main(options: Options) -> None:
    seeds, steps = (SEEDS[:1], 30) if options.laptop else (SEEDS, STEPS)
    columns = ["language", "noise", "model", "parameters", "bits/character"]
    columns += ["right, n = 1 .. 10", "n = 11 .. 20", "n = 11 .. 20, hard controls"]
    print(f"numbers of the seeds {', '.join(map(str, seeds))}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for language, letters in LANGUAGES.items():
        learnt, tested = strings(letters, LEARNT), strings(letters, TESTED)
        begins = jnp.asarray(learnt[:, : max(LEARNT) * len(letters) + 1])  # without the places that count in no string
        four = StackGRUConfig(learnt.shape[1], len(letters) + 1, tuple(letters), width=16, stack_width=1, stack_depth=24, stacks=4)
        one = replace(four, stack_width=4, stacks=1)
        for noise in NOISE:
            for name, config in (("one stack", one), ("four stacks", four), ("plain", plain_of_as_many(four))):
                models, losses = trained(config, begins, noise, seeds, steps)
                cells = [" ".join(f"{loss:.2f}" for loss in losses)]
                cells += [" ".join(f"{right(model, tokens).mean():.1f}" for model in models) for tokens in (learnt, tested)]
                cells += [" ".join(f"{right(hardened(model), tested).mean():.1f}" for model in models) if "stack" in name else ""]
                print(f"| {language} | {noise:g} | {name} | {count_parameters(models[0])} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
