"""T5 and its variants: published folders, tied output layers, and biases by distance."""

import json
from pathlib import Path
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry, trees
from transformer_zoo.checkpoints import config_map, safetensors
from transformer_zoo.models import t5
from transformer_zoo.nn.positions import distances, relative_buckets
from transformer_zoo.pretrained import Bundle, from_pretrained, save_pretrained

TINY = {
    "vocab_size": 90,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
UNTIED = {"tie_word_embeddings": False}

# What the config.json of models on the hub say, as far as it matters to a model.
PUBLISHED = {
    "t5-small": {
        "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0,
        "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0, "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8, "num_layers": 6,
        "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"max_length": 200}}, "vocab_size": 32128,
    },
    "t5-v1_1-base": {
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 768,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
        "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12, "output_past": True, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "vocab_size": 32128,
    },
    "byt5-small": {
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 3584, "d_kv": 64, "d_model": 1472,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "gradient_checkpointing": False, "initializer_factor": 1.0, "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 4, "num_heads": 6, "num_layers": 12,
        "pad_token_id": 0, "relative_attention_num_buckets": 32, "tie_word_embeddings": False,
        "tokenizer_class": "ByT5Tokenizer", "use_cache": True, "vocab_size": 384,
    },
    "mt5-small": {
        "architectures": ["MT5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "mt5",
        "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "vocab_size": 250112,
    },
    "umt5-small": {
        "architectures": ["UMT5ForConditionalGeneration"], "d_ff": 1024, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
        "is_gated_act": True, "layer_norm_epsilon": 1e-06, "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8,
        "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "scalable_attention": True, "tie_word_embeddings": False, "vocab_size": 256384,
    },
    "ul2": {
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 16384, "d_kv": 256, "d_model": 4096,
        "decoder_start_token_id": 0, "dense_act_fn": "silu", "dropout_rate": 0.1, "eos_token_id": 1,
        "feed_forward_proj": "gated-silu", "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True,
        "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_decoder_layers": 32, "num_heads": 16,
        "num_layers": 32, "pad_token_id": 0, "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32, "vocab_size": 32128,
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_configurations_are_the_presets(tmp_path: Path, preset: str):
    """Also without some keys: the decoder's layers, the activation, the tie, the model type."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[preset]))
    settings = config_map.read_file(tmp_path)
    config = registry.presets()[preset].config
    assert settings["model_type"] == config.model_type
    assert config_map.read(t5, settings) == config
    assert config_map.task_of(t5, settings) == "seq2seq-lm"


@pytest.mark.parametrize(
    ("preset", "count"),
    [("t5-small", 60_506_624), ("t5-11b", 11_307_321_344), ("t5-v1_1-xl", 2_849_757_184), ("mt5-base", 582_401_280),
     ("byt5-small", 299_637_760), ("ul2", 19_459_613_696)],
)  # fmt: skip
def test_published_sizes(preset: str, count: int):
    assert registry.presets()[preset].params == count


@pytest.mark.parametrize(
    ("settings", "activation", "gated"),
    [
        ({}, "relu", False),
        ({"feed_forward_proj": "gelu"}, "gelu", False),
        ({"feed_forward_proj": "gated-gelu"}, "gelu_new", True),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gelu_new", True),
        ({"feed_forward_proj": "gated-silu"}, "silu", True),
        ({"model_type": "mt5"}, "gelu_new", True),
        ({"model_type": "umt5", "feed_forward_proj": "relu"}, "relu", False),
    ],
    ids=str,
)
def test_hidden_layers(settings: dict[str, Any], activation: str, gated: bool):
    config = config_map.read(t5, TINY | settings)
    assert (config.activation, config.gated_mlp) == (activation, gated)
    assert config_map.read(t5, config_map.write(t5, config, "base")) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feed_forward_proj": "gated-gelo"}, "activation 'gelo' is not known"),
        ({"relative_attention_num_buckets": 3}, "num_buckets=3 and max_distance=128: there must be at least 4 buckets"),
        ({"relative_attention_max_distance": 16}, "num_buckets=32 and max_distance=16"),
        ({"decoder_start_token_id": 90}, "decoder_start_id is 90, outside of the vocabulary"),
        ({"is_decoder": True}, "is_decoder is True; only False is supported"),
    ],
    ids=str,
)
def test_configurations_that_cannot_be(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config_map.read(t5, TINY | settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mt5"}, "scale_logits=True: an mt5 does not scale its logits, .* Set scale_logits=False"),
        ({"model_type": "umt5"}, "bias_per_layer=False with model_type='umt5': .* Set bias_per_layer=True"),
        ({"bias_per_layer": True}, "bias_per_layer=True with model_type='t5': .* Set bias_per_layer=False"),
        (
            {"model_type": "mt5", "bias_per_layer": True, "scale_logits": False},
            "bias_per_layer=True with model_type='mt5': .* Set bias_per_layer=False",
        ),
    ],
    ids=str,
)
def test_fields_that_contradict_the_model_type(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        t5.Config(**fields)


@pytest.mark.parametrize("model_type", t5.PUBLISHED.model_types)
def test_the_model_type_is_read_as_biases_per_layer(model_type: str):
    config = config_map.read(t5, TINY | {"model_type": model_type})
    assert config.bias_per_layer == (model_type == "umt5")
    assert config_map.write(t5, config, "base")["model_type"] == model_type


def test_a_start_that_is_not_said_is_the_padding():
    assert config_map.read(t5, TINY | {"pad_token_id": 5}).decoder_start_id == 5


# ---- whose tensors ---------------------------------------------------------------------------------------------------


def rewrite(folder: Path, tensors: dict[str, np.ndarray], **settings: Any) -> None:
    """Changes the tensors and the settings of a folder."""
    (folder / "model.safetensors").unlink()
    safetensors.write_folder(folder, tensors)
    file = folder / "config.json"
    said = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


def made(**settings: Any) -> Bundle:
    config = config_map.read(t5, TINY | settings)
    model = t5.Model(config)
    return Bundle(model, families.random_params(model), config)


def saved(folder: Path, **settings: Any) -> tuple[Bundle, dict[str, np.ndarray]]:
    bundle = made(**settings)
    save_pretrained(folder, bundle)
    return bundle, {name: np.asarray(x) for name, x in safetensors.read_folder(folder).items()}


def same(one: Bundle, other: Bundle) -> bool:
    return one.config == other.config and families.difference(one.params, other.params) == 0


def test_the_first_checkpoints(tmp_path: Path):
    """Copies of the embeddings on both sides and as the output layer, and a bias of cross-attention that was never
    read."""
    bundle, tensors = saved(tmp_path)
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    more = {name: tensors["shared.weight"] for name in copies}
    more["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones((32, 2), np.float32)
    rewrite(tmp_path, tensors | more, scale_decoder_outputs=None, tie_word_embeddings=None, num_decoder_layers=2)
    assert same(from_pretrained(tmp_path), bundle)
    rewrite(tmp_path, {name: x for name, x in (tensors | more).items() if name != "shared.weight"})
    assert same(from_pretrained(tmp_path), bundle)
    rewrite(tmp_path, tensors | more | {copies[0]: tensors["shared.weight"] + 1})
    with pytest.raises(ValueError, match="not the same as shared.weight, .*:  encoder.embed_tokens.weight"):
        from_pretrained(tmp_path)


def test_tensors_decide_who_is_tied(tmp_path: Path):
    """transformers 5 calls every T5 tied, and has another key for the scale of logits."""
    bundle, tensors = saved(tmp_path, **UNTIED)
    assert not bundle.config.tied and not bundle.config.scale_logits and "lm_head.weight" in tensors
    assert same(from_pretrained(tmp_path), bundle)
    rewrite(tmp_path, tensors, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert same(from_pretrained(tmp_path), bundle)
    rewrite(tmp_path, tensors, tie_word_embeddings=True, scale_decoder_outputs=None)
    scaled = from_pretrained(tmp_path)
    assert not scaled.config.tied and scaled.config.scale_logits
    rewrite(tmp_path, tensors | {"lm_head.weight": tensors["shared.weight"]}, scale_decoder_outputs=False)
    tied = from_pretrained(tmp_path)
    assert tied.config.tied and not tied.config.scale_logits and "head" not in tied.params
    save_pretrained(tmp_path / "again", tied)
    assert same(from_pretrained(tmp_path / "again"), tied)


def test_an_output_layer_that_is_not_there_is_the_table(tmp_path: Path):
    """As in LongT5, whose config.json says untied: that was once the way to leave logits unscaled."""
    bundle, tensors = saved(tmp_path)
    rewrite(tmp_path, tensors, tie_word_embeddings=False, scale_decoder_outputs=None)
    found = from_pretrained(tmp_path)
    assert found.config.tied and not found.config.scale_logits
    assert families.difference(found.params, bundle.params) == 0


def test_scaled_logits_are_smaller_by_the_root_of_the_width(tmp_path: Path):
    bundle, plain = made(), made(scale_decoder_outputs=False)
    ids = np.arange(6)[None]
    one, other = (np.asarray(families.apply(m.model, bundle.params, ids, ids).logits) for m in (bundle, plain))
    assert families.difference(4 * one, other) < 1e-5


def test_an_encoder_is_read_from_the_whole(tmp_path: Path):
    """Token classification has no decoder, and needs none; the rest of the checkpoint is expected."""
    bundle, tensors = saved(tmp_path)
    with pytest.warns(UserWarning, match="has no head/scores/bias, head/scores/kernel: fresh"):
        judge = from_pretrained(tmp_path, task="token-classification", labels=("noun", "verb", "other"))
    flat = trees.flatten(judge.params)
    assert not [path for path in flat if path.startswith("decoder")]
    assert all(np.array_equal(trees.flatten(bundle.params)[path], x) for path, x in flat.items() if "head" not in path)
    assert families.apply(judge.model, judge.params, np.ones((2, 5), np.int32)).logits.shape == (2, 5, 3)
    save_pretrained(tmp_path / "judge", judge)
    assert set(safetensors.read_folder(tmp_path / "judge")) == {
        "classifier.weight", "classifier.bias",
        *(f"transformer.{name}" for name in tensors if not name.startswith("decoder")),
    }  # fmt: skip
    rewrite(tmp_path, tensors | {"encoder.block.7.layer.1.layer_norm.weight": np.ones(16, np.float32)})
    with pytest.raises(ValueError, match="unexpected:  encoder.block.7.layer.1.layer_norm.weight"):
        from_pretrained(tmp_path, task="token-classification")


# ---- classification tasks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sequence-classification", "question-answering"])
def test_classifiers_read_the_source_twice(task: str):
    """The default target is the source after the start token, with padding on either side."""
    case = families.Case(family="t5", task=task, config=families.without_dropout(families.small("t5")))
    params = case.params()
    row = [5, 6, 1, 7, 8, 1]
    target_BT = np.array([[case.config.decoder_start_id, *row[:-1]]], np.int32)
    given = families.apply(case.model, params, np.array([row], np.int32), target_BT)
    alone = families.apply(case.model, params, np.array([row], np.int32))
    assert families.difference(alone.logits, given.logits) == 0
    for left, right in ((0, 2), (2, 0)):
        source_BS = np.array([[9] * left + row + [1] * right], np.int32)
        valid_BS = np.array([[False] * left + [True] * 6 + [False] * right])
        padded = np.asarray(families.apply(case.model, params, source_BS, valid_BS=valid_BS).logits)
        padded = padded[:, left : left + 6] if padded.ndim == 3 else padded
        assert families.difference(padded, np.asarray(given.logits)) < 1e-5


def test_a_text_is_read_as_the_source():
    case = families.Case(family="t5", task="sequence-classification", config=families.small("t5"))
    params, source_BS = case.params(), np.array([[5, 6, 1, 0], [5, 7, 8, 1]], np.int32)
    valid_BS = source_BS > 0
    one = families.apply(case.model, params, source_BS, None, valid_BS, method="read")
    other = families.apply(case.model, params, source_BS, valid_BS=valid_BS)
    assert one.logits.shape == (2, 2) and families.difference(one.logits, other.logits) == 0


def test_a_text_without_its_end_is_refused():
    case = families.Case(family="t5", task="sequence-classification", config=families.small("t5"))
    params, rows = case.params(), np.array([[5, 6, 1], [5, 1, 6]], np.int32)
    valid_BS = np.array([[True] * 3, [True, False, True]])
    with pytest.raises(ValueError, match="row 1 of source_BS has no token 1, the end of a text"):
        case.model.apply({"params": params}, rows, valid_BS=valid_BS)
    with pytest.raises(ValueError, match=r"target_BT has shape \(2, 2\) and the tokens \(2, 3\)"):
        case.model.apply({"params": params}, rows, rows[:, :2])


# ---- biases by distance ---------------------------------------------------------------------------------------------


def test_buckets_of_a_decoder():
    """By the definition of section 2.1: one for each near distance to the left, then wider and wider ones."""
    bucket = dict(zip(range(-199, 200), relative_buckets(200, 32, 128, causal=True).tolist()))
    assert [bucket[-away] for away in range(17)] == list(range(17))
    assert {bucket[ahead] for ahead in range(1, 200)} == {0}  # never seen
    assert all(bucket[-away] <= bucket[-away - 1] for away in range(198)) and bucket[-127] == bucket[-199] == 31
    for away in range(16, 128):
        assert bucket[-away] == int(16 + 16 * np.log(away / 16) / np.log(128 / 16))


def test_distances_count_what_is_real():
    """With a cache of padded prompts, on either side; and in its free slots, which no query sees."""
    assert distances(3)[0].tolist() == [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]

    @jax.jit
    def ahead():
        cache = t5.init_cache(families.small("t5"), 2, 6)
        cache = cache.admit(jnp.array([[False, True, True], [True, False, False]]))
        return distances(2, cache.admit(jnp.ones((2, 2), bool)))

    ahead_BTS = np.asarray(ahead())
    assert ahead_BTS.shape == (2, 2, 6)
    assert ahead_BTS[0, :, 1:5].tolist() == [[-2, -1, 0, 1], [-3, -2, -1, 0]]
    assert ahead_BTS[1][:, [0, 3, 4]].tolist() == [[-1, 0, 1], [-2, -1, 0]]


@pytest.mark.parametrize(
    ("model_type", "path", "changed"),
    [
        ("t5", "decoder_relative_bias/embedding", [True, True]),
        ("umt5", "decoder_blocks/relative_bias/embedding", [False, True]),
    ],
)
def test_whose_the_tables_are(model_type: str, path: str, changed: list[bool]):
    """One for all layers of a stack, or one for each: a change of the last table affects exactly its layers."""
    config = families.without_dropout(families.small("t5", model_type=model_type, bias_per_layer=model_type == "umt5"))
    case = families.Case(family="t5", task="base", config=config)
    params, ids = case.params(), {"source_BS": case.tokens(1, 7), "target_BT": case.tokens(1, 5)}
    table = trees.flatten(params)[path]
    assert table.shape == (8, 8) if model_type == "t5" else (2, 8, 8)
    changed_table = np.array(table)
    changed_table.reshape(-1, 8, 8)[-1, 1] += 1
    other = trees.unflatten(trees.flatten(params) | {path: changed_table})

    def weights(params: Any) -> Any:
        asked = families.apply(case.model, params, **ids, mutable=("intermediates",))[1]["intermediates"]
        return np.asarray(trees.flatten(asked)["decoder_blocks/attention/weights_BHTS"][0])

    differ = [families.difference(a, b) > 1e-3 for a, b in zip(weights(params), weights(other))]
    assert differ == changed


@pytest.mark.parametrize("model_type", ["t5", "umt5"])
def test_a_step_of_decoding_reads_no_source(model_type: str):
    """With the source in the cache, only attention has products of the source's length; the bias is computed for the
    new queries only."""
    config = families.without_dropout(families.small("t5", model_type=model_type, bias_per_layer=model_type == "umt5"))
    case, S, slots = families.Case(family="t5", task="seq2seq-lm", config=config), 53, 29
    params, one = case.params(), np.ones((2, 1), np.int32)

    def begin(params):
        cache = case.module.init_cache(config, 2, slots)
        return case.model.apply({"params": params}, np.ones((2, S), np.int32), one, cache=cache).cache

    cache = jax.eval_shape(begin, params)
    assert cache.cross[0].shape == (2, 2, 8, S, 6) and cache.cross_valid_BS.shape == (2, S)
    step = lambda cache: case.model.apply({"params": params}, None, one, cache=cache)
    program = jax.jit(step).lower(cache).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line and f"{S}x" in line]
    assert products and all("x8x6" in line for line in products)  # of heads, none of the width 32
    assert not any(f"x{S}x32x" in line for line in program.splitlines())
    assert not any(f"{slots}x{slots}" in line for line in program.splitlines())
