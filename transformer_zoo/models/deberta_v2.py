"""DeBERTa in its second version: He et al. 2020, section 5; and DeBERTaV3, He et al. 2021, with another pretraining."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from transformer_zoo.nn import Compute, Inputs, Mask
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.disentangled import DisentangledBlock, DisentangledConfig, DisentangledEncoder, zero_padding
from transformer_zoo.published import Key, Published, bert_layout, deberta_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DisentangledConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.disentangled.DisentangledConfig`.

    Raises:
        ValueError: more buckets than distances, an even convolution, a norm for a table that there is not; and as in
            `Architecture`.
    """

    vocab_size: int = 128100
    position_buckets: int | None = 256  # half of the rows of the table of distances. None: max_distance
    share_projections: bool = True  # positions are projected by the kernels of the content
    relative_norm: bool = False  # of the table of distances
    conv_size: int = 0  # kernel size of the convolution in the first block. 0: there is none
    conv_activation: str = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        buckets, most = self.position_buckets, 2 * self.distances - 3
        if self.conv_size and self.conv_size % 2 == 0:
            raise ValueError(f"conv_size is {self.conv_size}: it must be odd, or 0 for no convolution")
        if buckets is not None and not 2 <= buckets <= most:
            raise ValueError(f"position_buckets is {buckets}: choose 2 to {most} for {self.distances} distances")
        if self.relative_norm and not self.relative_attention:
            raise ValueError("relative_norm is of the table of relative_attention, which is False")

    @property
    def distances(self) -> int:
        """The number of distances on either side of a token that are distinguished."""
        return self.max_length if self.max_distance is None else self.max_distance


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
_XLARGE = {"width": 1536, "num_layers": 24, "num_heads": 24, "mlp_dim": 6144, "conv_size": 3, "conv_activation": "gelu"}
PRESETS = {
    name: (f"microsoft/{name}", Config(absolute_positions=False, relative_norm=True, **sizes))
    for name, sizes in {
        "deberta-v3-xsmall": {"width": 384, "num_heads": 6, "mlp_dim": 1536},
        "deberta-v3-small": {"num_layers": 6},
        "deberta-v3-base": {},
        "deberta-v3-large": _LARGE,
        "mdeberta-v3-base": {"vocab_size": 251000},
        "deberta-v2-xlarge": _XLARGE,
        "deberta-v2-xxlarge": _XLARGE | {"num_layers": 48},
    }.items()
}


class Convolution(nn.Module):
    """A convolution over the embedded tokens, whose output is added to the first block's."""

    config: Config
    compute: Compute
    init: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """The output [B, T, D], and the parameters of the norm of the sum, which the first block applies."""
        cfg, compute = self.config, self.compute
        conv = nn.Conv(
            cfg.width, (cfg.conv_size,), dtype=compute.dtype, param_dtype=compute.param_dtype,
            kernel_init=self.init, name="filter",
        )  # fmt: skip
        drop = nn.Dropout(cfg.hidden_dropout, deterministic=not train)
        y_BTD = ACTIVATIONS[cfg.conv_activation](drop(conv(x_BTD)))
        norm = compute.layer_norm(epsilon=cfg.norm_epsilon, name="norm")
        norm(y_BTD)  # only to make its parameters
        return y_BTD, norm.variables["params"]


class Block(DisentangledBlock):
    """BERT's block, with disentangled attention; in the first block, norm(block(x) + convolution(x))."""

    def __call__(
        self, x_BTD: jax.Array, is_first: Any, mask: Mask, table_RD: Any, convolved: Any, train: bool
    ) -> tuple[jax.Array, None]:
        x_BTD, _ = super().__call__(x_BTD, None, mask, table_RD, train)
        if convolved is not None:
            y_BTD, params = convolved
            norm = self.compute.layer_norm(epsilon=self.config.norm_epsilon, parent=None)
            add = lambda x_BTD: zero_padding(norm.apply({"params": params}, x_BTD + y_BTD), mask)
            x_BTD = jax.lax.cond(is_first, add, lambda x_BTD: x_BTD, x_BTD)
        return x_BTD, None

    @property
    def attention_settings(self) -> dict[str, Any]:
        cfg = self.config
        max_distance = None if cfg.position_buckets is None else cfg.distances
        return {"max_distance": max_distance, "share_att_key": cfg.share_projections}


class Model(DisentangledEncoder):
    """DeBERTa with the head of a task."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        self.add_embeddings(init, norm, num_distances=cfg.position_buckets or cfg.distances)
        if cfg.relative_norm:
            self.relative_norm = norm()
        if cfg.conv_size:
            self.conv = Convolution(cfg, compute, init)
        self.blocks = Block(cfg, compute, init)
        self.add_head(init, norm, self.head_table)

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        cfg, table_RD = self.config, self.distance_table()
        table_RD = self.relative_norm(table_RD) if cfg.relative_norm else table_RD
        is_first = convolved = None
        if cfg.conv_size:
            is_first, convolved = np.arange(cfg.num_layers) == 0, self.conv(x_BTD, train)
        return self.run(self.blocks, x_BTD, is_first, inputs.mask, table_RD, convolved, train)


_SELF = deberta_layout.SELF
PUBLISHED = Published(
    model_type="deberta-v2",
    class_prefix="DebertaV2",
    config=deberta_layout.CONFIG | {
        "position_buckets": deberta_layout.size("position_buckets"),
        "share_projections": Key("share_att_key", False),
        "relative_norm": Key.choice("norm_rel_ebd", {"none": False, "layer_norm": True}, "none"),
        "conv_size": Key("conv_kernel_size", 0),
        "conv_activation": Key("conv_act", "tanh"),
    },
    fixed={"conv_groups": 1, **bert_layout.TIED_WORDS},
    prefix="deberta.",
    body=(
        *deberta_layout.EMBEDDINGS,
        *rows.norm("encoder.LayerNorm", "relative_norm"),
        ("encoder.conv.conv.weight", "conv/filter/kernel", "E D W -> W D E"),
        ("encoder.conv.conv.bias", "conv/filter/bias", "E -> E"),
        *rows.norm("encoder.conv.LayerNorm", "conv/norm"),
        *rows.split_heads(_SELF + "query_proj", "blocks/attention/query"),
        *rows.split_heads(_SELF + "key_proj", "blocks/attention/key"),
        *rows.split_heads(_SELF + "value_proj", "blocks/attention/value"),
        *rows.split_heads(_SELF + "pos_key_proj", "blocks/attention/position_key"),
        *rows.split_heads(_SELF + "pos_query_proj", "blocks/attention/position_query"),
        *deberta_layout.ATTENTION_OUTPUT,
        *bert_layout.MLP,
    ),
    heads=deberta_layout.HEADS,
    tied=deberta_layout.TIED,
    ignored=(
        *deberta_layout.IGNORED,
        (r"mask_predictions\..*", "version 3's head for replaced-token detection, which the reference lacks"),
    ),
)  # fmt: skip
