"""Texts as vectors: an encoder, and the pooling and layers of sentence-transformers (Reimers and Gurevych 2019)."""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import arguments, hugging_face, json_files, names, registry, vectors
from transformer_zoo.checkpoints import hub, sentence_modules
from transformer_zoo.checkpoints.sentence_modules import Layer
from transformer_zoo.data.tokenizers import ROLES, Tokenizer
from transformer_zoo.nn import Compute, checks
from transformer_zoo.nn.pooling import POOLINGS, pool
from transformer_zoo.prediction import engine
from transformer_zoo.pretrained import Bundle, choose_compute, from_pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder:
    """A function from texts to vectors: `embedder(texts)`."""

    bundle: Bundle
    """The encoder."""
    poolings: tuple[str, ...] = ("mean",)
    """The `POOLINGS` that are applied to its hidden states, in the order of their concatenation."""
    layers: tuple[Layer, ...] = ()
    """Functions of the pooled vectors [B, E], applied one after the other."""
    max_length: int | None
    """Tokens of a text, special tokens included; longer texts are truncated."""
    truncation_side: Literal["left", "right"] = "right"
    """Where a text that is too long is cut off."""
    lower_case: bool = False
    """Whether texts are put in lower case before they are tokenized."""
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Prefixes of a text, by name."""
    prompt: str | None = None
    """The name of the prompt that is used by default."""
    counts_prompt: bool = True
    """Whether the tokens of a prompt, with the special ones before it, are pooled."""
    truncate_dim: int | None = None
    """The size of the vectors by default: the first numbers are kept. None: all of them."""
    similarity_fn_name: str = "cosine"
    """How its vectors are compared: one of `vectors.SIMILARITIES`."""

    def __post_init__(self) -> None:
        arguments.check(type(self), vars(self))
        if self.bundle.tokenizer is None:
            raise FileNotFoundError(registry.no_tokenizer(self.bundle))
        if getattr(self.bundle.config, "num_decoder_layers", 0):
            family = registry.family_of(self.bundle.config)
            raise ValueError(f"{family} reads a source and writes a target: an embedder needs a model that only reads")
        if not self.poolings or not set(self.poolings) <= set(POOLINGS):
            raise ValueError(f"the poolings are {', '.join(self.poolings)!r}: choose among {', '.join(POOLINGS)}")
        if self.truncation_side not in ("left", "right"):
            raise ValueError(f"truncation_side is {self.truncation_side!r}: it is left or right")
        if self.prompt is not None:
            self._prefix(self.prompt, None)
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise ValueError(f"truncate_dim is {self.truncate_dim}: it counts numbers of a vector, at least 1")
        if self.similarity_fn_name not in vectors.SIMILARITIES:
            known = ", ".join(vectors.SIMILARITIES)
            raise ValueError(f"similarity_fn_name is {self.similarity_fn_name!r}: choose among {known}")
        frame = len(self._tokenizer.encode("", template=True))
        if self.max_length is not None and self.max_length <= frame:
            raise ValueError(f"max_length is {self.max_length}: {frame} special tokens leave no room for a text")

    def __call__(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        prompt_text: str | None = None,
        batch_size: int = 32,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
        precision: str = "float32",
        ranges: Any = None,
        special: bool = True,
        **unknown: Any,
    ) -> np.ndarray:
        """The vectors of texts, [N, D]. A text's vector does not depend on the other texts.

        Rows are sorted by length and padded to one of a few lengths, so that few programs are compiled.

        Args:
            texts: taken as they are, white space included; they may be empty.
            prompt: the name of the prompt to put before each text. None: `self.prompt`.
            prompt_text: any other text to put before each text, instead of a prompt's name; "" for none at all.
            batch_size: texts in a batch.
            truncate_dim: keep this many of the first numbers of a vector. None: `self.truncate_dim`.
            normalize_embeddings: divide each vector, truncated as it is, by its length.
            precision: `float32`, `float16`, `int8`, `uint8`, `binary` or `ubinary`, as `quantize_embeddings` makes
                them.
            ranges: [2, D], the least and the greatest value of each number, for int8 and uint8. None: those of
                these vectors.
            special: read special tokens where a text spells them out; otherwise they are ordinary characters.

        Raises:
            TypeError: a single text instead of a list, an argument of another type, or an unknown argument.
            ValueError: an unknown prompt or precision, a number out of its range, or a text that is not valid Unicode.
        """
        arguments.check(Embedder.__call__, locals())
        hugging_face.refuse("the embedder", unknown, hugging_face.EMBED, Embedder.__call__.__kwdefaults__)
        texts = list(texts)
        arguments.check(Embedder.__call__, {"texts": texts})  # an iterator's as well
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: it counts texts, at least 1")
        if truncate_dim is not None and not 1 <= truncate_dim <= self._full_width:
            raise ValueError(f"truncate_dim={truncate_dim}: the vectors have {self._full_width} numbers")
        D = truncate_dim or self.width
        vectors_ND = np.zeros((len(texts), D), np.float32)
        # Refuses before anything is computed. A single vector has no ranges of its own.
        vectors.quantize_embeddings(vectors_ND[: len(texts) == 1], precision, ranges=ranges)
        prefix = self._prefix(prompt, prompt_text)
        tokens = self._tokens([prefix + text for text in texts], special)
        skipped = 0 if self.counts_prompt or not prefix else self._prompt_tokens(prefix, special)

        rows = [{"tokens_BT": row, "counted_BT": np.arange(len(row)) >= skipped} for row in tokens]
        params, B = jax.tree.map(jnp.asarray, self.bundle.params), min(batch_size, engine.power_of_two(len(rows)))
        limit = engine.limit_of(rows, self.max_length)
        for i, outputs in enumerate(engine.run(self._program, params, rows, B, limit)):
            vectors_ND[i] = outputs["vectors_BE"][:D]
        if normalize_embeddings:
            vectors_ND = vectors.normalize(vectors_ND)
        return vectors.quantize_embeddings(vectors_ND, precision, ranges=ranges)

    def similarity(self, vectors_ND: Any, others_MD: Any) -> np.ndarray:
        """The similarity of each vector to each of the others by `self.similarity_fn_name`, float32[N, M].

        Raises:
            ValueError: vectors of unequal sizes.
        """
        return vectors.similarity(vectors_ND, others_MD, self.similarity_fn_name)

    def quantize(self, format: str) -> "Embedder":
        """The same with the matrices of its model in few bits, as `zoo.quantize` makes them."""
        return dataclasses.replace(self, bundle=self.bundle.quantize(format))

    @property
    def width(self) -> int:
        """D, the size of a vector."""
        return min(self._full_width, self.truncate_dim or self._full_width)

    @functools.cached_property
    def _full_width(self) -> int:
        dtypes = {"tokens_BT": jnp.int32, "counted_BT": jnp.bool_, "valid_BT": jnp.bool_}
        batch = {name: jax.ShapeDtypeStruct((1, 1), dtype) for name, dtype in dtypes.items()}
        return jax.eval_shape(self._program, self.bundle.params, batch)["vectors_BE"].shape[-1]

    @property
    def _program(self) -> Callable[..., dict[str, jax.Array]]:
        return functools.partial(_program, model=self.bundle.model, poolings=self.poolings, layers=self.layers)

    def _prefix(self, prompt: str | None, prompt_text: str | None) -> str:
        """What is put before each text."""
        if prompt_text is not None:
            if prompt is not None:
                raise ValueError(f"prompt={prompt!r} and prompt_text={prompt_text!r}: give one of them")
            return prompt_text
        name = self.prompt if prompt is None else prompt
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise ValueError(f"there is no prompt {name!r}: known are {known}; any other text is given as prompt_text")
        return self.prompts[name]

    def _prompt_tokens(self, prefix: str, special: bool) -> int:
        """The tokens of a prompt, with the special ones before it and without the one that ends a sequence."""
        (row,) = self._tokens([prefix], special)
        return len(row) - (len(row) > 0 and row[-1] in [getattr(self._tokenizer, f"{role}_id") for role in ROLES])

    def _tokens(self, texts: Sequence[str], special: bool = True) -> list[np.ndarray]:
        """The tokens of each text with its special tokens, truncated to `max_length`."""
        rows = []
        for i, encoding in enumerate(self._tokenizer.encode_batch(texts, template=True, special=special)):
            of_text = np.flatnonzero(encoding.texts >= 0)
            excess = 0 if self.max_length is None else max(len(encoding) - self.max_length, 0)
            cut = of_text[:excess] if self.truncation_side == "left" else of_text[len(of_text) - excess :]
            rows.append(np.delete(encoding.ids, cut))
            if len(rows[-1]):  # compiled programs check nothing
                checks.check_ids(rows[-1][None], self.bundle.config.vocab_size, f"text {i}", "the vocabulary")
        return rows

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return self.bundle.tokenizer.lower_cased() if self.lower_case else self.bundle.tokenizer


# One for all embedders, so that a second embedder of the same model compiles nothing.
@functools.partial(jax.jit, static_argnames=("model", "poolings", "layers"))
def _program(
    params: Any, batch: Mapping[str, jax.Array],
    *, model: nn.Module, poolings: tuple[str, ...], layers: tuple[Layer, ...],
) -> dict[str, jax.Array]:  # fmt: skip
    """What is computed of a batch of rows, as `engine.run` takes it."""
    hidden_BTD = model.apply({"params": params}, batch["tokens_BT"], None, batch["valid_BT"], method="read").hidden_BTD
    pooled = [pool(name, hidden_BTD, batch["counted_BT"]) for name in poolings]
    vectors_BE = jnp.concatenate(pooled, axis=-1).astype(jnp.float32)
    for layer in layers:
        vectors_BE = layer(vectors_BE)
    return {"vectors_BE": vectors_BE}


def embed(model: Embedder | Bundle | str | os.PathLike[str], texts: Iterable[str], **settings: Any) -> np.ndarray:
    """The vectors of texts, [N, D]: `load_embedder(model)(texts, **settings)`. To embed more texts later, keep the
    embedder.

    Args:
        model: an embedder, or what `load_embedder` takes.
        texts: the texts; they may be empty.
        **settings: as in a call of an `Embedder`: prompt, prompt_text, batch_size, truncate_dim, normalize_embeddings,
            precision, ranges, special.

    Raises:
        TypeError, ValueError: as a call of an `Embedder`; and the errors of `load_embedder`.
    """
    arguments.check(embed, locals())
    embedder = model if isinstance(model, Embedder) else load_embedder(model)
    return embedder(texts, **settings)


def load_embedder(
    name: str | os.PathLike[str] | Bundle,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    family: str | None = None,
) -> Embedder:
    """The embedder of a folder or a repository of sentence-transformers. For any other model, the mean of the hidden
    states, with a warning.

    Args:
        name: a folder or a hub id, with a modules.json or as `from_pretrained` takes it; or a model itself.
        dtype: precision of parameters and computation. The vectors are float32.
        revision: branch, tag or commit of the hub's repository.
        family: the encoder's, for a config.json without `model_type`, as in `from_pretrained`.

    Raises:
        FileNotFoundError: a module's settings or weights, or the tokenizer, are missing.
        ValueError: an unknown module, a setting that is not known or not supported, or weights that do not fit.
        PermissionError, ConnectionError: as `from_pretrained`.
        TypeError: an argument of another type.
    """
    arguments.check(load_embedder, locals())
    if isinstance(name, Bundle):
        names.check_family("the model", name.config, family)
        _warn_of_mean("a model by itself")
        return Embedder(bundle=name, max_length=name.config.max_length)
    compute = choose_compute(None, dtype, dtype)
    root = names.folder(name, revision, weights=False)
    if not (root / hub.MODULES).is_file():
        _warn_of_mean(name)
        bundle = _encoder(name, compute, revision, family)
        return Embedder(bundle=bundle, **sentence_modules.of_encoder(root, bundle.config.max_length))

    modules = sentence_modules.read(root)
    inside = [folder for folder, _ in modules]
    root = names.folder(name, revision, weights="" in inside, folders=[folder for folder in inside if folder])
    modules = [(kind, root / folder) for folder, kind in modules]
    encoder = modules[0][1]
    config = names.describe(encoder, published=True, family=family).config
    pooling = sentence_modules.of_pooling(modules[1][1])
    fields = {
        **sentence_modules.of_model(root),
        **sentence_modules.of_encoder(encoder, config.max_length),
        **pooling,
        "layers": sentence_modules.layers(modules[2:], config.width * len(pooling["poolings"])),
    }
    bundle = _encoder(encoder, compute, family=family)
    try:
        return Embedder(bundle=bundle, **fields)
    except ValueError as error:
        raise ValueError(f"{root}: {json_files.excerpt(error, 400)}") from None


def _warn_of_mean(name: Any) -> None:
    warnings.warn(
        f"{name} has no {hub.MODULES}, which describes the vector of a text: it will be the mean over its tokens, for "
        "which the model may not have been trained",
        stacklevel=3,
    )


def _encoder(
    name: str | os.PathLike[str], compute: Compute, revision: str | None = None, family: str | None = None
) -> Bundle:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".* has no pooler/")  # it is not used
        return from_pretrained(name, task="base", compute=compute, revision=revision, family=family)
