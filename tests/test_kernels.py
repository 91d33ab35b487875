"""Every implementation of attention against the plain one, forward and backward, and the choice of one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tpu_compiler

from transformer_zoo import fit, installation, sharding
from transformer_zoo.models import mpnet
from transformer_zoo.nn import Compute, disentangled, kernels
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.positions import distances, relative_buckets
from transformer_zoo.published import deberta_layout

B, T, H, K = 2, 384, 4, 16  # three tiles of splash in a row


attend = jax.jit(kernels.attend, static_argnames=("cap", "scale", "implementation"))


def inputs(kv_heads=H, dtype=np.float32, length=T, head_dim=K):
    """Queries, keys and values, as numpy's arrays: jax compiles a program for each shape that it draws."""
    rng = np.random.default_rng(0)
    shapes = ((B, length, H, head_dim), *[(B, length, kv_heads, head_dim)] * 2)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def documents():
    """Two documents and padding in one row, five documents in the other."""
    ends = np.array([[100, 330, 384, 384, 384], [10, 128, 129, 300, 384]])
    documents_BT = 1 + (np.arange(T)[None, :, None] >= ends[:, None, :]).sum(-1)
    documents_BT[0, 330:] = 0
    return documents_BT.astype(np.int32)


RIGHT = np.arange(T) < np.array([[T], [250]])
LEFT = np.arange(T) >= np.array([[0], [77]])
MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "packed": Mask(causal=True, documents_BT=documents(), documents_BS=documents()),
    "right-padded": Mask(causal=True, valid_BS=RIGHT),
    "left-padded": Mask(causal=True, valid_BS=LEFT),
    "encoder": Mask(valid_BS=RIGHT),
    "packed and padded": Mask(valid_BS=RIGHT, documents_BT=documents(), documents_BS=documents()),
    "window": Mask(window=100),
    "causal window": Mask(causal=True, window=100),
    "padded window": Mask(window=50, valid_BS=LEFT, documents_BT=documents(), documents_BS=documents()),
    "window of another layer": Mask(window=100, valid_BS=RIGHT, local=np.asarray(False)),
}


@functools.partial(jax.jit, static_argnums=0, static_argnames="cap")
def compiled(implementation, mask, direction, *arguments, cap=None):
    mask = mask.replace(offset=0)  # a number and no argument: kernels support no other
    dense = mask.dense(T, T)
    sees_BT = jnp.ones((B, T), bool) if dense is None else jnp.broadcast_to(dense.any(-1)[:, 0], (B, T))

    def function(q, k, v, scale):
        y_BTHK = kernels.attend(q, k, v, mask=mask, scale=scale, cap=cap, implementation=implementation)
        y_BTHK = jnp.where(sees_BT[..., None, None], y_BTHK, 0)
        return (y_BTHK * direction).sum(), y_BTHK

    gradients, y_BTHK = jax.grad(function, (0, 1, 2, 3), has_aux=True)(*arguments)
    return y_BTHK, *gradients


def outputs_and_gradients(implementation, mask, *arguments, cap=None):
    """Outputs at queries that see a key, and gradients in a random direction, as numpy's arrays in float32."""
    direction = np.random.default_rng(1).standard_normal((B, T, H, K)).astype(np.float32)
    return [np.asarray(x, np.float32) for x in compiled(implementation, mask, direction, *arguments, cap=cap)]


def close(actual, expected, tolerance):
    *arrays, d_scale = zip(actual, expected, strict=True)
    for a, e in arrays:
        assert np.linalg.norm(a - e) < tolerance * np.linalg.norm(e)
    # The gradient of the scale is the sum of q * dq, whose terms cancel.
    assert abs(d_scale[0] - d_scale[1]) < tolerance * np.linalg.norm(expected[1]) * (B * T * H * K) ** 0.5


@pytest.mark.parametrize("name", MASKS)
def test_splash_is_the_plain_one(name):
    """The scale is traced: GPT-2's may differ by layer."""
    arguments = (*inputs(), np.float32(0.3))
    actual, expected = (
        outputs_and_gradients(implementation, MASKS[name], *arguments) for implementation in ("splash", "xla")
    )
    close(actual, expected, 2e-6)


