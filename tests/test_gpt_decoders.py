"""What the decoders like GPT have in common, and how their published files are read."""

import pytest

from transformer_zoo.checkpoints import config_map
from transformer_zoo.models import gpt_neo


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
