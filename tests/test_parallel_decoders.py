"""Decoders with layer norms: what the config.json of published checkpoints says of them."""

import json
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry
from transformer_zoo.checkpoints import config_map
from transformer_zoo.models import falcon, gptj
from transformer_zoo.nn import alibi
from transformer_zoo.nn.rotary import Rope

# As published, without keys that are of no architecture.
PUBLISHED = {
    "pythia-70m": {
        "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
        "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox",
        "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25,
        "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304,
    },
    "phi-2": {
        "attention_dropout": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0, "eos_token_id": 50256,
        "hidden_act": "gelu_new", "hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 10240,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "phi", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False,
        "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "vocab_size": 51200,
    },
    "gpt-j-6b": {
        "activation_function": "gelu_new", "attn_pdrop": 0.0, "bos_token_id": 50256, "embd_pdrop": 0.0,
        "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gptj",
        "n_embd": 4096, "n_head": 16, "n_inner": None, "n_layer": 28, "n_positions": 2048, "resid_pdrop": 0.0,
        "rotary": True, "rotary_dim": 64, "scale_attn_weights": True, "tie_word_embeddings": False, "vocab_size": 50400,
    },
    "stablelm-2-12b": {
        "bos_token_id": 100257, "eos_token_id": 100257, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 13824, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096,
        "model_type": "stablelm", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "partial_rotary_factor": 0.25, "qk_layernorm": True, "rope_theta": 10000, "tie_word_embeddings": False,
        "use_parallel_residual": True, "use_qkv_bias": False, "vocab_size": 100352,
    },
    "starcoder2-3b": {
        "attention_dropout": 0.1, "bos_token_id": 0, "embedding_dropout": 0.1, "eos_token_id": 0,
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072, "initializer_range": 0.018042195912175805,
        "intermediate_size": 12288, "max_position_embeddings": 16384, "model_type": "starcoder2",
        "norm_epsilon": 1e-05, "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2,
        "residual_dropout": 0.1, "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True,
        "vocab_size": 49152,
    },
    "falcon-7b": {
        "alibi": False, "attention_dropout": 0.0, "bias": False, "bos_token_id": 11, "eos_token_id": 11,
        "hidden_dropout": 0.0, "hidden_size": 4544, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "model_type": "falcon", "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 71,
        "num_hidden_layers": 32, "parallel_attn": True, "vocab_size": 65024,
    },
    "falcon-40b": {
        "alibi": False, "attention_dropout": 0.0, "bias": False, "bos_token_id": 11, "eos_token_id": 11,
        "hidden_dropout": 0.0, "hidden_size": 8192, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "model_type": "falcon", "multi_query": True, "new_decoder_architecture": True, "num_attention_heads": 128,
        "num_hidden_layers": 60, "num_kv_heads": 8, "parallel_attn": True, "vocab_size": 65024,
    },
    "falcon-rw-1b": {
        "alibi": True, "attention_dropout": 0.0, "bias": True, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_dropout": 0.0, "hidden_size": 2048, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "model_type": "falcon", "multi_query": False, "new_decoder_architecture": False, "num_attention_heads": 32,
        "num_hidden_layers": 24, "parallel_attn": False, "vocab_size": 50304,
    },
}  # fmt: skip