def test_splash_with_grouped_queries():
    arguments = (*inputs(1), np.float32(0.125))
    actual, expected = (outputs_and_gradients(which, MASKS["packed"], *arguments) for which in ("splash", "xla"))
    close(actual, expected, 2e-6)


def test_splash_with_a_soft_cap():
    arguments, mask = (*inputs(1), np.float32(0.3)), MASKS["causal window"]
    actual, expected = (outputs_and_gradients(which, mask, *arguments, cap=1.5) for which in ("splash", "xla"))
    close(actual, expected, 2e-6)
    assert np.linalg.norm(expected[0] - outputs_and_gradients("xla", mask, *arguments)[0]) > 0.1


def test_sinks_are_scores_of_a_key_without_a_value():
    """Also for a query that sees no key, and for several rows of queries to a row of keys."""
    q, k, v = (np.random.default_rng(0).normal(size=(2, 5, heads, 3)).astype(np.float32) for heads in (4, 2, 2))
    sinks_H, seen = np.array([-2.0, 0.0, 1.0, 9.0], np.float32), np.tri(5, dtype=bool) & (np.arange(5) > 0)
    scores_BHTS = 0.3 * np.einsum("bthk,bshk->bhts", q, np.repeat(k, 2, axis=2))
    weights = np.where(seen, np.exp(scores_BHTS), 0)
    weights /= weights.sum(axis=-1, keepdims=True) + np.exp(sinks_H)[:, None, None]
    expected = np.einsum("bhts,bshk->bthk", weights, np.repeat(v, 2, axis=2))
    mask = Mask(causal=True, valid_BS=np.broadcast_to(np.arange(5) > 0, (2, 5)))
    np.testing.assert_allclose(attend(q, k, v, mask=mask, scale=0.3, sinks_H=sinks_H), expected, atol=1e-6)
    pairs = attend(q, k[:1], v[:1], scale=0.3, sinks_H=sinks_H)
    alone = attend(q[1:], k[:1], v[:1], scale=0.3, sinks_H=sinks_H)
    np.testing.assert_allclose(pairs[1:], alone, rtol=1e-6)


def test_a_soft_cap_presses_scores_before_the_mask():
    q, k, v = inputs()
    mask, cap = Mask(causal=True), 0.7
    scores_BHTS = np.einsum("BTHK,BSHK->BHTS", q, k, dtype=np.float64) * 0.3
    weights = np.where(np.tri(T, dtype=bool), np.exp(cap * np.tanh(scores_BHTS / cap)), 0)
    expected = np.einsum("BHTS,BSHK->BTHK", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(attend(q, k, v, mask=mask, scale=0.3, cap=cap), expected, atol=1e-5)
    # Two rows of queries over one of keys.
    pairs = attend(q, k[:1], v[:1], scale=0.3, cap=cap)
    alone = attend(q[1:2], k[:1], v[:1], scale=0.3, cap=cap)
    np.testing.assert_allclose(pairs[1:2], alone, atol=1e-5)


def test_splash_in_bfloat16_is_as_near_to_the_truth_as_the_plain_one():
    scale, mask = np.float32(0.125), MASKS["causal"]
    truth = outputs_and_gradients("xla", mask, *(x.astype(np.float32) for x in inputs(dtype=jnp.bfloat16)), scale)[0]
    error = {
        name: np.linalg.norm(outputs_and_gradients(name, mask, *inputs(dtype=jnp.bfloat16), scale)[0] - truth)
        for name in ("xla", "splash")
    }
    assert error["splash"] < 1.5 * error["xla"]


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}], ids=str)
def test_splash_on_a_mesh(sizes):
    """Rows and heads are divided where the mesh divides them: here 2 rows, 2 heads of keys."""
    arguments = (*inputs(2), np.float32(0.125))
    expected = outputs_and_gradients("xla", MASKS["packed"], *arguments)
    with jax.set_mesh(sharding.make_mesh(**sizes)):
        close(outputs_and_gradients("splash", MASKS["packed"], *arguments), expected, 2e-6)


