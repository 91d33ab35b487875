"""Low-rank adapters in PEFT's layout: adapter_config.json, and adapter_model.safetensors with the tensors

  base_model.model.MODULE.lora_A.weight [R, I], .lora_B.weight [O, R]     of the linear layer MODULE.weight
  base_model.model.MODULE.lora_magnitude_vector [O]                       its norms, with DoRA
  base_model.model.MODULE.weight, .bias                                   of modules that were trained whole

An adapter belongs to a published matrix. Where that is several kernels of ours, as GPT-2's queries, keys and values,
they share the first factor. Read, an adapter is merged into the tensors of its base (`Adapter.merged`), each when it is
read; written, our factors are turned into PEFT's by the rows of the matrix (`Matrix.factors`).
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from transformer_zoo import json_files
from transformer_zoo.checkpoints import formats, safetensors, torch_bin, weight_map
from transformer_zoo.checkpoints.weight_map import Row
from transformer_zoo.nn import lora

CONFIG = formats.ADAPTER
WEIGHTS, OLD_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
FACTORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
TASKS = {
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "base",
}
KINDS = {
    "peft_type": str, "task_type": str, "base_model_name_or_path": str, "revision": str, "r": int,
    "lora_alpha": float, "use_rslora": bool, "use_dora": bool, "rank_pattern": dict, "alpha_pattern": dict,
    "init_lora_weights": (bool, str),
}  # fmt: skip
HARMLESS = {
    *KINDS, "auto_mapping", "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "megatron_core", "modules_to_save", "peft_version", "qalora_group_size", "runtime_config", "target_modules",
}  # fmt: skip
"""Settings that are read, or that change nothing for the tensors that are there."""
DEFAULTS = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": None, "bias": "none",
    "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "layers_pattern": None,
    "layers_to_transform": None, "lora_dropout": 0.0, "modules_to_save": None, "peft_type": "LORA",
    "rank_pattern": {}, "revision": None, "task_type": None, "use_dora": False, "use_rslora": False,
}  # fmt: skip
"""The keys of adapter_config.json, as PEFT has them by default."""
INITIAL = (True, False, "gaussian", "eva", "orthogonal", "loftq")
"""Ways of beginning an adapter that leave the weights of its base as they are."""


# ---- the matrices of a model ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """The published weight of a linear layer: a row with two axes on the left, inputs and outputs. On the right, the
    inputs of our kernels come first."""

    theirs: str
    """The module's name, with `*` for the layers: transformer.h.*.attn.c_attn."""
    row: Row
    ins: str
    outs: str
    """The inputs and the outputs on the left of the row: `D` and `(n H K)`."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """The same on the right: `D`, and `H`, `K`."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The paths of our layers; several where queries, keys and values are one matrix."""
        return tuple(path.removesuffix("/kernel") for path in self.row.paths)

    @property
    def module(self) -> str:
        """The path of the first factor: that of our layer; of several, blocks/attention/query_key_value."""
        parents, names = zip(*(path.rpartition("/")[::2] for path in self.layers))
        return f"{parents[0]}/{'_'.join(names)}".removeprefix("/")

    @property
    def inputs_first(self) -> bool:
        """Whether their matrix is [inputs, outputs], as that of the reference's Conv1D."""
        return self.row.left.startswith(self.ins)

    @property
    def stacked(self) -> int:
        """The leading axes of our kernels along which layers are stacked."""
        return len(self.row.layers)

    def factors(self, rank: int) -> dict[str, Row]:
        """The rows of an adapter of this rank: of its factors, and of the norms of DoRA. The second factor and the
        norms are divided among our layers as the matrix is."""
        split = _dimensions(self.row.right)[: len(self.layers) > 1]
        each = lambda name: tuple(f"{layer}/{name}" for layer in self.layers)
        layouts = (
            (lora.A, (f"{self.module}/{lora.A}",), f"R {self.ins}", (*self.inputs, "R")),
            (lora.B, each(lora.B), f"{self.outs} R", (*split, "R", *self.outputs)),
            (lora.MAGNITUDE, each(lora.MAGNITUDE), self.outs, (*split, *self.outputs)),
        )
        return {
            name: _changed(self.row, f"{self.theirs}.{theirs}", paths, left, " ".join(right), rank)
            for theirs, (name, paths, left, right) in zip(FACTORS, layouts, strict=True)
        }


