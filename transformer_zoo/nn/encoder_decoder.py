"""The call of every encoder-decoder: its arguments, their checks, positions, masks and cache, and its tasks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import pooling
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import check_like, check_source, check_target, concrete
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.heads import Classifier, Head
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.output import Output
from transformer_zoo.nn.positions import cross_inputs, decoder_inputs, encoder_inputs
from transformer_zoo.nn.stack import stack
from transformer_zoo.nn.tasks import TASKS


class EncoderDecoder(nn.Module):
    """An encoder and a decoder, with a language model's output layer for `seq2seq-lm` and without for `base`.

    A family's Model has `setup`, which makes `token_embed`, `drop`, `encoder_blocks` and `decoder_blocks`; `embed` and
    `logits`; and the other hooks below where it needs them. A block of the encoder is called with x_BSD, None, what
    `encoder_shared` returns, and `train`; one of the decoder with x_BTD, (its part of the cache, its keys and values of
    the source; None: there are none), the mask, the first slot in the cache, the encoded source, the mask of
    cross-attention, what `decoder_shared` returns, and `train`.
    """

    config: Any
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def __call__(
        self,
        source_BS: jax.Array | None,
        target_BT: jax.Array | None = None,
        valid_BS: jax.Array | None = None,
        target_valid_BT: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        target_documents_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Encodes a source and decodes a target, from left to right.

        Args:
            source_BS: ids, int[B, S]. None: the cache holds the encoded source.
            target_BT: the decoder's input, ids, int[B, T]; it begins with `decoder_start_id`, or with a language. None:
                the decoder reads the shifted source (classification tasks). Token classification has no decoder, and
                neither has a model with num_decoder_layers=0: `hidden_BTD` is then the encoded source.
            valid_BS, target_valid_BT: which tokens are real; the rest is padding, on the left or on the right. None:
                all.
            source_documents_BS, target_documents_BT: number the documents packed in a row, alike on both sides, from 1;
                attention does not cross them.
            cache: of the targets before these, from `init_cache` or an earlier call.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, more tokens than there are positions, an empty batch, shapes that
                differ, no target where one is needed, no end of text in a row of sequence classification.
        """
        task = TASKS[self.task]
        if task.encoder_only or not self.config.num_decoder_layers:
            encoded_BSD = self.encode(source_BS, valid_BS, source_documents_BS, train)
            logits = self.head(encoded_BSD, train) if task.scores else None
            return Output(hidden_BTD=encoded_BSD, logits=logits, encoded_BSD=encoded_BSD)
        encodes = cache is None or cache.cross is None
        if encodes:
            check_source(self.config, source_BS, valid_BS, source_documents_BS)
        if task.scores and target_BT is None:
            start = self.decoder_start(source_BS, valid_BS)
            target_BT, target_valid_BT = shift_right(source_BS, valid_BS, start), valid_BS
        documents = source_documents_BS, target_documents_BT
        inputs = self._decoder_inputs(target_BT, source_BS, valid_BS, target_valid_BT, *documents, cache)
        if task.scores and not task.per_token:
            check_like(target_BT, source_BS, "target_BT")
            ends_BS = text_ends(source_BS, valid_BS, self.config.eos_id)
        encoded_BSD = self._encode(source_BS, valid_BS, source_documents_BS, train) if encodes else None
        output = self._decode(target_BT, encoded_BSD, *inputs, train)
        if not task.scores:
            return output
        read = output.hidden_BTD if task.per_token else pooling.last(output.hidden_BTD, ends_BS)
        return output.replace(logits=self.head(read, train))

    def read(
        self, tokens_BT: jax.Array, segments_BT: jax.Array | None, valid_BT: jax.Array | None, train: bool = False
    ) -> Output:
        """Reads whole texts, as models of all shapes do: the text is the source. There are no segments."""
        return self(tokens_BT, valid_BS=valid_BT, train=train)

    def encode(
        self,
        source_BS: jax.Array,
        valid_BS: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The encoded source, [B, S, D]. Arguments and errors are those of a call."""
        check_source(self.config, source_BS, valid_BS, source_documents_BS)
        return self._encode(source_BS, valid_BS, source_documents_BS, train)

    def _encode(
        self, source_BS: jax.Array, valid_BS: jax.Array | None, source_documents_BS: jax.Array | None, train: bool
    ) -> jax.Array:
        cfg = self.config
        positions_BS, mask = encoder_inputs(source_BS, valid_BS, None, source_documents_BS)

        x_BSD = self.drop(self.embed("encoder", source_BS, positions_BS), deterministic=not train)
        self.sow("intermediates", "encoder_embedded_BTD", x_BSD)
        x_BSD, _ = stack(
            self.encoder_blocks, x_BSD, None, *self.encoder_shared(source_BS, mask), train,
            length=cfg.num_layers, compute=self.compute,
        )  # fmt: skip
        return self.final("encoder", x_BSD, train)

    def decode(
        self,
        target_BT: jax.Array,
        encoded_BSD: jax.Array | None,
        valid_BS: jax.Array | None = None,
        target_valid_BT: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        target_documents_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Decodes a target, given the encoded source. A cache keeps the source's keys and values: after the first call
        with it `encoded_BSD` may be None. The other arguments and the errors are those of a call."""
        documents = source_documents_BS, target_documents_BT
        inputs = self._decoder_inputs(target_BT, encoded_BSD, valid_BS, target_valid_BT, *documents, cache)
        return self._decode(target_BT, encoded_BSD, *inputs, train)

    def _decoder_inputs(
        self,
        target_BT: jax.Array,
        source: jax.Array | None,
        valid_BS: jax.Array | None,
        target_valid_BT: jax.Array | None,
        source_documents_BS: jax.Array | None,
        target_documents_BT: jax.Array | None,
        cache: Cache | None,
    ) -> tuple[jax.Array, Mask, Mask, jax.Array | int, Cache | None]:
        """Positions, masks, first slot and cache of the decoder. All errors of `decode` are raised here: a call comes
        here before it encodes its source, of which only the shape [B, S, ...] is needed."""
        check_target(self.config, target_BT, target_valid_BT, target_documents_BT)
        positions_BT, mask, start, cache = decoder_inputs(target_BT, target_valid_BT, None, target_documents_BT, cache)
        cross_mask, cache = cross_inputs(target_BT, source, valid_BS, source_documents_BS, target_documents_BT, cache)
        return positions_BT, mask, cross_mask, start, cache

    def _decode(
        self,
        target_BT: jax.Array,
        encoded_BSD: jax.Array | None,
        positions_BT: jax.Array,
        mask: Mask,
        cross_mask: Mask,
        start: jax.Array | int,
        cache: Cache | None,
        train: bool,
    ) -> Output:
        cfg = self.config
        x_BTD = self.drop(self.embed("decoder", target_BT, positions_BT), deterministic=not train)
        self.sow("intermediates", "decoder_embedded_BTD", x_BTD)
        x_BTD, new = stack(
            self.decoder_blocks, x_BTD, (None, None) if cache is None else (cache.kv, cache.cross),
            mask, start, encoded_BSD, cross_mask, *self.decoder_shared(target_BT, cache), train,
            length=cfg.num_decoder_layers, compute=self.compute,
        )  # fmt: skip
        if cache is not None:  # keys and values of the source are returned only by the call that computes them
            cache = cache.replace(kv=new[0], cross=new[1] if cache.cross is None else cache.cross)
        hidden_BTD = self.final("decoder", x_BTD, train)
        return Output(
            hidden_BTD=hidden_BTD,
            logits=self.logits(hidden_BTD)[..., : cfg.vocab_size] if TASKS[self.task].vocabulary else None,
            cache=cache,
            encoded_BSD=encoded_BSD,
        )

    def encoder_shared(self, source_BS: jax.Array, mask: Mask) -> tuple[Any, ...]:
        """The arguments that all blocks of the encoder share."""
        return (mask,)

    def decoder_shared(self, target_BT: jax.Array, cache: Cache | None) -> tuple[Any, ...]:
        """The arguments that all blocks of the decoder share besides masks, slot and source. The cache, if there is
        one, already has slots for the target."""
        return ()

    def final(self, side: str, x_BTD: jax.Array, train: bool) -> jax.Array:
        """The output of a side, given its last block's: a final norm belongs here."""
        return x_BTD

    def decoder_start(self, source_BS: jax.Array, valid_BS: jax.Array | None) -> Any:
        """The first id of the decoder's input where it reads the shifted source: one, or one for each row, [B, 1]."""
        return self.config.decoder_start_id

    def add_classifier(self, init: Any) -> None:
        """Makes `head` for a classification task, whose Config then has `labels` and `head_dropout`. The classifier of
        sequences has a hidden layer."""
        rate = self.config.head_dropout
        table = {
            "sequence-classification": Head(hidden="tanh", hidden_dropout=rate, dropout=rate),
            "token-classification": Head(dropout=rate),
        }
        if scores := TASKS[self.task].num_scores(self.config.labels):
            head = table.get(self.task, Head())
            self.head = Classifier(scores, self.compute, init, head.dropout, head.hidden, head.hidden_dropout)

    @staticmethod
    def example_inputs(task: str) -> tuple[Any, ...]:
        """Inputs of the right shapes for a task, to initialise and to trace."""
        return (jnp.zeros((1, 1), jnp.int32),) * (1 if TASKS[task].encoder_only else 2)


def shift_right(source_BS: jax.Array, valid_BS: jax.Array | None, start: Any) -> jax.Array:
    """The source as a decoder's input: each token one position later, and `start`, an id or one for each row, [B, 1],
    at the first real position."""
    first_B1 = 0 if valid_BS is None else jnp.argmax(valid_BS, axis=1, keepdims=True)
    return jnp.where(jnp.arange(source_BS.shape[1]) == first_B1, start, jnp.roll(source_BS, 1, axis=1))


def text_ends(source_BS: jax.Array, valid_BS: jax.Array | None, eos_id: int | None) -> jax.Array:
    """bool[B, S]: where a text ends.

    Raises:
        ValueError: a row has no end. (Under jit the ids are not known, and nothing is checked.)
    """
    ends_BS = source_BS == eos_id if valid_BS is None else (source_BS == eos_id) & valid_BS
    if (found := concrete(ends_BS)) is not None and not found.any(axis=1).all():
        row = found.any(axis=1).argmin()
        raise ValueError(
            f"row {row} of source_BS has no token {eos_id}, the end of a text, where a row is classified: append it"
        )
    return ends_BS
