"""L equal blocks as one scanned block: parameters are always stacked, [L, ...], whatever the speed knobs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.quantized import has_quantized
from transformer_zoo.sharding import constrain

# The paths of stacked parameters: a stack's block bears a name that ends so.
STACKED = r"(?P<stack>(.*/)?\w*blocks)/.*"


class Layers(list):
    """A tree for each layer, where otherwise one tree of arrays [L, ...] stands.

    Decoding on a CPU takes parameters and cache so: of stacked arrays XLA copies a layer's slice before it multiplies,
    and that takes longer than the product with a single token.
    """

    @classmethod
    def of(cls, stacked: Any) -> "Layers":
        """The slices of a stacked tree; of numpy arrays they are views."""
        return cls(_layer(stacked, i) for i in range(len(jax.tree.leaves(stacked)[0])))


jax.tree_util.register_pytree_node(Layers, lambda layers: (tuple(layers), None), lambda _, trees: Layers(trees))


@struct.dataclass
class ByKind:
    """What is kept of layers of several kinds, where it differs in shape.

    Attributes:
        trees: for each kind, a tree of arrays [layers of this kind, ...], or of `Layers`.
        kinds: the kind of each layer, a number.
    """

    trees: tuple[Any, ...]
    kinds: tuple[int, ...] = struct.field(pytree_node=False)

    def __getitem__(self, i: int) -> Any:
        """What is kept of layer i."""
        return _layer(self.trees[self.kinds[i]], self.places[i])

    @property
    def places(self) -> tuple[int, ...]:
        """The place of each layer among those of its kind."""
        return tuple(self.kinds[:i].count(kind) for i, kind in enumerate(self.kinds))

    def of_layers(self, kept: Sequence[Any]) -> "ByKind":
        """With `Layers` of what is kept of each layer."""
        of_kind = lambda kind: [tree for tree, its in zip(kept, self.kinds) if its == kind]
        return self.replace(trees=tuple(_joined(of_kind(kind)) for kind in range(len(self.trees))))


def _layer(tree: Any, i: Any) -> Any:
    """What a layer is handed of a tree of arrays [L, ...], of `Layers` and of a `ByKind`."""
    return jax.tree.map(lambda x: x[i], tree, is_leaf=lambda x: isinstance(x, Layers | ByKind))


def _joined(trees: Sequence[Any]) -> Any:
    """A tree of `Layers`."""
    return jax.tree.map(lambda *layers: Layers(layers), *trees)


class Group(nn.Module):
    """Blocks that differ, one after another, as a block of `stack`, which scans over a repeating group of layers.

    `setup` makes the list `layer`. `per_layer` of `stack` is then a pair: what is kept of the layers, a tuple with a
    tree of arrays [groups, ...] for each block (None: nothing is); and a tree of arrays [L, ...]. The out of the group
    is a tuple of theirs.
    """

    def __call__(self, x_BTD: jax.Array, own: tuple[Any, Any], *shared: Any) -> tuple[jax.Array, Any]:
        (kept, arrays), outs, hidden = own, [], []
        for i, block in enumerate(self.layer):
            part = (None if kept is None else kept[i], _layer(arrays, i))
            x_BTD, out = block(constrain(x_BTD, "batch length _"), part, *shared)
            outs.append(out)
            hidden.append(x_BTD)
        self.sow("intermediates", "hidden_BTD", hidden)
        return x_BTD, tuple(outs)


def repeating(kinds: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest group that these layers are whole repetitions of: all of them, if there is no shorter one."""
    sizes = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0 and kinds[n:] == kinds[:-n])
    return tuple(kinds[: next(sizes)])


