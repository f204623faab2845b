"""Autoregressions of the yearly numbers of sunspots: choice of the order, forecasts with intervals, and how often intervals cover.

    python -m experiments.autoregression_sunspots               seconds on one CPU core; writes experiments/results/series_sunspots.png
    python -m experiments.autoregression_sunspots --laptop      fewer simulated series, and no file is written

Prints the tables of experiments/results/series.md. One run of one order: jaxgen train autoregression --data.name sunspots --model.order 9
"""

from pathlib import Path

import jax
import numpy as np
import tyro

from jaxgen import evaluation
from jaxgen.data import Dataset, load
from jaxgen.models import Autoregression, AutoregressionConfig
from jaxgen.models.autoregression import Estimate, conditional_log_likelihood, forecast, least_squares, order_criteria
from jaxgen.runs import figures

PICTURE = Path(__file__).parent / "results" / "series_sunspots.png"
MOST = 15
ORDERS = (1, 2, 3, 9)
AHEAD = (1, 5, 10)
SIMULATED = Estimate(0.5, np.array([1.2, -0.5]), 0.7)


def sunspots() -> tuple[np.ndarray, np.ndarray]:
    """(279 values of training and validation, 30 of test)."""
    parts = [load("sunspots", split).images[:, 0] for split in ("train", "validation", "test")]
    return np.concatenate(parts[:2]), parts[2]


def choose(series: np.ndarray) -> int:
    """Prints AIC and BIC of the orders, and returns that of the lowest AIC."""
    criteria = order_criteria(series, MOST)
    print(f"\norders on {criteria.n} values, the first {MOST} given\n\n| p | AIC | BIC |\n|---|---|---|")
    for order, (aic, bic) in enumerate(zip(criteria.aic, criteria.bic, strict=True)):
        least = [" *" if order == values.argmin() else "" for values in (criteria.aic, criteria.bic)]
        print(f"| {order} | {aic:.1f}{least[0]} | {bic:.1f}{least[1]} |")
    return int(criteria.aic.argmin())


def score(series: np.ndarray, test: np.ndarray, order: int) -> str:
    """A row: nats of a test value given all before it, and the error of forecasts from every year of the test split."""
    whole = np.concatenate([series, test])
    if order:
        model = Autoregression.fit(Dataset.from_arrays(series=series, context=order), AutoregressionConfig(order), jax.random.key(0))
        rows = Dataset.from_arrays(series=whole[len(series) - order :], context=order)
        result = evaluation.evaluate(model, rows, batch_size=len(test))
        nats, error, estimate = result["nats"], result["standard_error"], model.estimate
    else:
        estimate = least_squares(series, 0)
        each = [-conditional_log_likelihood(test[[i]], estimate) for i in range(len(test))]
        nats, error = np.mean(each), np.std(each, ddof=1) / len(each) ** 0.5
    cells = []
    for h in AHEAD:
        starts = range(len(series), len(whole) - h + 1)
        wrong = [forecast(estimate, whole[:start], h).mean[-1] - whole[start + h - 1] for start in starts]
        cells.append(f"{np.sqrt(np.mean(np.square(wrong))):.1f}")
    one = [forecast(estimate, whole[:start], 1) for start in range(len(series), len(whole))]
    inside = sum(ahead.low[0] <= value <= ahead.high[0] for ahead, value in zip(one, test, strict=True))
    return f"| {order} | {nats:.3f} +- {error:.3f} | {' | '.join(cells)} | {inside} of {len(test)} |"


def coverage(n: int, length: int) -> str:
    """A row: how often 95 % intervals of AR(2) fitted to n simulated series of AR(2) have the next values."""
    model = Autoregression.of(AutoregressionConfig(2), SIMULATED)
    series = np.asarray(model.sample(jax.random.key(1), n, length + max(AHEAD)), np.float64)
    inside = np.zeros((n, max(AHEAD)), bool)
    for i, row in enumerate(series):
        ahead, after = forecast(least_squares(row[:length], 2), row[:length], max(AHEAD)), row[length:]
        inside[i] = (ahead.low <= after) & (after <= ahead.high)
    shares = [f"{100 * inside[:, h - 1].mean():.1f} +- {100 * inside[:, h - 1].std() / n**0.5:.1f} %" for h in AHEAD]
    return f"| {length} | {' | '.join(shares)} |"


def main(laptop: bool = False) -> None:
    """All tables; laptop: with fewer simulated series, and no picture."""
    series, test = sunspots()
    order = choose(series)
    heads = " | ".join(f"{h} ahead" for h in AHEAD)
    print(f"\ntest values, least squares on the 279 before\n\n| p | nats of a value | error, {heads} | 95 % band, 1 ahead |\n{'|---' * 6}|")
    for p in (0, *sorted({*ORDERS, order})):
        print(score(series, test, p))
    n = 200 if laptop else 5000
    print(f"\n95 % intervals of {n} simulated AR(2)\n\n| values fitted | {heads} |\n|---|---|---|---|")
    for length in (50, 400):
        print(coverage(n, length))
    if not laptop:
        model = Autoregression.fit(Dataset.from_arrays(series=series), AutoregressionConfig(order), jax.random.key(0))
        draws = np.asarray(model.continuations(jax.random.key(0), 8, len(test)))
        PICTURE.write_bytes(figures.png(figures.forecast_plot(series, model.forecast(len(test)), test, draws)))
        print(f"\n{PICTURE}")


if __name__ == "__main__":
    tyro.cli(main)
