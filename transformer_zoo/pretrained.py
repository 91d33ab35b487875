"""Models with their parameters: loaded from published checkpoints, freshly initialised, and saved in their layout."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo import (
    arguments,
    folders,
    hugging_face,
    json_files,
    names,
    quantization,
    registry,
    sharding,
    trees,
)
from transformer_zoo.checkpoints import config_map, formats, gguf_writer, hub, peft, safetensors, targets, weight_map
from transformer_zoo.generation import published
from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.sampling import Greedy
from transformer_zoo.generation.stream import chat, stream
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.nn import heads
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.tasks import TASKS, same_scores


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A model and what it needs to run: `m(tokens_BT)`, `m.generate("Once")`, `m.save_pretrained("out")`."""

    model: nn.Module
    params: trees.Tree
    config: Any
    """The architecture, a family's Config; also `model.config`."""
    tokenizer: Any = None
    """A `transformer_zoo.data.tokenizers.Tokenizer`, or None where the checkpoint has none."""
    fresh: tuple[str, ...] = ()
    """Paths of the parameters of a head that the checkpoint lacks: they are random, to be trained."""
    sampling: Any = Greedy()
    """How `generate` chooses tokens by default: the settings of generation_config.json."""
    token_ids: Any = None
    """The `TokenIds` of generation: what starts and ends a text. None: those of the architecture."""
    generation: published.Generation | None = None
    """The checkpoint's generation_config.json and what was read from it: it is saved as it was while `sampling` and
    `token_ids` are still these."""
    run: Any = None
    """The settings of the run that trained the model, a `Run`; `evaluate` measures on what it held out. None: it is a
    published model, or a fresh one."""
    adapter: Any = None
    """The `lora.Adapter` of a run that trained adapters, which are merged into the parameters: `save_adapter` writes
    it. None: there is none."""
    no_tokenizer: str = ""
    """Why the checkpoint has no tokenizer, for errors. Empty: it has one, or the model is of no checkpoint."""

    def __call__(self, *inputs: Any, **arguments: Any) -> Any:
        """`model.apply` with the parameters: the arguments are those of the model's call and of `apply` (`rngs`, ...).

        Raises:
            TypeError: an unknown argument; for one of Hugging Face's models, the message has our name.
            ValueError: inputs that the model refuses.
        """
        theirs = [name for name in arguments if name in hugging_face.CALL]
        hugging_face.refuse("the model", theirs, hugging_face.CALL)
        return self.model.apply({"params": self.params}, *inputs, **arguments)

    def generate(self, *inputs: Any, **arguments: Any) -> Any:
        """`zoo.generate` with this model."""
        return generate(self, *inputs, **arguments)

    def chat(self, *inputs: Any, **arguments: Any) -> str:
        """`zoo.chat` with this model."""
        return chat(self, *inputs, **arguments)

    def stream(self, *inputs: Any, **arguments: Any) -> Iterator[str]:
        """`zoo.stream` with this model."""
        return stream(self, *inputs, **arguments)

    def predict(self, *inputs: Any, **arguments: Any) -> Any:
        """`zoo.predict` with this model."""
        from transformer_zoo.prediction.predict import predict  # with the library of tokenizers, which loads slowly

        return predict(self, *inputs, **arguments)

    def quantize(self, format: str) -> "Bundle":
        """`zoo.quantize` of this model."""
        return quantization.quantize(self, format)

    def save_pretrained(self, directory: str | os.PathLike[str], **arguments: Any) -> None:
        """`zoo.save_pretrained` of this model."""
        save_pretrained(directory, self, **arguments)

    def save_gguf(self, file: str | os.PathLike[str], **arguments: Any) -> None:
        """`zoo.save_gguf` of this model."""
        save_gguf(file, self, **arguments)

    def replace(self, **changes: Any) -> "Bundle":
        """Another bundle with these fields changed."""
        return dataclasses.replace(self, **changes)


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    task: str | None = None,
    dtype: str | None = None,
    param_dtype: str | None = None,
    compute: Compute | None = None,
    mesh: jax.sharding.Mesh | None = None,
    revision: str | None = None,
    family: str | None = None,
    labels: int | Sequence[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    tokenizer: bool = True,
    verify: bool = False,
    seed: int = 0,
    quantize: str | None = None,
    **unknown: Any,
) -> Bundle:
    """A published model.

    A checkpoint may be loaded for a task that it was not trained for. Parameters of the task's head that it lacks, or
    that score something else, are then fresh, as the paper initialises them: a warning names them, and so does
    `Bundle.fresh`.

    Weights are downloaded last, after all that can be checked without them.

    Args:
        name: a local folder with config.json and weights, a GGUF file, a preset's name (`presets()`), or a hub id; or
            the folder or hub id of a LoRA adapter in PEFT's layout, which names the model that it changes.
        task: what the model is for, such as "causal-lm". None: the task of the `architectures` in config.json.
        dtype: precision of the computation: float32 (the default), bfloat16, float16, or float64 with jax_enable_x64.
        param_dtype: precision of the parameters in memory, likewise.
        compute: all settings of precision, memory and speed, these two included.
        mesh: the parameters arrive sharded over it, and each process reads only what its devices hold.
        revision: branch, tag or commit of the hub's repository.
        family: a name of `families()`, for a config.json without `model_type`.
        labels: the names of a classifier's classes, or their number. None: as in config.json. The checkpoint's classes
            in another order are put into this order; a head for other classes is fresh. Of an adapter with a head,
            which has no place for names: the names in the order of its scores.
        adapter: the folder or hub id of a LoRA adapter in PEFT's layout, which is merged into the model; for a copy of
            its base under another name.
        tokenizer: whether to load the tokenizer. If it cannot be read, a warning says why, and the model has none.
        verify: reads the weights once more beforehand, and compares them with the hashes of the hub where the cache
            has them, and with the checksums in a pytorch_model.bin.
        seed: seed of the fresh parameters.
        quantize: the format in which to hold the matrices, as of `zoo.quantize`. Each is quantised when it is read, so
            that memory never holds the whole model in `param_dtype`.

    Raises:
        FileNotFoundError: no such folder, preset, repository or revision; or no config.json or no weights in it.
        PermissionError: the repository is private or gated.
        ConnectionError: not in the cache, and the hub cannot be reached.
        ValueError: an unknown family or task, a configuration that is not supported, a dtype that contradicts
            `compute`, a mesh that does not divide the parameters, damaged files, or weights that do not fit the
            configuration.
        TypeError: an argument of another type, or an unknown one; for one of Hugging Face's `from_pretrained`, the
            message has our name.
    """
    arguments.check(from_pretrained, locals())
    hugging_face.refuse("from_pretrained", unknown, hugging_face.LOAD, from_pretrained.__kwdefaults__)
    compute = choose_compute(compute, dtype, param_dtype)
    if quantize is not None:
        quantization.check_format(quantize, "quantize")
    described = names.describe(name, revision, published=True, family=family)
    if adapter is not None:
        described = names.adapted(described, peft.read(names.folder(adapter, weights=False)))
    model = described.model(task=task, labels=labels, compute=compute)
    # An impossible mesh is refused before the download, unless only the weights can show if the sizes are possible.
    if described.kind == "hub" and weight_map.oversized(described.family, described.config, {}) is None:
        _shardings(model, mesh)

    folder = described.weights()
    if verify:
        hub.verify(folder)
    tensors = formats.read_folder(folder)
    if described.adapter is not None:
        tensors = described.adapter.whole(described.family, tensors)
    weight_map.check_sizes(described.family, described.config, tensors, str(described.source))
    config, tensors, other = _with_labels(described, model.task, labels, tensors)
    config = weight_map.settled(described.family, config, tensors, described.task)
    model = model.clone(config=config)
    shapes = registry.param_shapes(model)
    if described.adapter is not None:
        tensors = described.adapter.merged(described.family, shapes, tensors, config=config, task=model.task)
    # A body may have been saved without its pooler: that is optional too.
    trained = not other and model.task == described.task != "base"
    params = weight_map.load(
        described.family,
        shapes,
        tensors,
        config=config,
        task=model.task,
        shardings=_shardings(model, mesh),
        source=str(folder if described.kind == "hub" else name),
        optional=None if trained else heads.PATHS,
        without=weight_map.SCORES if other else None,
        kept_as=None if quantize is None else quantization.quantized_parameter(model, quantize),
    )
    params, fresh = completed(model, params, mesh, seed)
    if fresh:
        warnings.warn(f"{name} has no {', '.join(fresh)}: fresh, to be trained for {model.task}{other}", stacklevel=2)
    own, cause = None, "it was loaded with tokenizer=False"
    if tokenizer:
        own, cause = _tokenizer(_tokenizer_folder(described, folder))
    m = Bundle(model, params, config, own, fresh, no_tokenizer=cause)
    return with_generation(m, folder, described.settings)


