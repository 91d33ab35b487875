"""The engine behind every family's table of published weights, read forwards to load and backwards to save.

A row of `PUBLISHED.body` is (theirs, ours, layout):

    ("h.*.attn.c_attn.weight", "blocks/attention/{query,key,value}/kernel", "D (n H K) -> n D H K")

`*` counts the layers, which are stacked in our parameter; two `*` count groups and their layers, stacked along two
axes; `*[1:]` starts at the second layer, where the first lacks the tensor; `*[3::4]` counts the layers 3, 7, 11, ...,
which alone are stacked in our parameter. `{a,b,c}` splits their tensor along the first axis of the layout's right
side. On the left, the parts lie one after another, and the axes behind that axis in its group may have sizes of their
own in each part. The axis `V` is the vocabulary, whose rows are padded in memory; an axis `1` is dropped in ours.
Sizes follow from our parameters' shapes, so that a row holds for every configuration, but for that of an axis that is
merged with another on the right side: `G=8`. Where names or sizes depend on the configuration, `PUBLISHED.body` is a
function of the Config. Only the slices that this process's devices need are read.
`published/spec.py` describes the rest of `PUBLISHED`.
"""

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from transformer_zoo import json_files, trees
from transformer_zoo.checkpoints import safetensors
from transformer_zoo.checkpoints.layouts import Layout, groups, sizes_of
from transformer_zoo.nn import heads
from transformer_zoo.nn.tasks import TASKS

LISTED = 20  # names of one kind in an error message; the others are only counted
SCORES = r"head/scores/.*"
"""The paths of the parameters that score classes: those of a head that depend on the labels."""
LOSS = r"(.+\.)?(\w+_)?(loss|criterion)\w*(\..+)?"
"""Names of the tensors of a loss, such as weights of the classes."""
UNEXPECTED = "unexpected"
LARGEST = 2**20
"""A size of an architecture up to this one needs no tensors to be believed."""
LARGEST_TABLE = 2**26
"""And a table of positions of so many numbers."""
DEEPEST = 1000
"""And a number of layers up to this one."""


