"""Texts as vectors: an encoder, and the pooling and layers of sentence-transformers (Reimers and Gurevych 2019)."""

import dataclasses
import functools
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import names
from transformer_zoo.checkpoints import formats, hub
from transformer_zoo.nn import Compute, checks, pooling
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.pretrained import Bundle, choose_compute, from_pretrained

SHORTEST = 16  # length of the shortest rows that a program is compiled for; each next one is twice as long

# Each makes one vector of the vectors of a row's tokens; several poolings are concatenated in this order.
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedder:
    """A function from texts to vectors: `embedder(texts)`."""

    bundle: Bundle
    """The encoder."""
    poolings: tuple[str, ...] = ("mean",)
    """The `POOLINGS` that are applied to its hidden states."""
    layers: tuple[Callable[[jax.Array], jax.Array], ...] = ()
    """Functions of the pooled vectors [B, E], applied one after the other."""
    max_length: int
    """Tokens of a text, special tokens included; longer texts are truncated at the end."""
    lower_case: bool = False
    """Whether texts are put in lower case before they are tokenized."""
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Prefixes of a text, by name."""
    prompt: str | None = None
    """The name of the prompt that is used by default."""
    counts_prompt: bool = True
    """Whether the tokens of a prompt count in means and maxima."""

    def __post_init__(self) -> None:
        if self.bundle.tokenizer is None:
            raise FileNotFoundError("the model has no tokenizer, which an embedder of texts needs")
        if not self.poolings or not set(self.poolings) <= set(POOLINGS):
            raise ValueError(f"the poolings are {', '.join(self.poolings)!r}: choose among {', '.join(POOLINGS)}")

    def __call__(self, texts: Sequence[str], *, prompt: str | None = None, batch_size: int = 32) -> np.ndarray:
        """The vectors of texts, float32[N, D]. A text's vector does not depend on the other texts.

        Rows are sorted by length and padded to one of a few lengths, so that few programs are compiled.

        Args:
            texts: white space at their ends is removed; they may be empty.
            prompt: the name of the prompt to put before each text. None: `self.prompt`.
            batch_size: texts in a batch.

        Raises:
            TypeError: a single text instead of a list.
            ValueError: an unknown prompt, or a text that is not valid Unicode.
        """
        if isinstance(texts, str):
            raise TypeError("texts is a single string: give a list of texts")
        name = self.prompt if prompt is None else prompt
        if name is not None and name not in self.prompts:
            raise ValueError(f"there is no prompt {name!r}: known are {', '.join(self.prompts) or 'none'}")
        prefix = "" if name is None else self.prompts[name]
        rows = self._tokens([prefix + text.strip() for text in texts])
        # Tokenized alone, the prompt is followed by the special token that ends a sequence, which does not count.
        skipped = 0 if self.counts_prompt or not prefix else len(self._tokens([prefix.strip()])[0]) - 1

        vectors_ND = np.zeros((len(rows), self.width), np.float32)
        order = np.argsort([len(row) for row in rows], kind="stable")
        B = min(batch_size, 1 << max(len(rows) - 1, 0).bit_length())
        for chunk in (order[i : i + B] for i in range(0, len(order), B)):
            T = self._length(max(len(rows[i]) for i in chunk))
            tokens_BT, valid_BT = np.zeros((B, T), np.int32), np.zeros((B, T), bool)
            for row, i in enumerate(chunk):
                tokens_BT[row, : len(rows[i])], valid_BT[row, : len(rows[i])] = rows[i], True
            counted_BT = valid_BT & (np.arange(T) >= skipped)
            vectors_ND[chunk] = self._program(self.bundle.params, tokens_BT, valid_BT, counted_BT)[: len(chunk)]
        return vectors_ND

    @functools.cached_property
    def width(self) -> int:
        """D, the size of a vector."""
        row = jax.ShapeDtypeStruct((1, 1), jnp.int32), *[jax.ShapeDtypeStruct((1, 1), jnp.bool_)] * 2
        return jax.eval_shape(self._program, self.bundle.params, *row).shape[-1]

    def _tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text with its special tokens, truncated to `max_length`."""
        texts = [text.lower() for text in texts] if self.lower_case else list(texts)
        rows = []
        for number, encoding in enumerate(self.bundle.tokenizer.encode_batch(texts, template=True)):
            room = max(self.max_length - int((encoding.texts < 0).sum()), 0)
            rows.append(np.delete(encoding.ids, np.flatnonzero(encoding.texts >= 0)[room:]))
            if rows[-1].size:  # compiled programs check nothing
                checks.check_ids(rows[-1][None], self.bundle.config.vocab_size, f"text {number}", "the vocabulary")
        return rows

    def _length(self, tokens: int) -> int:
        """The padded length of a row with this number of tokens."""
        return min(max(SHORTEST, 1 << max(tokens - 1, 0).bit_length()), self.max_length)

    @functools.cached_property
    def _program(self) -> Callable[..., jax.Array]:
        @jax.jit
        def program(params: Any, tokens_BT: Any, valid_BT: Any, counted_BT: Any) -> jax.Array:
            hidden_BTD = self.bundle.model.apply({"params": params}, tokens_BT, valid_BT=valid_BT).hidden_BTD
            pooled = [_pooled(name, hidden_BTD, valid_BT, counted_BT) for name in self.poolings]
            vectors_BE = jnp.concatenate(pooled, axis=-1).astype(jnp.float32)
            for layer in self.layers:
                vectors_BE = layer(vectors_BE)
            return vectors_BE

        return program


