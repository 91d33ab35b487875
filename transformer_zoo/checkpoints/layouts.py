"""Layouts of tensors, as einops has them, of which one may hold several others."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a tensor of theirs holds one of ours, or several, which are its parts."""

    left: str  # their axes
    right: str  # the axes of one of ours; of several, the first is the axis that they lie one after another along
    sizes: tuple[Mapping[str, int], ...]  # of the axes, for each part
    joined: int | None  # the dimension of theirs along which several parts lie one after another

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of their tensor."""
        shapes = [tuple(product(group, sizes) for group in groups(self.left)) for sizes in self.sizes]
        return tuple(sum(sizes) if i == self.joined else sizes[0] for i, sizes in enumerate(zip(*shapes)))

    def view(self, tensor: Any, part: int) -> np.ndarray:
        """Our part of their tensor: a view, so that nothing is read yet, unless the layout merges axes."""
        array, sizes = np.asarray(tensor), self.sizes[part]
        if (axis := self.joined) is None:
            return einops.rearrange(array, f"{self.left} -> {self.right}", **sizes)
        lengths = [product(self._apart[axis + 1], x) for x in self.sizes]
        start = sum(lengths[:part])
        array = array.reshape(*array.shape[:axis], -1, sum(lengths), *array.shape[axis + 1 :])
        array = array[(*[slice(None)] * (axis + 1), slice(start, start + lengths[part]))]
        return einops.rearrange(array, f"{side(self._apart)} -> {self.right}", **sizes)[0]

    def undo(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Their tensor, from our parts."""
        if self.joined is None:
            return self._undo(parts[0], self.left, self.sizes[0])
        arrays = [self._undo(x[None], side(self._apart), sizes) for x, sizes in zip(parts, self.sizes)]
        return np.concatenate(arrays, axis=self.joined + 1).reshape(self.shape)

    def _undo(self, array: np.ndarray, left: str, sizes: Mapping[str, int]) -> np.ndarray:
        array = array[(*(slice(product(group, sizes)) for group in groups(self.right)), ...)]
        return einops.rearrange(array, f"{self.right} -> {left}", **sizes)

    @property
    def _apart(self) -> list[list[str]]:
        """The dimensions of theirs, with two in the place of the joined one: the second holds the parts."""
        dimensions, split = groups(self.left), groups(self.right)[0][0]
        group = dimensions[self.joined]
        cut = group.index(split)
        return [*dimensions[: self.joined], group[:cut], group[cut:], *dimensions[self.joined + 1 :]]


def groups(side: str) -> list[list[str]]:
    """The axes of each dimension of a layout's side."""
    return [group.strip("()").split() for group in re.findall(r"\(.*?\)|\S+", side)]


def side(dimensions: list[list[str]]) -> str:
    """A layout's side, from the axes of each dimension."""
    return " ".join(f"({' '.join(group)})" for group in dimensions)


def product(group: Sequence[str], sizes: Mapping[str, int]) -> int:
    """The size of a dimension."""
    return math.prod(1 if axis == "1" else sizes[axis] for axis in group)


def sizes_of(dimensions: list[list[str]], shape: Sequence[int], known: Mapping[str, int]) -> dict[str, int]:
    """The sizes of the axes of a part of this shape."""
    sizes = dict(known)
    for group, size in zip(dimensions, shape):
        free = [axis for axis in group if axis not in known]
        sizes |= dict.fromkeys(free, size // math.prod(known[axis] for axis in group if axis in known))
    return sizes
