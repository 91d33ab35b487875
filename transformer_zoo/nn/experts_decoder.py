"""A decoder like LLaMA's whose MLPs are mixtures of experts (Jiang et al. 2024, section 2.1)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.experts import Experts
from transformer_zoo.nn.rotary_decoder import RotaryBlock, RotaryConfig, RotaryDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig(RotaryConfig):
    """The fields of these families. The defaults are those of Mixtral 8x7B; `mlp_dim` is the width of one expert.

    Raises:
        ValueError: as `RotaryConfig`, more experts for a token than there are.
    """

    num_kv_heads: int = 8
    mlp_dim: int = 14336
    num_experts: int = 8
    num_chosen: int = 2  # experts of a token
    balance_weight: float = 0.001  # of the load-balancing loss in training

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_chosen > self.num_experts:
            raise ValueError(f"num_chosen={self.num_chosen} experts for a token, and there are {self.num_experts}")


class ExpertsBlock(RotaryBlock):
    """With a mixture of experts in the place of the MLP."""

    def mlp(self, h_BTD: jax.Array) -> jax.Array:
        cfg = self.config
        experts = Experts(
            cfg.num_experts, cfg.num_chosen, cfg.mlp_dim, self.compute, self.hidden, balance_weight=cfg.balance_weight,
            kernel_init=nn.initializers.normal(cfg.init_std), name="experts", **self.experts_settings(),
        )  # fmt: skip
        return experts(h_BTD)

    def hidden(self, gate_F: jax.Array, up_F: jax.Array) -> jax.Array:
        """What the last product of an expert multiplies."""
        return ACTIVATIONS[self.config.activation](gate_F) * up_F

    def experts_settings(self) -> dict[str, Any]:
        """What a family's experts have besides: arguments of `Experts`."""
        return {}


class ExpertsDecoder(RotaryDecoder):
    """The decoder of these families, with the head of a task."""

    block: Any = ExpertsBlock
