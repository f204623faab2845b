"""Numbers that compare samples with real examples: each against its definition written out, and against what theory says of its mean.

All in numpy, so that a test of many draws costs little.
"""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from jaxgen.data import load
from jaxgen.errors import ConfigError, DataError
from jaxgen.evaluation import accuracy_trained_on, classifier_score, density_coverage, kernel_distance, memorisation
from jaxgen.measures import kernel_distance as kernel_module
from jaxgen.measures import neighbours
from jaxgen.measures.jackknife import groups_of, jackknife_error
from jaxgen.measures.neighbours import expected_coverage, nearest_distance

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(size=(200, 4))


# --- Standard errors by leaving out groups ------------------------------------------------------------------------------------------------


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = RANDOM.normal(size=30)
    without = np.array([np.delete(x, rows).mean() for rows in groups_of(30, 30)])
    assert jackknife_error(without) == pytest.approx(stats.sem(x), rel=1e-9)
    assert np.isnan(jackknife_error(without[:1]))


def test_groups_hold_every_row_once_and_are_equally_large():
    groups = groups_of(47, 20)
    assert sorted(np.concatenate(groups)) == list(range(47)) and {len(rows) for rows in groups} == {2, 3}


# --- The kernel distance ------------------------------------------------------------------------------------------------------------------


def kernel(x, y) -> float:
    return (x @ y / len(x) + 1) ** 3


def naive(a, b) -> float:
    """The estimate by its definition, a sum over pairs."""
    within = [np.mean([kernel(x[i], x[j]) for i, j in product(range(len(x)), repeat=2) if i != j]) for x in (a, b)]
    return sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 3), (23, 41)])
def test_the_kernel_distance_is_the_sum_over_pairs(n, m, monkeypatch):
    a, b = NOISE[:n], 0.5 + 1.5 * NOISE[50 : 50 + m]
    assert kernel_distance(a, b)[0] == pytest.approx(naive(a, b), rel=1e-9)
    assert kernel_distance(b, a) == pytest.approx(kernel_distance(a, b), rel=1e-9, nan_ok=True)
    monkeypatch.setattr(kernel_module, "BLOCK", 1)  # a row at a time
    assert kernel_distance(a, b)[0] == pytest.approx(naive(a, b), rel=1e-9)


def test_its_error_leaves_out_the_same_group_of_both():
    a, b = NOISE[:23], 0.5 + NOISE[50:91]
    groups = zip(groups_of(23, 20), groups_of(41, 20), strict=True)
    without = np.array([naive(np.delete(a, one, axis=0), np.delete(b, other, axis=0)) for one, other in groups])
    assert kernel_distance(a, b)[1] == pytest.approx(jackknife_error(without), rel=1e-9)
    assert np.isnan(kernel_distance(a[:2], b)[1])


@pytest.mark.parametrize(("n", "m"), [(2, 3), (4, 2)])
def test_with_unequal_counts_it_is_unbiased(n, m):
    """The mean over all draws of n and m values from two distributions on two points, each with its probability, is MMD^2 itself."""
    values, p, q = np.array([[0.0], [2.0]]), np.array([0.3, 0.7]), np.array([0.8, 0.2])
    gram = np.array([[kernel(x, y) for y in values] for x in values])
    mean = 0.0
    for drawn in product(range(2), repeat=n + m):
        a, b = list(drawn[:n]), list(drawn[n:])
        mean += p[a].prod() * q[b].prod() * kernel_distance(values[a], values[b])[0]
    assert mean == pytest.approx((p - q) @ gram @ (p - q), rel=1e-9)


def test_for_equal_distributions_it_is_0_in_the_mean_and_its_error_is_honest():
    found = np.array([kernel_distance(*np.split(RANDOM.normal(size=(110, 3)), [30])) for _ in range(150)])
    estimate, error = found.T
    assert abs(estimate.mean()) < 3 * stats.sem(estimate)
    assert (estimate < 0).mean() > 0.2, "not cut at 0"
    assert 1 <= np.sqrt((error**2).mean()) / estimate.std() < 2, "of a distance of 0 the error is too large, not too small"


