"""A tensor of a family's usual files as GGUF files have it: in one tensor or in several, its numbers in another order.

The layouts are those of `published.gguf.Gguf.rows`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import numpy as np

from transformer_zoo.checkpoints.layouts import Layout, groups, product, side, sizes_of

LARGEST = 2**31


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
        parts = cls._of(row, len(shapes), known, lambda sides, _: zip(sides, shapes))
        if parts.shapes != list(shapes):
            raise ValueError(f"the shapes are {shapes}, not {parts.shapes}")
        return parts

    @classmethod
    def of_usual(cls, row: str, shape: tuple[int, ...], count: int, known: Mapping[str, Any]) -> "Parts":
        """The parts of a usual tensor, in so many tensors of a file."""
        return cls._of(row, count, known, lambda _, usual: [(usual, shape)])

    @classmethod
    def _of(cls, row: str, tensors: int, known: Mapping[str, Any], pairs: Any) -> "Parts":
        given = {axis: int(size) for axis, size in re.findall(r"(\w+)=(\d+)", row)}
        theirs, usual = re.sub(r"=\d+", "", row).split(" -> ")
        sides = [groups(form) for form in theirs.split(" | ")]
        axes = {axis for dimensions in (*sides, groups(usual)) for group in dimensions for axis in group}
        known = {axis: size for axis, size in {**known, **given}.items() if axis in axes}
        own = {axis: sizes for axis, sizes in known.items() if isinstance(sizes, tuple)}
        for size in (size for sizes in known.values() for size in (sizes if isinstance(sizes, tuple) else [sizes])):
            if type(size) is not int or not 0 < size < LARGEST:
                raise ValueError(f"an axis of {row} has the size {size!r}")
        count = tensors if tensors > 1 else next(map(len, own.values()), known.get("n", 1))
        together = "n" in axes and tensors == 1
        if not together:  # each tensor is a part
            sides = [[group for group in dimensions if group != ["n"]] for dimensions in sides]
        solved = [known | {"n": count, "1": 1}]
        for dimensions, shape in pairs(sides, groups(usual)):
            if len(dimensions) != len(shape):
                raise ValueError(f"{list(shape)} has not the {len(dimensions)} dimensions of {row}")
            plain = [(group, size) for group, size in zip(dimensions, shape) if own.keys().isdisjoint(group)]
            solved.append(sizes_of(*zip(*plain), solved[-1]) if plain else solved[-1])
        part = lambda size, i: size[i] if isinstance(size, tuple) else size
        sizes = [{axis: part(size, i) for axis, size in solved[-1].items() if axis in axes} for i in range(count)]
        for found in sizes:
            found.pop("1", None)
            found |= {"n": 1} if "n" in axes else {}
        forms = [side([[axis for axis in group if axis != "n"] for group in dimensions]) for dimensions in sides]
        joined = next((i for i, group in enumerate(groups(usual)) if "n" in group), None)
        right = forms[-1] if joined is None else f"n {forms[-1]}"
        layout = Layout(left=usual, right=right, sizes=tuple(sizes), joined=joined)
        return cls(layout=layout, forms=tuple(forms) if len(forms) > 1 else (forms[0],) * count, together=together)

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
