"""What a name stands for: a run's folder, a published model's folder, a preset, or a repository of the hub.

Weights are fetched last: an invalid name, task, label or setting is refused before that.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import flax.linen as nn
from etils import epath

from transformer_zoo import folders, json_files, registry, trees
from transformer_zoo.checkpoints import config_map, formats, gguf_folder, hub, peft, weight_map
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.tasks import TASKS

RECORD = "run.json"
"""A folder with this file is a run's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """The model that a name stands for, without its weights."""

    name: str | os.PathLike[str]
    kind: Literal["run", "folder", "preset", "hub"]
    config: Any
    """The architecture, a family's Config."""
    task: str | None
    """The task that its weights were trained for. None: config.json names no known class; or a run, whose
    objective determines the task (`runs.model`)."""
    folder: Path | epath.Path | None = None
    """The folder of its configuration and its tokenizer. None: a preset, for which nothing was fetched."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The keys of its config.json; none for a run or a preset."""
    adapter: peft.Adapter | None = None
    """What changes its weights: the name is that of an adapter's folder, and the rest describes its base."""

    @property
    def family(self) -> ModuleType:
        """The family's module."""
        return registry.module_of(self.config)

    def model(
        self, *, task: str | None = None, labels: int | Sequence[str] | None = None, compute: Compute | None = None
    ) -> nn.Module:
        """The model, without its parameters.

        Args:
            task: what the model is for. None: the task that its weights were trained for.
            labels: the names of the classes, or their number. None: as in the configuration.
            compute: precision, memory and speed. None: the defaults of `Compute`.

        Raises:
            ValueError: the family lacks the task or has no labels, or the task is neither given nor known.
        """
        config = labelled(self.config, labels)
        if task is None and self.task is None:
            config_map.task_of(self.family, self.settings, str(self.source))
        return build(config, task or self.task, compute)

    @property
    def source(self) -> epath.Path:
        """The file that describes it."""
        if (file := Path(self.name).expanduser()).is_file():
            return epath.Path(file)
        return epath.Path(self.folder or "", RECORD if self.kind == "run" else config_map.CONFIG)

    def weights(self) -> Path:
        """The local folder of its weights, downloaded where necessary, from the same commit as config.json.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError, ValueError: as `hub.resolve`.
        """
        return folder(self.name, self.folder.name if self.kind == "hub" else None)


def describe(
    name: str | os.PathLike[str], revision: str | None = None, *, published: bool = False, family: str | None = None
) -> Described:
    """The model that a name stands for. Of a repository, only configuration and tokenizer are downloaded.

    Args:
        name: a run's folder, a published model's folder, a preset's name, or a hub id.
        revision: branch, tag or commit of a repository. None: its main branch.
        published: always read config.json. False: a folder with run.json is a run, and a preset or its hub id has the
            zoo's own Config, for which nothing is downloaded.
        family: the family of a config.json without `model_type`. None: config.json has one.

    Raises:
        FileNotFoundError: no such folder, preset, repository or revision; or no config.json in it.
        PermissionError: the repository is private or gated.
        ConnectionError: not in the cache, and the hub cannot be reached.
        ValueError: a config.json of an unknown family, of another one than `family`, without any, or that is not
            supported; or a run.json of another version.
    """
    if re.match(r"https?://|$", str(name).strip()):
        raise ValueError(f"{str(name)!r} is no name: give a folder, or a hub id such as openai-community/gpt2")
    local = Path(name).expanduser()
    if not published and is_run(name):
        config = _architecture(name)
        check_family(name, config, family)
        return Described(name=name, kind="run", config=config, task=None, folder=folders.folder(name))
    if not (published or revision or local.is_dir()) and (preset := _preset(name)) is not None:
        check_family(name, preset.config, family)
        return Described(name=name, kind="preset", config=preset.config, task=build(preset.config).task)
    if is_run(name) and not (local / config_map.CONFIG).is_file():
        raise FileNotFoundError(
            f"{name} holds a run and no {config_map.CONFIG}: load it with load_run, or publish it first "
            "(python -m transformer_zoo convert)"
        )
    root = folder(name, revision, weights=False)
    if _is_adapter(root):
        return _of_adapter(peft.read(root), family)
    settings, source = config_map.read_file(root), str(root / config_map.CONFIG)
    module, settings = _family(family, settings, root, source)
    try:
        config = config_map.read(module, settings, source)
    except ValueError as error:
        others = _families_of(settings)
        if not others or module in map(registry.family, others):
            raise
        hint = f'Its architecture {config_map.architecture(settings)} is one of family="{others[0]}": give that'
        raise ValueError(f"{error}. {hint}") from error
    return Described(
        name=name, kind="folder" if local.exists() else "hub", config=config,
        task=config_map.saved_for(module, settings), folder=root, settings=settings,
    )  # fmt: skip


