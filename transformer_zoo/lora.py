"""Training with low-rank adapters (LoRA) for any family: which layers have one, what is trained, and merging.

A run with `lora.rank` trains the factors of its adapters, and what `lora.whole` matches. The rest of its first weights,
the base, is frozen: it has no gradient, no optimizer state and no moving average, and is saved once. The layers add
their adapters' outputs (`nn/lora.py`), so that training holds the base once. Afterwards the factors are merged into the
kernels, and the model is one like any other.
"""

import dataclasses
import functools
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from transformer_zoo import arguments, quantization, registry, trees
from transformer_zoo.checkpoints import peft, safetensors, targets, weight_map
from transformer_zoo.checkpoints.peft import Matrix
from transformer_zoo.config import Lora
from transformer_zoo.nn import lora


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A family's model with adapters: an object with a module's `config`, `task`, `compute`, `init` and `apply`.

    Its parameters are the model's, and those of the adapters: `blocks/attention/query/lora_a`. Layers that are
    published as one matrix have one adapter and share its first factor, `blocks/attention/query_key_value/lora_a`.
    """

    model: nn.Module
    settings: Lora

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @functools.cached_property
    def adapters(self) -> dict[str, Matrix]:
        """The adapted matrices by the paths of their layers.

        Raises:
            ValueError: a pattern of `lora.targets` that matches no linear layer, or only a part of a matrix.
        """
        return _adapters(self.model, self.settings.targets)

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        settings = self.settings
        return settings.alpha / (settings.rank**0.5 if settings.rank_stabilized else settings.rank)

    def init(self, key: jax.Array, *inputs: Any) -> dict[str, trees.Tree]:
        """Fresh parameters of the model and of its adapters."""
        params = self.based(self.model.init(key, *inputs)["params"])
        return {"params": joined(params, self.fresh(key, params))}

    def based(self, params: trees.Tree) -> trees.Tree:
        """The model's parameters as a run holds them: what is frozen is quantised if `lora.quantize` says so."""
        if self.settings.quantize is None:
            return params
        frozen = lambda path: not self.is_trained(path)
        return quantization.quantized_params(self.model, params, self.settings.quantize, frozen)

    def fresh(self, key: jax.Array, params: trees.Tree) -> trees.Tree:
        """The adapters before training, with which the model is as it was: the second factors are zero, and the norms
        of DoRA those of the kernels. In at least float32, also beside narrower kernels."""
        flat, found, rank = trees.flatten(params), {}, self.settings.rank
        for i, matrix in enumerate(self.adapters.values()):
            begin, end = matrix.stacked, matrix.stacked + len(matrix.inputs)
            for layer, path in zip(matrix.layers, matrix.row.paths):
                kernel = meta.unbox(flat[path])
                kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
                shape = kernel.shape
                found[f"{layer}/{lora.B}"] = jnp.zeros((*shape[:begin], rank, *shape[end:]), kernel.dtype)
                if self.settings.dora:
                    found[f"{layer}/{lora.MAGNITUDE}"] = lora.column_norm(kernel, range(begin, end))
            first = lora.fresh(jax.random.fold_in(key, i), (*shape[:end], rank), begin, kernel.dtype)
            found[f"{matrix.module}/{lora.A}"] = first
        return trees.unflatten(found)

    def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's `apply`, with its layers' adapters beside them."""
        flat = trees.flatten(variables["params"])
        for matrix in self.adapters.values():
            flat |= {f"{layer}/{lora.A}": flat[f"{matrix.module}/{lora.A}"] for layer in matrix.layers}
        with lora.beside(self.scale, self.settings.dropout):
            return self.model.apply({**variables, "params": trees.unflatten(flat)}, *args, **kwargs)

    def is_trained(self, path: str) -> bool:
        """Whether the parameter of a path is trained, and no part of the base."""
        whole = any(re.fullmatch(pattern, path) for pattern in self.settings.whole or ())
        return whole or path.rpartition("/")[2] in lora.NAMES

    def divided(self, params: trees.Tree) -> tuple[trees.Tree, trees.Tree]:
        """What is trained, and the base.

        Raises:
            ValueError: a pattern of `lora.whole` that matches nothing, or a layer that has an adapter.
        """
        flat = trees.flatten(params)
        kernels = {path: module for module, matrix in self.adapters.items() for path in matrix.row.paths}
        if both := trees.select(self.settings.whole or (), flat) & kernels.keys():
            raise ValueError(
                f"{', '.join(sorted(both))}: lora.whole would train it, and lora.targets gives it an adapter: let only "
                "one of them match it"
            )
        trained = {path: x for path, x in flat.items() if self.is_trained(path)}
        return trees.unflatten(trained), trees.unflatten({p: x for p, x in flat.items() if p not in trained})

    def merged(self, params: trees.Tree) -> trees.Tree:
        """The parameters of the model alone, with the adapters in its kernels. Those of a quantised base are expanded:
        they are the numbers that the adapters were trained with."""
        flat = {path: _expanded(x) for path, x in trees.flatten(params).items()}
        for matrix in self.adapters.values():
            for layer, kernel in zip(matrix.layers, matrix.row.paths):
                names = (f"{matrix.module}/{lora.A}", f"{layer}/{lora.B}", f"{layer}/{lora.MAGNITUDE}")
                own = {"scale": self.scale, "stacked": matrix.stacked}
                changed = _merged(flat[kernel], *map(flat.get, names), **own)
                if not isinstance(changed, jax.core.Tracer):
                    changed = jax.device_put(changed, flat[kernel].sharding)
                flat[kernel] = changed
        return trees.unflatten({path: x for path, x in flat.items() if path.rpartition("/")[2] not in lora.NAMES})


def adapted(model: Any, settings: Lora) -> Any:
    """The model with its adapters; without `lora.rank`, the model.

    Raises:
        ValueError: a model of an objective's own, such as of a student and its teacher.
    """
    if settings.rank is None:
        return model
    if type(model) is not registry.module_of(model.config).Model:
        raise ValueError(
            "lora.rank is for objectives that train one model, and this one trains several: set it to None"
        )
    return Adapted(model, settings)


def divided(model: Any, params: trees.Tree) -> tuple[trees.Tree, trees.Tree | None]:
    """What is trained of a model's parameters, or of their shapes, and the frozen base. None: all is trained."""
    return model.divided(params) if isinstance(model, Adapted) else (params, None)