@functools.cache
def groups(kinds: tuple[Any, ...]) -> tuple[tuple[tuple[Any, ...], int], ...]:
    """Groups of layers, and how often each is repeated before the next one begins: those with the fewest layers in all,
    and of these the fewest groups."""
    count = lambda found: (sum(len(group) for group, _ in found), len(found))
    best = {0: ()}  # of the first so many layers
    for end in range(1, len(kinds) + 1):
        found = []
        for n in range(1, end + 1):
            group, start = kinds[end - n : end], end - n
            while start >= 0 and kinds[start : start + n] == group:
                found.append((*best[start], (group, (end - start) // n)))
                start -= n
        best[end] = min(found, key=count)
    return best[len(kinds)]


ROUTING = "routing"
"""The collection of what routers chose (`nn/experts.py`), for a training loss: `mutable=[ROUTING]`."""
_SOWN = {"intermediates": 0, ROUTING: 0}

_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def stack(
    block: nn.Module,
    x_BTD: jax.Array,
    per_layer: Any = None,
    *shared: Any,
    length: int,
    compute: Compute,
    places: np.ndarray | None = None,
) -> tuple[jax.Array, Any]:
    """Runs `x_BTD, out = block(x_BTD, layer, *shared)` over `length` layers.

    Args:
        block: one block, bound to its parent; its parameters come out stacked along a leading L. Those of a `Group` are
            stacked along the groups, as are the arrays of the outs.
        per_layer: a tree of arrays [L, ...], of which a layer is handed its own (None: there is none). Or a pair of a
            `ByKind` and such a tree; the outs then are a `ByKind` too, and of what blocks sow `hidden_BTD` is returned.
        shared: what is the same for every layer, computed once.
        places: where layers share parameters, the place of each layer's among them, [L, axes]: the parameters are then
            stacked along so many axes, each as long as the places need. None: every layer has its own.

    Returns:
        The last x_BTD, and the blocks' outs stacked along L. Every block's output is sown as `hidden_BTD`.
        Where the parameters come as `Layers`, so does each array of the outs; trees of `per_layer` may, and nothing is
        sown.
    """
    if grouped := isinstance(block, Group):
        length //= len(block.layer)
        kept, arrays = per_layer
        per_layer = (kept, jax.tree.map(lambda x: x.reshape(length, -1, *x.shape[1:]), arrays))
    by_kind = isinstance(per_layer, tuple) and isinstance(per_layer[0], ByKind)
    if isinstance(params := block.variables.get("params"), Layers):
        outs, block = [], block.clone(parent=None, name=None)
        for i in range(length):
            x_BTD, out = block.apply({"params": params[i]}, x_BTD, _layer(per_layer, i), *shared)
            outs.append(out)
        return x_BTD, per_layer[0].of_layers(outs) if by_kind else _joined(outs)

    def layer(block: nn.Module, x_BTD: jax.Array, own: Any) -> tuple[jax.Array, Any]:
        # The one activation constraint: the residual stream lies by rows (and length), and the rest follows from it.
        x_BTD, out = block(constrain(x_BTD, "batch length _"), own, *shared)
        if not grouped:
            block.sow("intermediates", "hidden_BTD", x_BTD)
        return x_BTD, out

    # A check that nothing here could fail, and that would trace each block once more.
    lift: dict[str, Any] = {"check_constancy_invariants": False}
    lift |= {"variable_axes": {"params": 0, **_SOWN}, "split_rngs": {"params": True, "dropout": True}}
    if by_kind:  # layers take their own of all parameters, since a scan need not begin with the first one
        places = np.arange(length)[:, None]
    if places is not None:
        sizes = tuple(int(size) for size in places.max(axis=0) + 1)
        if block.is_initializing():
            make = lambda block, x_BTD, _: layer(block, x_BTD, _layer(per_layer, 0))
            for size in reversed(sizes):
                make = nn.scan(make, **lift, length=size)
            make(block, x_BTD, None)
        lift |= {"variable_axes": _SOWN, "variable_broadcast": "params"}
        layer, per_layer = _sharing(layer, sizes), (places, per_layer)
    remat = compute.remat
    if remat == "none" and has_quantized(params):
        remat = "dots"  # or else the backward pass would keep every layer's matrices, expanded
    if remat != "none":
        layer = nn.remat(layer, prevent_cse=False, policy=_POLICIES[remat])
    if by_kind:
        return _by_turns(layer, block, x_BTD, *per_layer[1], lift | {"variable_axes": {}}, compute.unroll)
    scan = nn.scan(layer, **lift, length=length, unroll=min(compute.unroll, length))
    x_BTD, outs = scan(block, x_BTD, per_layer)
    if grouped and block.has_variable("intermediates", "hidden_BTD"):
        (hidden,) = block.get_variable("intermediates", "hidden_BTD")
        hidden_LBTD = jnp.stack(hidden, axis=1).reshape(-1, *x_BTD.shape)
        block.put_variable("intermediates", "hidden_BTD", (hidden_LBTD,))
    return x_BTD, outs


def _sharing(layer: Callable[..., Any], sizes: tuple[int, ...]) -> Callable[..., Any]:
    """The function of a layer that is handed all parameters, and their place among them besides its own arrays."""

    def function(block: nn.Module, x_BTD: jax.Array, own: Any) -> tuple[jax.Array, Any]:
        place, own = own
        # With one place, it is a constant: a slice that depends on the layer would be kept for the backward pass, once
        # for each layer.
        index = tuple(place) if max(sizes) > 1 else (0,) * len(sizes)
        take = lambda params: jax.tree.map(lambda x: jnp.asarray(x)[index], params)
        return nn.map_variables(layer, "params", take)(block, x_BTD, own)

    return function


def _by_turns(
    layer: Callable[..., Any], block: nn.Module, x_BTD: jax.Array, kept: ByKind, arrays: Any, lift: Any, unroll: int
) -> tuple[jax.Array, ByKind]:
    """`stack` of layers of several kinds, which scans over each of `groups`. What is kept of all layers is carried
    along, and a layer overwrites its own. `layer` is as `_sharing` returns it."""
    place_L, sown = np.array(kept.places), block.is_mutable_collection("intermediates")

    def run(group: tuple[int, ...], block: nn.Module, carry: Any, layer_N: jax.Array) -> tuple[Any, Any]:
        (x_BTD, trees), hidden = carry, []
        for n, kind in enumerate(group):
            i, place = layer_N[n], jnp.asarray(place_L)[layer_N[n]]
            x_BTD, out = layer(block, x_BTD, ((i,), (_layer(trees[kind], place), _layer(arrays, i))))
            write = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, place, 0)  # noqa: B023
            trees = (*trees[:kind], jax.tree.map(write, trees[kind], out), *trees[kind + 1 :])
            hidden.append(x_BTD)
        return (x_BTD, trees), hidden if sown else None

    carry, first, hidden = (x_BTD, kept.trees), 0, []
    for group, times in groups(kept.kinds):
        layer_GN = first + np.arange(times * len(group)).reshape(times, -1)
        scan = nn.scan(functools.partial(run, group), **lift, length=times, unroll=min(unroll, times))
        carry, hidden_NGBTD = scan(block, carry, layer_GN)
        first += layer_GN.size
        if sown:
            hidden.append(jnp.stack(hidden_NGBTD, axis=1).reshape(-1, *x_BTD.shape))
    if sown:
        block.sow("intermediates", "hidden_BTD", jnp.concatenate(hidden))
    x_BTD, trees = carry
    return x_BTD, kept.replace(trees=trees)