def _tokenizer_folder(described: names.Described, folder: Path) -> Path:
    """The folder of a model's tokenizer: that of its adapter, if it has one, or else of its weights."""
    own = None if described.adapter is None else described.adapter.folder
    return own if own is not None and any((own / file).is_file() for file in hub.TOKENIZERS) else folder


def _with_labels(
    described: names.Described, task: str, labels: int | Sequence[str] | None, tensors: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any], str]:
    """The Config with the labels of a model for a task, the checkpoint's tensors with their scores in this order, and
    what its head scores, if that is something else and the scores are to be fresh."""
    family, config, saved = described.family, described.config, described.task
    if TASKS[task].scores == "labels":
        count = weight_map.num_labels(family, config, tensors, saved or task)
        own, note = config_map.labels(described.settings, family.PUBLISHED.num_labels, count)
        head_of_adapter = described.adapter is not None and described.adapter.settings.get("modules_to_save")
        if head_of_adapter and not isinstance(labels, int | None) and len(labels) == count:
            own = tuple(labels)  # which an adapter has no place for
        config = dataclasses.replace(config, labels=own)
        if note is not None and labels is None:
            called = json_files.excerpt(", ".join(own), 200)
            warnings.warn(f"{described.source}: {note}; they are called {called}", stacklevel=3)
    wanted = names.labelled(config, labels)
    if saved is not None and TASKS[saved].scores and not same_scores(saved, task):
        return wanted, tensors, f"; its head is for {saved}"
    if TASKS[task].scores != "labels" or wanted.labels == config.labels:
        return wanted, tensors, ""
    if (order := names.order_of(wanted.labels, config.labels)) is None:
        own = json_files.excerpt(", ".join(config.labels), 200)
        meant = {name: trees.respelt(name, config.labels) for name in wanted.labels if name not in config.labels}
        pairs = ", ".join(f"{other!r} for {name!r}" for name, other in meant.items() if other)
        hint = f". Did you mean {json_files.excerpt(pairs, 200)}?" if pairs else ""
        return wanted, tensors, f"; its labels are {own}{hint}"
    return wanted, weight_map.reordered(family, config, tensors, task, order), ""


