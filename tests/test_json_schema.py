"""Answers that a JSON schema allows: texts of the automaton against `json` and `jsonschema`, and answers of a model."""

import datetime
import json
import random
import re
import uuid
from typing import Any

import jsonschema
import numpy as np
import pytest
from test_constraint import CASES, bundle, reads

from transformer_zoo import registry
from transformer_zoo.generation import constraint
from transformer_zoo.generation import generate as module
from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.json_schema import Schema
from transformer_zoo.generation.pattern import automaton

NAMES = ["name", 'a"b\\', "größe", "\u6587\u5b57", "n\n", "x", ""]
LEAVES: list[Any] = [
    {"type": "string"}, {"type": "string", "minLength": 2, "maxLength": 4}, {"type": "string", "maxLength": 0},
    {"type": "string", "pattern": r"^[A-Z]\w{0,3}$"}, {"type": "string", "pattern": r"[\"\n\\]|\u00e9"},
    {"type": "null"}, {"type": "integer"}, {"type": "integer", "minimum": -120, "exclusiveMaximum": 1007},
    {"type": "number"}, {"type": "integer", "exclusiveMinimum": 17, "maximum": 1_000_000, "description": "many"},
    {"type": "boolean"}, {"type": ["string", "null"], "maxLength": 3},
    {"type": "string", "format": "date-time"},
    {"enum": ["a", 1, 2.5, None, {"b": [True]}, "\"\u00e9\n"]},
    {"const": [1, {"x": "y"}]}, {"type": "string", "enum": ["yes", "no", 3]}, {"$ref": "#/$defs/word"},
    {"type": "object", "properties": {}}, {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
]  # fmt: skip
DEFS = {"word": {"type": "string", "pattern": "^[a-z]+$"}, "pair": {"$ref": "#/$defs/a~1b"}, "a/b": {"type": "boolean"}}


def drawn(draw: random.Random, depth: int) -> dict[str, Any]:
    kind = draw.random()
    if depth == 0 or kind < 0.15:
        return draw.choice(LEAVES)
    part = lambda: drawn(draw, depth - 1)
    if kind < 0.55:
        properties = {name: part() for name in draw.sample(NAMES, draw.randrange(5))}
        return {
            "type": "object", "properties": properties, "additionalProperties": draw.choice([False, True]),
            "required": [name for name in properties if draw.random() < 0.5],
        }  # fmt: skip
    if kind < 0.8:
        least, most = sorted([draw.randrange(4), draw.randrange(4)])
        bounds = draw.choice([{}, {"minItems": least}, {"maxItems": most}, {"minItems": least, "maxItems": most}])
        first = draw.choice([{}, {"prefixItems": [part(), part()]}])
        return {"type": "array", "items": part(), **first, **bounds}
    if kind < 0.9:
        return draw.choice([{"anyOf": [part(), part()]}, {"allOf": [part()]}, {"$ref": "#/$defs/pair"}])
    if kind < 0.95:
        return {"oneOf": [{"type": "integer"}, {"type": ["string", "null"]}, {"type": "array", "items": part()}]}
    return {"type": "object", "additionalProperties": part()}


def text_of(step_N256: np.ndarray, distance_N: np.ndarray, draw: random.Random, longest: int) -> str:
    """A text of the automaton: anything at first, and then the shortest way to an end."""
    state, text = 0, b""
    while distance_N[state] or len(text) < longest and draw.random() < 0.9:
        behind = [byte for byte in range(256) if step_N256[state, byte] >= 0]
        if not behind:
            break
        if len(text) >= longest:
            distances_of = distance_N[step_N256[state, behind]]
            behind = [byte for byte, x in zip(behind, distances_of) if x == distances_of.min()]
        text += bytes([byte := draw.choice(behind)])
        state = step_N256[state, byte]
    return text.decode()


def distances(step_N256: np.ndarray, ends_N: np.ndarray) -> np.ndarray:
    distance_N = np.where(ends_N, 0, constraint.FAR)
    while True:
        after_N256 = np.where(step_N256 < 0, constraint.FAR, distance_N[step_N256])
        nearer_N = np.minimum(distance_N, after_N256.min(axis=1) + 1)
        if (nearer_N == distance_N).all():
            return distance_N
        distance_N = nearer_N


def test_texts_are_of_the_schema():
    """Of 60 drawn schemas: texts of the automaton parse and validate, and values that validate are read."""
    draw = random.Random(0)
    for _ in range(60):
        schema = drawn(draw, 2) | {"$defs": DEFS}
        step_N256, ends_N = automaton(Schema.of(schema))
        distance_N, validator = distances(step_N256, ends_N), jsonschema.Draft202012Validator(schema)
        assert distance_N[0] < constraint.FAR
        for _ in range(8):
            text = text_of(step_N256, distance_N, draw, draw.randrange(60))
            validator.validate(json.loads(text, parse_constant=pytest.fail))
            text.encode()  # no halves of surrogates
            for separators in ((",", ":"), (", ", ": ")):
                again = json.dumps(json.loads(text), separators=separators, ensure_ascii=False)
                # Numbers are written in other ways, and of a name that is there twice the last value counts.
                if not re.search(r"[0-9]", again) and "additionalProperties" not in str(schema).replace("False", ""):
                    assert reads(step_N256, ends_N, again), (schema, again)


def test_exactly_these_are_read():
    cases = {
        r'{"type": "string"}': (
            ['""', r'"\u00e9\n\/\ud83d\ude00"', '"\x7f\u2028"', '"\U0001f600"'],
            [r'"\ud83d"', r'"\x41"', '"\n"', '"a', r'"\ude00\ud83d"', r'"\u12"', "a", "null"],
        ),
        '{"type": "string", "minLength": 1, "maxLength": 2}': ([r'"\ud83d\ude00\n"', '"é"'], ['""', '"abc"']),
        '{"type": "string", "pattern": "^a|b$"}': None,
        '{"type": "string", "pattern": "a|b"}': (['"xa\\n"', '"b"'], ['"x"', '"\n"']),
        '{"type": "string", "pattern": "^[^a]\\\\$"}': ([r'"\"$"', '"x$a"'], ['"a$"']),
        '{"type": "number"}': (
            ["0", "-0", "1.50", "1e5", "-1.2E-07", "9" * 15],
            ["01", "1.", ".5", "+1", "1e", "1e999", "NaN", "Infinity", "9" * 16, "0x1"],
        ),
        '{"type": "integer"}': (["0", "-10", "9" * 15], ["1.0", "1e2", "00", "9" * 16]),
        '{"type": "integer", "minimum": -25, "maximum": 1300}': (
            [*map(str, (-25, -19, -1, 0, 7, 99, 1299, 1300))], ["-26", "-30", "1301", "2000", "-0", "10000", "-100"]
        ),
        '{"type": ["integer", "null"], "exclusiveMaximum": -9}': (["-10", "null", "-999"], ["-9", "0", "5"]),
        '{"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]}': (
            ['{"b":2}', '{"a": 1,"b":2, "c":3}', '{"b":2,"c":3}'],
            ["{}", '{"a":1}', '{"b":2,"a":1}', '{"b":2,}', '{ "b":2}', '{"b":2,"b":2}', '{"a":1,"c":3}'],
        ),
        '{"properties": {"a": {"const": 1}, "b": {"const": 2}}}': (
            ["{}", '{"a":1}', '{"b":2}', '{"a":1,"b":2}'], ['{"a":1,}', '{,"b":2}', '{"a":1"b":2}']
        ),
        '{"items": {"const": 1}}': (["[]", "[1]", "[1,1, 1]"], ["[1,]", "[,1]", "[11]", "[1 ,1]"]),
        '{"items": {"const": 1}, "minItems": 2}': (["[1,1]", "[1,1,1]"], ["[]", "[1]"]),
        '{"items": {"const": 1}, "prefixItems": [{"const": 2}], "type": "array"}': (["[]", "[2]", "[2,1,1]"], ["[1]"]),
        '{"prefixItems": [{"const": 1}, {"const": 2}], "type": "array", "minItems": 1}': (
            ["[1]", "[1,2]"], ["[]", "[1,2,3]"]
        ),
        '{"type": "object", "additionalProperties": {"type": "null"}}': (['{}', '{"a":null, "b": null}'], ['{"a":1}']),
    }  # fmt: skip
    for schema, expected in cases.items():
        if expected is None:
            with pytest.raises(ValueError, match="put what is between | in brackets"):
                automaton(Schema.of(schema))
            continue
        step_N256, ends_N = automaton(Schema.of(schema))
        found = [[text for text in texts if reads(step_N256, ends_N, text)] for texts in expected]
        assert found == [expected[0], []], schema
    for low, high in ((0, 0), (7, 123), (95, 105), (-30, 12), (100, 1999)):
        step_N256, ends_N = automaton(Schema.of({"type": "integer", "minimum": low, "maximum": high}))
        assert [x for x in range(-2100, 2100) if reads(step_N256, ends_N, str(x))] == [*range(low, high + 1)]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "schema is not JSON: "),
        ("[]", "schema is a list of 0, where an object is expected"),
        ('{"type": "null", "type": "string"}', "repeated: type"),
        ({"const": {1}}, "schema is not JSON: "),
        ({"type": "text"}, "schema: #: type is ['text']: known are object, array"),
        (
            {"properties": {"a": {"type": "string", "format": "ip"}}},
            "#/properties/a: format 'ip' is not supported: only date",
        ),
        ({"type": "string", "format": "date", "minLength": 9}, "#: format beside other keywords of strings"),
        ({"type": "string", "contentEncoding": "x"}, "#: the keyword 'contentEncoding' is not supported: leave it out"),
        (
            {"type": "object", "propertys": {}},
            "#: there is no keyword 'propertys': leave it out. Did you mean 'properties'?",
        ),
        (
            {"properties": {"a": {"typ": "null"}}},
            "#/properties/a: there is no keyword 'typ': leave it out. Did you mean",
        ),
        ({"properties": {}, "requried": []}, "Did you mean 'required'?"),
        ({"properties": {"name": {"type": "null"}}, "required": ["nmae"]}, "the properties. Did you mean 'name'?"),
        ({"type": "int"}, "null. Did you mean 'integer'?"),
        ({"type": "string", "format": "datetime"}, "are. Did you mean 'date-time'?"),
        ({"properties": {"a": {}}}, "#/properties/a: it has no type, so that any value is allowed"),
        ({"items": True}, "#/items: it is true, which does not say what is allowed"),
        ({"type": "object"}, "#: it has no properties"),
        ({"properties": {}, "required": ["b"]}, "#: required: 'b' is not among the properties"),
        ({"type": "array"}, "#: it has no items"),
        ({"items": {"type": "null"}, "minItems": 3, "maxItems": 2}, "#: minItems is 3, and there can be at most 2"),
        ({"type": "string", "minLength": -1}, "#: minLength is -1: it cannot be below 0"),
        ({"type": "string", "minLength": "1"}, "#: minLength is a text ('1'), where a whole number is expected"),
        ({"type": "string", "pattern": "a", "maxLength": 2}, "pattern beside minLength or maxLength"),
        ({"type": "string", "pattern": "(a"}, "#: pattern '(a': "),
        ({"type": "string", "pattern": r"\bword"}, "#: pattern '\\\\bword': "),
        ({"type": "number", "minimum": 0}, "#: the keyword 'minimum' is supported for integers alone"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "no integer of at most 15 digits is from 2 to 1"),
        ({"type": "integer", "multipleOf": 2}, "the keyword 'multipleOf' is not supported"),
        ({"enum": [1], "type": "string"}, "#: none of its values is allowed"),
        ('{"const": NaN}', "#: nan is no value of JSON"),
        ({"$ref": "#/$defs/a"}, "#: the schema has no #/$defs/a"),
        ({"$ref": "other.json"}, "#: $ref is 'other.json': only #/..., within the schema"),
        ({"$ref": "#/$defs/a", "minLength": 2, "$defs": {"a": {}}}, "'minLength' is not supported beside $ref"),
        (
            {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
            "#/$defs/a/items: #/$defs/a refers to itself",
        ),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#: oneOf: numbers 0 and 1 may both allow a value"),
        ({"oneOf": [{"enum": [1, "a"]}, {"const": 1.0}]}, "#: oneOf: numbers 0 and 1 may both"),
        ({"anyOf": []}, "#: anyOf of 0 is not supported"),
        ({"type": "array", "minItems": 10**6, "items": {"type": "string"}}, "has more than 100,000 places"),
    ],
)
def test_schemas_that_cannot_be(schema, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        automaton(Schema.of(schema))


def test_formats():
    """Every day of a few years, but for leap days; every text that is drawn is one that Python reads."""
    step_N256, ends_N = automaton(Schema.of({"type": "string", "format": "date"}))
    day = datetime.date(1999, 12, 1)
    while day.year < 2002:
        assert reads(step_N256, ends_N, f'"{day}"') == (day.strftime("%m-%d") != "02-29"), day
        day += datetime.timedelta(days=1)
    assert not any(reads(step_N256, ends_N, f'"{x}"') for x in ("2001-04-31", "2001-13-01", "2001-02-29", "2001-1-1"))
    for name, read in (("date-time", datetime.datetime.fromisoformat), ("uuid", uuid.UUID)):
        step_N256, ends_N = automaton(Schema.of({"type": "string", "format": name}))
        distance_N, draw = distances(step_N256, ends_N), random.Random(0)
        for _ in range(30):
            read(json.loads(text_of(step_N256, distance_N, draw, draw.randrange(60))))


def test_parts_that_exclude_one_another():
    kind = lambda name: {"properties": {"kind": {"const": name}, "x": {"type": "null"}}, "required": ["kind"]}
    schema = {
        "$id": "https://example.org/schema", "$defs": {"a": kind("a")},
        "oneOf": [{"$ref": "#/$defs/a"}, kind("b"), {"const": True}, {"const": 1}, {"type": "string"}],
    }  # fmt: skip
    step_N256, ends_N = automaton(Schema.of(schema))
    for text in ('{"kind":"a"}', '{"kind": "b", "x": null}', "true", "1", '"c"'):
        assert reads(step_N256, ends_N, text)
    assert not reads(step_N256, ends_N, '{"kind":"c"}')


def test_answers_of_a_model(monkeypatch):
    """Complete in time, whatever the model would rather write; by its text as by its dict."""
    monkeypatch.setattr(module, "BUCKET", 16)
    m = bundle(next(case for case in CASES if not registry.is_encoder_decoder(case.config)))
    schema = {
        "type": "object", "required": ["name", "tags"],
        "properties": {
            "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "items": {"enum": ["é", "b"]}},
        },
    }  # fmt: skip
    options = {"max_new_tokens": 48, "temperature": 2.0, "seed": 1}
    answers = generate(m, ["def read", "12"], schema=schema, **options)
    assert all(jsonschema.validate(json.loads(answer), schema) is None for answer in answers)
    assert answers == generate(m, ["def read", "12"], schema=json.dumps(schema), **options)
    with pytest.raises(ValueError, match="schema: an answer cannot have at most max_new_tokens=4: the shortest has"):
        generate(m, "a", schema=schema, max_new_tokens=4)
    with pytest.raises(ValueError, match="pattern and schema: give one of them"):
        generate(m, "a", schema=schema, pattern="a", max_new_tokens=4)
