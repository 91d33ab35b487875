"""Tensors in MXFP4, the four-bit floating point of the Open Compute Project (Microscaling Formats v1.0, 2023): each 32
numbers share a scale, a power of two.

Such a tensor NAME is stored as two of bytes: NAME_blocks [..., O, I / 32, 16] with two numbers a byte, and NAME_scales
[..., O, I / 32] with the exponents. It stands for a tensor [..., I, O].
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer_zoo import json_files

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES = 16
BIAS = 127  # of an exponent
NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor in MXFP4; `np.asarray` makes it in float32, in which every number of the format is exact."""

    blocks: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        *outer, rows, blocks = self.scales.shape
        return (*outer, 2 * BLOCK_BYTES * blocks, rows)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        blocks, scales = np.asarray(self.blocks), np.asarray(self.scales)
        numbers = np.empty((*scales.shape, BLOCK_BYTES, 2), np.float32)
        for index in np.ndindex(scales.shape[:-2]):  # one matrix at a time, whose intermediate arrays are small
            numbers[index][..., 0], numbers[index][..., 1] = NUMBERS[blocks[index] & 15], NUMBERS[blocks[index] >> 4]
            exponents = scales[index].astype(np.int32) - BIAS
            np.ldexp(numbers[index], exponents[..., None, None], out=numbers[index])
        return np.swapaxes(numbers.reshape(*scales.shape[:-1], -1), -1, -2)


def unpacked(tensors: dict[str, Any], source: str) -> dict[str, Any]:
    """The tensors by name, those in MXFP4 as what they stand for. A warning tells how many there are.

    Raises:
        ValueError: blocks without scales, or blocks and scales that do not go together.
    """
    packed = [name.removesuffix(BLOCKS) for name, x in tensors.items() if name.endswith(BLOCKS) and x.dtype == np.uint8]
    found = {name: _tensor(name, tensors, source) for name in packed}
    if not found:
        return tensors
    parts = {name + end for name in found for end in (BLOCKS, SCALES)}
    warnings.warn(
        f"{source}: {len(found)} tensors are stored in four bits a number (MXFP4). They are read as numbers of the "
        "precision of the other parameters, and saved so",
        stacklevel=2,
    )
    return {name: x for name, x in tensors.items() if name not in parts} | found


def _tensor(name: str, tensors: Mapping[str, Any], source: str) -> Tensor:
    blocks, scales = tensors[name + BLOCKS], tensors.get(name + SCALES)
    shown = json_files.excerpt(name)
    if scales is None:
        raise ValueError(f"{source} holds {shown}{BLOCKS} and no {shown}{SCALES}")
    if name in tensors:
        raise ValueError(f"{source} holds {shown} twice: as it is, and in MXFP4")
    expected = (*scales.shape, BLOCK_BYTES)
    if scales.dtype != np.uint8 or len(scales.shape) < 2 or tuple(blocks.shape) != expected:
        both = f"{shown}{BLOCKS} {list(blocks.shape)} and {shown}{SCALES} {list(scales.shape)} of {scales.dtype}"
        raise ValueError(
            f"{source}: {both} do not go together: expected scales [..., rows, blocks] of uint8, and {BLOCK_BYTES} "
            "bytes for each"
        )
    return Tensor(blocks=blocks, scales=scales)