def test_what_a_window_shows():
    """With a causal mask the last keys, its own included; else half of the window on each side; at any slot."""
    i, j = np.arange(6)[:, None] + 3, np.arange(12)
    near = {True: (i - 4 < j) & (j <= i), False: abs(i - j) <= 2}
    for causal, expected in near.items():
        mask = Mask(causal=causal, window=4, offset=3)
        dense = jax.jit(lambda mask: mask.dense(6, 12)[0, 0])
        np.testing.assert_array_equal(dense(mask), expected)
        all_keys = dense(mask.replace(local=np.asarray(False)))
        np.testing.assert_array_equal(all_keys, dense(mask.replace(window=None)) if causal else True)


def compiled_for_tpu(function, *shapes, sizes=None):
    """A function compiled by the TPU compiler."""
    mesh = sharding.make_mesh(**(sizes or {"fsdp": 4}), devices=fit.topology_devices("v5e:2x2"))
    places = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)) for x in shapes]
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*places).compile().as_text()


@tpu_compiler
@pytest.mark.parametrize("length, head_dim, value_dim", [(384, 64, 64), (1024, 192, 128)])
def test_splash_compiles_for_a_tpu(length, head_dim, value_dim):
    """Forward and backward, with grouped queries, documents and padding: the program has all kernels."""

    def function(q, k, v, documents_BT, valid_BS):
        mask = Mask(causal=True, valid_BS=valid_BS, documents_BT=documents_BT, documents_BS=documents_BT)
        return kernels.attend(q, k, v, mask=mask, scale=0.125).astype(jnp.float32).sum()

    sizes = [(4, head_dim), (2, head_dim), (2, value_dim)]
    arguments = [jax.ShapeDtypeStruct((4, length, *size), jnp.bfloat16) for size in sizes]
    rows = [jax.ShapeDtypeStruct((4, length), dtype) for dtype in (jnp.int32, jnp.bool_)]
    text = compiled_for_tpu(jax.grad(function, (0, 1, 2)), *arguments, *rows)
    assert len(re.findall(r'custom_call_target="tpu_custom_call"', text)) == 3  # forward, dq, dk and dv


@tpu_compiler
def test_windows_that_differ_by_layer_compile_for_a_tpu():
    """Both kernels are in the program, and a layer runs one."""

    def function(q, k, v, local):
        return kernels.attend(q, k, v, mask=Mask(window=128, local=local), scale=0.125).astype(jnp.float32).sum()

    arguments = [jax.ShapeDtypeStruct((4, 1024, 4, 64), jnp.bfloat16)] * 3
    text = compiled_for_tpu(jax.grad(function, (0, 1, 2)), *arguments, jax.ShapeDtypeStruct((), jnp.bool_))
    assert len(re.findall(r'custom_call_target="tpu_custom_call"', text)) == 6  # forward, dq, dk and dv


