"""The n-gram ruler: against counting in dictionaries, its sum over all strings, and the lines of a report."""

from itertools import product

import numpy as np
import pytest

from jaxgen import evaluation
from jaxgen.data import Dataset, load
from jaxgen.measures import scores
from jaxgen.measures.n_gram import MOST, STRENGTHS, NGram, most
from jaxgen.models import RULERS

V, L = 4, 5


def rows(strings) -> np.ndarray:
    return np.array([tuple(string) + (0,) * (L - len(string)) for string in strings], np.uint8)


def draw(n: int, seed: int) -> np.ndarray:
    """Strings in which a token tends to follow the one before it."""
    generator = np.random.default_rng(seed)
    strings = []
    for _ in range(n):
        string = [int(generator.integers(1, V))]
        while len(string) < L and generator.random() < 0.8:
            string.append(string[-1] % 3 + 1 if generator.random() < 0.7 else int(generator.integers(1, V)))
        strings.append(string)
    return rows(strings)


TRAIN, VALIDATION, TEST = draw(80, 0), draw(30, 1), draw(40, 2)


def padded(row, n: int) -> list[int]:
    """The stop tokens before the first place, then the tokens that are predicted."""
    string = [int(token) for token in row if token]
    return [0] * (n - 1) + string + [0] * (len(string) < L)


def bits_in_dictionaries(train, test, n: int, a: float) -> float:
    """log p of all strings by the recursion, with counts of tuples."""
    counts = {}
    for k in range(1, n + 1):
        for row in train:
            tokens = padded(row, n)
            for i in range(n - 1, len(tokens)):
                context = tuple(tokens[i - k + 1 : i])
                for key in ((k, context), (k, context, tokens[i])):
                    counts[key] = counts.get(key, 0) + 1

    def p(k, tokens, i):
        if k == 0:
            return 1 / V
        context = tuple(tokens[i - k + 1 : i])
        return (counts.get((k, context, tokens[i]), 0) + a * p(k - 1, tokens, i)) / (counts.get((k, context), 0) + a)

    return sum(np.log(p(n, tokens, i)) for row in test for tokens in [padded(row, n)] for i in range(n - 1, len(tokens)))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_probability_is_that_of_counting_in_dictionaries(n):
    model = NGram(TRAIN, V, n, strength=0.7)
    np.testing.assert_allclose(model.log_prob(TEST).sum(), bits_in_dictionaries(TRAIN, TEST, n, 0.7), rtol=1e-12)


@pytest.mark.parametrize("n", [0, 1, 3, 6])
def test_the_probabilities_of_all_strings_sum_to_one(n):
    strings = rows(string for length in range(L + 1) for string in product(range(1, V), repeat=length))
    assert np.exp(NGram(TRAIN, V, n, strength=0.7).log_prob(strings)).sum() == pytest.approx(1, rel=1e-12)


def test_the_strength_is_the_best_on_validation_and_every_order_is_a_model_of_its_own():
    fitted = NGram.fit(TRAIN, VALIDATION, V, range(4))
    for n, model in enumerate(fitted):
        scores_of = [NGram(TRAIN, V, n, a).log_prob(VALIDATION).sum() for a in STRENGTHS]
        assert model.n == n and model.strength == STRENGTHS[int(np.argmax(scores_of))]
        np.testing.assert_array_equal(model.log_prob(TEST), NGram(TRAIN, V, n, model.strength).log_prob(TEST))
    assert fitted[2].log_prob(TEST).sum() > fitted[1].log_prob(TEST).sum() > fitted[0].log_prob(TEST).sum()
    assert most(36) == MOST and 65536 ** most(65536) < 2**63


def test_strings_have_rulers_in_bits_per_character_and_reports_print_them():
    sets = [Dataset.from_arrays(tokens=tokens) for tokens in (TRAIN, VALIDATION, TEST)]
    found = evaluation.rulers(sets[:2], sets[2], RULERS)
    assert list(found) == ["uniform", *(f"{n}-gram" for n in range(1, MOST + 1))]
    characters = sets[2].features["tokens"].counts(TEST).sum()
    for n, result in enumerate(found.values()):
        total = NGram.fit(TRAIN, VALIDATION, V, [n])[0].log_prob(TEST).sum()
        assert evaluation.headline(result) == ("bits_per_character", pytest.approx(-total / characters / np.log(2)))
    assert found["uniform"]["bits_per_character"] == pytest.approx(2)
    lines = list(scores.lines("test", found["2-gram"], "string", None, found, {}))
    (line,) = (line for line in lines if "3-gram ruler" in line)
    assert line.split()[:4] == ["3-gram", "ruler", f"{found['3-gram']['bits_per_character']:.4f}", "+-"]
    assert line.endswith(f"(40 strings), strength {found['3-gram']['strength']:.3g}")


def test_without_training_strings_it_is_uniform():
    np.testing.assert_allclose(NGram(TRAIN[:0], V, 3).log_prob(TEST), NGram(TRAIN, V, 0).log_prob(TEST))


def test_it_learns_the_names_of_numbers():
    found = evaluation.rulers([load("number_words", split) for split in ("train", "validation")], load("number_words", "test"), RULERS)
    bits = [result["bits_per_character"] for result in found.values()]
    assert bits[0] == pytest.approx(np.log2(21)) and bits[4] < bits[3] < bits[2] < bits[1] < bits[0] and bits[4] < 0.8
