"""The table of decoding strategies, and the strategy that settings by name ask for.

A new strategy is a subclass of `Strategy` in a file of its own, and an entry here.
"""

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


def build(settings: Mapping[str, Any], base: Strategy | None = None, *, spell: Callable[[str], str] = str) -> Strategy:
    """The strategy that settings by name ask for, such as {"temperature": 0.8} or {"num_beams": 4}.

    Args:
        settings: by our names or those of generation_config.json. temperature=0 is greedy decoding. None is a
            setting's default.
        base: gives all other settings that the strategy has, and the strategy itself if the settings ask for none.
            None: greedy decoding.
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
    kind = asked_for(asked)
    if kind is Greedy:  # nothing is asked for: the base's own strategy, unless the settings switch it off
        kind = asked_for(base.to_settings() | asked) if switches.keys() & asked else type(base)
    other = [name for name in asked if name not in kind.published_names()]
    switched_off = lambda name: asked[name] is None or (name in switches and asked[name] == switches[name])
    if wrong := [name for name in other if name != kind.switch[0] and not switched_off(name)]:
        owner = next(k for k in STRATEGIES if wrong[0] in (*k.published_names(), k.switch[0]))
        (ours, _), (theirs, value) = kind.example, owner.example
        if kind.is_asked_for(asked):
            raise ValueError(
                f"{spell(ours)} is a setting of {kind.__name__}, and {spell(wrong[0])} of {owner.__name__}: "
                "give the settings of one of them"
            )
        raise ValueError(
            f"{spell(wrong[0])} is a setting of {owner.__name__}: give {spell(theirs)} as well, such as {value}"
        )
    return kind.from_strategy(base, **{name: value for name, value in asked.items() if name not in other})


def _with_temperature(settings: dict[str, Any], spell: Callable[[str], str]) -> dict[str, Any]:
    """A temperature asks for sampling; a temperature of 0 switches all strategies but the greedy one off."""
    if (temperature := settings.get("temperature")) is None:
        return settings
    if settings.get("do_sample", temperature != 0) != (temperature != 0):
        raise ValueError(
            f"{spell('temperature')}={temperature} and {spell('do_sample')}={settings['do_sample']} contradict one "
            "another: give one of them"
        )
    if temperature != 0:
        return settings | {"do_sample": True}
    return dict(kind.switch for kind in STRATEGIES) | {n: x for n, x in settings.items() if n != "temperature"}


def _names(base: Strategy) -> dict[str, str]:
    """Our name of each setting that a user may name, by that and by its key in generation_config.json."""
    names = {key: key for key, _ in (kind.switch for kind in STRATEGIES)}
    for kind in (*STRATEGIES, type(base)):
        for ours, theirs in kind.published_names().items():
            names |= {ours: ours, theirs: ours}
    return names
