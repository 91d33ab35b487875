"""Schedules and optimizers: optax chains by name, from `Run.optimizer`; parameters are selected by their paths."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
import optax.contrib
from jax.sharding import Mesh, NamedSharding

from transformer_zoo import trees
from transformer_zoo.config import Optimizer
from transformer_zoo.nn.experts import balancing_step
from transformer_zoo.nn.stack import STACKED
from transformer_zoo.sharding import replicated

# Weight decay is for kernels and embeddings: decaying the scale of a norm or a bias does not regularise.
DECAYED = r".*/(kernel|embedding|lora_[ab])"

# Muon orthogonalises matrices: the input axes of a kernel (summed over), and its output axes.
MUON_AXES = (
    (r".*/((position_)?(query|key|value)|(attention|delta)/gate)/kernel", (-3, (-2, -1))),
    (r".*/out/kernel", ((-3, -2), -1)),
    (r"(?!.*/((position_)?(query|key|value)|(attention|delta)/gate|out|\w+_conv)/kernel).*/kernel", (-2, -1)),
    (r"(?!.*/kernel).*|.*/\w+_conv/kernel", None),  # the rest is left to AdamW
)


# Adds to the scores that experts are chosen by (`experts.Correction`); the mixture is where routers count the choices.
CORRECTION = r"(?P<mixture>.*)/correction/bias"


def schedule(settings: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate of each of `steps` updates: a linear warmup, then `settings.schedule`.

    Raises:
        ValueError: the warmup and the decay do not fit into the steps.
    """
    peak, warmup = settings.peak_lr, settings.warmup_steps
    settings.check_steps(steps)
    left = max(1, steps - warmup)
    decay = settings.decay_steps or (min(left, max(1, steps // 10)) if settings.schedule == "wsd" else left)
    final = peak * settings.final_lr
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=settings.final_lr),
        "linear": lambda: optax.linear_schedule(peak, final, decay),
        "constant": lambda: optax.constant_schedule(peak),
        "inverse_sqrt": lambda: lambda step: peak * jax.lax.rsqrt((1.0 + warmup + step) / max(warmup, 1)),
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
    b1, b2, eps = settings.b1, settings.b2, settings.eps
    # Each gives a direction of ascent; weight decay and learning rate follow. (A rate of -1 undoes optax's own sign.)
    direction = {
        "adamw": lambda: optax.scale_by_adam(b1, b2, eps),
        "lion": lambda: optax.scale_by_lion(b1, b2),
        # Without a rate, optax scales its update by the parameter's size.
        "adafactor": lambda: optax.chain(_per_layer(optax.adafactor()), optax.scale(-1.0)),
        "muon": lambda: optax.contrib.muon(
            -1.0, beta=b1, eps=eps, adam_b1=b1, adam_b2=b2,
            muon_weight_dimension_numbers=_muon_axes, consistent_rms=0.2,
        ),
    }[settings.name]()  # fmt: skip
    chain = optax.chain(
        optax.identity() if settings.clip_norm is None else optax.clip_by_global_norm(settings.clip_norm),
        direction,
        optax.add_decayed_weights(settings.weight_decay, _decayed),
        optax.scale_by_learning_rate(schedule(settings, steps)),
    )
    if not frozen:
        return chain
    labels = trees.map_paths(lambda path, _: "frozen" if path in frozen else "trained", params)
    return optax.multi_transform({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def corrections(settings: Optimizer, params: trees.Tree) -> frozenset[str]:
    """The paths of the parameters that `balanced` moves: none without a rate.

    Args:
        params: what is trained, or its shapes.

    Raises:
        ValueError: a rate, and none of what is trained is a router's correction.
    """
    if not settings.balance_rate:
        return frozenset()
    paths = trees.flatten(params)
    found = {path for path in paths if re.fullmatch(CORRECTION, path)} - trees.select(settings.freeze, paths)
    if not found:
        raise ValueError(
            f"optimizer.balance_rate={settings.balance_rate}: nothing that is trained corrects the scores of experts, "
            "as routers of DeepSeek-V3 do. Set it to 0"
        )
    return frozenset(found)


def balanced(
    params: trees.Tree, before: trees.Tree, chosen: Mapping[str, jax.Array], rate: float, corrections: frozenset[str]
) -> trees.Tree:
    """The parameters after a step, with `corrections` moved by `rate` so that experts are balanced
    (`experts.balancing_step`), and by nothing else.

    Args:
        params: after the optimizer's update.
        before: before it.
        chosen: by the path of a mixture, how often each expert was chosen in the whole batch, [L, E].
        corrections: paths of parameters.
    """

    def moved(path: str, new: jax.Array, old: jax.Array) -> jax.Array:
        if path not in corrections:
            return new
        chosen_LE = chosen[re.fullmatch(CORRECTION, path)["mixture"]]
        return old + rate * balancing_step(chosen_LE).astype(old.dtype)

    return trees.map_paths(moved, params, before)


def _decayed(params: trees.Tree) -> trees.Tree:
    return trees.map_paths(lambda path, _: re.fullmatch(DECAYED, path) is not None, params)


def _muon_axes(params: trees.Tree) -> trees.Tree:
    axes = trees.match(MUON_AXES, trees.flatten(params))
    return trees.unflatten({path: pair and optax.contrib.MuonDimensionNumbers(*pair) for path, pair in axes.items()})


_UNSTACKED = "unstacked"


def _per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Treats every layer of a stacked parameter as a parameter of its own, for optimizers with statistics over a
    tensor: Adafactor's root mean squares and factors must not mix layers."""

    def split(tree: trees.Tree) -> dict[str, trees.Tree]:
        """The parameters of each stack, and those outside any stack."""
        parts: dict[str, dict[str, Any]] = {}
        for path, leaf in trees.flatten(tree).items():
            stack = re.fullmatch(STACKED, path)
            parts.setdefault(stack["stack"].replace("/", "_") if stack else _UNSTACKED, {})[path] = leaf
        return {name: trees.unflatten(flat) for name, flat in parts.items()}

    def each(name: str, function: Any, part: trees.Tree, *rest: Any) -> Any:
        stacked = name != _UNSTACKED and jax.tree.leaves(part)  # a frozen stack has no leaves here
        return (jax.vmap(function) if stacked else function)(part, *rest)

    def init(params: trees.Tree) -> Any:
        return {name: each(name, inner.init, part) for name, part in split(params).items()}

    def update(updates: trees.Tree, state: Any, params: trees.Tree | None = None) -> tuple[trees.Tree, Any]:
        owners = split(params)
        new = {name: each(name, inner.update, part, state[name], owners[name]) for name, part in split(updates).items()}
        flat = {path: leaf for part, _ in new.values() for path, leaf in trees.flatten(part).items()}
        return trees.unflatten(flat), {name: state for name, (_, state) in new.items()}

    return optax.GradientTransformation(init, update)


def state_shardings(state: Any, params: trees.Tree, shardings: trees.Tree, mesh: Mesh) -> Any:
    """The shardings of an optimizer's state: a leaf with a parameter's path and shape has the parameter's sharding.

    Args:
        state, params: shapes of the optimizer's state and of the parameters.
        shardings: the shardings of the parameters.
    """
    shapes, by_path = trees.flatten(params), trees.flatten(shardings)

    def sharding_of(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        # Optax keeps the parameters' dictionaries inside its own: a path ends with the parameter's.
        keys = [key.key for key in key_path if isinstance(key, jax.tree_util.DictKey)]
        tails = ("/".join(keys[start:]) for start in range(len(keys)))
        path = next((tail for tail in tails if tail in shapes), None)
        return by_path[path] if path and shapes[path].shape == leaf.shape else replicated(mesh)

    return jax.tree_util.tree_map_with_path(sharding_of, state)
