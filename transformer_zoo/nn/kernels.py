"""Scaled dot-product attention: implementations of one function, of which the plain one is the reference."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from transformer_zoo import installation, sharding, trees
from transformer_zoo.nn.compute import soft_cap, wide_einsum
from transformer_zoo.nn.masks import Mask


def attend(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    *,
    mask: Mask | None = None,
    bias: jax.Array | None = None,
    scale: Any = 1.0,
    cap: float | None = None,
    sinks_H: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Attention [B, T, H, K] of H query heads over G key and value heads (G divides H).

    `cap` and `sinks_H` are as in `weights`. `auto` uses the platform's fused kernel if it supports the arguments and
    the shapes, and the plain `xla` otherwise. The platform is that of the current mesh, which may be one to compile
    for.

    Keys may have fewer rows than queries: a source, for example, that several beams attend to. Each row of keys then
    serves an equal number of consecutive rows of queries.

    Raises:
        ValueError: an unknown implementation, or one that does not support these arguments.
    """
    mask = mask or Mask()
    if (rows := len(k_BSGK)) != len(q_BTHK):
        shape = M, T, H, K = q_BTHK.shape
        seen = mask.dense(T, S := k_BSGK.shape[1])
        if seen is not None and len(seen) == M:
            seen_BTS = jnp.broadcast_to(seen, (M, 1, T, S)).reshape(rows, -1, S)
            mask = Mask(offset=mask.offset, seen_BTS=seen_BTS)
        if bias is not None and len(bias) == M:
            bias = jnp.swapaxes(bias.reshape(rows, -1, *bias.shape[1:]), 1, 2).reshape(rows, H, -1, S)
        kwargs = {"mask": mask, "bias": bias, "scale": scale, "cap": cap, "sinks_H": sinks_H}
        kwargs["implementation"] = implementation
        return attend(q_BTHK.reshape(rows, -1, H, K), k_BSGK, v_BSGK, **kwargs).reshape(shape[:-1] + v_BSGK.shape[-1:])
    name = FUSED.get(sharding.platform(), "xla") if implementation == "auto" else implementation
    if name not in IMPLEMENTATIONS:
        hint = trees.nearest(name, IMPLEMENTATIONS)
        raise ValueError(f"attention {name!r} is not known: choose auto, {', '.join(IMPLEMENTATIONS)}.{hint}")
    if name != "xla" and (reason := _obstacle(name, q_BTHK, k_BSGK, v_BSGK, mask, bias, cap, sinks_H)) is not None:
        if implementation != "auto":
            raise ValueError(f"attention {name!r} cannot do this: {reason}. Choose 'auto' or 'xla'")
        if name == "splash" and reason == installation.outdated_libtpu():
            warnings.warn(f"attention is computed by 'xla' and not by the TPU's kernel: {reason}", stacklevel=2)
        name = "xla"
    kwargs = {"mask": mask, "bias": bias, "scale": scale, "cap": cap, "sinks_H": sinks_H}
    return IMPLEMENTATIONS[name](q_BTHK, k_BSGK, v_BSGK, **kwargs)


