"""Mixtures of experts (Shazeer et al. 2017): the MLP of a layer is several gated MLPs, and a router chooses a few of
them for each token. No token is dropped (Gale et al. 2022): a token's result depends on no other token.

The tokens are sorted by expert, so that each expert multiplies adjacent rows. On a TPU this is `jax.lax.ragged_dot`.
Elsewhere JAX computes that as one product with a mask, [experts, rows, width] and as many times the work; there the
rows of each expert are read tile by tile instead, as many tiles as the tokens fill.

Letters of shapes beside those of `nn/attention.py`: E experts, J experts of a token, P pairs of a token and one of its
experts.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from transformer_zoo import sharding, trees
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.stack import ROUTING

LARGEST_TILE = 256  # rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """How experts are chosen by the sigmoids of their logits (DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2)."""

    num_groups: int
    """The experts are so many groups of equal size, at least 2, one after another."""
    num_chosen_groups: int
    """The groups of a token, among whose experts its own are: those whose two best experts have the largest sum."""
    scale: float
    """What the weights of the experts are multiplied by."""


class Experts(nn.Module):
    """The routed MLP of a layer, whose `Routing` is sown in the collection of this name."""

    num_experts: int
    num_chosen: int
    mlp_dim: int
    compute: Compute
    gated: Callable[[jax.Array, jax.Array], jax.Array]
    """(gate_F, up_F) -> what the last product of an expert multiplies."""
    normalised: bool = True
    """Whether the weights of a token's experts add up to 1. Otherwise they are probabilities among all experts, or
    sigmoids."""
    sigmoid: Sigmoid | None = None
    """How sigmoids choose; the router is then computed in at least float32. None: a softmax chooses."""
    use_bias: bool = False
    """Whether the router and the experts have biases."""
    scaled: bool = False
    """Whether the weight of each expert is multiplied by a number of its own, as in Gemma 4."""
    balance_weight: float = 0.0
    """Of the load-balancing loss, as in `Routing`."""
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, routed_BTD: jax.Array | None = None) -> jax.Array:
        """The output of the mixture for these inputs, [B, T, D].

        Args:
            routed_BTD: what the router reads of the tokens. None: what the experts read.
        """
        E, D, F, dtype = self.num_experts, x_BTD.shape[-1], self.mlp_dim, self.compute.dtype
        wide, router = self.compute.accumulation_dtype, {"use_bias": self.use_bias, "kernel_init": self.kernel_init}
        if self.sigmoid is not None:
            router["dtype"] = wide
        routed_BTD = x_BTD if routed_BTD is None else routed_BTD
        logits_BTE = self.compute.dense(E, **router, name="router")(routed_BTD).astype(wide)
        if self.sigmoid is None:
            weights_BTJ, chosen_BTJ = choose(logits_BTE, self.num_chosen, self.normalised)
            logs_BTE = jax.nn.log_softmax(logits_BTE)
        else:
            corrected_BTE = Correction(E, self.compute, name="correction")(jax.nn.sigmoid(logits_BTE))
            weights_BTJ, chosen_BTJ = choose_by_sigmoid(
                logits_BTE, corrected_BTE, self.num_chosen, self.normalised, self.sigmoid
            )
            logs_BTE = jax.nn.log_sigmoid(logits_BTE)
            logs_BTE -= jax.nn.logsumexp(logs_BTE, axis=-1, keepdims=True)
        self.sow(ROUTING, "routing", Routing(logs_BTE, chosen_BTJ, self.balance_weight, self.sigmoid is not None))
        sizes = {"gate": (D, F), "up": (D, F), "down": (F, D)}
        layers = {
            name: ExpertLayers(E, *size, self.compute.param_dtype, self.use_bias, self.kernel_init, name=name)()
            for name, size in sizes.items()
        }
        layers = jax.tree.map(lambda x: x.astype(dtype), layers)
        if self.scaled:
            scale_E = self.param("scale", nn.initializers.ones_init(), (E,), self.compute.param_dtype)
            # Not by its index: a GPU would add up the gradient in an order of its own each time.
            weights_BTJ *= (jax.nn.one_hot(chosen_BTJ, E, dtype=wide) * scale_E).sum(axis=-1)
        bias_ED = layers["down"].pop("bias", None)  # added here: not once for each part of a divided F
        y_BTD = mixture(self._expert, layers, x_BTD.astype(dtype), weights_BTJ, chosen_BTJ)
        if bias_ED is not None:
            weights_BTE = (weights_BTJ[..., None] * jax.nn.one_hot(chosen_BTJ, E, dtype=weights_BTJ.dtype)).sum(axis=-2)
            y_BTD += weights_BTE.astype(dtype) @ bias_ED
        return y_BTD

    def _expert(self, dense: Callable[..., jax.Array], layers: Mapping[str, Any], x_PD: jax.Array) -> jax.Array:
        return dense(layers["down"], self.gated(dense(layers["gate"], x_PD), dense(layers["up"], x_PD)))


class ExpertLayers(nn.Module):
    """The parameters of a dense layer of each expert: `kernel` [E, I, O] and perhaps `bias` [E, O]."""

    num_experts: int
    inputs: int
    outputs: int
    param_dtype: Any
    use_bias: bool
    kernel_init: Any

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        shape = (self.num_experts, self.inputs, self.outputs)
        layers = {"kernel": self.param("kernel", self.kernel_init, shape, self.param_dtype)}
        if self.use_bias:
            layers["bias"] = self.param("bias", nn.initializers.zeros_init(), shape[::2], self.param_dtype)
        return layers


class Correction(nn.Module):
    """Adds a number for each expert to the scores that experts are chosen by, so that each is chosen equally often. It
    has no gradient: it moves by `balancing_step`.

    The numbers are of at least float32, since those of published models are large, and their differences matter.
    """

    num_experts: int
    compute: Compute

    @nn.compact
    def __call__(self, scores_BTE: jax.Array) -> jax.Array:
        dtype = jnp.promote_types(self.compute.param_dtype, jnp.float32)
        bias_E = self.param("bias", nn.initializers.zeros_init(), (self.num_experts,), dtype)
        return jax.lax.stop_gradient(scores_BTE + bias_E)


@struct.dataclass
class Routing:
    """What the routers of all layers made of the tokens.

    Attributes:
        logs_LBTE: the logarithms of the experts' probabilities, in at least float32.
        chosen_LBTJ: the experts of each token.
        balance_weight: of the load-balancing loss in a training loss.
        by_row: whether experts are balanced in each layer and row, and not over all layers and rows together.
    """

    logs_LBTE: jax.Array
    chosen_LBTJ: jax.Array
    balance_weight: float = struct.field(pytree_node=False)
    by_row: bool = struct.field(pytree_node=False, default=False)

    def measure(self, real_BT: jax.Array) -> dict[str, jax.Array]:
        """What the real tokens' routes are like, by name. No gradient flows through the choices.

        - `chosen_LE`: how often each expert was chosen.
        - `router_entropy`: the mean entropy of the probabilities of the experts, in nats.
        - `balance`: `balance_weight` times the load-balancing loss (Fedus et al. 2022, equations 4 to 6). Shares and
          mean probabilities are those over all layers together, as in the code released with Mixtral; if all are equal,
          the loss is J. By row (DeepSeek-AI 2024, "DeepSeek-V3", equations 17 to 20), it is the sum over layers of the
          mean over rows; if all are equal, that of each layer is 1.
        """
        logs_LBTE, J = self.logs_LBTE, self.chosen_LBTJ.shape[-1]
        layers, E = logs_LBTE.shape[0], logs_LBTE.shape[-1]
        real_BT1 = real_BT[..., None].astype(logs_LBTE.dtype)
        probabilities_LBTE = jnp.exp(logs_LBTE) * real_BT1
        counts_LBTE = jax.nn.one_hot(self.chosen_LBTJ, E, dtype=logs_LBTE.dtype).sum(axis=-2) * real_BT1
        chosen_LE = counts_LBTE.sum(axis=(1, 2))
        rows = jnp.maximum(layers * real_BT1.sum(), 1)
        if self.by_row:
            real_B1 = real_BT1.sum(axis=1)
            shares_LBE, means_LBE = (x.sum(axis=2) / jnp.maximum(real_B1, 1) for x in (counts_LBTE, probabilities_LBTE))
            balance = E / J * (shares_LBE * means_LBE).sum() / jnp.maximum((real_B1 > 0).sum(), 1)
        else:
            balance = E * (chosen_LE.sum(axis=0) / rows * (probabilities_LBTE.sum(axis=(0, 1, 2)) / rows)).sum()
        return {
            "chosen_LE": chosen_LE,
            "router_entropy": -(probabilities_LBTE * logs_LBTE).sum() / rows,
            "balance": self.balance_weight * balance,
        }


def routings_of(sown: Mapping[str, Any]) -> dict[str, Routing]:
    """What a model sowed when it was applied with `mutable=[ROUTING]`, by the paths of its mixtures, such as
    `blocks/experts`; of a model without experts, nothing."""
    flat = trees.flatten(sown.get(ROUTING, {}))
    return {path.removesuffix("/routing"): routing for path, (routing,) in flat.items()}


def measured(routings: Mapping[str, Routing], real_BT: jax.Array) -> dict[str, Any]:
    """`Routing.measure` of all mixtures together; their `chosen_LE` by path, under the name `chosen`."""
    whole = jax.tree.map(lambda *parts: jnp.concatenate(parts), *routings.values()).measure(real_BT)
    last = np.cumsum([len(routing.chosen_LBTJ) for routing in routings.values()])[:-1]
    return {"chosen": dict(zip(routings, jnp.split(whole.pop("chosen_LE"), last)))} | whole


def balancing_step(chosen_LE: jax.Array) -> jax.Array:
    """The direction in which the numbers of `Correction` move after a step of training: 1 for an expert that was chosen
    less often than the mean of its layer, -1 for one more often, 0 for one as often (Wang et al. 2024, "Auxiliary-Loss-
    Free Load Balancing Strategy for Mixture-of-Experts", algorithm 1; DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2).
    """
    return jnp.sign(chosen_LE.sum(axis=-1, keepdims=True) - chosen_LE.shape[-1] * chosen_LE)  # no quotient: exact


def choose(logits_BTE: jax.Array, num_chosen: int, normalised: bool) -> tuple[jax.Array, jax.Array]:
    """The experts of each token with the highest logits and their weights, [B, T, J] each; of equal ones the first.

    Args:
        normalised: whether the weights of a token add up to 1: the softmax of these logits alone. Otherwise they are
            the probabilities of a softmax over all experts.
    """
    logits_BTJ, chosen_BTJ = jax.lax.top_k(logits_BTE, num_chosen)
    if normalised:
        return jax.nn.softmax(logits_BTJ), chosen_BTJ
    return jnp.exp(logits_BTJ - jax.nn.logsumexp(logits_BTE, axis=-1, keepdims=True)), chosen_BTJ


def choose_by_sigmoid(
    logits_BTE: jax.Array, corrected_BTE: jax.Array, num_chosen: int, normalised: bool, sigmoid: Sigmoid
) -> tuple[jax.Array, jax.Array]:
    """The experts of each token and their weights, as in `choose`.

    Args:
        corrected_BTE: what experts and groups are chosen by. The weights are made of the logits.
    """
    E, groups = logits_BTE.shape[-1], sigmoid.num_groups
    grouped_BTNE = corrected_BTE.reshape(*corrected_BTE.shape[:-1], groups, E // groups)
    best_BTN = jax.lax.top_k(grouped_BTNE, 2)[0].sum(axis=-1)
    own_BTn = jax.lax.top_k(best_BTN, sigmoid.num_chosen_groups)[1]
    own_BTN = jax.nn.one_hot(own_BTn, groups, dtype=bool).any(axis=-2)
    among_BTE = jnp.where(own_BTN[..., None], grouped_BTNE, -jnp.inf).reshape(corrected_BTE.shape)
    _, chosen_BTJ = jax.lax.top_k(among_BTE, num_chosen)
    weights_BTJ = jax.nn.sigmoid(jnp.take_along_axis(logits_BTE, chosen_BTJ, axis=-1))
    if normalised:
        weights_BTJ /= weights_BTJ.sum(axis=-1, keepdims=True) + 1e-20
    return weights_BTJ * sigmoid.scale, chosen_BTJ


# ---- the experts ----------------------------------------------------------------------------------------------------

AXES = {
    "gate": {"kernel": "experts _ mlp", "bias": "experts mlp"},
    "up": {"kernel": "experts _ mlp", "bias": "experts mlp"},
    "down": {"kernel": "experts mlp _"},
}
"""The logical axes of the experts' layers as they are multiplied: whole along the width."""


def mixture(
    expert: Callable[..., jax.Array], layers: Any, x_BTD: jax.Array, weights_BTJ: jax.Array, chosen_BTJ: jax.Array
) -> jax.Array:
    """The weighted sum [B, T, D] of what its experts make of each token.

    On a mesh each device has its own rows and experts: it gathers the rows of the devices that share the tokens of its
    experts' group, computes those pairs whose expert it has, and the sums go back to where the rows came from. So each
    device holds pairs for all of the gathered rows, in case that all choose its experts.

    Args:
        expert: (dense, layers of one expert, x_PD) -> y_PD; `dense` multiplies by a layer.
        layers: those of all experts, [E, ...], by the names in `AXES`.
    """
    mesh, axis = jax.sharding.get_abstract_mesh(), sharding.MESH_RULES["experts"]
    if mesh.empty:
        return _mixture(expert, layers, x_BTD, weights_BTJ, chosen_BTJ, 0)
    rows = sharding.fitting("batch length _", x_BTD.shape, mesh)
    specs = {
        name: {part: sharding.spec(AXES[name][part], x.shape, mesh) for part, x in layer.items()}
        for name, layer in layers.items()
    }
    in_batch = axis in (rows[0] if isinstance(rows[0], tuple) else (rows[0],))
    inside = [name for name in (sharding.MESH_RULES["mlp"],) if mesh.shape.get(name, 1) > 1]

    def on_one_device(layers: Any, *tokens: jax.Array) -> jax.Array:
        first = 0
        if mesh.shape.get(axis, 1) > 1:
            first = jax.lax.axis_index(axis) * len(layers["gate"]["kernel"])
        if in_batch:
            tokens = [jax.lax.all_gather(x, axis, tiled=True) for x in tokens]
        y_BTD = _mixture(expert, layers, *tokens, first)
        if in_batch:
            y_BTD = jax.lax.psum_scatter(y_BTD, axis, tiled=True)
        elif mesh.shape.get(axis, 1) > 1:
            y_BTD = jax.lax.psum(y_BTD, axis)
        return jax.lax.psum(y_BTD, inside) if inside else y_BTD

    return jax.shard_map(on_one_device, in_specs=(specs, rows, rows, rows), out_specs=rows, check_vma=False)(
        layers, x_BTD, weights_BTJ, chosen_BTJ
    )


def _mixture(
    expert: Callable[..., jax.Array], layers: Any, x_BTD: jax.Array, weights_BTJ: jax.Array, chosen_BTJ: jax.Array,
    first: Any,
) -> jax.Array:  # fmt: skip
    """The part of `mixture` by the experts from number `first` on."""
    (*_, D), J, E = x_BTD.shape, chosen_BTJ.shape[-1], len(layers["gate"]["kernel"])
    expert_P = chosen_BTJ.reshape(-1) - first
    expert_P = jnp.where((expert_P >= 0) & (expert_P < E), expert_P, E)  # other devices' are sorted to the end
    order_P, inverse_P, sizes_E = sorted_by_expert(expert_P, E)
    rows_PD = permuted(jnp.repeat(x_BTD.reshape(-1, D), J, axis=0), order_P, inverse_P)
    multiply = ragged if sharding.platform() == "tpu" else tiled
    results_PD = permuted(multiply(expert, layers, rows_PD, sizes_E), inverse_P, order_P)
    results_BTJD = results_PD.reshape(*chosen_BTJ.shape, D).astype(weights_BTJ.dtype)
    return jnp.einsum("BTJD,BTJ->BTD", results_BTJD, weights_BTJ).astype(x_BTD.dtype)


def sorted_by_expert(expert_P: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pairs by the number of their expert, those of one expert in their order: the pair at each place, the place of
    each pair, and the number of pairs of each expert, int32 [P], [P] and [E].

    By counting: of a sort, the program for a TPU takes longer to compile the more pairs there are (of 65,536, eight
    times as long).

    Args:
        expert_P: from 0 to E; the pairs with E are the last.
    """
    at_EP = expert_P == jnp.arange(num_experts + 1)[:, None]
    count_EP = jnp.cumsum(at_EP, axis=1, dtype=jnp.int32)
    sizes_E = count_EP[:, -1]
    first_E = jnp.cumsum(sizes_E) - sizes_E
    place_P = jnp.where(at_EP, first_E[:, None] + count_EP - 1, 0).sum(axis=0)
    pairs_P = jnp.arange(len(expert_P), dtype=jnp.int32)
    order_P = jnp.zeros_like(pairs_P).at[place_P].set(pairs_P, unique_indices=True)
    return order_P, place_P, sizes_E[:-1]


@jax.custom_vjp
def permuted(x_PD: jax.Array, order_P: jax.Array, inverse_P: jax.Array) -> jax.Array:
    """Rows in another order. The backward pass reads rows too, in place of a scatter, whose sums a GPU would add up in
    an order of its own each time."""
    return x_PD[order_P]


permuted.defvjp(
    lambda x_PD, order_P, inverse_P: (x_PD[order_P], inverse_P), lambda inverse_P, g_PD: (g_PD[inverse_P], None, None)
)


def ragged(expert: Callable[..., jax.Array], layers: Any, x_PD: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """What the experts make of rows that are sorted by expert, of which each has so many, by `jax.lax.ragged_dot`. Rows
    behind those of the last expert become zero."""
    row_P1 = jnp.arange(len(x_PD))[:, None]
    expert_P = (row_P1 >= jnp.cumsum(sizes_E)).sum(axis=1)

    def dense(layer: Mapping[str, jax.Array], x_PD: jax.Array) -> jax.Array:
        y_PD = jax.lax.ragged_dot(x_PD, layer["kernel"], sizes_E)
        return y_PD if "bias" not in layer else y_PD + jnp.take(layer["bias"], expert_P, axis=0, mode="clip")

    return jnp.where(row_P1 < sizes_E.sum(), expert(dense, layers, x_PD), 0)


def _dense(layer: Mapping[str, jax.Array], x_PD: jax.Array) -> jax.Array:
    y_PD = x_PD @ layer["kernel"]
    return y_PD if "bias" not in layer else y_PD + layer["bias"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tiled(expert: Callable[..., jax.Array], layers: Any, x_PD: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """As `ragged`, tile by tile of the rows of an expert: the work is that of the rows that there are, and half a tile
    an expert. The backward pass computes each tile again, so that only the rows are kept."""
    size, count, tile_of = _tiles(x_PD, sizes_E)
    x_PD, rows = jnp.pad(x_PD, ((0, size), (0, 0))), len(x_PD)

    def step(i: jax.Array, y_PD: jax.Array) -> jax.Array:
        e, start, _ = tile_of(i)
        # What a tile writes behind the rows of its expert, the next one writes again.
        y_tD = expert(_dense, _at(layers, e), jax.lax.dynamic_slice_in_dim(x_PD, start, size))
        return jax.lax.dynamic_update_slice_in_dim(y_PD, y_tD, start, axis=0)

    y_PD = jax.lax.fori_loop(0, count, step, jnp.zeros_like(x_PD))[:rows]
    return jnp.where(jnp.arange(rows)[:, None] < sizes_E.sum(), y_PD, 0)


def _tiles(x_PD: jax.Array, sizes_E: jax.Array) -> tuple[int, jax.Array, Callable[[jax.Array], Any]]:
    """The rows of a tile, the number of tiles, and a function: number of a tile -> its expert, its first row, and how
    many rows the expert has from there on."""
    mean = -(-x_PD.shape[0] // sizes_E.shape[0])
    size = min(1 << (mean - 1).bit_length(), LARGEST_TILE)
    tiles_E = -(-sizes_E // size)
    last_E, end_E = jnp.cumsum(tiles_E), jnp.cumsum(sizes_E)

    def tile_of(i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        e = (last_E <= i).sum()
        start = end_E[e] - sizes_E[e] + (i - last_E[e] + tiles_E[e]) * size
        return e, start, end_E[e] - start

    return size, last_E[-1], tile_of


def _at(layers: Any, e: jax.Array) -> Any:
    """The layers of one expert."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, e, keepdims=False), layers)


def _tiled_forward(expert: Callable[..., jax.Array], layers: Any, x_PD: jax.Array, sizes_E: jax.Array) -> tuple:
    return tiled(expert, layers, x_PD, sizes_E), (layers, x_PD, sizes_E)


def _tiled_backward(expert: Callable[..., jax.Array], kept: tuple, g_PD: jax.Array) -> tuple:
    layers, x_PD, sizes_E = kept
    size, count, tile_of = _tiles(x_PD, sizes_E)
    rows, (x_PD, g_PD) = x_PD.shape[0], (jnp.pad(x, ((0, size), (0, 0))) for x in (x_PD, g_PD))

    def step(i: jax.Array, gradients: Any) -> Any:
        dx_PD, d_layers = gradients
        e, start, left = tile_of(i)
        x_tD, g_tD = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in (x_PD, g_PD))
        g_tD = jnp.where(jnp.arange(size)[:, None] < left, g_tD, 0)
        _, backward = jax.vjp(functools.partial(expert, _dense), _at(layers, e), x_tD)
        d_layer, dx_tD = backward(g_tD)
        add = lambda total, d: jax.lax.dynamic_update_index_in_dim(total, _at(total, e) + d, e, 0)
        return jax.lax.dynamic_update_slice_in_dim(dx_PD, dx_tD, start, axis=0), jax.tree.map(add, d_layers, d_layer)

    wide = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), layers)
    dx_PD, d_layers = jax.lax.fori_loop(0, count, step, (jnp.zeros_like(x_PD), wide))
    return jax.tree.map(lambda d, x: d.astype(x.dtype), d_layers, layers), dx_PD[:rows], None


tiled.defvjp(_tiled_forward, _tiled_backward)