def choose_compute(
    compute: Compute | None, dtype: str | None, param_dtype: str | None, *, default: Compute | None = None
) -> Compute:
    """The settings of computation: `compute`, or else `default` with the dtypes that are given.

    Raises:
        ValueError: a dtype that contradicts `compute` or does not exist, or float64 where JAX has no 64-bit types.
    """
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    dtypes = {name: value for name, value in dtypes.items() if value is not None}
    for name, value in dtypes.items():
        if compute is not None and value != getattr(compute, name):
            raise ValueError(f"{name} is {value!r}, and {getattr(compute, name)!r} in compute: give one of them")
    compute = compute or dataclasses.replace(default or Compute(), **dtypes)
    if "float64" in (compute.dtype, compute.param_dtype) and not jax.config.jax_enable_x64:
        raise ValueError(
            "float64 needs 64-bit types, which JAX leaves off: set JAX_ENABLE_X64=1 in the environment, or call "
            'jax.config.update("jax_enable_x64", True) first'
        )
    return compute


def _shardings(model: nn.Module, mesh: jax.sharding.Mesh | None) -> trees.Tree | None:
    """The shardings of a model's parameters over a mesh. None: no mesh."""
    return None if mesh is None else sharding.param_shardings(registry.param_shapes(model), sharding.adopt_mesh(mesh))


