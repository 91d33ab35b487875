"""Write a text, token by token, having read another: what encoder-decoders learn, and are pretrained with."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data import denoising
from transformer_zoo.data.denoising import Denoiser, Selection, longest_text, taken
from transformer_zoo.data.seq2seq import TooLong, pair_rows, text_in
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives.losses import cross_entropy
from transformer_zoo.objectives.objective import Batch, MakeRows, Objective, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq(Objective):
    """The cross entropy of each token of a target, given its source and the tokens before it. A subclass says where
    sources and targets come from.

    Raises:
        ValueError: a length or number of pieces that is none; a smoothing that is no share.
    """

    task: ClassVar[str] = "seq2seq-lm"

    target_length: int | None = None
    """Tokens in a row of targets, T. None: what goes with data.length, which is that of the sources."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all tokens (Vaswani et al. 2017, section 5.4)."""
    pieces: int = 1
    """Parts of a row whose logits are computed at a time: more of them need less memory."""
    start_id: int | None = None
    """Token that the decoder reads first. A run takes its model's, if that has one, whatever is said here."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field, value in (("target_length", self.target_length), ("pieces", self.pieces)):
            if value is not None and value < 1:
                raise ValueError(f"{name}.{field} is {value}: it must be at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"{name}.label_smoothing is {self.label_smoothing}: it must be at least 0 and less than 1")

    # ---- rows ---------------------------------------------------------------------------------------------------

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> tuple["Seq2Seq", Any]:
        """The objective with the model's start token."""
        start = getattr(config, "decoder_start_id", None)
        return self if start is None else dataclasses.replace(self, start_id=start), config

    def targets(self, length: int) -> int:
        """Tokens in a row of targets, T, beside sources of this length."""
        return self.fitting(length) if self.target_length is None else self.target_length

    def fitting(self, length: int) -> int:
        """Tokens in a row of targets, where nothing is said: as many as in one of sources."""
        return length

    def make(self, function: Callable[..., Any], tokenizer: Tokenizer, data: Data, **how: Any) -> MakeRows:
        """A maker of rows, told what all of them need to know.

        Raises:
            ValueError: no token says where a target begins, or ends.
        """
        if tokenizer.eos_id is None:
            raise ValueError("the tokenizer has no end-of-text token (eos), so no target can say that it is over")
        if self.start_id is None:
            raise ValueError(
                f"{type(self).__name__}.start_id is not known: `for_data` takes it from the model's decoder_start_id; "
                "if that has none, set objective.start_id"
            )
        return functools.partial(
            function, tokenizer=tokenizer, length=data.length, target_length=self.targets(data.length),
            start=self.start_id, **how,
        )  # fmt: skip

    def shapes(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of `data.seq2seq.pack_pairs`."""
        of = lambda size, dtype: jax.ShapeDtypeStruct((batch, size), dtype)
        sources = {name: of(length, jnp.int32) for name in ("source_BS", "source_documents_BS")}
        names = ("target_BT", "targets_BT", "target_documents_BT")
        targets = {name: of(self.targets(length), jnp.int32) for name in names}
        valid = {"valid_BS": of(length, jnp.bool_), "valid_BT": of(self.targets(length), jnp.bool_)}
        return sources | targets | valid

    # ---- loss ---------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> Sums:
        """How many tokens there are on both sides, and how many targets."""
        targets = batch["valid_BT"].sum()
        return {"tokens": batch["valid_BS"].sum() + targets, "targets": targets}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and right guesses, over all targets; with smoothing, nats with it and without."""
        output = model.apply(
            {"params": params},
            batch["source_BS"],
            batch["target_BT"],
            valid_BS=batch["valid_BS"],
            target_valid_BT=batch["valid_BT"],
            source_documents_BS=batch["source_documents_BS"],
            target_documents_BT=batch["target_documents_BT"],
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
        )
        nats, extra = cross_entropy(
            lambda params, hidden_BTD: model.apply({"params": params}, hidden_BTD, method="logits"),
            params,
            output.hidden_BTD,
            batch["targets_BT"],
            batch["valid_BT"],
            chunks=self.pieces,
            smoothing=self.label_smoothing,
            vocab_size=model.config.vocab_size,
        )
        return {"nats": nats, **extra}

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a target, with smoothing."""
        return sums["nats"] / jnp.maximum(counts["targets"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss (nats a target), perplexity and accuracy. With smoothing, which even the best guesses pay for, also the
        cross entropy without it; the perplexity is always of that."""
        count = jnp.maximum(counts["targets"], 1)
        plain = sums.get("unsmoothed", sums["nats"]) / count
        return {
            "loss": self.loss(sums, counts),
            **({"cross_entropy": plain} if self.label_smoothing else {}),
            "perplexity": jnp.exp(plain),
            "accuracy": sums["correct"] / count,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqLM(Seq2Seq):
    """Pairs of texts, such as a sentence and its translation; with a prefix that says what is to be done, one of the
    tasks of Raffel et al. 2020 (section 2.4).

    Raises:
        ValueError: an unknown way to deal with long texts; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "seq2seq-lm"

    source: str = "source"
    """Field of an example with the text to read."""
    target: str = "target"
    """Field with the text to write."""
    prefix: str = ""
    """Put before each source: "translate English to French: ", "summarize: "."""
    languages: tuple[str | None, str | None] = (None, None)
    """Codes of what the frames of source and target say, where a tokenizer's do: mBART's the text's own language,
    Marian's of a source that of the target. None: as the tokenizer's files say."""
    too_long: TooLong = "truncate"
    """What becomes of an example with a text that no row holds: truncate: its end is cut off; drop: it is left out;
    refuse: an error says so. What is truncated or dropped is counted and reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.too_long not in get_args(TooLong):
            raise ValueError(f"Seq2SeqLM.too_long is {self.too_long!r}: it must be {', '.join(get_args(TooLong))}")

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """Source and target."""
        return self.prefix + text_in(document, self.source), text_in(document, self.target)

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Rows of pairs side by side."""
        _needs_documents(data, "pairs of texts")
        names = ("source", "target", "prefix", "languages", "too_long")
        return self.make(pair_rows, tokenizer, data, **{name: getattr(self, name) for name in names})

    def shapes(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of `data.seq2seq.pair_rows`."""
        return super().shapes(batch, length) | {"too_long_B": jax.ShapeDtypeStruct((batch,), jnp.int32)}

    def counts(self, batch: Batch) -> Sums:
        """Besides, how many examples there are, and how many were too long."""
        examples = batch["source_documents_BS"].max(axis=1).sum()
        return super().counts(batch) | {"examples": examples, "too_long": batch["too_long_B"].sum()}

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Besides, how many examples were too long and have been truncated or dropped."""
        return super().report(sums, counts) | {"too_long": counts["too_long"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(Seq2Seq):
    """T5's pretraining (Raffel et al. 2020, sections 3.1.4 and 3.3.4): spans of a text are replaced by a sentinel each,
    and the target is the sentinels with what they stand for. A source and its target fill their rows, to the token; at
    a density of 0.5, to a token or two, since the target is to be no longer than the source.

    Raises:
        ValueError: a density or length of a span that is none; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "span-corruption"

    density: float = 0.15
    """Share of the tokens that is replaced."""
    mean_span_length: float = 3.0
    """Tokens in a span."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_span(self, self.density, self.mean_span_length)

    def fitting(self, length: int) -> int:
        """As many as a source that fills its row has taken from it."""
        how = self.density, self.mean_span_length
        hidden, spans = taken(longest_text(length, math.inf, *how, math.inf), *how)
        size = int(hidden + spans) + 1
        return min(size, length) if self.density == 0.5 else size  # as in the published code

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Rows of texts as `data.packing` joins them, each piece as long as fills its rows.

        Raises:
            ValueError: the tokenizer has fewer sentinels than such a piece has spans.
        """
        how = self.density, self.mean_span_length
        spans = int(taken(longest_text(data.length, self.targets(data.length), *how, math.inf), *how)[1])
        if spans > len(tokenizer.sentinel_ids):
            raise ValueError(
                f"data.length={data.length} has room for {spans} spans, and the tokenizer has "
                f"{len(tokenizer.sentinel_ids)} sentinels: take one that was made for T5, such as vocabulary.kind=t5, "
                "fewer tokens in a row, or a larger objective.mean_span_length"
            )
        return _denoised(self, tokenizer, data, [Denoiser(*how)], [1.0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(Seq2Seq):
    """A text, cut in two at a random point: the target is what follows (Raffel et al. 2020, section 3.3.1; Liu et al.
    2018). Where it is cut is drawn first, and then as much text is taken as fills a row of sources or of targets."""

    name: ClassVar[str] = "prefix-lm"

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Rows of texts as `data.packing` joins them."""
        return _denoised(self, tokenizer, data, [Denoiser(0.5, None)], [1.0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfDenoisers(Seq2Seq):
    """UL2's pretraining (Tay et al. 2022, section 3.1): regular denoising, with short spans of a small part of a text;
    sequential, of its end; and extreme, with long spans or a large part of it. Each piece of text is for one of them,
    and where the tokenizer has tokens for these modes, the source begins with that of its own.

    A piece has at most as many spans as the tokenizer has sentinels, and where that is less than fill a row of sources,
    there is room for another beside it.

    Raises:
        ValueError: a density, share or length of a span that is none, no denoiser at all; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "mixture-of-denoisers"

    regular: tuple[tuple[float, float], ...] = ((3.0, 0.15), (8.0, 0.15))
    """Of each regular denoiser the tokens in a span, on average, and the share of all tokens that is to be written."""
    extreme: tuple[tuple[float, float], ...] = ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))
    """The same of each extreme denoiser."""
    sequential: float = 0.25
    """Share that the end of a text has of it, on average: anything from none to twice that, which is at most all."""
    sequential_share: float = 1 / 7
    """How often the denoiser is the sequential one. The others are as frequent as one another."""
    modes: tuple[str, str, str] = ("[R]", "[S]", "[X]")
    """Tokens before the source: of regular, sequential and extreme denoisers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for span, density in (*self.regular, *self.extreme):
            _check_span(self, density, span)
        if not 0 < self.sequential <= 0.5:
            raise ValueError(f"MixtureOfDenoisers.sequential is {self.sequential}: it must be more than 0, at most 0.5")
        if not 0 <= self.sequential_share <= 1 or (self.sequential_share < 1) != bool(self.regular + self.extreme):
            raise ValueError(
                f"MixtureOfDenoisers.sequential_share is {self.sequential_share}: it must be a share, and 1 where no "
                "other denoiser is, and only there"
            )

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Rows of texts as `data.packing` joins them."""
        regular, sequential, extreme = (tokenizer.id_of(mode) for mode in self.modes)
        denoisers = [
            Denoiser(self.sequential, None, sequential),
            *(Denoiser(density, span, regular) for span, density in self.regular),
            *(Denoiser(density, span, extreme) for span, density in self.extreme),
        ]
        others = len(denoisers) - 1
        if others and not tokenizer.sentinel_ids:
            raise ValueError(
                "the tokenizer has no sentinels to stand for spans: take one that was made for T5, such as "
                "vocabulary.kind=t5"
            )
        shares = [self.sequential_share, *[(1 - self.sequential_share) / max(others, 1)] * others]
        return _denoised(self, tokenizer, data, denoisers, shares)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInfilling(Seq2Seq):
    """BART's pretraining (Lewis et al. 2020, section 2.2): the sentences of a text stand in any order, spans of it are
    replaced by one mask each, and the target is the text.

    Raises:
        ValueError: a rate or length of a span that is none; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "text-infilling"

    rate: float = 0.3
    """Share of the tokens that is masked."""
    mean_span_length: float = 3.0
    """Tokens in a span: the mean of a Poisson distribution, 0 among them."""
    permute_sentences: bool = True
    """Whether the sentences are put out of order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate < 1 or self.mean_span_length <= 0:
            raise ValueError(
                f"TextInfilling: rate={self.rate} must lie between 0 and 1, and "
                f"mean_span_length={self.mean_span_length} must be positive"
            )

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Rows of texts as `data.packing` joins them."""
        if tokenizer.mask_id is None:
            raise ValueError(
                "the tokenizer has no mask: take one that was made for BART, such as vocabulary.kind=roberta"
            )
        return self.make(
            denoising.infilled_rows, tokenizer, data, packing=data.packing, rate=self.rate, span=self.mean_span_length,
            permute=self.permute_sentences,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapSentences(Seq2Seq):
    """PEGASUS's pretraining (Zhang et al. 2020, section 3.1): the sentences of a text that say most of what the others
    say are replaced by a mask each, and are the target.

    Raises:
        ValueError: a ratio or selection that is none; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "gap-sentences"

    ratio: float = 0.3
    """Share of the sentences that is taken."""
    selection: Selection = "ind-orig"
    """By ROUGE-1 F1 against the rest of the text, each for itself (ind) or together with those already chosen (seq),
    with words counted as often as they occur (orig) or once (uniq)."""
    mask: str = "<mask_1>"
    """Token in the place of a sentence; where the vocabulary has none of this name, its mask."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise ValueError(f"GapSentences.ratio is {self.ratio}: it must lie between 0 and 1")
        if self.selection not in get_args(Selection):
            raise ValueError(
                f"GapSentences.selection is {self.selection!r}: choose of {', '.join(get_args(Selection))}"
            )

    def fitting(self, length: int) -> int:
        """Half as many as in a row of sources."""
        return max(1, length // 2)

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Rows of texts, each of whole sentences."""
        _needs_documents(data, "sentences that sum up their text")
        mask = tokenizer.id_of(self.mask)
        gap = tokenizer.mask_id if mask is None else mask
        if gap is None:
            raise ValueError(f"the tokenizer has neither {self.mask!r} nor a mask to put in a sentence's place")
        return self.make(denoising.gap_rows, tokenizer, data, ratio=self.ratio, selection=self.selection, gap=gap)


def _denoised(
    objective: Seq2Seq, tokenizer: Tokenizer, data: Data, denoisers: list[Denoiser], shares: list[float]
) -> MakeRows:
    return objective.make(
        denoising.denoised_rows, tokenizer, data, packing=data.packing, denoisers=denoisers, shares=shares
    )


def _check_span(objective: Seq2Seq, density: float, span: float) -> None:
    if not 0 < density < 1 or span < 1:
        raise ValueError(
            f"{type(objective).__name__}: a density of {density} must lie between 0 and 1, and spans of {span} tokens "
            "must be of 1 or more"
        )


def _needs_documents(data: Data, what: str) -> None:
    if data.packing != "documents":
        raise ValueError(f"data.packing={data.packing}: {what} need data.packing=documents")