def load(
    family: ModuleType,
    shapes: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    config: Any,
    task: str,
    param_dtype: str | None = None,
    shardings: Mapping[str, Any] | None = None,
    source: str = "the checkpoint",
    optional: str | None = None,
    without: str | None = None,
    kept_as: Callable[[str, jax.Array], Any] | None = None,
) -> trees.Tree:
    """The parameters of a model, from published tensors.

    Everything is checked first: each of our parameters is filled exactly once; each of their tensors
    is used once, belongs to another task's head, or is excused by `PUBLISHED.ignored`. A warning names those that
    cannot be parameters of the model: of a loss, or not of floating point; for the task `base`, all outside the body.

    Args:
        family: a family's module, with its `PUBLISHED`.
        shapes: our parameters, as a tree of `jax.ShapeDtypeStruct`.
        tensors: theirs by name; each has a `shape` and a `dtype`, and `np.asarray` reads it.
        config: the family's Config; its `vocab_size` is the size of V in their tensors.
        task: the task of the model, one of `PUBLISHED.tasks`.
        param_dtype: the dtype that the parameters are cast to, slice by slice. None: that of each in `shapes`.
        shardings: of the parameters, a tree like `shapes`. None: whole, on the default device.
        source: the checkpoint's name in an error message.
        optional: a regular expression. A parameter whose whole path matches it is left out of the result if the
            checkpoint lacks it or has another shape.
        without: a regular expression. A parameter whose whole path matches it is left out of the result.
        kept_as: what the result has for the parameter of a path, before the next one is read. None: the parameter.

    Raises:
        ValueError: tensors are missing, unexpected, of a wrong shape or type, or there twice. One error lists them all.
    """
    flat = trees.flatten(shapes)
    sharding_of = {} if shardings is None else trees.flatten(shardings)
    rows, inactive = _rows(family, config, task, flat)
    names = _Names(family, config, task)
    skipped = [row for row in rows if without is not None and all(re.fullmatch(without, path) for path in row.paths)]
    rows, inactive = [row for row in rows if row not in skipped], [*inactive, *(row.theirs for row in skipped)]
    for row in (row for row in rows if row.theirs.removeprefix("/") in family.PUBLISHED.zero_if_missing):
        absent = [names.written(theirs) for theirs in row.names if not names.find(theirs, tensors)]
        tensors = {**tensors, **dict.fromkeys(absent, np.zeros(row.shape, np.float32))}
    faults: dict[str, list[str]] = {}
    used: dict[str, list[str]] = {row.ours: [] for row in rows if not row.names}  # ours -> theirs, by layer
    for row in rows:
        for theirs in row.names:
            found = names.find(theirs, tensors)
            if optional is not None and all(re.fullmatch(optional, path) for path in row.paths):
                if len(found) == 0 or (len(found) == 1 and tuple(tensors[found[0]].shape) != row.shape):
                    inactive.append(row.theirs)
                    continue
            if not found:
                faults.setdefault("missing", []).append(f"{names.written(theirs)}  (for {row.ours})")
            elif len(found) > 1:
                where = _where(*(tensors[name] for name in found))
                faults.setdefault("there twice", []).append(f"{' and '.join(found)}  (for {row.ours}){where}")
            elif tuple((tensor := tensors[found[0]]).shape) != row.shape:
                is_not = f"{list(tensor.shape)}, expected {list(row.shape)} ({row.left})"
                faults.setdefault("misshapen", []).append(f"{found[0]}  {is_not}{_where(tensor)}")
            elif not jnp.issubdtype(tensor.dtype, jnp.floating):
                faults.setdefault("not of floating point", []).append(f"{found[0]}  {tensor.dtype}{_where(tensor)}")
            used.setdefault(row.ours, []).extend(found)
    allowed, needless, unread = names.pattern(inactive), [], names.unread(tensors)
    for name in sorted(set(tensors).difference(*used.values(), unread)):
        fault = names.fault(name, tensors, allowed)
        if fault == UNEXPECTED and names.is_needless(name, tensors[name], task):
            needless.append(name)
        elif fault:
            faults.setdefault(fault, []).append(name)
    if faults:
        advice = "Either its config.json does not describe its weights, or they are not those of this task."
        if faults.keys() == {UNEXPECTED} and not any(map(names.in_body, faults[UNEXPECTED])):
            advice = 'The body alone can be loaded, without them: task="base".'
        raise ValueError(
            f"{source} does not fit {family.PUBLISHED.model_type} for the task {task!r}:\n"
            f"{_listing(faults, tensors)}\n{advice}"
        )
    if needless:
        listed = f"{_listing({'not used': needless}, tensors)}"
        warnings.warn(f"{source} holds tensors that are no parameters of the model:\n{listed}", stacklevel=3)
    for what in dict.fromkeys(unread.values()):
        warnings.warn(f"{source} holds {what}, which is not read", stacklevel=3)

    params, keep = {}, kept_as or (lambda path, x: x)
    for row in (row for row in rows if row.ours in used):
        for part, path in enumerate(row.paths):
            views = {
                index: functools.partial(row.view, tensors[name], part)
                for index, name in zip(row.layer_indices, used[row.ours])
            }
            # A layer that lacks the tensor gets the value of a fresh norm, and does not use it.
            absent = 1.0 if path.endswith("/scale") else 0.0
            dtype, sharding = np.dtype(param_dtype or flat[path].dtype), sharding_of.get(path)
            params[path] = keep(path, _put(views, len(row.layers), flat[path].shape, dtype, sharding, absent))
    return trees.unflatten(params)


def dump(family: ModuleType, params: Mapping[str, Any], *, config: Any, task: str) -> dict[str, "Export"]:
    """The published form of a model's parameters, or of any tree of their shapes.

    Each tensor is made when `np.asarray` reads it, in its parameter's dtype. In a run of several processes, all of them
    must read it.

    Args:
        family: a family's module, with its `PUBLISHED`.
        params: our parameters, arrays of JAX or of numpy.
        config: the family's Config; rows beyond its `vocab_size` are padding and cut off.
        task: the task of the model, one of `PUBLISHED.tasks`; it decides whether the body's names have the prefix.
    """
    flat, tensors = trees.flatten(params), {}
    for row in rows(family, params, config=config, task=task).values():
        tensors |= row.exported([flat[path] for path in row.paths])
    return tensors


def rows(family: ModuleType, params: Mapping[str, Any], *, config: Any, task: str) -> "dict[str, Row]":
    """The rows of a model's parameters, or of their shapes, by the names of their tensors in a file that we write, with
    `*` for the layers, and `*[3::4]` for some of them."""
    names, found = _Names(family, config, task), _rows(family, config, task, trees.flatten(params))[0]
    written = [dataclasses.replace(row, theirs=names.written(row.theirs)) for row in found]
    some = lambda row: "*" if row.step is None else f"*[{row.start}::{row.step}]"
    return {row.theirs.replace("*", some(row), 1): row for row in written}