def completed(
    model: nn.Module, params: trees.Tree, mesh: jax.sharding.Mesh | None, seed: int
) -> tuple[trees.Tree, tuple[str, ...]]:
    """The parameters, with fresh ones in place of missing ones; and the paths of the fresh ones."""
    flat, shapes = trees.flatten(params), registry.param_shapes(model)
    fresh = tuple(path for path in trees.flatten(shapes) if path not in flat)
    if not fresh:
        return params, ()
    make = lambda key: {path: trees.flatten(registry.init(model, key))[path] for path in fresh}
    shardings = None
    if mesh is not None:
        mesh = sharding.adopt_mesh(mesh)
        shardings = {path: trees.flatten(_shardings(model, mesh))[path] for path in fresh}
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return trees.unflatten(flat | jax.jit(make, out_shardings=shardings)(jax.random.key(seed))), fresh


def from_config(
    family: str,
    config: Any,
    *,
    task: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    param_dtype: str | None = None,
    compute: Compute | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Bundle:
    """A model with fresh parameters, as its paper initialises them; the same for a seed on every mesh, up to rounding.

    Args:
        family: a name of `families()`.
        config: the family's Config, a preset's name, or a mapping with the keys of a config.json.
        task: what the model is for. None: the family's main task.
        dtype, param_dtype, compute: as in `from_pretrained`.
        seed: seed of the random numbers.
        mesh: the parameters are initialised in their shardings; no device holds all of them.

    Raises:
        ValueError: an unknown family, preset or task, or a configuration that is not supported.
        TypeError: an argument of another type, or a `config` of another family.
    """
    arguments.check(from_config, locals())
    model = names.build(_config(family, config), task, choose_compute(compute, dtype, param_dtype))
    mesh = None if mesh is None else sharding.adopt_mesh(mesh)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return Bundle(model, registry.initializer(model, mesh)(jax.random.key(seed)), model.config)


def save_pretrained(
    directory: str | os.PathLike[str],
    bundle: Bundle,
    *,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Writes the Hugging Face layout: config.json, model.safetensors (in shards where larger), the tokenizer's files,
    and generation_config.json if it generates: the checkpoint's own, or the strategy and the token ids of the bundle.

    Each tensor has the dtype of its parameter. The directory gets all of the files or none. In a run of several
    processes all of them must call this; the first one writes.

    Args:
        overwrite: whether to replace another model, or one that was not written here, whose files are then removed. The
            same model, by its config.json, may always be saved again.

    Returns:
        The names of the files, in order; none in a process that did not write.

    Raises:
        ValueError: the parameters do not have the model's shapes; the directory is that of a run of another model; or,
            without `overwrite`, it holds another model, an adapter, or files of another tokenizer.
        OSError: the files could not be written; those that were there before are unchanged.
        TypeError: an argument of another type.
    """
    arguments.check(save_pretrained, locals())
    model = bundle.model
    family = registry.module_of(model.config)
    quantization.refuse(bundle.params, "save_pretrained")
    _check_shapes(bundle.params, registry.param_shapes(model))
    directory = Path(directory).expanduser()
    if names.is_run(directory) and names.describe(directory).config != model.config:
        raise ValueError(
            f"{directory} holds the run of another model, and files of two models must not mix: name another folder"
        )
    if not overwrite:
        settings = config_map.write(family, model.config, model.task)
        targets.check_folder(directory, config_map.CONFIG, settings, family=family)
    tensors = weight_map.dump(family, bundle.params, config=model.config, task=model.task)
    constants = weight_map.constants(family, model.config, model.task, next(iter(tensors.values())).dtype)
    tensors = safetensors.aligned(tensors | constants)
    write = functools.partial(_write, directory, bundle, family, tensors, max_shard_bytes, overwrite)
    return weight_map.written_once("save_pretrained", tensors, write)


def check_target(directory: str | os.PathLike[str], model: nn.Module, *, adapter: bool = False) -> None:
    """Refuses a folder with a model of another architecture or task, as `save_pretrained` does, before there are
    parameters; adapter: an adapter is to be written, as by `save_adapter`.

    Raises:
        ValueError: it holds another model, or an adapter; of an adapter, a model.
    """
    settings = config_map.write(registry.module_of(model.config), model.config, model.task)
    wanted = {} if adapter else {key: settings[key] for key in ("architectures", "model_type")}
    name = peft.CONFIG if adapter else config_map.CONFIG
    targets.check_folder(Path(directory).expanduser(), name, wanted, whole=False)


def save_gguf(file: str | os.PathLike[str], bundle: Bundle, *, dtype: str = "float32", overwrite: bool = False) -> None:
    """Writes a decoder as a GGUF file, which llama.cpp reads: weights, configuration, tokenizer and chat template. (A
    file without a tokenizer is read by `from_pretrained` alone: a warning says so.)

    Only the first process of several writes. It needs the package `gguf`.

    Args:
        dtype: of the matrices: "float32", "float16", "bfloat16", or "q8_0", 8 bits with a scale for every 32 numbers of
            a row. Norms, biases, routers, and for q8_0 matrices with rows of another length, are stored in float32.
        overwrite: as of `save_pretrained`.

    Raises:
        ValueError: a name without the ending .gguf; a dtype, task, family, setting or tokenizer that these files cannot
            hold; without `overwrite` a file with another model: nothing is written.
        ImportError: the package is not installed.
        OSError: the file could not be written; the one that was there before is unchanged.
        TypeError: an argument of another type.
    """
    arguments.check(save_gguf, locals())
    check_gguf(file, bundle.model, dtype)
    model, family = bundle.model, registry.module_of(bundle.model.config)
    quantization.refuse(bundle.params, "save_gguf")
    _check_shapes(bundle.params, registry.param_shapes(model))
    ids, tokenizer = TokenIds.of_model(bundle), bundle.tokenizer
    named = {"bos": ids.bos, "eos": next(iter(ids.eos), None), "padding": ids.pad}
    if tokenizer is not None:
        named = {"bos": tokenizer.bos_id, "padding": tokenizer.pad_id} | {
            n: i for n, i in named.items() if i is not None
        }
    tensors = weight_map.dump(family, bundle.params, config=model.config, task=model.task)
    metadata = gguf_writer.describe(family, model.config, tensors, named, tokenizer)
    if not overwrite:
        targets.check_file(Path(file).expanduser(), metadata)
    if tokenizer is None:
        cause = f" ({bundle.no_tokenizer})" if bundle.no_tokenizer else ""
        warnings.warn(
            f"the model has no tokenizer{cause}, and llama.cpp reads no GGUF file without one: only from_pretrained "
            f"will read {file}. m.replace(tokenizer=zoo.load_tokenizer(...)) gives it one",
            stacklevel=2,
        )
    write = functools.partial(gguf_writer.write, file, family, model.config, metadata, tensors, dtype)
    weight_map.written_once("save_gguf", tensors, write)


def check_gguf(file: str | os.PathLike[str], model: nn.Module, dtype: str) -> None:
    """Refuses what `save_gguf` cannot write, before there are parameters.

    Raises:
        ValueError, ImportError: as `save_gguf`.
    """
    if Path(file).suffix != ".gguf":
        raise ValueError(f"{file}: the name of a GGUF file ends in .gguf")
    if dtype not in gguf_writer.KINDS:
        raise ValueError(f"dtype {dtype!r} is not written: choose one of {', '.join(gguf_writer.KINDS)}")
    if model.task != "causal-lm":
        raise ValueError(f"a GGUF file holds a model of the task causal-lm, and this one is of {model.task}")
    gguf_writer.layout_of(registry.module_of(model.config))
    if importlib.util.find_spec("gguf") is None:
        raise ImportError('GGUF files are written by the package gguf: pip install "transformer-zoo[gguf]"')


def _write(
    directory: Path,
    bundle: Bundle,
    family: ModuleType,
    tensors: Mapping[str, Any],
    max_shard_bytes: int,
    overwrite: bool,
) -> tuple[str, ...]:
    model, tokenizer = bundle.model, bundle.tokenizer
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    settings = config_map.write(family, model.config, model.task, dtypes.pop() if len(dtypes) == 1 else None)
    kept = TokenIds.of_model(bundle)
    ids = {"bos_token_id": kept.bos, "pad_token_id": kept.pad}
    if tokenizer is not None:
        own = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
        ids = {key: ids[key] if value is None else value for key, value in own.items()}
    for key in ids.keys() & family.PUBLISHED.fixed:
        if ids[key] != (fixed := family.PUBLISHED.fixed[key]):
            warnings.warn(
                f"the {key} of the tokenizer is {ids[key]}, and that of every {family.PUBLISHED.model_type} is "
                f"{fixed}, which is saved: other libraries take token {fixed} for it",
                stacklevel=4,
            )
            ids[key] = fixed
    # Readers take a family's own padding for a key that is not there, which may lie outside of the vocabulary.
    told = {"pad_token_id"} if family.PUBLISHED.defaults.get("pad_token_id", 0) >= model.config.vocab_size else ()
    settings = {key: x for key, x in ids.items() if tokenizer is not None or x is not None or key in told} | settings
    with safetensors.staged(directory, targets.files_in(directory) if overwrite else ()) as folder:
        if tokenizer is not None:
            tokenizer.save(folder, _tokenizer_settings(model.config))
            if not overwrite:
                targets.check_tokenizer(directory, folder)
        safetensors.write_folder(folder, tensors, max_shard_bytes=max_shard_bytes)
        (folder / config_map.CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_generation(folder, bundle)
        return tuple(sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()))


def _tokenizer_settings(config: Any) -> dict[str, Any]:
    """What makes transformers give a model the inputs that it gets here: which ones, and its length."""
    segments = ["token_type_ids"] if (config.num_segments or 0) > 1 else []
    settings: dict[str, Any] = {"model_input_names": ["input_ids", *segments, "attention_mask"]}
    return settings if config.max_length is None else settings | {"model_max_length": config.max_length}


def _config(name: str, config: Any) -> Any:
    """A family's Config from any of the forms that `from_config` accepts."""
    family, presets = registry.family(name), registry.presets()
    if isinstance(config, str):
        known = [preset for preset, value in presets.items() if value.family == name]
        if config not in known:
            hint = trees.nearest(config, known)
            raise ValueError(f"{name} has no preset {config!r}: it has {', '.join(known)}.{hint}")
        return presets[config].config
    if isinstance(config, Mapping):
        known = family.PUBLISHED.model_types
        if config.get("model_type", known[0]) not in known:
            own = " or ".join(map(repr, known))
            raise ValueError(f"the config has the model_type {config['model_type']!r}, and {name} reads {own}")
        return config_map.read(family, config, "the config")
    if not isinstance(config, family.Config):
        raise TypeError(
            f"{name} is built from its Config, the name of a preset or the keys of a config.json, not from {config!r}"
        )
    return config


def load_tokenizer(name: str | os.PathLike[str]) -> Any:
    """The `data.tokenizers.Tokenizer` of a file, a folder, a run, a preset, or a model on the hub.

    Raises:
        FileNotFoundError: no such path or model, or no tokenizer in it; and the hub's errors, as `from_pretrained`.
        TypeError: a name of another type.
    """
    arguments.check(load_tokenizer, locals())
    from transformer_zoo.data.tokenizers import Tokenizer

    path = Path(name).expanduser()
    if names.is_run(name):
        with folders.local(folders.folder(name) / "tokenizer") as own:
            return Tokenizer.load(own)
    is_own = path.exists() and path.suffix != ".gguf"
    return Tokenizer.load(path if is_own else names.folder(name, weights=False))


def _tokenizer(folder: Path) -> tuple[Any, str]:
    """The tokenizer of a folder. None: it has none, or one that cannot be read, of which a warning tells; and why."""
    files = [file for file in (*hub.TOKENIZERS, "tokenizer_config.json") if (folder / file).is_file()]
    if not files:
        return None, f"there is none in {folder}"
    from transformer_zoo.data.tokenizers import Tokenizer  # a slow import, for models with text only

    try:
        return Tokenizer.load(folder), ""
    except Exception as error:  # whatever is wrong with it, the weights are good without
        fault = f"{type(error).__name__}: {json_files.excerpt(error, 500)}"
        warnings.warn(
            f"{folder}: the tokenizer cannot be read, so that the model takes and gives token ids only: {fault}",
            stacklevel=3,
        )
        only = " (only its tokenizer_config.json is there)" if files == ["tokenizer_config.json"] else ""
        return None, f"that of {folder} cannot be read{only}: {fault}"


def with_generation(m: Bundle, folder: Path, settings: Mapping[str, Any]) -> Bundle:
    """A model that generates as the files of a folder ask for; another model with the token ids of its config.json.

    Args:
        settings: the keys of config.json, which count where the folder has no generation_config.json.

    Raises:
        ValueError: generation_config.json is not a JSON object.
    """
    if m.model.task != registry.generating_task(m.config):
        ids, own = published.config_ids(settings, m.config), TokenIds.of_config(m.config)
        return m if ids == own else m.replace(token_ids=ids)
    generation = published.load(folder, settings, m.config)
    return m.replace(sampling=generation.sampling, token_ids=generation.token_ids, generation=generation)


def save_generation(folder: Path, bundle: Bundle) -> None:
    """Writes generation_config.json for a model that generates."""
    if bundle.model.task == registry.generating_task(bundle.config):
        if not registry.is_encoder_decoder(bundle.config) and bundle.sampling.forced_first is not None:
            token = bundle.sampling.forced_first
            warnings.warn(
                f"forced_first={token}, which {published.FILE} forces behind a single token only: "
                "the saved model does not force it behind longer prompts",
                stacklevel=4,
            )
        text = json.dumps(_generation_settings(bundle), indent=2) + "\n"
        (folder / published.FILE).write_text(text, encoding="utf-8")


def _generation_settings(bundle: Bundle) -> dict[str, Any]:
    """The generation_config.json of a model that generates: whole, since readers take no token ids from config.json
    beside it."""
    ids, tokenizer, read = TokenIds.of_model(bundle), bundle.tokenizer, bundle.generation
    if read is not None and (read.sampling, read.token_ids) == (bundle.sampling, bundle.token_ids):
        return ids.write() | dict(read.settings)
    if tokenizer is not None and bundle.token_ids is None:
        ids = dataclasses.replace(
            ids,
            bos=tokenizer.bos_id if ids.bos is None else ids.bos,
            pad=tokenizer.pad_id if ids.pad is None else ids.pad,
        )
    return published.write(bundle.sampling, ids)


def _check_shapes(params: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    ours, expected = ({path: tuple(x.shape) for path, x in trees.flatten(t).items()} for t in (params, shapes))
    paths = sorted(path for path in ours.keys() | expected if ours.get(path) != expected.get(path))
    if paths:
        lines = [f"  {path}  {ours.get(path, 'missing')}, expected {expected.get(path, 'nothing')}" for path in paths]
        raise ValueError("the parameters do not fit the model:\n" + "\n".join(lines))
