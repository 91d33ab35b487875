"""transformer_zoo: BERT, GPT, T5 and their relatives in JAX and Flax, on a laptop, a GPU or a TPU slice."""

import importlib
from typing import Any

__version__ = "0.1.0"

# The public API: each name and its module, which is imported when one of its names is first used.
_MODULES = {
    "families": "registry",
    "presets": "registry",
    "Preset": "registry",
    "from_pretrained": "pretrained",
    "from_config": "pretrained",
    "save_pretrained": "pretrained",
    "save_gguf": "pretrained",
    "save_adapter": "lora",
    "load_tokenizer": "pretrained",
    "load_run": "runs",
    "Bundle": "pretrained",
    "load_embedder": "embedding",
    "Embedder": "embedding",
    "embed": "embedding",
    "quantize_embeddings": "vectors",
    "train": "loop",
    "evaluate": "evaluation.source",
    "generate": "generation.generate",
    "chat": "generation.stream",
    "stream": "generation.stream",
    "predict": "prediction.predict",
    "quantize": "quantization",
    "Greedy": "generation.sampling",
    "Sample": "generation.sampling",
    "Beam": "generation.beam",
    "TokenIds": "generation.token_ids",
    "Output": "nn.output",
    "Compute": "nn.compute",
    "make_mesh": "sharding",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        from transformer_zoo.hugging_face import CLASSES, hint

        replacement = next((ours for theirs, ours in CLASSES.items() if name.startswith(theirs)), None)
        fault = f"module {__name__!r} has no attribute {name!r}.{hint(name, replacement, _MODULES)}"
        raise AttributeError(fault, name=name)
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
