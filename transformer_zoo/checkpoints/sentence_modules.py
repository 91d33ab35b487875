"""The modules of a sentence-transformers model: a folder's poolings, layers of vectors, lengths and prompts."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import json_files
from transformer_zoo.checkpoints import formats, hub
from transformer_zoo.nn.pooling import POOLINGS

Layer = Callable[[jax.Array], jax.Array]
"""A function of vectors [B, E]."""

PACKAGE = "sentence_transformers."  # modules of others may have the same names
ENCODERS = ("Transformer", "BERT", "RoBERTa", "DistilBERT", "ALBERT")  # the first module, and its older names
SETTINGS = "config_sentence_transformers.json"

# The settings that are known in each file, and their types.
OF_MODEL = {
    "__version__": dict, "model_type": str, "prompts": dict, "default_prompt_name": str, "truncate_dim": int,
    "similarity_fn_name": str,
}  # fmt: skip
OF_ENCODER = {
    "max_seq_length": int, "do_lower_case": bool, "transformer_task": str, "module_output_name": str,
    "modality_config": dict, "processing_kwargs": dict, "unpad_inputs": bool, "query_length": int,
    "document_length": int,
}  # fmt: skip
OF_POOLING = {
    "embedding_dimension": int, "word_embedding_dimension": int, "pooling_mode": (str, list), "include_prompt": bool,
}  # fmt: skip
OF_DENSE = {
    "in_features": int, "out_features": int, "bias": bool, "activation_function": str, "module_input_name": str,
    "module_output_name": str, "use_residual": bool,
}  # fmt: skip

# Settings of which only the default is supported.
ENCODER_SUPPORTS = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "processing_kwargs": {},
}
DENSE_SUPPORTS = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")

# The activations of torch.nn, with their default settings.
ACTIVATIONS = {
    "Identity": lambda x: x, "Tanh": jnp.tanh, "Sigmoid": jax.nn.sigmoid, "LogSigmoid": jax.nn.log_sigmoid,
    "ReLU": jax.nn.relu, "ReLU6": jax.nn.relu6, "LeakyReLU": jax.nn.leaky_relu, "ELU": jax.nn.elu,
    "CELU": jax.nn.celu, "SELU": jax.nn.selu, "GELU": functools.partial(jax.nn.gelu, approximate=False),
    "SiLU": jax.nn.silu, "Mish": jax.nn.mish, "Softplus": jax.nn.softplus, "Softsign": jax.nn.soft_sign,
    "Hardtanh": jax.nn.hard_tanh, "Hardsigmoid": jax.nn.hard_sigmoid, "Hardswish": jax.nn.hard_silu,
    "Tanhshrink": lambda x: x - jnp.tanh(x), "Softmax": jax.nn.softmax,
}  # fmt: skip


def read(root: Path) -> list[tuple[str, str]]:
    """The modules in their order, each with its folder within this one and its kind: an encoder, "Pooling", and
    `LAYERS`.

    Raises:
        ValueError: a damaged modules.json, a module that is not known, or modules in another order.
    """
    modules = [
        (folder, kind.rpartition(".")[2] if kind.startswith(PACKAGE) else kind) for folder, kind in hub.modules(root)
    ]
    kinds = [kind for _, kind in modules]
    if len(kinds) < 2 or kinds[0] not in ENCODERS or kinds[1] != "Pooling":
        raise ValueError(
            f"{root / hub.MODULES} has {json_files.excerpt(', '.join(kinds) or 'nothing')}: the first module must be a "
            "Transformer of sentence-transformers, and the second its Pooling"
        )
    for folder, kind in modules[2:]:
        if kind not in LAYERS:
            fault = f"a module {json_files.excerpt(repr(kind))} is not known: known are {', '.join(LAYERS)}"
            raise ValueError(f"{root / folder}: {fault}")
    return modules


def of_model(root: Path) -> dict[str, Any]:
    """The fields of an `Embedder` that the model's own settings decide."""
    file = root / SETTINGS
    settings = _settings(file, OF_MODEL) if file.is_file() else {}
    prompts = settings.get("prompts") or {}
    json_files.check(prompts, dict.fromkeys(prompts, str), f"{file}, prompts")
    return {
        "prompts": {name: text or "" for name, text in prompts.items()},
        "prompt": settings.get("default_prompt_name"),
        "truncate_dim": settings.get("truncate_dim"),
        "similarity_fn_name": settings.get("similarity_fn_name") or "cosine",
    }


def of_encoder(folder: Path, longest: int | None) -> dict[str, Any]:
    """The fields of an `Embedder` that the encoder's settings decide.

    Args:
        longest: tokens of the longest text that the model can read; None: there is no limit.
    """
    file = next(iter(sorted(folder.glob("sentence_*_config.json"))), None)
    settings = {} if file is None else _settings(file, OF_ENCODER, ENCODER_SUPPORTS)
    tokenizer = folder / "tokenizer_config.json"
    of_tokenizer = json_files.read(tokenizer) if tokenizer.is_file() else {}
    json_files.check(of_tokenizer, {"model_max_length": float, "truncation_side": str}, str(tokenizer))
    for source, length in ((file, settings.get("max_seq_length")), (tokenizer, of_tokenizer.get("model_max_length"))):
        if length is not None:
            if not length >= 1:
                raise ValueError(f"{source}: the longest text has {length} tokens, and must have at least 1")
            longest = int(length if longest is None else min(length, longest))
            break
    return {
        "max_length": longest,
        "truncation_side": of_tokenizer.get("truncation_side") or "right",
        "lower_case": bool(settings.get("do_lower_case")),
    }


