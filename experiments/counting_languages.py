"""Two languages that need a counter, a^n b^n and a^n b^n c^n: learnt from n = 1 .. 10, tested at n = 11 .. 20, with a stack and without.

    python -m experiments.counting_languages               three seeds, all of it is minutes of one CPU core
    python -m experiments.counting_languages --laptop      one seed and few steps, to see that it runs

The plain GRU has as many parameters as the GRU with a stack. After the first b all is determined, the rest of the string and its stop
token: a string counts as right if at all these places the token is the likeliest. The GRU with a stack has a second number, for hard
controls: the largest of push, pop and keep is 1, the others are 0. Results: experiments/results/counting_languages.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import jaxgen
from jaxgen.data import Dataset, text
from jaxgen.data.features import Tokens
from jaxgen.models import LanguageModelConfig, StackGRUConfig, build, count_parameters

LANGUAGES = {"a^n b^n": "ab", "a^n b^n c^n": "abc"}
LEARNT, TESTED = range(1, 11), range(11, 21)
SEEDS, STEPS = range(3), 3000
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


def main(options: Options) -> None:
    rows = [
        "| language | model | parameters | seed | right, n = 1 .. 10 | right, n = 11 .. 20 | the same, hard controls |",
        "|---" * 7 + "|",
    ]
    for language, letters in LANGUAGES.items():
        learnt, tested = strings(letters, LEARNT), strings(letters, TESTED)
        feature = Tokens(learnt.shape[1], len(letters) + 1, tuple(letters))
        dataset = Dataset.from_columns({"tokens": learnt}, {"tokens": feature})
        stack = StackGRUConfig(**StackGRUConfig.sizes_from(dataset.features), width=16, stack_width=4, stack_depth=24)
        for name, config in (("stack", stack), ("plain", plain_of_as_many(stack))):
            for seed in SEEDS[:1] if options.laptop else SEEDS:
                steps = 50 if options.laptop else STEPS
                model = jaxgen.train(config, dataset, steps, validation=dataset, learning_rate=5e-3, eval_every=steps, seed=seed)
                found = [f"{right(model, tokens).mean():.1f}" for tokens in (learnt, tested)]
                found.append(f"{right(hardened(model), tested).mean():.1f}" if name == "stack" else "")
                rows.append(f"| {language} | {name} | {count_parameters(model)} | {seed} | {' | '.join(found)} |")
                print(rows[-1], flush=True)
    print("", *rows, sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
