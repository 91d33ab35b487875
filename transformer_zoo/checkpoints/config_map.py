"""config.json and a family's Config, by the family's `HF_CONFIG`, `HF_DEFAULTS` and `HF_FIXED`.

An entry of `HF_CONFIG` is our field and what it is over there: their key; or their key and a mapping of their values to
ours; or their key and two functions, of their value with all their settings to ours, and of our value with all of the
Config back to theirs.
"""

import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer_zoo import registry, trees

CONFIG = "config.json"


def read_file(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder; the `model_type` is added where it is published without one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}, which says what model its weights belong to")
    try:
        settings = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not a JSON object but a {type(settings).__name__}")
    return settings if "model_type" in settings else settings | _unnamed(settings)


def _unnamed(settings: Mapping[str, Any]) -> dict[str, str]:
    """The `model_type` that the `architectures` stand for, if it may be left unsaid: one of a family's `HF_UNNAMED`."""
    for family in map(registry.family, registry.families()):
        for model_type in getattr(family, "HF_UNNAMED", ()):
            if settings.get("architectures") in [[name] for name in classes(family, model_type).values()]:
                return {"model_type": model_type}
    return {}


def read(family: ModuleType, settings: Mapping[str, Any], source: str = CONFIG) -> Any:
    """The family's Config from the keys of a config.json.

    Raises:
        ValueError: keys are missing, have values of a wrong type or that the family does not support, or contradict one
            another. One error lists them all.
    """
    hints = typing.get_type_hints(family.Config)
    values: dict[str, Any] = {}
    faults = []
    known = [key for key in settings if key not in family.HF_DEFAULTS]
    settings = {**family.HF_DEFAULTS, **settings}
    for ours, entry in family.HF_CONFIG.items():
        theirs, from_theirs, _ = _entry(entry)
        if theirs not in settings:
            faults.append(f"{theirs} is missing.{trees.nearest(theirs, known)}")
            continue
        try:
            values[ours] = from_theirs(settings[theirs], settings)
        except (TypeError, ValueError) as error:
            faults.append(f"{theirs} is {settings[theirs]!r}; {error}")
            continue
        if not _fits(values[ours], hints[ours]):
            faults.append(f"{theirs} is {settings[theirs]!r}, which is not {_described(hints[ours])}")
    if "labels" in hints:
        labels, fault = _labels(settings)
        values |= {} if labels is None else {"labels": labels}
        faults += [] if fault is None else [fault]
    for theirs, supported in family.HF_FIXED.items():
        if settings.get(theirs, supported) != supported:
            faults.append(f"{theirs} is {settings[theirs]!r}; only {supported!r} is supported")
    if faults:
        raise ValueError(f"{source} does not describe a {family.HF_MODEL_TYPE} that can be built: {'; '.join(faults)}")
    try:
        return family.Config(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def write(family: ModuleType, config: Any, task: str, dtype: str | None = None) -> dict[str, Any]:
    """The config.json that says of a model what it is and in which dtype its tensors are stored."""
    model_type = getattr(config, "model_type", family.HF_MODEL_TYPE)
    settings = {"architectures": [classes(family, model_type)[task]], "model_type": model_type}
    for ours, entry in family.HF_CONFIG.items():
        theirs, _, to_theirs = _entry(entry)
        settings[theirs] = to_theirs(getattr(config, ours), config)
    labels = getattr(config, "labels", None)
    if task in ("question-answering", "pretraining") and labels is not None and len(labels) != 2:
        labels = numbered(2)  # to the reference, the scores of a start and an end, or of two orders, are labels
    if labels is not None:
        settings["id2label"] = {str(i): label for i, label in enumerate(labels)}
        settings["label2id"] = {label: i for i, label in enumerate(labels)}
    return settings if dtype is None else {**settings, "dtype": dtype}


def classes(family: ModuleType, model_type: Any) -> dict[str, str]:
    """Their classes by our tasks: of a family that reads several model types, those of this one.

    `HF_ALIASES` are the model types besides `HF_MODEL_TYPE`, each with the first part of its classes' names; the Config
    then has a field `model_type`, so that what was read as one is written as one.
    """
    own = family.TASKS["base"].removesuffix("Model")
    prefix = getattr(family, "HF_ALIASES", {}).get(model_type, own)
    return {task: prefix + name.removeprefix(own) for task, name in family.TASKS.items()}


def saved_for(family: ModuleType, settings: Mapping[str, Any]) -> str | None:
    """The task that the first of the `architectures` of a config.json stands for, if it is one of the family's classes,
    or was: `HF_RENAMED` has what these were called before."""
    first = _architecture(settings)
    now = getattr(family, "HF_RENAMED", {}).get(first, first)
    return next((task for task, name in classes(family, settings.get("model_type")).items() if name == now), None)


def task_of(family: ModuleType, settings: Mapping[str, Any], source: str = CONFIG) -> str:
    """The task that a config.json says its weights are for.

    Raises:
        ValueError: it names no class, or none that a task of the family has.
    """
    if (task := saved_for(family, settings)) is not None:
        return task
    first = _architecture(settings)
    says = "names no architectures" if first is None else f"names the architecture {first!r}"
    known = ", ".join(f"{task} ({name})" for task, name in classes(family, settings.get("model_type")).items())
    raise ValueError(f"{source} {says}: give the task. Those of {family.HF_MODEL_TYPE} are {known}")


def _architecture(settings: Mapping[str, Any]) -> str | None:
    named = settings.get("architectures") or [None]
    first = named[0] if isinstance(named, list) else named
    return first if first is None else str(first)


def _labels(settings: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, str | None]:
    """The names of the classes by their numbers, where a config.json speaks of them; or what is wrong with them."""
    names, count = settings.get("id2label"), settings.get("num_labels")
    if names is None:
        return (None if count is None else numbered(count)), None
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        return None, f"id2label is {names!r}, which does not number its labels from 0"
    by_number = {int(i): str(label) for i, label in names.items()}
    return tuple(by_number[i] for i in range(len(by_number))), None


def numbered(count: int) -> tuple[str, ...]:
    """The labels of classes that have no names."""
    return tuple(f"LABEL_{i}" for i in range(count))


def _entry(entry: Any) -> tuple[str, Callable[[Any, Mapping[str, Any]], Any], Callable[[Any, Any], Any]]:
    """A value of `HF_CONFIG`, whatever its form: their key, their value to ours, our value to theirs."""
    match entry:
        case (theirs, from_theirs, to_theirs):
            return theirs, from_theirs, to_theirs
        case (theirs, renamed):
            return theirs, functools.partial(_renamed, renamed), functools.partial(_named, renamed)
        case theirs:
            return theirs, lambda value, settings: value, lambda value, config: value


def _renamed(renamed: Mapping[Any, Any], value: Any, settings: Mapping[str, Any]) -> Any:
    if value not in list(renamed):  # not in the mapping itself: JSON's values may have no hash
        raise ValueError(f"known are {', '.join(map(repr, renamed))}")
    return renamed[value]


def _named(renamed: Mapping[Any, Any], value: Any, config: Any) -> Any:
    return next(theirs for theirs, ours in renamed.items() if ours == value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON's value is of a field's type; a whole number is a float, but True is no number."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return type(value) in choices or (type(value) is int and float in choices)


def _described(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))