def _pooled(name: str, hidden_BTD: jax.Array, valid_BT: jax.Array, counted_BT: jax.Array) -> jax.Array:
    match name:
        case "cls":
            return pooling.first(hidden_BTD, valid_BT)
        case "max":
            return pooling.largest(hidden_BTD, counted_BT)
        case "mean":
            return pooling.mean(hidden_BTD, counted_BT)
        case "mean_sqrt_len":
            return pooling.mean(hidden_BTD, counted_BT, power=0.5)
        case "weightedmean":
            return pooling.mean(hidden_BTD, counted_BT * jnp.arange(1, counted_BT.shape[1] + 1))
        case "lasttoken":
            return pooling.last(hidden_BTD, valid_BT)
    raise ValueError(f"there is no pooling {name!r}")


def load_embedder(
    name: str | os.PathLike[str] | Bundle, *, dtype: str = "float32", revision: str | None = None
) -> Embedder:
    """The embedder of a folder or a repository of sentence-transformers. For any other encoder, the mean of the hidden
    states, with a warning.

    Args:
        name: a folder or a hub id, with a modules.json or as `from_pretrained` takes it; or a model itself.
        dtype: precision of parameters and computation. The vectors are float32.
        revision: branch, tag or commit of the hub's repository.

    Raises:
        FileNotFoundError: a module's weights or the tokenizer are missing.
        ValueError: an unknown module, or an unknown setting of a module.
        PermissionError, ConnectionError: as `from_pretrained`.
    """
    if isinstance(name, Bundle):
        return Embedder(bundle=name, max_length=name.config.max_length)
    compute = choose_compute(None, dtype, dtype)
    root = names.folder(name, revision, weights=False)
    if not (root / hub.MODULES).is_file():
        warnings.warn(
            f"{name} has no {hub.MODULES}, which describes the vector of a text: it will be the mean over its "
            "tokens, for which the model may not have been trained",
            stacklevel=2,
        )
        bundle = _encoder(name, compute, revision)
        return Embedder(bundle=bundle, max_length=bundle.config.max_length)

    modules = hub.modules(root)
    kinds = list(modules.values())
    if len(kinds) < 2 or kinds[0] not in ENCODERS or kinds[1] != "Pooling":
        raise ValueError(
            f"{root / hub.MODULES} has {', '.join(kinds) or 'nothing'}: the first module must be a Transformer, and "
            "the second a Pooling"
        )
    for folder, kind in list(modules.items())[2:]:
        if kind not in LAYERS:
            raise ValueError(f"{root / folder}: a module {kind!r} is not known: known are {', '.join(LAYERS)}")
    root = names.folder(name, revision, weights="" in modules, folders=[folder for folder in modules if folder])
    folders = [root / folder for folder in modules]
    bundle = _encoder(folders[0], compute)
    text, pool, own = (
        _settings(folders[0], "sentence_*_config.json"), _settings(folders[1]),
        _settings(root, "config_sentence_transformers.json"),
    )  # fmt: skip
    longest = text.get("max_seq_length") or _settings(folders[0], "tokenizer_config.json").get("model_max_length")
    return Embedder(
        bundle=bundle,
        poolings=_poolings(pool, folders[1]),
        layers=tuple(_layer(kind, folder) for kind, folder in zip(kinds[2:], folders[2:])),
        max_length=int(min(longest or bundle.config.max_length, bundle.config.max_length)),
        lower_case=bool(text.get("do_lower_case")),
        prompts=own.get("prompts") or {},
        prompt=own.get("default_prompt_name"),
        counts_prompt=pool.get("include_prompt", True),
    )


