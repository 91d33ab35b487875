"""Reads and writes config.json, by the keys in the family's `PUBLISHED.config` (`published/spec.py`)."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer_zoo import registry, trees
from transformer_zoo.nn.tasks import TASKS

CONFIG = "config.json"


def read_file(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder; the `model_type` is added where it is published without one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}, which describes the model of its weights")
    try:
        settings = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} is not a JSON object but a {type(settings).__name__}")
    return settings if "model_type" in settings else settings | _unnamed(settings)


def _unnamed(settings: Mapping[str, Any]) -> dict[str, str]:
    """The `model_type` that the `architectures` identify, for types in a family's `PUBLISHED.unnamed`."""
    for family in map(registry.family, registry.families()):
        for model_type in family.PUBLISHED.unnamed:
            if settings.get("architectures") in [[name] for name in family.PUBLISHED.class_names(model_type).values()]:
                return {"model_type": model_type}
    return {}


def read(family: ModuleType, settings: Mapping[str, Any], source: str = CONFIG) -> Any:
    """The family's Config from the keys of a config.json.

    Raises:
        ValueError: keys are missing, have values of a wrong type or that the family does not support, or contradict one
            another. One error lists them all.
    """
    spec, hints = family.PUBLISHED, typing.get_type_hints(family.Config)
    values: dict[str, Any] = {}
    faults = []
    defaults = spec.key_defaults
    known = [key for key in settings if key not in defaults]
    settings = {**defaults, **settings}
    for ours, key in spec.config.items():
        if key.name not in settings:
            faults.append(f"{key.name} is missing.{trees.nearest(key.name, known)}")
            continue
        try:
            values[ours] = key.read(settings[key.name], settings)
        except (TypeError, ValueError) as error:
            faults.append(f"{key.name} is {settings[key.name]!r}; {error}")
            continue
        if not _fits(values[ours], hints[ours]):
            faults.append(f"{key.name} is {settings[key.name]!r}, which is not {_described(hints[ours])}")
    if "labels" in hints:
        values["labels"], fault = _labels(settings, spec.num_labels)
        faults += [] if fault is None else [fault]
    for theirs, supported in spec.fixed.items():
        if settings.get(theirs, supported) != supported:
            faults.append(f"{theirs} is {settings[theirs]!r}; only {supported!r} is supported")
    if faults:
        raise ValueError(f"{source} does not describe a {spec.model_type} that can be built: {'; '.join(faults)}")
    try:
        return family.Config(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def write(family: ModuleType, config: Any, task: str, dtype: str | None = None) -> dict[str, Any]:
    """The config.json of a model for a task, with tensors of this dtype."""
    spec = family.PUBLISHED
    model_type = config.model_type if spec.aliases else spec.model_type
    settings = {"architectures": [spec.class_names(model_type)[task]], "model_type": model_type}
    for field in dataclasses.fields(config):
        if (key := spec.config.get(field.name)) is not None:
            settings[key.name] = key.write(getattr(config, field.name), config)
    labels = getattr(config, "labels", None)
    if labels is not None and TASKS[task].scores_as_labels and len(labels) != TASKS[task].scores:
        labels = numbered(TASKS[task].scores)
    if labels is not None:
        settings["id2label"] = {str(i): label for i, label in enumerate(labels)}
        settings["label2id"] = {label: i for i, label in enumerate(labels)}
    return settings if dtype is None else {**settings, "dtype": dtype}


def saved_for(family: ModuleType, settings: Mapping[str, Any]) -> str | None:
    """The task that the first of the `architectures` of a config.json stands for, if it is one of the family's classes,
    by today's name or an old one."""
    first, spec = _architecture(settings), family.PUBLISHED
    now = spec.renamed_classes.get(first, first)
    return next((task for task, name in spec.class_names(settings.get("model_type")).items() if name == now), None)


def task_of(family: ModuleType, settings: Mapping[str, Any], source: str = CONFIG) -> str:
    """The task of the weights by their config.json.

    Raises:
        ValueError: it names no class, or none of the family's.
    """
    if (task := saved_for(family, settings)) is not None:
        return task
    first = _architecture(settings)
    fault = "names no architectures" if first is None else f"names the architecture {first!r}"
    spec = family.PUBLISHED
    known = ", ".join(f"{task} ({name})" for task, name in spec.class_names(settings.get("model_type")).items())
    raise ValueError(f"{source} {fault}: give the task. Those of {spec.model_type} are {known}")


def _architecture(settings: Mapping[str, Any]) -> str | None:
    named = settings.get("architectures") or [None]
    first = named[0] if isinstance(named, list) else named
    return first if first is None else str(first)


def _labels(settings: Mapping[str, Any], default: int) -> tuple[tuple[str, ...], str | None]:
    """The names of the classes in order, and the fault if there is one."""
    names, count = settings.get("id2label"), settings.get("num_labels")
    if names is None:
        return numbered(default if count is None else count), None
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        return (), f"id2label is {names!r}, which does not number its labels from 0"
    by_number = {int(i): str(label) for i, label in names.items()}
    return tuple(by_number[i] for i in range(len(by_number))), None


def numbered(count: int) -> tuple[str, ...]:
    """The labels of classes that have no names."""
    return tuple(f"LABEL_{i}" for i in range(count))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of a field's type. A whole number is also a float; True is no number."""
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)  # the Config checks which
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return type(value) in choices or (type(value) is int and float in choices)


def _described(hint: Any) -> str:
    return "str" if typing.get_origin(hint) is typing.Literal else getattr(hint, "__name__", str(hint))
