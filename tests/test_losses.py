"""The cross entropy in chunks against its definition, forward and backward."""

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_zoo import sharding
from transformer_zoo.objectives.losses import cross_entropy

B, T, D, V = 4, 12, 8, 40


def head(params, hidden):
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum("BTD,VD->BTV", hidden, params["table"].astype(hidden.dtype), preferred_element_type=wide)


def plain(params, hidden, targets, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(head(params, hidden), targets)
    return (losses * weights).sum()


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    params = {"table": rng.normal(size=(V, D)), "body": rng.normal(size=(64, 64))}
    weights = rng.integers(0, 2, (B, T)) * rng.uniform(0.5, 2, (B, T))
    weights[1] = 0
    return params, rng.normal(size=(B, T, D)), rng.integers(0, V, (B, T)), weights


def chunked(chunks):
    return lambda *args: cross_entropy(head, *args, chunks=chunks)[0]


@pytest.mark.parametrize("chunks", [1, 3, 4, 12])
def test_equals_the_definition_in_float64(case, chunks):
    with jax.enable_x64(True):
        case = jax.tree.map(jnp.asarray, case)
        expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(*case)
        for transform in (jax.jit, lambda f: f)[: 2 if chunks == 3 else 1]:  # without jit, each operation is a program
            actual = transform(jax.value_and_grad(chunked(chunks), (0, 1)))(*case)
            assert actual[0].dtype == jnp.float64
            jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12), actual, expected)
        correct = jax.jit(lambda *case: cross_entropy(head, *case, chunks=chunks)[1]["correct"])(*case)
        params, hidden_BTD, targets_BT, weights_BT = map(np.asarray, (case[0]["table"], *case[1:]))
        hits_BT = (hidden_BTD @ params.T).argmax(-1) == targets_BT
        np.testing.assert_allclose(correct, (hits_BT * weights_BT).sum(), rtol=1e-12)


def test_a_scaled_loss_scales_its_gradients(case):
    with jax.enable_x64(True):
        params, hidden, *rest = jax.tree.map(jnp.asarray, case)
        scaled = lambda f: lambda p, h: jnp.sin(f(p, h, *rest) / 50)
        function = lambda f: jax.jit(jax.grad(scaled(f), (0, 1)))(params, hidden)
        actual, expected = function(chunked(3)), function(plain)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-14), actual, expected)


@pytest.mark.parametrize("chunks", [1, 3])
def test_smoothing_spreads_a_share_over_all_tokens_that_exist(case, chunks):
    """Against the definition with whole distributions, forward and backward; the padding of a vocabulary gets none."""
    size, share = V - 7, 0.1

    def padded(params, hidden):
        logits = head(params, hidden)
        return jnp.where(jnp.arange(V) < size, logits, jnp.finfo(logits.dtype).min)

    def whole(params, hidden, targets, weights):
        smooth = optax.smooth_labels(jax.nn.one_hot(targets, size), share)
        return (optax.softmax_cross_entropy(head(params, hidden)[..., :size], smooth) * weights).sum()

    def pieces(*args):
        return cross_entropy(padded, *args, chunks=chunks, smoothing=share, vocab_size=size)

    with jax.enable_x64(True):
        params, hidden, targets, weights = jax.tree.map(jnp.asarray, case)
        case = params, hidden, targets % size, weights
        expected = jax.jit(jax.value_and_grad(whole, (0, 1)))(*case)
        (loss, extra), gradients = jax.jit(jax.value_and_grad(pieces, (0, 1), has_aux=True))(*case)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12), (loss, gradients), expected)
        plain, correct = jax.jit(lambda *case: cross_entropy(padded, *case, chunks=chunks))(*case)
        np.testing.assert_allclose(extra["unsmoothed"], plain, rtol=1e-12)
        assert extra["correct"] == correct["correct"] and loss > plain / 2


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_that_is_none(case, smoothing):
    with pytest.raises(ValueError, match="smoothing is .*: it must be at least 0 and less than 1"):
        cross_entropy(head, *jax.tree.map(jnp.asarray, case), smoothing=smoothing)