def joined(base: trees.Tree | None, trained: trees.Tree) -> trees.Tree:
    """All parameters."""
    return trained if base is None else trees.unflatten(trees.flatten(base) | trees.flatten(trained))


_expanded = jax.jit(meta.unbox)
_merged = jax.jit(lora.merged, static_argnames=("scale", "stacked"))


@functools.lru_cache(maxsize=32)
def _adapters(model: nn.Module, targets: tuple[str, ...]) -> dict[str, Matrix]:
    linear, known = registry.layers(model, lora.LINEAR), _matrices(model)
    layers = {layer: matrix for matrix in known.values() for layer in matrix.layers}
    paths = [path for path in layers if path in linear]
    try:
        chosen = trees.select(targets, paths)
    except ValueError as error:
        raise ValueError(f"lora.targets: {error} Linear layers are {', '.join(sorted(paths))}") from None
    found = {}
    for path in chosen:
        matrix = layers[path]
        if left := [layer for layer in matrix.layers if layer not in chosen]:
            raise ValueError(
                f"lora.targets matches {path} and not {' and '.join(left)}, and they are published as one matrix, "
                f"{matrix.theirs}, which has one adapter: let it match all of them or none"
            )
        found[matrix.module] = matrix
    kernels = (path for path in trees.flatten(registry.param_shapes(model)) if path.endswith("/kernel"))
    others = {path.removesuffix("/kernel") for path in kernels} - {*paths}
    if also := sorted(path for path in others if any(re.fullmatch(target, path) for target in targets)):
        fault = f"lora.targets also matches {', '.join(also)}, which are no linear layers and have no adapter"
        warnings.warn(fault, stacklevel=2)
    return {path: found[path] for path in sorted(found)}


def _matrices(model: nn.Module) -> dict[str, Matrix]:
    family = registry.module_of(model.config)
    return peft.matrices(family, registry.param_shapes(model), config=model.config, task=model.task)


