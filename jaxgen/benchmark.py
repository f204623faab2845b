"""How fast a model samples and trains, beside the peak of this machine's matrix products measured at the same moment.

    fraction of the peak = images per second * FLOPs per image / peak

On a CPU, time is CPU time (user + system of this process, pinned to its cores), because other processes on the machine hardly change it;
the wall clock is reported too. On an accelerator, time is the wall clock. Compilation is measured apart, the first run is dropped, the peak
is measured anew around every repetition, and medians are reported.

FLOPs are those of the matrix products and convolutions of the cached sampler, two for a multiply-add, counted from its traced program. A
model whose sampler computes products that are not needed defines `flops_per_image() -> int`, the FLOPs of the needed ones. Training
counts three times the sampler's FLOPs, one forward and two backward products; of a model that `denoise`s, three times those of one call.

A model that is sampled by any of denoising/samplers.py has a row for each of them and each number of steps that is asked for.

Comparison sizes, used when no run is given, are class methods of a configuration: `comparison()` and, for a second, `comparison_local()`.
"""

import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import commands, config, sharding, training
from jaxgen.data.features import given_to, random_batch
from jaxgen.denoising.samplers import METHODS
from jaxgen.errors import ConfigError, did_you_mean
from jaxgen.layers.convolutions import EXACT
from jaxgen.measures.flops import product_flops
from jaxgen.models import MODELS, build, count_parameters
from jaxgen.processes.printing import say
from jaxgen.runs import report

BATCHES = (1, 16, 64)
REPETITIONS = 5
PEAK_SIZES = {"cpu": (768, 1024)}  # of square matrices; an accelerator needs larger ones
ACCELERATOR_PEAK_SIZES = (4096, 8192)
NAIVE_SECONDS, NAIVE_PASSES = 10.0, 4  # one that would take longer is timed for so many passes, and extrapolated
Row = dict[str, Any]


def prepare_process(cores: int) -> list[int] | None:
    """Pin this process to `cores` cores, before jax starts its threads. Returns the cores, or None where the system cannot pin.

    Raises ConfigError if there are fewer cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= cores <= len(allowed):
        raise ConfigError("--cores", f"1..{len(allowed)} (the cores of this process)", cores)
    _pin(allowed[-cores:])
    return allowed[-cores:]


def _pin(cores: Iterable[int]) -> None:
    """All threads of this process, and those that they start later, run on these cores."""
    tasks = Path("/proc/self/task")
    for thread in [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]:
        os.sched_setaffinity(thread, cores)


# --- Counting -----------------------------------------------------------------------------------------------------------------------


def flops_per_image(model) -> int:
    """FLOPs of the products of the cached sampler for one image: `model.flops_per_image()`, or without that method
    half of the FLOPs of the traced program for 2 images."""
    if hasattr(model, "flops_per_image"):
        return model.flops_per_image()
    given = random_given(model, 2)
    return product_flops(lambda model, key: model.sample(key, 2, **given), model, jax.random.key(0)) // 2


# --- Timing -------------------------------------------------------------------------------------------------------------------------


def _cpu() -> bool:
    return jax.default_backend() == "cpu"


def timed(function: Callable, *args) -> tuple[Any, float, float]:
    """The result, ready; seconds (CPU time on a CPU, else wall); wall seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(function(*args))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return result, (cpu if _cpu() else wall), wall


class Peak:
    """The best rate of square matrix products, FLOPs per second, in the dtype in which the model computes."""

    def __init__(self, dtype):
        sizes = PEAK_SIZES.get(jax.default_backend(), ACCELERATOR_PEAK_SIZES)
        self._cases = []
        for size in sizes:
            a = jnp.full((size, size), 1 / size, dtype)
            product = jax.jit(lambda a: jnp.matmul(a, a, precision=EXACT)).lower(a).compile()
            jax.block_until_ready(product(a))
            self._cases.append((product, a))

    def __call__(self, tries: int = 5) -> float:
        best = 0.0
        for product, a in self._cases:
            for _ in range(tries):
                _, seconds, _ = timed(lambda: [product(a) for _ in range(4)])  # noqa: B023 (called at once)
                best = max(best, 4 * 2 * a.shape[0] ** 3 / seconds)
        return best


