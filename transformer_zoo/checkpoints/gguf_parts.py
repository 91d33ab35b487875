"""A tensor of a family's usual files as GGUF files have it: in one tensor or in several, its numbers in another order.

The layouts are those of `published.gguf.Gguf.rows`.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import numpy as np

from transformer_zoo.checkpoints.layouts import Layout, groups, product, side, sizes_of

LARGEST = 2**31
Side = list[list[str]]
"""The axes of each dimension on a side of a layout."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """How a usual tensor is divided among the tensors of a file, or within one."""

    layout: Layout
    """Of the parts in the usual tensor."""
    forms: tuple[str, ...]
    """The axes of each part in the file; those in the layout are the last ones."""
    together: bool
    """Whether the parts lie one after another in a single tensor, along its first dimension."""

    @classmethod
    def of_file(cls, row: str, shapes: Sequence[tuple[int, ...]], known: Mapping[str, Any]) -> "Parts":
        """The parts of a file's tensors.

        Args:
            known: sizes of axes; of one that differs from part to part, a tuple of them.

        Raises:
            ValueError: the tensors do not have this layout, or sizes that can be none.
        """
        sides, usual, sizes = _parsed(row, len(shapes), known)
        for dimensions, shape in zip(sides, shapes):
            sizes = _solved(dimensions, shape, sizes)
        parts = cls._of(sides, usual, sizes, len(shapes))
        if parts.shapes != list(shapes):
            raise ValueError(f"the shapes are {shapes}, not {parts.shapes}")
        return parts

    @classmethod
    def of_usual(cls, row: str, shape: tuple[int, ...], count: int, known: Mapping[str, Any]) -> "Parts":
        """The parts of a usual tensor, in so many tensors of a file; otherwise as `of_file`."""
        sides, usual, sizes = _parsed(row, count, known)
        return cls._of(sides, usual, _solved(usual, shape, sizes), count)

    @classmethod
    def _of(cls, sides: Sequence[Side], usual: Side, sizes: Mapping[str, Any], tensors: int) -> "Parts":
        without = [[[axis for axis in group if axis != "n"] for group in dimensions] for dimensions in sides]
        forms = [side(dimensions) for dimensions in without]
        joined = next((i for i, group in enumerate(usual) if "n" in group), None)
        of_part = lambda size, i: size[i] if isinstance(size, tuple) else size
        own = [{axis: of_part(size, i) for axis, size in sizes.items() if axis != "n"} for i in range(sizes["n"])]
        layout = Layout(
            left=side(usual), right=forms[-1] if joined is None else f"n {forms[-1]}",
            sizes=tuple(part if joined is None else part | {"n": 1} for part in own), joined=joined,
        )  # fmt: skip
        forms = forms if len(forms) > 1 else forms * len(own)
        return cls(layout=layout, forms=tuple(forms), together=joined is not None and tensors == 1)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the file's tensors."""
        found = [
            tuple(product(group, sizes) for group in groups(form)) for form, sizes in zip(self.forms, self.layout.sizes)
        ]
        return [(sum(shape[0] for shape in found), *found[0][1:])] if self.together else found

    def read(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The usual tensor, from the file's."""
        if self.together:
            lengths = [product(groups(self.forms[-1])[0], sizes) for sizes in self.layout.sizes]
            arrays = np.split(arrays[0], np.cumsum(lengths)[:-1])
        return self.layout.undo([self._turned(x, i, -1) for i, x in enumerate(arrays)])

    def write(self, x: np.ndarray) -> list[np.ndarray]:
        """The file's tensors, from the usual one."""
        found = [self._turned(self.layout.view(x, i), -1, i) for i in range(len(self.forms))]
        return [np.concatenate(found)] if self.together else found

    def _turned(self, x: np.ndarray, form: int, other: int) -> np.ndarray:
        """A part of one form in another."""
        sizes = self.layout.sizes[max(form, other)]
        sizes = {axis: size for axis, size in sizes.items() if axis != "n"}
        return einops.rearrange(x, f"{self.forms[form]} -> {self.forms[other]}", **sizes)


def _parsed(row: str, tensors: int, known: Mapping[str, Any]) -> tuple[list[Side], Side, dict[str, Any]]:
    """The dimensions of each part in a file and of the usual tensor, and the sizes of the axes that are known: `n` is
    the number of parts.

    Raises:
        ValueError: a size that can be none.
    """
    given = {axis: int(size) for axis, size in re.findall(r"(\w+)=(\d+)", row)}
    theirs, usual = re.sub(r"=\d+", "", row).split(" -> ")
    # In tensors of their own, parts have no axis that counts them.
    sides = [[group for group in groups(form) if group != ["n"]] for form in theirs.split(" | ")]
    axes = {axis for group in groups(usual) for axis in group}
    sizes = {axis: size for axis, size in {**known, **given}.items() if axis in axes}
    counts = [len(size) for size in sizes.values() if isinstance(size, tuple)]
    for size in itertools.chain(*(size if isinstance(size, tuple) else (size,) for size in sizes.values())):
        if type(size) is not int or not 0 < size < LARGEST:
            raise ValueError(f"an axis of {row} has the size {size!r}")
    return sides, groups(usual), sizes | {"n": tensors if tensors > 1 else max(counts, default=sizes.get("n", 1))}


def _solved(dimensions: Side, shape: tuple[int, ...], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes with those that follow from a tensor's shape: of dimensions that are the same in each part.

    Raises:
        ValueError: the tensor has another number of dimensions.
    """
    if len(dimensions) != len(shape):
        raise ValueError(f"{list(shape)} has not the {len(dimensions)} dimensions {side(dimensions)}")
    own = {axis for axis, size in sizes.items() if isinstance(size, tuple)}
    same = [(group, size) for group, size in zip(dimensions, shape) if own.isdisjoint(group)]
    found = sizes_of([group for group, _ in same], [size for _, size in same], {**sizes, "1": 1})
    return {axis: size for axis, size in found.items() if axis != "1"}
