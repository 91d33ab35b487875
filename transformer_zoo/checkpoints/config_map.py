"""Reads and writes config.json, by the keys in the family's `PUBLISHED.config` (`published/spec.py`)."""

import dataclasses
import re
import types
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer_zoo import json_files, registry, trees
from transformer_zoo.nn.tasks import TASKS
from transformer_zoo.published import Published

CONFIG = "config.json"
MOST_LABELS = 2**20


def read_file(folder: str | Path) -> dict[str, Any]:
    """The config.json of a folder; the `model_type` is added where it is published without one. For a model of images
    and text (`Published.nested`), that of its model of text; a warning says so.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object, or too large; or there is no `text_config` where one belongs.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        message = f"{folder} has no {CONFIG}, which describes the model of its weights"
        if file := next(folder.glob("*.gguf"), None):
            message += f". A GGUF file is loaded by its own name: {file}"
        raise FileNotFoundError(message)
    settings = json_files.read(folder / CONFIG)
    for family in map(registry.family, registry.families()):
        if settings.get("model_type") in [*family.PUBLISHED.nested]:  # a list, since a wrong value may have no hash
            return _of_text(settings, family.PUBLISHED, folder)
    return settings if settings.get("model_type") is not None else settings | _unnamed(settings)


def _of_text(settings: Mapping[str, Any], spec: Published, folder: Path) -> dict[str, Any]:
    """The settings of the model of text in one of images and text, with those that the two share."""
    text, images = settings.get("text_config"), settings["model_type"]
    if not isinstance(text, dict):
        given = json_files.describe(text)
        raise ValueError(
            f"{folder / CONFIG}: text_config is {given}, where an object with the model of text is expected"
        )
    warnings.warn(f"{folder} is a {images}: only its model of text is read", stacklevel=3)
    shared = {key: value for key, value in settings.items() if not key.endswith("_config")}
    return {**spec.nested[images], **text, **shared, "model_type": spec.model_type}


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
    shown = lambda value: json_files.excerpt(repr(value))
    defaults = spec.key_defaults
    known = [key for key in settings if key not in defaults]
    settings = {**defaults, **_by_name(spec, settings)}
    if _is_encoder_alone(family, settings):
        settings[spec.config["num_decoder_layers"].name] = 0
    for ours, key in spec.config.items():
        if key.name not in settings:
            faults.append(f"{key.name} is missing.{trees.nearest(key.name, known)}")
            continue
        try:
            values[ours] = key.read(settings[key.name], settings)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            faults.append(f"{key.name} is {shown(settings[key.name])}; {json_files.excerpt(error, 300)}")
            continue
        if not _fits(values[ours], hints[ours]):
            faults.append(f"{key.name} is {shown(settings[key.name])}, which is not {_described(hints[ours])}")
    if "labels" in hints:
        try:
            values["labels"], _ = labels(settings, spec.num_labels)
        except ValueError as error:
            faults.append(str(error))
    for theirs, supported in spec.fixed.items():
        allowed = supported if isinstance(supported, tuple) else (supported, None if supported is False else supported)
        if settings.get(theirs, allowed[0]) not in allowed:
            known = " or ".join(map(repr, allowed if isinstance(supported, tuple) else allowed[:1]))
            faults.append(f"{theirs} is {shown(settings[theirs])}; only {known} is supported")
    if faults:
        raise ValueError(f"{source} does not describe a {spec.model_type} that can be built: {'; '.join(faults)}")
    try:
        return family.Config(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {json_files.excerpt(error, 500)}") from error


def _by_name(spec: Published, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with each value under the main name of its key, which takes precedence over the key's aliases."""
    named = {key.name: settings[alias] for key in spec.config.values() for alias in key.aliases if alias in settings}
    return {**named, **settings}


