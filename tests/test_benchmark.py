"""The benchmark counts what is computed and says everything that a number needs; nothing here depends on how fast this machine is."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import with_weights
from compiling import virtual_devices
from flax import nnx

from jaxgen import benchmark, commands
from jaxgen.errors import ConfigError
from jaxgen.layers.denoising_mlp import MLPDenoiserConfig
from jaxgen.models import ClassifierConfig, FlowMatchingConfig, ImageTransformerConfig, PixelCNNPPConfig, PixelSNAILConfig, build
from jaxgen.models.gated_pixelcnn import GatedPixelCNNConfig
from jaxgen.models.vae import VAEConfig

TINY = GatedPixelCNNConfig(image_shape=(4, 3, 1), levels=2, layers=1, width=8, head_width=4)
FIELDS = {"model", "method", "batch", "compile_seconds", "images_per_second", "images_per_second_wall", "fraction_of_peak"}
FIELDS |= {"images_per_second_best", "fraction_of_peak_best", "peak_gflops", "gflops_per_image", "repetitions"}


def parsed(*words):
    return commands.parse("bench", words)


@pytest.fixture
def cores():
    """The benchmark pins the process; the next test has all cores again."""
    before = os.sched_getaffinity(0)
    yield before
    benchmark._pin(before)


# --- Counting -----------------------------------------------------------------------------------------------------------------------


def test_products_are_counted_by_hand():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert benchmark.product_flops(jnp.dot, a, b) == 2 * 3 * 5 * 7
    assert benchmark.product_flops(jax.jit(lambda a, b: jnp.tanh(a @ b) + 1), a, b) == 2 * 3 * 5 * 7
    batched = lambda x, y: jnp.einsum("bij,bjk->bik", x, y)  # noqa: E731
    assert benchmark.product_flops(batched, jnp.ones((4, 3, 5)), jnp.ones((4, 5, 7))) == 4 * 2 * 3 * 5 * 7


def test_loops_multiply_and_a_branch_counts_its_dearer_side():
    w = jnp.ones((6, 6))

    def loop(x, w):
        def body(x, _):
            return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x), None

        return jax.lax.scan(body, x, None, length=9)[0]

    assert benchmark.product_flops(loop, jnp.ones((2, 6)), w) == 9 * 2 * (2 * 2 * 6 * 6)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_equal_the_sum_over_live_products(groups):
    x, kernel = jnp.ones((2, 8, 9, 4)), jnp.ones((3, 3, 4 // groups, 6))

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=groups)

    # With all ones every output is the number of its products.
    assert benchmark.product_flops(convolve, x, kernel) == 2 * int(convolve(x, kernel).sum())


def by_hand(config):
    """Multiply-adds a pixel of the cached Gated PixelCNN with one channel, from the equations of its docstring."""
    total = config.width * config.head_width + config.head_width
    for i in range(config.layers + 1):
        d, k = (1, config.input_kernel) if i == 0 else (config.width, config.kernel)
        m, two = k // 2, 2 * config.width
        vertical = k * d * (two // 2) + (m + 1) * (two // 2) * two if config.factorized and i else k * (m + 1) * d * two
        horizontal = (m + (i > 0)) * d * two  # the first layer does not see its own pixel
        out = config.width * (config.width if i == config.layers else two)
        total += vertical + two * two + horizontal + out
    return total


@pytest.mark.parametrize("factorized", [False, True])
def test_the_sampler_computes_every_activation_once(factorized):
    config = GatedPixelCNNConfig(image_shape=(5, 4, 1), levels=2, layers=2, width=16, head_width=8, factorized=factorized)
    assert benchmark.flops_per_image(jax.eval_shape(lambda: build(config))) == 2 * by_hand(config) * 5 * 4


def test_the_comparison_size_costs_what_its_equations_say():
    config = GatedPixelCNNConfig.comparison()
    model = jax.eval_shape(lambda: build(config))
    assert benchmark.flops_per_image(model) == 2 * by_hand(config) * 784
    naive = benchmark.product_flops(lambda model, image: model.logits(image), model, jnp.zeros((1, 28, 28, 1), jnp.uint8)) * 784
    assert naive > 500 * benchmark.flops_per_image(model)


@pytest.mark.parametrize("factorized", [False, True])
def test_the_count_agrees_with_the_compiler(factorized):
    config = GatedPixelCNNConfig(image_shape=(3, 4, 3), levels=4, layers=2, width=96, head_width=48, factorized=factorized)
    model, row, pixel = with_weights(config), jnp.zeros((2, 4, 3), jnp.uint8), jnp.zeros((2, 3), jnp.uint8)
    cache = model.init_cache(2)
    calls = [
        (lambda cache: model.step(cache, pixel, jnp.int32(1), jnp.int32(1)), (cache,)),
        (lambda cache: model.step_channel(cache, pixel, jnp.int32(1)), (cache,)),
        (lambda image: model.logits(image), (jnp.zeros((2, 3, 4, 3), jnp.uint8),)),
    ]
    for function, args in calls:
        theirs = jax.jit(function).lower(*args).cost_analysis()["flops"]  # additions and gates too
        assert 0.8 * theirs < benchmark.product_flops(function, *args) <= theirs
    assert benchmark.product_flops(lambda cache: model.begin_row(cache, row, jnp.int32(1)), cache) > 0


def test_a_model_may_say_its_own_number():
    class Mine:
        def flops_per_image(self):
            return 42

    assert benchmark.flops_per_image(Mine()) == 42


@pytest.mark.parametrize(
    ("config", "gflop"),
    [(PixelSNAILConfig.comparison(), 1.624), (ImageTransformerConfig.comparison(), 1.246), (PixelCNNPPConfig.comparison(), 5.970)],
    ids=lambda value: type(value).__name__,
)
def test_products_that_a_better_program_would_not_need_are_not_counted(config, gflop):
    """The whole cache is read where half of it is live, both branches of a `cond` are traced: by hand, every activation once."""
    model = nnx.eval_shape(lambda: build(config))
    assert benchmark.flops_per_image(model) == pytest.approx(gflop * 1e9, rel=2e-3)


# --- The report ---------------------------------------------------------------------------------------------------------------------


def test_the_report_has_every_field(tmp_path, capsys, cores, monkeypatch):
    monkeypatch.setattr(benchmark, "PEAK_SIZES", {"cpu": (32,)})
    options = parsed("--batches", "1", "2", "--repetitions", "2", "--train_batch", "2", "--out", str(tmp_path / "new" / "bench.json"))
    assert benchmark.run(options, with_weights(TINY), benchmark.pin(options.cores)) == 0
    report = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert report["command"].startswith("jaxgen bench --batches 1 2") and report["cores"] == 1 and report["platform"] == "cpu"
    assert {"date", "commit", "device", "devices", "second"} <= set(report) and {"jax", "jaxlib", "flax", "python"} <= set(
        report["versions"]
    )
    assert report["models"][0]["config"]["class"] == "GatedPixelCNNConfig" and report["models"][0]["parameters"] > 0
    rows = report["results"]
    kinds = [(row["method"], row["batch"]) for row in rows]
    assert kinds == [("cached", 1), ("cached", 2), ("naive", 2), ("fixed_point", 2), ("train", 2), ("train", 2)]
    assert [row["accumulate"] for row in rows[-2:]] == [1, 2] and "in 2 parts" in benchmark.line(rows[-1])
    for row in rows:
        assert set(row) >= FIELDS and row["model"] == "GatedPixelCNN"
        assert row["images_per_second"] > 0 and row["images_per_second_wall"] > 0 and row["peak_gflops"] > 0
        assert (row["fraction_of_peak"] is None) == (row["method"] in ("naive", "fixed_point"))
    cached, train = rows[0], rows[-1]
    assert np.isclose(train["gflops_per_image"], 3 * cached["gflops_per_image"])
    assert 1 <= rows[3]["passes"] <= rows[3]["positions"] + 1 == 4 * 3 + 1
    table = capsys.readouterr().out
    assert all(row["method"] in table for row in rows) and "passes of 12" in table


def test_a_slow_naive_sampler_is_extrapolated_and_says_so(monkeypatch):
    monkeypatch.setattr(benchmark, "PEAK_SIZES", {"cpu": (32,)})
    monkeypatch.setattr(benchmark, "NAIVE_SECONDS", 0.0)
    row = benchmark.sampling(with_weights(TINY), "naive", 2, benchmark.Peak("float32"), 1, 0)
    assert row["extrapolated_from"] == benchmark.NAIVE_PASSES and row["positions"] == 12
    assert "extrapolated from 4 of 12 passes" in benchmark.line(row)


def test_the_fraction_of_the_peak_is_by_definition():
    row = benchmark._summary([(2.0, 4.0, 1e9), (4.0, 4.0, 1e9), (1.0, 4.0, 1e9)], images=8, flops=10**8)
    assert row["images_per_second"] == 4.0 and row["images_per_second_wall"] == 2.0
    assert row["images_per_second_best"] == 8.0 and np.isclose(row["fraction_of_peak_best"], 0.8)
    assert np.isclose(row["fraction_of_peak"], 4.0 * 1e8 / 1e9) and row["gflops_per_image"] == 0.1


def test_a_model_of_another_family_has_its_rows(monkeypatch):
    monkeypatch.setattr(benchmark, "PEAK_SIZES", {"cpu": (32,)})
    model = with_weights(VAEConfig(image_shape=(4, 4, 1), levels=2, hidden=(4,), latent=2))
    rows = list(benchmark.measure(model, (2,), 2, 1))
    assert [row["method"] for row in rows] == ["sample", "train", "train"] and all(row["fraction_of_peak"] > 0 for row in rows)


def test_every_sampler_of_a_flow_has_a_row_for_every_number_of_steps(monkeypatch):
    """Products are counted for each: two passes for a step of two evaluations, and one pass in training."""
    monkeypatch.setattr(benchmark, "PEAK_SIZES", {"cpu": (32,)})
    monkeypatch.setattr(benchmark, "METHODS", ("ddim", "midpoint"))
    model = with_weights(FlowMatchingConfig((2,), 0, network="mlp", mlp=MLPDenoiserConfig(4, 1), sample_steps=2))
    rows = list(benchmark.measure(model, (2,), 1, 1, steps=(1, 3)))
    samplers = [("ddim", 1), ("midpoint", 1), ("ddim", 3), ("midpoint", 3)]
    assert [(row["method"], row.get("steps")) for row in rows] == [("sample", None), *samplers, ("train", None)]
    one = rows[1]["gflops_per_image"]
    np.testing.assert_allclose([row["gflops_per_image"] / one for row in rows[1:]], [1, 2, 3, 6, 3], rtol=1e-6)
    assert benchmark.line(rows[3]).endswith("  3 steps")


# --- The process --------------------------------------------------------------------------------------------------------------------


def test_the_process_is_pinned_before_jax_starts_its_threads():
    code = """