def weights(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    *,
    mask: Mask | None,
    bias: jax.Array | None,
    scale: Any,
    cap: float | None = None,
    sinks_H: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale * q k + bias) over the unmasked keys: [B, H, T, S], in at least float32. With a cap, the scores are
    pressed into (-cap, cap) before the softmax. Sinks are the scores of one more key of each head, whose value is zero:
    the weights of the others then add up to less than 1.

    A query whose keys are all masked gets finite weights, which no result depends on.
    """
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    dtype = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)  # R query heads to a group
    # The order of the axes decides what XLA copies on a CPU: of a single query nothing, neither its cached keys; of
    # several the queries, and not the scores.
    queries, q = ("BTGRK", q_BTGRK) if T == 1 else ("BGRTK", jnp.moveaxis(q_BTGRK, 1, 3))
    scores = wide_einsum(f"{queries},BSGK->BGRTS", q, k_BSGK, dtype).reshape(B, H, T, S)
    scores_BHTS = scores * scale if bias is None else scores * scale + bias
    scores_BHTS = soft_cap(scores_BHTS, cap)
    seen = None if mask is None else mask.dense(T, S)
    if seen is not None:
        # Added to the scores, as in published models: this decides the gradient of a query whose keys are all masked.
        scores_BHTS = scores_BHTS + jnp.where(seen, 0, jnp.finfo(dtype).min)
    if sinks_H is None:
        return jax.nn.softmax(scores_BHTS, axis=-1)
    sinks_BHT1 = jnp.broadcast_to(sinks_H.astype(dtype)[:, None, None], (B, H, T, 1))
    return jax.nn.softmax(jnp.concatenate([scores_BHTS, sinks_BHT1], axis=-1), axis=-1)[..., :-1]


def mix(weights_BHTS: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """The weighted sum of the values: [B, T, H, K]."""
    B, H, T, S = weights_BHTS.shape
    G, K = v_BSGK.shape[2:]
    weights_BGRTS = weights_BHTS.astype(v_BSGK.dtype).reshape(B, G, H // G, T, S)
    # In this order, a CPU reads the values of a single token's keys as they lie in the cache.
    y_BGRTK = jnp.einsum("BGRTS,BSGK->BGRTK", weights_BGRTS, v_BSGK)
    return jnp.moveaxis(y_BGRTK, 3, 1).reshape(B, T, H, K)


def plain(q_BTHK, k_BSGK, v_BSGK, *, mask, bias, scale, cap=None, sinks_H=None):
    """The definition, without a fused kernel."""
    return mix(weights(q_BTHK, k_BSGK, mask=mask, bias=bias, scale=scale, cap=cap, sinks_H=sinks_H), v_BSGK)


def cudnn(q_BTHK, k_BSGK, v_BSGK, *, mask, bias, scale, cap, sinks_H=None):
    """NVIDIA's fused attention. Conditions of the mask other than causality are passed as a matrix."""
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    causal = mask.causal and mask.window is None  # the reach of a window depends on causality
    seen = (mask.replace(causal=False) if causal else mask).dense(T, S)
    if seen is not None:
        seen = jnp.broadcast_to(seen, (len(seen), 1, T, S))  # cuDNN reads a matrix for each row or one for all
    return jax.nn.dot_product_attention(
        _scaled(q_BTHK, scale), k_BSGK, v_BSGK, mask=seen, is_causal=causal, scale=1.0, implementation="cudnn"
    )


def splash(q_BTHK, k_BSGK, v_BSGK, *, mask, bias, scale, cap, sinks_H=None):
    """The TPU's flash attention (Dao et al. 2022; JAX's Pallas kernel), which skips the blocks that a causal mask or a
    window hides.

    Documents and padding are passed as segment ids. On other platforms it is interpreted, slowly, for tests.
    """
    # A quarter of a second, which a process without a TPU need not wait for.
    from jax.experimental.pallas.ops.tpu import splash_attention

    B, T, H, _ = q_BTHK.shape
    # Square tiles of the largest size that divides T, at most 512: not every TPU's scratch memory holds more.
    tile = next(size for size in (512, 256, 128) if T % size == 0)
    blocks = splash_attention.BlockSizes(
        block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile, block_q_dq=tile, block_kv_dq=tile
    )
    documents_BT = jnp.zeros((B, T), jnp.int32) if mask.documents_BT is None else mask.documents_BT
    sources_BS = jnp.zeros((B, T), jnp.int32) if mask.documents_BS is None else mask.documents_BS
    if mask.valid_BS is not None:
        sources_BS = jnp.where(mask.valid_BS, sources_BS, -1)  # no query has this document
    segmented = mask.documents_BT is not None or mask.valid_BS is not None

    def on_one_device(q_BTHK, k_BSGK, v_BSGK, documents_BT, sources_BS, is_local):
        def run(structure: Any) -> jax.Array:
            kernel = splash_attention.make_splash_mha_single_device(
                splash_attention.MultiHeadMask([structure] * q_BTHK.shape[2]),
                block_sizes=blocks,
                attn_logits_soft_cap=cap,
                interpret=sharding.platform() != "tpu",
            )
            segments = splash_attention.SegmentIds(documents_BT, sources_BS) if segmented else None
            heads_first = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
            return jnp.swapaxes(jax.vmap(kernel)(*heads_first, segments), 1, 2)

        whole = (splash_attention.CausalMask if mask.causal else splash_attention.FullMask)((T, T))
        if mask.window is None:
            return run(whole)
        sides = (mask.reach, 0 if mask.causal else mask.reach)
        window = splash_attention.LocalMask((T, T), sides, offset=0)
        return jax.lax.cond(is_local, lambda: run(window), lambda: run(whole))

    arguments = (_scaled(q_BTHK, scale), k_BSGK, v_BSGK, documents_BT, sources_BS, jnp.asarray(mask.local))
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return on_one_device(*arguments)
    # The compiler cannot partition a kernel: every device runs it over its own rows and heads.
    heads = sharding.fitting("batch _ heads _", k_BSGK.shape, mesh)
    rows = PartitionSpec(heads[0])
    in_specs = (heads,) * 3 + (rows,) * 2 + (PartitionSpec(),)
    return jax.shard_map(on_one_device, in_specs=in_specs, out_specs=heads, check_vma=False)(*arguments)


