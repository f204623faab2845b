"""Reinforcement: its gradient is that of the expected reward on a policy of three strings, where everything can be counted."""

import importlib
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from all_models import CONFIGS, model_of, with_weights
from flax import nnx

from jaxgen.errors import ConfigError
from jaxgen.models import LanguageModelConfig, StackGRUConfig
from jaxgen.reinforcement import ReinforcementConfig, reinforce, surrogate, without_baseline
from jaxgen.training import OptimizerConfig

STRINGS = jnp.asarray([[0], [1], [2]], jnp.uint8)  # all strings of at most one token out of {1, 2}
REWARDS = jnp.asarray([0.0, 1.0, 5.0])
SIZES = {"length": 1, "vocabulary": 3, "symbols": ("a", "b"), "width": 4}
POLICIES = {"language_model": LanguageModelConfig(**SIZES), "stack_gru": StackGRUConfig(**SIZES, stack_width=2, stack_depth=2)}


@cache
def policy(name: str, seed: int = 3):
    return with_weights(POLICIES[name], seed)


log_prob = jax.jit(lambda model: model.log_prob(STRINGS))


def expected(model, prior, penalty):
    """E[r] - beta KL, summed over the three strings."""
    log_p, log_prior = model.log_prob(STRINGS), prior.log_prob(STRINGS)
    return (jnp.exp(log_p) * (REWARDS - penalty * (log_p - log_prior))).sum()


@pytest.mark.parametrize(("name", "penalty", "n"), [("language_model", 0.0, 2), ("stack_gru", 0.7, 3)])
def test_the_estimate_has_the_exact_gradient_as_its_expectation(name, penalty, n):
    """Summed over all samples of n strings with their probabilities, 9 or 27."""
    model, prior = policy(name), policy(name, seed=4)
    graph, params = nnx.split(model)

    @jax.jit
    def both(params):
        exact = jax.grad(lambda params: expected(nnx.merge(graph, params), prior, penalty))(params)
        samples = jnp.asarray(list(product(range(3), repeat=n)))
        p = jnp.exp(model.log_prob(STRINGS))[samples].prod(-1)

        def estimate(rows):
            objective = lambda params: surrogate(nnx.merge(graph, params), prior, STRINGS[rows], REWARDS[rows], penalty)[0]  # noqa: E731
            return jax.grad(objective)(params)

        return exact, jax.tree.map(lambda g: jnp.tensordot(p, g, 1), jax.vmap(estimate)(samples))

    exact, estimated = both(params)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(exact)) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), estimated, exact)


def test_the_baseline_changes_the_variance_and_not_the_mean():
    model = policy("stack_gru")
    p = np.exp(np.asarray(log_prob(model), np.float64))
    scores = np.eye(3) - p  # the gradient of log p(x) with respect to the bias of the logits
    rewards = np.asarray(REWARDS) + 10
    samples, moments = np.array(list(product(range(3), repeat=2))), {}
    for baseline in (True, False):
        weights = np.stack([without_baseline(jnp.asarray(rewards[s], jnp.float32)) if baseline else rewards[s] for s in samples])
        estimates, chance = (np.asarray(weights)[:, :, None] * scores[samples]).mean(1), p[samples].prod(-1)
        mean = chance @ estimates
        moments[baseline] = mean, chance @ ((estimates - mean) ** 2).sum(-1)
    np.testing.assert_allclose(moments[True][0], moments[False][0], atol=1e-5)
    np.testing.assert_allclose(moments[True][0], (p * rewards) @ scores, atol=1e-5)
    assert moments[True][1] < 0.1 * moments[False][1]


def reward(strings):
    return [float(string == "b") for string in strings]