# ---- what a run leaves ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The adapters that a run has trained, which are merged into the parameters of its `Bundle`."""

    model: Adapted
    params: trees.Tree
    """The factors, and the parameters that were trained whole."""
    base: str
    """The name of the first weights."""


def save_adapter(directory: str | os.PathLike[str], m: arguments.Loaded, *, overwrite: bool = False) -> tuple[str, ...]:
    """Writes the adapters of a run in PEFT's layout, without the model that they change: adapter_config.json,
    adapter_model.safetensors with the factors and the modules that were trained whole, and the tokenizer's files.

    Args:
        m: the `Bundle` of a run that was trained with `lora.rank`, as `load_run` returns it.
        overwrite: whether to replace another adapter, or a model, whose files are then removed. The same adapter, by
            its adapter_config.json, may always be saved again.

    Returns:
        The names of the files, in order.

    Raises:
        ValueError: the bundle has no adapters; without `overwrite`, the directory holds a model, another adapter or
            files of another tokenizer; or token embeddings were trained that are also the output layer, of which PEFT's
            layout has no way to tell.
        OSError: the files could not be written; those that were there before are unchanged.
        TypeError: an argument of another type.
    """
    arguments.check(save_adapter, locals())
    adapter, directory = getattr(m, "adapter", None), Path(directory).expanduser()
    if adapter is None:
        raise ValueError(
            "the model has no adapters, which a run trains with lora.rank: save_pretrained writes the whole model"
        )
    quantization.refuse(m.params, "save_adapter")
    if (format := adapter.model.settings.quantize) is not None:
        warnings.warn(
            f"the adapter was trained over weights in {format}, and over the published ones it is another model: "
            "save_pretrained (convert --merge) writes the one that was trained",
            stacklevel=2,
        )
    tensors, settings = _published(adapter, trees.flatten(m.params))
    if not overwrite:
        targets.check_folder(directory, peft.CONFIG, peft.DEFAULTS | settings)

    def write() -> tuple[str, ...]:
        with safetensors.staged(directory, targets.files_in(directory) if overwrite else ()) as folder:
            peft.write(folder, tensors, settings)
            if m.tokenizer is not None:
                m.tokenizer.save(folder)
                if not overwrite:
                    targets.check_tokenizer(directory, folder)
            return tuple(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))

    return weight_map.written_once("save_adapter", tensors, write)


def _published(adapter: Adapter, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of an adapter and its settings, as PEFT has them.

    Args:
        params: the parameters of the whole model by their paths.
    """
    model, settings, trained = adapter.model, adapter.model.settings, trees.flatten(adapter.params)
    family, matrices, tensors = registry.module_of(model.config), list(model.adapters.values()), {}
    for matrix in matrices:
        for row in matrix.factors(settings.rank).values():
            if row.paths[0] in trained:
                tensors |= row.exported([trained[path] for path in row.paths])
    rows = weight_map.rows(family, trees.unflatten(params), config=model.config, task=model.task).values()
    modules_of = lambda row: [name.rpartition(".")[0] for name in row.names]
    modules = [*dict.fromkeys(module for row in rows for module in modules_of(row))]
    whole = {module for row in rows if any(path in trained for path in row.paths) for module in modules_of(row)}
    for row in rows:
        tensors |= row.exported([params[path] for path in row.paths]) if whole & {*modules_of(row)} else {}
    tied = {(family.PUBLISHED.prefix + name).rpartition(".")[0] for name in family.PUBLISHED.tied.values()}
    if whole & tied and getattr(model.config, "tied", True):
        raise ValueError(
            f"{', '.join(sorted(whole & tied))} was trained whole, and is the output layer too, which PEFT's layout "
            "cannot hold: save the whole model"
        )
    wanted = [module for matrix in matrices for module in modules_of(matrix.row)]
    kinds = {task: name for name, task in peft.TASKS.items()}
    return tensors, {
        "base_model_name_or_path": adapter.base, "r": settings.rank, "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout, "use_rslora": settings.rank_stabilized, "use_dora": settings.dora,
        "fan_in_fan_out": all(matrix.inputs_first for matrix in matrices),
        "target_modules": peft.ends(wanted, modules, "."),
        "modules_to_save": peft.ends(sorted(whole), modules, "") or None,
        "task_type": None if model.task == "base" else kinds.get(model.task),
    }  # fmt: skip
