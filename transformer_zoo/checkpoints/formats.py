"""The weights of a folder or of a repository, in any of the published formats."""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from transformer_zoo.checkpoints import flax_msgpack, fp8, gguf_folder, mxfp4, safetensors, torch_bin

OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz", ".safetensors")
ADAPTER = "adapter_config.json"
"""A folder with this file and without config.json holds small changes to another model (`peft`)."""
WRAPPERS = ("module.", "_orig_mod.")
"""What precedes every name where a model was saved inside torch's DataParallel, or compiled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A format of weights."""

    files: tuple[str, ...]
    """A folder with one of these files has this format."""
    patterns: tuple[str, ...]
    """Patterns of its files, shards included."""
    read_folder: Callable[[Path], dict[str, Any]]

    def is_in(self, folder: Path) -> bool:
        return any((folder / file).is_file() for file in self.files)


FORMATS = (  # of several in a folder the first is read
    Format(
        files=(safetensors.WEIGHTS, safetensors.INDEX),
        patterns=("*.safetensors", safetensors.INDEX),
        read_folder=safetensors.read_folder,
    ),
    Format(
        files=(torch_bin.WEIGHTS, torch_bin.INDEX),
        patterns=("pytorch_model*.bin", torch_bin.INDEX),
        read_folder=torch_bin.read_folder,
    ),
    Format(files=(flax_msgpack.WEIGHTS,), patterns=(flax_msgpack.WEIGHTS,), read_folder=flax_msgpack.read_folder),
    Format(files=(gguf_folder.WEIGHTS,), patterns=(gguf_folder.WEIGHTS,), read_folder=gguf_folder.read_folder),
)


def read_folder(folder: str | Path) -> dict[str, Any]:
    """The tensors of a folder by their names in torch. Each has a `shape` and a `dtype`, and `np.asarray` reads it.
    What precedes every name in a model that was saved inside another module (`WRAPPERS`) is left out. Those in MXFP4
    or in FP8 with scales are dequantised as they are read.

    Raises:
        FileNotFoundError: the folder has no weights that can be read, or a shard is missing.
        ValueError: a file is damaged or refused, or an index and its shards contradict each other.
    """
    folder = Path(folder)
    for format in FORMATS:
        if format.is_in(folder):
            return fp8.unpacked(mxfp4.unpacked(_unwrapped(format.read_folder(folder)), str(folder)), folder)
    raise no_weights(str(folder), [file.name for file in folder.iterdir()])


def _unwrapped(tensors: dict[str, Any]) -> dict[str, Any]:
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            return _unwrapped({name.removeprefix(wrapper): x for name, x in tensors.items()})
    return tensors


def no_weights(source: str, files: Collection[str]) -> FileNotFoundError:
    """The error for a folder or repository without readable weights."""
    if ADAPTER in files:
        return FileNotFoundError(
            f"{source} holds an adapter ({ADAPTER}) and the settings of a model, but no weights that can be read: give "
            "its base, as in from_pretrained(base, adapter=folder)"
        )
    known = ", ".join(file for format in FORMATS for file in format.files)
    others = sorted(file for file in files if file.endswith(OTHER_FORMATS))
    message = f"{source} holds no weights that can be read, which are one of {known}."
    if others:
        message += (
            f" It holds {', '.join(others[:8])}. Look for a revision that has one of those, or convert it once with the"
            " library that wrote it."
        )
    if any(file.endswith(".gguf") for file in others):
        message += " A GGUF file is loaded by its own name."
    return FileNotFoundError(message)