def read(settings: dict[str, Any]) -> Any:
    return config_map.read(registry.family(registry.family_by_model_type(settings["model_type"])), settings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_what_is_published(name: str):
    config = registry.presets()[name].config
    assert read(PUBLISHED[name]) == config
    written = json.loads(json.dumps(config_map.write(registry.module_of(config), config, "causal-lm")))
    assert read(written) == config


def test_heads_of_keys_and_values_of_falcon():
    """Those of the first architecture are one, or as many as query heads, whatever `num_kv_heads` is."""
    old, new = PUBLISHED["falcon-7b"], PUBLISHED["falcon-40b"]
    for settings, changes, heads, norms in (
        (old, {"num_kv_heads": 71}, 1, False),
        (old, {"multi_query": False}, 71, False),
        (new, {"multi_query": False, "parallel_attn": False}, 8, True),
        (new, {"num_kv_heads": None}, 128, True),
        (new, {"num_ln_in_parallel_attn": 1}, 8, False),
    ):
        config = read(settings | changes)
        assert (config.num_kv_heads, config.two_norms) == (heads, norms)
        assert read(config_map.write(falcon, config, "causal-lm")) == config


def test_what_cannot_be_honoured():
    falcon_7b, gpt_j = PUBLISHED["falcon-7b"], PUBLISHED["gpt-j-6b"]
    for words, settings in {
        "hidden_dropout is 0.1; only 0.0": falcon_7b | {"hidden_dropout": 0.1},
        "num_ln_in_parallel_attn is 3; known are 1 and 2": falcon_7b | {"num_ln_in_parallel_attn": 3},
        "rotary_dim=300: a head has 256 elements": gpt_j | {"rotary_dim": 300},
        "rotary_dim is None": gpt_j | {"rotary_dim": None},
        "which the share .* is 63 elements": gpt_j | {"rotary_dim": 63},
    }.items():
        with pytest.raises(ValueError, match=words):
            read(settings)
    with pytest.raises(ValueError, match="parallel=False goes with 1 or num_heads heads"):
        falcon.Config(num_heads=8, width=64, num_kv_heads=2, parallel=False)


def test_every_part_of_a_head_can_be_rotated():
    """Shares are as near to a whole number of elements as numbers of a machine can be."""
    for heads in (14, 48, 64, 80, 98, 256):
        for rotated in range(2, heads + 1, 2):
            config = gptj.Config(width=heads, num_heads=1, rotary_dim=rotated)
            assert int(heads * config.rope.share) == rotated and config.rope.interleaved
    assert gptj.Config(width=64, num_heads=1, rotary_dim=64).rope == Rope(interleaved=True)


def test_falcon_with_alibi():
    """The logits of the reference (with `sdpa`, in float64); and with a cache, after prompts of two lengths."""
    case = families.main("falcon").with_(
        num_heads=12, num_kv_heads=12, width=48, num_layers=3, parallel=False, bias=True, alibi=True
    )
    with jax.enable_x64(True):
        case = case.wide()
        params, tokens_BT = case.params(), case.tokens(1, 20)
        whole = np.asarray(families.apply(case.model, params, tokens_BT=tokens_BT).logits)
        expected = [
            [1.186933888386476, -1.580117154012642, -1.7359451678304922],
            [1.2524688086303468, -0.7615913844109697, -0.8397905161530036],
            [-0.2989941137727277, -0.8944613237977317, 0.006026534120864812],
        ]
        np.testing.assert_allclose(whole[0, [3, 11, 19], :3], expected, rtol=1e-11)
        rows = np.stack([tokens_BT[0, :12], np.roll(tokens_BT[0, :9].tolist() + [0] * 3, 3)])
        valid_BT = np.arange(12) >= np.array([[0], [3]])
        cache = case.module.init_cache(case.config, 2, 20, jnp.float64)
        out = families.apply(case.model, params, tokens_BT=rows, valid_BT=valid_BT, cache=cache)
        more = np.stack([tokens_BT[0, 12:16], tokens_BT[0, 9:13]])
        later = families.apply(case.model, params, tokens_BT=more, cache=out.cache)
        for row, start in enumerate((12, 9)):
            np.testing.assert_allclose(later.logits[row], whole[0, start : start + 4], rtol=1e-11)
        with pytest.raises(ValueError, match="positions_BT and a cache do not go together"):
            case.model.apply({"params": params}, more, positions_BT=more, cache=out.cache)


def test_biases_in_bfloat16():
    positions = np.arange(0, 2000, 37)
    slopes = alibi.slopes(12).astype(jnp.bfloat16)
    expected = (slopes[:, None] * positions.astype(jnp.bfloat16)).astype(np.float32)
    found = jax.jit(alibi.narrow_bias, static_argnums=(1, 2))(positions[None], 12, jnp.float32)
    np.testing.assert_array_equal(found, expected[None, :, None])
    assert abs(np.asarray(found)[0, :, 0] - alibi.slopes(12)[:, None] * positions).max() > 1
