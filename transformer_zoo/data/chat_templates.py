"""Chat templates: the Jinja programs beside a tokenizer that write a conversation as one text.

They come with strangers' models, so they run in Jinja's sandbox, over plain JSON data, and within limits of work and of
size.
"""

import dataclasses
import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, wraps
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from transformer_zoo import json_files

LARGEST = 2**24
"""Characters or items of the largest value that a template may make."""
MOST_STEPS = 2**18
"""Loop iterations and calls of one rendering; values count by their size, 1 for each 1,024 characters or items."""
WIDEST = 10_000
"""The largest number that a function which pads a text may be given."""
PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "indent")


def read(files: Mapping[str, bytes], config: str) -> dict[str, str]:
    """The templates among the files of a tokenizer, by name; the usual one is `default`.

    As in transformers, files of their own win over tokenizer_config.json; chat_template.json comes last.

    Args:
        config: the name of tokenizer_config.json.

    Raises:
        ValueError: a template that is no text.
    """
    own = {name: files[name] for name in sorted(files) if name.endswith(".jinja")}
    if own:
        stem = lambda name: name.rpartition("/")[2].removesuffix(".jinja")
        names = {name: "default" if name == "chat_template.jinja" else stem(name) for name in own}
        return {names[name]: _text(content, name) for name, content in own.items()}
    for name in (config, "chat_template.json"):
        found = json_files.parse(files.get(name, b"{}"), name).get("chat_template")
        if isinstance(found, list) and all(isinstance(x, dict) for x in found):
            found = {x.get("name"): x.get("template") for x in found}
        elif isinstance(found, str):
            found = {"default": found}
        if found is None:
            continue
        if not isinstance(found, dict) or not all(isinstance(x, str) for pair in found.items() for x in pair):
            raise ValueError(
                f"{name}: chat_template is {json_files.describe(found)}, where a text or a list of objects with a "
                "name and a template is expected"
            )
        return found
    return {}


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError for a conversation without messages, or a message without its role or its content."""
    if not len(messages):
        raise ValueError("the conversation has no messages: give at least one")
    for i, message in enumerate(messages):
        example = 'such as {"role": "user", "content": "Hello"}'
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise ValueError(f"message {i} has no role: a message is a dictionary {example}")
        content = message.get("content")
        if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
            raise ValueError(f"message {i} has no content, a text or a list of parts: a message is {example}")


def plain(value: Any, name: str) -> Any:
    """A copy of a value that has only the types of JSON.

    Raises:
        ValueError: it has others.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be data that JSON has (texts, numbers, lists, dictionaries): {error}") from None


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as text. Spans are pairs of places: of the first character, and behind the last one."""

    text: str
    hidden: list[tuple[int, int]]
    """Special tokens that the conversation spells out."""
    generated: list[tuple[int, int]]
    """What the template marks by `{% generation %}`."""


@dataclasses.dataclass(frozen=True)
class Guard:
    """Puts single characters of Unicode's private use into what is rendered: for special tokens that strangers spell
    out, which a template then passes on, and around what it marks by `{% generation %}`. So it is known afterwards
    which of a text's special tokens are the template's own, and what the assistant writes."""

    markers: Mapping[str, str]
    """By the spelling of a special token."""
    brackets: tuple[str, str]
    """Around what is marked."""

    @classmethod
    def of(cls, tokens: Iterable[str], given: Any, template: str) -> "Guard":
        """A guard against those of the tokens that are spelt in plain data."""
        text = json.dumps(given, ensure_ascii=False)
        # json escapes quotation marks and the like, in tokens too.
        found = [token for token in tokens if json.dumps(token, ensure_ascii=False)[1:-1] in text]
        free = (chr(i) for i in range(0xF0000, 0xFFFFE) if chr(i) not in text and chr(i) not in template)
        return cls(brackets=(next(free), next(free)), markers=dict(zip(sorted(found, key=len, reverse=True), free)))

    def hide(self, value: Any) -> Any:
        """Plain data with markers; the keys of dictionaries stay as they are."""
        if isinstance(value, str):
            for token, marker in self.markers.items():
                value = value.replace(token, marker)
            return value
        if isinstance(value, list):
            return [self.hide(x) for x in value]
        return {key: self.hide(x) for key, x in value.items()} if isinstance(value, dict) else value

    def reveal(self, text: str) -> Rendered:
        """A rendered text, without these characters."""
        parts, at, opened = [], 0, 0
        hidden: list[tuple[int, int]] = []
        generated: list[tuple[int, int]] = []
        tokens = {marker: token for token, marker in self.markers.items()}
        opening, closing = self.brackets
        for part in re.split(f"([{''.join([*tokens, *self.brackets])}])", text):
            if part == opening:
                opened = at
            elif part == closing:
                generated.append((opened, at))
            else:
                if part in tokens:
                    part = tokens[part]
                    hidden.append((at, at + len(part)))
                parts.append(part)
                at += len(part)
        return Rendered("".join(parts), hidden, [span for span in generated if span[0] < span[1]])


def marks_answers(template: str) -> bool:
    """Whether a template says what the assistant writes, by `{% generation %}`."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def render(template: str, variables: Mapping[str, Any], name: str, brackets: tuple[str, str] = ("", "")) -> str:
    """The text of a template with these variables, as transformers renders it.

    Args:
        variables: plain data.
        name: what an error calls the template.
        brackets: written before and behind what the template marks by `{% generation %}`.

    Raises:
        ValueError: the template refuses the conversation, is not Jinja's, or goes beyond the limits.
    """
    try:
        sandbox = _Sandbox(brackets)
        return Template.from_code(sandbox, _compiled(template), sandbox.make_globals(None)).render(variables)
    except _Refused as error:
        raise ValueError(f"{name} refuses the conversation: {json_files.excerpt(error, 400)}") from None
    except Exception as error:  # whatever a stranger's program may raise
        kind = "" if isinstance(error, _Excess) else f"{type(error).__name__}: "
        raise ValueError(f"{name} cannot be rendered: {kind}{json_files.excerpt(error, 400)}") from None


