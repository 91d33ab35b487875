"""Arguments of public calls, checked by the annotations of their parameters before anything is computed."""

import functools
import itertools
import numbers
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Union, get_args, get_origin

import numpy as np


@typing.runtime_checkable
class HasModel(Protocol):
    """A model with its parameters and its tokenizer: a `Bundle`, for modules that `Bundle` itself imports."""

    model: Any
    params: Any
    config: Any
    tokenizer: Any


Loaded = Annotated[HasModel, "a model, as from_pretrained(name) returns it"]

SCALARS = {int: numbers.Integral, float: numbers.Real, bool: (bool, np.bool_), str: str}
PLAIN = (*SCALARS, types.NoneType)
KINDS = {int: "iu", float: "iuf", bool: "b", str: "UT"}  # of the dtypes of their arrays
CONTAINERS = (Sequence, Iterable, tuple)
NO_LISTS = (str, bytes, bytearray, Mapping, set, frozenset)  # one can iterate over them, but not over a list's items
PHRASES = {  # by the names of types: of one value, and of several
    "int": ("a whole number", "whole numbers"), "float": ("a number", "numbers"), "str": ("a text", "texts"),
    "bool": ("True or False", "True and False"), "NoneType": ("None", "None"), "PathLike": ("a path", "paths"),
    "Mapping": ("a dictionary", "dictionaries"), "Callable": ("a function", "functions"),
    "ndarray": ("an array", "arrays"), "Array": ("an array", "arrays"),
}  # fmt: skip


def check(of: Any, given: Mapping[str, Any]) -> None:
    """Refuses arguments that are not of the annotated types.

    Numpy's integers are whole numbers, and whole numbers are numbers; True and False are neither. An array of the right
    dtype stands for a list. A text is no list of texts. The items of an iterator are not looked at. `Annotated` says
    what an error calls a type.

    Args:
        of: a function or a dataclass.
        given: arguments by the names of the parameters: `locals()` in a function's first line, `vars(self)` in
            `__post_init__`.

    Raises:
        TypeError: an argument of another type. One error lists them all.
        ValueError: a number that is NaN.
    """
    found = (_fault(given[name], hint, name) for name, hint in _hints(of).items() if name in given)
    if faults := [fault.text for fault in found if fault is not None]:
        raise TypeError("; ".join(faults))
    for name, value in given.items():
        if isinstance(value, numbers.Real) and value != value:
            raise ValueError(f"{name} is nan: it must be a number")


class _Fault(NamedTuple):
    depth: int
    """How deep in lists the wrong value is. Of several annotations, the one that nearly fits fails deepest."""
    place: str
    value: Any
    expected: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.place} is {_describe(self.value)}: expected {' or '.join(dict.fromkeys(self.expected))}"


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    """The annotations of the parameters, without that of `**others`."""
    named = getattr(of, "__code__", None)  # a dataclass has none
    names = None if named is None else named.co_varnames[: named.co_argcount + named.co_kwonlyargcount]
    return {
        name: hint
        for name, hint in typing.get_type_hints(of, include_extras=True).items()
        if names is None or name in names
    }


def _fault(value: Any, hint: Any, name: str, depth: int = 0) -> _Fault | None:
    """What is wrong with a value; None if it is of the annotated type."""
    options, inside = options_of(hint), []
    if type(value) in options and type(value) in PLAIN:  # nearly always; the rest takes long
        return None
    for option in options:
        if _is_of(value, option):
            if (fault := _fault_of_items(value, option, name, depth)) is None:
                return None
            inside.append(fault)
    if not inside:
        return _Fault(depth, name, value, tuple(map(_phrase, options)))
    deepest = max(inside, key=lambda fault: fault.depth)
    same = [fault.expected for fault in inside if fault.place == deepest.place]
    return deepest._replace(expected=tuple(itertools.chain.from_iterable(same)))


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, whatever its items are."""
    kind = get_origin(hint) or hint
    if kind is Any:
        return True
    if kind is Annotated:
        return _is_of(value, hint.__origin__)
    if kind is Literal:
        return any(_is_of(value, type(x)) for x in get_args(hint))
    if kind in (Sequence, Iterable):
        listed = kind is Iterable or hasattr(value, "__len__") and hasattr(value, "__getitem__")
        return listed and isinstance(value, Iterable) and not isinstance(value, NO_LISTS)
    if kind in (int, float) and isinstance(value, SCALARS[bool]):
        return False
    return isinstance(value, SCALARS.get(kind, kind))


def _fault_of_items(value: Any, hint: Any, name: str, depth: int) -> _Fault | None:
    """What is wrong with the items of a value that is of the type."""
    if get_origin(hint) is Mapping:
        (_, item), items = get_args(hint), value.items()
        return next((fault for key, x in items if (fault := _fault(x, item, f"{name}[{key!r}]", depth + 1))), None)
    if get_origin(hint) not in CONTAINERS or not isinstance(value, Sized):
        return None
    if (kind := _kind(value)) is not None:
        return None if _is_of_array(hint, kind, value.ndim) else _Fault(depth, name, value, (_phrase(hint),))
    item = get_args(hint)[0]
    items: Iterable[tuple[int, Any]] = enumerate(value)
    if not any(get_origin(option) in CONTAINERS for option in options_of(item)):  # one of each type is enough
        items = {type(x): (i, x) for i, x in reversed([*items])}.values()
    return next((fault for i, x in items if (fault := _fault(x, item, f"{name}[{i}]", depth + 1))), None)


def _kind(value: Any) -> str | None:
    """The kind of an array's dtype, also of other libraries' arrays. None: it is no array, or one of any objects."""
    try:
        kind = np.dtype(str(value.dtype).removeprefix("torch.")).kind
    except (AttributeError, TypeError):
        return None
    return None if kind == "O" else kind


def _is_of_array(hint: Any, kind: str, ndim: int) -> bool:
    """Whether an array of this kind of dtype and of so many dimensions stands for nested lists."""
    return any(
        option is Any
        or get_origin(option) in CONTAINERS
        and ndim > 0
        and _is_of_array(get_args(option)[0], kind, ndim - 1)
        or ndim == 0
        and kind in KINDS.get(option, "")
        for option in options_of(hint)
    )


@functools.cache
def options_of(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the only one."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _phrase(hint: Any, plural: bool = False) -> str:
    """What an error calls a type."""
    kind = get_origin(hint) or hint
    if kind in CONTAINERS:
        name = "lists" if plural else "a tuple" if kind is tuple else "a list"
        items = dict.fromkeys(_phrase(option, True) for option in options_of(get_args(hint)[0]) if option is not Any)
        return f"{name} of {' or '.join(items)}" if items else name
    if kind is Annotated:
        return hint.__metadata__[0]
    if kind is Literal:
        return " or ".join(map(repr, get_args(hint)))
    name = kind.__name__
    one, several = PHRASES.get(name) or (f"{'an' if name[0] in 'AEIOU' else 'a'} {name}", f"{name}s")
    return several if plural else one


def _describe(value: Any) -> str:
    """What an error calls a value: itself where it is short, and its type."""
    kind = type(value).__name__
    if value is None or isinstance(value, bool):
        return repr(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of the type {kind}, {value.dtype}{list(value.shape)}"
    if isinstance(value, str | bytes | numbers.Number):
        return f"{reprlib.repr(value)} ({kind})"
    return f"a {kind} of {len(value)}" if isinstance(value, Sized) else f"of the type {kind}"
