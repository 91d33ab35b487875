"""The Transformer: Attention Is All You Need, Vaswani et al. 2017; and its use in translation: Marian: Fast
Neural Machine Translation in C++, Junczys-Dowmunt et al. 2018, with which the models of OPUS-MT (Tiedemann and
Thottingal 2020) were trained.

The presets `transformer-base` and `transformer-big` are those of the paper (table 3) for English and German. From the
paper the family differs where that changes nothing that is learned: all sines come before all cosines, as in the code
released with it, where the paper interleaves them; projections of attention have biases; and so has the output layer,
where they are zero and not trained.
"""

import dataclasses

import flax.linen as nn
import numpy as np

from transformer_zoo.nn.positions import sinusoids
from transformer_zoo.nn.transformer import DecoderBlock, EncoderBlock, Transformer, TransformerConfig
from transformer_zoo.nn.transformer import init_cache as init_cache
from transformer_zoo.published import bart_layout
from transformer_zoo.published.spec import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TransformerConfig):
    """The architecture, by default of OPUS-MT's base size. The other fields are those of `TransformerConfig`."""

    vocab_size: int = 58101
    max_length: int = 512
    width: int = 512
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    num_decoder_heads: int = 8
    activation: str = "swish"
    mlp_dim: int = 2048
    mlp_decoder_dim: int = 2048
    pad_id: int = 58100
    eos_id: int | None = 0
    decoder_start_id: int = 58100
    forced_eos_id: int | None = 0


_PAPER = {"vocab_size": 37000, "max_length": 1024, "activation": "relu"}
_PAPER |= {"pad_id": 0, "eos_id": 1, "decoder_start_id": 0, "forced_eos_id": None}
_BIG = {"width": 1024, "mlp_dim": 4096, "mlp_decoder_dim": 4096, "num_heads": 16, "num_decoder_heads": 16}
_OPUS = {
    "en-de": 58101, "de-en": 58101, "en-fr": 59514, "fr-en": 59514, "en-es": 65001, "es-en": 65001, "en-ru": 62518,
    "ru-en": 62518, "en-zh": 65001, "zh-en": 65001,
}  # fmt: skip
PRESETS = {
    "transformer-base": ("", Config(**_PAPER)),
    "transformer-big": ("", Config(dropout=0.3, **_PAPER, **_BIG)),
    **{
        f"opus-mt-{pair}": (
            f"Helsinki-NLP/opus-mt-{pair}",
            Config(vocab_size=size, pad_id=size - 1, decoder_start_id=size - 1),
        )
        for pair, size in _OPUS.items()
    },
}


class Model(Transformer):
    """The Transformer, with a language model's output layer for the task `seq2seq-lm` and without for `base`."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.xavier_uniform()
        self.add_embeddings(nn.initializers.normal(cfg.width**-0.5))
        self.encoder_blocks = EncoderBlock(cfg, compute, norm_first=False, init=init)
        self.decoder_blocks = DecoderBlock(cfg, compute, norm_first=False, init=init)


def _constants(config: Config, task: str) -> dict[str, np.ndarray]:
    """The tables of positions, which the reference reads, though not together with the output layer."""
    names = bart_layout.SINUSOIDS if task == "base" else ()
    return dict.fromkeys(names, sinusoids(config.max_length, config.width))


PUBLISHED = bart_layout.published(
    model_type="marian",
    class_prefix="Marian",
    classes={"seq2seq-lm": "MTModel"},
    config=bart_layout.config(pad_id=58100, eos_id=0, decoder_start_id=None)
    | {
        # The first files leave it out: their targets start with padding, as all of Marian's do.
        "decoder_start_id": Key(
            "decoder_start_token_id", None, lambda i, keys: keys["pad_token_id"] if i is None else i
        ),
    },
    fixed=bart_layout.fixed(norm_first=False, learned_positions=False) | {"share_encoder_decoder_embeddings": True},
    ignored=bart_layout.IGNORED_SINUSOIDS,
    constants=_constants,
)
