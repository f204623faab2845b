"""What is said of an evaluation: its lines in a report, why a number is missing, and a warning where the score is very bad."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxgen.measures.metrics import FLOORS, METRICS, OF_PAIRS, headline


def lines(
    split: str, result: Mapping[str, Any], noun: str, small: Sequence[int] | None, ruled: Mapping[str, Any], few: Mapping[str, str]
) -> Iterator[str]:
    """The lines of one evaluation. small: the shape of the small images that are given; ruled: the results of rulers;
    few: why a ruler has none."""
    name, value = headline(result)
    yield _line(f"{split} {name}", value, result, noun, not_computed(name, result))
    if small is not None:
        yield f"  of each image given its small one, {' x '.join(map(str, small))}"
    if "nats" in result:
        yield f"{f'  nats per {noun}':<27} {result['nats']:.3f}"
    with_error = [other for other in result if f"{other}_standard_error" in result]
    terms = [other for other in with_error if other.startswith("nats_") or other in OF_PAIRS]  # of a bound, in their order; of pairs
    for term in terms:
        error = result[f"{term}_standard_error"]
        yield f"{'  ' + term:<27} {result[term]:.3f}" + (f" +- {error:.3f}" if math.isfinite(error) else "")
    for ruler, of_ruler in ruled.items():
        chosen = "".join(f", {name} {of_ruler[name]:.3g}" for name in ("smoothing", "ridge", "strength") if name in of_ruler)
        bits = headline(of_ruler)[1] if of_ruler else math.nan
        worse = ", worse than uniform: no measure of a model" if "uniform" in ruled and bits > headline(ruled["uniform"])[1] else ""
        yield _line(f"  {ruler.replace('_', ' ')} ruler", bits, of_ruler, noun, few.get(ruler, "")) + chosen + worse
    for floor in sorted(set(FLOORS.values()) & set(result)):
        yield _line("  real against real", result[floor], {"n": result["n_floor"]}, noun)
    said = {*terms, *(f"{other}_standard_error" for other in with_error)}
    for other in sorted(set(result) - {"nats", "n", "standard_error", "n_floor", name, *FLOORS.values()} - said):
        if math.isfinite(result[other]) or not_computed(other, result):
            error = result.get(f"{other}_standard_error", math.nan)  # that of a single example is not finite
            value = f"{result[other]:.4f}" if other.startswith("ode_") or other in with_error else result[other]
            yield f"{'  ' + other:<27} {not_computed(other, result) or value}" + (f" +- {error:.4f}" if math.isfinite(error) else "")


def _line(label: str, value: float, result: Mapping[str, Any], noun: str, few: str = "") -> str:
    """One number with its standard error and count; few: why there is none."""
    if few:
        return f"{label:<27} {few}"
    known = math.isfinite(result.get("standard_error", math.nan))  # that of a single image is not
    error = f" +- {result['standard_error']:.4f}" if known else ""
    return f"{label:<27} {value:.4f}{error}" + (f"  ({result['n']} {noun}{'s' * (result['n'] != 1)})" if "n" in result else "")


def not_computed(name: str, result: Mapping[str, Any]) -> str:
    """Why this number of a result is nan, where it needs more examples than there were; "" where it is there."""
    least = METRICS[name].examples if name in METRICS else 1
    n = result.get("n", result.get("n_real", least))
    return too_few(n, least) if n < least else ""


def too_few(n: int, least: int) -> str:
    """What is said in the place of a number that needs more examples than there are."""
    return f"cannot be computed of {n} example{'s' * (n != 1)}: it needs at least {least}"


def ruined(result: Mapping[str, Any], feature: Any, earlier: Mapping[int, Mapping[str, Any]] | None = None) -> str:
    """A warning where the headline is worse than chance or far from the best of `earlier`, {step: metrics}; else "".

    Worse than chance: more bits than log2 of the number of values of a pixel or token, which is the score of a model that takes all values
    for equally likely. Far: see `Metric.far`. Both happen though the loss stays finite, for example where the learning rate is too high.
    """
    result = {name: value for name, value in result.items() if name in METRICS and value is not None}
    if not result:
        return ""
    name, value = headline(result)
    metric, sign = METRICS[name], 1 if METRICS[name].better == "lower" else -1
    values = getattr(feature, "levels", 0) or getattr(feature, "vocabulary", 0)
    if metric.unit.startswith("bits") and values and value > math.log2(values) * (1 + 1e-4):
        return f"{name} is {value:.6g}: worse than {math.log2(values):.4f}, where all {values} values are equally likely"
    known = {step: metrics[name] for step, metrics in (earlier or {}).items() if metrics.get(name) is not None}
    if not known or metric.far is None:
        return ""
    step = min(known, key=lambda step: sign * known[step])
    size = max(abs(known[step]), 1.0 if metric.unit == "nats" else 0.0)
    if sign * (value - known[step]) <= metric.far * size:
        return ""
    return f"{name} is {value:.6g}: far from the best so far, {known[step]:.6g} at step {step}; --from-step {step} goes back to it"
