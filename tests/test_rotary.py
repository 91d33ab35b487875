"""Rotary positions: the angles of every kind, and what they depend on."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry
from transformer_zoo.checkpoints import config_map
from transformer_zoo.models import llama
from transformer_zoo.nn.rotary import Rope, rotate, rotate_queries

LLAMA3 = Rope(kind="llama3", factor=8.0, original_length=16, slow_turns=0.3, fast_turns=2.0, theta=100.0)
YARN = Rope(kind="yarn", factor=2.0, original_length=16, slow_turns=0.2, fast_turns=3.0, theta=100.0)
LONG = Rope(
    kind="longrope", factor=2.0, original_length=16, short_factors=(1.0, 1.1, 1.5), long_factors=(1.0, 4.0, 9.0)
)
DYNAMIC = Rope(kind="dynamic", factor=4.0)
# The reference's angles of the three pairs of a head at position 10 of a text of 32 tokens, and what it multiplies
# queries and keys by.
EXPECTED = {
    "default": (Rope(theta=500.0), (10, 1.2599210498948732, 0.15874010519682), 1),
    "linear": (Rope(kind="linear", factor=2.5), (4, 0.18566355334451118, 0.008617738760127537), 1),
    "dynamic": (DYNAMIC, (10, 0.12873451184009208, 0.0016572574538706807), 1),
    "llama3": (LLAMA3, (10, 0.5450016440211012, 0.058019860420159754), 1),
    "yarn": (YARN, (10, 1.6158260175239132, 0.23207944168063901), 1.0693147180559945),
    "longrope": (LONG, (10, 0.11603972084031951, 0.0023938163222576494), 1.118033988749895),
}


def turned(rope: Rope, positions: list[int], head_dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [T, pairs] of a row, in float64, for a model of 32 positions."""
    with jax.enable_x64(True):
        rotate_at = jax.jit(lambda positions_BT: rope.rotation(positions_BT, head_dim, 32, jnp.float64))
        rotation = rotate_at(np.array([positions], np.int32))
        return np.asarray(rotation.cos_BTP)[0], np.asarray(rotation.sin_BTP)[0]


@pytest.mark.parametrize("kind", EXPECTED)
def test_angles(kind: str):
    rope, angles, scale = EXPECTED[kind]
    for found, function in zip(turned(rope, [*range(32)]), (np.cos, np.sin)):
        np.testing.assert_allclose(found[10], scale * function(angles), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rope", [DYNAMIC, LONG], ids=lambda rope: rope.kind)
def test_only_a_text_beyond_the_original_length_is_turned_otherwise(rope: Rope):
    """And a document packed in a row, or behind padding, is turned as if it were alone."""
    original = rope.original_length or int(32 / rope.factor)
    alone = {length: turned(rope, [*range(length)])[1] for length in (1, 3, original, original + 1, 30)}
    np.testing.assert_array_equal(alone[1], alone[3][:1])
    np.testing.assert_array_equal(alone[3], alone[original][:3])
    assert not np.allclose(alone[original], alone[original + 1][:original])
    packed = [*range(3), *range(30), *range(original), 0]
    starts = np.cumsum([0, 3, 30, original])
    found = turned(rope, packed)[1]
    for start, length in zip(starts, (3, 30, original, 1)):
        np.testing.assert_array_equal(found[start : start + length], alone[length])
    np.testing.assert_array_equal(turned(rope, [0, 0, 0, *range(30)])[1][3:], alone[30])
    np.testing.assert_array_equal(turned(rope, [*range(30), 29, 29])[1][:30], alone[30])


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_part_of_a_head_is_turned(interleaved: bool):
    """By pairs of elements that are neighbours, or that half of the part separates."""
    x = np.random.default_rng(0).standard_normal((1, 5, 2, 8))
    with jax.enable_x64(True):
        rope = Rope(share=0.5, theta=3.0, interleaved=interleaved)
        found = np.asarray(rotate(jnp.asarray(x), rope.rotation(jnp.arange(5)[None], 8, 32, jnp.float64)))
    for t, pair in ((4, 0), (3, 1)):
        angle = t * 3.0 ** (-pair / 2)
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 2)
        one, other = x[0, t, :, first], x[0, t, :, second]
        np.testing.assert_allclose(found[0, t, :, first], one * math.cos(angle) - other * math.sin(angle))
        np.testing.assert_allclose(found[0, t, :, second], other * math.cos(angle) + one * math.sin(angle))
    np.testing.assert_array_equal(found[..., 4:], x[..., 4:])


