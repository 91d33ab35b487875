"""Keys of config.json and rows of tensors that BERT and its relatives share."""

from transformer_zoo.published import rows
from transformer_zoo.published.spec import Key

CONFIG = {
    "vocab_size": Key("vocab_size"),
    "max_length": Key("max_position_embeddings"),
    "num_segments": Key("type_vocab_size", 2),
    "width": Key("hidden_size"),
    "num_layers": Key("num_hidden_layers"),
    "num_heads": Key("num_attention_heads"),
    "mlp_dim": Key("intermediate_size"),
    "activation": Key("hidden_act", "gelu"),
    "norm_epsilon": Key("layer_norm_eps", 1e-12),
    "init_std": Key("initializer_range", 0.02),
    "hidden_dropout": Key("hidden_dropout_prob", 0.1),
    "attention_dropout": Key("attention_probs_dropout_prob", 0.1),
    "head_dropout": Key("classifier_dropout", None),
    "problem": Key("problem_type", None),
}
TIED_WORDS = {"tie_word_embeddings": True}
FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, **TIED_WORDS}

LAYER = "encoder.layer.*."
EMBEDDINGS = (
    *rows.embedding("embeddings.word_embeddings", "token_embed", "V"),
    *rows.embedding("embeddings.position_embeddings", "position_embed"),
    *rows.embedding("embeddings.token_type_embeddings", "segment_embed"),
    *rows.norm("embeddings.LayerNorm", "embed_norm"),
)
MLP = (
    *rows.dense(LAYER + "intermediate.dense", "blocks/mlp_up"),
    *rows.dense(LAYER + "output.dense", "blocks/mlp_down"),
    *rows.norm(LAYER + "output.LayerNorm", "blocks/mlp_norm"),
)
LAYERS = (
    *rows.attention(LAYER + "attention.self", "blocks/attention", "query key value", LAYER + "attention.output.dense"),
    *rows.norm(LAYER + "attention.output.LayerNorm", "blocks/attention_norm"),
    *MLP,
)
POOLER = rows.dense("pooler.dense", "pooler/dense")


def masked_lm(dense: str, norm: str, bias: str) -> rows.Rows:
    """The rows of the head `nn.heads.MaskedLM`, whose output layer is tied to the token embeddings."""
    return (*rows.dense(dense, "lm_head/dense"), *rows.norm(norm, "lm_head/norm"), *rows.bias(bias, "lm_head/bias"))


_TRANSFORM = "cls.predictions.transform."
MASKED_LM = masked_lm(_TRANSFORM + "dense", _TRANSFORM + "LayerNorm", "cls.predictions.bias")
LM_HEAD = masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
CLASSIFIER = rows.dense("classifier", "head/scores")
HIDDEN_CLASSIFIER = (*rows.dense("classifier.dense", "head/dense"), *rows.dense("classifier.out_proj", "head/scores"))
ANSWER = rows.dense("qa_outputs", "head/scores")
CLASSIFIERS = {
    "sequence-classification": CLASSIFIER,
    "token-classification": CLASSIFIER,
    "question-answering": ANSWER,
    "multiple-choice": CLASSIFIER,
}
# With RoBERTa's names of the layers before the logits and the scores.
LM_HEADS = {"masked-lm": LM_HEAD, **CLASSIFIERS, "sequence-classification": HIDDEN_CLASSIFIER}

WORDS = "embeddings.word_embeddings.weight"
TIED_MASKED_LM = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": "/cls.predictions.bias"}
TIED_LM_HEAD = {"lm_head.decoder.weight": WORDS, "lm_head.decoder.bias": "/lm_head.bias"}
POSITION_IDS = ((r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., which old versions saved as a buffer"),)
BUFFERS = (*POSITION_IDS, (r"embeddings\.token_type_ids", "zeros, which old versions saved as a buffer"))
