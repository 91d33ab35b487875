"""The families of the zoo. Adding one is a file under `models/` and its line here."""

import dataclasses
import functools
import importlib
import re
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo import hugging_face, json_files, sharding, trees
from transformer_zoo.nn.architecture import Architecture
from transformer_zoo.nn.embedding import padded_vocab
from transformer_zoo.nn.encoder_decoder import EncoderDecoder
from transformer_zoo.nn.tasks import TASKS

# The modules of `models/`.
_NAMES = (
    "albert",
    "bart",
    "bert",
    "bloom",
    "cohere",
    "cohere2",
    "deberta",
    "deberta_v2",
    "deepseek_v3",
    "distilbert",
    "electra",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma4",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "llama",
    "longt5",
    "marian",
    "mbart",
    "ministral3",
    "mistral",
    "mixtral",
    "modernbert",
    "mpnet",
    "olmo2",
    "olmo3",
    "openai_gpt",
    "opt",
    "pegasus",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_5",
    "qwen3_moe",
    "roberta",
    "smollm3",
    "stablelm",
    "starcoder2",
    "t5",
)
_FAMILIES: dict[str, ModuleType] = {name: importlib.import_module(f"transformer_zoo.models.{name}") for name in _NAMES}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published architecture by its short name."""

    family: str
    config: Any
    hub_id: str
    """Empty: no weights were published."""

    @functools.cached_property
    def params(self) -> int:
        """The number of parameters, as published (without the rows that pad the vocabulary in memory)."""
        return count_params(family(self.family).Model(self.config))


def families() -> tuple[str, ...]:
    """The names of the families."""
    return tuple(_FAMILIES)


def family(name: str) -> ModuleType:
    """The module of a family.

    Raises:
        ValueError: there is no family of this name.
    """
    if name not in _FAMILIES:
        raise ValueError(
            f"there is no family {name!r}: choose one of {', '.join(_FAMILIES)}.{trees.nearest(name, _FAMILIES)}"
        )
    return _FAMILIES[name]


def family_of(config: Any) -> str:
    """The name of the family that a configuration belongs to.

    Raises:
        TypeError: it is no family's configuration.
    """
    for name, module in _FAMILIES.items():
        if isinstance(config, module.Config):
            return name
    raise TypeError(f"{type(config).__name__} is no architecture: pass the Config of one of {', '.join(_FAMILIES)}")


def module_of(config: Any) -> ModuleType:
    """The module of the family that a configuration belongs to.

    Raises:
        TypeError: it is no family's configuration.
    """
    return family(family_of(config))


def is_encoder_decoder(config: Any) -> bool:
    """Whether the family reads a source and writes a target: its model has the methods `encode` and `decode`."""
    return issubclass(module_of(config).Model, EncoderDecoder)


def generating_task(config: Any) -> str | None:
    """The family's task that generates text. None: a family of encoders."""
    return next((task for task in module_of(config).PUBLISHED.tasks if TASKS[task].generates), None)


def no_tokenizer(
    m: Any,
    remedy: str = "Give it one: its files in the model's folder, or m.replace(tokenizer=zoo.load_tokenizer(name))",
) -> str:
    """The error for a `Bundle` without a tokenizer: why it has none, and what to do."""
    cause = f", since {m.no_tokenizer}" if m.no_tokenizer else ""
    return f"the model has no tokenizer, which turns texts into tokens{cause}. {remedy}"


def as_json(config: Any) -> dict[str, Any]:
    """A configuration and its family, in types that JSON has."""
    return {"family": family_of(config), **dataclasses.asdict(config)}


def from_json(settings: dict[str, Any]) -> Any:
    """The inverse of `as_json`.

    Raises:
        ValueError, TypeError, KeyError: the settings are not those of a configuration of this version.
    """
    settings = dict(settings)
    return _from_json(family(settings.pop("family")).Config, settings)


def _from_json(kind: type, settings: dict[str, Any]) -> Any:
    """A dataclass from its fields, some of which are dataclasses."""
    hints, values = typing.get_type_hints(kind), {}
    for name, value in settings.items():
        if dataclasses.is_dataclass(hints.get(name)):
            value = _from_json(hints[name], value)
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def family_by_model_type(model_type: str) -> str:
    """The name of the family whose config.json has this `model_type`.

    Raises:
        ValueError: no family reads it.
    """
    known = {key: name for name, module in _FAMILIES.items() for key in module.PUBLISHED.model_types}
    if model_type not in known:
        shown = json_files.excerpt(repr(model_type))
        hint = trees.nearest(model_type, known) if len(model_type) <= 80 else ""
        raise ValueError(f"model_type {shown} is not read: known are {', '.join(known)}.{hint}")
    return known[model_type]