REFUSED = {
    "bias": ({"bias": np.zeros((1, H, T, T), np.float32)}, "no bias"),
    "cache": ({"mask": Mask(causal=True, offset=np.asarray(0))}, "no cache"),
    "offset": ({"mask": Mask(causal=True, offset=3)}, "no cache"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
def test_what_a_kernel_cannot_do_is_refused_by_implementationand_done_by_auto(implementation, name, monkeypatch):
    arguments, reason = REFUSED[name]
    with pytest.raises(ValueError, match=f"attention '{implementation}' cannot do this: .*{reason}"):
        kernels.attend(*inputs(), **arguments, implementation=implementation)
    expected = kernels.plain(*inputs(), **({"mask": None, "bias": None, "scale": 1.0} | arguments))
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    np.testing.assert_array_equal(kernels.attend(*inputs(), **arguments), expected)


def test_values_of_another_size_than_keys(monkeypatch: pytest.MonkeyPatch):
    """As of latent attention: cuDNN needs one size, and splash does not."""
    q, k, v = inputs(dtype=jnp.bfloat16, length=128)
    v = v[..., :8]
    with pytest.raises(ValueError, match="keys of 16 and values of 8 elements"):
        gpu(monkeypatch, "9.0")
        kernels.attend(q, k, v, implementation="cudnn")
    monkeypatch.undo()
    wide = [x.astype(np.float32) for x in (q, k, v)]
    expected, found = (kernels.attend(*wide, mask=Mask(causal=True), implementation=name) for name in ("xla", "splash"))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_more_that_splash_refuses():
    with pytest.raises(ValueError, match="a multiple of 128, and there are 100 and 100"):
        kernels.attend(*inputs(length=100), implementation="splash")
    with pytest.raises(ValueError, match="float32 or bfloat16, and this is float16"):
        kernels.attend(*inputs(dtype=jnp.float16), implementation="splash")
    with jax.set_mesh(sharding.make_mesh(data=2, sequence=4)), pytest.raises(ValueError, match="length is divided"):
        kernels.attend(*inputs(), implementation="splash")


def test_more_that_cudnn_refuses(monkeypatch):
    with pytest.raises(ValueError, match="needs an NVIDIA GPU .* and this is cpu"):
        kernels.attend(*inputs(dtype=jnp.bfloat16), implementation="cudnn")
    with pytest.raises(ValueError, match="no sinks"):
        kernels.attend(*inputs(), sinks_H=np.zeros(4), implementation="splash")
    with pytest.raises(ValueError, match="no cap of the scores"):
        kernels.attend(*inputs(dtype=jnp.bfloat16), cap=50.0, implementation="cudnn")
    gpu(monkeypatch, "7.5")
    with pytest.raises(ValueError, match="compute capability 8.0 .* and this is 7.5"):
        kernels.attend(*inputs(dtype=jnp.bfloat16), implementation="cudnn")
    gpu(monkeypatch, "gfx90a")
    with pytest.raises(ValueError, match="NVIDIA GPU .* and this is gfx90a"):
        kernels.attend(*inputs(dtype=jnp.bfloat16), implementation="cudnn")
    gpu(monkeypatch, "9.0")
    with pytest.raises(ValueError, match="float16 or bfloat16, and this is float32"):
        kernels.attend(*inputs(), implementation="cudnn")
    with pytest.raises(ValueError, match="at most 128, and is 160"):
        kernels.attend(*inputs(dtype=jnp.bfloat16, head_dim=160), implementation="cudnn")
    with pytest.raises(ValueError, match="even numbers of queries and keys, and there are 383 and 383"):
        odd = inputs(dtype=jnp.bfloat16, length=383)
        kernels.attend(*odd, mask=Mask(valid_BS=RIGHT[:, :383]), implementation="cudnn")


def test_an_unknown_implementation():
    with pytest.raises(ValueError, match="attention 'splush' is not known: .* Did you mean 'splash'?"):
        kernels.attend(*inputs(), implementation="splush")


def gpu(monkeypatch, capability):
    """Makes the program believe that it runs on a GPU."""
    device = type("Device", (), {"compute_capability": capability})()
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])


@pytest.mark.parametrize(
    "capability, dtype, chosen",
    [
        ("8.0", jnp.bfloat16, "cudnn"),
        ("12.0", jnp.float16, "cudnn"),
        ("9.0", jnp.float32, "xla"),
        ("7.5", jnp.float16, "xla"),
    ],
)
def test_auto_on_a_gpu(monkeypatch, capability, dtype, chosen):
    gpu(monkeypatch, capability)
    called = []
    for name in kernels.IMPLEMENTATIONS:
        monkeypatch.setitem(kernels.IMPLEMENTATIONS, name, lambda q, *args, name=name, **kw: called.append(name) or q)
    kernels.attend(*inputs(dtype=dtype), mask=MASKS["packed"])
    assert called == [chosen]


