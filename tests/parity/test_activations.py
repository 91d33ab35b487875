"""Every activation function against the reference's of the same name, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.nn.activations import ACTIVATIONS

torch = pytest.importorskip("torch")
activations = pytest.importorskip("transformers.activations")

LEARNED = {"prelu", "xielu"}  # they have parameters


def test_none_is_missing():
    assert set(ACTIVATIONS) == set(activations.ACT2CLS) - LEARNED


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_slopes(name: str):
    near = {"rtol": 1e-12, "atol": 1e-13}  # 1 + tanh(x) may be a difference of nearly equal numbers
    x = np.concatenate([np.linspace(-14, 14, 401) + 1e-3, [-60.0, 60.0]])  # beside the corners
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = activations.ACT2FN[name](theirs_x)
    (slopes,) = torch.autograd.grad(theirs.sum(), theirs_x)
    with jax.enable_x64(True):
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), theirs.detach(), **near)
        ours = jax.vmap(jax.grad(ACTIVATIONS[name]))(jnp.asarray(x))
    np.testing.assert_allclose(ours, slopes, **near)