def write(family: ModuleType, config: Any, task: str, dtype: str | None = None) -> dict[str, Any]:
    """The config.json of a model for a task, with tensors of this dtype."""
    spec = family.PUBLISHED
    model_type = config.model_type if spec.aliases else spec.model_type
    name = spec.class_names(model_type)[task]
    if task == "base" and spec.encoder_alone is not None and not config.num_decoder_layers:
        name = spec.encoder_class(model_type)
    settings = {"architectures": [name], "model_type": model_type}
    for field in dataclasses.fields(config):
        if (key := spec.config.get(field.name)) is not None:
            settings[key.name] = key.write(getattr(config, field.name), config)
    settings |= {theirs: of(config) for theirs, of in spec.derived.items()}
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
    first, spec = architecture(settings), family.PUBLISHED
    now = spec.renamed_classes.get(first, first)
    if _is_encoder_alone(family, settings):
        return "base"
    return next((task for task, name in spec.class_names(settings.get("model_type")).items() if name == now), None)


def _is_encoder_alone(family: ModuleType, settings: Mapping[str, Any]) -> bool:
    name = family.PUBLISHED.encoder_class(settings.get("model_type"))
    return name is not None and architecture(settings) == name


def task_of(family: ModuleType, settings: Mapping[str, Any], source: str = CONFIG) -> str:
    """The task of the weights by their config.json.

    Raises:
        ValueError: it names no class, or none of the family's.
    """
    if (task := saved_for(family, settings)) is not None:
        return task
    first = architecture(settings)
    fault = "names no architectures" if first is None else f"names the architecture {json_files.excerpt(repr(first))}"
    spec = family.PUBLISHED
    known = ", ".join(f"{task} ({name})" for task, name in spec.class_names(settings.get("model_type")).items())
    raise ValueError(f"{source} {fault}: give the task. Those of {spec.model_type} are {known}")


def architecture(settings: Mapping[str, Any]) -> str | None:
    """The first of the `architectures` of a config.json, the name of a class."""
    named = settings.get("architectures") or [None]
    first = named[0] if isinstance(named, list) else named
    return first if first is None else str(first)


def labels(
    settings: Mapping[str, Any], default: int = 2, count: int | None = None
) -> tuple[tuple[str, ...], str | None]:
    """The names of the classes in order, all different; and how they differ from those of `id2label`, if they do.

    Args:
        settings: the keys of a config.json.
        default: the number of classes where nothing gives it.
        count: the number of classes that the checkpoint's head scores. None: `num_labels`, or else the number of names.

    Raises:
        ValueError: `num_labels` is no number of classes, or `id2label` does not give names to numbers.
    """
    names, number = settings.get("id2label"), settings.get("num_labels")
    if number is not None and (type(number) is not int or not 0 < number <= MOST_LABELS):
        fault = f"num_labels is {json_files.describe(number)}, where a whole number from 1 to {MOST_LABELS:,}"
        raise ValueError(f"{fault} is expected")
    if names is None or names == {}:
        return numbered(count or number or default), None
    if not isinstance(names, dict) or not all(re.fullmatch(r"[0-9]{1,9}", str(key)) for key in names):
        raise ValueError(f"id2label is {json_files.describe(names)}, where an object from numbers to names is expected")
    named = {int(key): str(name) for key, name in names.items()}
    wanted = count or number or len(named)
    if max(named) == wanted - 1:
        found, note = [named.get(i, f"LABEL_{i}") for i in range(wanted)], "id2label gives some classes no name"
        note = note if len(named) < wanted else None
    elif len(named) == wanted:
        found, note = [named[i] for i in sorted(named)], "the numbers in id2label are not those of the classes"
    else:
        found, note = numbered(wanted), f"id2label names {len(named)} classes where there are {wanted}"
    distinct: dict[str, int] = {}
    for i, name in enumerate(found):
        while name in distinct:
            name, note = f"{name} ({i})", note or "id2label gives several classes one name"
        distinct[name] = i
    return tuple(distinct), note


def numbered(count: int) -> tuple[str, ...]:
    """The labels of classes that have no names."""
    return tuple(f"LABEL_{i}" for i in range(count))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of a field's type, and no larger than a machine's numbers. A whole number is also a
    float; True is no number."""
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)  # the Config checks which
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) in (int, float) and not abs(value) < 2**63:  # nor NaN
        return False
    return type(value) in choices or (type(value) is int and float in choices)


def _described(hint: Any) -> str:
    return "str" if typing.get_origin(hint) is typing.Literal else getattr(hint, "__name__", str(hint))