FAULTS = {
    "kind is 'ntk': choose one of default, linear": {"kind": "ntk"},
    "factor is 0": {"kind": "linear", "factor": 0.0},
    "theta is -1": {"theta": -1.0},
    "share is 1.5: it is a part of a head": {"share": 1.5},
    "of the kind yarn need original_length": {"kind": "yarn"},
    "original_length is 1": {"kind": "llama3", "original_length": 1},
    "slow_turns=4.0 must be below fast_turns=4.0": {"kind": "llama3", "original_length": 8, "slow_turns": 4.0},
    "query_growth=0.1 goes with the kind yarn, not default": {"query_growth": 0.1},
    "need short_factors and long_factors": {"kind": "longrope", "original_length": 8},
}


@pytest.mark.parametrize("words", FAULTS)
def test_settings_that_cannot_be(words: str):
    with pytest.raises(ValueError, match=words):
        Rope(**FAULTS[words])


def test_settings_that_do_not_go_with_the_heads():
    for words, changes in {
        "head_dim=5 is odd": {"head_dim": 5},
        "heads of at least 4 rotated elements, not 2": {"head_dim": 2, "rope": DYNAMIC},
        "a multiple of factor=4, not 30": {"rope": DYNAMIC, "max_length": 30},
        "there must be 4, one for each pair": {"rope": LONG, "head_dim": 8},
        "num_kv_heads=3 does not divide num_heads=32": {"num_kv_heads": 3},
        "rope.interleaved=True: this family pairs": {"rope": Rope(interleaved=True)},
    }.items():
        with pytest.raises(ValueError, match=words):
            llama.Config(**changes)


# ---- config.json ----------------------------------------------------------------------------------------------------

OTHERS = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8, "vocab_size": 9}


def read(**settings) -> llama.Config:
    return config_map.read(registry.family("llama"), OTHERS | settings)


@pytest.mark.parametrize("kind", EXPECTED)
def test_config_json_holds_all_of_it(kind: str):
    config = dataclasses.replace(read(max_position_embeddings=32), rope=EXPECTED[kind][0], max_length=32)
    written = json.loads(json.dumps(config_map.write(registry.family("llama"), config, "causal-lm")))
    assert config_map.read(registry.family("llama"), written) == config
    assert registry.from_json(json.loads(json.dumps(registry.as_json(config)))) == config
    # The keys of older files mean the same.
    new = written.pop("rope_parameters")
    old = {"rope_theta": new.pop("rope_theta"), "rope_scaling": {"type": new.pop("rope_type"), **new}}
    assert config_map.read(registry.family("llama"), written | old) == config


def test_defaults_of_config_json():
    assert read().rope == Rope() and read().max_length == 2048
    assert read(rope_theta=5e5, rope_scaling=None).rope == Rope(theta=5e5)
    dynamic = read(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=64)
    assert dynamic.rope == Rope(kind="dynamic", factor=2.0) and dynamic.max_length == 128
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert read(rope_scaling=yarn).rope == Rope(kind="yarn", factor=4.0, original_length=16, fast_turns=32.0)
    scaled = read(rope_scaling=yarn | {"mscale": 1.0, "mscale_all_dim": 0.5}).rope
    first, magnitude = scaled.rotation(np.zeros((1, 1), int), 2, 16, float), 1 + 0.05 * math.log(4)
    assert first.cos_BTP == pytest.approx((1 + 0.1 * math.log(4)) / magnitude)
    assert scaled.score_scale == pytest.approx(magnitude**2)
    longrope = {"type": "longrope", "short_factor": [1, 1, 2], "long_factor": [1, 2, 3.5]}
    long = read(rope_scaling=longrope, max_position_embeddings=64, original_max_position_embeddings=16)
    assert (long.rope.factor, long.rope.original_length, long.rope.short_factors) == (4.0, 16, (1.0, 1.0, 2.0))
    old = {**longrope, "type": "su", "long_factor": [1, 2, 4]}
    phi3 = config_map.read(registry.family("phi3"), OTHERS | {"max_position_embeddings": 8192, "rope_scaling": old})
    assert (phi3.rope.kind, phi3.rope.factor, phi3.rope.original_length) == ("longrope", 2.0, 4096)
    written = config_map.write(registry.family("phi3"), phi3, "causal-lm")
    assert written["original_max_position_embeddings"] == 4096
    assert config_map.read(registry.family("phi3"), written) == phi3