def compiled(function: Callable, *args) -> tuple[Callable, float]:
    """The compiled function of such arguments, and the seconds of tracing and compiling."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    return program, time.perf_counter() - start


def _summary(times: Sequence[tuple[float, float, float]], images: int, flops: int) -> Row:
    """Medians (and the best) over repetitions of (seconds, wall seconds, peak)."""
    rate = [images / seconds for seconds, _, _ in times]
    fraction = [r * flops / peak for r, (_, _, peak) in zip(rate, times, strict=True)]
    return {
        "images_per_second": statistics.median(rate),
        "images_per_second_best": max(rate),
        "images_per_second_wall": statistics.median(images / wall for _, wall, _ in times),
        "fraction_of_peak": statistics.median(fraction) if flops else None,
        "fraction_of_peak_best": max(fraction) if flops else None,
        "peak_gflops": statistics.median(peak for *_, peak in times) / 1e9,
        "gflops_per_image": flops / 1e9,
        "repetitions": len(times),
    }


def _repeat(run: Callable, peak: Peak, repetitions: int) -> list[tuple[float, float, float]]:
    """(seconds, wall seconds, peak) of every repetition after a first run that is dropped; the peak is measured before and after."""
    timed(run)
    times, before = [], peak()
    for _ in range(repetitions):
        _, seconds, wall = timed(run)
        after = peak()
        times.append((seconds, wall, (before + after) / 2))
        before = after
    return times


# --- What is measured ---------------------------------------------------------------------------------------------------------------


def sampling(model, method: str | None, batch: int, peak: Peak, repetitions: int, flops: int, steps: int = 0) -> Row:
    """One row: `model.sample` of so many images by a method (None: the model has only one), or by a sampler with so many `steps`."""
    if method == "naive":
        return _naive(model, batch, peak, repetitions)
    given, chosen = random_given(model, batch), {} if method is None else {"method": method}
    if steps:
        given, chosen = given | {"sampler": method, "steps": steps}, {}
        flops = product_flops(lambda model, key: model.sample(key, batch, **given), model, jax.random.key(0)) // batch
    if method == "cached" and jax.device_count() > 1 and sharding.split_over(model) is None:
        chosen["mesh"] = sharding.make_mesh()
        model = sharding.place_state(chosen["mesh"], model)
    key = jax.random.key(0)
    if method == "fixed_point":
        program, seconds = compiled(lambda model, key: model.sample_and_passes(key, batch, **given), model, key)
        row = _row(model, method, batch, seconds) | {"passes": int(program(model, key)[1]), "positions": _positions(model)}
        return row | _summary(_repeat(lambda: program(model, key), peak, repetitions), batch, 0)
    program, seconds = compiled(lambda model, key: model.sample(key, batch, **given, **chosen), model, key)
    row = _row(model, method or "sample", batch, seconds) | ({"steps": steps} if steps else {})
    return row | _summary(_repeat(lambda: program(model, key), peak, repetitions), batch, flops)


def _naive(model, batch: int, peak: Peak, repetitions: int) -> Row:
    """The naive sampler: one full pass for every position; beyond NAIVE_SECONDS from NAIVE_PASSES passes, which all cost the same."""
    height, width, channels = model.config.image_shape
    image = jnp.zeros((batch, height, width, channels), model.head.dtype)
    given = random_given(model, batch)
    # r is an argument, not a constant: else the compiler could leave out all that the other pixels need.
    one, seconds = compiled(lambda model, image, r: model.logits(image, **given)[:, r, r], model, image, jnp.int32(0))
    timed(one, model, image, jnp.int32(0))
    _, first, _ = timed(one, model, image, jnp.int32(0))
    positions = _positions(model)
    if positions * first * repetitions < NAIVE_SECONDS:
        key = jax.random.key(0)
        program, seconds = compiled(lambda model, key: model.sample(key, batch, **given, method="naive"), model, key)
        row = _row(model, "naive", batch, seconds) | {"extrapolated_from": None}
        return row | _summary(_repeat(lambda: program(model, key), peak, repetitions), batch, 0)
    times = _repeat(lambda: one(model, image, jnp.int32(0)), peak, NAIVE_PASSES)
    row = _row(model, "naive", batch, seconds) | {"extrapolated_from": NAIVE_PASSES, "positions": positions}
    return row | _summary([(cpu * positions, wall * positions, rate) for cpu, wall, rate in times], batch, 0)


def train(model, batch: int, parts: int, peak: Peak, repetitions: int, flops: int) -> Row:
    """One row: the train step (Adam, average of the parameters) on random examples, gradients added up over parts of the batch."""
    settings, mesh = training.OptimizerConfig(), sharding.split_over(model) or sharding.make_mesh()
    step = training.make_train_step(training.make_optimizer(settings, 1000), mesh, accumulate=parts)
    state = training.init_state(jax.tree.map(jnp.copy, model), training.make_optimizer(settings, 1000), mesh)
    data = random_batch(model.config, batch)
    start = time.perf_counter()
    program = step.lower(state, data, jax.random.key(0)).compile()
    seconds = time.perf_counter() - start
    held = [state]  # each step is given the state's buffers and returns new ones

    def run():
        held[0], metrics = program(held[0], data, jax.random.key(0))
        return metrics

    row = _row(model, "train", batch, seconds) | {"accumulate": parts}
    return row | _summary(_repeat(run, peak, repetitions), batch, 3 * flops)


def random_given(model, batch: int) -> dict[str, np.ndarray]:
    """What a model is given for so many samples, drawn at random."""
    return given_to(model.config, random_batch(model.config, batch))


def _row(model, method: str, batch: int, compile_seconds: float) -> Row:
    return {"model": type(model).__name__, "method": method, "batch": batch, "compile_seconds": compile_seconds}


def _positions(model) -> int:
    """Full passes of the naive sampler: the positions, and channels where they are drawn one after the other."""
    height, width, channels = model.config.image_shape
    return height * width * (channels if getattr(model.head, "channelwise", False) else 1)


def measure(
    model, batches: Sequence[int] = BATCHES, train_batch: int | None = 16, repetitions: int = REPETITIONS, steps: Sequence[int] = ()
) -> Iterable[Row]:
    """The rows of one model, each as soon as it is measured: cached at every batch, naive, fixed-point and other samplers at the middle
    one, training."""
    peak, images = Peak(getattr(model.config, "dtype", "float32")), hasattr(model, "sample_and_passes")
    flops, middle = flops_per_image(model), sorted(batches)[len(batches) // 2]
    for batch in batches:
        yield sampling(model, "cached" if images else None, batch, peak, repetitions, flops)
    for method in ("naive", "fixed_point") if images else ():
        yield sampling(model, method, middle, peak, min(repetitions, 2), flops)
    for count, method in itertools.product(steps if hasattr(model, "denoise") else (), METHODS):
        yield sampling(model, method, middle, peak, min(repetitions, 2), 0, count)
    if train_batch is not None and hasattr(model, "loss"):
        if hasattr(model, "denoise"):
            x, given = jnp.zeros((1, *model.config.image_shape)), random_given(model, 1)
            flops = product_flops(lambda model: model.denoise(x, jnp.float32(0.5), **given), model)
        # On a CPU one image at a time is faster where its activations fit the caches of the processor and those of a batch do not.
        for parts in sorted({1, train_batch if _cpu() else 1}):
            yield train(model, train_batch, parts, peak, repetitions, flops)


# --- The report ---------------------------------------------------------------------------------------------------------------------


def environment(command: str, cores: list[int] | None) -> dict:
    """Where and when: device, versions, commit, date, command."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": _device(),
        "devices": jax.device_count(),
        "platform": jax.default_backend(),
        "cores": None if cores is None else len(cores),
        "second": "CPU time" if _cpu() else "wall clock",
        "versions": {"python": platform.python_version(), **versions},
    }


