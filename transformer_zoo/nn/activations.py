"""Activation functions by the names that published configurations use."""

import functools

import flax.linen as nn
import jax.numpy as jnp

ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": nn.gelu,  # the tanh approximation of Hendrycks and Gimpel 2016, as GPT and later T5 use it
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}
