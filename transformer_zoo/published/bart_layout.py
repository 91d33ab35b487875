"""Keys of config.json and rows of tensors that BART and its relatives share."""

from typing import Any

from transformer_zoo.published import rows
from transformer_zoo.published.spec import Key, Published, first_id


def config(pad_id: int, eos_id: int, decoder_start_id: int | None) -> dict[str, Key]:
    """The keys that all of them have, with the special tokens of a file that lacks them."""
    return {
        "vocab_size": Key("vocab_size"),
        "max_length": Key("max_position_embeddings"),
        "width": Key("d_model"),
        "num_layers": Key("encoder_layers"),
        "num_decoder_layers": Key("decoder_layers"),
        "num_heads": Key("encoder_attention_heads"),
        "num_decoder_heads": Key("decoder_attention_heads"),
        "mlp_dim": Key("encoder_ffn_dim"),
        "mlp_decoder_dim": Key("decoder_ffn_dim"),
        "activation": Key("activation_function", "gelu"),
        "scale_embedding": Key("scale_embedding", False),
        "dropout": Key("dropout", 0.1),
        "attention_dropout": Key("attention_dropout", 0.0),
        "activation_dropout": Key("activation_dropout", 0.0),
        "pad_id": Key("pad_token_id", pad_id),
        "eos_id": Key("eos_token_id", eos_id, first_id),
        "decoder_start_id": Key("decoder_start_token_id", decoder_start_id),
        "forced_eos_id": Key("forced_eos_token_id", eos_id, first_id),
    }


INIT_STD = Key("init_std", 0.02)
CLASSIFIER = {"head_dropout": Key("classifier_dropout", 0.0), "problem": Key("problem_type", None)}


def fixed(norm_first: bool, learned_positions: bool) -> dict[str, Any]:
    """The keys with only one supported value."""
    return {
        "is_decoder": False,
        "tie_word_embeddings": True,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        # The first releases had one class for all of these families, with these keys:
        "normalize_before": norm_first,
        "normalize_embedding": learned_positions,
        "add_final_layer_norm": norm_first,
        "static_position_embeddings": not learned_positions,
    }


def _attention(theirs: str, ours: str) -> rows.Rows:
    return (
        *rows.attention(theirs, ours, "q_proj k_proj v_proj", f"{theirs}.out_proj"),
        *rows.norm(f"{theirs}_layer_norm", f"{ours}_norm"),
    )


def _ends(side: str) -> rows.Rows:
    return (
        *rows.embedding(f"{side}.embed_positions", f"{side}_position_embed"),
        *rows.norm(f"{side}.layernorm_embedding", f"{side}_embed_norm"),
        *rows.norm(f"{side}.layer_norm", f"{side}_norm"),
    )


def _blocks(side: str) -> rows.Rows:
    return (
        *_attention(f"{side}.layers.*.self_attn", f"{side}_blocks/attention"),
        *rows.dense(f"{side}.layers.*.fc1", f"{side}_blocks/mlp_up"),
        *rows.dense(f"{side}.layers.*.fc2", f"{side}_blocks/mlp_down"),
        *rows.norm(f"{side}.layers.*.final_layer_norm", f"{side}_blocks/mlp_norm"),
    )


BODY = (
    *rows.embedding("shared", "token_embed", "V"),
    *_ends("encoder"),
    *_ends("decoder"),
    *_blocks("encoder"),
    *_blocks("decoder"),
    *_attention("decoder.layers.*.encoder_attn", "decoder_blocks/cross_attention"),
)
LOGITS_BIAS = "final_logits_bias"
LANGUAGE_MODEL = {"seq2seq-lm": ((LOGITS_BIAS, "lm_head/bias", "1 V -> V"),)}
CLASSIFIERS = {
    "sequence-classification": (
        *rows.dense("classification_head.dense", "head/dense"),
        *rows.dense("classification_head.out_proj", "head/scores"),
    ),
    "question-answering": rows.dense("qa_outputs", "head/scores"),
}

TIED = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight")
VERSION = ((r"(encoder|decoder)\.version", "the version of fairseq's format, which the first files come from"),)
SINUSOIDS = ("encoder.embed_positions.weight", "decoder.embed_positions.weight")
IGNORED_SINUSOIDS = ((r"(encoder|decoder)\.embed_positions\.weight", "sinusoids, which follow from the configuration"),)


def published(**own: Any) -> Published:
    """A family of the kin, given the fields of `Published` that are its own."""
    tensors = {"prefix": "model.", "body": BODY, "tied": TIED, "zero_if_missing": (LOGITS_BIAS,)}
    return Published(**{"heads": LANGUAGE_MODEL, **tensors, **own})