@pytest.mark.parametrize("target", [-1, V, 10**6])
def test_where_the_weight_is_zero_any_target_will_do(case, target):
    params, hidden, targets, weights = jax.tree.map(jnp.asarray, case)
    function = jax.jit(jax.value_and_grad(chunked(2), (0, 1)))
    expected = function(params, hidden, targets, weights)
    actual = function(params, hidden, np.where(weights == 0, target, targets).astype(targets.dtype), weights)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_bfloat16_accumulates_in_float32(case):
    """The gradient of a bfloat16 embedding over many chunks is as accurate as in one."""
    params, hidden, targets, weights = jax.tree.map(jnp.asarray, case)
    low = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), (params, hidden))
    high = jax.tree.map(lambda x: x.astype(np.float32), low)
    exact = np.asarray(jax.jit(jax.grad(plain))(*high, targets, weights)["table"])
    error = {}
    for chunks in (1, 12):
        grad = jax.jit(jax.grad(chunked(chunks)))(*low, targets, weights)["table"]
        assert grad.dtype == jnp.bfloat16
        error[chunks] = np.linalg.norm(np.asarray(grad, np.float32) - exact) / np.linalg.norm(exact)
    assert error[1] < 3e-3 and error[12] < 3e-3  # added up in bfloat16, it is 4.2e-3


def equations(jaxpr, name):
    """The equations of this kind in a program, inner programs included."""
    return [equation for equation in families.equations(jaxpr) if equation.primitive.name == name]


def test_no_product_is_computed_twice_nor_without_need(case):
    case = jax.tree.map(jnp.asarray, case)
    assert len(equations(jax.make_jaxpr(chunked(4))(*case).jaxpr, "dot_general")) == 1
    assert len(equations(jax.make_jaxpr(jax.grad(chunked(4), (0, 1)))(*case).jaxpr, "dot_general")) == 3


def test_parameters_that_the_head_does_not_use_cost_nothing(case):
    case = jax.tree.map(jnp.asarray, case)
    (scan,) = equations(jax.make_jaxpr(jax.grad(chunked(4)))(*case).jaxpr, "scan")
    shapes = {var.aval.shape for var in (*scan.invars, *scan.outvars)}
    assert (V, D) in shapes and (64, 64) not in shapes


def test_logits_are_alive_in_pieces_only():
    params, hidden = {"table": jnp.zeros((4096, 32))}, jnp.zeros((4, 256, 32))
    rest = jnp.zeros((4, 256), jnp.int32), jnp.ones((4, 256))
    memory = lambda f: jax.jit(jax.grad(f, (0, 1))).lower(params, hidden, *rest).compile().memory_analysis()
    whole, pieces = memory(plain).temp_size_in_bytes, memory(chunked(8)).temp_size_in_bytes
    assert pieces < whole / 4, f"{pieces} bytes of temporaries in 8 pieces, {whole} in one"


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "sequence": 2}], ids=str
)
def test_on_a_mesh(case, sizes):
    with jax.enable_x64(True):
        params, hidden, targets, weights = jax.tree.map(lambda x: np.concatenate([x, x]), case)
        params = {"token_embed": {"embedding": params["table"]}}
        flat = lambda f: lambda params, *rest: f({"table": params["token_embed"]["embedding"]}, *rest)
        expected = jax.jit(jax.value_and_grad(flat(plain), (0, 1)))(params, hidden, targets, weights)
        mesh = sharding.make_mesh(**sizes)
        arrays = {"hidden_BTD": hidden, "targets_BT": targets, "weights_BT": weights}
        arrays = jax.device_put(arrays, sharding.batch_shardings(arrays, mesh))
        params = jax.device_put(params, sharding.param_shardings(params, mesh))
        with jax.set_mesh(mesh):
            actual = jax.jit(jax.value_and_grad(flat(chunked(3)), (0, 1)))(params, *arrays.values())
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12), actual, expected)


@pytest.mark.parametrize("chunks", [0, 5, 24])
def test_pieces_that_do_not_divide_the_length(case, chunks):
    with pytest.raises(ValueError, match=f"chunks is {chunks}, which does not divide the length 12"):
        cross_entropy(head, *jax.tree.map(jnp.asarray, case), chunks=chunks)
