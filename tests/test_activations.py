"""The activation functions: a few values of each, as the reference computes them in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.nn.activations import ACTIVATIONS

AT = (-3.5, -0.75, 0.25, 11.0)
GELU = (-0.0008142017766, -0.1699705143, 0.1496765814, 11)
TANH_GELU = (-0.0006161976554, -0.1700394448, 0.1496753507, 11)
SILU = (-0.1025928076, -0.2406159756, 0.1405441252, 10.99981628)
VALUES = {
    "gelu": GELU,
    "gelu_10": (*GELU[:3], 10),
    "gelu_fast": TANH_GELU,
    "gelu_new": TANH_GELU,
    "gelu_python": GELU,
    "gelu_pytorch_tanh": TANH_GELU,
    "gelu_python_tanh": TANH_GELU,
    "gelu_accurate": TANH_GELU,
    "hardswish": (0, -0.28125, 0.1354166667, 11),
    "laplace": (0, 1.200229344e-07, 0.05257309025, 1),
    "leaky_relu": (-0.035, -0.0075, 0.25, 11),
    "linear": AT,
    "mish": (-0.1040957545, -0.2764947145, 0.1695724097, 10.99999999),
    "quick_gelu": (-0.009033446135, -0.1636099425, 0.1511996499, 10.99999992),
    "relu": (0, 0, 0.25, 11),
    "relu2": (0, 0, 0.0625, 121),
    "relu6": (0, 0, 0.25, 6),
    "sigmoid": (0.02931223075, 0.3208213008, 0.5621765009, 0.9999832986),
    "silu": SILU,
    "sqrtsoftplus": (0.1724830956, 0.6219895547, 0.9088120927, 3.316627308),
    "swish": SILU,
    "tanh": (-0.9981778976, -0.6351489524, 0.2449186624, 0.9999999994),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(name: str):
    with jax.enable_x64(True):
        np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(AT)), VALUES[name], rtol=1e-9, atol=1e-15)
