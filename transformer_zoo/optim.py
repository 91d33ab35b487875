"""Schedules and optimizers: optax chains by name, from `Run.optimizer`; parameters are told apart by their path."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import Mesh, NamedSharding

from transformer_zoo import trees
from transformer_zoo.config import Optimizer
from transformer_zoo.nn.stack import STACKED
from transformer_zoo.sharding import replicated

# Weight decay belongs to what multiplies: a norm's scale or a bias pulled to zero only loses fit.
DECAYED = r".*/(kernel|embedding)"

# Muon makes matrices orthogonal: which axes of a kernel are read (reduced over), and which are written.
MUON_AXES = (
    (r".*/(query|key|value)/kernel", (-3, (-2, -1))),
    (r".*/out/kernel", ((-3, -2), -1)),
    (r"(?!.*/(query|key|value|out)/kernel).*/kernel", (-2, -1)),
    (r"(?!.*/kernel).*", None),  # the rest is left to AdamW
)


def schedule(settings: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate of each of `steps` updates: a linear warmup, then what `settings.schedule` says.

    Raises:
        ValueError: the warmup and the decay do not fit into the steps.
    """
    peak, warmup = settings.peak_lr, settings.warmup_steps
    left = steps - warmup
    decay = settings.decay_steps or (max(1, steps // 10) if settings.schedule == "wsd" else left)
    if left < 1 or decay > left:
        raise ValueError(
            f"warmup_steps={warmup} and decay_steps={settings.decay_steps} do not fit into {steps} steps of training"
        )
    final = peak * settings.final_lr
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=settings.final_lr),
        "linear": lambda: optax.linear_schedule(peak, final, decay),
        "constant": lambda: optax.constant_schedule(peak),
        "inverse_sqrt": lambda: lambda step: peak * jax.lax.rsqrt(1.0 + jnp.maximum(step, 0) / max(warmup, 1)),
        "wsd": lambda: optax.linear_schedule(peak, final, decay, transition_begin=left - decay),
    }[settings.schedule]()
    # The first update already moves: a rate of zero would waste a batch.
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(settings: Optimizer, steps: int, params: trees.Tree) -> optax.GradientTransformation:
    """The chain: clipping, the optimizer with weight decay, frozen parameters left alone.

    Args:
        params: parameters or their shapes, for the names.

    Raises:
        ValueError: a pattern of `freeze` that matches nothing, or all parameters frozen.
    """
    paths = trees.flatten(params)
    frozen = trees.select(settings.freeze, paths)
    if len(frozen) == len(paths):
        raise ValueError(f"freeze={list(settings.freeze)} matches every parameter: nothing is left to train")
    rate, decay = schedule(settings, steps), settings.weight_decay
    update = {
        "adamw": lambda: optax.adamw(
            rate, settings.b1, settings.b2, eps=settings.eps, weight_decay=decay, mask=_decayed
        ),
        "lion": lambda: optax.lion(rate, settings.b1, settings.b2, weight_decay=decay, mask=_decayed),
        "adafactor": lambda: optax.chain(
            _per_layer(optax.adafactor()),  # without a rate it gives the step itself, of the parameter's own scale
            optax.scale(-1.0),
            optax.add_decayed_weights(decay, _decayed),
            optax.scale_by_learning_rate(rate),
        ),
        "muon": lambda: optax.contrib.muon(
            rate,
            beta=settings.b1,
            eps=settings.eps,
            weight_decay=decay,
            weight_decay_mask=_decayed,
            adam_b1=settings.b1,
            adam_b2=settings.b2,
            adam_weight_decay=decay,
            muon_weight_dimension_numbers=_muon_axes,
            consistent_rms=0.2,
        ),  # fmt: skip
    }[settings.name]()
    clip = optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm)
    chain = optax.chain(clip, update)
    if not frozen:
        return chain
    labels = trees.map_paths(lambda path, _: "frozen" if path in frozen else "trained", params)
    return optax.multi_transform({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def _decayed(params: trees.Tree) -> trees.Tree:
    return trees.map_paths(lambda path, _: re.fullmatch(DECAYED, path) is not None, params)


def _muon_axes(params: trees.Tree) -> trees.Tree:
    axes = trees.match(MUON_AXES, trees.flatten(params))
    return trees.unflatten({path: pair and optax.contrib.MuonDimensionNumbers(*pair) for path, pair in axes.items()})


def _per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Treats every layer of a stacked parameter as a parameter of its own, for optimizers with statistics of a whole
    tensor: Adafactor's root mean squares and factors must not mix layers."""

    def split(tree: trees.Tree) -> tuple[trees.Tree, trees.Tree]:
        flat = trees.flatten(tree)
        layers = {path: leaf for path, leaf in flat.items() if re.fullmatch(STACKED, path)}
        return trees.unflatten(layers), trees.unflatten({path: flat[path] for path in flat.keys() - layers.keys()})

    def init(params: trees.Tree) -> Any:
        layers, rest = split(params)
        return jax.vmap(inner.init)(layers), inner.init(rest)

    def update(updates: trees.Tree, state: Any, params: trees.Tree | None = None) -> tuple[trees.Tree, Any]:
        (layers, rest), (layers_params, rest_params) = split(updates), split(params)
        layers, layers_state = jax.vmap(inner.update)(layers, state[0], layers_params)
        rest, rest_state = inner.update(rest, state[1], rest_params)
        return trees.unflatten(trees.flatten(layers) | trees.flatten(rest)), (layers_state, rest_state)

    return optax.GradientTransformation(init, update)


def state_shardings(state: Any, params: trees.Tree, shardings: trees.Tree, mesh: Mesh) -> Any:
    """The shardings of an optimizer's state: what is shaped like a parameter lies as the parameter does.

    Args:
        state, params: shapes of the optimizer's state and of the parameters.
        shardings: of the parameters.
    """
    shapes, places = trees.flatten(params), trees.flatten(shardings)

    def place(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        # Optax keeps the parameters' dictionaries inside its own: a path ends with the parameter's.
        keys = [key.key for key in key_path if isinstance(key, jax.tree_util.DictKey)]
        tails = ("/".join(keys[start:]) for start in range(len(keys)))
        path = next((tail for tail in tails if tail in shapes), None)
        return places[path] if path and shapes[path].shape == leaf.shape else replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)
