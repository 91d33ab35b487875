"""Predict the answers of conversations."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from transformer_zoo.config import Data
from transformer_zoo.data.conversations import Answers, ConversationRows, messages_in, tools_in
from transformer_zoo.data.documents import Source
from transformer_zoo.data.labels import Tell, each
from transformer_zoo.objectives.causal_lm import CausalLM
from transformer_zoo.objectives.objective import Batch, Objective, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedFineTuning(CausalLM):
    """The cross entropy of each token of an answer and of the token that ends it, given all of the conversation before
    it, as the tokenizer's chat template writes it (Ouyang et al. 2022, section 3.5).

    Raises:
        ValueError: neither one field nor two; unknown `answers`; and as `CausalLM`.
    """

    name: ClassVar[str] = "supervised-fine-tuning"
    loss_unit: ClassVar[str] = "nats a token of an answer"
    predicted: ClassVar[str] = "targets"

    fields: tuple[str, ...] = ("messages",)
    """Field of an example with its messages, in the form {"role": ..., "content": ...} or in ShareGPT's, {"from": ...,
    "value": ...}; or two fields, with a prompt and its answer, both texts. A field tools beside them has the functions
    that the model may call, as JSON schemas."""
    answers: Answers = "all"
    """Which answers of a conversation are learned. last: the last one alone, for chat templates that write an answer
    otherwise when more messages follow it, such as without its reasoning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.fields) not in (1, 2):
            raise ValueError(
                f"SupervisedFineTuning.fields is {self.fields}: name the field with the messages, or two, those with a "
                "prompt and its answer"
            )
        if self.answers not in get_args(Answers):
            raise ValueError(f"SupervisedFineTuning.answers is {self.answers!r}: it must be all or last")

    @property
    def reads(self) -> tuple[str, ...]:
        """The messages, or a prompt and its answer."""
        return self.fields

    @property
    def inputs(self) -> dict[str, str]:
        """The messages, or the prompt."""
        return {"text": self.fields[0]}

    def with_labels(
        self, config: Any, splits: Mapping[str, Source], head: Any = None, tell: Tell | None = None
    ) -> tuple[Objective, str]:
        """Checks all conversations; a published data set is not read for that."""
        read = lambda document: (messages_in(document, self.fields), tools_in(document))
        for split, documents in splits.items():
            if not documents.as_published:
                collections.deque(each(documents, split, read, tell=tell), maxlen=0)
        return self, ""

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """The texts of the messages."""
        contents = (message.get("content") for message in messages_in(document, self.fields))
        return tuple(content for content in contents if isinstance(content, str))

    def maker(self, data: Data) -> ConversationRows:
        """Conversations side by side."""
        if data.packing != "documents":
            raise ValueError(f"data.packing={data.packing}: conversations need data.packing=documents")
        return ConversationRows(length=data.length, fields=self.fields, answers=self.answers)

    def counts(self, batch: Batch) -> Sums:
        """The number of tokens that are read, of those that are predicted, and of conversations."""
        documents_BT = batch["documents_BT"]
        return {
            "tokens": (documents_BT > 0).sum(),
            "targets": batch["valid_BT"].sum(),
            "examples": documents_BT.max(axis=1).sum(),
        }