def of_pooling(folder: Path) -> dict[str, Any]:
    """The fields of an `Embedder` that a Pooling decides: by a list of names, or by one switch each."""
    file = folder / "config.json"
    switches = [key for key in json_files.read(file) if key.startswith("pooling_mode_")]
    settings = _settings(file, OF_POOLING | dict.fromkeys(switches, bool))
    listed = settings.get("pooling_mode")
    names = listed.split("+") if isinstance(listed, str) else list(map(str, listed or ()))
    if listed is None:
        names = [key.removeprefix("pooling_mode_") for key in switches if settings[key]] or ["mean"]
    poolings = [name if name in POOLINGS else name.removesuffix("s").removesuffix("_token") for name in names]
    if not poolings or not set(poolings) <= set(POOLINGS):
        found = json_files.excerpt(", ".join(names) or "nothing")
        raise ValueError(f"{file} pools by {found}: known are {', '.join(POOLINGS)}")
    poolings = sorted(poolings, key=POOLINGS.index) if listed is None else poolings
    return {"poolings": tuple(poolings), "counts_prompt": settings.get("include_prompt") is not False}


def layers(modules: Sequence[tuple[str, Path]], size: int) -> tuple[Layer, ...]:
    """The layers of some modules, each its kind and its folder.

    Args:
        size: E, the size of the vectors that the first one takes.
    """
    functions = []
    for kind, folder in modules:
        function, size = LAYERS[kind](folder, size)
        functions.append(function)
    return tuple(functions)


def _normalize(folder: Path, size: int) -> tuple[Layer, int]:
    def normalize(vectors_BE: jax.Array) -> jax.Array:
        return vectors_BE / jnp.maximum(jnp.linalg.norm(vectors_BE, axis=-1, keepdims=True), 1e-12)

    return normalize, size


def _dropout(folder: Path, size: int) -> tuple[Layer, int]:
    return lambda vectors_BE: vectors_BE, size  # it is only for training


def _layer_norm(folder: Path, size: int) -> tuple[Layer, int]:
    file = folder / "config.json"
    _check_size(_settings(file, {"dimension": int}), "dimension", size, file)
    scale_E, bias_E = _tensors(folder, {"norm.weight": (size,), "norm.bias": (size,)}).values()

    def layer_norm(vectors_BE: jax.Array) -> jax.Array:
        centred_BE = vectors_BE - vectors_BE.mean(axis=-1, keepdims=True)
        variance_B1 = (centred_BE**2).mean(axis=-1, keepdims=True)
        return centred_BE / jnp.sqrt(variance_B1 + 1e-5) * scale_E + bias_E

    return layer_norm, size


def _dense(folder: Path, size: int) -> tuple[Layer, int]:
    file = folder / "config.json"
    settings = _settings(file, OF_DENSE, DENSE_SUPPORTS)
    _check_size(settings, "in_features", size, file)
    activation = str(settings.get("activation_function", "torch.nn.Tanh"))
    library, _, name = activation.rpartition(".")
    if not f"{library}.".startswith("torch.nn.") or name not in ACTIVATIONS:
        known = f"known are, in torch.nn, {', '.join(ACTIVATIONS)}"
        raise ValueError(f"{file}: the activation {json_files.excerpt(repr(activation))} is not known: {known}")
    if (out := settings.get("out_features")) is None:
        raise ValueError(f"{file} lacks out_features")
    residual = bool(settings.get("use_residual"))
    shapes = {"linear.weight": (out, size)}
    if settings.get("bias") is not False:
        shapes["linear.bias"] = (out,)
    if residual and out != size:
        shapes["residual.weight"] = (out, size)
    tensors = _tensors(folder, shapes)

    def dense(vectors_BE: jax.Array) -> jax.Array:
        vectors_BF = ACTIVATIONS[name](vectors_BE @ tensors["linear.weight"].T + tensors.get("linear.bias", 0))
        if not residual:
            return vectors_BF
        return vectors_BF + (vectors_BE if out == size else vectors_BE @ tensors["residual.weight"].T)

    return dense, out


LAYERS = {"Dense": _dense, "Dropout": _dropout, "LayerNorm": _layer_norm, "Normalize": _normalize}
"""What reads a module behind the pooling. Of its folder and of the size of the vectors that it takes, it makes a
function of vectors and the size of its results."""


def _settings(file: Path, kinds: Mapping[str, Any], supported: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings in a module's file.

    Args:
        kinds: the settings that are known, and their types. A warning names any other.
        supported: the only value of a setting that is supported.
    """
    settings = json_files.read(file)
    json_files.check(settings, kinds, str(file))
    for key, value in (supported or {}).items():
        if settings.get(key) not in (None, value):
            found = json_files.excerpt(repr(settings[key]))
            raise ValueError(f"{file}: {key} is {found}, and only {value!r} is supported")
    if unknown := settings.keys() - kinds:
        listed = json_files.excerpt(", ".join(sorted(unknown)))
        warnings.warn(f"{file} has settings that are not known and not used: {listed}", stacklevel=4)
    return settings


def _check_size(settings: Mapping[str, Any], key: str, size: int, file: Path) -> None:
    if settings.get(key) != size:
        raise ValueError(f"{file}: {key} is {settings.get(key)}, and the vectors before it have {size} numbers")


def _tensors(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A module's tensors, float32: exactly those of these names, in their order, and of these shapes."""
    tensors = formats.read_folder(folder)
    if tensors.keys() != shapes.keys():
        found = json_files.excerpt(", ".join(sorted(tensors)) or "nothing")
        raise ValueError(f"{folder} holds {found}; expected are {', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise ValueError(f"{folder}: {name} has the shape {found}, and config.json asks for {shape}")
    return {name: np.asarray(tensors[name], np.float32) for name in shapes}
