"""transformer_zoo: BERT, GPT, T5 and their kin in JAX and Flax, on a laptop, a GPU or a TPU slice."""

import importlib
from typing import Any

__version__ = "0.1.0"

# The public API: each name and where it lives. A module is imported when the first of its names is asked for.
_HOMES = {
    "families": "registry",
    "presets": "registry",
    "Preset": "registry",
    "from_pretrained": "pretrained",
    "from_config": "pretrained",
    "save_pretrained": "pretrained",
    "Bundle": "pretrained",
    "load_embedder": "embedding",
    "Embedder": "embedding",
    "generate": "generation.generate",
    "Greedy": "generation.sampling",
    "Sample": "generation.sampling",
    "Beam": "generation.beam",
    "Output": "nn.output",
    "Compute": "nn.compute",
    "make_mesh": "sharding",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from transformer_zoo.trees import nearest

        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{nearest(name, _HOMES)}", name=name)
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
