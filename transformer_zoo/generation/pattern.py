"""Regular expressions as deterministic automata over the bytes of UTF-8, by which tokens are allowed."""

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Ranges = list[tuple[int, int]]
"""Code points, as ranges with both ends."""

MOST_NODES = 100_000
"""Of an automaton, before it is determined: beyond, a pattern takes too long."""
MOST_STATES = 20_000

DIGITS, WORD = [(48, 57)], [(48, 57), (65, 90), (95, 95), (97, 122)]
SPACE = [(9, 13), (32, 32)]
CLASSES = {"d": DIGITS, "w": WORD, "s": SPACE}
CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7, "0": 0}
SURROGATES = (0xD800, 0xDFFF)  # which UTF-8 does not have
EXPECTED = (
    "of a regular expression there can be characters, classes such as [a-z] and \\d, groups, |, and the repetitions "
    "* + ? {m,n}; it is matched against the whole answer"
)


def too_large(most: int) -> ValueError:
    """The error of answers with too many places, each of which is a state of the automaton."""
    return ValueError(
        f"too much is allowed: an answer has more than {most:,} places. Bound texts, lists and repetitions by less, or "
        "not at all: each that may be there once more is a place of its own"
    )


class Nodes:
    """An automaton with several ways on: edges of ranges of bytes, and edges without a byte."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[int, int, int]]] = []
        self.free: list[list[int]] = []

    def add(self) -> int:
        """A new node."""
        if len(self.edges) >= MOST_NODES:
            raise too_large(MOST_NODES)
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def literal(self, start: int, data: bytes) -> int:
        """The node behind these bytes."""
        for byte in data:
            end = self.add()
            self.edges[start].append((byte, byte, end))
            start = end
        return start

    def one_of(self, start: int, ranges: Ranges) -> int:
        """The node behind one of these characters."""
        end = self.add()
        for sequence in (sequence for low, high in ranges for sequence in utf8(low, high)):
            node = start
            for place, (low, high) in enumerate(sequence):
                after = end if place == len(sequence) - 1 else self.add()
                self.edges[node].append((low, high, after))
                node = after
        return end


class Parser:
    """Builds nodes of a pattern that `re.compile` takes."""

    def __init__(self, pattern: str, nodes: Nodes) -> None:
        self.text, self.at, self.nodes = pattern, 0, nodes

    def parse(self, start: int) -> int:
        """The node behind the pattern."""
        end = self.alternatives(start)
        if self.at < len(self.text):
            raise self.unsupported(self.text[self.at])
        return end

    def unsupported(self, what: str) -> ValueError:
        """The error for a part that is not supported."""
        return ValueError(f"pattern={self.text!r}: {what!r} at {self.at} is not supported: {EXPECTED}")

    def peek(self, *tokens: str) -> bool:
        """Whether one of these comes next."""
        return self.text.startswith(tokens, self.at)

    def take(self, count: int = 1) -> str:
        """The next characters."""
        self.at += count
        return self.text[self.at - count : self.at]

    def alternatives(self, start: int) -> int:
        """The node behind what one of several sequences matches."""
        end = self.nodes.add()
        while True:
            self.nodes.free[self.sequence(self.fresh(start))].append(end)
            if not self.peek("|"):
                return end
            self.take()

    def fresh(self, start: int) -> int:
        """A node right behind another, into which no edge of what follows leads."""
        node = self.nodes.add()
        self.nodes.free[start].append(node)
        return node

    def sequence(self, start: int) -> int:
        """The node behind items one after another, with their repetitions."""
        while self.at < len(self.text) and not self.peek("|", ")"):
            first, begin = self.at, self.fresh(start)
            end = self.item(begin)
            if (counts := self.repetition()) is None:
                start = end
                continue
            behind, (least, most) = self.at, counts
            done = self.nodes.add()
            for count in range(max(least, 1) if most is None else most):
                if count:  # parsed once more for each time that it is repeated
                    self.at, begin = first, self.fresh(end)
                    end = self.item(begin)
                if count >= least:
                    self.nodes.free[begin].append(done)
            if most == 0:  # what was built is cut off
                self.nodes.free[start][-1] = done
            else:
                self.nodes.free[end] += [done] if most is not None else [done, begin]
            self.at, start = behind, done
        return start

    def repetition(self) -> tuple[int, int | None] | None:
        """The smallest and the largest number of times; None: nothing is repeated."""
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        counts = re.compile(r"\{(\d*)(?:(,)(\d*))?\}").match(self.text, self.at)
        if self.peek(*simple):
            found = simple[self.take()]
        elif counts is not None and counts[0] != "{}":
            self.take(len(counts[0]))
            least = int(counts[1] or 0)
            found = least, (int(counts[3]) if counts[3] else None) if counts[2] else least
        else:
            return None
        if self.peek("+"):
            raise self.unsupported("+")
        if self.peek("?"):  # as few as possible: of whole answers the same ones
            self.take()
        return found

    def item(self, start: int) -> int:
        """The node behind a character, a class or a group."""
        if self.peek("^", "$"):
            raise self.unsupported(self.text[self.at])
        if self.peek("("):
            named = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))").match(self.text, self.at)
            if named is None:
                raise self.unsupported(self.text[self.at : self.at + 3])
            self.take(len(named[0]))
            end = self.alternatives(self.fresh(start))
            self.take()  # the bracket
            return end
        if self.peek("["):
            return self.nodes.one_of(start, self.char_class())
        character = self.take()
        if character == ".":
            return self.nodes.one_of(start, without([(10, 10)]))
        if character == "\\":
            return self.nodes.one_of(start, self.escape())
        return self.nodes.one_of(start, [(ord(character),) * 2])

    def escape(self) -> Ranges:
        """What stands for the characters behind a backslash."""
        letter = self.take()
        if letter.lower() in CLASSES:
            ranges = CLASSES[letter.lower()]
            return ranges if letter.islower() else without(ranges)
        if letter in CONTROLS:
            code = CONTROLS[letter]
        elif letter in "xuU":
            code = int(self.take({"x": 2, "u": 4, "U": 8}[letter]), 16)
        elif letter.isalnum():
            raise self.unsupported("\\" + letter)
        else:
            code = ord(letter)
        return [(code, code)]

    def char_class(self) -> Ranges:
        """The characters between square brackets."""
        self.take()
        if negated := self.peek("^"):
            self.take()
        ranges: Ranges = []
        while True:
            character = self.take()
            low = self.escape() if character == "\\" else [(ord(character),) * 2]
            if self.peek("-") and not self.peek("-]"):
                self.take()
                character = self.take()
                high = self.escape() if character == "\\" else [(ord(character),) * 2]
                low = [(low[0][0], high[0][1])]
            ranges += low
            if self.peek("]"):
                self.take()
                return without(ranges) if negated else ranges


def without(ranges: Ranges) -> Ranges:
    """All other characters."""
    rest, low = [], 0
    for first, last in sorted([*ranges, SURROGATES]):
        if low < first:
            rest.append((low, first - 1))
        low = max(low, last + 1)
    return [*rest, (low, sys.maxunicode)] if low <= sys.maxunicode else rest


def utf8(low: int, high: int) -> Iterator[Sequence[tuple[int, int]]]:
    """Sequences of ranges of bytes that together are the characters of a range."""
    for first, last in ((low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)):
        if first <= last:
            yield from _utf8(first, last)


def _utf8(low: int, high: int) -> Iterator[Sequence[tuple[int, int]]]:
    for end in (0x7F, 0x7FF, 0xFFFF):  # the last characters of one, two and three bytes
        if low <= end < high:
            yield from _utf8(low, end)
            yield from _utf8(end + 1, high)
            return
    for bits in (6, 12, 18) if low > 0x7F else ():
        block = (1 << bits) - 1  # the bytes behind a first one take all values, or the range is divided
        if low & ~block != high & ~block:
            if low & block:
                yield from _utf8(low, low | block)
                yield from _utf8((low | block) + 1, high)
                return
            if ~high & block:
                yield from _utf8(low, (high & ~block) - 1)
                yield from _utf8(high & ~block, high)
                return
    yield list(zip(chr(low).encode(), chr(high).encode()))


@functools.lru_cache(maxsize=8)
def automaton(pattern: Any) -> tuple[np.ndarray, np.ndarray]:
    """The automaton of a regular expression, in the syntax of `re` with the flag ASCII, of a choice among texts (a
    tuple), or of a `json_schema.Schema`.

    Returns:
        int32[N, 256], the state after each state and byte, -1 for none, beginning with state 0; and bool[N], the states
        in which a text may end.

    Raises:
        ValueError: no regular expression, one with parts that are not supported, or one that is too large; as
            `Schema.build`.
    """
    nodes = Nodes()
    start = nodes.add()
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from None
        end = Parser(pattern, nodes).parse(start)
    elif isinstance(pattern, tuple):
        end = nodes.add()
        for text in pattern:
            nodes.free[nodes.literal(start, text.encode())].append(end)
    else:
        end = pattern.build(nodes, start)
    return _determined(nodes, start, end)


def _determined(nodes: Nodes, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    def closure(found: set[int]) -> frozenset[int]:
        """With the nodes that are reached without a byte; only those that lead on are told apart."""
        stack = [*found]
        while stack:
            new = [node for node in nodes.free[stack.pop()] if node not in found]
            found.update(new)
            stack += new
        return frozenset(node for node in found if nodes.edges[node] or node == end)

    first = closure({start})
    states, rows = {first: 0}, []
    queue = [first]
    for members in queue:
        row, edges = np.full(256, -1, np.int32), [edge for node in members for edge in nodes.edges[node]]
        cuts = sorted({cut for low, high, _ in edges for cut in (low, high + 1)})
        for low, behind in zip(cuts, cuts[1:]):
            after = closure({to for first, last, to in edges if first <= low <= last})
            if after and after not in states:
                states[after] = len(states)
                queue.append(after)
                if len(states) > MOST_STATES:
                    raise too_large(MOST_STATES)
            if after:
                row[low:behind] = states[after]
        rows.append(row)
    return np.stack(rows), np.array([end in members for members in queue])