def _changed(row: Row, theirs: str, paths: tuple[str, ...], left: str, right: str, rank: int) -> Row:
    """A row with another layout and an axis R."""
    axes = {*_axes(left), *_axes(right)}
    parts = [{**sizes, "R": rank} for sizes in row.sizes[: len(paths)]]
    sizes = tuple({axis: size for axis, size in part.items() if axis in axes} for part in parts)
    joined = None if row.joined is None or len(paths) == 1 else 0
    return dataclasses.replace(
        row, theirs=theirs, ours=paths[0], paths=paths, left=left, right=right, sizes=sizes, joined=joined
    )


def matrices(family: ModuleType, params: Mapping[str, Any], *, config: Any, task: str) -> dict[str, Matrix]:
    """The matrices of a model's parameters, or of their shapes, by the paths of their first factors.

    A kernel that is no matrix of inputs and outputs, such as that of a convolution, is not among them.
    """
    found = {}
    for row in weight_map.rows(family, params, config=config, task=task).values():
        kernels = row.theirs.endswith(".weight") and all(path.endswith("/kernel") for path in row.paths)
        if kernels and (matrix := _matrix(row.theirs.removesuffix(".weight"), row)) is not None:
            found[matrix.module] = matrix
    return found


def _matrix(theirs: str, row: Row) -> Matrix | None:
    left, right = _dimensions(row.left), _dimensions(row.right)
    split, right = right[: len(row.paths) > 1], right[len(row.paths) > 1 :]
    for ins, outs in (left, left[::-1]) if len(left) == 2 else ():
        for count in range(1, len(right)):
            inputs, outputs = right[:count], right[count:]
            if _axes(*inputs) == _axes(ins) and _axes(*outputs, *split) == _axes(outs):
                return Matrix(theirs=theirs, row=row, ins=ins, outs=outs, inputs=tuple(inputs), outputs=tuple(outputs))
    return None


def _dimensions(side: str) -> list[str]:
    """The dimensions on a layout's side: `(H K) D` becomes `(H K)` and `D`."""
    return re.findall(r"\(.*?\)|\S+", side)


