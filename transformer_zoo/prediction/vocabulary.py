"""Tokens: those behind a mask, and the probability of given continuations."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import pooling
from transformer_zoo.nn.checks import check_sizes
from transformer_zoo.prediction.reader import Example, Input, Outputs, RowReader, encode, row
from transformer_zoo.prediction.sequences import read


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilledMasks(RowReader):
    """`masked-lm`: the tokens that may stand in the place of a mask in a `text`, spelt as the tokenizer's mask token.

    Result: a list of the most probable ones, with `score`, the probability; `token`, the id; `token_str`, its text;
    `sequence`, the text with it. For a text with several masks, such a list for each, the other masks being left.
    """

    top_k: int = 5
    """The number of tokens for each mask."""
    targets: tuple[str | int, ...] = ()
    """Only these tokens are answers: words that are one token each, or token ids. The scores remain probabilities among
    all tokens. None given: every token may be an answer."""

    required = ("text",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "top_k")

    def for_model(self, m: Any) -> "FilledMasks":
        if m.tokenizer.mask_id is None:
            raise ValueError("the model's tokenizer has no mask token")
        ids = [_target(m, target) for target in self.targets]
        return dataclasses.replace(self, targets=tuple(dict.fromkeys(ids)))

    def examples(self, m: Any, inputs: Sequence[Input]) -> list[Example]:
        mask, length, found = m.tokenizer.mask_id, self.length(m), []
        texts = [i.fields["text"] for i in inputs]
        for one, encoding in zip(inputs, encode(m, texts, [None] * len(texts))):
            if length is not None and len(encoding) > length:
                raise one.error(f"has {len(encoding)} tokens, and the model {length} positions: shorten the text")
            masks = encoding.ids == mask
            if not masks.any():
                raise one.error(f"has no mask: write {m.tokenizer.tokens([mask])[0]} where a word is to be found")
            each = [np.arange(len(encoding)) == position for position in np.flatnonzero(masks)]
            found.append(Example(one, [row(encoding, mask_BT=mask_T) for mask_T in each], encoding.ids))
        return found

    def program(self, model: Any, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        hidden_BD = pooling.first(read(model, params, batch).hidden_BTD, batch["mask_BT"])
        logits_B1V = model.apply({"params": params}, hidden_BD[:, None], method="logits")
        scores_BV, tokens_V = jax.nn.softmax(logits_B1V[:, 0]), jnp.arange(model.config.vocab_size)
        if self.targets:
            tokens_V = jnp.array(self.targets)
            scores_BV = scores_BV[:, tokens_V]
        scores_BK, best_BK = jax.lax.top_k(scores_BV, min(self.top_k, len(tokens_V)))
        return {"scores_BK": scores_BK, "tokens_BK": tokens_V[best_BK]}

    def result(self, m: Any, example: Example, outputs: Sequence[Outputs]) -> list[Any]:
        several = len(outputs) > 1
        found = []
        for own, output in zip(example.rows, outputs):
            filled = []
            for score, token in zip(output["scores_BK"].tolist(), output["tokens_BK"].tolist()):
                ids = np.where(own["mask_BT"], token, example.about)
                sequence = _text(m.tokenizer, ids[ids != m.tokenizer.pad_id], special=several)
                word = _text(m.tokenizer, [token], special=True)
                filled.append({"score": score, "token": token, "token_str": word, "sequence": sequence})
            found.append(filled)
        return found if several else found[0]


def _target(m: Any, target: str | int) -> int:
    """The id of a word that is one token, in the vocabulary's own spelling or as the tokenizer cuts it."""
    if isinstance(target, str):
        own = m.tokenizer.id_of(target)
        found = m.tokenizer.encode(target).ids if own is None else [own]
        if len(found) != 1 or own is None and found[0] == m.tokenizer.unk_id:
            cut = " ".join(m.tokenizer.tokens(found)) or "nothing"
            raise ValueError(f"targets: {target!r} is no single token of the vocabulary, but {cut}")
        target = int(found[0])
    if not 0 <= target < m.config.vocab_size:
        raise ValueError(f"targets: {target} is outside of the vocabulary, which has 0 to {m.config.vocab_size - 1}")
    return int(target)


def _text(tokenizer: Any, ids: Iterable[int], special: bool) -> str:
    """The text of tokens. A model may have ids that its tokenizer lacks: they have none."""
    return tokenizer.decode([token for token in ids if token < tokenizer.vocab_size], special=special)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuations(RowReader):
    """`causal-lm`: how probable `continuations` of a `text` are; without a text, of a text's beginning.

    Text and continuation are tokenized as one. A token that has characters of both counts as the continuation's.

    Result: a list with, for each continuation in order, `continuation`; `score`, the logarithm of its probability, the
    sum over its tokens; `tokens`, their number.
    """

    required = ("continuations",)
    optional = ("text",)
    lists = ("continuations",)

    def examples(self, m: Any, inputs: Sequence[Input]) -> list[Example]:
        length = self.length(m)
        pairs = [(i, i.fields.get("text", ""), more) for i in inputs for more in i.fields["continuations"]]
        encodings = encode(m, [text + more for _, text, more in pairs], [None] * len(pairs))
        rows: dict[str, list[dict[str, np.ndarray]]] = {i.name: [] for i in inputs}
        for (one, text, _), encoding in zip(pairs, encodings):
            given = row(encoding, new_BT=(encoding.texts == 0) & (encoding.offsets[:, 1] > len(text)))
            if given["new_BT"][:1].any():  # nothing stands before it
                start = m.tokenizer.bos_id
                if start is None:
                    raise one.error("has no token before its continuations, and the tokenizer none that starts a text")
                given = {name: np.insert(x, 0, 0) for name, x in given.items()}
                given["tokens_BT"][0] = start
            if not given["new_BT"].any():
                raise one.error("has a continuation without a token")
            if length is not None and len(given["tokens_BT"]) > length:
                raise one.error(
                    f"has {len(given['tokens_BT'])} tokens with its continuation, and the model {length} positions: "
                    "shorten the text"
                )
            rows[one.name].append(given)
        return [Example(i, rows[i.name]) for i in inputs]

    def program(self, model: Any, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        hidden_BTD = model.apply({"params": params}, batch["tokens_BT"], valid_BT=batch["valid_BT"]).hidden_BTD

        def score(one: tuple[jax.Array, ...]) -> jax.Array:
            """Of one row: so that the logits of only one row are alive at a time."""
            hidden_TD, tokens_T, new_T = one
            logits_TV = model.apply({"params": params}, hidden_TD[None, :-1], method="logits")[0]
            found_T1 = jnp.take_along_axis(jax.nn.log_softmax(logits_TV), tokens_T[1:, None], axis=-1)
            return jnp.where(new_T[1:], found_T1[:, 0], 0).sum()

        return {"score_B": jax.lax.map(score, (hidden_BTD, batch["tokens_BT"], batch["new_BT"]))}

    def result(self, m: Any, example: Example, outputs: Sequence[Outputs]) -> list[dict[str, Any]]:
        return [
            {"continuation": text, "score": float(output["score_B"]), "tokens": int(own["new_BT"].sum())}
            for text, own, output in zip(example.input.fields["continuations"], example.rows, outputs)
        ]
