"""generation_config.json, read as a strategy and token ids, and written back."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformer_zoo import json_files, registry
from transformer_zoo.generation import strategies, token_ids
from transformer_zoo.generation.sampling import Greedy
from transformer_zoo.generation.strategy import Strategy
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.json_files import excerpt

FILE = "generation_config.json"
# Keys that no strategy has and that leave the tokens as they are: of other libraries' caches, outputs and speed.
WITHOUT_EFFECT = {
    "transformers_version", "_from_model_config", "_commit_hash", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "return_dict_in_generate", "output_scores", "output_logits", "output_attentions",
    "output_hidden_states", "compile_config", "disable_compile", "low_memory", "prefill_chunk_size", "is_assistant",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind",
    "target_lookbehind", "assistant_early_exit", "prompt_lookup_num_tokens", "max_matching_ngram_size",
    "remove_invalid_values", "renormalize_logits",
}  # fmt: skip
# Keys that change the tokens and that no strategy has, with the values that change nothing.
UNSUPPORTED = {
    "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0, "guidance_scale": 1.0, "token_healing": False,
    "exponential_decay_length_penalty": None, "force_words_ids": None, "constraints": None,
    "top_h": None, "watermarking_config": None, "max_time": None, "dola_layers": None,
}  # fmt: skip
_KINDS = {
    "num_beams": int, "do_sample": bool, "temperature": float, "top_k": int, "top_p": float, "min_p": float,
    "typical_p": float, "epsilon_cutoff": float, "eta_cutoff": float, "num_return_sequences": int,
    "length_penalty": float, "early_stopping": (bool, str), "renormalize_logits": bool, "max_new_tokens": int,
    "max_length": int, "min_new_tokens": int, "min_length": int, "no_repeat_ngram_size": int,
    "encoder_no_repeat_ngram_size": int, "repetition_penalty": float, "encoder_repetition_penalty": float,
    "suppress_tokens": list, "begin_suppress_tokens": list, "bad_words_ids": list, "sequence_bias": list,
    "stop_strings": (str, list),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refused(Strategy):
    """The strategy of a generation_config.json that asks for what cannot be: the model loads, and generates only with
    settings of the call."""

    fault: str = ""

    def check(self, config: Any) -> None:
        """Raises ValueError: the fault."""
        raise ValueError(f"{self.fault}: ask for another strategy, such as temperature=0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """How a checkpoint generates."""

    sampling: Strategy
    token_ids: TokenIds
    settings: Mapping[str, Any]
    """The generation_config.json that both were read from."""


def load(folder: Path, settings: Mapping[str, Any], config: Any) -> Generation:
    """How a checkpoint generates: by its generation_config.json or, in older folders, by its config.json.

    As in the reference, nothing of config.json counts beside a generation_config.json: without `eos_token_id` in it no
    token ends a text. A warning says so; another names what is not supported, or why the settings are refused.

    Args:
        settings: the keys of config.json.
        config: the model's architecture.

    Raises:
        ValueError: the file is not a JSON object.
    """
    own, file = TokenIds.of_config(config), folder / FILE
    if file.is_file():
        source, base, settings = str(file), TokenIds(), json_files.read(file)
        if own.eos and "eos_token_id" not in settings:
            ends = ", ".join(map(str, own.eos))
            warnings.warn(
                f"{source} has no eos_token_id, so no token ends a text: config.json's, {ends}, does not count. Add it "
                f"to the file, or pass stop={[*own.eos]}",
                stacklevel=4,
            )
    else:
        known = {*_settings(), *UNSUPPORTED, *token_ids.KEYS}
        source, base = str(folder / "config.json"), own
        settings = {name: value for name, value in settings.items() if name in known and value is not None}
    try:
        ids = _token_ids(settings, base, own, config, source)
        return Generation(sampling=read(settings, config, source), token_ids=ids, settings=settings)
    except ValueError as error:
        warnings.warn(f"{error}: `generate` will need a strategy of its own", stacklevel=4)
        return Generation(sampling=Refused(fault=str(error)), token_ids=own, settings=settings)


def config_ids(settings: Mapping[str, Any], config: Any) -> TokenIds:
    """The token ids of a config.json, over those of the Config. A warning names what is no token id."""
    own = TokenIds.of_config(config)
    try:
        return TokenIds.read({key: settings[key] for key in token_ids.KEYS if settings.get(key) is not None}, own)
    except ValueError as error:
        warnings.warn(
            f"config.json: {excerpt(error, 300)}: the token ids that the model lacks are left out", stacklevel=4
        )
        return own


def read(settings: Mapping[str, Any], config: Any, source: str = FILE) -> Strategy:
    """The strategy of a generation_config.json. A warning names the settings that are not supported.

    Args:
        config: the model's architecture.
        source: what messages call the file.

    Raises:
        ValueError: a setting of another type, or out of its range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    json_files.check(given, _KINDS, source)
    known = {*_settings(), *UNSUPPORTED, *WITHOUT_EFFECT, *token_ids.KEYS}
    ignored = {name: x for name, x in given.items() if name not in known}
    ignored |= {
        name: given[name] for name, neutral in UNSUPPORTED.items() if given.get(name) and given[name] != neutral
    }
    given.pop("forced_bos_token_id", None)  # one of the token ids
    if "min_new_tokens" in given:
        given.pop("min_length", None)
    for name in {"suppress_tokens", "begin_suppress_tokens"} & given.keys():  # others are never generated
        given[name] = [i for i in given[name] if not (isinstance(i, int) and i >= config.vocab_size)]
    kind = strategies.asked_for(given)
    others = {k.switch[0]: k for k in strategies.STRATEGIES if k.switch[0] not in kind.published_names()}
    ignored |= {key: given[key] for key, other in others.items() if other is not kind and other.is_asked_for(given)}
    for name, neutral in (("num_return_sequences", 1), ("stop_strings", [])):
        if given.get(name, neutral) != neutral and name not in kind.published_names():
            ignored[name] = given[name]
    if ignored:
        names = ", ".join(f"{name}={excerpt(value)}" for name, value in ignored.items())
        warnings.warn(
            f"{source} has {excerpt(names, 600)}, which is not supported: the generated text may differ", stacklevel=5
        )
    try:
        return kind.from_settings(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {excerpt(error, 300)}") from error


def build(m: Any, settings: Mapping[str, Any], *, spell: Callable[[str], str] = str) -> Strategy:
    """`strategies.build` over the strategy of a `Bundle`, and the generation_config.json that it was read from."""
    read = m.generation
    kept = read is not None and read.sampling == m.sampling and not isinstance(m.sampling, Refused)
    return strategies.build(settings, m.sampling, file=read.settings if kept else {}, spell=spell)


def write(strategy: Strategy, token_ids: TokenIds | None = None) -> dict[str, Any]:
    """The settings of a generation_config.json that asks for this strategy, with these token ids."""
    settings = {name: _as_json(value) for name, value in strategy.to_settings().items()}
    return settings if token_ids is None else token_ids.write() | settings


def _as_json(value: Any) -> Any:
    return [*map(_as_json, value)] if isinstance(value, tuple) else value


def _token_ids(settings: Mapping[str, Any], base: TokenIds, own: TokenIds, config: Any, source: str) -> TokenIds:
    """The token ids of a generation_config.json. An encoder-decoder without a start token starts with `bos`."""
    try:
        ids = TokenIds.read(settings, base)
    except ValueError as error:
        raise ValueError(f"{source}: {excerpt(error, 300)}") from error
    if not registry.is_encoder_decoder(config):
        return dataclasses.replace(ids, decoder_start=None)
    starts = (ids.decoder_start, ids.bos, own.decoder_start)
    return dataclasses.replace(ids, decoder_start=next((i for i in starts if i is not None), None))


def _settings() -> set[str]:
    """The keys of all strategies."""
    kinds = (*strategies.STRATEGIES, Greedy)
    return {key for kind in kinds for key in (kind.switch[0], *kind.published_names().values())}
