"""Predict a target text from a source text: training and pretraining of encoder-decoders."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.denoising import (
    DenoisedRows,
    Denoiser,
    GapRows,
    InfilledRows,
    Selection,
    longest_text,
    taken,
)
from transformer_zoo.data.documents import Source, text_in
from transformer_zoo.data.labels import Tell, each
from transformer_zoo.data.rows import RowMaker
from transformer_zoo.data.seq2seq import PairRows, TooLong
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives.objective import Batch, Objective, Sums, training_mode
from transformer_zoo.objectives.token_prediction import TokenPrediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq(TokenPrediction):
    """The cross entropy of each token of a target, given its source and the tokens before it. A subclass has
    the maker of sources and targets.

    Raises:
        ValueError: a length or number of chunks below 1; a smoothing outside [0, 1).
    """

    task: ClassVar[str] = "seq2seq-lm"
    loss_unit: ClassVar[str] = "nats a token of the target"
    predicted: ClassVar[str] = "targets"

    target_length: int | None = None
    """Tokens in a row of targets, T. None: derived from data.length, the tokens in a row of sources."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all tokens (Vaswani et al. 2017, section 5.4)."""
    logits_chunks: int = 1
    """Chunks of a row whose logits are computed one after the other: more chunks need less memory."""
    start_id: int | None = None
    """Token that the decoder reads first. If the model has a `decoder_start_id`, a run takes that instead."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field, value in (("target_length", self.target_length), ("logits_chunks", self.logits_chunks)):
            if value is not None and value < 1:
                raise ValueError(f"{name}.{field} is {value}: it must be at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"{name}.label_smoothing is {self.label_smoothing}: it must be at least 0 and less than 1")

    # ---- rows ---------------------------------------------------------------------------------------------------

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> tuple["Seq2Seq", Any]:
        """The objective with the model's start token."""
        start = getattr(config, "decoder_start_id", None)
        return self if start is None else dataclasses.replace(self, start_id=start), config

    def target_length_for(self, length: int) -> int:
        """Tokens in a row of targets, T, beside a row of sources of this length."""
        return self.default_target_length(length) if self.target_length is None else self.target_length

    def default_target_length(self, length: int) -> int:
        """Tokens in a row of targets if none are set: as many as in a row of sources."""
        return length

    def lengths(self, data: Data) -> dict[str, Any]:
        """The settings of `PairMaker`."""
        return {"length": data.length, "target_length": self.target_length_for(data.length), "start": self.start_id}

    # ---- loss ---------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> Sums:
        """The number of tokens on both sides, and of targets."""
        targets = batch["valid_BT"].sum()
        return {"tokens": batch["valid_BS"].sum() + targets, "targets": targets}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and correct predictions, summed over all targets; with smoothing, nats with and without it."""
        output = model.apply(
            {"params": params},
            batch["source_BS"],
            batch["target_BT"],
            valid_BS=batch["valid_BS"],
            target_valid_BT=batch["valid_BT"],
            source_documents_BS=batch["source_documents_BS"],
            target_documents_BT=batch["target_documents_BT"],
            **training_mode(key),
        )
        return self.cross_entropy(
            model, params, output.hidden_BTD, batch["targets_BT"], batch["valid_BT"], chunks=self.logits_chunks,
            smoothing=self.label_smoothing, vocab_size=model.config.vocab_size,
        )  # fmt: skip

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss (nats a target), perplexity and accuracy. With smoothing, whose loss is never 0, also the cross entropy
        without it, from which perplexity is always computed."""
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
    """Pairs of texts, such as a sentence and its translation; with a prefix that names the task, as in Raffel et al.
    2020 (section 2.4).

    Raises:
        ValueError: an unknown `too_long`; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "seq2seq-lm"

    source: str = "source"
    """Field of an example with the text to read."""
    target: str = "target"
    """Field with the text to write."""
    prefix: str = ""
    """Put before each source: "translate English to French: ", "summarize: "."""
    languages: tuple[str | None, str | None] = (None, None)
    """Language codes in the frames of source and target, for tokenizers whose frames have them: mBART's has the text's
    own language, Marian's has the target's language in the source. None: the tokenizer's own."""
    too_long: TooLong = "truncate"
    """What becomes of an example with a text that does not fit into a row: truncate: its end is cut off; drop: it is
    left out; refuse: an error. Examples that are truncated or dropped are counted and reported."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.too_long not in get_args(TooLong):
            raise ValueError(f"Seq2SeqLM.too_long is {self.too_long!r}: it must be {', '.join(get_args(TooLong))}")

    @property
    def reads(self) -> tuple[str, ...]:
        """Source and target."""
        return *self.input_fields, self.target

    def with_labels(
        self, config: Any, splits: Mapping[str, Source], head: Any = None, tell: Tell | None = None
    ) -> tuple[Objective, str]:
        """Checks that all examples have both texts; a published data set is not read for that."""
        for split, documents in splits.items():
            if not documents.as_published:
                found = each(documents, split, self.texts_of, self.reads, tell)
                collections.deque(found, maxlen=0)
        return self, ""

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """Source and target."""
        return self.prefix + text_in(document, self.source), text_in(document, self.target)

    @property
    def inputs(self) -> dict[str, str]:
        """The source."""
        return {"text": self.source}

    def input_of(self, document: dict[str, Any]) -> dict[str, Any]:
        """The source behind its prefix; a blank one is left blank."""
        text = text_in(document, self.source)
        return {"text": self.prefix + text if text.strip() else text}

    def maker(self, data: Data) -> PairRows:
        """Rows of pairs side by side."""
        _needs_documents(data, "pairs of texts")
        return PairRows(
            **self.lengths(data), source=self.source, target=self.target, prefix=self.prefix, languages=self.languages,
            too_long=self.too_long,
        )  # fmt: skip

    def counts(self, batch: Batch) -> Sums:
        """Besides, the number of examples, and of those that were too long."""
        examples = batch["source_documents_BS"].max(axis=1).sum()
        return super().counts(batch) | {"examples": examples, "too_long": batch["too_long_B"].sum()}

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Besides, the number of examples that were too long and have been truncated or dropped."""
        return super().report(sums, counts) | {"too_long": counts["too_long"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(Seq2Seq):
    """T5's pretraining (Raffel et al. 2020, sections 3.1.4 and 3.3.4): spans of a text are replaced by a sentinel each,
    and the target is each sentinel followed by its span. A source and its target fill their rows exactly; at a density
    of 0.5, up to a token or two, since the target is to be no longer than the source.

    Raises:
        ValueError: a density outside (0, 1), spans below 1 token; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "span-corruption"

    density: float = 0.15
    """Share of the tokens that is replaced."""
    mean_span_length: float = 3.0
    """Tokens in a span."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_span(self, self.density, self.mean_span_length)

    def default_target_length(self, length: int) -> int:
        """As many as are taken from a source that fills its row."""
        hidden, spans = self._taken(length, math.inf)
        size = hidden + spans + 1
        return min(size, length) if self.density == 0.5 else size  # as in the published code

    def _taken(self, length: int, target_length: float) -> tuple[int, int]:
        """Tokens and spans that are taken from the longest text that fits into rows of these lengths."""
        size = longest_text(length, target_length, self.density, self.mean_span_length, math.inf)
        hidden, spans = taken(size, self.density, self.mean_span_length)
        return int(hidden), int(spans)

    def maker(self, data: Data) -> DenoisedRows:
        """Rows of texts as `data.packing` joins them, in pieces that fill their rows."""
        denoiser = Denoiser(self.density, self.mean_span_length)
        return DenoisedRows(**self.lengths(data), packing=data.packing, denoisers=(denoiser,), shares=(1.0,))

    def rows(self, tokenizer: Tokenizer, data: Data) -> RowMaker:
        """The maker of rows.

        Raises:
            ValueError: the tokenizer has fewer sentinels than a piece that fills its rows has spans; as `Seq2Seq.rows`.
        """
        spans = self._taken(data.length, self.target_length_for(data.length))[1]
        if spans > len(tokenizer.sentinel_ids):
            raise ValueError(
                f"data.length={data.length} has room for {spans} spans, and the tokenizer has "
                f"{len(tokenizer.sentinel_ids)} sentinels: take one that was made for T5, such as vocabulary.kind=t5, "
                "fewer tokens in a row, or a larger objective.mean_span_length"
            )
        return super().rows(tokenizer, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(Seq2Seq):
    """A text, cut in two at a random point: the target is the second part (Raffel et al. 2020, section 3.3.1; Liu et
    al. 2018). The share of the second part is drawn first, and then as much text is taken as fills a row of sources or
    of targets."""

    name: ClassVar[str] = "prefix-lm"

    def maker(self, data: Data) -> DenoisedRows:
        """Rows of texts as `data.packing` joins them."""
        return DenoisedRows(**self.lengths(data), packing=data.packing, denoisers=(Denoiser(0.5, None),), shares=(1.0,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfDenoisers(Seq2Seq):
    """UL2's pretraining (Tay et al. 2022, section 3.1): regular denoising, with short spans of a small part of a text;
    sequential, of its end; and extreme, with long spans or a large part of it. One of them is drawn for each piece of
    text, and if the tokenizer has tokens for these modes, the source begins with the token of its mode.

    A piece has at most as many spans as the tokenizer has sentinels; if these do not fill a row of sources, another
    piece may follow in it.

    Raises:
        ValueError: a density or share outside (0, 1), spans below 1 token, no denoiser at all; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "mixture-of-denoisers"

    regular: tuple[tuple[float, float], ...] = ((3.0, 0.15), (8.0, 0.15))
    """The mean number of tokens in a span, and the share of tokens that is taken, for each regular denoiser."""
    extreme: tuple[tuple[float, float], ...] = ((3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5))
    """The same for each extreme denoiser."""
    sequential: float = 0.25
    """Mean share of the end of a text, drawn uniformly from 0 to twice this value; at most 0.5."""
    sequential_share: float = 1 / 7
    """Probability of the sequential denoiser. The others are equally probable."""
    modes: tuple[str, str, str] = ("[R]", "[S]", "[X]")
    """Tokens before the source, for regular, sequential and extreme denoisers."""

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

    def maker(self, data: Data) -> DenoisedRows:
        """Rows of texts as `data.packing` joins them."""
        regular, sequential, extreme = self.modes
        denoisers = (
            Denoiser(self.sequential, None, sequential),
            *(Denoiser(density, span, regular) for span, density in self.regular),
            *(Denoiser(density, span, extreme) for span, density in self.extreme),
        )
        others = len(denoisers) - 1
        shares = (self.sequential_share, *[(1 - self.sequential_share) / max(others, 1)] * others)
        return DenoisedRows(**self.lengths(data), packing=data.packing, denoisers=denoisers, shares=shares)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInfilling(Seq2Seq):
    """BART's pretraining (Lewis et al. 2020, section 2.2): the sentences of a text are permuted, spans of it are
    replaced by one mask each, and the target is the text.

    Raises:
        ValueError: a rate outside (0, 1), spans of no tokens; and as `Seq2Seq`.
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

    def maker(self, data: Data) -> InfilledRows:
        """Rows of texts as `data.packing` joins them."""
        return InfilledRows(
            **self.lengths(data), packing=data.packing, rate=self.rate, span=self.mean_span_length,
            permute=self.permute_sentences,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapSentences(Seq2Seq):
    """PEGASUS's pretraining (Zhang et al. 2020, section 3.1): the sentences that have most in common with the rest of
    their text are replaced by a mask each, and are the target.

    Raises:
        ValueError: a ratio outside (0, 1), an unknown selection; and as `Seq2Seq`.
    """

    name: ClassVar[str] = "gap-sentences"

    ratio: float = 0.3
    """Share of the sentences that is taken."""
    selection: Selection = "ind-orig"
    """By ROUGE-1 F1 against the rest of the text, each by itself (ind) or together with those already chosen (seq),
    with words counted as often as they occur (orig) or once (uniq)."""
    mask: str = "<mask_1>"
    """Token that replaces a sentence; if the vocabulary has none of this name, its mask."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < 1:
            raise ValueError(f"GapSentences.ratio is {self.ratio}: it must lie between 0 and 1")
        if self.selection not in get_args(Selection):
            raise ValueError(
                f"GapSentences.selection is {self.selection!r}: choose of {', '.join(get_args(Selection))}"
            )

    def default_target_length(self, length: int) -> int:
        """Half as many as in a row of sources."""
        return max(1, length // 2)

    def maker(self, data: Data) -> GapRows:
        """Rows of texts, each of whole sentences."""
        _needs_documents(data, "sentences that sum up their text")
        return GapRows(**self.lengths(data), ratio=self.ratio, selection=self.selection, mask=self.mask)


def _check_span(objective: Seq2Seq, density: float, span: float) -> None:
    if not 0 < density < 1 or span < 1:
        raise ValueError(
            f"{type(objective).__name__}: a density of {density} must lie between 0 and 1, and spans of {span} tokens "
            "must be of 1 or more"
        )


def _needs_documents(data: Data, what: str) -> None:
    if data.packing != "documents":
        raise ValueError(f"data.packing={data.packing}: {what} need data.packing=documents")
