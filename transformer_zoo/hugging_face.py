"""Hugging Face's names for arguments and classes that have another name here, for error messages. Its names for the
fields of a Config are in the families' own tables: `registry.fields_called`."""

from collections.abc import Iterable

from transformer_zoo.trees import nearest

CALL = {
    "input_ids": "tokens_BT (of an encoder-decoder source_BS), the first argument",
    "attention_mask": "valid_BT (of an encoder-decoder valid_BS)",
    "token_type_ids": "segments_BT",
    "position_ids": "positions_BT",
    "decoder_input_ids": "target_BT",
    "decoder_attention_mask": "target_valid_BT",
    "past_key_values": "cache",
    "output_attentions": 'mutable=["intermediates"]',
    "output_hidden_states": 'mutable=["intermediates"]',
}
"""Arguments of a model's call."""

LOAD = {
    "num_labels": "labels",
    "id2label": "labels",
    "label2id": "labels",
    "torch_dtype": "dtype and param_dtype",
    "attn_implementation": "compute=zoo.Compute(attention=...)",
    "device_map": "mesh",
}
"""Arguments of `from_pretrained`."""

EMBED = {"prompt_name": "prompt"}
"""Arguments of an embedder's call."""

PREDICT = {
    "aggregation_strategy": "aggregation",
    "ignore_labels": "ignored",
    "stride": "overlap",
    "doc_stride": "overlap",
    "max_seq_len": "row_length",
    "max_answer_len": "answer_length",
    "handle_impossible_answer": "no_answer",
}
"""Settings of pipelines."""

CLASSES = {
    "AutoModel": 'from_pretrained(name, task="...")',
    "AutoConfig": "from_pretrained(name).config",
    "AutoTokenizer": "load_tokenizer(name)",
    "SentenceTransformer": "load_embedder(name)",
    "pipeline": "predict(m, inputs)",
    "Trainer": "train(run)",
}
"""Classes, and the function to call instead. The names are prefixes: `AutoModelForCausalLM` is an `AutoModel`."""


def hint(theirs: str, ours: str | None, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: our name for it, if there is one, or the nearest known one."""
    return f" Hugging Face's {theirs} is {ours} here." if ours else nearest(theirs, known)


def refuse(function: str, arguments: Iterable[str], table: dict[str, str], known: Iterable[str] = ()) -> None:
    """Raises TypeError for the first of these keyword arguments, which the function does not have."""
    for name in arguments:
        raise TypeError(
            f"{function}() got an unexpected keyword argument {name!r}.{hint(name, table.get(name), known)}"
        )
