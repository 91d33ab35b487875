"""The texts that an encoder-decoder generates."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.prediction.engine import batch_size_for, chunks
from transformer_zoo.prediction.reader import Input, Reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedTexts(Reader):
    """`seq2seq-lm`: the text that `zoo.generate` makes of a `text`, by the model's own strategy (`m.sampling`).

    Result: `generated_text`; of several, the first, which is the best.
    """

    max_new_tokens: int | None = None
    """The largest number of new tokens. None: the model's own."""
    language: str | None = None
    """The code of the language to generate, such as fr_XX, for a multilingual model."""
    source_language: str | None = None
    """The code of the text's language, for a tokenizer that marks it."""

    required = ("text",)

    def columns(self, m: Any) -> tuple[str, ...]:
        return ("generated_text",)

    def made_with(self, m: Any) -> dict[str, Any]:
        strategy, ids = m.sampling, TokenIds.of_model(m)
        generation = {"strategy": type(strategy).__name__, **dataclasses.asdict(strategy), **dataclasses.asdict(ids)}
        return super().made_with(m) | {"generation": generation}

    def results(self, m: Any, inputs: Sequence[Input], batch_size: int) -> Iterator[Any]:
        length, sized = self.length(m), []
        for some in chunks(inputs):
            texts = [one.fields["text"] for one in some]
            for one, encoding in zip(some, m.tokenizer.encode_batch(texts, special=True, template=True)):
                if length is not None and len(encoding) > length:
                    raise one.error(f"has {len(encoding)} tokens, and the model {length} positions: shorten the text")
                sized.append((len(encoding), one.fields["text"]))
        settings = dataclasses.asdict(self)
        for some in chunks(sized):
            size = batch_size_for(len(some), len(inputs), batch_size)
            written, order = [""] * len(some), sorted(range(len(some)), key=lambda i: some[i][0])
            for batch in (order[i : i + size] for i in range(0, len(order), size)):
                new = generate(m, [some[i][1] for i in batch + batch[-1:] * (size - len(batch))], **settings)
                for i, text in zip(batch, new):
                    written[i] = text if isinstance(text, str) else text[0]
            yield from ({"generated_text": text} for text in written)
