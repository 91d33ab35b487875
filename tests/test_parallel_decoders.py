"""Decoders with layer norms: what the config.json of published checkpoints says of them."""

import json
from typing import Any

import pytest

from transformer_zoo import registry
from transformer_zoo.checkpoints import config_map
from transformer_zoo.models import falcon, gptj
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
        "alibi is True; only False": falcon_7b | {"alibi": True},
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
