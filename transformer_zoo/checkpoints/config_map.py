"""config.json and a family's Config, by the family's `HF_CONFIG`, `HF_DEFAULTS` and `HF_FIXED`."""

import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer_zoo import trees

CONFIG = "config.json"


def read_file(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder.

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
    return settings


def read(family: ModuleType, settings: Mapping[str, Any], source: str = CONFIG) -> Any:
    """The family's Config from the keys of a config.json.

    Raises:
        ValueError: keys are missing, have values of a wrong type or that the family does not support, or contradict one
            another. One error lists them all.
    """
    hints = typing.get_type_hints(family.Config)
    values: dict[str, Any] = {}
    faults = []
    for ours, entry in family.HF_CONFIG.items():
        theirs, renamed = _entry(entry)
        if theirs not in settings and theirs not in family.HF_DEFAULTS:
            known = [key for key in settings if key not in family.HF_DEFAULTS]
            faults.append(f"{theirs} is missing.{trees.nearest(theirs, known)}")
            continue
        value = settings.get(theirs, family.HF_DEFAULTS.get(theirs))
        if renamed is not None and value not in list(renamed):
            faults.append(f"{theirs} is {value!r}; known are {', '.join(map(repr, renamed))}")
        elif renamed is not None:
            values[ours] = renamed[value]
        elif not _fits(value, hints[ours]):
            faults.append(f"{theirs} is {value!r}, which is not {_described(hints[ours])}")
        else:
            values[ours] = value
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
    settings = {"architectures": [family.TASKS[task]], "model_type": family.HF_MODEL_TYPE}
    for ours, entry in family.HF_CONFIG.items():
        theirs, renamed = _entry(entry)
        value = getattr(config, ours)
        settings[theirs] = value if renamed is None else next(key for key, own in renamed.items() if own == value)
    labels = getattr(config, "labels", None)
    if task == "question-answering" and labels is not None and len(labels) != 2:
        labels = numbered(2)  # to the reference, the scores of a start and an end are labels
    if labels is not None:
        settings["id2label"] = {str(i): label for i, label in enumerate(labels)}
        settings["label2id"] = {label: i for i, label in enumerate(labels)}
    return settings if dtype is None else {**settings, "dtype": dtype}


def task_of(family: ModuleType, settings: Mapping[str, Any], source: str = CONFIG) -> str:
    """The task that the first of the `architectures` of a config.json stands for.

    Raises:
        ValueError: there is none, or no task of the family has this class.
    """
    classes = settings.get("architectures") or [None]
    tasks = {name: task for task, name in family.TASKS.items()}
    first = classes[0] if isinstance(classes, list) else classes
    if first not in list(tasks):
        says = "names no architectures" if first is None else f"names the architecture {first!r}"
        known = ", ".join(f"{task} ({name})" for name, task in tasks.items())
        raise ValueError(f"{source} {says}: give the task. Those of {family.HF_MODEL_TYPE} are {known}")
    return tasks[first]


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


def _entry(entry: Any) -> tuple[str, Mapping[Any, Any] | None]:
    """A value of `HF_CONFIG`: their key, or their key and a mapping from their values to ours."""
    return entry if isinstance(entry, tuple) else (entry, None)


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON's value is of a field's type; a whole number is a float, but True is no number."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return type(value) in choices or (type(value) is int and float in choices)


def _described(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))
