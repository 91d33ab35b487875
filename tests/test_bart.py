"""BART, mBART, PEGASUS and Marian: tests beyond those of all families."""

import json
from pathlib import Path
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry, trees
from transformer_zoo.checkpoints import config_map, hub, safetensors
from transformer_zoo.models import marian
from transformer_zoo.nn.positions import sinusoids
from transformer_zoo.pretrained import Bundle, from_pretrained, save_pretrained

KIN = ("bart", "mbart", "pegasus", "marian")
LARGE = {
    "activation_dropout": 0.0, "attention_dropout": 0.0, "d_model": 1024, "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096, "decoder_layerdrop": 0.0, "decoder_layers": 12, "dropout": 0.1,
    "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layerdrop": 0.0, "encoder_layers": 12,
    "init_std": 0.02, "is_encoder_decoder": True, "max_position_embeddings": 1024,
}  # fmt: skip
# Of files as they were published: what says what the model is, in the words of several versions.
PUBLISHED: dict[str, dict[str, Any]] = {
    "bart-large-cnn": {
        **LARGE, "_num_labels": 3, "activation_function": "gelu", "add_final_layer_norm": False,
        "architectures": ["BartForConditionalGeneration"], "bos_token_id": 0, "classif_dropout": 0.0,
        "decoder_start_token_id": 2, "eos_token_id": 2, "extra_pos_embeddings": 0,
        "force_bos_token_to_be_generated": True, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "model_type": "bart",
        "normalize_before": False, "num_hidden_layers": 12, "output_past": True, "pad_token_id": 1,
        "scale_embedding": False, "static_position_embeddings": False, "vocab_size": 50264,
    },
    "bart-large-mnli": {
        **LARGE, "activation_function": "gelu", "architectures": ["BartForSequenceClassification"], "bos_token_id": 0,
        "classifier_dropout": 0.0, "decoder_start_token_id": 2, "eos_token_id": 2, "forced_eos_token_id": 2,
        "id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}, "model_type": "bart",
        "normalize_before": False, "normalize_embedding": True, "pad_token_id": 1, "scale_embedding": False,
        "vocab_size": 50265,
    },
    "mbart-large-cc25": {
        **LARGE, "activation_function": "gelu", "add_bias_logits": False, "add_final_layer_norm": True,
        "architectures": ["MBartForConditionalGeneration"], "bos_token_id": 0, "eos_token_id": 2,
        "extra_pos_embeddings": 2, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "model_type": "mbart",
        "normalize_before": True, "normalize_embedding": True, "num_hidden_layers": 12, "pad_token_id": 1,
        "scale_embedding": True, "static_position_embeddings": False, "vocab_size": 250027,
    },
    "pegasus-xsum": {
        **LARGE, "activation_dropout": 0.1, "activation_function": "relu", "add_bias_logits": False,
        "add_final_layer_norm": True, "architectures": ["PegasusForConditionalGeneration"], "attention_dropout": 0.1,
        "bos_token_id": 0, "decoder_layers": 16, "decoder_start_token_id": 0, "encoder_layers": 16, "eos_token_id": 1,
        "extra_pos_embeddings": 1, "forced_eos_token_id": 1, "length_penalty": 0.6, "max_length": 64,
        "max_position_embeddings": 512, "model_type": "pegasus", "normalize_before": True,
        "normalize_embedding": False, "num_beams": 8, "pad_token_id": 0, "scale_embedding": True,
        "static_position_embeddings": True, "vocab_size": 96103,
    },
    "opus-mt-en-de": {
        **LARGE, "activation_function": "swish", "add_bias_logits": False, "add_final_layer_norm": False,
        "architectures": ["MarianMTModel"], "bos_token_id": 0, "d_model": 512, "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048, "decoder_layers": 6, "decoder_start_token_id": 58100, "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048, "encoder_layers": 6, "eos_token_id": 0, "max_length": 512,
        "max_position_embeddings": 512, "model_type": "marian", "normalize_before": False,
        "normalize_embedding": False, "num_beams": 6, "num_hidden_layers": 6, "pad_token_id": 58100,
        "scale_embedding": True, "static_position_embeddings": True, "vocab_size": 58101,
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_configurations_are_the_presets(preset: str):
    published, settings = registry.presets()[preset], PUBLISHED[preset]
    family = registry.family(published.family)
    assert registry.family_by_model_type(settings["model_type"]) == published.family
    assert config_map.read(family, settings) == published.config
    assert config_map.task_of(family, settings) in ("seq2seq-lm", "sequence-classification")


@pytest.mark.parametrize(
    ("preset", "count"),
    [("bart-base", 139_420_416), ("bart-large", 406_291_456), ("mbart-large-cc25", 610_851_840),
     ("pegasus-large", 568_699_904), ("opus-mt-en-de", 73_886_208)],
)  # fmt: skip
def test_published_sizes(preset: str, count: int):
    """Without the bias of the logits, which is not trained, and without sinusoids."""
    published = registry.presets()[preset]
    assert published.params - published.config.vocab_size == count


@pytest.mark.parametrize(("preset", "millions"), [("transformer-base", 65), ("transformer-big", 213)])
def test_sizes_of_the_first_transformers(preset: str, millions: float):
    """Table 3 of the paper; its vocabulary has about 37000 tokens."""
    published = registry.presets()[preset]
    assert abs(published.params / (1e6 * millions) - 1) < 0.04
    with pytest.raises(FileNotFoundError, match=f"no weights of {preset} were published: make fresh ones"):
        hub.resolve(preset, registry.presets())


def tiny(family: str, **settings: Any) -> dict[str, Any]:
    """The keys of a config.json."""
    return config_map.write(registry.family(family), families.small(family), "seq2seq-lm") | settings


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bart", {"normalize_before": True}, "normalize_before is True; only False is supported"),
        ("mbart", {"add_final_layer_norm": False}, "add_final_layer_norm is False; only True is supported"),
        ("pegasus", {"static_position_embeddings": False}, "static_position_embeddings is False; only True"),
        ("bart", {"encoder_layerdrop": 0.1}, "encoder_layerdrop is 0.1; only 0.0 is supported"),
        ("bart", {"forced_bos_token_id": 90}, "forced_bos_id is 90, outside of the vocabulary"),
        ("mbart", {"decoder_attention_heads": 5}, "num_decoder_heads=5 does not divide width=32"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False; only True"),
        ("marian", {"tie_word_embeddings": False}, "tie_word_embeddings is False; only True is supported"),
    ],
    ids=str,
)
def test_configurations_that_cannot_be(family: str, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_map.read(registry.family(family), tiny(family, **settings))


@pytest.mark.parametrize("family", KIN)
def test_the_first_published_files(tmp_path: Path, family: str):
    """With every embedding twice, a version of the format, sinusoids of another implementation, and no bias of the
    logits."""
    case = families.Case(family=family, task="seq2seq-lm", config=families.small(family))
    flat = trees.flatten(case.params())
    flat["lm_head/bias"] = np.zeros_like(flat["lm_head/bias"])
    bundle = Bundle(case.model, trees.unflatten(flat), case.config)
    save_pretrained(tmp_path, bundle)
    tensors = {name: np.asarray(x) for name, x in safetensors.read_folder(tmp_path).items()}
    assert not tensors.pop("final_logits_bias").any()
    aliases = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    tensors |= dict.fromkeys(aliases, tensors["model.shared.weight"])
    for pattern, _ in registry.family(family).PUBLISHED.ignored:
        for side in ("encoder", "decoder"):
            name = pattern.replace("(encoder|decoder)", side).replace("\\", "")
            tensors[f"model.{name}"] = np.full((3, 4), 7, np.float32)
    (tmp_path / "old").mkdir()
    safetensors.write_folder(tmp_path / "old", tensors)
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    old = from_pretrained(tmp_path / "old")
    assert old.fresh == () and families.difference(old.params, bundle.params) == 0


@pytest.mark.parametrize(
    ("family", "task", "written"),
    [("pegasus", "seq2seq-lm", 2), ("pegasus", "base", 2), ("marian", "base", 2), ("marian", "seq2seq-lm", 0)],
)
def test_sinusoids_are_written_where_the_reference_misses_them(tmp_path: Path, family: str, task: str, written: int):
    case = families.Case(family=family, task=task, config=families.small(family)).with_(param_dtype="bfloat16")
    save_pretrained(tmp_path, Bundle(case.model, case.params(), case.config))
    tables = {name: x for name, x in safetensors.read_folder(tmp_path).items() if "embed_positions" in name}
    assert len(tables) == written
    for x in tables.values():
        assert np.asarray(x).dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(x).astype(float), sinusoids(24, 32), atol=4e-3)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_sinusoids():
    """At each position a sine and a cosine for every frequency, from 1 down to nearly 1/10000."""
    angles = 7 / 10000 ** np.array([0, 1 / 3, 2 / 3])
    np.testing.assert_allclose(sinusoids(50, 6)[7], [*np.sin(angles), *np.cos(angles)], rtol=1e-12)
    assert sinusoids(4, 5).shape == (4, 5)


def test_fresh_embeddings_are_as_large_as_positions():
    """Embeddings are small, for the logits, and scaled by the root of the width when they are looked up (section
    3.4)."""
    case = families.Case(family="marian", task="base", config=families.small("marian", width=256, vocab_size=500))
    params = families.fresh(case.model, jax.random.key(0), *marian.Model.example_inputs("base"))
    _, asked = families.apply(case.model, params, case.tokens(2, 20), case.tokens(2, 20), mutable=("intermediates",))
    (embedded_BTD,) = asked["intermediates"]["encoder_embedded_BTD"]
    assert 1.3 < np.square(np.asarray(embedded_BTD)).mean() < 1.7  # 1 of tokens, 1/2 of sines and cosines


def test_mbart_classifies_a_text_from_its_language_on():
    """The decoder reads the source with its last token moved to the front; padding on either side changes nothing."""
    case = families.Case(family="mbart", task="question-answering", config=families.small("mbart")).wide()
    with jax.enable_x64(True):
        params, source_BS = case.params(), case.tokens(2, 7)
        given = families.apply(case.model, params, source_BS, np.roll(source_BS, 1, axis=1))
        alone = families.apply(case.model, params, source_BS)
        np.testing.assert_allclose(alone.logits, given.logits, rtol=1e-12)
        for left, right in ((2, 0), (0, 2)):
            padded = np.pad(source_BS, ((0, 0), (left, right)))
            valid = np.pad(np.ones_like(source_BS, bool), ((0, 0), (left, right)))
            logits = np.asarray(families.apply(case.model, params, padded, valid_BS=valid).logits)
            np.testing.assert_allclose(logits[:, left : left + 7], alone.logits, rtol=1e-9)


@pytest.mark.parametrize("family", ["bart", "mbart"])
def test_texts_are_classified_by_their_last_end(family: str):
    case = families.Case(family=family, task="sequence-classification", config=families.small(family))
    params, end = case.params(), case.config.eos_id
    source_BS = np.array([[5, end, 7, end, 9, 11]])
    out = families.apply(case.model, params, source_BS)
    head = lambda model, hidden_BD: model.head(hidden_BD, False)
    logits = families.apply(case.model, params, np.asarray(out.hidden_BTD)[:, 3], method=head)
    np.testing.assert_allclose(out.logits, logits, rtol=1e-5)
    with pytest.raises(ValueError, match=f"row 0 of source_BS has no token {end}, the end of a text"):
        case.model.apply({"params": params}, np.array([[5, 7]]))


@pytest.mark.parametrize("family", KIN)
def test_beyond_the_positions(family: str):
    config = families.small(family)
    module = registry.family(family)
    with pytest.raises(ValueError, match="a cache of 25 tokens: the model has 24 positions"):
        module.init_cache(config, 1, 25)
    with pytest.raises(ValueError, match="source_BS has rows of 25 tokens, and the model has 24 positions"):
        module.Model(config).apply({"params": {}}, np.zeros((1, 25), np.int32), method="encode")