@lru_cache(maxsize=16)
def _compiled(template: str) -> CodeType:
    """A template as code, which takes longer to make than to run."""
    return _Sandbox().compile(template)


class _Refused(TemplateError):
    """What a template raises by `raise_exception`."""


class _Excess(Exception):
    """More work, or a larger value, than is allowed."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox as transformers sets it up, for one rendering within the limits."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, brackets: tuple[str, str] = ("", "")) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.steps = 0
        self.opening, self.closing = brackets
        self.filters = {name: self._limited(function) for name, function in self.filters.items()}
        self.filters["tojson"] = self._limited(_to_json)
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.datetime.now().strftime(form),
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _PlainNamespace,
        }

    def _parse(self, source: str, name: Any, filename: Any) -> nodes.Template:
        return _Counted().visit(super()._parse(source, name, filename))

    def concat(self, parts: Any) -> str:
        """Joins what a template, a macro or a block writes."""
        found, size = [], 0
        for part in parts:
            size += len(part)
            self._check_size(size)
            found.append(part)
        return "".join(found)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_widths(function, args, kwargs)
        return self.spend(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    self._check_size(len(value) * times)
            if isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 2**64:
                raise _Excess("it multiplies numbers of more than 64 bits")
        elif operator == "**" and (abs(left) > WIDEST or abs(right) > 64):
            raise _Excess(f"it raises {left} to the power {right}")
        elif operator == "%" and isinstance(left, str) and re.search(r"%[^a-zA-Z%]*(\d{5}|\*)", left):
            raise _Excess("it pads a text")
        return self.spend(super().call_binop(context, operator, left, right))

    def spend(self, value: Any = None) -> Any:
        """Counts a step, and the size of what it made."""
        size = len(value) if isinstance(value, str | list | tuple | dict) else 0
        self._check_size(size)
        self.steps += 1 + size // 1024
        if self.steps > MOST_STEPS:
            raise _Excess(f"it takes more than {MOST_STEPS:,} steps")
        return value

    def iteration(self) -> bool:
        """Called, and so counted, in each iteration of a loop."""
        return True

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose calls are counted; `wraps` keeps Jinja's marks on it."""

        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            _check_widths(function, args, kwargs)
            return self.spend(function(*args, **kwargs))

        return limited

    @staticmethod
    def _check_size(size: int) -> None:
        if size > LARGEST:
            raise _Excess(f"it makes a text or a list of more than {LARGEST:,} characters or items")


class _Counted(NodeTransformer):
    """Rewrites a template so that each iteration of a loop is a call, and `a ~ b` is the filter `join`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        count = nodes.Call(nodes.EnvironmentAttribute("iteration"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(count))
        node.test = None if node.test is None else nodes.And(count, node.test)
        return node.set_lineno(node.lineno).set_environment(node.environment)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        joined = nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None)
        return joined.set_lineno(node.lineno).set_environment(node.environment)


class _Generation(Extension):
    """`{% generation %}`, which marks what the assistant writes: its inside is rendered between brackets."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Scope:
        line = next(parser.stream).lineno
        opening, closing = (nodes.Output([nodes.EnvironmentAttribute(name)]) for name in ("opening", "closing"))
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope([opening, *inside, closing]).set_lineno(line)


class _PlainNamespace(Namespace):
    """A namespace without attributes by which Python's own objects would be reached."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *values = args
        Namespace.__init__(self)
        for name, value in dict(*values, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise TemplateError(f"a namespace has no attribute {name!r}: names begin with a letter")
        super().__setitem__(name, value)


def _refuse(message: Any) -> None:
    raise _Refused(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without HTML's escapes, unlike Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_widths(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuses to pad a text far, before the memory is taken."""
    name = getattr(function, "__name__", "").removeprefix("do_")
    values = [getattr(getattr(function, "__wrapped__", function), "__self__", None), *args, *kwargs.values()]
    if name in PADDING and any(
        isinstance(x, int) and x > WIDEST or isinstance(x, str) and "format" in name and re.search(r"\d{5}", x)
        for x in values
    ):
        raise _Excess(f"it pads a text to more than {WIDEST:,} characters")


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8: byte {error.start} is {content[error.start]:#04x}") from None
