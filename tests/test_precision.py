"""Mixed precision, for every autoregressive image model: bfloat16 activations, float32 parameters, sums and log-likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from test_models import THOROUGH, every_model, full_pass, images_of, log_prob, make, step_by_step


@every_model
def test_bfloat16_keeps_float32_parameters_and_likelihoods(entry):
    exact, model = (make(entry, (4, 4, 3), dtype=dtype) for dtype in ("float32", "bfloat16"))
    model = nnx.merge(nnx.split(model)[0], nnx.state(exact))
    image = images_of(19, 4, model.config)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {np.dtype("float32")}
    full, rough, spread = full_pass(exact, image), full_pass(model, image), float(full_pass(exact, image).std())
    assert rough.dtype == jnp.float32 and log_prob(model, image).dtype == jnp.float32
    assert (full != rough).any(), "the compute dtype is not used"
    np.testing.assert_allclose(rough, full, atol=0.25 * spread, rtol=0)
    assert float(jnp.abs(rough - full).mean()) < 0.02 * spread
    if entry in THOROUGH:
        assert float(jnp.abs(step_by_step(model, image) - full).mean()) < 0.02 * spread
    (*_, last) = (e for e in jax.make_jaxpr(model.logits)(image).jaxpr.eqns if e.primitive.name == "dot_general")
    assert last.outvars[0].aval.dtype == jnp.float32, "a parameter of p(x) is rounded to bfloat16"
