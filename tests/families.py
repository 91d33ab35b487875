"""Every registered family as small models, made by rule: no test names a family, so that the next one is tested too."""

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import random
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from transformer_zoo import registry, sharding, trees
from transformer_zoo.checkpoints import config_map
from transformer_zoo.config import Data, Mesh, Optimizer, Run, Training
from transformer_zoo.nn import Compute, Encoder
from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.decoder import Decoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LanguageModelConfig
from transformer_zoo.nn.tasks import TASKS
from transformer_zoo.objectives import OBJECTIVES
from transformer_zoo.pretrained import Bundle, from_config
from transformer_zoo.training import Program, TrainState, prepare

# Small sizes, by the name of a field. Eight devices divide those of sharded axes.
SMALL = {
    "vocab_size": 90,
    "max_length": 24,
    "width": 32,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 8,
    "head_dim": 6,
    "rotary_dim": 4,
    "num_kv_heads": 8,
    "mlp_dim": 40,
    "num_decoder_heads": 8,
    "mlp_decoder_dim": 48,
    "num_segments": 2,
    "window": 4,
    "embed_width": 16,
    "num_groups": 2,
    "max_distance": 16,
    "position_buckets": 8,
    "num_buckets": 8,
    "local_radius": 3,
    "global_block_size": 4,
    "conv_size": 5,
    "global_layers": 1,
    "global_every": 2,
    "unrotated_every": 2,
    "score_cap": 3.0,
    "logit_cap": 5.0,
    "local_kv_heads": 8,
    "num_reusing_layers": 1,
    "full_every": 2,
    "num_delta_key_heads": 8,
    "num_delta_value_heads": 16,
    "delta_key_dim": 4,
    "delta_value_dim": 5,
    "num_experts": 8,
    "num_chosen": 2,
    "rope_dim": 4,
    "num_dense_layers": 1,
    "num_expert_groups": 2,
    "num_chosen_groups": 1,
}
# Of a family that has experts or none; its small model has none.
EXPERTS = {"num_experts": 4, "num_chosen": 2, "expert_dim": 8}
# Choices for random configurations. Every number of heads divides every width.
RANDOM = {
    "vocab_size": (11, 77, 128, 129, 300),
    "max_length": (12, 17, 24),
    "width": (8, 24, 48),
    "num_layers": (1, 2, 3, 5),
    "num_decoder_layers": (1, 2, 3),
    "num_heads": (1, 2, 4),
    "head_dim": (2, 3, 5, 8),
    "rotary_dim": (2, 4, 6),
    "mlp_dim": (12, 40, 100),
    "num_decoder_heads": (1, 2, 4),
    "mlp_decoder_dim": (10, 36, 80),
    "activation": ("gelu", "gelu_new", "relu", "silu", "tanh"),
    "conv_activation": ("gelu", "relu", "tanh"),
    "pooler_activation": ("gelu", "relu", "tanh"),
    "norm_epsilon": (1e-12, 1e-6, 1e-5, 1e-2),
    "num_segments": (1, 2, 3),
    "window": (1, 2, 4, 7),
    "global_every": (1, 2, 3),
    "unrotated_every": (1, 2, 3),
    "global_theta": (100.0, 10000.0, 160000.0),
    "local_theta": (3.0, 100.0, 10000.0),
    "head_activation": ("gelu", "relu", "tanh"),
    "head_pooling": ("cls", "mean"),
    "embed_width": (6, 16, 20),
    "relative_attention": (True, True, True, False),
    "position_terms": ("c2p|p2c", "c2p", "p2c"),
    "max_distance": (6, 9, 30),
    "position_buckets": (None, 4, 7, 8),
    "num_buckets": (4, 6, 8, 11),
    "encoder_attention": ("transient-global", "local"),
    "local_radius": (1, 2, 4),
    "global_block_size": (1, 2, 4),  # powers of two: the reference adds up their reciprocals
    "conv_size": (1, 3, 5),
    "rope": (
        Rope(theta=100.0),
        Rope(),
        Rope(kind="linear", factor=2.0),
        Rope(kind="llama3", factor=4.0, original_length=6, slow_turns=0.5, theta=30.0),
        Rope(kind="yarn", factor=3.0, original_length=5, fast_turns=2.0, slow_turns=0.1, theta=20.0),
        Rope(kind="yarn", factor=2.0, original_length=4, fast_turns=32.0, attention_factor=0.7, whole_pairs=False),
    ),
    "global_layers": (0, 1, 2),
    "local_head_dim": (2, 4, 6, 8),
    "num_reusing_layers": (0, 1, 2),
    "input_dim": (0, 8, 16),
    "full_every": (1, 2, 3, 4),
    "num_delta_key_heads": (1, 2),
    "num_delta_value_heads": (2, 4),
    "delta_key_dim": (2, 3),
    "delta_value_dim": (2, 5),
    "score_dim": (1, 5, 30),
    "embedding_multiplier": (0.5, 3.0, 12.0),
    "attention_multiplier": (0.05, 0.5, 2.0),
    "residual_multiplier": (0.22, 0.7, 1.5),
    "logits_divisor": (0.5, 3.0, 16.0),
    "logit_scale": (0.0625, 0.3, 2.0),
    "score_cap": (None, 1.0, 20.0),
    "logit_cap": (None, 2.0, 30.0),
    "num_experts": (2, 3, 5),
    "num_chosen": (1, 2, 3),
    "rope_dim": (2, 4, 6),
    "value_dim": (2, 3, 6),
    "latent_dim": (8, 16),
    "query_rank": (None, 8, 24),
    "num_dense_layers": (0, 1, 2),
    "expert_dim": (5, 9),
    "num_shared": (1, 2),
    "num_expert_groups": (1, 2),
    "num_chosen_groups": (1, 2),
    "expert_scale": (0.5, 2.5),
    "gate_scale": (0.7, 1.702, 3.0),
    "gate_limit": (0.2, 0.7, 7.0),
    "labels": (("LABEL_0",), ("yes", "no"), ("LABEL_0", "LABEL_1", "LABEL_2")),
}
# Arguments of the models: token ids, and the mask of real tokens.
MASKS = {"tokens_BT": "valid_BT", "source_BS": "valid_BS", "target_BT": "target_valid_BT"}
DOCUMENTS = {"tokens_BT": "documents_BT", "source_BS": "source_documents_BS", "target_BT": "target_documents_BT"}
# The prefix of the stack that reads the ids, and the field with the number of its layers.
STACKS = {
    "tokens_BT": ("", "num_layers"),
    "source_BS": ("encoder_", "num_layers"),
    "target_BT": ("decoder_", "num_decoder_layers"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A family's small model for one of its tasks."""

    family: str
    task: str
    config: Any
    compute: Compute = Compute()
    learns: str | None = None
    """The name of the objective that trains it; it may have a model of its own."""

    @property
    def objective(self) -> Any:
        return OBJECTIVES[self.learns](**objective_settings(self.learns, self.config))

    @property
    def module(self) -> ModuleType:
        return registry.family(self.family)

    @property
    def model(self) -> Any:
        if self.learns is not None:
            return self.objective.model(self.config, self.compute)
        return self.module.Model(self.config, task=self.task, compute=self.compute)

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of the model's arguments, without those that the family refuses."""
        names = tuple(inspect.signature(self.module.Model.__call__).parameters)[1:]
        has_segments = getattr(self.config, "num_segments", None) is not None
        return names if has_segments else tuple(name for name in names if name != "segments_BT")

    @property
    def ids(self) -> tuple[str, ...]:
        """The arguments that are token ids."""
        return tuple(name for name in self.takes if name in MASKS)

    @property
    def causal(self) -> bool:
        """Whether the last of the ids are read from left to right."""
        return "cache" in self.takes

    @property
    def caches(self) -> bool:
        """Whether it can compute its output token by token, with a cache."""
        return self.causal and self.task in WRITERS

    @property
    def depths(self) -> list[int]:
        """How often the block of each stack, or its group of blocks, is repeated."""
        stacks = getattr(self.config, "stacks", {}).values()
        lengths = [len(layers) // len(group) for layers, group in stacks]
        return lengths or [getattr(self.config, STACKS[ids][1]) for ids in self.ids]

    def layers(self, path: str) -> range:
        """The numbers of the layers whose parts are stacked at a path."""
        field = next(field for prefix, field in reversed(STACKS.values()) if f"{prefix}blocks/" in path)
        layers = range(getattr(self.config, field) * getattr(self.config, "layer_blocks", 1))
        stack, member = re.search(r"(\w*blocks)/(?:layer_(\d+)/)?", path).groups()
        stacks = getattr(self.config, "stacks", {})
        layers, group = stacks.get(stack, (layers, getattr(self.config, "group", ())))
        return layers if member is None else layers[int(member) :: len(group)]

    def with_(self, **changes: Any) -> "Case":
        """The same with other fields of the config or of `compute`."""
        fields = {field.name for field in dataclasses.fields(Compute)}
        compute = {name: value for name, value in changes.items() if name in fields}
        config = {name: value for name, value in changes.items() if name not in fields}
        return dataclasses.replace(
            self,
            config=dataclasses.replace(self.config, **shallow(self.config, config)),
            compute=dataclasses.replace(self.compute, **compute),
        )

    def sized(self, **sizes: Any) -> "Case":
        """The same with other values of those fields that the family has."""
        return dataclasses.replace(self, config=sized(self.config, **sizes))

    def wide(self) -> "Case":
        """The same in float64, in which equal results agree to a dozen digits."""
        return self.with_(dtype="float64", param_dtype="float64")

    def params(self, seed: int = 0, scale: float = 0.2) -> trees.Tree:
        return random_params(self.model, seed, scale)

    def tokens(self, batch: int, length: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, self.config.vocab_size, (batch, length), np.int32)


def small(family: str, **changes: Any) -> Any:
    """The Config with small sizes (8 where `SMALL` has none), and dropout rates all of which differ."""
    Config = registry.family(family).Config
    values = {}
    for field in dataclasses.fields(Config):
        if field.name in EXPERTS and field.default is None:
            continue
        if field.name in SMALL:
            values[field.name] = SMALL[field.name]
        elif field.name.endswith("_id") and field.default is not None:
            values[field.name] = field.default % (changes.get("vocab_size", SMALL["vocab_size"]) // 2)
        elif isinstance(field.default, Rope) and field.default.share < 1:
            own = any(other.name == "head_dim" for other in dataclasses.fields(Config))
            values[field.name] = dataclasses.replace(field.default, share=2 / 3 if own else 0.5)  # whole pairs
        elif field.name.endswith("dropout"):
            values[field.name] = 0.1 + 0.1 * sum(name.endswith("dropout") for name in values)
        elif isinstance(field.default, int) and field.default > 64:
            values[field.name] = 8
    return Config(**values | changes)


def written(family: str) -> dict[str, Any]:
    """The settings in the config.json of a small model."""
    settings = config_map.write(registry.family(family), small(family), main_task(family))
    return {name: value for name, value in settings.items() if name != "architectures"}


def without_dropout(config: Any) -> Any:
    return dataclasses.replace(config, **{name: 0.0 for name in dropouts(config)})


def dropouts(config: Any) -> dict[str, float]:
    """The dropout rates of a configuration."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name.endswith("dropout")}


def random_config(family: str, seed: int, task: str = "base") -> Any:
    """A configuration drawn at random: sizes, activation, epsilon, optional fields, and every switch."""
    # Python's generator of choices: the same for a seed on every version and machine.
    draw = random.Random(f"{family} {seed}")
    while True:
        with contextlib.suppress(ValueError):  # a contradictory one is drawn again
            values = random_values(family, seed, draw)
            if task in ("question-answering", "pretraining"):
                values.pop("labels", None)  # the reference would take them for its two scores
            return without_dropout(small(family, **values))


def random_values(family: str, seed: int, draw: random.Random) -> dict[str, Any]:
    """Random values for fields of a Config."""
    Config, values = registry.family(family).Config, {}
    fields = dataclasses.fields(Config)
    for field in fields:
        if field.name == "model_type":
            values[field.name] = draw.choice(registry.family(family).PUBLISHED.model_types)
        elif isinstance(field.default, str):
            known = known_choices(family, field.name)
            values[field.name] = known[seed % len(known)]  # each has its turn
        elif field.name == "head_dim" and issubclass(Config, LanguageModelConfig):
            values[field.name] = draw.choice((2, 4, 6, 8))
        elif field.name == "num_experts" and any(other.name == "num_expert_groups" for other in fields):
            values[field.name] = draw.choice((4, 6, 8))  # groups of two experts or more
        elif field.name in RANDOM:
            optional = (field.default,) if field.default in (None, 0) else ()
            values[field.name] = draw.choice(RANDOM[field.name] + optional * len(RANDOM[field.name]))
            if isinstance(field.default, Rope):
                share = draw.choice((0.5, 1.0)) if field.default.share < 1 else 1.0
                own = fixed(field.default)
                if field.default.mscale_all_dim and values[field.name].kind == "yarn":
                    own |= {"mscale": draw.choice((None, 0.7, 1.0)), "mscale_all_dim": draw.choice((None, 0.4, 1.0))}
                rope = dataclasses.replace(values[field.name], share=share, **own)
                if share < 1 and field.default.kind != "default":  # the kind that rotates a part of a head
                    rope = dataclasses.replace(field.default, share=share, theta=rope.theta, factor=rope.factor)
                values[field.name] = rope
        elif isinstance(field.default, bool):
            values[field.name] = draw.random() < 0.5
        elif field.name in ("num_kv_heads", "local_kv_heads"):
            values[field.name] = draw.choice([n for n in (1, 2, 4) if values["num_heads"] % n == 0])
        elif field.name in ("num_groups", "layer_blocks"):
            values[field.name] = draw.choice([n for n in (1, 2) if n <= values["num_layers"]])
        elif field.name.endswith("_id") and field.default is not None:
            values[field.name] = draw.randrange(min(RANDOM["vocab_size"]))
    return values


@functools.cache
def choices(family: str, name: str) -> tuple[str, ...]:
    """The values that a text field may have, as its Config's error on another one lists them."""
    try:
        registry.family(family).Config(**{name: "gelo"})
    except ValueError as error:
        return tuple(re.search(r"choose one of (.*?)(?:\.|$)", str(error))[1].replace(" or ", ", ").split(", "))
    raise AssertionError(f"{family}: {name}='gelo' is not refused")


def known_choices(family: str, name: str) -> tuple[str, ...]:
    """Those of the values of a text field that random configurations have."""
    allowed = choices(family, name)
    return tuple(value for value in RANDOM.get(name, allowed) if value in allowed)


def fixed(rope: Rope) -> dict[str, Any]:
    """What all rotary positions of a family have in common."""
    return {"interleaved": rope.interleaved, "query_growth": rope.query_growth}


@functools.cache
def ropes(family: str) -> tuple[Rope, ...]:
    """Those of the rotary positions above that a family's Config takes."""
    default, found = small(family).rope, []
    for rope in RANDOM["rope"]:
        with contextlib.suppress(ValueError):
            found.append(small(family, rope=dataclasses.replace(rope, **fixed(default))).rope)
    return tuple(found)


def cases(*wanted: str) -> list[Any]:
    """A case of each family, for its main task, whose model takes all these arguments."""
    return [case for case in map(main, registry.families()) if all(name in case.takes for name in wanted)]


@functools.cache
def main(family: str) -> Case:
    """A family's small model for its main task, without dropout."""
    return Case(family=family, task=main_task(family), config=without_dropout(small(family)))


@functools.cache
def mixture(family: str) -> Case | None:
    """The same with experts. None: the family has none."""
    case, optional = main(family), getattr(registry.family(family).Config(), "num_experts", 0)
    return case.with_(**EXPERTS) if optional is None else case if optional else None


@functools.cache
def fingerprint(case: Case) -> tuple[Any, ...]:
    """The program of a family's layers in training: for each scan over layers, the numbers of constant, carried and
    scanned inputs, and the primitives of its body in order. Activation, sizes and rates are the same for all, so that
    programs differ only where blocks do, by their class or by a switch within it."""
    return tuple(
        (scan["num_consts"], scan["num_carry"], len(scan["jaxpr"].in_avals),
         tuple(equation.primitive.name for equation in equations(scan["jaxpr"].jaxpr)))
        for scan in layers_of(case)
    )  # fmt: skip


def kinds(found: list[Any], by: Callable[[Case], Any]) -> list[Any]:
    """The first case of each kind: enough for a test of `stack`, the compiler or the decode loop. The layers themselves
    are tested for every family. `by` tells kinds apart: `movements`, `operations` or `stacking`."""
    exemplars: dict[Any, Any] = {}
    for case in found:
        exemplars.setdefault(by(case), case)
    return list(exemplars.values())


# What moves numbers or multiplies matrices; everything else is computed element by element, or along an axis.
MOVES = ("dot_general", "gather", "scatter", "concatenate", "dynamic_slice", "reshape", "transpose", "pad", "scan")


def movements(case: Case) -> tuple[Any, ...]:
    """The number of products in the layers, and which of the operations there are for which the compiler must divide
    arrays anew. Where norms and activations stand does not matter to it."""
    return tuple((names.count("dot_general"), frozenset(names).intersection(MOVES)) for *_, names in fingerprint(case))


def operations(case: Case) -> tuple[Any, ...]:
    """The operations that there are in the layers, in whatever order."""
    return tuple(frozenset(names) for *_, names in fingerprint(case))


def stacking(case: Case) -> tuple[Any, ...]:
    """How `stack` is used: for each scan over layers, the numbers of arrays that are carried, and of those, besides the
    parameters, of which each layer is handed its own part (fewer than none: layers share parameters)."""
    paths = trees.flatten(registry.param_shapes(case.model))
    own = [sum(f"{prefix}blocks/" in path for path in paths) for prefix, _ in (STACKS[ids] for ids in case.ids)]
    scans = layers_of(case)
    scanned = [len(scan["jaxpr"].in_avals) - scan["num_consts"] - scan["num_carry"] for scan in scans]
    return tuple((scan["num_carry"], count - params) for scan, count, params in zip(scans, scanned, own))


@functools.cache
def layers_of(case: Case) -> list[dict[str, Any]]:
    """The scans over layers in a family's training forward pass."""
    shapes = registry.param_shapes(case.model)
    config = dataclasses.replace(case.config, **dropouts(small(case.family)))
    case = dataclasses.replace(case, config=sized(config, activation="relu"))
    inputs = {name: np.zeros((2, 8), np.int32) for name in case.ids}
    function = lambda params: case.model.apply(
        {"params": params}, **inputs, train=True, rngs={"dropout": jax.random.key(0)}
    )
    program = jax.make_jaxpr(function)(shapes)
    return [equation.params for equation in equations(program.jaxpr) if equation.primitive.name == "scan"]


def equations(jaxpr: Any) -> Any:
    """All equations of a program, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield from equations(getattr(value, "jaxpr", value))


def tasks(family: str) -> tuple[str, ...]:
    """The tasks that a family has a model for."""
    return registry.family(family).PUBLISHED.tasks


def sized(config: Any, **sizes: Any) -> Any:
    """The configuration with other values of those fields that it has."""
    fields = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(
        config, **shallow(config, {name: size for name, size in sizes.items() if name in fields})
    )


def shallow(config: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes and, if they are of fewer layers than the configuration has, no layers that reuse what others have."""
    fewer = sizes.get("num_layers", getattr(config, "num_layers", 0)) < getattr(config, "num_layers", 0)
    return {"num_reusing_layers": 0} | sizes if fewer and hasattr(config, "num_reusing_layers") else sizes


def main_task(family: str) -> str:
    """The default task of a family's model."""
    return next(field.default for field in dataclasses.fields(registry.family(family).Model) if field.name == "task")


def name_of(case: Any) -> str:
    """The name of a case in pytest."""
    return f"{case.family}-{case.learns or case.task}" if isinstance(case, Case) else str(case)


def random_params(model: Any, seed: int = 0, scale: float = 0.2) -> trees.Tree:
    """Random parameters, biases and norms too, so that no fault hides. Rows that pad the vocabulary are zero;
    parameters that the first layers lack are as in a fresh model."""
    # Copies: a train step frees the memory of its arguments.
    return jax.tree.map(lambda x: jax.device_put(x.copy()), _random_values(model, seed, scale))


@functools.lru_cache(maxsize=64)
def _random_values(model: Any, seed: int, scale: float) -> trees.Tree:
    draw = np.random.default_rng(seed)
    shapes = trees.flatten(registry.param_shapes(model))
    axes = trees.match(sharding.PARAM_AXES, shapes)
    absent = registry.absent(model.config)
    params = {}
    for path, leaf in shapes.items():
        values = scale * draw.standard_normal(leaf.shape) + path.endswith("scale")
        if "vocab" in axes[path].split():
            axis = axes[path].split().index("vocab") - len(axes[path].split())
            values = np.swapaxes(values, 0, axis)
            values[model.config.vocab_size :] = 0
            values = np.swapaxes(values, 0, axis)
        if path in absent:
            values[: absent[path]] = path.endswith("scale")
        params[path] = values.astype(leaf.dtype)
    return trees.unflatten(params)


def empty_cache(case: Case, rows: int, length: int) -> Any:
    """The family's `init_cache`, by numpy: `jnp.zeros` would compile a program for each shape."""
    with mock.patch.object(caches, "jnp", np):
        return case.module.init_cache(case.config, rows, length, case.compute.dtype)


def made(*args: Any, **kwargs: Any) -> Bundle:
    """`from_config` with random numbers in the place of fresh ones, whose program would take longer than the test."""
    random = lambda model, mesh=None: lambda key: random_params(model)
    with mock.patch.object(registry, "initializer", random):
        return from_config(*args, **kwargs)


@functools.partial(jax.jit, static_argnames=("model", "method", "mutable", "train"))
def apply(
    model: Any, params: Any, *args: Any, key: Any = None, method: Any = None, mutable: Any = False, train: bool = False,
    **inputs: Any,
) -> Any:  # fmt: skip
    """`model.apply`, compiled once for a model and shapes, over all tests."""
    rngs = None if key is None else {"dropout": key}
    mode = {"train": train} if method is None else {"method": method}
    return model.apply({"params": params}, *args, **inputs, **mode, rngs=rngs, mutable=mutable)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def gradients(
    model: Any, params: Any, direction: Any, *, key: Any = None, train: bool = False, **inputs: Any
) -> tuple[Any, trees.Tree]:
    """A model's `outputs`, and their gradients in this direction."""

    def function(params: Any) -> Any:
        rngs = None if key is None else {"dropout": key}
        result = outputs(model.apply({"params": params}, **inputs, train=train, rngs=rngs))
        return (result * direction).sum(), result

    grads, result = jax.grad(function, has_aux=True)(params)
    return result, grads


@functools.partial(jax.jit, static_argnames=("model",))
def fresh(model: Any, key: Any, *ids: Any) -> trees.Tree:
    """Parameters as the model initialises them."""
    return model.init(key, *ids)["params"]


def without_layers(hidden_BTD: np.ndarray | None) -> Any:
    """An encoder or a decoder reads its rows, and these hidden states are in the place of those that it would compute;
    None: what the layers of a decoder would read. (A model of both computes all.)"""

    def replace(function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        method = context.method_name if isinstance(context.module, Encoder | Decoder) else ""
        if method == "run_blocks":
            x_BTD, _, kv, *_ = args
            return x_BTD, kv
        if method == "encode" or (method == "final" and hidden_BTD is not None):
            return jnp.asarray(hidden_BTD)
        return function(*args, **kwargs)

    return nn.intercept_methods(replace)


def forget() -> None:
    """Frees the programs of all models."""
    for program in (apply, gradients, fresh, evaluate):
        program.clear_cache()


def outputs(output: Any) -> Any:
    """The logits, or the hidden states of a model without a head."""
    return output.hidden_BTD if output.logits is None else output.logits


def difference(actual: Any, expected: Any) -> float:
    """The largest max |a - b| / max |b| of the arrays of two trees.

    An array counts as at least a thousandth as large as the largest: what is mathematically zero, such as the gradient
    of a key's bias, is noise.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected))]
    for a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape, a.dtype, b.dtype)
        assert np.isfinite(a).all() and np.isfinite(b).all()
    sizes = [np.abs(b).max(initial=0) for _, b in pairs]
    return max(np.abs(a - b).max(initial=0) / max(size, max(sizes) / 1000) for (a, b), size in zip(pairs, sizes))


# ---- training -------------------------------------------------------------------------------------------------------


def causal_lm(rows: list[list[np.ndarray]], length: int) -> dict[str, np.ndarray]:
    """A batch for the next token's prediction: each row's documents side by side, and padding."""
    names = ("tokens_BT", "targets_BT", "documents_BT", "positions_BT", "valid_BT")
    batch = {name: np.zeros((len(rows), length), bool if name == "valid_BT" else np.int32) for name in names}
    for row, documents in enumerate(rows):
        at = 0
        for number, document in enumerate(documents, start=1):
            span = slice(at, at := at + len(document))
            batch["tokens_BT"][row, span] = document
            batch["targets_BT"][row, span] = np.roll(document, -1)
            batch["documents_BT"][row, span] = number
            batch["positions_BT"][row, span] = np.arange(len(document))
            batch["valid_BT"][row, span] = np.arange(len(document)) < len(document) - 1
    return batch | {"bytes_B": np.array([3 * sum(map(len, documents)) for documents in rows], np.int32)}


def documents(config: Any, rows: int, length: int, seed: int = 0) -> list[list[np.ndarray]]:
    """Two documents of random tokens for each row, which they nearly fill."""
    draw = np.random.default_rng(seed)
    cuts = [np.sort(draw.choice(np.arange(2, length), 2, replace=False)) for _ in range(rows)]
    return [[draw.integers(0, config.vocab_size, n, np.int32) for n in (cut[0], cut[1] - cut[0])] for cut in cuts]


def masked_lm(rows: list[list[np.ndarray]], length: int) -> dict[str, np.ndarray]:
    """A batch for the prediction of masked tokens, first and last of each row included; its documents are one text."""
    shapes = OBJECTIVES["masked-lm"]().shapes(len(rows), length)
    batch = {name: np.zeros(like.shape, like.dtype) for name, like in shapes.items()}
    for row, documents in enumerate(rows):
        tokens = np.concatenate(documents)
        batch["tokens_BT"][row, : len(tokens)] = tokens
        batch["valid_BT"][row, : len(tokens)] = True
        where = np.linspace(0, len(tokens) - 1, batch["masked_BP"].shape[1]).astype(int)
        batch["masked_BP"][row], batch["targets_BP"][row], batch["weights_BP"][row] = where, tokens[where], 1
        batch["tokens_BT"][row, where] = 1
    return batch


def pretraining(rows: list[list[np.ndarray]], length: int) -> dict[str, np.ndarray]:
    """A batch of `masked_lm` whose segments are the documents of a row; every other row is a wrong pair."""
    segments = np.stack([np.arange(length) >= len(documents[0]) for documents in rows]).astype(np.int32)
    return masked_lm(rows, length) | {"segments_BT": segments, "next_B": np.arange(len(rows), dtype=np.int32) % 2}


def seq2seq_lm(rows: list[list[np.ndarray]], length: int) -> dict[str, np.ndarray]:
    """A batch of pairs: the sources are each row's documents; a target is every other token of its source."""
    shapes = OBJECTIVES["seq2seq-lm"]().shapes(len(rows), length)
    batch = {name: np.zeros(like.shape, like.dtype) for name, like in shapes.items()}
    for row, documents in enumerate(rows):
        read = written = 0
        for number, document in enumerate(documents, start=1):
            targets = document[::2]
            source, target = (
                slice(read, read := read + len(document)),
                slice(written, written := written + len(targets)),
            )
            batch["source_BS"][row, source] = document
            batch["targets_BT"][row, target] = targets
            batch["target_BT"][row, target] = [0, *targets[:-1]]
            batch["source_documents_BS"][row, source] = batch["target_documents_BT"][row, target] = number
    return batch | {
        "valid_BS": batch["source_documents_BS"] > 0, "valid_BT": batch["target_documents_BT"] > 0
    }  # fmt: skip


# Name of an objective -> maker of its batches.
BATCHES = {
    "causal-lm": causal_lm,
    "seq2seq-lm": seq2seq_lm,
    "masked-lm": masked_lm,
    "pretraining": pretraining,
    "replaced-token-detection": masked_lm,
    "distillation": masked_lm,
}
# Name of an objective -> sizes whose halves eight devices divide.
SIZES = {"replaced-token-detection": {"num_heads": 16, "mlp_dim": 80}}


def objective_settings(name: str, config: Any) -> dict[str, Any]:
    """Settings that an objective needs, or needs on eight devices. A teacher is as large as its student; without
    dropout, nothing else is random."""
    return {
        "replaced-token-detection": {
            "generator_size": 0.5,
            "sampling_temperature": float(any(dropouts(config).values())),
        },
        "distillation": {
            "teacher": "a twin",
            "architecture": json.dumps(registry.as_json(config)),
            "relation_weight": 1.0,
            "soft_weight": 0.5,  # a teacher with random parameters is wrong about the tokens
        },
    }.get(name, {})


# The families for tests of what is the same for all models, such as training. A new family moves none of these tests.
USUAL = ("gpt2", "t5", "roberta", "bert", "electra")


def writers() -> list[Any]:
    """A decoder and an encoder-decoder, for tests of decoding."""
    return [main("gpt2"), main("bart")]


def objective_cases(*wanted: str) -> list[Any]:
    """A case of each objective, for the first of `USUAL` with its task; only models that take all these arguments."""
    found = []
    for name in BATCHES:
        able = [family for family in USUAL if OBJECTIVES[name].task in tasks(family)]
        found += [train_case(family, name) for family in able[:1]]
    return [case for case in found if all(argument in case.takes for argument in wanted)]


def train_cases() -> list[Any]:
    """A case of each family with the objective of its main task, and the `objective_cases`."""
    main = [(family, main_task(family)) for family in registry.families()]
    cases = [train_case(family, task) for family, task in main if task in BATCHES]
    return list(dict.fromkeys(cases + objective_cases()))


def train_case(family: str, objective: str) -> Case:
    config = small(family, **SIZES.get(objective, {}))
    return Case(family=family, task=OBJECTIVES[objective].task, config=config, learns=objective)


def run(case: Case, rows: int = 8, length: int = 16, **parts: Any) -> Run:
    """A run of this model, with these parts of it."""
    defaults = {
        "objective": case.objective,
        "optimizer": Optimizer(weight_decay=0.1),
        "mesh": Mesh(data=1),
        "training": Training(steps=10, batch_size=rows),
    }
    return Run(model=case.config, compute=case.compute, data=Data(length=length), **defaults | parts)


def begin(run: Run, params: trees.Tree) -> tuple[Program, TrainState]:
    """A run's program on as many devices as its mesh has, and its state before the first step."""
    sizes = dataclasses.astuple(run.mesh)
    program = prepare(run, jax.devices()[: math.prod(sizes)])
    # From the host: to cut an array that is on a device, a program would be compiled for each shape.
    params = jax.tree.map(lambda x, like: jax.device_put(np.array(x), like.sharding), params, program.state.params)
    return program, program.begin(params, run)


def compile_step(program: Program) -> Any:
    """The train step: (state, batch) -> (state, metrics)."""
    with jax.set_mesh(program.mesh):
        return program.step.lower(program.state, program.batch).compile()


def place(program: Program, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A batch in the program's shardings."""
    return jax.device_put(batch, {name: like.sharding for name, like in program.batch.items()})


# ---- comparison with a reference ------------------------------------------------------------------------------------


WRITERS = ("base", "causal-lm", "seq2seq-lm")  # tasks whose models continue from a cache
# Tasks whose logits are of each token.
PER_TOKEN = ("base", *(name for name, task in TASKS.items() if task.per_token or task.vocabulary))
# Tasks whose models score whole rows.
PER_ROW = tuple(name for name, task in TASKS.items() if task.scores and not task.per_token)
Outputs = dict[str, Any]


def named_outputs(task: str, output: Any) -> Outputs:
    """All outputs of a model for its task, by name; for a body, the inputs of heads."""
    names = ("hidden_BTD", "pooled_BD") if task == "base" else ("logits", "next_sentence_B2")
    return {name: x for name in names if (x := getattr(output, name)) is not None}


def directions(task: str, shapes: dict[str, tuple[int, ...]], valid_BT: Any) -> Outputs:
    """A direction for each output; zero at padding, where outputs have no meaning."""
    numbers = {name: np.cos(np.arange(math.prod(shape))).reshape(shape) for name, shape in shapes.items()}
    return {name: zero_padding(task, name, numbers[name], valid_BT) for name in shapes}


def is_head_alone(case: Case) -> bool:
    """Whether a task's model is compared by its head alone: a layer over the hidden states of a decoder, which other
    tasks compare."""
    return case.causal and case.task == "question-answering" and "source_BS" not in case.takes


def is_per_token(task: str, name: str) -> bool:
    """Whether an output is of each token, and so has no meaning at padding."""
    return name == "hidden_BTD" or (name == "logits" and task in PER_TOKEN)


def zero_padding(task: str, name: str, x: Any, valid_BT: Any) -> Any:
    """The output with zeros at padding."""
    if valid_BT is None or not is_per_token(task, name):
        return x
    return x * valid_BT.reshape(*valid_BT.shape, *[1] * (x.ndim - 2))


def rows(case: Case, count: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of a model's inputs, without masks: tokens other than the padding token, and segments if the model has them.
    Sources are longer than targets, which only the generating tasks of an encoder-decoder get."""
    tokens_BT = without(case, case.tokens(count, length, seed), "pad_id")
    if "source_BS" in case.takes:
        source_BS = without(case, case.tokens(count, length + 3, seed + 1), "pad_id")
        return {"source_BS": source_BS, "target_BT": tokens_BT} if case.task in WRITERS else {"source_BS": source_BS}
    if not getattr(case.config, "num_segments", 0):
        return {"tokens_BT": tokens_BT}
    segments_BT = np.random.default_rng(seed).integers(0, case.config.num_segments, tokens_BT.shape, np.int32)
    return {"tokens_BT": tokens_BT, "segments_BT": segments_BT}


def without(case: Case, tokens_BT: np.ndarray, *names: str) -> np.ndarray:
    """The tokens with others in the place of these special ones."""
    special = {getattr(case.config, name, 0) for name in names}  # 0: of families without the field, and their reference
    other = next(token for token in range(case.config.vocab_size) if token not in special)
    return np.where(np.isin(tokens_BT, [token for token in special if token is not None]), other, tokens_BT)


def padded(case: Case, given: dict[str, np.ndarray], valid: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows with these masks, by the names of their ids. For an encoder-decoder that classifies sequences, the last
    real token, and no other, is the end of the text."""
    given = given | {MASKS[ids]: mask for ids, mask in valid.items() if ids in given}
    if "source_BS" in given and case.task == "sequence-classification":
        source_BS = without(case, given["source_BS"], "pad_id", "eos_id")
        real_BS = given.get("valid_BS", np.ones(source_BS.shape, bool))
        last_BS = real_BS & (np.cumsum(real_BS[:, ::-1], axis=1)[:, ::-1] == 1)
        given["source_BS"] = np.where(last_BS, case.config.eos_id, source_BS).astype(np.int32)
    return given


def mask_of(given: dict[str, Any], ids: str | None = None) -> Any:
    """The mask of real tokens for these ids, or else for the last ids; a decoder without ids of its own reads the
    source. None: all are real."""
    return given.get(MASKS[ids if ids in given else [name for name in MASKS if name in given][-1]])


def for_task(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Rows in the shape of a task: for multiple-choice they are the choices of one question, [1, C, T]."""
    return {name: x[None] for name, x in given.items()} if task == "multiple-choice" else given


def of_one_width(states: list[Any]) -> list[Any]:
    """Arrays [..., D] with zeros up to the largest D: hidden states that a model returns may be projected."""
    width = max(x.shape[-1] for x in states)
    return [jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]) for x in states]


@functools.partial(jax.jit, static_argnames=("case", "prompt", "parts"))
def evaluate(
    case: Case, params: trees.Tree, given: dict[str, Any], prompt: int | None = None,
    parts: tuple[str, ...] | None = None,
) -> tuple[Outputs, dict[str, Any], trees.Tree]:  # fmt: skip
    """A model's outputs by name; all its hidden states [L + 1, B, T, D], by the names of their ids; its gradients in
    a fixed direction.

    The hidden states are the embeddings, the outputs of all blocks but the last, and the hidden states that the model
    returns. It is one program of a case and a shape: layer by layer without a program, the same took longer.

    Args:
        given: rows of the model's arguments, [B, T].
        prompt: number of tokens that are read at once; the others are read one by one, with a cache and without
            gradients. None: all at once, without a cache.
        parts: of the parameters, those whose gradients are wanted. None: all.
    """

    def step(params: trees.Tree, cache: Any, given: Any) -> tuple[Any, Any]:
        cache_argument = {} if cache is None else {"cache": cache}
        given = for_task(case.task, given)
        output, sown = case.model.apply({"params": params}, **given, **cache_argument, mutable="intermediates")
        sown = {path: value for path, (value,) in trees.flatten(sown["intermediates"]).items()}
        find = lambda name: next((value for path, value in sown.items() if f"/{path}".endswith(f"/{name}")), None)
        hidden = {}
        for ids in case.ids:
            prefix, _ = STACKS[ids]
            found = [find(f"{name}/hidden_BTD") for name in getattr(case.config, "stacks", [f"{prefix}blocks"])]
            if found[0] is not None:
                blocks = jnp.concatenate(found)
                last = output.encoded_BSD if ids == "source_BS" else output.hidden_BTD
                hidden[ids] = jnp.concatenate(
                    of_one_width([find(f"{prefix}embedded_BTD")[None], blocks[:-1], last[None]])
                )
        return output.cache, (named_outputs(case.task, output), hidden)

    def read(params: trees.Tree) -> Any:
        if prompt is None:
            return step(params, None, given)[1]
        ids = case.ids[-1]
        cache = case.module.init_cache(case.config, *given[ids].shape, case.compute.dtype)
        read = {name: given[name] for name in (ids, MASKS[ids]) if name in given}  # in parts
        cache, (outputs, hidden) = step(params, cache, given | {name: x[:, :prompt] for name, x in read.items()})
        columns = {name: jnp.moveaxis(x[:, prompt:, None], 1, 0) for name, x in read.items()}
        source = {"source_BS": None} if "source_BS" in given else {}  # it is in the cache
        _, (later, rest) = jax.lax.scan(lambda cache, column: step(params, cache, source | column), cache, columns)
        join = lambda a, b: jnp.concatenate([a, jnp.moveaxis(b[..., 0, :], 0, -2)], axis=-2)
        return jax.tree.map(join, outputs, later), hidden | {ids: join(hidden[ids], rest[ids])}

    if prompt is not None:
        return *read(params), {}

    def function(part: trees.Tree) -> Any:
        outputs, hidden = read(params | part)
        towards = directions(case.task, {name: x.shape for name, x in outputs.items()}, mask_of(given))
        return sum((outputs[name] * towards[name]).sum() for name in outputs), (outputs, hidden)

    part = params if parts is None else {name: params[name] for name in parts}
    grads, (outputs, hidden) = jax.grad(function, has_aux=True)(part)
    return outputs, hidden, grads