# Of published models whose model_type is llama: what differs from that of LLaMA's 7B model.
LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-5,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "hidden_act": "silu", "pretraining_tp": 1,
    "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2, "rope_scaling": None, "use_cache": True,
    "tie_word_embeddings": False,
}  # fmt: skip
PUBLISHED = {
    "vicuna-7b-v1.5": {},
    "tinyllama-1.1b-chat": {
        "hidden_size": 2048, "num_hidden_layers": 22, "num_key_value_heads": 4, "intermediate_size": 5632,
        "max_position_embeddings": 2048, "rope_theta": 10000.0,
    },
    "yi-6b": {"vocab_size": 64000, "num_key_value_heads": 4, "rope_theta": 5000000.0},
    "deepseek-coder-6.7b": {
        "vocab_size": 32256, "num_key_value_heads": 32, "max_position_embeddings": 16384, "rms_norm_eps": 1e-6,
        "rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000, "eos_token_id": 32014,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "max_position_embeddings": 8192, "rope_theta": 100000,
        "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True, "rope_interleaved": False,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "rope_theta": 500000.0, "mlp_bias": False,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
            "original_max_position_embeddings": 8192,
        },
        "eos_token_id": 128001, "tie_word_embeddings": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_config_json_of_models_in_the_layout_of_llama(name: str):
    assert config_map.read(registry.family("llama"), LLAMA | PUBLISHED[name]) == registry.presets()[name].config


def test_config_json_that_cannot_be_honoured():
    for words, scaling in {
        "rope_type 'ntk' is not known": {"type": "ntk", "factor": 2.0},
        "rope_type 'linear' needs factor": {"type": "linear"},
        "rope_type 'linear' has no beta_fast": {"type": "linear", "factor": 2.0, "beta_fast": 3},
        "needs low_freq_factor and high_freq_factor": {"type": "llama3", "factor": 2.0},
        "rope_parameters is": {"type": "linear", "factor": "two"},
        "there must be 3, one for each pair": {
            "type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "factor": 2.0,
        },
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read(rope_scaling=scaling)
    for scaling in ([1], "linear", {"type": ["linear"]}, {"type": {}}):
        with pytest.raises(ValueError, match="rope|max_position"):
            read(rope_scaling=scaling)


def test_config_json_of_layers_with_positions_of_their_own():
    """Gemma 3's, as published and as transformers 5 writes it."""
    module = registry.family("gemma3")
    published = {
        **OTHERS, "head_dim": 4, "num_hidden_layers": 5, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": None, "attn_logit_softcapping": None,
        "sliding_window": 512, "sliding_window_pattern": 2, "rope_local_base_freq": 5000, "rope_theta": 500000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "use_bidirectional_attention": None,
    }  # fmt: skip
    config = config_map.read(module, published)
    assert config.rope == Rope(kind="linear", factor=8.0, theta=500000) and config.local_theta == 5000
    assert config.local_layers().tolist() == [True, False, True, False, True]
    written = json.loads(json.dumps(config_map.write(module, config, "causal-lm")))
    assert config_map.read(module, written) == config
    today = {name: x for name, x in written.items() if name not in ("rope_local_base_freq", "sliding_window_pattern")}
    assert config_map.read(module, today) == config
    kinds = ["sliding_attention", "full_attention"]
    for words, change in {
        "every nth one must be full": {"layer_types": kinds[::-1] * 2 + kinds[1:]},
        "rope_parameters of sliding_attention are": {"rope_parameters": {kinds[0]: {"rope_type": "yarn"}}},
        "rope_theta is no kind of layers": {"rope_parameters": {"rope_theta": 5.0}},
        "share=0.5: layers with a window rotate whole": {"partial_rotary_factor": 0.5},
        "use_bidirectional_attention is True; only False": {"use_bidirectional_attention": True},
        "attn_logit_softcapping is 50.0; only None": {"attn_logit_softcapping": 50.0},
        "logit_cap is 0.0": {"final_logit_softcapping": 0.0},
    }.items():
        with pytest.raises(ValueError, match=words):
            config_map.read(module, published | change)


def test_queries_that_grow_with_their_position():
    """Ministral 3's, by 1 + beta log(1 + floor(p / original length)); keys do not."""
    rope = Rope(kind="yarn", factor=2.0, original_length=3, query_growth=0.5, attention_factor=1.0)
    with jax.enable_x64(True):
        rotation = rope.rotation(jnp.arange(8)[None], 4, 32, jnp.float64)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 8, 2, 4)))
        ratio = np.asarray(rotate_queries(x, rotation) / rotate(x, rotation))
    expected = [1, 1, 1, *[1 + 0.5 * math.log(2)] * 3, *[1 + 0.5 * math.log(3)] * 2]
    np.testing.assert_allclose(ratio, np.broadcast_to(np.reshape(expected, (1, 8, 1, 1)), ratio.shape), rtol=1e-12)