def fields_called(theirs: str) -> tuple[str, ...]:
    """The Config fields, of any family, that config.json stores under this key."""
    return tuple(_theirs().get(theirs, ()))


@functools.cache
def _theirs() -> dict[str, list[str]]:
    """Keys of config.json to the Config fields that they hold, over all families."""
    fields: dict[str, list[str]] = {}
    for module in _FAMILIES.values():
        for ours, key in module.PUBLISHED.config.items():
            known = fields.setdefault(key.name, [])
            known += [] if ours in known else [ours]
    return fields


def _no_field(config: Any, name: str) -> Any:
    """`__getattr__` of every Config, which Python calls for a missing attribute."""
    fields = [field.name for field in dataclasses.fields(config)]
    found = [field for field in (*fields_called(name), hugging_face.LOAD.get(name)) if field in fields]
    hint = hugging_face.hint(name, " and ".join(found), fields)
    raise AttributeError(f"the Config of {family_of(config)} has no field {name!r}.{hint}", name=name)


Architecture.__getattr__ = _no_field  # set here, since it needs the families' keys


def presets() -> dict[str, Preset]:
    """Every published architecture by its short name, for `from_pretrained` and `from_config`."""
    return {
        name: Preset(family_name, config, hub_id)
        for family_name, module in _FAMILIES.items()
        for name, (hub_id, config) in module.PRESETS.items()
    }


def param_shapes(model: Any) -> trees.Tree:
    """The shapes and dtypes of a model's parameters, without any memory."""
    structure, leaves = _traced(model, jax.config.jax_enable_x64)
    return jax.tree.unflatten(structure, leaves)


@functools.lru_cache(maxsize=1024)
def _traced(model: Any, x64: bool) -> tuple[Any, list[jax.ShapeDtypeStruct]]:
    """The structure and the leaves of a model's parameters; cached, since they are needed again and again."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(functools.partial(init, model), jax.random.key(0)))
    return structure, leaves


@functools.lru_cache(maxsize=16)
def initializer(model: Any, mesh: jax.sharding.Mesh | None = None) -> Callable[[jax.Array], trees.Tree]:
    """A function from a random key to fresh parameters, sharded over the mesh if there is one; cached, since it takes
    longer to compile than to run."""
    shardings = None if mesh is None else sharding.param_shardings(param_shapes(model), mesh)
    return jax.jit(functools.partial(init, model), out_shardings=shardings)


def init(model: Any, key: jax.Array) -> trees.Tree:
    """Fresh parameters, as the paper initialises them."""
    return model.init(key, *module_of(model.config).Model.example_inputs(model.task))["params"]


@functools.lru_cache(maxsize=32)
def layers(model: Any, kinds: tuple[type, ...]) -> dict[str, Any]:
    """The modules in a model that are of these classes by their paths, for their settings: they are not bound."""
    found = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, kinds):
            found["/".join(context.module.path)] = context.module.clone(parent=None)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(functools.partial(init, model), jax.random.key(0))
    return found


@functools.lru_cache(maxsize=256)
def count_params(model: Any) -> int:
    """The number of a model's parameters, without the rows that pad the vocabulary in memory."""
    config, flat = model.config, trees.flatten(param_shapes(model))
    padding = padded_vocab(config.vocab_size) - config.vocab_size
    tables = [leaf for path, leaf in flat.items() if leaf.shape[0] == padded_vocab(config.vocab_size)]
    padded = sum(padding * leaf.size // leaf.shape[0] for leaf in tables)
    first = absent(config)
    unused = sum(first.get(path, 0) * leaf.size // leaf.shape[0] for path, leaf in flat.items())
    return sum(leaf.size for leaf in flat.values()) - padded - unused


def absent(config: Any) -> dict[str, int]:
    """Path of a stacked parameter -> the number of first layers that lack it: `*[1:]` in a row of `PUBLISHED.body`.
    Nothing reads those slices."""
    rows = module_of(config).PUBLISHED.rows(config)
    starts = ((ours, re.search(r"\*\[(\d+):\]", theirs)) for theirs, ours, _ in rows)
    return {ours: int(start[1]) for ours, start in starts if start}
