"""How a family is stored in GGUF files, as llama.cpp has them."""

import dataclasses
import functools
import itertools
import operator
import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np

from transformer_zoo.nn.rotary import yarn_magnitude
from transformer_zoo.published.rows import Rows

KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
}
"""Key of the metadata, after the architecture's name -> key of config.json."""
ORIGINAL, ATTENTION = "rope.scaling.original_context_length", "rope.scaling.attn_factor"
_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
_SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    ORIGINAL: "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
    "attention.temperature_scale": "llama_4_scaling_beta",
}
_SCALED = ("linear", "yarn")  # the kinds whose scaling is in the metadata
_TENSORS = ("llama3", "longrope", "proportional")  # those of which the tensor FREQUENCIES has all
_ROPE = (*_SCALING, ATTENTION, _MULTIPLIER, "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count")
# Of these each says what another key or a tensor also says, or what the file was once.
_IMPLIED = ("vocab_size", "attention.value_length", "rope.scaling.finetuned")
FREQUENCIES = "rope_freqs.weight"
"""A tensor by which the speeds of rotary pairs are divided."""
STILL = 1e30
"""What the speed of a pair that does not turn is divided by."""
FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
"""Such tensors for texts up to the original length and for longer ones."""

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
OUT_NORMS = {
    "blk.*.post_attention_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.post_ffw_norm": "model.layers.*.post_feedforward_layernorm",
}
"""Norms of the outputs of the sublayers."""
PATTERN = {"attention.sliding_window_pattern": "layer_types"}
"""Which layers have a window, as new files say: for each whether it has one, or every how many layers have none."""
EXPERTS = {
    "expert_feed_forward_length": "intermediate_size",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "feed_forward_length": None,
}
"""Keys of mixtures of experts."""

_FURTHER = ("eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head_head", "shared_head_norm")
FURTHER_TOKEN = {f"blk.*.nextn.{name}": f"model.layers.*.{name}" for name in _FURTHER}
"""Tensors of a layer behind the model's own, which predicts a further token."""


def num_layers(own: Mapping[str, Any], shapes: Any) -> int:
    """The model's own layers in a file that may hold further ones."""
    return own["block_count"] - own.get("nextn_predict_layers", 0)


def named(changes: Mapping[str, str | None]) -> dict[str, str]:
    """`NAMES` with some others; None: there is no such tensor."""
    return {theirs: ours for theirs, ours in {**NAMES, **changes}.items() if ours is not None}


def experts(mixture: str, names: str) -> dict[str, str]:
    """The names of a mixture; each tensor holds all experts of a layer.

    Args:
        mixture: the usual name of the mixture of a layer, such as "model.layers.*.mlp".
        names: those of the gate, up and down projections below an expert.
    """
    found = zip(("gate", "up", "down"), names.split())
    return {f"blk.*.ffn_{ours}_exps": f"{mixture}.experts.*.{name}" for ours, name in found} | {
        "blk.*.ffn_gate_inp": f"{mixture}.gate"
    }


@dataclasses.dataclass(frozen=True)
class Change:
    """Numbers that a file holds changed."""

    write: Callable[[np.ndarray], np.ndarray]
    """From the usual ones, in float32, to those of the file."""
    read: Callable[[np.ndarray], np.ndarray]
    """Back. It raises ValueError for numbers that stand for none."""


LARGER = Change(lambda x: x + np.ones((), x.dtype), lambda x: x - np.ones((), x.dtype))
"""Scales of norms that are larger by one."""
NORMS = (("norm.weight", LARGER),)
"""The changes of families all of whose norms are so."""


_PAIRED = ("(H i p=2)", "(H p i)")
PAIRS: Rows = tuple(
    (f"blk.*.attn_{name}.{end}", f"model.layers.*.self_attn.{name}_proj.{end}",
     " -> ".join(side.replace("H", heads) + axes for side in _PAIRED))
    for name, heads in (("q", "H"), ("k", "G")) for end, axes in (("weight", " D"), ("bias", ""))
)  # fmt: skip
"""Queries and keys whose rows hold the two elements of a rotary pair side by side, as in the architecture `llama`."""


