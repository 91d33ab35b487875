"""Latent attention: few queries over cached latents, and what a cache keeps. DeepSeek-V3's config.json."""

import dataclasses
import functools
from typing import Any

import families
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry, trees
from transformer_zoo.checkpoints import config_map
from transformer_zoo.nn import Compute, lora
from transformer_zoo.nn.latent_attention import LatentAttention
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.rotary import Rope

WIDE = Compute(dtype="float64", param_dtype="float64")
B, S, T, D = 2, 9, 2, 12


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def attention(query_rank: int | None) -> LatentAttention:
    return LatentAttention(3, 5, 4, 6, 7, query_rank, WIDE, WIDE.rms_norm, use_bias=True)


def last(module: LatentAttention, params: Any, x_BSD: jax.Array) -> jax.Array:
    """What the last T tokens read of all S, as with a cache."""

    def run(module: LatentAttention) -> jax.Array:
        turn = lambda first: Rope().rotation(jnp.arange(first, S)[None], 4, S, x_BSD.dtype)
        valid_BS = np.arange(S) >= np.array([[3], [0]])
        mask = Mask(causal=True, offset=S - T, valid_BS=valid_BS)
        kept = module.keys_values(x_BSD, turn(0))
        assert kept.shape == (B, S, 1, 7 + 4)
        return module(x_BSD[:, -T:], kept, mask=mask, scale=0.3, rotation=turn(S - T))

    return module.apply({"params": params}, method=run)


