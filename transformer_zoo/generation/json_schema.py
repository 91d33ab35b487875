"""JSON schemas as automata of the texts that they allow: JSON on one line, its properties in the schema's order."""

import dataclasses
import itertools
import json
import re
import urllib.parse
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from transformer_zoo import json_files
from transformer_zoo.generation.pattern import Nodes, Parser, Ranges, without
from transformer_zoo.trees import nearest

ANNOTATIONS = {
    "title", "description", "default", "examples", "$schema", "$comment", "$defs", "definitions", "deprecated",
    "readOnly", "writeOnly",
}  # fmt: skip
"""Keywords that allow and forbid nothing."""
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(), "boolean": set(), "null": set(),
}  # fmt: skip
"""Keywords of each type. They concern no other."""
TYPED = {key for keys in KEYWORDS.values() for key in keys}
COMBINED = ("anyOf", "oneOf", "allOf")
KNOWN = {*ANNOTATIONS, *TYPED, *COMBINED, "type", "enum", "const", "$ref"}
OTHERS = {
    "$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$vocabulary", "contains", "contentEncoding", "contentMediaType",
    "contentSchema", "dependentRequired", "dependentSchemas", "else", "if", "maxContains", "maxProperties",
    "minContains", "minProperties", "multipleOf", "not", "patternProperties", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
}  # fmt: skip
"""Keywords of JSON Schema 2020-12 that are not supported."""

