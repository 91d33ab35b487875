"""What the decoders like GPT have in common, and how their published files are read."""

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry
from transformer_zoo.checkpoints import config_map
from transformer_zoo.models import bloom, gpt_neo
from transformer_zoo.nn import alibi


@pytest.mark.parametrize(
    ("types", "pattern"),
    [
        ([[["global", "local"], 2], [["global"], 1]], "global local"),
        ([[["local"], 1], [["global", "local"], 2]], "local global"),
        ([[["global"], 2], [["global"], 3]], "global"),
        ([[["local"], 5]], "local"),
        ([[["global", "local", "global", "local", "global"], 1]], "global local"),
    ],
)
def test_layers_of_gpt_neo(types: list, pattern: str):
    config = config_map.read(gpt_neo, {"num_layers": 5, "attention_types": types})
    assert config.attention_pattern == pattern
    kinds = (pattern.split() * 5)[:5]
    assert config.local_layers().tolist() == [kind == "local" for kind in kinds]
    written = config_map.write(gpt_neo, config, "base")["attention_types"]
    assert [kind for kinds, times in written for _ in range(times) for kind in kinds] == kinds


@pytest.mark.parametrize("pattern", ["global local", "local global", "global", "local"])
def test_a_pattern_longer_than_the_model_is_kept(pattern: str):
    config = gpt_neo.Config(num_layers=1, attention_pattern=pattern)
    assert config_map.read(gpt_neo, config_map.write(gpt_neo, config, "base")) == config


@pytest.mark.parametrize(
    ("types", "words"),
    [
        ([[["global", "local"], 2]], "it describes 4 layers, and num_layers is 5"),
        ([[["global", "global", "local"], 1], [["global"], 2]], "by turns, global local or local global or global or"),
        ([[["global", "sparse"], 2], [["global"], 1]], "by turns"),
        ([[["global"], 10**30]], "describes 1000.* layers"),
        ([["global", 5]], "attention_types is"),
        (7, "attention_types is 7"),
        ([], "it describes 0 layers"),
    ],
)
def test_layers_that_gpt_neo_cannot_have(types: object, words: str):
    with pytest.raises(ValueError, match=words):
        config_map.read(gpt_neo, {"num_layers": 5, "attention_types": types})


def test_sizes_of_gpt3():
    """Millions of parameters in table D.1 of Brown et al. 2020, which are rounded."""
    millions = {"125m": 125, "350m": 356, "760m": 760, "1.3b": 1320, "2.7b": 2650, "6.7b": 6660, "13b": 12850}
    for size, count in (millions | {"175b": 174600}).items():
        assert abs(registry.presets()[f"gpt-3-{size}"].params / (1e6 * count) - 1) < 0.005, size


# Of the reference, transformers' `_get_alibi_slopes`, in float64.
SLOPES = {
    1: [2**-8],
    2: [2**-4, 2**-8],
    3: [2**-4, 2**-8, 2**-2],
    8: [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8],
    12: [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}


@pytest.mark.parametrize("heads", SLOPES)
def test_slopes(heads: int):
    np.testing.assert_allclose(alibi.slopes(heads), SLOPES[heads], rtol=1e-15)


def test_slopes_of_every_number_of_heads():
    for heads in range(1, 130):
        slopes = alibi.slopes(heads)
        assert len(set(slopes)) == heads and slopes.min() >= 2**-8 and slopes.max() < 1


def test_biases():
    ahead_BTS = jnp.array([[[0, 1, 2], [-1, 0, 1]]])
    bias_BHTS = alibi.bias(ahead_BTS, 2, jnp.float32)
    assert bias_BHTS.shape == (1, 2, 2, 3) and bias_BHTS.dtype == jnp.float32
    np.testing.assert_array_equal(bias_BHTS[0, 0] * 16, ahead_BTS[0])


def test_bloom_counts_real_tokens():
    """Padding between tokens changes nothing; a cache takes no positions, since it has none of its tokens."""
    with jax.enable_x64(True):
        case = families.main("bloom").sized(num_heads=4, num_layers=1).wide()  # four heads have steep slopes
        params, tokens_BT = case.params(), case.tokens(1, 8)
        valid_BT = np.array([[True, True, False, True, False, False, True, True]])
        apply = lambda *args: families.outputs(families.apply(case.model, params, *args))
        real = np.zeros((1, 8), np.int32)
        real[:, :5] = tokens_BT[valid_BT]
        together = np.asarray(apply(real, np.arange(8)[None] < 5))[:, :5]
        assert families.difference(np.asarray(apply(tokens_BT, valid_BT))[valid_BT][None], together) < 1e-12
        cache = case.module.init_cache(case.config, 1, 8)
        with pytest.raises(ValueError, match="positions_BT and a cache do not go together"):
            case.model.apply({"params": params}, tokens_BT, positions_BT=tokens_BT * 0, cache=cache)


def test_published_names_of_blooms_sizes():
    """The published files have two names for one key, of which the main one counts."""
    settings = {"vocab_size": 90, "n_embed": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = config_map.read(bloom, settings)
    assert (config.width, config.num_layers, config.num_heads) == (24, 3, 4)
    assert config_map.read(bloom, settings | {"hidden_size": 32}).width == 32
    with pytest.raises(ValueError, match="hidden_size is missing"):
        config_map.read(bloom, {"vocab_size": 90, "n_layer": 3, "n_head": 4})
    with pytest.raises(ValueError, match="apply_residual_connection_post_layernorm is True; only False is supported"):
        config_map.read(bloom, settings | {"apply_residual_connection_post_layernorm": True})
