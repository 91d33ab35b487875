"""Keys of config.json and rows of tensors that both versions of DeBERTa share."""

from collections.abc import Sequence

from transformer_zoo.published import bert_layout, rows
from transformer_zoo.published.spec import Key

TERMS = ("c2p|p2c", "c2p", "p2c", "")


def read_terms(words: str | Sequence[str] | None) -> str:
    """One of `TERMS`, from a list or from a string with "|" between the terms, in any order.

    Raises:
        ValueError: an unknown term.
    """
    found = words.lower().split("|") if isinstance(words, str) else words or ()
    terms = "|".join(sorted({word.strip() for word in found} - {""}))
    if terms not in TERMS:
        raise ValueError(f"known are {', '.join(map(repr, TERMS))}")
    return terms


def size(name: str) -> Key:
    """A key whose values below 1 stand for None."""
    return Key(name, -1, lambda n, _: n if n > 0 else None, lambda n, _: n or -1)


CONFIG = bert_layout.CONFIG | {
    "max_length": Key("max_position_embeddings", 512),
    "num_segments": Key("type_vocab_size", 0),
    "embed_width": Key(
        "embedding_size", None,
        read=lambda width, settings: None if width == settings["hidden_size"] else width,
        write=lambda width, config: width or config.width,
    ),
    "norm_epsilon": Key("layer_norm_eps", 1e-7),
    "absolute_positions": Key("position_biased_input", True),
    "relative_attention": Key("relative_attention", False),
    "position_terms": Key(
        "pos_att_type", None,
        read=lambda words, _: read_terms(words),
        write=lambda terms, _: terms.split("|") if terms else [],
    ),
    "max_distance": size("max_relative_positions"),
    "pooler_dropout": Key("pooler_dropout", 0),
    "head_dropout": Key("cls_dropout", None),
    "pooler_activation": Key("pooler_hidden_act", "gelu"),
}  # fmt: skip

SELF = bert_layout.LAYER + "attention.self."
EMBEDDINGS = (
    *bert_layout.EMBEDDINGS,
    *rows.dense("embeddings.embed_proj", "embed_project"),
    *rows.embedding("encoder.rel_embeddings", "relative_embed"),
)
ATTENTION_OUTPUT = (
    *rows.merge_heads(bert_layout.LAYER + "attention.output.dense", "blocks/attention/out"),
    *rows.norm(bert_layout.LAYER + "attention.output.LayerNorm", "blocks/attention_norm"),
)
_HIDDEN_CLASSIFIER = (*rows.dense("pooler.dense", "head/dense"), *bert_layout.CLASSIFIER)
HEADS = {
    "masked-lm": bert_layout.MASKED_LM,
    "sequence-classification": _HIDDEN_CLASSIFIER,
    "token-classification": bert_layout.CLASSIFIER,
    "question-answering": bert_layout.ANSWER,
    "multiple-choice": _HIDDEN_CLASSIFIER,
}

# The published checkpoints, and those whose config.json has `"legacy": false`, use other names for the same head.
_OTHER_HEAD, _HEAD = "lm_predictions.lm_head.", "/cls.predictions."
TIED = bert_layout.TIED_MASKED_LM | {
    _OTHER_HEAD + "dense.weight": _HEAD + "transform.dense.weight",
    _OTHER_HEAD + "dense.bias": _HEAD + "transform.dense.bias",
    _OTHER_HEAD + "LayerNorm.weight": _HEAD + "transform.LayerNorm.weight",
    _OTHER_HEAD + "LayerNorm.bias": _HEAD + "transform.LayerNorm.bias",
    _OTHER_HEAD + "bias": _HEAD + "bias",
}
IGNORED = (
    *bert_layout.POSITION_IDS,
    (
        r"embeddings\.position_embeddings\.weight",
        "positions of the decoder of masked tokens, which the reference lacks",
    ),
)
