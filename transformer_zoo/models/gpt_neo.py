"""GPT-Neo: Large Scale Autoregressive Language Modeling with Mesh-Tensorflow, Black et al. 2021."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Cache, Mask, gpt_decoder
from transformer_zoo.nn.checks import choices_of
from transformer_zoo.nn.gpt_decoder import GptBlock, GptConfig, GptDecoder
from transformer_zoo.published import Key, Published, first_id, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GptConfig):
    """The architecture, by default of the size 1.3B. The other fields are those of `nn.gpt_decoder.GptConfig`."""

    max_length: int = 2048
    width: int = 2048
    num_layers: int = 24
    num_heads: int = 16
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    attention_pattern: Literal["global local", "local global", "global", "local"] = "global local"  # of the layers
    window: int = 256  # of local layers: a query attends to as many keys, its own included
    tied: bool = True  # the output layer is the table of token embeddings
    eos_id: int | None = 50256
    head_dropout: float = 0.1  # of token classification
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

    def local_layers(self) -> np.ndarray:
        """bool[L]: whether the attention of a layer is limited to the window."""
        kinds = self.attention_pattern.split()
        return np.array([kinds[i % len(kinds)] == "local" for i in range(self.num_layers)])


def _gpt3(width: int, num_layers: int, num_heads: int) -> tuple[str, Config]:
    return "", Config(width=width, num_layers=num_layers, num_heads=num_heads)


# GPT-3's are those of table 2.1 of Brown et al. 2020, which leaves open what is here as in GPT-Neo: the length of the
# window, 256, and that the first layer has none. Where the table's number of heads and their size, 128, do not give its
# width, they are what gives the numbers of parameters in table D.1: 16 heads, not 24, in the size 1.3B, and a width of
# 5120, not 5140, in 13B.
PRESETS = {
    "gpt-neo-125m": ("EleutherAI/gpt-neo-125m", Config(width=768, num_layers=12, num_heads=12)),
    "gpt-neo-1.3b": ("EleutherAI/gpt-neo-1.3B", Config()),
    "gpt-neo-2.7b": ("EleutherAI/gpt-neo-2.7B", Config(width=2560, num_layers=32, num_heads=20)),
    "gpt-3-125m": _gpt3(768, 12, 12),
    "gpt-3-350m": _gpt3(1024, 24, 16),
    "gpt-3-760m": _gpt3(1536, 24, 16),
    "gpt-3-1.3b": _gpt3(2048, 24, 16),
    "gpt-3-2.7b": _gpt3(2560, 32, 32),
    "gpt-3-6.7b": _gpt3(4096, 32, 32),
    "gpt-3-13b": _gpt3(5120, 40, 40),
    "gpt-3-175b": _gpt3(12288, 96, 96),
}


class Block(GptBlock):
    """Attention in some layers is limited to a window. Scores are not divided by sqrt(K): fresh queries are smaller by
    it instead."""

    def attention_settings(self) -> dict[str, Any]:
        cfg = self.config
        query_init = nn.initializers.normal(cfg.init_std * (cfg.width // cfg.num_heads) ** -0.5)
        return {"use_bias": False, "out_bias": True, "query_init": query_init}

    def scores(self, mask: Mask, own: jax.Array | None, *shared: Any) -> dict[str, Any]:
        if own is not None:
            mask = mask.replace(window=self.config.window, local=own)
        return {"mask": mask, "scale": 1.0}


class Model(GptDecoder):
    """GPT-Neo with the head of a task."""

    block: Any = Block

    def per_layer(self) -> jax.Array | None:
        """bool[L]: whether a layer's attention is limited to the window. None: no layer's is."""
        local_L = self.config.local_layers()
        return jnp.asarray(local_L) if local_L.any() else None


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache for `length` tokens a row. Layers with a window keep the keys and values of so many.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    windows = {"window": config.window, "local_layers": config.local_layers()}
    return gpt_decoder.init_cache(config, batch, length, dtype, **windows)


def _read_pattern(types: Sequence[Any], settings: Mapping[str, Any]) -> str:
    """The pattern of a list of (kinds of layers, how often they follow one another)."""
    layers = settings["num_layers"]
    if (described := sum(len(kinds) * times for kinds, times in types)) != layers:
        raise ValueError(f"it describes {described} layers, and num_layers is {layers}")
    known = choices_of(Config)["attention_pattern"]
    # Several patterns describe a single layer: the file's own is the first.
    for pattern in sorted(known, key=lambda pattern: pattern.split() != types[0][0]):
        if _follows(types, pattern.split()):
            return pattern
    raise ValueError(f"the layers must be, by turns, {' or '.join(known)}")


def _follows(types: Sequence[Any], pattern: Sequence[str]) -> bool:
    start = 0
    for kinds, times in types:
        for repetition in range(min(times, len(pattern))):  # those after these are the same again
            first = start + repetition * len(kinds)
            if any(kind != pattern[(first + i) % len(pattern)] for i, kind in enumerate(kinds)):
                return False
        start += times * len(kinds)
    return True


def _write_pattern(pattern: str, config: Config) -> list[Any]:
    kinds = pattern.split()
    times, rest = divmod(config.num_layers, len(kinds))
    return [[kinds, times], *([[kinds[:rest], 1]] if rest else [])]


PUBLISHED = Published(
    model_type="gpt_neo",
    class_prefix="GPTNeo",
    config={
        "vocab_size": Key("vocab_size", 50257),
        "max_length": Key("max_position_embeddings", 2048),
        "width": Key("hidden_size", 2048),
        "num_layers": Key("num_layers", 24),
        "num_heads": Key("num_heads", 16),
        "mlp_dim": Key("intermediate_size", None),
        "activation": Key("activation_function", "gelu_new"),
        "norm_epsilon": Key("layer_norm_epsilon", 1e-5),
        "init_std": Key("initializer_range", 0.02),
        "embed_dropout": Key("embed_dropout", 0.0),
        "attention_dropout": Key("attention_dropout", 0.0),
        "residual_dropout": Key("resid_dropout", 0.0),
        "attention_pattern": Key("attention_types", [[["global", "local"], 12]], _read_pattern, _write_pattern),
        "window": Key("window_size", 256),
        "tied": Key("tie_word_embeddings", True),
        "eos_id": Key("eos_token_id", 50256, first_id),
        "head_dropout": Key("classifier_dropout", 0.1),
        "problem": Key("problem_type", None),
    },
    prefix="transformer.",
    body=(
        *rows.embedding("wte", "token_embed", "V"),
        *rows.embedding("wpe", "position_embed"),
        *rows.norm("h.*.ln_1", "blocks/attention_norm"),
        *rows.attention(
            "h.*.attn.attention", "blocks/attention", "q_proj k_proj v_proj", "h.*.attn.attention.out_proj"
        ),
        *rows.norm("h.*.ln_2", "blocks/mlp_norm"),
        *rows.dense("h.*.mlp.c_fc", "blocks/mlp_up"),
        *rows.dense("h.*.mlp.c_proj", "blocks/mlp_down"),
        *rows.norm("ln_f", "final_norm"),
    ),
    heads=rows.HEADS | rows.ANSWERS | {"token-classification": rows.dense("classifier", "head/scores")},
    tied={"lm_head.weight": "wte.weight"},
    ignored=((r"h\.\d+\.attn\.attention\.(masked_)?bias", "the causal mask, which old versions saved as a buffer"),),
)
