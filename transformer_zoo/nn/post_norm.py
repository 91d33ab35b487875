"""The post-norm encoder block (Vaswani et al. 2017, section 3.1; Devlin et al. 2018)."""

import functools
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.masks import Mask


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)). The Config must have BERT's sizes and dropout rates."""

    config: Any
    compute: Compute
    init: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: None, mask: Mask, relative: Any, train: bool) -> tuple[jax.Array, None]:
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        dense = functools.partial(compute.dense, kernel_init=self.init)
        drop = nn.Dropout(cfg.hidden_dropout, deterministic=not train)

        x_BTD = norm(name="attention_norm")(x_BTD + drop(self.attend(x_BTD, mask, relative, train)))
        h_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_up")(x_BTD))
        return norm(name="mlp_norm")(x_BTD + drop(dense(cfg.width, name="mlp_down")(h_BTF))), None

    def attend(self, x_BTD: jax.Array, mask: Mask, relative: Any, train: bool) -> jax.Array:
        """Self-attention [B, T, D], with a bias [B or 1, H, T, S] as `relative`, or None. A family may have another."""
        cfg, init = self.config, self.init
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, self.compute, dropout=cfg.attention_dropout,
            init=init, out_init=init, name="attention",
        )  # fmt: skip
        return attention(x_BTD, attention.keys_values(x_BTD), mask=mask, bias=relative, train=train)
