"""Where a model may be written: where there is none, or the same one; in the place of another one if that is asked for.

The same one has the same settings: of config.json, of adapter_config.json, or of a GGUF file.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from transformer_zoo import json_files
from transformer_zoo.checkpoints import config_map, flax_msgpack, formats, gguf, hub, safetensors, torch_bin

FREE = re.compile("dtype|bos_token_id|pad_token_id")
"""Keys of config.json that depend on the precision and on the tokenizer with which a model is written."""
FREE_OF_GGUF = re.compile(r"general\.(file_type|quantization_version)|tokenizer\..*")
"""Those of a GGUF file, likewise."""
ADAPTER = re.compile(r"adapter_(config\.json|model\.(safetensors|bin))")
MODEL = re.compile(
    rf"{config_map.CONFIG}|{hub.MODULES}|{safetensors.OWN_FILES.pattern}|pytorch_model.*\.bin|{torch_bin.INDEX}"
    rf"|{flax_msgpack.WEIGHTS}"
)
"""Without GGUF files, which are models by themselves."""
TOKENIZER = (*hub.TOKENIZER_FILES, hub.CHAT_TEMPLATE, "chat_template.json")


def files_in(folder: Path) -> list[str]:
    """The names of the files in a folder that belong to a model or an adapter."""
    names = (file.name for file in folder.iterdir()) if folder.is_dir() else ()
    beside = ("generation_config.json", *TOKENIZER)
    return sorted(name for name in names if name in beside or ADAPTER.fullmatch(name) or MODEL.fullmatch(name))


def check_folder(
    folder: Path, name: str, settings: Mapping[str, Any], *, whole: bool = True, family: ModuleType | None = None
) -> None:
    """Refuses a folder with another model.

    Args:
        name: config.json or adapter_config.json, the file of the settings.
        settings: what it is to say.
        whole: False: these are some of its settings, and the rest is not compared.
        family: of a model; a config.json of another library may spell the same settings in other words.

    Raises:
        ValueError: it holds an adapter where a model is to be, or the reverse; weights without such a file; or one that
            says something else.
    """
    kind, other = (ADAPTER, MODEL) if name == formats.ADAPTER else (MODEL, ADAPTER)
    found = files_in(folder)
    if strange := [file for file in found if other.fullmatch(file)]:
        raise _fault("folder", folder, f"{'a model' if other is MODEL else 'an adapter'}, {', '.join(strange[:5])}")
    own = [file for file in found if kind.fullmatch(file)]
    if own and name not in own:
        raise _fault("folder", folder, f"{', '.join(own[:5])}, and no {name} that describes them")
    if own:
        there = _spelled(json_files.read(folder / name), family)
        there = there if whole else {key: x for key, x in there.items() if key in settings}
        if differ := _differences(there, settings, FREE):
            what = "a model" if kind is MODEL else "an adapter"
            raise _fault("folder", folder, f"{what} that is another one or was not written here, with {differ}")


def _spelled(settings: dict[str, Any], family: ModuleType | None) -> dict[str, Any]:
    """A family's config.json as we write it; others as they are."""
    if family is None or settings.get("model_type") != family.PUBLISHED.model_type:
        return settings
    try:
        config, task = config_map.read(family, settings), config_map.task_of(family, settings)
        return config_map.write(family, config, task)
    except ValueError:  # of settings that are not supported
        return settings


def check_tokenizer(folder: Path, new: Path) -> None:
    """Refuses a folder with files of a tokenizer which those of the new folder would not replace: readers would take
    both for one.

    Raises:
        ValueError: there are such files.
    """
    if left := [name for name in TOKENIZER if (folder / name).exists() and not (new / name).exists()]:
        raise _fault(
            "folder", folder, f"files of another tokenizer, which must not mix with this one's, {', '.join(left)}"
        )


def check_file(file: Path, metadata: Mapping[str, Any]) -> None:
    """Refuses a GGUF file with another model; metadata: what it is to say.

    Raises:
        ValueError: it holds another model, or is no GGUF file.
    """
    if not file.exists():
        return
    try:
        there = gguf.read(file).metadata
    except ValueError as error:
        raise _fault("file", file, f"something else ({error})") from error
    if differ := _differences(there, metadata, FREE_OF_GGUF):
        raise _fault("file", file, f"a model that is another one or was not written here, with {differ}")


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any], free: re.Pattern[str]) -> str:
    """The settings that differ, with what is there; empty: none does."""
    wanted = json.loads(json.dumps(wanted))
    keys = sorted(key for key in there.keys() | wanted if not free.fullmatch(key))
    shown = lambda key: json_files.excerpt(json.dumps(there[key]), 40) if key in there else "none"
    differ = [f"{key} {shown(key)}" for key in keys if not _same(there.get(key), wanted.get(key))]
    return ", ".join(differ[:4]) + (f" and {len(differ) - 4} more that differ" if len(differ) > 4 else "")


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal, numbers in 32 bits, as GGUF files hold them."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b or isinstance(a, float) and isinstance(b, float) and np.float32(a) == np.float32(b)


def _fault(kind: str, place: Path, held: str) -> ValueError:
    return ValueError(f"{place} holds {held}: name another {kind}, or pass overwrite=True to replace it")
