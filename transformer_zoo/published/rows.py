"""Rows of a family's table of tensors, several at a time.

A row is (their tensor, our parameter, an einops layout), as `checkpoints/weight_map.py` reads it: forwards to load and
backwards to save. A row whose parameter a model lacks, such as the bias of a layer without one, is skipped.
"""

Rows = tuple[tuple[str, str, str], ...]


def dense(theirs: str, ours: str) -> Rows:
    """A `torch.nn.Linear`, whose weight is [out, in]."""
    return ((f"{theirs}.weight", f"{ours}/kernel", "O I -> I O"), (f"{theirs}.bias", f"{ours}/bias", "O -> O"))


def conv1d(theirs: str, ours: str) -> Rows:
    """The reference's Conv1D, whose weight is [in, out], as in GPT-2."""
    return ((f"{theirs}.weight", f"{ours}/kernel", "I O -> I O"), (f"{theirs}.bias", f"{ours}/bias", "O -> O"))


def split_heads(theirs: str, ours: str) -> Rows:
    """A `torch.nn.Linear` whose output is divided into heads: the projection of queries, keys or values."""
    return (
        (f"{theirs}.weight", f"{ours}/kernel", "(H K) D -> D H K"),
        (f"{theirs}.bias", f"{ours}/bias", "(H K) -> H K"),
    )


def merge_heads(theirs: str, ours: str) -> Rows:
    """A `torch.nn.Linear` whose input is divided into heads: the output projection of attention."""
    return ((f"{theirs}.weight", f"{ours}/kernel", "D (H K) -> H K D"), (f"{theirs}.bias", f"{ours}/bias", "D -> D"))


def attention(theirs: str, ours: str, names: str, out: str) -> Rows:
    """The four projections of attention.

    Args:
        names: those of the query, key and value below `theirs`, such as "q_proj k_proj v_proj".
        out: the whole name of the output projection.
    """
    query, key, value = names.split()
    return (
        *split_heads(f"{theirs}.{query}", f"{ours}/query"),
        *split_heads(f"{theirs}.{key}", f"{ours}/key"),
        *split_heads(f"{theirs}.{value}", f"{ours}/value"),
        *merge_heads(out, f"{ours}/out"),
    )


def attention_conv1d(theirs: str, ours: str) -> Rows:
    """Attention of the reference's Conv1D: c_attn, the projections of queries, keys and values in one, and c_proj."""
    return (
        (f"{theirs}.c_attn.weight", f"{ours}/{{query,key,value}}/kernel", "D (n H K) -> n D H K"),
        (f"{theirs}.c_attn.bias", f"{ours}/{{query,key,value}}/bias", "(n H K) -> n H K"),
        (f"{theirs}.c_proj.weight", f"{ours}/out/kernel", "(H K) D -> H K D"),
        (f"{theirs}.c_proj.bias", f"{ours}/out/bias", "D -> D"),
    )


def norm(theirs: str, ours: str) -> Rows:
    """The scale and the bias of a layer norm; the scale of an RMS norm, or its difference from one."""
    return (
        (f"{theirs}.weight", f"{ours}/scale", "D -> D"),
        (f"{theirs}.weight", f"{ours}/offset", "D -> D"),
        (f"{theirs}.bias", f"{ours}/bias", "D -> D"),
    )


def embedding(theirs: str, ours: str, rows: str = "N") -> Rows:
    """A `torch.nn.Embedding`. `rows="V"`: its rows are the vocabulary, which is padded in memory."""
    return ((f"{theirs}.weight", f"{ours}/embedding", f"{rows} D -> {rows} D"),)


def bias(theirs: str, ours: str) -> Rows:
    """A number for each token of the vocabulary."""
    return ((theirs, ours, "V -> V"),)


HEADS = {
    "causal-lm": embedding("lm_head", "head", "V"),
    "sequence-classification": (("score.weight", "head/scores/kernel", "O I -> I O"),),
}
"""Of a decoder: the output layer, where it is not tied, and the scores of a row, without a bias."""

ANSWERS = {"question-answering": dense("qa_outputs", "head/scores")}
"""Of a decoder: the scores of tokens as the first and the last of an answer."""
