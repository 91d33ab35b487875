"""generation_config.json, read as a strategy and written back."""

import warnings
from collections.abc import Mapping
from typing import Any

from transformer_zoo import registry
from transformer_zoo.generation import strategies
from transformer_zoo.generation.strategy import Strategy

FILE = "generation_config.json"
# Keys that change the tokens and that no strategy has, with the values that change nothing.
UNSUPPORTED = {
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "num_beam_groups": 1,
    "diversity_penalty": 0.0, "penalty_alpha": 0.0, "typical_p": 1.0, "min_p": 0.0, "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0, "begin_suppress_tokens": [], "sequence_bias": {}, "guidance_scale": 1.0,
    "exponential_decay_length_penalty": [],
}  # fmt: skip


def read(settings: Mapping[str, Any], config: Any) -> Strategy:
    """The strategy of a generation_config.json, or of the config.json of a folder older than that file.

    A warning names the settings that are not supported.

    Args:
        config: the model's architecture.

    Raises:
        ValueError: a setting out of its range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    ignored = {
        name: given[name] for name, neutral in UNSUPPORTED.items() if given.get(name, neutral) not in (neutral, 0)
    }
    banned = given.pop("bad_words_ids", [])
    ignored |= {"bad_words_ids": banned} if any(len(words) > 1 for words in banned) else {}
    ids = [*given.get("suppress_tokens", []), *(words[0] for words in banned if len(words) == 1)]
    given["suppress_tokens"] = tuple(i for i in dict.fromkeys(ids) if i != config.eos_id)
    if minimum := given.get("min_length"):
        if registry.is_encoder_decoder(config):  # it counts the start token
            given.setdefault("min_new_tokens", minimum - 1)
        else:
            ignored["min_length"] = minimum
    kind = strategies.asked_for(given)
    others = {k.switch[0]: k for k in strategies.STRATEGIES if k.switch[0] not in kind.published_names()}
    ignored |= {key: given[key] for key, other in others.items() if other is not kind and other.is_asked_for(given)}
    if ignored:
        names = ", ".join(f"{name}={value}" for name, value in ignored.items())
        warnings.warn(f"{FILE} has {names}, which is not supported: the generated text may differ", stacklevel=3)
    return kind.from_settings(given)


def write(strategy: Strategy) -> dict[str, Any]:
    """The settings of a generation_config.json that asks for this strategy."""
    return strategy.to_settings()
