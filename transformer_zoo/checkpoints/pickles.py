"""Pickles as data: the few opcodes that saved weights are made of, interpreted here, so that nothing can be executed.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
This one knows two dozen opcodes and the names that its caller gives it; anything else is refused by its name, before it
has an effect. Only the list of opcodes and the formats of their arguments come from the standard library. Their
meaning: PEP 307 and PEP 3154.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

MAX_BYTES = 1 << 26
MAX_OPCODES = 2_000_000  # a tensor takes about 25
MAX_TUPLE = 64  # the most axes that an array of numpy has

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING"}
LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
ARGUMENTS = {"PROTO", "FRAME", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"} | LITERALS
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def no_references(identifier: Any) -> NoReturn:
    """The `persistent` of a pickle that refers to nothing outside itself."""
    raise ValueError("its pickle refers to an object outside of it, where none can be")


def load(
    stream: BinaryIO,
    end: int,
    names: Mapping[str, Any],
    persistent: Callable[[Any], Any] = no_references,
) -> Any:
    """The value of the pickle that begins at the stream's position; the stream is left at its end.

    The value consists of None, booleans, numbers, strings, tuples (of values or of tuples of values: no deeper), lists,
    dicts with strings as keys, values of `names`, and results of its functions and of `persistent`.

    Args:
        stream: a file with a position.
        end: the position that the pickle does not reach beyond.
        names: the allow-list, "module.name" -> a value, or a function of ours that any arguments may be passed to.
        persistent: a function from a persistent id, which can be anything, to its value.

    Raises:
        ValueError: a name or an opcode that is not allowed, a pickle that is not well formed, or one over the limits.
    """
    stack: list[Any] = []
    marks: list[int] = []  # heights of the stack
    memo: dict[int, Any] = {}
    end = min(end, stream.tell() + MAX_BYTES)

    def pop(kind: type = object) -> Any:
        if len(stack) <= (marks[-1] if marks else 0):
            raise ValueError("its pickle takes a value from an empty stack")
        if not isinstance(stack[-1], kind):
            raise ValueError(f"its pickle treats a {type(stack[-1]).__name__} as a {kind.__name__}")
        return stack.pop()

    def pop_to_mark() -> list[Any]:
        if not marks:
            raise ValueError("its pickle takes values down to a mark that it never set")
        height = marks.pop()
        values = stack[height:]
        del stack[height:]
        return values

    if stream.read(1) != b"\x80":  # two bytes further it would still be one
        raise ValueError("its pickle does not begin with its protocol")
    stream.seek(-1, 1)
    for name, argument in _opcodes(_Bounded(stream, end)):
        match name:
            case "PROTO" | "FRAME":
                pass
            case _ if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case _ if name in LITERALS:
                stack.append(argument)
            case "MARK":
                marks.append(len(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(_tuple([pop() for _ in range(int(name[-1]))][::-1]))
            case "TUPLE":
                stack.append(_tuple(pop_to_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                values = [pop()] if name == "APPEND" else pop_to_mark()
                stack.append(_extended(pop(list), values))
            case "SETITEM" | "SETITEMS":
                values = [pop(), pop()][::-1] if name == "SETITEM" else pop_to_mark()
                stack.append(_updated(pop(dict), values))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                stack.append(value := pop())
                memo[len(memo) if name == "MEMOIZE" else argument] = value
            case "BINGET" | "LONG_BINGET":
                if argument not in memo:
                    raise ValueError(f"its pickle takes number {argument} from its memo, which it never put there")
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(argument, names))
            case "STACK_GLOBAL":
                last, module = pop(str), pop(str)
                stack.append(_named(f"{module}.{last}", names))
            case "BINPERSID":
                stack.append(persistent(pop()))
            case "REDUCE":
                arguments, function = pop(tuple), pop()
                if not callable(function):
                    raise ValueError(f"its pickle calls a {type(function).__name__}, which is no function")
                stack.append(function(*arguments))
            case "BUILD":  # sets attributes of an OrderedDict; weights have one, which does not affect their values
                if pop(dict).keys() - {"_metadata"}:
                    raise ValueError("its pickle sets attributes other than the _metadata of a state dict")
                stack.append(pop(dict))
            case "STOP":
                value = pop()
                if stack or marks:
                    raise ValueError("its pickle leaves values behind")
                return value
            case _:
                about = f" of {argument[:200]!r}" if name == "INST" else ""
                raise ValueError(f"its pickle has the opcode {name}{about}, which no weights need")
    raise ValueError(f"its pickle has more than {MAX_OPCODES} opcodes, far more than weights need")


def _opcodes(stream: "_Bounded") -> Iterator[tuple[str, Any]]:
    """The names of the opcodes, with the arguments of those that are known here."""
    for _ in range(MAX_OPCODES):
        code = stream.read(1)
        if code not in OPCODES:
            raise ValueError(f"its pickle has no opcode {code!r}" if code else "its pickle breaks off: truncated")
        opcode = OPCODES[code]
        if opcode.name in ("GLOBAL", "INST"):
            yield opcode.name, f"{_line(stream)}.{_line(stream)}"
        else:
            yield opcode.name, opcode.arg.reader(stream) if opcode.name in ARGUMENTS else None


def _line(stream: "_Bounded") -> str:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("its pickle breaks off in a name: truncated")
    return line[:-1].decode("utf-8")


class _Bounded:
    """A stream that ends at the pickle's limit: whatever length an opcode claims, no more is read."""

    def __init__(self, stream: BinaryIO, end: int):
        self.stream, self.end, self.tell = stream, end, stream.tell

    def read(self, size: int) -> bytes:
        return self.stream.read(min(size, max(self.end - self.tell(), 0)))

    def readline(self) -> bytes:
        return self.stream.readline(max(self.end - self.tell(), 0))


def _named(name: str, names: Mapping[str, Any]) -> Any:
    if name not in names:
        raise ValueError(f"its pickle names {name[:200]!r}, which no weights need")
    return names[name]


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    if len(values) > MAX_TUPLE:
        raise ValueError(f"its pickle has a tuple of {len(values)} values, and weights need no more than {MAX_TUPLE}")
    if any(type(inner) is tuple for value in values if type(value) is tuple for inner in value):
        raise ValueError("its pickle nests tuples deeper than weights do")
    return tuple(values)


def _extended(target: list[Any], values: list[Any]) -> list[Any]:
    if any(isinstance(value, list | dict) for value in values):
        raise ValueError("its pickle nests lists, which weights do not")
    target.extend(values)
    return target


def _updated(target: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    if len(values) % 2:
        raise ValueError("its pickle gives a dict a key without a value")
    for key, value in zip(values[::2], values[1::2]):
        if type(key) is not str:  # a hash of anything else could run for years
            raise ValueError(f"its pickle has a {type(key).__name__} as a key, and weights are named by strings")
        if key in target:
            raise ValueError(f"its pickle has the key {key[:200]!r} twice")
        target[key] = value
    return target