import os
from jaxgen import benchmark, commands
cores = benchmark.prepare_process(1)
import jax
jax.numpy.ones((64, 64)).block_until_ready()
seen = {frozenset(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")}
assert seen == {frozenset(cores)} and len(cores) == 1, seen
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


@pytest.mark.parametrize("cores", [0, 10**6])
def test_cores_that_do_not_exist(cores):
    with pytest.raises(ConfigError, match=r"--cores: wanted 1\.\."):
        benchmark.prepare_process(cores)


@pytest.mark.parametrize("words", [("--batches", "0"), ("--repetitions", "0")])
def test_counts_are_positive(words):
    with pytest.raises(ConfigError, match=f"{words[0]}: wanted (1 or more|a positive integer)"):
        parsed(*words)


def test_the_report_of_a_run_has_both_methods_and_their_ratio(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "PEAK_SIZES", {"cpu": (32,)})
    benchmark.print_methods(with_weights(TINY), batch=2)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and "cached" in out[1] and "naive" in out[2]
    assert np.isfinite(float(out[3].removeprefix("cached / naive")))


@pytest.mark.skipif("JAXGEN_THOROUGH" not in os.environ, reason="make thorough has it")
def test_on_four_devices_the_samplers_of_a_report_are_timed():
    """The cached one draws over all devices, from a model that was loaded on one."""
    code = """
import jax
from jaxgen import benchmark
from jaxgen.models import GatedPixelCNNConfig, build
assert jax.device_count() == 4
benchmark.PEAK_SIZES = {"cpu": (32,)}
config = GatedPixelCNNConfig(image_shape=(4, 4, 1), levels=2, width=4, layers=1, head_width=4)
model = jax.device_put(build(config), jax.devices()[0])  # as it is after loading
benchmark.print_methods(model, batch=4)
peak = benchmark.Peak("float32")
print(benchmark.sampling(model, "fixed_point", 4, peak, 1, 0)["method"], benchmark.train(model, 4, 1, peak, 1, 0)["method"])
"""
    environment = os.environ | virtual_devices(4) | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "cached / naive" in done.stdout and done.stdout.endswith("\nfixed_point train\n")


def test_a_model_that_draws_nothing_is_one_line():
    with pytest.raises(ConfigError, match="^RUN: wanted a model that draws samples, got Classifier$"):
        benchmark.run(parsed("run"), build(ClassifierConfig(hidden=(4,))), None)