def test_auto_on_a_tpu_whose_compiler_is_too_old_for_kernels(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    monkeypatch.setattr(installation, "outdated_libtpu", lambda: "libtpu 0.0.21.1 is older than 0.0.23")
    expected = kernels.plain(*inputs(), mask=MASKS["packed"], bias=None, scale=1.0)
    with pytest.warns(UserWarning, match="by 'xla' and not by the TPU's kernel: libtpu 0.0.21.1 is older"):
        np.testing.assert_array_equal(kernels.attend(*inputs(), mask=MASKS["packed"]), expected)
    with pytest.raises(ValueError, match="'splash' cannot do this: libtpu 0.0.21.1 is older .* Choose 'auto' or 'xla'"):
        kernels.attend(*inputs(), implementation="splash")


def test_auto_on_a_cpu_is_the_plain_one():
    expected = kernels.plain(*inputs(), mask=MASKS["packed"], bias=None, scale=0.125)
    np.testing.assert_array_equal(kernels.attend(*inputs(), mask=MASKS["packed"], scale=0.125), expected)


@pytest.mark.parametrize("name", MASKS)
def test_what_cudnn_is_asked_for(monkeypatch, name):
    """There is no such GPU here: `jax.nn.dot_product_attention` computes with its reference implementation."""
    asked = {}
    reference = jax.nn.dot_product_attention

    def fused(q, k, v, **how):
        asked.update(how)
        return reference(q, k, v, **how | {"implementation": "xla"})

    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    monkeypatch.setattr(kernels, "_obstacle", lambda *_: None)
    arguments = (*inputs(2), np.float32(0.3))
    compiled.clear_cache()  # a program that is there already would ask for nothing
    actual, expected = (outputs_and_gradients(which, MASKS[name], *arguments) for which in ("cudnn", "xla"))
    close(actual, expected, 2e-6)
    causal = MASKS[name].causal and MASKS[name].window is None
    assert asked["implementation"] == "cudnn" and asked["is_causal"] == causal
    if name in ("all", "causal"):
        assert asked["mask"] is None
    else:  # cuDNN broadcasts over rows and heads only
        assert asked["mask"].shape in [(1, 1, T, T), (B, 1, T, T)]


def test_grouped_queries_share_keys_and_values():
    """As if keys and values were repeated for each of a group's consecutive heads; their gradients add up."""
    q, k, v = inputs(kv_heads=2, length=12)
    direction = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)

    def function(q, k, v):
        y_BTHK = kernels.attend(q, k, v, mask=Mask(causal=True), scale=0.2)
        return (y_BTHK * direction).sum(), y_BTHK

    compiled = jax.jit(jax.grad(function, (0, 1, 2), has_aux=True))
    gradients, y_BTHK = compiled(q, k, v)
    (by_q, *others), expected = compiled(q, *(np.repeat(x, 2, axis=2) for x in (k, v)))
    others = [np.reshape(x, (*x.shape[:2], 2, 2, K)).sum(axis=3) for x in others]
    for actual, other in zip((y_BTHK, *gradients), (expected, by_q, *others), strict=True):
        np.testing.assert_allclose(actual, other, rtol=1e-5, atol=1e-5)