def test_config_json_of_queries_that_grow():
    """As published, as the reference has it for a config.json without positions; of other families it is refused."""
    module, others = registry.family("ministral3"), OTHERS | {"num_key_value_heads": 2}
    given = {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
        "max_position_embeddings": 262144, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }  # fmt: skip
    config = config_map.read(module, others | {"rope_parameters": given, "head_dim": 4})
    assert config.rope == module.Config().rope == config_map.read(module, others).rope
    written = json.loads(json.dumps(config_map.write(module, config, "causal-lm")))
    assert written["rope_parameters"]["llama_4_scaling_beta"] == 0.1 and config_map.read(module, written) == config
    for words, family, change in (
        ("queries of this family do not grow", "llama", {"rope_parameters": given, "max_position_embeddings": 262144}),
        ("Ministral 3 needs a query_growth", "ministral3", {"rope_parameters": {"rope_theta": 5.0}}),
        ("has no max_position_embeddings", "ministral3", {"rope_parameters": given | {"max_position_embeddings": 3}}),
    ):
        with pytest.raises(ValueError, match=words):
            config_map.read(registry.family(family), others | change)


def test_config_json_of_windows_without_longer_positions():
    """Olmo 3's, as published: only layers without a window reach beyond the original length."""
    module = registry.family("olmo3")
    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    published = {
        **OTHERS, "num_hidden_layers": 4, "rope_theta": 5000, "rope_scaling": scaling, "layer_types": kinds,
        "sliding_window": 8, "max_position_embeddings": 128,
    }  # fmt: skip
    config = config_map.read(module, published)
    yarn = Rope(kind="yarn", theta=5000, factor=8.0, original_length=16, fast_turns=32.0, attention_factor=1.2)
    assert (config.rope, config.local_theta, config.global_every, config.window) == (yarn, 5000, 4, 8)
    written = json.loads(json.dumps(config_map.write(module, config, "causal-lm")))
    assert written["layer_types"] == kinds and config_map.read(module, written) == config


def test_config_json_of_layers_without_positions():
    """SmolLM3's: a list of the layers, or every nth; with windows, by a switch or by the list of the layers' kinds."""
    module, kinds = registry.family("smollm3"), ["full_attention", "sliding_attention"]
    published = OTHERS | {"num_hidden_layers": 5, "no_rope_layer_interval": 2}
    cases = {
        (True, False, True, False, True): {},
        (True, True, False, True, True): {"no_rope_layers": [1, 1, 0, 1, 1, 0, 1]},
        (True,) * 5: {"no_rope_layers": [1] * 5},
        (False,) * 5: {"no_rope_layers": [0] * 5, "use_sliding_window": True},
        (True, True, True, False, True): {"no_rope_layers": [1, 1, 1, 0, 1], "layer_types": ["full_attention"] * 5},
    }
    for rotated, change in cases.items():
        config = config_map.read(module, published | change)
        assert tuple(config.rotated_layers().tolist()) == rotated and config.window is None
        written = json.loads(json.dumps(config_map.write(module, config, "causal-lm")))
        assert config_map.read(module, written) == config and written["no_rope_layers"] == [*map(int, rotated)]
    by_kind = {"sliding_window": 3, "layer_types": [kinds[i % 2] for i in range(5)]}
    for change in (by_kind, {"sliding_window": 3, "use_sliding_window": True}):
        config = config_map.read(module, published | change)
        assert config.window == 3 and config.local_layers().tolist() == [False, True, False, True, False]
    for words, change in {
        "every nth must be 0": {"no_rope_layers": [0, 1, 1, 1, 0]},
        "of the layers without positions, and full_attention": {"layer_types": kinds[::-1] * 2 + kinds[1:]},
    }.items():
        with pytest.raises(ValueError, match=words):
            config_map.read(module, published | change)


