"""The block of the first encoders, whose norms come last (Vaswani et al. 2017, section 3.1; Devlin et al. 2018)."""

import functools
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.masks import Mask


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), for a family's Config with the sizes and rates that BERT's has."""

    config: Any
    compute: Compute
    init: Any

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: None, mask: Mask, bias_BHTS: jax.Array | None, train: bool
    ) -> tuple[jax.Array, None]:
        cfg, compute, init = self.config, self.compute, self.init
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        dense = functools.partial(compute.dense, kernel_init=init)
        drop = nn.Dropout(cfg.hidden_dropout, deterministic=not train)
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, compute, dropout=cfg.attention_dropout,
            init=init, out_init=init, name="attention",
        )  # fmt: skip

        y_BTD = attention(x_BTD, attention.keys_values(x_BTD), mask=mask, bias=bias_BHTS, train=train)
        x_BTD = norm(name="attention_norm")(x_BTD + drop(y_BTD))
        h_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_up")(x_BTD))
        return norm(name="mlp_norm")(x_BTD + drop(dense(cfg.width, name="mlp_down")(h_BTF))), None