def test_scores_and_softmax_of_bfloat16_are_of_float32():
    q, k, _ = inputs(dtype=jnp.bfloat16, length=64)
    weights_BHTS = jax.jit(lambda q, k: kernels.weights(q, k, mask=Mask(causal=True), bias=None, scale=0.5))(q, k)
    assert weights_BHTS.dtype == jnp.float32
    q, k = (np.asarray(x, np.float64) for x in (q, k))
    scores_BHTS = np.where(np.tri(64, dtype=bool), 0.5 * np.einsum("BTHK,BSHK->BHTS", q, k), -np.inf)
    expected = np.exp(scores_BHTS - scores_BHTS.max(-1, keepdims=True))
    np.testing.assert_allclose(weights_BHTS, expected / expected.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_biases_of_mpnet_by_distance():
    """In a row longer than the farthest distance that has a bucket of its own: 128, and half of 32 buckets a side."""
    model = mpnet.Model(mpnet.Config(width=8, num_heads=2, num_layers=1, mlp_dim=4, vocab_size=9))
    table_RH = np.random.default_rng(0).standard_normal((32, 2)).astype(np.float32)
    params = {"relative_bias": {"embedding": table_RH}}
    read = lambda model, ahead_BTS: model.relative_bias(ahead_BTS)
    bias_HTT = jax.jit(lambda params: model.apply({"params": params}, distances(200), method=read)[0])(params)
    behind = np.arange(200) - np.arange(200)[:, None]
    bucket_TT = np.searchsorted(STARTS, abs(behind), side="right") - 1 + 16 * (behind > 0)
    np.testing.assert_array_equal(bias_HTT, table_RH[bucket_TT].transpose(2, 0, 1))


@pytest.mark.parametrize("terms", deberta_layout.TERMS)
def test_scores_of_deberta_are_scaled_by_their_number(terms):
    """By 1/sqrt(K (1 + terms)): that of contents counts too. With a table of zeros it is all that there is."""
    attention = disentangled.DisentangledAttention(2, 3, Compute(), terms=terms)
    x_BTD, table_RD = np.random.default_rng(0).standard_normal((2, 5, 6)), np.zeros((16, 6), np.float32)
    read = lambda attention, x_BTD: attention(x_BTD, attention.keys_values(x_BTD), table_RD, mask=Mask())
    # The parameters are drawn by the same program.
    both = functools.partial(attention.init_with_output, method=read, mutable=["params", "intermediates"])
    _, sown = jax.jit(both)(jax.random.key(1), x_BTD.astype(np.float32))
    (q_BTHK,), (k_BSHK,), (weights_BHTS,) = (
        sown["intermediates"][name] for name in ("queries_BTHK", "keys_BSGK", "weights_BHTS")
    )
    count = 1 + len(terms.split("|")) if terms else 1
    shares_BHTS = np.exp(np.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK) / (3 * count) ** 0.5)
    np.testing.assert_allclose(weights_BHTS, shares_BHTS / shares_BHTS.sum(-1, keepdims=True), rtol=1e-5)


# The first distance in each bucket, worked out by hand: 8 * 16 ** (k / 8), rounded up.
STARTS = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]


def test_buckets_of_distances():
    distances = np.arange(200)
    bucket_R = relative_buckets(200, 32, 128)
    before, behind = bucket_R[199::-1], bucket_R[199:]
    np.testing.assert_array_equal(before, np.searchsorted(STARTS, distances, side="right") - 1)
    np.testing.assert_array_equal(behind[1:], before[1:] + 16)


def test_rows_that_share_keys():
    """As with repeated keys: the mask is each query's or that of the keys, a bias likewise."""
    N, S, M, draw = 3, 40, 3 * B, np.random.default_rng(0)
    q_MTHK, k_BSGK, v_BSGE = (draw.normal(size=size) for size in ((M, 1, H, K), (B, S, 2, K), (B, S, 2, 5)))
    valid_MS, bias_MHTS = draw.random((M, S)) < 0.6, draw.normal(size=(M, H, 1, S))
    own = Mask(
        causal=True, offset=draw.integers(20, S, M), valid_BS=valid_MS, window=9, ahead_BTS=distances(S)[:, 17:18]
    )
    repeated = lambda x: np.repeat(x, N, axis=0)
    with jax.enable_x64(True):
        for mask, whole in (
            (None, None),
            (Mask(valid_BS=valid_MS[:B]), Mask(valid_BS=repeated(valid_MS[:B]))),
            (own, own),
        ):
            for bias, cap in ((None, None), (bias_MHTS, None), (bias_MHTS[:1], 1.5)):
                given = {"bias": bias, "cap": cap, "scale": 0.3}
                found = attend(q_MTHK, k_BSGK, v_BSGE, mask=mask, **given)
                expected = attend(q_MTHK, repeated(k_BSGK), repeated(v_BSGE), mask=whole, **given)
                np.testing.assert_allclose(found, expected, rtol=1e-12)