HEX = "[0-9a-fA-F]"
# A surrogate that has no other half stands for no character.
CHARACTER = (
    rf'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u(?:[0-9a-cefA-CEF]{HEX}{{3}}|[dD][0-7]{HEX}{{2}}'
    rf"|[dD][89abAB]{HEX}{{2}}\\u[dD][c-fC-F]{HEX}{{2}})))"
)
QUOTED = [*range(32), ord('"'), ord("\\")]
"""Characters that a text in JSON has as escapes alone."""
LARGEST = 10**15 - 1
"""Of integers: up to here every reader of JSON keeps them exactly, and Python reads them at all."""
NUMBERS = {"integer": r"-?(?:0|[1-9]\d{0,14})"}
NUMBERS["number"] = NUMBERS["integer"] + r"(?:\.\d+)?(?:[eE][+-]?\d{1,2})?"  # 1e999 would be infinite
FORMATS = {
    "date": (
        r"[1-9]\d{3}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    ),
    "time": r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    "uuid": "-".join(f"{HEX}{{{count}}}" for count in (8, 4, 4, 4, 12)),
}
"""Of strings, as regular expressions: RFC 3339 from the year 1000 on and without leap days, and RFC 9562."""
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"
TYPES = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
    "null": type(None),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Schema:
    """A schema as one text, by which equal ones are equal."""

    text: str

    @classmethod
    def of(cls, schema: Mapping[str, Any] | str) -> "Schema":
        """The schema of a dict, or of a text in JSON.

        Raises:
            ValueError: it is no JSON, or no object.
        """
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            return cls(json.dumps(json_files.parse(text.encode(), "schema", once=True)))
        except (TypeError, RecursionError, UnicodeError) as error:
            raise ValueError(f"schema is not JSON: {error}") from None

    def build(self, nodes: Nodes, start: int) -> int:
        """The node behind the texts that the schema allows.

        Raises:
            ValueError: a keyword that is not supported, a schema that refers to itself, that contradicts itself or that
                is too large.
        """
        root = json.loads(self.text)
        root.pop("$id", None)
        return _Builder(root, nodes).value(start, root, "#")


class _InText(Nodes):
    """Nodes in which characters are written as within a text in JSON."""

    def __init__(self, nodes: Nodes) -> None:
        self.edges, self.free = nodes.edges, nodes.free

    def one_of(self, start: int, ranges: Ranges) -> int:
        end = super().one_of(start, without([*without(ranges), *((code, code) for code in QUOTED)]))
        for code in QUOTED:
            if any(low <= code <= high for low, high in ranges):
                self.free[self.literal(start, json.dumps(chr(code))[1:-1].encode())].append(end)
        return end


class _Builder:
    """Adds nodes of each part of a schema. `path` is where the part is, as errors name it; into a node that is given as
    `start` lead no edges of what is added."""

    def __init__(self, root: Mapping[str, Any], nodes: Nodes) -> None:
        self.root, self.nodes = root, nodes
        self.followed: list[str] = []
        """The references that lead to the part that is being added."""

    def value(self, start: int, schema: Any, path: str) -> int:
        """The node behind a value."""
        if not isinstance(schema, dict):
            raise _fault(path, f"it is {json_files.describe(schema)}, which does not say what is allowed: give a type")
        if "$ref" in schema:
            _check_keywords(schema, path, {"$ref"})
            return self.reference(start, schema["$ref"], path)
        for key in COMBINED:
            if key in schema:
                _check_keywords(schema, path, {key})
                return self.combined(start, schema, key, path)
        types = _types(schema, path)
        if "enum" in schema or "const" in schema:
            _check_keywords(schema, path, {"enum", "const", "type"})
            values = [x for x in _values(schema, path) if types is None or any(_is(x, kind) for kind in types)]
            if not values:
                raise _fault(path, "none of its values is allowed: correct enum, const or type")
            return self.one_of(self.constant(start, x, path) for x in values)
        _check_keywords(schema, path, {"type", *TYPED})
        if types is None:
            raise _fault(path, "it has no type, so that any value is allowed: give one")
        return self.one_of(self.of_type(kind, start, schema, path) for kind in types)

    def one_of(self, ends: Iterator[int]) -> int:
        """The node behind several."""
        found, end = [*ends], self.nodes.add()
        for behind in found:
            self.nodes.free[behind].append(end)
        return end

    def constant(self, start: int, value: Any, path: str) -> int:
        """The node behind this value."""
        if not isinstance(value, dict | list):
            return self.nodes.literal(start, _written(value, path))
        is_object = isinstance(value, dict)
        end = self.nodes.literal(start, b"{" if is_object else b"[")
        for n, part in enumerate(value):
            end = self.separator(end, b",") if n else end
            if is_object:
                end, part = self.separator(self.constant(end, part, path), b":"), value[part]
            end = self.constant(end, part, path)
        return self.nodes.literal(end, b"}" if is_object else b"]")

    def reference(self, start: int, name: Any, path: str) -> int:
        if name in self.followed:
            raise _fault(path, f"{name} refers to itself, and answers of any depth are not supported: write out a few")
        self.followed.append(name)
        end = self.value(start, self.named(name, path), name)
        self.followed.pop()
        return end

    def named(self, name: Any, path: str) -> Any:
        """What a reference stands for."""
        found: Any = self.root
        if not isinstance(name, str) or name != "#" and not name.startswith("#/"):
            raise _fault(path, f"$ref is {json_files.excerpt(repr(name))}: only #/..., within the schema, is supported")
        for part in urllib.parse.unquote(name).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            elif isinstance(found, dict) and part in found:
                found = found[part]
            else:
                raise _fault(path, f"the schema has no {json_files.excerpt(name)}")
        return found

    def combined(self, start: int, schema: Mapping[str, Any], key: str, path: str) -> int:
        parts = _of(schema, key, list, path)
        if not parts or key == "allOf" and len(parts) > 1:
            raise _fault(path, f"{key} of {len(parts)} is not supported")
        if key == "oneOf":
            for (i, a), (k, b) in itertools.combinations(enumerate(parts), 2):
                if not self.disjoint(a, b, path):
                    raise _fault(path, f"oneOf: numbers {i} and {k} may both allow a value: use anyOf")
        return self.one_of(self.value(start, part, f"{path}/{key}/{i}") for i, part in enumerate(parts))

    def disjoint(self, a: Any, b: Any, path: str, *, properties: bool = True) -> bool:
        """Whether it is certain that no value is allowed by both."""
        pair = []
        for part in (a, b):
            for _ in range(json_files.DEEPEST):
                if not isinstance(part, dict) or "$ref" not in part:
                    break
                part = self.named(part["$ref"], path)
            if not isinstance(part, dict) or any(key in part for key in ("$ref", *COMBINED)):
                return False
            pair.append(part)
        values = [_values(part, path) for part in pair]
        if None not in values:
            equal = lambda x, y: x == y and isinstance(x, bool) == isinstance(y, bool) or isinstance(x, dict | list)
            return not any(equal(x, y) for x in values[0] for y in values[1])
        kinds = [
            {"number" if kind == "integer" else kind for kind in found or TYPES}
            if value is None else {kind for kind in TYPES if kind != "integer" and any(_is(x, kind) for x in value)}
            for found, value in zip((_types(part, path) for part in pair), values)
        ]  # fmt: skip
        if not kinds[0] & kinds[1]:
            return True
        both = set.intersection(*(set(_of(part, "required", list, path)) for part in pair))
        of = lambda name: (_of(part, "properties", dict, path).get(name, True) for part in pair)
        objects = properties and kinds[0] & kinds[1] == {"object"} and values == [None, None]
        return objects and any(self.disjoint(*of(name), path, properties=False) for name in both)

    def of_type(self, kind: str, start: int, schema: Mapping[str, Any], path: str) -> int:
        """The node behind a value of a type."""
        if kind == "object":
            return self.object(start, schema, path)
        if kind == "array":
            return self.array(start, schema, path)
        if kind == "string":
            return self.nodes.literal(self.string(self.nodes.literal(start, b'"'), schema, path), b'"')
        if kind == "integer" and schema.keys() & KEYWORDS[kind]:
            return self.integer(start, schema, path)
        if kind == "number" and (bound := sorted(schema.keys() & KEYWORDS["integer"])):
            raise _fault(path, f"the keyword {bound[0]!r} is supported for integers alone")
        return self.regular(start, NUMBERS.get(kind) or {"boolean": "true|false", "null": "null"}[kind])

    def regular(self, start: int, pattern: str) -> int:
        return Parser(pattern, self.nodes).parse(start)

    def separator(self, start: int, mark: bytes) -> int:
        """The node behind a comma or a colon, which a space may follow."""
        return self.regular(self.nodes.literal(start, mark), " ?")

    def object(self, start: int, schema: Mapping[str, Any], path: str) -> int:
        add, free, literal = self.nodes.add, self.nodes.free, self.nodes.literal
        properties, additional = _of(schema, "properties", dict, path), schema.get("additionalProperties")
        required = _of(schema, "required", list, path)
        if missing := [name for name in required if not isinstance(name, str) or name not in properties]:
            shown, hint = json_files.excerpt(repr(missing[0])), nearest(str(missing[0])[:80], properties)
            raise _fault(path, f"required: {shown} is not among the properties.{hint}")
        if not isinstance(additional, bool | dict | None):
            raise _fault(path, f"additionalProperties is {json_files.describe(additional)}: expected a schema")
        if not schema.keys() & {"properties", "additionalProperties"}:
            raise _fault(path, "it has no properties: list those that an answer has")
        # Where nothing is written yet, and where something is.
        empty, some = literal(start, b"{"), add()
        for name, part in properties.items():
            before = add()
            free[empty].append(before)
            free[self.separator(some, b",")].append(before)
            colon = self.separator(literal(before, _written(name, path)), b":")
            behind = self.value(colon, part, f"{path}/properties/{json_files.excerpt(name)}")
            next_empty, next_some = add(), add()
            free[behind].append(next_some)
            if name not in required:
                free[empty].append(next_empty)
                free[some].append(next_some)
            empty, some = next_empty, next_some
        if isinstance(additional, dict) and not properties:
            before = add()
            free[empty].append(before)
            colon = self.separator(self.of_type("string", before, {}, path), b":")
            free[self.value(colon, additional, f"{path}/additionalProperties")].append(some)
            free[self.separator(some, b",")].append(before)
        return self.one_of(literal(node, b"}") for node in (empty, some))

    def array(self, start: int, schema: Mapping[str, Any], path: str) -> int:
        free, first = self.nodes.free, _of(schema, "prefixItems", list, path)
        least, most = _count(schema, "minItems", path) or 0, _count(schema, "maxItems", path)
        if "items" not in schema or schema["items"] is False:
            if not first:
                raise _fault(path, "it has no items: say what they are")
            most = min(len(first), len(first) if most is None else most)
        if most is not None and least > most:
            raise _fault(path, f"minItems is {least}, and there can be at most {most}")
        end, done = self.nodes.literal(start, b"["), self.nodes.add()
        if least == 0:
            free[end].append(done)
        begin = end
        for n in range(max(least, len(first) + 1) if most is None else most):
            begin = self.nodes.add()
            free[self.separator(end, b",") if n else end].append(begin)
            part, at = (first[n], f"prefixItems/{n}") if n < len(first) else (schema["items"], "items")
            end = self.value(begin, part, f"{path}/{at}")
            if n + 1 >= least:
                free[end].append(done)
        if most is None:
            free[self.separator(end, b",")].append(begin)
        return self.nodes.literal(done, b"]")

    def string(self, start: int, schema: Mapping[str, Any], path: str) -> int:
        least, most = (_count(schema, key, path) for key in ("minLength", "maxLength"))
        if "format" in schema:
            if (name := schema["format"]) not in list(FORMATS):
                shown, hint = json_files.excerpt(repr(name)), nearest(str(name)[:80], FORMATS)
                raise _fault(path, f"format {shown} is not supported: only {', '.join(FORMATS)} are.{hint}")
            if len(schema.keys() & KEYWORDS["string"]) > 1:
                raise _fault(path, "format beside other keywords of strings is not supported: leave them out")
            return self.regular(start, FORMATS[name])
        if "pattern" not in schema:
            if most is not None and (least or 0) > most:
                raise _fault(path, f"minLength is {least}, and maxLength {most}")
            return self.regular(start, f"{CHARACTER}{{{least or 0},{'' if most is None else most}}}")
        if least is not None or most is not None:
            raise _fault(path, "pattern beside minLength or maxLength is not supported: bound the pattern")
        # It is found anywhere in the text, unless it says where.
        text, anything = _of(schema, "pattern", str, path), r"[\s\S]*"
        begins, ends = text.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$\Z", text) is not None
        found = text[begins : len(text) - ends]
        found = found if begins or ends else f"(?:{found})"
        try:
            re.compile(text)
            parser = Parser(("" if begins else anything) + found + ("" if ends else anything), _InText(self.nodes))
            end = parser.sequence(start)
            if parser.at < len(parser.text):
                raise ValueError("put what is between | in brackets")
        except (re.error, OverflowError, RecursionError, ValueError) as error:
            raise _fault(path, f"pattern {json_files.excerpt(repr(text))}: {error}") from None
        return end

    def integer(self, start: int, schema: Mapping[str, Any], path: str) -> int:
        """The node behind an integer between two bounds."""
        bound = lambda key, default: default if schema.get(key) is None else _of(schema, key, int, path)
        low = max(-LARGEST, bound("minimum", -LARGEST), bound("exclusiveMinimum", -LARGEST - 1) + 1)
        high = min(LARGEST, bound("maximum", LARGEST), bound("exclusiveMaximum", LARGEST + 1) - 1)
        if low > high:
            raise _fault(path, f"no integer of at most 15 digits is from {low} to {high}")
        ends = []
        for sign, first, last in ((b"", max(low, 0), high), (b"-", max(-high, 1), -low)):
            for digits in _decimals(first, last) if first <= last else ():
                node = self.nodes.literal(start, sign)
                for a, b in digits:
                    node = self.nodes.one_of(node, [(ord(a), ord(b))])
                ends.append(node)
        return self.one_of(iter(ends))


def _decimals(low: int, high: int) -> Iterator[Sequence[tuple[str, str]]]:
    """Sequences of ranges of digits that together are the numbers of a range, none of them below 0."""
    size = len(str(low))
    if high >= 10**size:
        yield from _decimals(low, 10**size - 1)
        yield from _decimals(10**size, high)
        return
    for block in (10**power for power in range(1, size)):  # digits behind a first one take all values, or it is divided
        if low // block != high // block:
            if low % block:
                yield from _decimals(low, low - low % block + block - 1)
                yield from _decimals(low - low % block + block, high)
                return
            if high % block != block - 1:
                yield from _decimals(low, high - high % block - 1)
                yield from _decimals(high - high % block, high)
                return
    yield list(zip(str(low), str(high)))


def _fault(path: str, fault: str) -> ValueError:
    return ValueError(f"schema: {path}: {fault}")


def _check_keywords(schema: Mapping[str, Any], path: str, known: Collection[str]) -> None:
    for key in schema:
        if key not in known and key not in ANNOTATIONS:
            shown = json_files.excerpt(repr(key))
            if key not in KNOWN | OTHERS:
                raise _fault(path, f"there is no keyword {shown}: leave it out.{nearest(key[:80], KNOWN)}")
            beside = [f" beside {name}" for name in schema if name in known and name not in ("type", *TYPED)]
            raise _fault(path, f"the keyword {shown} is not supported{''.join(beside[:1])}: leave it out")


def _types(schema: Mapping[str, Any], path: str) -> list[str] | None:
    """The types that a schema allows. None: all."""
    types = schema.get("type", next((kind for kind, key in (("object", "properties"), ("array", "items"))
                                     if key in schema), None))  # fmt: skip
    types = [types] if isinstance(types, str) else types
    if types is not None and not (isinstance(types, list) and types and all(kind in [*TYPES] for kind in types)):
        hint = nearest(str(schema["type"])[:80], TYPES)
        raise _fault(path, f"type is {json_files.excerpt(repr(types))}: known are {', '.join(TYPES)}.{hint}")
    return types


def _values(schema: Mapping[str, Any], path: str) -> list[Any] | None:
    """The values that a schema lists."""
    if "const" in schema and "enum" in schema:
        raise _fault(path, "const beside enum is not supported: leave one of them out")
    return [schema["const"]] if "const" in schema else _of(schema, "enum", list, path) if "enum" in schema else None


def _is(value: Any, kind: str) -> bool:
    whole = kind == "integer" and isinstance(value, float) and value.is_integer()
    return whole or isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _of(schema: Mapping[str, Any], key: str, kind: type, path: str) -> Any:
    """The value of a keyword, or an empty one."""
    value = schema.get(key, kind())
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _fault(path, f"{key} is {json_files.describe(value)}, where {json_files.describe_kind(kind)} is expected")
    return value


def _count(schema: Mapping[str, Any], key: str, path: str) -> int | None:
    if key not in schema:
        return None
    if (count := _of(schema, key, int, path)) < 0:
        raise _fault(path, f"{key} is {count}: it cannot be below 0")
    return count


def _written(value: Any, path: str) -> bytes:
    """A value as an answer has it."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # also a half of a surrogate pair
        raise _fault(path, f"{json_files.excerpt(repr(value))} is no value of JSON") from None