def _commit() -> str | None:
    """The commit of the source tree, `+` after it if files differ from it; None outside a git repository."""

    def git(*words):
        folder = str(Path(__file__).parent)
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _device() -> str:
    if _cpu() and (info := Path("/proc/cpuinfo")).is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        return names[0] if names else platform.machine()
    return jax.devices()[0].device_kind


HEADER = f"{'model':<23} {'method':<14} {'batch':>5} {'images/s':>9} {'(wall)':>9} {'of peak':>8} {'GFLOP/s':>8} {'compile':>8}"


def line(row: Row) -> str:
    """One row of the table, with a note where the time is extrapolated."""
    fraction = f"{row['fraction_of_peak']:.1%}" if row["fraction_of_peak"] is not None else "-"
    notes = f"  extrapolated from {row['extrapolated_from']} of {row['positions']} passes" if row.get("extrapolated_from") else ""
    notes += f"  {row['passes']} passes of {row['positions']}" if "passes" in row else ""
    notes += f"  {row['steps']} steps" if "steps" in row else ""
    notes += f"  in {row['accumulate']} parts" if row.get("accumulate", 1) > 1 else ""
    rates = f"{row['images_per_second']:>9.4g} {row['images_per_second_wall']:>9.4g} {fraction:>8} {row['peak_gflops']:>8.1f}"
    return f"{row['model']:<23} {row['method']:<14} {row['batch']:>5} {rates} {row['compile_seconds']:>6.1f} s{notes}"


