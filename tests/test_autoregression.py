"""AR(p) against statsmodels, the Gaussian of all values at once, and simulated series; its runs and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import toeplitz
from scipy.stats import multivariate_normal
from statsmodels.regression import linear_model
from statsmodels.tsa.ar_model import AutoReg, ar_select_order

import jaxgen
from jaxgen import cli, sampling
from jaxgen.__main__ import main
from jaxgen.data import Dataset
from jaxgen.data.series import SUNSPOTS, read_csv
from jaxgen.errors import ConfigError, DataError
from jaxgen.models import Autoregression, AutoregressionConfig
from jaxgen.models.autoregression import (
    Estimate,
    conditional_log_likelihood,
    forecast,
    joined,
    least_squares,
    order_criteria,
    yule_walker,
)

KEY = jax.random.key(3)
AR2 = Estimate(0.5, np.array([1.2, -0.5]), 0.7)
MODEL = Autoregression.of(AutoregressionConfig(2, length=30), AR2)


@pytest.fixture(scope="module")
def sunspots():
    return read_csv(SUNSPOTS, "sunspots")


@pytest.mark.parametrize("order", [1, 9])
def test_least_squares_likelihood_criteria_and_forecasts_are_those_of_statsmodels(order, sunspots):
    reference = AutoReg(sunspots, order, trend="c").fit()
    estimate = least_squares(sunspots, order)
    np.testing.assert_allclose([estimate.intercept, *estimate.coefficients], reference.params, rtol=1e-6)
    np.testing.assert_allclose(estimate.noise_variance, reference.sigma2, rtol=1e-6)
    likelihood = conditional_log_likelihood(sunspots, estimate)
    assert likelihood == pytest.approx(reference.llf, rel=1e-9)
    n, k = len(sunspots) - order, order + 2
    assert (2 * k - 2 * likelihood, k * np.log(n) - 2 * likelihood) == pytest.approx((reference.aic, reference.bic), rel=1e-9)
    prediction = reference.get_prediction(len(sunspots), len(sunspots) + 24)
    ours, interval = forecast(estimate, sunspots, 25, level=0.9), np.asarray(prediction.conf_int(alpha=0.1))
    np.testing.assert_allclose(ours.mean, prediction.predicted_mean, rtol=1e-6)
    np.testing.assert_allclose(ours.standard_error, prediction.se_mean, rtol=1e-6)
    np.testing.assert_allclose([ours.low, ours.high], interval.T, rtol=1e-6)


def test_the_order_is_that_of_statsmodels(sunspots):
    criteria = order_criteria(sunspots, 15)
    for name in ("aic", "bic"):
        found = ar_select_order(sunspots, 15, ic=name)
        table = getattr(found, name)  # {(1, .., p) or 0: value}
        one = 2 if name == "aic" else np.log(criteria.n)  # it does not count sigma^2 as a parameter
        for lags, value in table.items():
            order = lags if lags == 0 else len(lags)
            assert getattr(criteria, name)[order] == pytest.approx(value + one, rel=1e-9)
        assert getattr(criteria, name).argmin() == max(found.ar_lags)
    assert criteria.n == 309 - 15 and (np.diff(criteria.log_likelihood) > 0).all()


@pytest.mark.filterwarnings("ignore:yule_walker currently returns a plain tuple:FutureWarning")
def test_yule_walker_is_that_of_statsmodels_and_of_a_long_series_the_truth(sunspots):
    for order in (1, 5):
        phi, sigma = linear_model.yule_walker(sunspots, order, method="mle")
        ours = yule_walker(sunspots, order)
        np.testing.assert_allclose([*ours.coefficients, ours.noise_variance**0.5], [*phi, sigma], rtol=1e-6)
        assert ours.intercept / (1 - ours.coefficients.sum()) == pytest.approx(sunspots.mean())
    long = np.asarray(MODEL.sample(KEY, 1, 50_000))[0]
    for ours in (yule_walker(long, 2), least_squares(long, 2)):
        np.testing.assert_allclose(np.hstack(ours), np.hstack(AR2), atol=0.02)


def autocovariances(estimate: Estimate, n: int) -> np.ndarray:
    """Of the AR(2), by r_k = sigma^2 sum_j psi_j psi_{j+k}."""
    psi = [1.0, estimate.coefficients[0]]
    for _ in range(2000):
        psi.append(estimate.coefficients @ [psi[-1], psi[-2]])
    psi = np.array(psi)
    return estimate.noise_variance * np.array([psi[: len(psi) - k] @ psi[k:] for k in range(n)])


def test_the_stationary_density_is_that_of_all_values_at_once_and_the_conditional_one_leaves_out_the_first():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 1.5, (5, 7)), jnp.float32)
    mean = AR2.intercept / (1 - AR2.coefficients.sum())
    covariance = toeplitz(autocovariances(AR2, 7))
    whole = multivariate_normal(np.full(7, mean), covariance).logpdf(x)
    first = multivariate_normal(np.full(2, mean), covariance[:2, :2]).logpdf(x[:, :2])
    np.testing.assert_allclose(MODEL.stationary_log_density(x), whole, rtol=1e-5)
    np.testing.assert_allclose(MODEL.conditional_log_density(x), whole - first, rtol=1e-5)
    np.testing.assert_allclose(MODEL.conditional_log_density(x), [conditional_log_likelihood(np.asarray(row), AR2) for row in x], rtol=1e-5)
    windows = [x[:, i : i + 3] for i in range(5)]
    np.testing.assert_allclose(sum(MODEL.log_density(rows) for rows in windows), whole - first, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"x: wanted windows \[B, 3\], got \[5, 7\]; of series see conditional_log_density"):
        MODEL.log_density(x)
    with pytest.raises(ConfigError, match=r"x: wanted series \[B, T\] of more than p = 2 values, got \[5, 2\]"):
        MODEL.conditional_log_density(x[:, :2])


def test_samples_have_the_autocovariances_and_the_cached_sampler_draws_what_the_naive_one_does():
    drawn = np.asarray(MODEL.sample(KEY, 20_000, 6), np.float64)
    np.testing.assert_allclose(drawn.mean(axis=0), AR2.intercept / (1 - AR2.coefficients.sum()), atol=0.06)  # from the first value on
    np.testing.assert_allclose(np.cov(drawn.T), toeplitz(autocovariances(AR2, 6)), atol=0.12)
    cached, naive = (sampling.sample_sequence(MODEL, KEY, 3, 9, method=method) for method in ("cached", "naive"))
    np.testing.assert_allclose(cached, naive, rtol=1e-5, atol=1e-5)
    cold = np.asarray(MODEL.sample(KEY, 20_000, 6, temperature=0.25), np.float64)
    np.testing.assert_allclose(np.cov(cold.T), toeplitz(autocovariances(AR2, 6)) / 4, atol=0.03)


def test_continuations_have_the_mean_and_the_error_of_the_forecast():
    known = np.array([0.0, 1.0, 5.0, 4.0])
    draws, ahead = np.asarray(MODEL.continuations(KEY, 20_000, 5, known), np.float64), MODEL.forecast(5, known)
    np.testing.assert_allclose(draws.mean(axis=0), ahead.mean, atol=5 * ahead.standard_error.max() / 20_000**0.5)
    np.testing.assert_allclose(draws.std(axis=0), ahead.standard_error, rtol=0.03)
    np.testing.assert_allclose(ahead.standard_error[:2] ** 2, [0.7, 0.7 * (1 + 1.2**2)], rtol=1e-5)  # psi_1 = phi_1
    begun = np.asarray(MODEL.sample(KEY, 2, 6, known=(np.array([5, 4, 0, 0, 0, 0.0]), np.arange(6) < 2)))
    np.testing.assert_array_equal(begun[:, :2], [[5, 4]] * 2)


def test_intervals_of_fitted_models_cover_95_percent():
    series, steps = np.asarray(MODEL.sample(KEY, 1000, 410), np.float64), 10
    inside = []
    for row in series:
        ahead = forecast(least_squares(row[:-steps], 2), row[:-steps], steps)
        inside.append((ahead.low <= row[-steps:]) & (row[-steps:] <= ahead.high))
    assert abs(np.mean(inside) - 0.95) < 0.02 and (abs(np.mean(inside, axis=0) - 0.95) < 0.02 + 0.02).all()


def test_a_model_without_a_stationary_distribution_continues_the_training_series():
    walk = np.cumsum(np.random.default_rng(1).normal(size=60)) + np.arange(60)
    model = Autoregression.of(AutoregressionConfig(1, length=3), Estimate(1.0, np.array([1.0]), 1e-8), walk[-1:])
    assert not model.stationary and MODEL.stationary and np.isnan(model.stationary_log_density(jnp.float32(walk[None]))).all()
    np.testing.assert_allclose(model.sample(KEY, 2), walk[-1] + np.array([[1, 2, 3]] * 2), atol=0.01)
    np.testing.assert_allclose(model.forecast(3).mean, walk[-1] + [1, 2, 3], rtol=1e-6)
    explosive = Autoregression.of(AutoregressionConfig(2), Estimate(0.0, np.array([0.5, 0.6]), 1.0))
    assert not explosive.stationary and np.isfinite(explosive.conditional_log_density(jnp.ones((1, 5)))).all()


def test_the_rows_of_a_set_are_joined_to_the_series_that_they_were_cut_from(sunspots):
    for context in (0, 2, 308):
        rows = Dataset.from_arrays(series=sunspots, context=context).images
        (one,) = joined(np.asarray(rows))
        np.testing.assert_array_equal(one, sunspots)
    rows = np.asarray(Dataset.from_arrays(series=sunspots, context=2).images)
    assert [len(part) for part in joined(np.delete(rows, [100, 101, 200], axis=0))] == [102, 100, 108]
    fitted = [Autoregression.fit(Dataset.from_arrays(series=sunspots, context=m), AutoregressionConfig(2), KEY) for m in (0, 2)]
    for model in fitted:
        np.testing.assert_allclose(np.hstack(model.estimate), np.hstack(least_squares(sunspots, 2)), rtol=1e-6)
        np.testing.assert_array_equal(model.last[...], sunspots[:-3:-1].astype(np.float32))


def test_a_large_offset_costs_no_digits(sunspots):
    near, far = least_squares(sunspots, 3), least_squares(sunspots + 1e6, 3)
    np.testing.assert_allclose(far.coefficients, near.coefficients, rtol=1e-6)
    assert far.noise_variance == pytest.approx(near.noise_variance, rel=1e-6)


def test_what_is_refused(sunspots):
    for order, n in ((2, 5), (3, 7)):
        least_squares(sunspots[: n + 1], order)
        with pytest.raises(DataError, match=f"series: wanted at least {2 * order + 2} values, for order {order}, got {n}"):
            least_squares(sunspots[:n], order)
    with pytest.raises(DataError, match="series: wanted at least 4 values, for order 2, got 3"):
        yule_walker(sunspots[:3], 2)
    for fit in (least_squares, yule_walker):
        with pytest.raises(DataError, match="series: wanted values that are not predicted without error"):
            fit(np.ones(40), 1)
        with pytest.raises(DataError, match=r"series\[3\]: wanted a finite number, got nan"):
            fit(np.where(np.arange(40) == 3, np.nan, 1.0), 1)
    with pytest.raises(DataError, match="series: wanted values that are not predicted without error"):
        least_squares(np.arange(40.0), 1)
    with pytest.raises(DataError, match="known: wanted at least 2 values, for order 2, got 1"):
        MODEL.forecast(3, np.ones(1))
    with pytest.raises(ConfigError, match="level: wanted a probability between 0 and 1, got 95"):
        MODEL.forecast(3, level=95)
    with pytest.raises(ConfigError, match="steps: wanted a positive integer, got 0"):
        MODEL.continuations(KEY, 1, 0)
    for wrong in ({"order": 0}, {"length": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AutoregressionConfig(**wrong)
    gaps = Dataset.from_columns({"series": np.arange(12.0).reshape(4, 3)}, AutoregressionConfig(2).features)
    with pytest.raises(DataError, match="dataset: wanted one series without gaps, for yule_walker, got 4 series; use least_squares"):
        Autoregression.fit(gaps, AutoregressionConfig(2, "yule_walker"), KEY)


def test_a_run_of_a_column_is_trained_evaluated_sampled_and_continued(tmp_path, monkeypatch, capsys, sunspots):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("year,spots\n" + "".join(f"{1700 + i},{value}\n" for i, value in enumerate(sunspots)))
    words = ["train", "autoregression", "--data.name=a.csv", "--data.column=spots", "--model.order=3", "--report.samples=4"]
    assert main([*words, "--workdir=run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"test nats +4\.\d+ .*\(30 values\)", out) and "run/samples.png" in out and "run/completions.png" in out
    model = jaxgen.load("run")
    np.testing.assert_allclose(np.hstack(model.estimate), np.hstack(least_squares(sunspots[:249], 3)), rtol=1e-6)
    np.testing.assert_array_equal(model.last[...], sunspots[248:245:-1].astype(np.float32))
    for command in (["show"], ["evaluate", "--split=validation"], ["sample", "--n=4", "--out=drawn.png"], ["complete", "--n=4"]):
        assert cli.command(command[0], ["run", *command[1:]]) == 0
    out = capsys.readouterr().out
    errors = forecast(model.estimate, sunspots[:279], 30)
    inside = int(((errors.low <= sunspots[279:]) & (sunspots[279:] <= errors.high)).sum())
    assert f"4 completions, 279 values given, {inside} of the next 30 in the 95 % band of the forecast: run/completions.png" in out
    assert "parameters  5" in out and (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
    for words, message in (
        (["complete", "run", "--keep=left"], "--keep: wanted nothing for a series"),
        (["train", "autoregression"], "data: wanted a series of numbers, got images"),
        (["train", "autoregression", "--data.name=a.csv"], "data.column: wanted one of the columns of a.csv: year, spots, got nothing"),
        (["train", "pca", "--data.name=sunspots"], "data: wanted images or points, got values of a series"),
    ):
        assert main(words) in (2, 3) and message in capsys.readouterr().err