def _of_adapter(adapter: peft.Adapter, family: str | None) -> Described:
    """The model that a folder with an adapter alone stands for: its base, changed by it."""
    if adapter.base is None:
        raise ValueError(
            f"{adapter.folder} holds an adapter and does not name its base model: give that, "
            f'from_pretrained(base, adapter="{adapter.folder}")'
        )
    revision = adapter.settings.get("revision")
    try:
        if _is_adapter(folder(adapter.base, revision, weights=False)):
            raise ValueError("it is an adapter itself: merge it into its own base first")
        base = describe(adapter.base, revision, published=True, family=family)
    except (OSError, ValueError) as error:
        raise type(error)(
            f"{adapter.folder} holds an adapter of {json_files.excerpt(repr(adapter.base))}, which cannot be read: "
            f'{error}. Of a copy elsewhere: from_pretrained(base, adapter="{adapter.folder}")'
        ) from error
    return adapted(base, adapter)


def _is_adapter(root: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (root / peft.CONFIG).is_file() and not (root / config_map.CONFIG).is_file()


def adapted(base: Described, adapter: peft.Adapter) -> Described:
    """The same model, changed by an adapter.

    Raises:
        ValueError: it is changed by one already.
    """
    if base.adapter is not None:
        raise ValueError(f"{base.adapter.folder} holds an adapter itself: merge it into its base first, with convert")
    offers = adapter.task in base.family.PUBLISHED.tasks
    return dataclasses.replace(base, adapter=adapter, task=adapter.task if offers else base.task)


def check_family(name: str | os.PathLike[str], config: Any, family: str | None) -> None:
    """Raises ValueError if a family is given and the Config is of another one."""
    if family is not None and family != (own := registry.family_of(config)):
        raise ValueError(f"{name} is of the family {own}, and not of {json_files.excerpt(repr(family))}: leave it out")


def _family(
    name: str | None, settings: Mapping[str, Any], root: Path, source: str
) -> tuple[ModuleType, Mapping[str, Any]]:
    """The family of a config.json, and its keys with a `model_type`.

    Args:
        name: the family that the caller gives.
    """
    found = settings.get("model_type")
    if name is not None:
        own = registry.family(name).PUBLISHED.model_types
        if found is not None and found not in own and name not in _families_of(settings):
            raise ValueError(
                f"{source} has the model_type {json_files.excerpt(repr(found))}, and {name} reads {' or '.join(own)}"
            )
        return registry.family(name), {**settings, "model_type": found if found in own else own[0]}
    if found is None:
        raise ValueError(f"{source} names no model_type: give the family. {_proposal(settings, root)}")
    try:
        return registry.family(registry.family_by_model_type(str(found))), settings
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _families_of(settings: Mapping[str, Any]) -> list[str]:
    """The families that the class in a config.json is one of."""
    first, names = config_map.architecture(settings), registry.families()
    return [name for name in names if first and first in registry.family(name).PUBLISHED.all_class_names]


def _proposal(settings: Mapping[str, Any], root: Path) -> str:
    """The families that a config.json without `model_type` may be of: by its class, or else by the names of the
    tensors in a local folder."""
    if found := _families_of(settings):
        return f'Its architecture {config_map.architecture(settings)} is one of family="{found[0]}"'
    modules = {name: registry.family(name) for name in registry.families()}
    with contextlib.suppress(OSError, ValueError):
        tensors = formats.read_folder(root)
        fits = {name: weight_map.known(module, tensors) for name, module in modules.items()}
        if (most := max(fits.values())) > len(tensors) / 2:
            likely = " or ".join(f'family="{name}"' for name, count in fits.items() if count == most)
            return f"The names of its tensors are those of {likely}"
    return f"Known are {', '.join(modules)}"


def folder(
    name: str | os.PathLike[str], revision: str | None = None, *, weights: bool = True, folders: Sequence[str] = ()
) -> Path:
    """The local folder of a published model, downloaded where necessary: `hub.resolve` with the zoo's presets; of a
    GGUF file, the folder of what it holds.

    Raises:
        FileNotFoundError: a GGUF file that is not there.
        ValueError: a file of another name; also as `hub.resolve` and `gguf_folder.unpacked`.
    """
    file = Path(name).expanduser()
    if file.suffix == ".gguf" and not file.is_dir():
        if not file.exists():
            raise FileNotFoundError(f"there is no file {name}")
        return gguf_folder.unpacked(file)
    if file.is_file():
        raise ValueError(f"{name} is a file, and a model is a folder or a GGUF file, whose name ends in .gguf")
    return hub.resolve(name, registry.presets(), revision, weights=weights, folders=folders)


def is_run(name: str | os.PathLike[str]) -> bool:
    """Whether a name is the folder of a training run."""
    return (folders.folder(name) / RECORD).is_file()


def run_settings(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a run's folder, as `runs.write` wrote them.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its run.json cannot be read by this version.
    """
    path = folders.folder(directory) / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no run: there is no {path}")
    settings = json_files.parse(path.read_bytes(), str(path)).get("settings")
    if not isinstance(settings, dict):
        raise not_a_run(path, KeyError("settings"))
    return settings


def not_a_run(path: os.PathLike[str], error: Exception) -> ValueError:
    """The error for a run.json that this version cannot read."""
    return ValueError(f"{path} does not describe a run of this version: {json_files.excerpt(repr(error), 300)}")


def build(config: Any, task: str | None = None, compute: Compute | None = None) -> nn.Module:
    """A family's model for a task; None: the family's main task.

    Raises:
        ValueError: the family lacks the task.
    """
    family, compute = registry.module_of(config), compute or Compute()
    what, tasks = family.PUBLISHED.model_type, family.PUBLISHED.tasks
    if registry.is_encoder_decoder(config) and not config.num_decoder_layers:
        what, task = f"{what} without a decoder", task or "base"
        tasks = ["base", *(name for name in tasks if TASKS[name].encoder_only)]
    if task is None:
        return family.Model(config, compute=compute)
    if task not in tasks:
        raise ValueError(f"{what} has no task {task!r}: it offers {', '.join(tasks)}.{trees.nearest(task, tasks)}")
    return family.Model(config, task=task, compute=compute)


def _architecture(directory: str | os.PathLike[str]) -> Any:
    """The Config of the model that a run trains."""
    try:
        return registry.from_json(run_settings(directory)["model"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise not_a_run(folders.folder(directory) / RECORD, error) from error


def _preset(name: Any) -> registry.Preset | None:
    """The preset of this name, or of this hub id."""
    presets = registry.presets()
    return presets.get(name) or next((preset for preset in presets.values() if preset.hub_id == name), None)


def labelled(config: Any, labels: int | Sequence[str] | None) -> Any:
    """A Config with these class names, or with this number of classes, without names unless it has as many. None:
    unchanged.

    Raises:
        ValueError: the family has no task with labels.
        TypeError: `labels` is a single string.
    """
    if labels is None:
        return config
    if isinstance(labels, str):
        raise TypeError(f"labels is the single string {labels!r}: give the names of all classes, or their number")
    if not hasattr(config, "labels"):
        raise ValueError(f"{registry.module_of(config).PUBLISHED.model_type} has no task with labels")
    if isinstance(labels, int):
        labels = config.labels if labels == len(config.labels) else config_map.numbered(labels)
    return dataclasses.replace(config, labels=tuple(labels))


def order_of(labels: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """For each label its index among the known ones. None: these are other labels."""
    return [known.index(label) for label in labels] if sorted(labels) == sorted(known) else None