def _axes(*dimensions: str) -> set[str]:
    return {axis for dimension in dimensions for axis in re.findall(r"\w+", dimension)}


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """The adapter of a folder."""

    folder: Path
    settings: Mapping[str, Any]
    """The keys of its adapter_config.json."""

    @property
    def base(self) -> str | None:
        """The name of the model that it changes. None: it is not known."""
        return self.settings.get("base_model_name_or_path") or None

    @property
    def task(self) -> str | None:
        """The task that it was trained for. None: that of its base."""
        return TASKS.get(self.settings.get("task_type"))

    def tensors(self) -> dict[str, Any]:
        """Its tensors, without what precedes each of their names.

        Raises:
            FileNotFoundError: there are none.
            ValueError: the file is damaged, or has another tensor than an adapter's.
        """
        files = {WEIGHTS: safetensors.read_file, OLD_WEIGHTS: torch_bin.read_file}
        for name, read in files.items():
            if (self.folder / name).is_file():
                tensors = read(self.folder / name)
                break
        else:
            raise FileNotFoundError(f"{self.folder} has a {CONFIG} and neither {' nor '.join(files)}")
        known = re.compile(r"(?!.*\.lora_(?!A\.weight$|B\.weight$|magnitude_vector$))" + re.escape(PREFIX) + ".+")
        if others := [name for name in tensors if not known.fullmatch(name)]:
            raise self._fault(
                f"{json_files.excerpt(', '.join(others), 300)}: read are adapters of linear layers, whose tensors are "
                f"{PREFIX}MODULE with {', '.join(f'.{name}' for name in FACTORS)}"
            )
        # What lies below a layer with an adapter was there before, such as its bias, which may be trained too.
        return {name.removeprefix(PREFIX).replace(".base_layer.", "."): x for name, x in tensors.items()}

    def whole(self, family: ModuleType, base: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors of a base, with those of modules that were trained whole in place of its own."""
        names = _short_names(family, base)
        found = {name: x for name, x in self.tensors().items() if ".lora_" not in name}
        return {**base, **{names.get(_short(family, name), name): x for name, x in found.items()}}

    def merged(
        self, family: ModuleType, params: Mapping[str, Any], base: Mapping[str, Any], *, config: Any, task: str
    ) -> dict[str, Any]:
        """The tensors of a base with the adapter in them; each is computed when `np.asarray` reads it.

        Args:
            params: the shapes of the model's parameters.

        Raises:
            ValueError: an adapter of what is no linear layer of the model, or of another shape. One error lists all.
        """
        layers: dict[str, dict[str, Any]] = {}
        for name, tensor in self.tensors().items():
            module, found, factor = name.partition(".lora_")
            if found:
                layers.setdefault(module, {})[f"lora_{factor}"] = tensor
        names, result, faults = _short_names(family, base), dict(base), []
        known = {
            _short(family, weight.removesuffix(".weight")): matrix
            for matrix in matrices(family, params, config=config, task=task).values()
            for weight in matrix.row.names
        }
        for module, factors in layers.items():
            short = _short(family, module)
            name = names.get(f"{short}.weight")
            matrix = known.get(short)
            if name is None or matrix is None:
                faults.append(f"{module} is no linear layer of the model")
            elif isinstance(base[name], weight_map.Reordered):
                faults.append(f"{module} scores the labels in another order: leave out labels=")
            elif fault := self._fault_of(factors, matrix, base[name]):
                faults.append(f"{module}: {fault}")
            else:
                scale = self._scale(module, factors[FACTORS[0]].shape[0])
                result[name] = Merged(
                    tensor=base[name], factors=tuple(map(factors.get, FACTORS)), scale=scale,
                    inputs_first=matrix.inputs_first,
                )  # fmt: skip
        if faults:
            rest = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise self._fault(json_files.excerpt("; ".join(faults[:10]), 1000) + rest)
        return result

    def _fault_of(self, factors: Mapping[str, Any], matrix: Matrix, tensor: Any) -> str | None:
        """What is wrong with the factors for a tensor. None: nothing."""
        wanted = FACTORS if self.settings.get("use_dora") else FACTORS[:2]
        if {*factors} != {*wanted}:
            return f"it has {', '.join(sorted(factors))}, expected {', '.join(wanted)}"
        rank = factors[FACTORS[0]].shape[0] if factors[FACTORS[0]].shape else 0
        if rank < 1 or len(tensor.shape) != 2:
            return f"lora_A is {list(factors[FACTORS[0]].shape)} for a weight {list(tensor.shape)}"
        for name, row in zip(FACTORS, matrix.factors(rank).values()):
            if name in factors and tuple(factors[name].shape) != row.shape:
                return f"{name} is {list(factors[name].shape)}, expected {list(row.shape)}"
            if name in factors and not jnp.issubdtype(factors[name].dtype, jnp.floating):
                return f"{name} is of {factors[name].dtype}, and not of floating point"
        return None

    def _scale(self, module: str, rank: int) -> float:
        alpha = self.settings.get("lora_alpha", 8)
        for pattern, own in (self.settings.get("alpha_pattern") or {}).items():
            try:
                if re.fullmatch(rf"(.*\.)?({pattern})", module):
                    alpha = own
                    break
            except re.error as error:
                raise self._fault(f"{json_files.excerpt(pattern)} in alpha_pattern is no pattern: {error}") from None
        return alpha / math.sqrt(rank) if self.settings.get("use_rslora") else alpha / rank

    def _fault(self, fault: str) -> ValueError:
        return ValueError(f"the adapter {self.folder} cannot be read: {fault}")


def read(folder: Path) -> Adapter:
    """The adapter of a folder; its weights are read later.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its settings are damaged, or ask for something that is not known.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no adapter: there is no {CONFIG}")
    settings = json_files.read(folder / CONFIG)
    json_files.check(settings, KINDS, str(folder / CONFIG))
    found = Adapter(folder=folder, settings=settings)
    if (kind := settings.get("peft_type")) != "LORA":
        raise found._fault(f"its peft_type is {json_files.excerpt(repr(kind))}, and 'LORA' is the one that is read")
    if (start := settings.get("init_lora_weights", True)) not in (None, *INITIAL):
        raise found._fault(
            f"init_lora_weights={json_files.excerpt(repr(start))} has changed the weights of its base: save it with "
            "path_initial_model_for_weight_conversion"
        )
    if others := sorted(key for key, value in settings.items() if value and key not in HARMLESS):
        raise found._fault(f"it asks for {json_files.excerpt(', '.join(others), 200)}, which is not known")
    alphas = [*(settings.get("alpha_pattern") or {}).values(), settings.get("lora_alpha", 8)]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in alphas):
        raise found._fault("lora_alpha and the values of alpha_pattern must be numbers")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merged:
    """A matrix with its adapter in it, computed in at least float32 when it is read."""

    tensor: Any
    factors: Sequence[Any]
    """In the order of `FACTORS`; the last one is None without DoRA."""
    scale: float
    inputs_first: bool
    """Whether the matrix is [inputs, outputs]."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        """In which it is computed."""
        dtypes = [x.dtype for x in (self.tensor, *self.factors) if x is not None]
        return np.dtype(np.float64 if np.float64 in dtypes else np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        wide = lambda x: np.asarray(x).astype(self.dtype)
        a, b, magnitude = (None if x is None else wide(x) for x in self.factors)
        matrix = wide(self.tensor)
        matrix = (matrix.T if self.inputs_first else matrix) + self.dtype.type(self.scale) * (b @ a)
        if magnitude is not None:
            matrix *= (magnitude / np.linalg.norm(matrix, axis=1))[:, None]
        return matrix.T if self.inputs_first else matrix


def _short(family: ModuleType, name: str) -> str:
    """A tensor's name without the prefix of the body, which a file may have or lack."""
    return name.removeprefix(family.PUBLISHED.prefix)