def constants(family: ModuleType, config: Any, task: str, dtype: Any) -> dict[str, np.ndarray]:
    """The tensors that follow from the configuration, and that the reference expects in a file: `PUBLISHED.constants`
    of a family."""
    names, tensors = _Names(family, config, task), family.PUBLISHED.constants(config, task)
    first = np.promote_types(dtype, np.float32)  # narrow numbers are rounded twice, as the reference rounds them
    return {names.written(theirs): np.asarray(x).astype(first).astype(dtype) for theirs, x in tensors.items()}


def written_once(name: str, tensors: Mapping[str, Any], write: Callable[[], Any]) -> Any:
    """What `write` returns in the first process of a run, which alone writes; () in the others, which take part in
    gathering the tensors. Every process returns after the files are there.

    Args:
        name: of what is done, for the errors of processes that wait for one another.
    """
    written: Any = ()
    if jax.process_index() == 0:
        written = write()
    else:
        for tensor in tensors.values():
            np.asarray(tensor)
    multihost_utils.sync_global_devices(name)
    return written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Layout):
    """A row of the table, with the sizes of one model."""

    theirs: str
    ours: str
    paths: tuple[str, ...]
    layers: tuple[int, ...]  # the number that each `*` counts
    start: int = 0  # the first layer that has the tensor
    step: int | None = None  # from one such layer to the next, where ours has no other layers. None: it has all

    @property
    def layer_indices(self) -> list[tuple[int, ...]]:
        """The indices of the layers along the stacked axes of ours."""
        every = list(np.ndindex(self.layers))
        return every if self.step is not None else [index for index in every if index[:1] >= (self.start,) or not index]

    @property
    def names(self) -> list[str]:
        """The names of their tensors, by layer."""
        number = lambda index: index if self.step is None else (self.start + self.step * index[0], *index[1:])
        return [self.theirs.replace("*", "{}").format(*number(index)) for index in self.layer_indices]

    def exported(self, leaves: Sequence[Any]) -> "dict[str, Export]":
        """Their tensors by name, from our parameters; each is made when it is read."""
        return {
            theirs: Export(row=self, layer_index=index, leaves=leaves)
            for index, theirs in zip(self.layer_indices, self.names)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """One of their tensors, made when it is read."""

    row: Row
    layer_index: tuple[int, ...]
    leaves: Sequence[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.row.shape

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*(leaf.dtype for leaf in self.leaves))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.row.undo([_host(_layer(leaf, self.layer_index)) for leaf in self.leaves])


def settled(family: ModuleType, config: Any, tensors: Mapping[str, Any], task: str | None) -> Any:
    """The configuration with `tied` read off a checkpoint's tensors, for a family that is `tied_by_tensors`: the output
    layer is tied to the token embeddings if the two are equal, or if the task has an output layer and it is missing.

    transformers 5 writes that every T5 is tied, and goes by the tensors. In earlier versions, untied could also mean
    only that the logits are not scaled.

    Args:
        task: the checkpoint's task. None: not known.
    """
    if not family.PUBLISHED.tied_by_tensors:
        return config
    names = _Names(family, dataclasses.replace(config, tied=True), "base")
    heads_own = _of_heads(family, task) & names.tied.keys()
    pairs = [(head, x) for head in heads_own & tensors.keys() for x in names.find(names.tied[head], tensors)]
    if not pairs:
        return dataclasses.replace(config, tied=config.tied or (task is not None and bool(heads_own)))
    return dataclasses.replace(config, tied=all(_same_bytes(tensors[one], tensors[other]) for one, other in pairs))


def known(family: ModuleType, names: Iterable[str]) -> int:
    """How many of these names of tensors a family's table has, in any layer."""
    return sum(_Names(family, family.Config(), "base").table.fullmatch(name) is not None for name in names)


def check_sizes(family: ModuleType, config: Any, tensors: Mapping[str, Any], source: str) -> None:
    """Checks the sizes of a configuration before anything of these sizes is made.

    Raises:
        ValueError: a size beyond the numbers in all tensors together, or more layers than tensors.
    """
    if (fault := oversized(family, config, tensors)) is not None:
        raise ValueError(f"{source} does not describe its weights: {fault}")


def oversized(family: ModuleType, config: Any, tensors: Mapping[str, Any]) -> str | None:
    """A size of a configuration that is too large for the tensors and for any model that needs no tensors to be
    believed. None: there is none."""
    total = sum(math.prod(x.shape) for x in tensors.values())
    for field in dataclasses.fields(config):
        value, layers = getattr(config, field.name), field.name.endswith("layers")
        most, what = (max(len(tensors), DEEPEST), "tensors") if layers else (max(total, LARGEST), "numbers")
        if type(value) is int and not field.name.endswith("_id") and value > most:
            name = family.PUBLISHED.config[field.name].name
            return f"{name} is {value:,}, and they are {len(tensors) if layers else total:,} {what}"
    positions = getattr(config, "max_length", None) or 0
    if positions * config.width > max(total, LARGEST_TABLE):  # of sinusoids, which are no tensor
        return f"{positions:,} positions for {total:,} numbers"
    return None


def num_labels(family: ModuleType, config: Any, tensors: Mapping[str, Any], task: str | None) -> int | None:
    """The number of classes that a checkpoint's head scores for a task. None: the task has no labels, or there is no
    such head."""
    scores = [row for row in family.PUBLISHED.heads.get(task, ()) if row[1] == "head/scores/kernel"]
    if task is None or TASKS[task].scores != "labels" or not scores:
        return None
    (theirs, _, layout), names = scores[0], _Names(family, config, task)
    left, right = (side.split() for side in layout.split(" -> "))
    shapes = [tensors[name].shape for name in names.find("/" + theirs, tensors)]
    return shapes[0][left.index(right[-1])] if shapes and len(shapes[0]) == len(left) else None


def reordered(
    family: ModuleType, config: Any, tensors: Mapping[str, Any], task: str, order: Sequence[int]
) -> Mapping[str, Any]:
    """The tensors with the scores of a task's head in another order: number i becomes what number order[i] was."""
    names = _Names(family, config, task)
    for theirs, ours, layout in family.PUBLISHED.heads.get(task, ()):
        if re.fullmatch(SCORES, ours):
            left, right = (side.split() for side in layout.split(" -> "))
            for name in names.find("/" + theirs, tensors):
                tensors = {**tensors, name: Reordered(tensors[name], left.index(right[-1]), tuple(order))}
    return tensors


@dataclasses.dataclass(frozen=True)
class Reordered:
    """A tensor with the slices along an axis in another order, made when it is read."""

    tensor: Any
    axis: int
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.take(np.asarray(self.tensor), self.order, self.axis)


def _of_heads(family: ModuleType, task: str | None = None) -> set[str]:
    """The names of the tensors of a task's head, or of all heads."""
    heads = family.PUBLISHED.heads
    tables = heads.values() if task is None else [heads.get(task, ())]
    return {theirs for table in tables for theirs, *_ in table}


def _rows(family: ModuleType, config: Any, task: str, flat: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    """The rows for these parameters, and the tensors' names in the other rows. Names of heads begin with "/".

    Raises:
        ValueError: the table is wrong: a parameter has no row, or several, or other axes than its row.
    """
    spec = family.PUBLISHED
    tables = {name: [("/" + theirs, *row) for theirs, *row in table] for name, table in spec.heads.items()}
    inactive = [theirs for name, table in tables.items() if name != task for theirs, *_ in table]
    rows = []
    for theirs, ours, layout in (*spec.rows(config), *tables.get(task, ())):
        theirs, start, step = _start(theirs)
        paths = tuple(_expand(ours))
        if not any(path in flat for path in paths):
            # A file may hold another task's head, but no bias that its config.json rules out.
            absent = spec.absent.get(task, heads.PATHS)
            inactive += [theirs] if re.fullmatch(f"{heads.PATHS}|{absent}", ours) else []
            continue
        given = {axis: int(size) for axis, size in re.findall(r"(\w+)=(\d+)", layout)}
        left, right = re.sub(r"=\d+", "", layout).split(" -> ")
        split, depth = groups(right)[0] if len(paths) > 1 else [], theirs.count("*")
        dimensions = groups(right)[len(split) :]
        joined = next((i for i, group in enumerate(groups(left)) if split and split[0] in group), None)
        group = [] if joined is None else groups(left)[joined]
        own = {*group[group.index(split[0]) + 1 :]} if split else set()  # axes with sizes of their own in each part
        shapes = [tuple(flat[path].shape) for path in paths if path in flat]
        common = {tuple(n for axes, n in zip(dimensions, shape[depth:]) if own.isdisjoint(axes)) for shape in shapes}
        stacked = {(len(shape), shape[:depth]) for shape in shapes}
        if len(shapes) < len(paths) or len(common) > 1 or len(stacked) > 1 or len(shapes[0]) != depth + len(dimensions):
            found = " and ".join(map(str, dict.fromkeys(shapes)))
            raise ValueError(f"the row {(theirs, ours, layout)} of {family.__name__} does not fit shapes like {found}")
        fixed = given | dict.fromkeys(split, 1)
        fixed |= {"V": config.vocab_size} if ["V"] in dimensions else {}
        names = {"theirs": theirs, "ours": ours, "paths": paths, "left": left, "right": right}
        sizes = tuple(sizes_of(dimensions, shape[depth:], fixed) for shape in shapes)
        rows.append(Row(**names, sizes=sizes, joined=joined, layers=shapes[0][:depth], start=start, step=step))
    filled = [path for row in rows for path in row.paths]
    if wrong := [path for path in flat if filled.count(path) != 1]:
        raise ValueError(f"not filled by exactly one row of PUBLISHED in {family.__name__}: {', '.join(wrong)}")
    return rows, inactive


def _start(theirs: str) -> tuple[str, int, int | None]:
    """A name without the `[1:]` or `[3::4]` of its first `*`, and the numbers in it."""
    found = re.search(r"\*\[(\d+):(?::(\d+))?\]", theirs)
    if found is None:
        return theirs, 0, None
    return theirs.replace(found[0], "*"), int(found[1]), int(found[2]) if found[2] else None


def _expand(path: str) -> Iterator[str]:
    before, brace, rest = path.partition("{")
    inside, _, after = rest.partition("}")
    return (before + choice + after for choice in inside.split(",")) if brace else iter([path])


class _Names:
    """The names of a family's tensors in a checkpoint."""

    def __init__(self, family: ModuleType, config: Any, task: str):
        spec = family.PUBLISHED
        self.prefixes = tuple(dict.fromkeys((spec.prefix, *spec.prefixes.values(), *spec.other_prefixes, "")))
        self.write_prefix = spec.prefixes.get(task, spec.prefix)
        # If not tied, an alias that has a row is a head's own tensor.
        tied, own = "tied" not in spec.config or config.tied, _of_heads(family)
        found = {alias: name for alias, name in spec.tied.items() if tied or alias not in own}
        self.tied = {alias: found.get(name.removeprefix("/"), name) for alias, name in found.items()}
        self.not_read = spec.unread(config)
        self.ignored = [re.compile(pattern) for pattern, _reason in spec.ignored]
        body = [_start(theirs)[0] for theirs, *_ in spec.rows(config)]
        self.modules = {theirs.partition(".")[0] for theirs in body}
        self.table = self.pattern([*body, *("/" + theirs for theirs in own)])

    def written(self, theirs: str) -> str:
        """The name of a row's tensor in a file that we write."""
        return theirs[1:] if theirs.startswith("/") else self.write_prefix + theirs

    def find(self, theirs: str, tensors: Mapping[str, Any]) -> list[str]:
        """The names under which a file holds a row's tensor: with the prefix, without it, or those of a tied tensor."""
        aliases = [alias for alias, name in self.tied.items() if name == theirs]
        return next(filter(None, (self._present(name, tensors) for name in (theirs, *aliases))), [])

    def fault(self, name: str, tensors: Mapping[str, Any], allowed: re.Pattern[str]) -> str | None:
        """The fault of a tensor that no row uses. None: it is allowed, as are those of the names `allowed`."""
        short = self._short(name)
        if tied := self.tied.get(name, self.tied.get(short)):
            same = all(_same_bytes(tensors[name], tensors[other]) for other in self.find(tied, tensors))
            return None if same else f"not the same as {tied}, to which config.json ties it"
        if any(pattern.fullmatch(name) or pattern.fullmatch(short) for pattern in self.ignored):
            return None
        return None if allowed.fullmatch(name) else UNEXPECTED

    def unread(self, tensors: Mapping[str, Any]) -> dict[str, str]:
        """The tensors of parts that the model lacks, and what these are."""
        found = {}
        for pattern, sign, what in self.not_read:
            short = {name: self._short(name) for name in tensors}
            if any(re.fullmatch(sign, name) for name in short.values()):
                found |= {name: what for name in tensors if re.fullmatch(pattern, short[name])}
        return found

    def is_needless(self, name: str, tensor: Any, task: str) -> bool:
        """Whether an unexpected tensor can be no parameter of the model. One of the table may be of a further layer."""
        if self.table.fullmatch(name):
            return False
        counts = not jnp.issubdtype(tensor.dtype, jnp.floating)
        return counts or re.fullmatch(LOSS, name) is not None or (task == "base" and not self.in_body(name))

    def in_body(self, name: str) -> bool:
        """Whether a tensor of this name lies in the body, or in a module of the body's name."""
        short = self._short(name)
        return short != name or short.partition(".")[0] in self.modules

    def _short(self, name: str) -> str:
        """A tensor's name without the longest of the prefixes that it has."""
        return name[max(len(prefix) for prefix in self.prefixes if name.startswith(prefix)) :]

    def pattern(self, table: Iterable[str]) -> re.Pattern[str]:
        """The names of the tensors of these rows, in any layer."""
        names = [re.escape(name).replace(r"\*", r"\d+") for theirs in table for name in self._names(theirs)]
        return re.compile("|".join(names) or "(?!)")

    def _present(self, theirs: str, tensors: Mapping[str, Any]) -> list[str]:
        return [name for name in self._names(theirs) if name in tensors]

    def _names(self, theirs: str) -> list[str]:
        """The names that a row's tensor may have."""
        names = [theirs[1:]] if theirs.startswith("/") else [prefix + theirs for prefix in self.prefixes]
        return [*names, *filter(None, map(_old_name, names))]


def _old_name(name: str) -> str | None:
    """The name of a norm's scale or bias in the first checkpoints, which came from TensorFlow."""
    body, _, last = name.rpartition(".")
    old = {"weight": "gamma", "bias": "beta"}.get(last)
    return f"{body}.{old}" if old and "norm" in body.lower() else None


def _same_bytes(one: Any, other: Any) -> bool:
    if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype:
        return False
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (np.asarray(one), np.asarray(other)))
    return np.array_equal(a, b)


def _where(*tensors: Any) -> str:
    """The end of a line about tensors: the files that hold them, if they are of files."""
    files = dict.fromkeys(tensor.file.name for tensor in tensors if isinstance(tensor, safetensors.Tensor))
    return f"  in {' and '.join(files)}" if files else ""


def _listing(faults: Mapping[str, Sequence[str]], tensors: Mapping[str, Any]) -> str:
    lines = []
    for kind, found in faults.items():
        lines += [f"  {kind}:  {json_files.excerpt(name, 300)}{_where(tensors.get(name))}" for name in found[:LISTED]]
        lines += [f"  {kind}:  and {len(found) - LISTED} more"] if len(found) > LISTED else []
    return "\n".join(lines)


def _put(
    views: Mapping[tuple[int, ...], Callable[[], np.ndarray]],
    stacked: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: Sharding | None,
    absent: float = 0.0,
) -> jax.Array:
    """Our parameter from a view for each layer, by its index along the first `stacked` axes. Views are made one at a
    time: of a quantised tensor it is a copy. Rows beyond those of the views are padding, and zero; a layer without a
    view is filled with `absent`."""

    @functools.cache  # devices that hold copies of one slice share it
    def read(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
        array = np.zeros([stop - start for start, stop in bounds], dtype)
        index = tuple(slice(*bound) for bound in bounds[stacked:])
        starts = [start for start, _ in bounds[:stacked]]
        for layer in np.ndindex(array.shape[:stacked]):
            view = views.get(tuple(i + start for i, start in zip(layer, starts)))
            if view is None:
                array[layer] = absent
            else:
                _fill(array[(*layer, ...)], view()[(*index, ...)])
        return array

    if sharding is None:
        return jax.device_put(read(tuple((0, size) for size in shape)))
    return jax.make_array_from_callback(
        shape, sharding, lambda index: read(tuple(part.indices(size)[:2] for part, size in zip(index, shape)))
    )


def _fill(array: np.ndarray, part: np.ndarray) -> None:
    array[tuple(map(slice, part.shape))] = part


def _layer(leaf: Any, index: tuple[int, ...]) -> Any:
    """A layer's part of an array. One of a single CPU is read as numpy's, without a copy: a slice by JAX would be a
    program for each shape."""
    if not index:
        return leaf
    if isinstance(leaf, jax.Array) and [device.platform for device in leaf.devices()] == ["cpu"]:
        leaf = np.asarray(leaf)
    return leaf[index]


def _host(x: Any) -> np.ndarray:
    """The whole of an array, also where other processes hold parts of it."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
