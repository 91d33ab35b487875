"""Rows of conversations, whose answers are predicted."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_zoo import json_files
from transformer_zoo.data import chat_templates
from transformer_zoo.data.documents import field_of, place_of, text_in
from transformer_zoo.data.packing import pack, packed_shapes
from transformer_zoo.data.rows import RowMaker, Rows, Shapes
from transformer_zoo.data.tokenizers import Tokenizer

Message = dict[str, Any]
Answers = Literal["all", "last"]

ROLES = ("system", "developer", "user", "assistant", "tool")
TOOLS = "tools"
"""The field beside the messages with the functions that the model may call, as JSON schemas, where there are any."""
SHAREGPT = {"human": "user", "gpt": "assistant"}
"""Roles in ShareGPT's spelling of a message, {"from": ..., "value": ...}, that have other names in chat templates."""


def messages_in(document: Mapping[str, Any], fields: tuple[str, ...]) -> list[Message]:
    """The conversation that a document holds, as dictionaries with `role`, `content` and perhaps further keys.

    Args:
        fields: one field, with messages in this form or in ShareGPT's; or two, with a prompt and its answer.

    Raises:
        ValueError: there is no such field; no messages, one without content or of an unknown role, an answer without a
            text, or no answer. The message does not say where the document is.
    """
    if len(fields) == 2:
        messages = [{"role": role, "content": text_in(document, x)} for role, x in zip(("user", "assistant"), fields)]
    else:
        found = field_of(document, fields[0])
        if not isinstance(found, list | tuple) or not all(isinstance(message, dict) for message in found):
            raise ValueError(
                f"{fields[0]} is {json_files.excerpt(repr(found))}, where a list of messages is expected, such as "
                '[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}]; of a prompt and '
                "its answer, objective.fields names both"
            )
        messages = [_usual(message) for message in found]
    chat_templates.check_messages(messages)
    for i, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise ValueError(
                f"message {i} has the unknown role {json_files.excerpt(repr(message['role']))}: it must be one of "
                f"{', '.join(ROLES)}"
            )
        if message["role"] == "assistant" and not _has_text(message):
            raise ValueError(f"message {i}, an answer, is empty: leave it out, or give it a text")
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError("the conversation has no answer: no message has the role assistant")
    return messages


def tools_in(document: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The functions that the model may call in a conversation: a list, or its text in JSON. None: there are none.

    Raises:
        ValueError: they are something else. The message does not say where the document is.
    """
    found = document.get(TOOLS)
    if isinstance(found, str):
        found = json_files.parse(found.encode(), TOOLS, list) if found else None
    if found is not None and not (isinstance(found, list | tuple) and all(isinstance(tool, dict) for tool in found)):
        raise ValueError(
            f"{TOOLS} is {json_files.excerpt(repr(found))}, where a list of functions as JSON schemas is expected: "
            '[{"type": "function", "function": {"name": "weather", "parameters": {...}}}]'
        )
    return found if found is None else [*found]


def _usual(message: Message) -> Message:
    """A message in the spelling of chat templates. Keys without a value are those that only other messages have."""
    message = {key: value for key, value in message.items() if value is not None}
    if "from" in message and "role" not in message:
        role = message.pop("from")
        message = {"role": SHAREGPT.get(role, role), "content": message.pop("value", None), **message}
    return message


def _has_text(message: Message) -> bool:
    content = message.get("content")
    return bool(message.get("tool_calls")) or bool(content.strip() if isinstance(content, str) else content)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationRows(RowMaker):
    """Conversations, with their tools, as the tokenizer's chat template writes them, packed into rows. Only the tokens
    of answers, each with the token that ends it, are predicted. A conversation that is longer than a row loses its end;
    if no token of an answer is left, it is left out."""

    name: ClassVar[str] = "conversation_rows"
    cut_by: ClassVar[str] = "data.length"

    fields: tuple[str, ...]
    """As of `messages_in`."""
    answers: Answers
    """Which answers of a conversation are predicted."""

    def check(self, tokenizer: Tokenizer) -> None:
        """There is a chat template."""
        tokenizer.chat([{"role": "user", "content": "Hello"}])

    def shapes(self, batch: int) -> Shapes:
        """The arrays of `pack`, without `bytes_B`."""
        return {name: like for name, like in packed_shapes(batch, self.length).items() if name != "bytes_B"}

    def __call__(self, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """The rows of these conversations.

        tokens_BT, targets_BT, documents_BT, positions_BT: as of `pack`.
        valid_BT: bool: the target is a token of an answer.

        Raises:
            ValueError: a conversation that `messages_in` or the chat template refuses, and where it is.
        """
        found = [self._encoded(document) for document in documents]
        kept = [(ids[: self.length + 1], written[: self.length + 1]) for ids, written in found]
        kept = [(ids, written) for ids, written in kept if written[1:].any()]
        rows = pack(
            [(ids[1:-1], np.zeros(len(ids) - 1, np.int32)) for ids, _ in kept], self.length,
            start=[ids[0] for ids, _ in kept], end=[ids[-1] for ids, _ in kept],
            predicted=[written[1:] for _, written in kept],
        )  # fmt: skip
        return {name: rows[name] for name in self.shapes(0)}

    def cut(self, documents: list[dict[str, Any]]) -> tuple[int, int]:
        """Those that are longer than a row, and those that lose all their answers."""
        found = [self._encoded(document) for document in documents]
        longer = [written for ids, written in found if len(ids) > self.length + 1]
        return len(longer), sum(not written[1 : self.length + 1].any() for written in longer)

    def characters(self, document: dict[str, Any]) -> int:
        """Of the messages' texts."""
        return sum(len(str(message.get("content", ""))) for message in messages_in(document, self.fields))

    def _encoded(self, document: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a conversation, and which of them are predicted."""
        try:
            messages, tools = messages_in(dict(document), self.fields), tools_in(document)
            return self.tokenizer.encode_answers(messages, tools, last=self.answers == "last")
        except ValueError as error:
            raise ValueError(f"{place_of(document)}: {error}") from None
