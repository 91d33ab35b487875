"""The keys of config.json that describe rotary positions."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo.published import layer_types
from transformer_zoo.published.spec import REQUIRED, Key

# Key -> field, of each kind: those that must be there, and others.
_REQUIRED = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {"factor": "factor", "low_freq_factor": "slow_turns", "high_freq_factor": "fast_turns"},
    "yarn": {},
    "longrope": {"short_factor": "short_factors", "long_factor": "long_factors"},
    "proportional": {},
}
_OTHERS = {
    "yarn": {
        "factor": "factor", "beta_slow": "slow_turns", "beta_fast": "fast_turns", "truncate": "whole_pairs",
        "attention_factor": "attention_factor", "llama_4_scaling_beta": "query_growth", "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
    },
    "longrope": {"factor": "factor", "attention_factor": "attention_factor"},
    "proportional": {"factor": "factor"},
}  # fmt: skip
_DEFAULTS = {"beta_slow": 1.0, "beta_fast": 32.0, "truncate": True}
_ORIGINAL = "original_max_position_embeddings"
# Old keys beside `rope_parameters`, which replaced them.
DEFAULTS = {"rope_theta": None, "rope_scaling": None, "partial_rotary_factor": None, _ORIGINAL: None}


def keys(
    rope: Callable[..., Any],
    theta: float = 10000.0,
    longest: int | None = None,
    local_theta: float | None = None,
    local_name: str = "rope_local_base_freq",
    share: float = 1.0,
    old_names: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
) -> dict[str, Key]:
    """The keys of the fields `rope` and `max_length`. `DEFAULTS` belongs to them.

    With `local_theta`, layers with a window have default positions with a theta of their own, which is the field of
    that name; `rope` is then that of the layers without one.

    Args:
        rope: makes a description of rotary positions from its fields.
        theta: that of a config.json without one.
        longest: the length of a config.json without one. None: it must have one.
        local_theta: that of a config.json without one. None: all layers have the same positions.
        local_name: its key beside `rope_parameters`.
        share: `partial_rotary_factor` of a config.json without one.
        old_names: of theta and of the share, beside `rope_parameters`.
    """
    by_kind = local_theta is not None

    def given(settings: Mapping[str, Any]) -> dict[str, Any]:
        value = settings["rope_parameters"] or {}
        if by_kind:
            if unknown := [name for name in value if name not in layer_types.KINDS]:
                raise ValueError(f"{unknown[0]} is no kind of layers: known are {' and '.join(layer_types.KINDS)}")
            value = value.get("full_attention")
        return _given(value, settings, old_names)

    def read(value: Any, settings: Mapping[str, Any]) -> Any:
        return rope(**_fields(given(settings), settings, theta, share))

    def write(value: Any, config: Any) -> dict[str, Any]:
        if not by_kind:
            return _written(value, share)
        local = {"rope_type": "default", "rope_theta": config.local_theta}
        return {"full_attention": _written(value, share), "sliding_attention": local}

    def read_length(value: Any, settings: Mapping[str, Any]) -> Any:
        """Of dynamic positions, config.json has the original length, beyond which they reach by the factor."""
        kind = given(settings)
        return int(value * kind["factor"]) if kind["rope_type"] == "dynamic" else value

    found = {
        "max_length": Key(
            "max_position_embeddings", REQUIRED if longest is None else longest, read_length, _write_length
        ),
        "rope": Key("rope_parameters", None, read, write),
    }
    if by_kind:
        local = functools.partial(default_theta, "sliding_attention")
        found["local_theta"] = Key(local_name, local_theta, local)
    return found


def default_theta(kind: str, theta: float, settings: Mapping[str, Any]) -> float:
    """That of the layers of a kind, which have default positions: from the number, or from today's settings, which take
    precedence.

    Raises:
        ValueError: they have others.
    """
    given = {"rope_type": "default"} | ((settings["rope_parameters"] or {}).get(kind) or {})
    theta = given.pop("rope_theta", theta)
    if given != {"rope_type": "default"}:
        raise ValueError(f"rope_parameters of {kind} are {given}: only the default rope_type is supported")
    return theta


def _given(value: Any, settings: Mapping[str, Any], old_names: tuple[str, str]) -> dict[str, Any]:
    """The settings of either format, in today's."""
    given = {**(value or settings["rope_scaling"] or {})}
    kind = given.pop("type", "default")
    given.setdefault("rope_type", "longrope" if kind == "su" else kind)  # its first name
    for name, old in zip(("rope_theta", "partial_rotary_factor"), old_names):
        if settings.get(old) is not None:
            given.setdefault(name, settings[old])
    return given


def _fields(given: dict[str, Any], settings: Mapping[str, Any], theta: float, share: float) -> dict[str, Any]:
    """The fields of a `Rope`.

    Raises:
        ValueError: an unknown kind or key, or one that is missing.
    """
    kind = given.pop("rope_type")
    if kind not in list(_REQUIRED):
        raise ValueError(f"rope_type {kind!r} is not known: only {', '.join(_REQUIRED)} are")
    fields = {"kind": kind, "theta": given.pop("rope_theta", theta), "share": given.pop("partial_rotary_factor", share)}
    original = given.pop(_ORIGINAL, None)
    longest = settings["max_position_embeddings"]
    if given.get("max_position_embeddings") == longest:
        given.pop("max_position_embeddings")  # it is there twice
    if kind in ("llama3", "yarn", "longrope"):
        fields["original_length"] = settings[_ORIGINAL] or original or longest
        if kind != "llama3":
            given["factor"] = given.get("factor") or longest / fields["original_length"]
    names = _REQUIRED[kind] | _OTHERS.get(kind, {})
    if missing := [name for name in _REQUIRED[kind] if given.get(name) is None]:
        raise ValueError(f"rope_type {kind!r} needs {' and '.join(missing)}")
    if unknown := [name for name in given if name not in names]:
        known = ", ".join(names) or "rope_theta"
        raise ValueError(f"rope_type {kind!r} has no {' and no '.join(unknown)}, only {known}")
    for name, field in names.items():
        value = given.get(name)
        value = _DEFAULTS.get(name) if value is None else value
        fields[field] = tuple(map(float, value)) if isinstance(value, list) else value
    return {name: value for name, value in fields.items() if value is not None}


def _written(rope: Any, share: float) -> dict[str, Any]:
    """A `Rope`, for readers who take a missing share for this one."""
    written = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if not rope.share == share == 1:
        written["partial_rotary_factor"] = rope.share
    if rope.original_length is not None:
        written[_ORIGINAL] = rope.original_length
    for name, field in (_REQUIRED[rope.kind] | _OTHERS.get(rope.kind, {})).items():
        if (value := getattr(rope, field)) is not None:
            written[name] = list(value) if isinstance(value, tuple) else value
    return written


def _write_length(length: int, config: Any) -> int:
    return int(length / config.rope.factor) if config.rope.kind == "dynamic" else length
