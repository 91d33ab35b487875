"""How a family is stored in GGUF files, as llama.cpp has them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

# Key of the metadata, after the architecture's name -> key of config.json.
_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
_SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_SCALED = ("linear", "yarn")  # the kinds whose scaling is in the metadata
# Of these each says what another key or a tensor also says, or what the file was once.
_IMPLIED = ("vocab_size", "rope.dimension_count", "attention.value_length", "rope.scaling.finetuned")
FREQUENCIES = "rope_freqs.weight"
"""A tensor by which the speeds of rotary pairs are divided."""

NAMES = {
    "token_embd": "model.embed_tokens",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
    "blk.*.attn_q_norm": "model.layers.*.self_attn.q_norm",
    "blk.*.attn_k_norm": "model.layers.*.self_attn.k_norm",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""Tensors of LLaMA's kin, without the ending `.weight` or `.bias`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gguf:
    """The layout of a family.

    Attributes:
        architecture: `general.architecture` of its files.
        names: their tensors -> those of the family's usual files; `*` is the layer.
        pairs_adjacent: whether the rows of queries and keys hold the two elements of a rotary pair side by side.
    """

    architecture: str
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: NAMES)
    pairs_adjacent: bool = False

    def settings(self, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The keys of config.json that the metadata and the shapes of the tensors stand for.

        Raises:
            ValueError: a key that is not known, or metadata that contradict the tensors.
        """
        prefix = f"{self.architecture}."
        own = {name.removeprefix(prefix): x for name, x in metadata.items() if name.startswith(prefix)}
        unknown = [name for name in own if name not in (*_KEYS, *_SCALING, *_IMPLIED)]
        if unknown:
            raise ValueError(f"the key {prefix}{unknown[0]} is not known: what it asks of the model cannot be honoured")
        if "token_embd.weight" not in shapes:
            raise ValueError("there is no tensor token_embd.weight: it holds no model of text")
        settings = {theirs: own[key] for key, theirs in _KEYS.items() if key in own}
        settings["vocab_size"] = shapes["token_embd.weight"][0]
        settings["tie_word_embeddings"] = "output.weight" not in shapes
        settings["attention_bias"] = "blk.0.attn_q.bias" in shapes
        scaling = {theirs: own[key] for key, theirs in _SCALING.items() if key in own}
        if scaling.get("rope_type", "none") != "none":
            settings["rope_scaling"] = scaling
        rotated, head = own.get("rope.dimension_count"), self.head_dim(settings)
        if rotated is not None and rotated != head:
            raise ValueError(f"{prefix}rope.dimension_count is {rotated}, and a head has {head} elements")
        if own.get("attention.value_length", head) != head:
            raise ValueError(f"{prefix}attention.value_length differs from the {head} elements of a key")
        return settings

    def metadata(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata that stand for the keys of a config.json in today's format. Of what they cannot hold there is
        nothing in them.

        Raises:
            ValueError: rotary positions of a kind that they have no word for.
        """
        rope = settings["rope_parameters"]
        own = {key: settings.get(theirs) for key, theirs in _KEYS.items()} | {"rope.freq_base": rope["rope_theta"]}
        if (kind := rope["rope_type"]) in _SCALED:
            own |= {key: rope.get(theirs) for key, theirs in _SCALING.items()}
        elif kind not in ("default", "llama3", "longrope"):  # of the last two the tensor FREQUENCIES has all
            raise ValueError(f"rotary positions of the kind {kind} have no place in a GGUF file")
        own["vocab_size"] = settings["vocab_size"]
        own["attention.key_length"] = own["attention.value_length"] = own["rope.dimension_count"] = self.head_dim(
            settings
        )
        return {f"{self.architecture}.{key}": value for key, value in own.items() if value is not None}

    def their_name(self, name: str) -> str | None:
        """The tensor of a file that one of the family's usual files is. None: there is none."""
        stem, _, end = name.rpartition(".")
        layer = re.search(r"\.(\d+)\.", stem)
        found = {ours: theirs for theirs, ours in self.names.items()}
        theirs = found.get(stem if layer is None else stem.replace(layer[0], ".*.", 1))
        return None if theirs is None else theirs.replace("*", layer[1] if layer else "") + f".{end}"

    @staticmethod
    def head_dim(settings: Mapping[str, Any]) -> Any:
        """The size of a head; None: the settings lack it."""
        if "head_dim" in settings or not settings.get("num_attention_heads"):
            return settings.get("head_dim")
        return settings.get("hidden_size", 0) // settings["num_attention_heads"]