ENCODERS = ("Transformer", "BERT", "RoBERTa", "DistilBERT", "ALBERT")  # the first module, and its older names
LAYERS = ("Dense", "Dropout", "Normalize")


def _encoder(name: str | os.PathLike[str], compute: Compute, revision: str | None = None) -> Bundle:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".* has no pooler/")  # it is not used
        return from_pretrained(name, task="base", compute=compute, revision=revision)


def _settings(folder: Path, pattern: str = "config.json") -> dict[str, Any]:
    """The settings in a module's file; none if there is no such file."""
    file = next(iter(sorted(folder.glob(pattern))), None)
    return {} if file is None else json.loads(file.read_bytes())


def _poolings(settings: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """A module's poolings, from one switch each or from a list of names."""
    named = settings.get("pooling_mode")
    if named is None:
        named = [key.removeprefix("pooling_mode_") for key, on in settings.items() if on and key.startswith("pooling_")]
    named = named.split("+") if isinstance(named, str) else named
    named = {name if name in POOLINGS else name.removesuffix("s").removesuffix("_token") for name in named}
    if not named or not named <= set(POOLINGS):
        raise ValueError(f"{folder} pools by {', '.join(sorted(named)) or 'nothing'}: known are {', '.join(POOLINGS)}")
    return tuple(name for name in POOLINGS if name in named)


def _layer(kind: str, folder: Path) -> Callable[[jax.Array], jax.Array]:
    """The function of vectors that one of `LAYERS` computes."""
    match kind:
        case "Normalize":
            return lambda vectors_BE: (
                vectors_BE / jnp.maximum(jnp.linalg.norm(vectors_BE, axis=-1, keepdims=True), 1e-12)
            )
        case "Dense":
            return _dense(folder)
    return lambda vectors_BE: vectors_BE  # dropout, which is only for training


def _dense(folder: Path) -> Callable[[jax.Array], jax.Array]:
    settings, tensors = _settings(folder), formats.read_folder(folder)
    expected = {"linear.weight", "linear.bias"} if settings.get("bias", True) else {"linear.weight"}
    if tensors.keys() != expected:
        raise ValueError(f"{folder} holds {', '.join(sorted(tensors))}; expected are {', '.join(sorted(expected))}")
    name = str(settings.get("activation_function", "Tanh")).rpartition(".")[2].lower()
    activations = ACTIVATIONS | {"identity": lambda x: x, "sigmoid": jax.nn.sigmoid}
    if name not in activations:
        raise ValueError(f"{folder} has the activation {name!r}: known are {', '.join(activations)}")
    weight_FE, bias_F = (np.asarray(tensors.get(f"linear.{key}", 0), np.float32) for key in ("weight", "bias"))
    return lambda vectors_BE: activations[name](vectors_BE @ weight_FE.T + bias_F)