# --- The command --------------------------------------------------------------------------------------------------------------------


def _comparisons() -> dict[str, Any]:
    """Module name (and `_local`) -> configuration of the comparison size."""
    pairs = [(cls, method) for cls in MODELS for method in ("comparison", "comparison_local") if hasattr(cls, method)]
    return {cls.__module__.rpartition(".")[2] + method.removeprefix("comparison"): getattr(cls, method)() for cls, method in pairs}


def pin(cores: int | None) -> list[int] | None:
    """Pin this process to so many cores, before jax starts its threads; None is one, or all of them beside an accelerator.

    The cores, or None where the process is not pinned. Raises ConfigError if there are fewer.
    """
    before = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    pinned = prepare_process(1 if cores is None else cores)
    if cores is None and before and not _cpu():
        _pin(before)
        return None
    return pinned


def run(options: commands.Bench, model, cores: list[int] | None) -> int:
    """Measure the model (None: the comparison sizes) on these cores, print the table and write the JSON file.

    Raises ConfigError for a model that draws nothing.
    """
    if model is not None and not hasattr(model, "sample"):
        raise ConfigError("RUN", "a model that draws samples", type(model).__name__)
    comparisons = _comparisons()
    if options.model not in (None, *comparisons):
        raise ConfigError("--model", f"one of {', '.join(comparisons)}", options.model, did_you_mean(options.model, comparisons))
    out = report.check_out(options.out or os.path.join(options.run or "", "bench.json"))
    name = options.model or next(iter(comparisons))
    chosen = comparisons if options.all else {name: comparisons[name]}
    facts = environment(commands.written(options), cores) | {"models": [], "results": []}
    where = f"{facts['cores']} core(s)" if facts["cores"] else "not pinned"
    say(f"{facts['device']}, {where}, jax {facts['versions']['jax']}; images per second of {facts['second']}")
    say(HEADER)
    models = [(type(model).__name__, model)] if model is not None else ((name, build(one)) for name, one in chosen.items())
    for name, one in models:
        facts["models"].append(_described(one) | {"model": name})
        for row in measure(one, options.batches, options.train_batch or None, options.repetitions, options.steps):
            facts["results"].append(row | {"model": name})
            say(line(facts["results"][-1]))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=2) + "\n")
    say(f"written to {out}")
    return 0


def _described(model) -> dict:
    return {"model": type(model).__name__, "parameters": count_parameters(model), "config": config.to_json(model.config)}


def print_methods(model, batch: int = 16) -> None:
    """Cached and naive sampling of so many images, and their ratio: three lines in the report of a run."""
    peak = Peak(getattr(model.config, "dtype", "float32"))
    flops, rates = flops_per_image(model), {}
    say(HEADER)
    for method in ("cached", "naive"):
        row = sampling(model, method, batch, peak, 2, flops)
        rates[method] = row["images_per_second"]
        say(line(row))
    say(f"cached / naive  {rates['cached'] / rates['naive']:.4g}")