def qkv(theirs: str) -> Rows:
    """The projections of queries, keys and values in one tensor, whose usual one has them head by head."""
    sides = ("(H n K)", "(n=3 H K)")
    return tuple(
        (f"blk.*.attn_qkv.{end}", f"{theirs}.{end}", f"{sides[1]}{axes} -> {sides[0]}{axes}")
        for end, axes in (("weight", " D"), ("bias", ""))
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor of these files is among the family's usual ones.

    Attributes:
        name: of the usual one; `*` in it counts the experts, which one tensor of these files holds.
        layout: from the tensors that are its parts to it, as einops has it. None: it is the same.
        part, parts: which of the parts it is, and how many there are.
    """

    name: str
    layout: str | None = None
    part: int = 0
    parts: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gguf:
    """The layout of a family.

    Attributes:
        architecture: `general.architecture` of its files.
        only_with: a key of the metadata by which its files differ from another family's of this architecture.
        names: their tensors -> those of the family's usual files, both without the ending `.weight` or `.bias`. The
            first `*` is the layer, and a second one the expert.
        names_with: a tensor of the first layer -> the names that are others in files that have it.
        rows: (their tensors, the usual one, layout), of those whose numbers are in another order: `n` counts parts,
            which are the tensors `{a,b}`, or lie one after another in a single one. In the usual tensor they lie one
            after another too. Axes behind `n` may have sizes of their own in each part. `n H R K | n H K R -> ...`: the
            first part has its axes in another order. `H` and `G` are the numbers of heads and of heads of keys and
            values.
        axes: axis of the rows -> its size, from the metadata after the architecture's name; of one whose size differs
            from part to part, a tuple.
        changes: (ending of their tensors' names, how their numbers are changed), of which the first counts.
        keys: beside `KEYS`; None: what other keys say too.
        defaults: key of the metadata -> its value for the keys of a config.json that have none for it.
        derived: key of config.json -> its value, from the metadata after the architecture's name and from the shapes of
            the tensors.
        yarn: of the rotary positions of the kind yarn, what the metadata do not tell.
        scales_scores: whether the multiplier of the kind yarn, tenfold, is the `mscale_all_dim` of latent attention.
        has_factors: whether rotary positions of the kind longrope are in the tensors FACTORS.
        local_theta: of rotary positions in layers with a window, where they have their own. 0: that of the others,
            whose positions alone are scaled.
    """

    architecture: str
    only_with: str | None = None
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: NAMES)
    names_with: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    rows: Rows = ()
    axes: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(default_factory=dict)
    changes: tuple[tuple[str, Change | None], ...] = ()
    keys: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(default_factory=dict)
    derived: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = dataclasses.field(
        default_factory=dict
    )
    yarn: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scales_scores: bool = False
    has_factors: bool = False
    local_theta: float | None = None

    def own(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of the model, by their keys after the architecture's name."""
        prefix = f"{self.architecture}."
        return {name.removeprefix(prefix): x for name, x in metadata.items() if name.startswith(prefix)}

    def settings(self, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The keys of config.json that the metadata and the shapes of the tensors stand for.

        Raises:
            ValueError: a key that is not known, or metadata that contradict the tensors.
        """
        own, keys = self.own(metadata), {**KEYS, **self.keys}
        prefix = f"{self.architecture}."
        if unknown := [name for name in own if name not in (*keys, *_ROPE, *_IMPLIED)]:
            raise ValueError(f"the key {prefix}{unknown[0]} is not known: what it asks of the model cannot be honoured")
        if "token_embd.weight" not in shapes:
            raise ValueError("there is no tensor token_embd.weight: it holds no model of text")
        settings = {theirs: own[key] for key, theirs in keys.items() if key in own and theirs is not None}
        if type(every := settings.get("layer_types")) is int:
            settings["sliding_window_pattern"] = settings.pop("layer_types")
        elif every is not None:
            if not isinstance(every, list) or {*map(type, every)} - {bool}:
                raise ValueError(f"{prefix}attention.sliding_window_pattern is no list of what has a window")
            settings["layer_types"] = [("full_attention", "sliding_attention")[local] for local in every]
        settings["vocab_size"] = shapes["token_embd.weight"][0]
        settings["tie_word_embeddings"] = "output.weight" not in shapes
        settings["attention_bias"] = "blk.0.attn_q.bias" in shapes
        head = self.head_dim(own)
        if "attention.value_length" not in keys and own.get("attention.value_length", head) != head:
            raise ValueError(f"{prefix}attention.value_length differs from the {head} elements of a key")
        scaling = {theirs: own[key] for key, theirs in _SCALING.items() if key in own}
        rope = scaling if scaling.get("rope_type", "none") != "none" else {"rope_type": "default"}
        if own.get("attention.temperature_scale") and rope["rope_type"] != "yarn":
            raise ValueError(f"{prefix}attention.temperature_scale without YaRN is not supported")
        if rope["rope_type"] == "yarn":
            rope |= self.yarn
            if self.scales_scores:
                rope |= self._score_scale(own)
            elif ATTENTION in own or own.get(_MULTIPLIER):
                usual, divided = (yarn_magnitude(rope.get("factor", 1), x) for x in (1, own.get(_MULTIPLIER, 0)))
                beside = own.get(ATTENTION, 1)
                scale = beside * usual / divided
                rope["attention_factor"] = scale if beside == 1 else float(f"{scale:.7g}")  # it has 32 bits
        rope |= {"rope_theta": own["rope.freq_base"]} if "rope.freq_base" in own else {}
        rotated = None if "rope.dimension_count" in keys else own.get("rope.dimension_count", head)
        if rotated is not None:
            if not all(type(size) is int for size in (rotated, head)) or not 0 < rotated <= head:
                raise ValueError(f"{prefix}rope.dimension_count is {rotated}, and a head has {head} elements")
            rope["partial_rotary_factor"] = rotated / head
        local = own.get("rope.freq_base_swa", self.local_theta)
        if self.local_theta is None:
            settings["rope_parameters"] = rope
        else:
            local = {"rope_type": "default", "rope_theta": local or rope.get("rope_theta")}
            settings["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
        return settings | {name: value(own, shapes) for name, value in self.derived.items()}

    def metadata(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata that stand for the keys of a config.json in today's format. Of what they cannot hold there is
        nothing in them.

        Raises:
            ValueError: rotary positions of a kind that they have no word for.
        """
        keys = {**KEYS, **self.keys}
        own = {key: settings.get(theirs) for key, theirs in keys.items() if theirs not in (None, "layer_types")}
        own |= {key: default(settings) for key, default in self.defaults.items() if own.get(key) is None}
        own["vocab_size"], head = settings["vocab_size"], self.head_dim(own)
        for key in ("attention.key_length", "attention.value_length"):
            own[key] = head if own.get(key) is None else own[key]
        if (rope := settings.get("rope_parameters")) is not None:
            if self.local_theta is not None:
                local, rope = rope["sliding_attention"]["rope_theta"], rope["full_attention"]
                own |= {"rope.freq_base_swa": local} if self.local_theta else {}
            own["rope.freq_base"] = rope["rope_theta"]
            share = 1 if (kind := rope["rope_type"]) == "proportional" else rope.get("partial_rotary_factor", 1)
            own.setdefault("rope.dimension_count", int(head * share))
            if kind in _SCALED:
                own |= {key: rope.get(theirs) for key, theirs in _SCALING.items()}
                if (turns := (rope.get("beta_fast", 32), rope.get("beta_slow", 1))) != (32, 1):
                    raise ValueError(
                        f"YaRN between {turns} turns has no place in a GGUF file: its readers take (32, 1)"
                    )
                if self.scales_scores:
                    own |= self._multiplier(rope)
                elif (scale := _attention_scale(rope)) is not None:
                    own[ATTENTION] = scale / yarn_magnitude(rope["factor"], 1)
            elif kind not in ("default", *(() if self.scales_scores else _TENSORS)):
                raise ValueError(f"rotary positions of the kind {kind} have no place in a GGUF file")
        return {f"{self.architecture}.{key}": value for key, value in own.items() if value is not None}

    @staticmethod
    def _score_scale(own: Mapping[str, Any]) -> dict[str, float]:
        """What scales the scores of latent attention, from the metadata."""
        multiplier = own.get(_MULTIPLIER, 0)
        if own.get(ATTENTION, 1) != 1 or not multiplier > 0:
            raise ValueError(
                f"{_MULTIPLIER} is {multiplier} and {ATTENTION} {own.get(ATTENTION, 1)}: of latent attention only a "
                "multiplier above 0 is supported, and a factor of 1"
            )
        scale = float(f"{10 * multiplier:.7g}")  # it has 32 bits
        return {"mscale": scale, "mscale_all_dim": scale}

    @staticmethod
    def _multiplier(rope: Mapping[str, Any]) -> dict[str, float]:
        """What stands for the scale of the scores of latent attention, in the metadata."""
        both, scale = rope.get("mscale_all_dim"), rope.get("attention_factor")
        if rope["rope_type"] != "yarn" or not both or scale not in (None, 1) or both != rope.get("mscale"):
            raise ValueError(
                f"{rope['rope_type']} with {', '.join(f'{name}={x}' for name, x in rope.items())} has no place in a "
                "GGUF file: of latent attention its readers take YaRN whose mscale and mscale_all_dim are the same"
            )
        return {_MULTIPLIER: both / 10}

    def change(self, theirs: str) -> Change | None:
        """How the numbers of one of their tensors are changed. None: they are not."""
        return next((change for ending, change in self.changes if theirs.endswith(ending)), None)

    def fitting(self, tensors: Container[str]) -> "Gguf":
        """The layout with the names of a file with these tensors."""
        more = (names for tensor, names in self.names_with.items() if tensor in tensors)
        return dataclasses.replace(self, names=functools.reduce(operator.or_, more, dict(self.names)))

    def place(self, theirs: str) -> Place:
        """Where one of their tensors is among the usual ones. One that is not known keeps its name."""
        layer = re.match(r"blk\.(\d+)\.", theirs)
        number, starred = ("", theirs) if layer is None else (layer[1], f"blk.*.{theirs[layer.end() :]}")
        for parts, name, layout in self.rows:
            if starred in (names := list(_expand(parts))):
                place = Place(name=name, layout=layout, part=names.index(starred), parts=len(names))
                break
        else:
            stem, dot, end = starred.rpartition(".")
            stem = stem if dot else end
            if stem not in self.names:
                return Place(name=theirs)
            place = Place(name=self.names[stem] + (dot + end if dot else ""))
        return dataclasses.replace(place, name=place.name.replace("*", number, 1))

    def their_names(self, name: str) -> tuple[list[str], str | None]:
        """The tensors of a file that are the parts of one of the family's usual ones, and the layout from them to it.
        None of them: it has no place. Of experts, that of all."""
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
        starred = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        in_layer = lambda theirs: theirs.replace("*", numbers[0]) if numbers else theirs
        for parts, ours, layout in self.rows:
            if ours == starred:
                return [*map(in_layer, _expand(parts))], layout
        stem, _, end = starred.rpartition(".")
        names = itertools.chain(*(names.items() for names in (self.names, *self.names_with.values())))
        found = [in_layer(theirs) for theirs, ours in names if ours == stem]
        return [f"{theirs}.{end}" for theirs in found], None

    def sizes(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The sizes of the axes in `rows` that the metadata tell, by those after the architecture's name."""
        heads = own.get("attention.head_count")
        known = {"H": heads, "G": own.get("attention.head_count_kv", heads)}
        return known | {axis: size(own) for axis, size in self.axes.items()}

    @staticmethod
    def head_dim(own: Mapping[str, Any]) -> Any:
        """The size of a head, from the metadata after the architecture's name; None: they lack it."""
        if own.get("attention.key_length") is not None or not own.get("attention.head_count"):
            return own.get("attention.key_length")
        width, heads = own.get("embedding_length", 0), own["attention.head_count"]
        return width // heads if type(width) is type(heads) is int else None


def _attention_scale(rope: Mapping[str, Any]) -> float | None:
    """What YaRN multiplies queries and keys by, where it is not the usual number."""
    scales = [rope.get(name) for name in ("mscale", "mscale_all_dim")]
    if rope.get("attention_factor") is None and all(scales):
        return yarn_magnitude(rope["factor"], scales[0]) / yarn_magnitude(rope["factor"], scales[1])
    return rope.get("attention_factor")


def _expand(names: str) -> Iterator[str]:
    before, brace, rest = names.partition("{")
    inside, _, after = rest.partition("}")
    return (before + choice + after for choice in inside.split(",")) if brace else itertools.repeat(before, 1)
