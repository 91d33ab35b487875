"""How a published model is meant to write: generation_config.json to a sampling, and back."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from transformer_zoo.generation.beam import Beam
from transformer_zoo.generation.rules import Rules
from transformer_zoo.generation.sampling import Greedy, Sample

FILE = "generation_config.json"
# Where their name of a setting is not ours.
THEIRS = {
    "suppressed": "suppress_tokens",
    "forced_first": "forced_bos_token_id",
    "renormalize": "renormalize_logits",
}
# What other answers come of, and how a file says that it is not wanted.
UNREAD = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "typical_p": 1.0, "min_p": 0.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "begin_suppress_tokens": [], "sequence_bias": {}, "guidance_scale": 1.0,
    "exponential_decay_length_penalty": [],
}  # fmt: skip


def read(settings: Mapping[str, Any], config: Any, *, beside: bool) -> Rules:
    """The sampling that a generation_config.json asks for, or the config.json of a folder from before there was one.

    What it asks for and cannot have, a warning names.

    Args:
        config: the model's architecture.
        beside: whether it writes beside a source.
    """
    said = {name: value for name, value in settings.items() if value is not None}
    unread = {name: said[name] for name, neutral in UNREAD.items() if said.get(name, neutral) not in (neutral, 0)}
    banned = said.pop("bad_words_ids", [])
    unread |= {"bad_words_ids": banned} if any(len(words) > 1 for words in banned) else {}
    ids = [*said.get("suppress_tokens", []), *(words[0] for words in banned if len(words) == 1)]
    said["suppress_tokens"] = tuple(i for i in dict.fromkeys(ids) if i != config.eos_id)
    if minimum := said.get("min_length"):
        if beside:  # it counts the token that a target starts with
            said.setdefault("min_new_tokens", minimum - 1)
        else:
            unread["min_length"] = minimum
    kind = Beam if said.get("num_beams", 1) > 1 else Sample if said.get("do_sample") else Greedy
    if kind is Beam and said.get("do_sample"):
        unread["do_sample"] = True
    if kind is Sample:
        said["top_k"] = said.get("top_k", 50) or None  # what the reference takes if nothing is said; 0 is all
    if unread:
        asked = ", ".join(f"{name}={value}" for name, value in unread.items())
        warnings.warn(f"{FILE} asks for {asked}, which is not known here: what is written may differ", stacklevel=3)
    fields = {field.name: THEIRS.get(field.name, field.name) for field in dataclasses.fields(kind)}
    return kind(**{ours: said[theirs] for ours, theirs in fields.items() if theirs in said})


def write(sampling: Rules) -> dict[str, Any]:
    """The settings of a generation_config.json that asks for this sampling: those that are not as they are by default,
    and which of the ways it is."""
    default = type(sampling)()
    fields = {field.name: getattr(sampling, field.name) for field in dataclasses.fields(sampling)}
    settings = {THEIRS.get(name, name): x for name, x in fields.items() if x != getattr(default, name)}
    if isinstance(sampling, Beam):
        settings["num_beams"] = sampling.num_beams
    if isinstance(sampling, Sample):
        settings |= {"do_sample": True, "top_k": sampling.top_k or 0}
    return settings