def _short_names(family: ModuleType, tensors: Iterable[str]) -> dict[str, str]:
    return {_short(family, name): name for name in tensors}


# ---- writing --------------------------------------------------------------------------------------------------------


def ends(wanted: Sequence[str], modules: Sequence[str], separator: str) -> list[str]:
    """The shortest ends of names that match these modules and no other one: the last parts of the names, or as much as
    follows the number of a layer, or whole names.

    Args:
        wanted, modules: names; `modules` are all that there are.
        separator: what precedes such an end in a longer name, for PEFT.
    """
    found: list[str] = []
    for part in (r"[^.]+$", r"(?<=\d\.)\D+$|.+", r".+"):
        found = sorted({re.search(part, name)[0] for name in wanted})
        matches = tuple(separator + end for end in found)
        if {name for name in modules if name in found or name.endswith(matches)} == {*wanted}:
            break
    return found


def write(folder: Path, tensors: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Writes the two files of an adapter.

    Args:
        folder: an empty one, as of `safetensors.staged`.
        tensors: by their names without what precedes each in the file.
        settings: keys of adapter_config.json that are not at their defaults.
    """
    named = {PREFIX + name: x for name, x in tensors.items()}
    safetensors.write_file(folder / WEIGHTS, safetensors.aligned(named))
    (folder / CONFIG).write_text(json.dumps(DEFAULTS | dict(settings), indent=2, sort_keys=True) + "\n")