def test_of_two_gaussians_it_is_the_closed_form():
    """In one dimension E k = E (x y + 1)^3 is 1 + 3 m1 + 3 m2 + m3, where m_i is the product of the two i-th moments."""

    def mean_kernel(a, b):
        moments = [np.array([mean, mean**2 + sd**2, mean**3 + 3 * mean * sd**2]) for mean, sd in (a, b)]
        return 1 + np.array([3, 3, 1]) @ (moments[0] * moments[1])

    one, other = (0.0, 1.0), (0.7, 1.5)
    wanted = mean_kernel(one, one) + mean_kernel(other, other) - 2 * mean_kernel(one, other)
    draws = [kernel_distance(RANDOM.normal(*one, (100, 1)), RANDOM.normal(*other, (60, 1))) for _ in range(150)]
    estimate, error = np.array(draws).T
    assert wanted > 5 and abs(estimate.mean() - wanted) < 3 * stats.sem(estimate)
    assert np.sqrt((error**2).mean()) == pytest.approx(estimate.std(), rel=0.35)


def test_a_kernel_distance_needs_pairs():
    with pytest.raises(DataError, match="^kernel_distance: wanted at least 2 examples in each set, for its pairs, got 1 and 200$"):
        kernel_distance(NOISE[:1], NOISE)


# --- Density and coverage -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_those_of_the_definition(k, monkeypatch):
    real, samples = NOISE[:70], 0.3 + 0.8 * NOISE[70:120]
    among = np.linalg.norm(real[:, None] - real, axis=-1)
    radius = np.sort(among, axis=1)[:, k]  # the first is the example itself
    inside = np.linalg.norm(samples[:, None] - real, axis=-1) <= radius  # [samples, balls]
    wanted = inside.sum() / (k * 50), stats.sem(inside.sum(axis=1) / k), inside.any(axis=0).mean()
    assert density_coverage(samples, real, k) == pytest.approx(wanted, rel=1e-12)
    assert 0 < wanted[2] < 1
    monkeypatch.setattr(neighbours, "BLOCK", 200)  # 2 rows at a time
    assert density_coverage(samples, real, k) == pytest.approx(wanted, rel=1e-12)


def test_of_equal_distributions_their_means_are_known():
    draws = np.array([density_coverage(*np.split(RANDOM.normal(size=(70, 3)), [40]), k=3) for _ in range(300)])
    for found, wanted in ((draws[:, 0], 1), (draws[:, 2], expected_coverage(30, 40, 3))):
        assert abs(found.mean() - wanted) < 3.5 * stats.sem(found)
    assert expected_coverage(30, 40, 1) == pytest.approx(1 - 29 / 69)
    assert expected_coverage(10**6, 10**6, 5) == pytest.approx(1 - 2**-5, abs=1e-5)


def test_one_outlier_among_the_real_examples_moves_precision_and_hardly_density():
    """Samples that fill the wide ball of the outlier are all precise; each lies in a single ball."""
    real = np.concatenate([NOISE, np.full((1, 4), 40.0)])
    samples = 30 + NOISE
    assert neighbours.precision_recall(samples, real, 5)[0] == 1
    assert density_coverage(samples, real, 5) == (0.2, 0, 1 / 201)


def test_a_repeated_real_example_is_dense_and_covers_little():
    density, _, coverage = density_coverage(np.repeat(NOISE[:1], 200, axis=0), NOISE)
    assert density > 0.2 and 0 < coverage < 0.2
    with pytest.raises(DataError, match="^density_coverage: wanted samples, and more than k = 5 real vectors, got 200 and 5$"):
        density_coverage(NOISE, NOISE[:5])
    with pytest.raises(ConfigError, match="^k: wanted 1 or more, got 0$"):
        density_coverage(NOISE, NOISE, 0)


# --- The classifier score -----------------------------------------------------------------------------------------------------------------


def test_the_score_is_1_for_equal_probabilities_and_k_for_certain_and_equally_frequent_classes():
    assert classifier_score(np.full((40, 5), 3.0)) == pytest.approx((1, 0), abs=1e-12)
    certain = 1e4 * np.eye(5)[np.arange(40) % 5]
    assert classifier_score(certain)[0] == pytest.approx(5)
    assert classifier_score(certain[certain[:, 0] == 0])[0] == pytest.approx(4), "a class that no sample has"
    assert classifier_score(certain[:1])[0] == 1 and np.isnan(classifier_score(certain[:1])[1])