def _scaled(q_BTHK: jax.Array, scale: Any) -> jax.Array:
    """The queries times the scale: kernels need a constant scale, and ours may differ by layer."""
    return (q_BTHK * scale).astype(q_BTHK.dtype)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {"xla": plain, "cudnn": cudnn, "splash": splash}
FUSED = {"tpu": "splash", "gpu": "cudnn"}  # the fastest of each platform


def _obstacle(
    name: str, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, bias: Any, cap: float | None,
    sinks_H: Any,
) -> str | None:  # fmt: skip
    """Why a fused implementation does not support these arguments; None if it does."""
    (_, T, _, K), S, dtype, platform = q_BTHK.shape, k_BSGK.shape[1], q_BTHK.dtype, sharding.platform()
    if bias is not None:
        return "it supports no bias"
    if sinks_H is not None:
        return "it supports no sinks"
    if not (isinstance(mask.offset, int) and mask.offset == 0):
        return "it supports no cache: the first query and the first key must have the same position"
    if jax.sharding.get_abstract_mesh().shape.get(sharding.MESH_RULES["length"], 1) > 1:
        return "the length is divided over devices"
    if name == "splash":
        if platform == "gpu":
            return "it is made for TPUs"
        if T != S or T % 128:
            return f"it needs as many queries as keys, a multiple of 128, and there are {T} and {S}"
        if dtype not in (jnp.float32, jnp.bfloat16):
            return f"it computes in float32 or bfloat16, and this is {dtype}"
        if platform == "tpu":
            return installation.outdated_libtpu()
    if name == "cudnn":
        if cap is not None:
            return "it supports no cap of the scores"
        # NVIDIA's are numbers such as "8.0"; other makers' GPUs have other words.
        capability = str(getattr(jax.local_devices()[0], "compute_capability", None)) if platform == "gpu" else platform
        if not re.fullmatch(r"\d+\.\d+", capability) or float(capability) < 8:
            return f"it needs an NVIDIA GPU of compute capability 8.0 (Ampere) or later, and this is {capability}"
        if dtype not in (jnp.float16, jnp.bfloat16):
            return f"it computes in float16 or bfloat16, and this is {dtype}"
        if (V := v_BSGK.shape[-1]) != K:
            return f"heads must be of one size, and it has keys of {K} and values of {V} elements"
        if K % 8 or K > 128:
            return f"the size of a head must be a multiple of 8, at most 128, and is {K}"
        matrix = any(x is not None for x in (mask.valid_BS, mask.documents_BT, mask.window))
        if matrix and (T % 2 or S % 2):
            return f"with a matrix of the mask it needs even numbers of queries and keys, and there are {T} and {S}"
    return None