def test_config_json_of_heads_that_are_turned_in_part():
    """A share that is missing is the family's, and NeoX's files have names of their own."""
    module = registry.family("gpt_neox")
    for given, rope in (
        ({}, Rope(share=0.25)),
        ({"rotary_pct": 0.5, "rotary_emb_base": 500}, Rope(share=0.5, theta=500)),
        ({"rotary_pct": 1.0, "rope_theta": 500}, Rope()),
        ({"rotary_pct": 1.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, Rope(kind="linear", factor=2.0)),
    ):
        config = config_map.read(module, OTHERS | {"hidden_size": 64} | given)
        assert config.rope == rope and config.head_dim == 16
        written = json.loads(json.dumps(config_map.write(module, config, "causal-lm")))
        assert config_map.read(module, written) == config
    with pytest.raises(ValueError, match="head_dim=6, of which the share 0.25 is 1 elements"):
        config_map.read(module, OTHERS)


def test_gelu_in_the_files_of_gemma_is_its_approximation():
    settings = OTHERS | {"hidden_act": "gelu", "num_key_value_heads": 1}
    assert config_map.read(registry.family("gemma"), settings).activation == "gelu_pytorch_tanh"


def test_config_json_of_heads_that_differ_by_layer():
    """Gemma 4's, as published, as transformers 5 writes it, and with defaults alone."""
    module = registry.family("gemma4")
    kinds = ["sliding_attention", "full_attention"]
    published = {
        **OTHERS, "head_dim": 4, "global_head_dim": 8, "num_hidden_layers": 5, "num_key_value_heads": 2,
        "num_global_key_value_heads": 1, "attention_k_eq_v": True, "layer_types": kinds * 2 + kinds[1:],
        "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision", "enable_moe_block": False,
        "rope_parameters": {
            kinds[0]: {"rope_type": "default", "rope_theta": 500},
            kinds[1]: {"rope_type": "proportional", "rope_theta": 3000.0, "partial_rotary_factor": 0.5},
        },
    }  # fmt: skip
    config = config_map.read(module, published)
    assert (config.head_dim, config.local_head_dim, config.num_kv_heads, config.local_kv_heads) == (8, 4, 1, 2)
    assert config.rope == Rope(kind="proportional", theta=3000.0, share=0.5) and config.local_theta == 500
    assert config.local_layers().tolist() == [True, False, True, False, False]
    assert config_map.read(module, published | {"attention_k_eq_v": False}).num_kv_heads == 2
    written = json.loads(json.dumps(config_map.write(module, config, "causal-lm")))
    assert config_map.read(module, written) == config
    names = ("global_head_dim", "num_global_key_value_heads", "sliding_window_pattern")
    assert config_map.read(module, {name: x for name, x in written.items() if name not in names}) == config
    mixture = {"enable_moe_block": True, "num_experts": 3, "top_k_experts": 2, "moe_intermediate_size": 5}
    mixed = config_map.read(module, published | mixture)
    assert (mixed.num_experts, mixed.num_chosen, mixed.expert_dim) == (3, 2, 5)
    written = json.loads(json.dumps(config_map.write(module, mixed, "causal-lm")))
    assert config_map.read(module, written) == mixed
    assert config_map.read(module, written | {"enable_moe_block": False}) == config
    plain = config_map.read(module, OTHERS | {"rope_parameters": None, "hidden_size_per_layer_input": None})
    default = module.Config()
    assert (plain.rope, plain.local_theta, plain.head_dim) == (default.rope, default.local_theta, default.head_dim)
    for words, change in {
        "every nth and the last must be full": {"layer_types": kinds[:1] * 5},
        "vocab_size_per_layer_input is 262144": {"hidden_size_per_layer_input": 4},
        "num_experts is None; with enable_moe_block it must be": {"enable_moe_block": True},
        "num_chosen=4 experts for a token, and there are 3": {**mixture, "top_k_experts": 4},
        "use_bidirectional_attention is 'all'; only None or 'vision'": {"use_bidirectional_attention": "all"},
        "must all have the same head_dim": {"per_layer_config": {"1": {"head_dim": 8}}},
        "num_reusing_layers=4 of num_layers=5": {"num_kv_shared_layers": 4},
        "local_kv_heads=3 does not divide": {"num_key_value_heads": 3},
        "share=0.5: layers with a window rotate whole": {
            "rope_parameters": {kinds[1]: {"rope_theta": 9.0, "partial_rotary_factor": 0.5}}
        },
    }.items():
        with pytest.raises(ValueError, match=words):
            config_map.read(module, published | change)


def test_pairs_of_a_head_that_do_not_turn():
    """Proportional positions: the first half of the pairs turn as if all did, and the others not at all."""
    with jax.enable_x64(True):
        whole, half = (
            Rope(theta=50.0, **settings).rotation(jnp.arange(5)[None], 8, 32, jnp.float64)
            for settings in ({}, {"kind": "proportional", "share": 0.5})
        )
    np.testing.assert_array_equal(half.cos_BTP[..., :2], whole.cos_BTP[..., :2])
    assert (np.asarray(half.cos_BTP[..., 2:]) == 1).all() and half.sin_BTP.shape == whole.sin_BTP.shape