def test_the_score_is_that_of_the_definition_with_an_honest_error():
    def wanted(logits):
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.exp(np.mean([stats.entropy(row, p.mean(axis=0)) for row in p]))

    draws = RANDOM.normal(size=(100, 80, 6)) * np.array([3, 1, 1, 1, 1, 1])
    found = np.array([classifier_score(logits) for logits in draws])
    assert found[0, 0] == pytest.approx(wanted(draws[0]), rel=1e-9)
    assert (found[:, 0] > 1).all() and (found[:, 0] < 6).all()
    assert np.sqrt((found[:, 1] ** 2).mean()) == pytest.approx(found[:, 0].std(), rel=0.35)
    np.testing.assert_allclose(classifier_score(draws[0] + 1e3), found[0], rtol=1e-9)
    with pytest.raises(ConfigError, match="^splits: wanted 2 or more, got 1$"):
        classifier_score(draws[0], 1)
    with pytest.raises(DataError, match="^classifier_score: wanted finite logits of at least 1 sample, got 0 samples$"):
        classifier_score(draws[0, :0])


# --- Memorising ---------------------------------------------------------------------------------------------------------------------------


def test_copies_of_the_training_set_and_of_the_test_set_are_exposed():
    train, test = (load("digits", split).images for split in ("train", "test"))
    copied = memorisation(train[:300], test, train)
    assert copied["memorisation_ratio"] == 0 and copied["copies"] == 1 and copied["copies_real"] == 0
    nearly = memorisation(np.minimum(train[:300] + (RANDOM.random(train[:300].shape) < 0.02), 16), test, train)
    assert 0 < nearly["memorisation_ratio"] < 0.2 and nearly["copies"] < 0.5
    mixed = memorisation(np.concatenate([train[:30], test[:270]]), test, train)
    assert mixed["copies"] == 0.1 and 0.8 < mixed["memorisation_ratio"] < 1
    of_test = memorisation(test, test, train)
    assert (of_test["memorisation_ratio"], of_test["held_out_ratio"]) == (1, 0) and 0.85 < of_test["held_out_ratio_floor"] < 1.15
    assert 0.9 < copied["held_out_ratio"] < 1.1
    assert 0.85 < copied["memorisation_ratio_floor"] < 1.15
    assert memorisation(RANDOM.integers(0, 17, (50, 8, 8, 1)), test, train)["memorisation_ratio"] > 2


def test_the_nearest_distance_is_that_of_all_pairs(monkeypatch):
    wanted = np.linalg.norm(NOISE[:40, None] - NOISE[None, 50:], axis=-1).min(axis=1)
    np.testing.assert_allclose(nearest_distance(NOISE[:40], NOISE[50:]), wanted, rtol=1e-9)
    monkeypatch.setattr(neighbours, "BLOCK", 100)  # 2 others at a time
    np.testing.assert_allclose(nearest_distance(NOISE[:40], NOISE[50:]), wanted, rtol=1e-9)
    assert (nearest_distance(1e3 + NOISE[:40], 1e3 + NOISE) == 0).all()


def test_memorising_cannot_be_seen_where_the_held_out_examples_were_trained_on():
    found = memorisation(NOISE[:50], NOISE, NOISE)
    assert np.isnan(found["memorisation_ratio"]) and found["copies"] == found["copies_real"] == 1
    with pytest.raises(DataError, match=r"^memorisation: wanted samples, at least 2 held-out examples, .*, got 200, 1 and 200$"):
        memorisation(NOISE, NOISE[:1], NOISE)


# --- Training on samples ------------------------------------------------------------------------------------------------------------------


def test_training_on_wrong_or_fewer_kinds_of_samples_costs_accuracy():
    train, test = load("digits", "train"), load("digits", "test")
    image, label = train.images[:600], np.asarray(train.labels[:600])

    def accuracy(x, y):
        return accuracy_trained_on(x, y, test.images, np.asarray(test.labels))

    real = accuracy(image, label)
    assert real > 0.93
    assert accuracy(np.stack([image[label == c].mean(axis=0) for c in range(10)]), np.arange(10)) < real - 0.05, "one sample of each class"
    wrong = np.where(np.arange(600) % 2 == 0, label, RANDOM.integers(0, 10, 600))
    assert accuracy(image, wrong) < real - 0.05
    assert accuracy(image[label < 5], label[label < 5]) < 0.55, "classes that were never drawn are not found"
    assert accuracy(image, np.zeros(600, int)) == (np.asarray(test.labels) == 0).mean()


def test_examples_and_labels_go_together():
    message = r"^accuracy_trained_on: wanted examples of one shape, .*, got \[200, 4\] with 200, \[200, 3\] with 200$"
    with pytest.raises(DataError, match=message):
        accuracy_trained_on(NOISE, np.zeros(200, int), NOISE[:, :3], np.zeros(200, int))
