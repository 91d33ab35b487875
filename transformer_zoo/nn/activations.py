"""Activation functions by the names that published configurations use."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

_gelu = functools.partial(nn.gelu, approximate=False)


def _mish(x: jax.Array) -> jax.Array:
    """Misra 2019."""
    return x * jnp.tanh(jax.nn.softplus(x))


def _laplace(x: jax.Array) -> jax.Array:
    """The distribution function of a normal variable, in place of a squared ReLU (Ma et al. 2022)."""
    return 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * 2.0**0.5)))


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_new": nn.gelu,  # the tanh approximation of Hendrycks and Gimpel 2016, as GPT and later T5 use it
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
    "gelu_python": _gelu,
    "gelu_python_tanh": nn.gelu,
    "gelu_accurate": nn.gelu,
    "gelu_fast": lambda x: 0.5 * x * (1.0 + jnp.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),  # ten digits
    "gelu_10": lambda x: jnp.clip(_gelu(x), -10.0, 10.0),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "hardswish": jax.nn.hard_swish,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": _mish,
    "relu2": lambda x: jnp.square(nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
}
