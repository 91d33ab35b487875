"""Tensors in eight bits a number with scales, as DeepSeek-V3 is published (DeepSeek-AI 2024, section 3.3).

Such a tensor NAME [..., O, I] has a second one beside it, NAME_scale_inv: a scale for each block of the size that
`quantization_config` of config.json gives, [..., ceil(O / rows), ceil(I / columns)], or a single one for all numbers.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from transformer_zoo import json_files
from transformer_zoo.checkpoints.config_map import CONFIG

SCALE, ACTIVATION = "_scale_inv", "activation_scale"
DTYPES = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor with scales; `np.asarray` makes it in float32."""

    numbers: Any
    scales: Any
    block: tuple[int, int] | None
    """Its rows and columns. None: there is one scale."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.numbers.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        numbers, scales = np.asarray(self.numbers).astype(np.float32), np.asarray(self.scales).astype(np.float32)
        if self.block is None:
            return numbers * scales.reshape(())
        (O, I), (rows, columns) = self.shape[-2:], self.block
        numbers *= np.repeat(np.repeat(scales, columns, axis=-1)[..., :I], rows, axis=-2)[..., :O, :]
        return numbers


def unpacked(tensors: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tensors of a folder by name, those with scales as what they stand for. A warning tells how many there are.

    Raises:
        ValueError: numbers without scales, numbers and scales that do not go together, or no size of the blocks.
    """
    if not any(name.endswith(SCALE) for name in tensors):
        return tensors
    given = json_files.read(folder / CONFIG).get("quantization_config") if (folder / CONFIG).is_file() else None
    given, place = given if isinstance(given, dict) else {}, f"quantization_config in {folder / CONFIG}"
    json_files.check(given, {"weight_block_size": list}, place)
    block = given.get("weight_block_size")
    if block is not None and not (len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
        shown = json_files.excerpt(block)
        raise ValueError(f"weight_block_size is {shown} in {place}: rows and columns of a block are expected")
    block = None if block is None else tuple(block)
    found = {name: _tensor(name, tensors, block, folder) for name, x in tensors.items() if x.dtype in DTYPES}
    rest = {
        name: x for name, x in tensors.items()
        if name.removesuffix(SCALE) not in found and f"{name.removesuffix(ACTIVATION)}weight" not in found
    }  # fmt: skip
    warnings.warn(
        f"{folder}: {len(found)} tensors are stored in eight bits a number (FP8), with scales. They are read as "
        "numbers of the precision of the other parameters, and saved so; activations are not rounded to eight bits",
        stacklevel=2,
    )
    return rest | found


def _tensor(name: str, tensors: Mapping[str, Any], block: tuple[int, int] | None, folder: Path) -> Tensor:
    numbers, scales, shown = tensors[name], tensors.get(name + SCALE), json_files.excerpt(name)
    if scales is None:
        raise ValueError(f"{folder} holds {shown} of {numbers.dtype} and no {shown}{SCALE}")
    both = f"{folder}: {shown} {list(numbers.shape)} and {shown}{SCALE} {list(scales.shape)} of {scales.dtype}"
    if not np.issubdtype(scales.dtype, np.floating) and scales.dtype != ml_dtypes.bfloat16:
        raise ValueError(f"{both}: scales of floating point are expected")
    if block is None or len(numbers.shape) < 2:
        if tuple(scales.shape) not in ((), (1,)):
            raise ValueError(f"{both} do not go together: there is no weight_block_size, and so one scale is expected")
        return Tensor(numbers=numbers, scales=scales, block=None)
    *outer, O, I = numbers.shape
    expected = [*outer, -(-O // block[0]), -(-I // block[1])]
    if list(scales.shape) != expected:
        raise ValueError(f"{both} do not go together: of blocks of {block[0]} x {block[1]}, {expected} are expected")
    return Tensor(numbers=numbers, scales=scales, block=block)