def test_the_rewarded_string_is_learnt_and_the_drift_is_told():
    options = ReinforcementConfig(40, 32, optimizer=OptimizerConfig(learning_rate=0.1, name="adam"))
    model, told = policy("stack_gru"), []
    before = np.exp(np.asarray(log_prob(model)))
    learnt, rows = reinforce(model, reward, jax.random.key(0), options, lambda step, row: told.append(row))
    after = np.exp(np.asarray(log_prob(learnt), np.float64))
    assert before[2] < 0.6 and after[2] > 0.95 and rows == told and len(rows) == 40
    np.testing.assert_array_equal(np.exp(np.asarray(log_prob(model))), before)  # the model that was given is as it was
    kl = (after * (np.log(after) - np.log(before))).sum()
    assert abs(rows[0]["drift"]) < 1e-5 and abs(rows[-1]["drift"] - kl) < 0.2
    assert rows[-1]["reward"] > 0.9 and rows[0]["distinct"] == 3 / 32
    again, _ = reinforce(model, reward, jax.random.key(0), options)
    np.testing.assert_array_equal(again.out[...], learnt.out[...])


def test_a_penalty_keeps_the_model_near_its_prior():
    """The best policy under a penalty is prior(x) exp(r(x) / beta), up to its sum."""
    model, beta = policy("language_model"), 0.5
    options = ReinforcementConfig(150, 64, beta, OptimizerConfig(learning_rate=0.05, name="adam", schedule="cosine"))
    learnt, _ = reinforce(model, reward, jax.random.key(1), options)
    best = np.exp(np.asarray(log_prob(model), np.float64) + np.array([0, 0, 1]) / beta)
    np.testing.assert_allclose(np.exp(np.asarray(log_prob(learnt))), best / best.sum(), atol=0.03)


def test_the_script_rewards_molecules_in_the_range_and_prints_the_drift(monkeypatch, capsys):
    """experiments/stack_gru_smiles.py: butane, of logP 1.81, is in the range; methane, 0.64, and what is no molecule are not."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent))
    script = importlib.import_module("experiments.stack_gru_smiles")
    np.testing.assert_array_equal(script.in_range(["CCCC", "C", "", "C(", "C" * 20]), [1, 0, 0, 0, 0])
    config = replace(POLICIES["language_model"], symbols=("C", "CCCC"))
    model, prior = with_weights(config), with_weights(config)
    prior.out_bias[...] += jnp.asarray([0.0, 1.0, -1.0])
    script.describe("after", model, prior, 500)
    tokens = np.asarray(model.sample(jax.random.key(0), 500))[:, 0]
    drift = np.asarray(log_prob(model) - log_prob(prior))[tokens]
    shares = [(tokens == 2).mean(), (tokens != 0).mean()]
    wanted = [f"{share:.3f} +- {(share * (1 - share) / 500) ** 0.5:.3f}" for share in shares]
    wanted += [f"{drift.mean():.3f} +- {drift.std() / 500**0.5:.3f}", f"{2 / (tokens != 0).sum():.3f}"]
    assert capsys.readouterr().out.startswith(f"| after | {' | '.join(wanted)} | ") and drift.mean() > 0.1


def test_errors():
    for wrong in ({"steps": 0}, {"strings": 1}, {"penalty": -1.0}, {"penalty": float("nan")}):
        with pytest.raises(ConfigError, match=list(wrong)[0]):
            ReinforcementConfig(**wrong)
    with pytest.raises(ConfigError, match="model: wanted a model of strings with `log_prob` and `sample`, got VAE"):
        reinforce(model_of("vae"), reward, jax.random.key(0))
    model, options = model_of("language_model"), ReinforcementConfig(1, 4)
    assert CONFIGS["language_model"].symbols == ("a", "b", "c")
    for wrong, got in (([1.0] * 3, r"shape \[3\]"), ([float("nan")] * 4, "nan or infinity"), (["good"] * 4, r"shape \[0\]")):
        with pytest.raises(ConfigError, match=f"reward: wanted one finite number for each of the 4 strings, got {got}"):
            reinforce(model, lambda strings, wrong=wrong: wrong, jax.random.key(0), options)
