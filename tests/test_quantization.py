"""Matrices in few bits: their errors, which parameters they are, that any module computes with them, and memory."""

import collections
import functools
import re
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

import transformer_zoo as zoo
from transformer_zoo import quantization, registry, sharding, trees
from transformer_zoo.checkpoints import weight_map
from transformer_zoo.generation import generate
from transformer_zoo.generation.sampling import Greedy
from transformer_zoo.models import gpt2
from transformer_zoo.nn.quantized import FORMATS, is_quantized, normal_levels, quantized, relative_error
from transformer_zoo.pretrained import Bundle

# The levels of NF4 in appendix E of Dettmers et al. 2023, rounded.
LEVELS = (
    -1.0, -0.69619, -0.52507, -0.39492, -0.28444, -0.18477, -0.09105, 0.0,
    0.07958, 0.16093, 0.24611, 0.33792, 0.44071, 0.56262, 0.72296, 1.0,
)  # fmt: skip


def test_the_error_of_a_matrix() -> None:
    """Of normally distributed numbers it is that of the docstring; no number is off by more than half a step; and what
    the codes stand for has the same codes again."""
    np.testing.assert_allclose(normal_levels(), LEVELS, atol=1e-5)
    x = np.random.default_rng(0).normal(size=(2, 128, 4, 16)).astype(np.float32)
    x[0, :64, 0, 0] = 0
    make, expand = jax.jit(quantized, static_argnames=("format", "inputs")), jax.jit(meta.unbox)
    errors = {"int8": (0.004, 0.009), "int4": (0.08, 0.12), "nf4": (0.07, 0.1)}
    for format, inputs in (*((format, (-3,)) for format in FORMATS), ("int8", (-3, -2)), ("nf4", (-1,))):
        found = make(x, format, inputs)
        wide = np.asarray(expand(found))
        assert found.shape == wide.shape == x.shape and found.dtype == wide.dtype
        low, high = errors[format]
        assert low < jax.jit(relative_error)(x, found) < high
        assert not wide[0, :64, 0, 0].any()
        steps = {"int8": 1 / 127, "int4": 1 / 7, "nf4": 1 + LEVELS[1]}
        blocks = found.scales.shape[inputs[-1]]
        axis = x.ndim + inputs[-1]
        largest = np.repeat(found.scales, x.shape[axis] // blocks, axis) * {"int8": 127, "int4": 7, "nf4": 1}[format]
        assert (np.abs(wide - x) <= largest * steps[format] / 2 * (1 + 1e-5)).all()
        np.testing.assert_array_equal(found.codes, make(wide, format, inputs).codes)
    bits = {format: 8 * sum(part.nbytes for part in jax.tree.leaves(make(x, format, (-3,)))) for format in FORMATS}
    assert {format: n / x.size for format, n in bits.items()} == {"int8": 8.25, "int4": 4.5, "nf4": 4.5}
    assert jax.eval_shape(lambda x: quantized(x, "nf4", (-3,)), x[:, :33]).format == "int8"


def bundle(case: families.Case) -> Bundle:
    return Bundle(case.model, case.params(), case.config)


@jax.jit
def expanded(params: trees.Tree) -> trees.Tree:
    return jax.tree.map(meta.unbox, params, is_leaf=is_quantized)


@pytest.mark.parametrize("family", ["albert", "mixtral", "t5"])
def test_which_parameters_are_quantised(family: str) -> None:
    case = families.main(family)
    shapes = trees.flatten(registry.param_shapes(case.model))
    of = functools.partial(quantization.quantized_params, case.model, format="nf4")
    found = trees.flatten(jax.eval_shape(of, trees.unflatten(shapes)))
    assert {path: x.format for path, x in found.items() if is_quantized(x)} == {
        path: "int8" if path.endswith("/embedding") else "nf4"
        for path in shapes
        if re.fullmatch(r"(token_embed|head)/embedding|.*blocks/.*/kernel", path) and "router" not in path
    }
    assert {path: (x.shape, x.dtype) for path, x in found.items()} == {p: (x.shape, x.dtype) for p, x in shapes.items()}


def test_layers_that_share_parameters() -> None:
    m = bundle(families.main("albert")).quantize("int4")
    apply = jax.jit(lambda params: m.model.apply({"params": params}, np.arange(5)[None]).hidden_BTD)
    np.testing.assert_allclose(apply(m.params), apply(expanded(m.params)), atol=1e-5)


def test_experts_on_a_mesh() -> None:
    """Codes and scales lie as the parameter does; where the mesh does not divide a dimension, it is whole."""
    case = families.main("mixtral")
    mesh = sharding.make_mesh(fsdp=2, tensor=2, expert=2)
    m, tokens_BT = bundle(case), case.tokens(2, 4)
    q = m.replace(params=jax.device_put(m.params, sharding.param_shardings(m.params, mesh))).quantize("int4")
    spec = lambda path: tuple(tuple(x.sharding.spec) for x in jax.tree.leaves(trees.flatten(q.params)[path]))
    assert spec("blocks/experts/up/kernel") == ((None, "expert", "fsdp", "tensor"), (None, "expert", None, "tensor"))
    assert spec("blocks/attention/out/kernel")[0] == (None, "tensor", None, "fsdp")
    apply = jax.jit(lambda params: m.model.apply({"params": params}, tokens_BT).hidden_BTD)
    with jax.set_mesh(mesh):
        found = apply(q.params)
    np.testing.assert_allclose(found, apply(expanded(m.quantize("int4").params)), atol=1e-5)


def test_matrices_are_expanded_in_turn() -> None:
    """The memory that decoding takes beside the parameters: one layer's matrices and the table, not all of them."""
    config = gpt2.Config(vocab_size=1024, max_length=64, width=128, num_layers=8, num_heads=4)
    model = gpt2.Model(config, task="causal-lm")
    rows = jax.ShapeDtypeStruct((1, 16), jnp.int32), jax.ShapeDtypeStruct((1, 16), jnp.bool_)
    shapes = registry.param_shapes(model)
    params = jax.eval_shape(functools.partial(quantization.quantized_params, model, format="nf4"), shapes)
    lowered = generate.lower(model, params, *rows, max_new_tokens=16, sampling=Greedy())
    bytes_of = lambda params: sum(4 * x.size for x in jax.tree.leaves(params))
    layer = bytes_of(shapes["blocks"]) / 8
    assert lowered.compile().memory_analysis().temp_size_in_bytes < bytes_of(shapes["token_embed"]) + 2 * layer


def test_calls(tmp_path) -> None:
    """A quantised model generates as it computes, and what needs its numbers refuses it."""
    case = families.main("gpt2")
    m = bundle(case)
    q = m.quantize("int8")
    prompt = case.tokens(1, 5)[0].tolist()
    (new,) = q.generate([prompt], max_new_tokens=4, do_sample=False)
    tokens_BT = np.array([[*prompt, *new]])
    logits_1TV = m.replace(params=expanded(q.params))(tokens_BT).logits
    choices_T = np.asarray(logits_1TV)[0, len(prompt) - 1 : -1].argmax(axis=-1)
    np.testing.assert_array_equal(new, choices_T)
    np.testing.assert_array_equal(new, q.generate([prompt], max_new_tokens=4, do_sample=False, draft=m)[0])
    plain, drafted = (m.generate([prompt], max_new_tokens=4, do_sample=False, draft=draft) for draft in (None, q))
    np.testing.assert_array_equal(plain, drafted)
    for call in (functools.partial(q.save_pretrained, tmp_path / "out"), functools.partial(q.quantize, "int4")):
        with pytest.raises(ValueError, match="the model is quantised. Pass the one that zoo.quantize made it from"):
            call()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="format is 'int3': choose one of int8, int4, nf4"):
        m.quantize("int3")
    with pytest.raises(ValueError, match="quantize is 'int3': choose one of int8, int4, nf4"):
        zoo.from_pretrained("no-such-model", quantize="int3")
    assert quantization.matrices(m.model)["blocks/attention/out/kernel"] == (-3, -2)


def test_quantised_while_it_is_read(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as afterwards; and no two of its matrices are in memory as numbers."""
    case = families.main("llama")
    bundle(case).save_pretrained(tmp_path)
    expected = zoo.from_pretrained(tmp_path).quantize("nf4")
    put, shapes = weight_map._put, []
    here = lambda: [x.shape for x in jax.live_arrays() if x.dtype == jnp.float32]
    before = collections.Counter(here())

    def watched(*arguments: Any) -> jax.Array:
        jax.block_until_ready(x := put(*arguments))
        kernels = [shape for shape in (collections.Counter(here()) - before).elements() if shape in wide]
        shapes.append(len(kernels))
        return x

    wide = {x.shape for path, x in trees.flatten(expected.params).items() if "/embed" not in path and is_quantized(x)}
    monkeypatch.setattr(weight_map, "_put", watched)
    found = zoo.from_pretrained(tmp_path, quantize="nf4")
    assert max(shapes) == 1 and len(shapes) == len(trees.flatten(found.params))
    assert jax.tree.structure(found.params) == jax.tree.structure(expected.params)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
