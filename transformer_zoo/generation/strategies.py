"""The table of decoding strategies, and the strategy that settings by name ask for.

A new strategy is a subclass of `Strategy` in a file of its own, and an entry here.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo import trees
from transformer_zoo.generation.beam import Beam
from transformer_zoo.generation.sampling import Greedy, Sample
from transformer_zoo.generation.strategy import Strategy

STRATEGIES: tuple[type[Strategy], ...] = (Beam, Sample)  # the first that is asked for; if none is, `Greedy`


def asked_for(settings: Mapping[str, Any]) -> type[Strategy]:
    """The strategy that settings ask for, by the keys of generation_config.json."""
    return next((kind for kind in STRATEGIES if kind.is_asked_for(settings)), Greedy)


def build(
    settings: Mapping[str, Any],
    base: Strategy | None = None,
    *,
    file: Mapping[str, Any] = types.MappingProxyType({}),
    spell: Callable[[str], str] = str,
) -> Strategy:
    """The strategy that settings by name ask for, such as {"temperature": 0.8} or {"num_beams": 4}.

    They mean what they mean in transformers, but a temperature asks for sampling. So sampling without `top_k` is among
    the 50 most probable tokens; settings of other strategies are taken if they change nothing, such as top_p=1.0, and
    refused otherwise.

    Args:
        settings: by our names or those of generation_config.json. temperature=0 is greedy decoding. None is a
            setting's default.
        base: gives all other settings that the strategy has, and the strategy itself if the settings ask for none.
            None: greedy decoding.
        file: the settings of the generation_config.json that the base was read from: those that the base lacks, the
            strategy takes from here.
        spell: how the user spells a setting, for messages.

    Raises:
        TypeError: a setting that no strategy has.
        ValueError: settings of two strategies, or of one that is not asked for; a setting out of its range.
    """
    base = Greedy() if base is None else base
    names = _names(base)
    for name in settings:
        if name not in names:
            raise TypeError(f"there is no setting {spell(name)}.{trees.nearest(name, names)}")
    asked = _with_temperature({names[name]: value for name, value in settings.items()}, spell)
    switches = dict(kind.switch for kind in STRATEGIES)
    for name in [name for name, off in switches.items() if off is False and name in asked]:
        if asked[name] not in (True, False, None):
            raise ValueError(f"{spell(name)}={asked[name]!r} must be True or False")
    kind = asked_for(asked)
    if kind is Greedy:  # nothing is asked for: the base's own strategy, unless the settings switch it off
        kind = asked_for(base.to_settings() | asked) if switches.keys() & asked else type(base)
    other = [name for name in asked if name not in kind.published_names()]
    if wrong := [name for name in other if name != kind.switch[0] and not _is_neutral(name, asked)]:
        owners = [k for k in STRATEGIES if wrong[0] in (*k.published_names(), k.switch[0])]
        owned = " and ".join(k.__name__ for k in owners)
        if kind.is_asked_for(asked):
            raise ValueError(
                f"{spell(kind.example[0])} is a setting of {kind.__name__}, and {spell(wrong[0])} of {owned}: "
                "give the settings of one of them"
            )
        ways = ", or ".join(f"{spell(name)} as well, such as {value}" for name, value in (k.example for k in owners))
        raise ValueError(f"{spell(wrong[0])} is a setting of {owned}: give {ways}")
    # What is asked for overrides what is not; and a number of new tokens, 0 too, one that counts the prompt.
    overridden = {}
    for bound in ("max", "min"):
        new, length = f"{bound}_new_tokens", f"{bound}_length"
        if asked.get(new) is not None:
            overridden[length] = None
        elif asked.get(length) is not None:
            overridden[new] = None
    own = {ours: key for ours, key in kind.published_names().items() if not hasattr(base, ours)}
    lacking = kind.assumed | {ours: file[key] for ours, key in own.items() if file.get(key) is not None}
    given = {name: value for name, value in asked.items() if name not in other}
    return kind.from_strategy(base, **({} if type(base) is kind else lacking) | given | overridden)


def _is_neutral(name: str, asked: Mapping[str, Any]) -> bool:
    """Whether a setting of strategies that settings do not ask for changes nothing. What the strategies assume is
    taken too where the settings name a strategy or switch one off."""
    switches = dict(kind.switch for kind in STRATEGIES)
    if name in switches:
        return asked[name] in (None, switches[name])
    owners = [kind for kind in STRATEGIES if name in kind.published_names()]
    named = bool(switches.keys() & asked)
    return any(kind.is_neutral(name, asked[name]) or named and asked[name] == kind.assumed.get(name) for kind in owners)


def _with_temperature(settings: dict[str, Any], spell: Callable[[str], str]) -> dict[str, Any]:
    """A temperature asks for sampling, save a neutral one beside another strategy's settings; a temperature of 0
    switches all strategies but the greedy one off."""
    switches = dict(kind.switch for kind in STRATEGIES)
    if (temperature := settings.get("temperature")) is None:
        return settings
    if temperature == 1 and switches.keys() & settings:
        return settings
    if settings.get("do_sample", temperature != 0) != (temperature != 0):
        raise ValueError(
            f"{spell('temperature')}={temperature} and {spell('do_sample')}={settings['do_sample']} contradict one "
            "another: give one of them"
        )
    if temperature != 0:
        return settings | {"do_sample": True}
    return switches | {n: x for n, x in settings.items() if n != "temperature"}


def _names(base: Strategy) -> dict[str, str]:
    """Our name of each setting that a user may name, by that and by its key in generation_config.json."""
    names = {key: key for key, _ in (kind.switch for kind in STRATEGIES)}
    for kind in (*STRATEGIES, type(base)):
        for ours, theirs in kind.published_names().items():
            names |= {ours: ours, theirs: ours}
    return names