@pytest.mark.parametrize("query_rank", [8, None])
def test_products_with_latents_are_those_with_keys_and_values(query_rank: int | None, monkeypatch: pytest.MonkeyPatch):
    module, x_BSD = attention(query_rank), np.random.default_rng(0).normal(size=(B, S, D))
    run = lambda module: module(x, module.keys_values(x, turn), scale=1.0, rotation=turn)
    x, turn = x_BSD[:, :1], Rope().rotation(jnp.zeros((1, 1), int), 4, S, x_BSD.dtype)
    shapes = jax.eval_shape(nn.init(run, module), jax.random.key(0))["params"]
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda x: draw.normal(size=x.shape), shapes)
    chosen = []

    def result(params: Any, x_BSD: jax.Array, way: Any) -> jax.Array:
        monkeypatch.setattr(LatentAttention, "_absorbs", lambda *args: chosen.append(way(*args)) or chosen[-1])
        return (last(module, params, x_BSD) ** 2).sum()

    ways = (LatentAttention._absorbs, lambda *args: True, lambda *args: False)
    both = jax.jit(lambda *args: [jax.value_and_grad(result, argnums=(0, 1))(*args, way) for way in ways])
    found, one, other = both(params, x_BSD)
    for a, b, c in zip(*map(jax.tree.leaves, (found, one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(b).max())
        np.testing.assert_allclose(a, c, rtol=1e-10, atol=1e-12 * np.abs(b).max())
    assert chosen == [True, True, False]

    # An adapter is more than a kernel: as if it were in it.
    factors = {lora.A: draw.normal(size=(7, 2)), lora.B: draw.normal(size=(2, 3, 5))}
    adapted = params | {"key": params["key"] | factors}
    merged = params["key"]["kernel"] + 0.5 * np.tensordot(factors[lora.A], factors[lora.B], 1)

    def beside(params: Any, x_BSD: jax.Array) -> jax.Array:
        with lora.beside(0.5):
            return result(params, x_BSD, ways[0])

    expected = jax.jit(functools.partial(result, way=ways[0]))(params | {"key": {"kernel": merged}}, x_BSD)
    np.testing.assert_allclose(jax.jit(beside)(adapted, x_BSD), expected, rtol=1e-10)
    assert chosen[3:] == [True, False]


def test_as_many_queries_as_tokens_make_keys_and_values():
    """And few do if there are few tokens: by the sizes of DeepSeek-V3, from 158 queries over many tokens on."""
    sizes = {"num_heads": 128, "head_dim": 128, "rope_dim": 64, "value_dim": 128, "latent_dim": 512}
    module = LatentAttention(**sizes, query_rank=None, compute=WIDE, norm=WIDE.rms_norm)
    params = {name: {"kernel": np.zeros(0)} for name in ("key", "value")}
    absorbs = module.apply({"params": params}, method=lambda module: [
        module._absorbs(T, S) for T, S in ((1, 1), (1, 2), (100, 100), (157, 10**6), (158, 10**6))
    ])  # fmt: skip
    assert absorbs == [False, True, False, True, False]


def test_a_cache_keeps_latents_and_rotary_keys():
    """Of DeepSeek-V3, 576 numbers a token and layer (section 2.1.1), in two sections of layers."""
    config = registry.presets()["deepseek-v3"].config
    kv = jax.eval_shape(lambda: registry.family("deepseek_v3").init_cache(config, 2, 10)).kv
    assert [x.shape for x in kv] == [(3, 2, 1, 10, 576), (58, 2, 1, 10, 576)]


def test_programs_do_not_grow_with_the_layers():
    def operations(**layers: int) -> int:
        case = families.main("deepseek_v3").sized(**layers)
        run = lambda params: case.model.apply({"params": params}, case.tokens(1, 4), train=True).logits
        program = jax.make_jaxpr(run)(registry.param_shapes(case.model))
        return len([*families.equations(program.jaxpr)])

    assert operations(num_layers=4, num_dense_layers=2) == operations(num_layers=40, num_dense_layers=7)
    paths = trees.flatten(registry.param_shapes(families.main("deepseek_v3").sized(num_dense_layers=0).model))
    assert not any(path.startswith("dense_blocks/") for path in paths)


V3 = {
    "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 0, "eos_token_id": 1,
    "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_theta": 10000, "routed_scaling_factor": 2.5,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "scoring_func": "sigmoid", "seq_aux": True, "tie_word_embeddings": False, "topk_group": 4,
    "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip


def test_config_json_as_published():
    """It is the preset, but for the weight of the balance loss, which the report has as 0.0001; and written again. The
    scale of the scores follows from yarn's mscale_all_dim: 1 + 0.1 log 40, squared."""
    family, preset = registry.family("deepseek_v3"), registry.presets()["deepseek-v3"].config
    config = config_map.read(family, V3)
    assert config == dataclasses.replace(preset, balance_weight=0.001)
    written = config_map.write(family, config, "causal-lm")
    assert config_map.read(family, written) == config and written["num_nextn_predict_layers"] == 0
    assert written["rope_parameters"]["mscale_all_dim"] == 1.0 and written["num_key_value_heads"] == 128
    assert config.rope.score_scale == pytest.approx(1.3688879454**2)
    plain = config_map.read(family, V3 | {"rope_scaling": None, "q_lora_rank": None})
    assert plain.rope == Rope(interleaved=True) and plain.rope.score_scale == 1 and plain.query_rank is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'; only 'sigmoid' is supported"),
        ({"rope_interleave": False}, "rope_interleave is False; only True"),
        ({"n_group": 7}, "num_expert_groups=7 of num_experts=256: they must be of equal size"),
        ({"n_group": 256}, "at least two experts"),
        ({"topk_group": 9}, "num_chosen_groups=9 groups for a token, and there are 8 groups of 32"),
        ({"num_experts_per_tok": 129}, "num_chosen=129 experts of num_chosen_groups=4"),
        ({"qk_rope_head_dim": 63}, "rotary positions turn pairs of elements"),
        (
            {"rope_scaling": V3["rope_scaling"] | {"mscale_all_dim": -1.0}},
            "mscale_all_dim is -1.0: it must be at least",
        ),
    ],
)
def test_what_config_json_must_not_say(change: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        config_map.read(registry.family("deepseek_v3"), V3 | change)
