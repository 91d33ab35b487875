"""RoBERTa: A Robustly Optimized BERT Pretraining Approach, Liu et al. 2019; and the same network in other languages:
XLM-R, Conneau et al. 2020, and CamemBERT, Martin et al. 2020.

It is BERT (`bert.py`) without next-sentence prediction. Positions are numbered from pad_id + 1, as in fairseq, and a
classifier of sequences has its own hidden layer where BERT uses the pooler.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn

from transformer_zoo.nn import Head, PostNormBlock, PostNormConfig, PostNormEncoder
from transformer_zoo.published import Key, Published, bert_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PostNormConfig):
    """The architecture: what a checkpoint fixes. The other fields are BERT's: `nn.PostNormConfig`."""

    model_type: Literal["roberta", "xlm-roberta", "camembert"] = "roberta"  # the name under which it is published
    vocab_size: int = 50265
    num_segments: int = 1
    norm_epsilon: float = 1e-5
    head_dropout: float | None = None  # None: as hidden_dropout
    pad_id: int = 1

    @property
    def first_position(self) -> int:
        """The row of the table of positions that holds position 0. The rows before are never read."""
        return self.pad_id + 1


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
_XLM = {"model_type": "xlm-roberta", "vocab_size": 250002}
PRESETS = {
    "roberta-base": ("FacebookAI/roberta-base", Config()),
    "roberta-large": ("FacebookAI/roberta-large", Config(**_LARGE)),
    "distilroberta-base": ("distilbert/distilroberta-base", Config(num_layers=6)),
    "codebert-base": ("microsoft/codebert-base", Config()),
    "xlm-roberta-base": ("FacebookAI/xlm-roberta-base", Config(**_XLM)),
    "xlm-roberta-large": ("FacebookAI/xlm-roberta-large", Config(**_XLM, **_LARGE)),
    "camembert-base": ("almanach/camembert-base", Config(model_type="camembert", vocab_size=32005)),
}


class Model(PostNormEncoder):
    """RoBERTa with the head of a task."""

    def setup(self) -> None:
        cfg, init = self.config, nn.initializers.normal(self.config.init_std)
        self.add_embeddings(cfg.width, init)
        self.blocks = PostNormBlock(cfg, self.compute, init)

        rate = cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout
        self.add_head(init, self.norm, {
            "base": Head(pooled=True),
            "masked-lm": Head(vocabulary="gelu"),
            "sequence-classification": Head(hidden="tanh", hidden_dropout=rate, dropout=rate),
            "token-classification": Head(dropout=rate),
            "question-answering": Head(),
            "multiple-choice": Head(pooled=True, dropout=cfg.hidden_dropout),
        })  # fmt: skip


def _pad_id(value: Any, settings: Mapping[str, Any]) -> Any:
    """The id of padding. Other libraries take every token of this id for padding, whose position is another one."""
    if value is not None and value == settings.get("bos_token_id"):
        warnings.warn(
            f"config.json has {value!r} for pad_token_id and for bos_token_id: transformers then numbers positions "
            "otherwise than this library. Published models have 1 and 0: set pad_token_id to that of the training",
            stacklevel=4,
        )
    return value


PUBLISHED = Published(
    model_type="roberta",
    class_prefix="Roberta",
    aliases={"xlm-roberta": "XLMRoberta", "camembert": "Camembert"},
    config=bert_layout.CONFIG | {
        "model_type": Key("model_type", "roberta"),
        "max_length": Key(
            "max_position_embeddings",
            read=lambda rows, settings: rows - settings["pad_token_id"] - 1,
            write=lambda length, config: length + config.first_position,
        ),
        "pad_id": Key("pad_token_id", 1, _pad_id),
    },
    fixed=bert_layout.FIXED,
    prefix="roberta.",
    body=(*bert_layout.EMBEDDINGS, *bert_layout.LAYERS, *bert_layout.POOLER),
    heads=bert_layout.LM_HEADS,
    tied=bert_layout.TIED_LM_HEAD,
    ignored=bert_layout.BUFFERS,
)  # fmt: skip
