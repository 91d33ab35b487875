"""Folders that the reference implementation wrote are read, and those that we write are read by it."""

import contextlib
import inspect
import re
from pathlib import Path
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry, trees
from transformer_zoo.checkpoints import config_map, safetensors
from transformer_zoo.models import mpnet
from transformer_zoo.nn.positions import relative_buckets
from transformer_zoo.pretrained import from_config, from_pretrained, save_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity import reference  # noqa: E402

BART = [
    {"vocab_size": 90, "max_position_embeddings": 24, "d_model": 16, "encoder_layers": 3, "decoder_layers": 2,
     "encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 36},
    {"vocab_size": 128, "max_position_embeddings": 16, "d_model": 12, "encoder_layers": 1, "decoder_layers": 2,
     "encoder_attention_heads": 3, "decoder_attention_heads": 2, "encoder_ffn_dim": 10, "decoder_ffn_dim": 8,
     "activation_function": "relu", "scale_embedding": True, "decoder_start_token_id": 5},
]  # fmt: skip
TINY = {
    "albert": [
        {"vocab_size": 90, "max_position_embeddings": 24, "embedding_size": 8, "hidden_size": 16,
         "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40},
        {"vocab_size": 128, "max_position_embeddings": 16, "embedding_size": 12, "hidden_size": 12,
         "num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2, "num_attention_heads": 3,
         "intermediate_size": 10, "hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-3},
    ],
    "bart": BART,
    "bert": [
        {"vocab_size": 90, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 3,
         "num_attention_heads": 2, "intermediate_size": 40},
        {"vocab_size": 128, "max_position_embeddings": 16, "hidden_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 3, "intermediate_size": 10, "hidden_act": "relu", "type_vocab_size": 3,
         "layer_norm_eps": 1e-3},
    ],
    "deberta": [
        {"vocab_size": 90, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 3,
         "num_attention_heads": 2, "intermediate_size": 40, "relative_attention": True, "pos_att_type": "c2p|p2c",
         "position_biased_input": False, "embedding_size": 16, "talking_head": False, "cls_dropout": None},
        {"vocab_size": 128, "max_position_embeddings": 16, "hidden_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 3, "intermediate_size": 10, "hidden_act": "relu", "type_vocab_size": 3,
         "layer_norm_eps": 1e-3, "relative_attention": True, "pos_att_type": ["p2c"], "embedding_size": 8,
         "max_relative_positions": 5, "pooler_hidden_act": "tanh", "talking_head": True, "cls_dropout": 0.3},
    ],
    "deberta_v2": [
        {"vocab_size": 90, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 3,
         "num_attention_heads": 2, "intermediate_size": 40, "relative_attention": True, "pos_att_type": "c2p|p2c",
         "position_buckets": 6, "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False,
         "embedding_size": 16, "conv_kernel_size": 0, "conv_act": "tanh", "cls_dropout": None},
        {"vocab_size": 128, "max_position_embeddings": 16, "hidden_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 3, "intermediate_size": 10, "hidden_act": "relu", "type_vocab_size": 3,
         "layer_norm_eps": 1e-3, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "conv_kernel_size": 3,
         "conv_act": "gelu", "embedding_size": 8, "max_relative_positions": 9, "pooler_hidden_act": "tanh",
         "norm_rel_ebd": "none", "share_att_key": False, "position_buckets": -1, "cls_dropout": 0.3},
    ],
    "distilbert": [
        {"vocab_size": 90, "max_position_embeddings": 24, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 40},
        {"vocab_size": 128, "max_position_embeddings": 16, "dim": 12, "n_layers": 1, "n_heads": 3, "hidden_dim": 10,
         "activation": "relu", "sinusoidal_pos_embds": True, "qa_dropout": 0.3},
    ],
    "electra": [
        {"vocab_size": 90, "max_position_embeddings": 24, "embedding_size": 10, "hidden_size": 16,
         "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40},
        {"vocab_size": 128, "max_position_embeddings": 16, "embedding_size": 12, "hidden_size": 12,
         "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 10, "hidden_act": "relu",
         "type_vocab_size": 3, "layer_norm_eps": 1e-3},
    ],
    "gpt2": [
        {"vocab_size": 90, "n_positions": 24, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 40},
        {"vocab_size": 128, "n_positions": 16, "n_embd": 12, "n_layer": 1, "n_head": 3, "tie_word_embeddings": False},
        {"vocab_size": 300, "n_positions": 20, "n_embd": 24, "n_layer": 2, "n_head": 4, "activation_function": "relu",
         "scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "layer_norm_epsilon": 1e-3},
    ],
    "longt5": [
        {"vocab_size": 90, "d_model": 16, "d_kv": 6, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2,
         "num_heads": 2, "local_radius": 3, "global_block_size": 4, "encoder_attention_type": "transient-global",
         "decoder_start_token_id": 0},
        {"vocab_size": 128, "d_model": 12, "d_kv": 3, "d_ff": 10, "num_layers": 1, "num_heads": 3,
         "local_radius": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ],
    "marian": [
        BART[0] | {"pad_token_id": 89, "decoder_start_token_id": 89},
        BART[1] | {"pad_token_id": 7},
    ],
    "mbart": BART,
    "modernbert": [
        {"vocab_size": 90, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 4,
         "num_attention_heads": 2, "intermediate_size": 40, "pad_token_id": 5, "local_attention": 4,
         "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
        {"vocab_size": 128, "max_position_embeddings": 16, "hidden_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 3, "intermediate_size": 10, "hidden_activation": "relu", "norm_bias": True,
         "attention_bias": True, "mlp_bias": True, "decoder_bias": False, "classifier_bias": True,
         "classifier_pooling": "mean", "norm_eps": 1e-3, "pad_token_id": None, "global_attn_every_n_layers": 2},
        {"vocab_size": 128, "max_position_embeddings": 16, "hidden_size": 12, "num_hidden_layers": 4,
         "num_attention_heads": 3, "intermediate_size": 10, "pad_token_id": 0, "local_attention": 6,
         "layer_types": ["full_attention", "sliding_attention"] * 2, "global_attn_every_n_layers": 2,
         "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 7.0}}},
    ],
    "mpnet": [
        {"vocab_size": 300, "max_position_embeddings": 26, "hidden_size": 16, "num_hidden_layers": 3,
         "num_attention_heads": 2, "intermediate_size": 40},
        {"vocab_size": 128, "max_position_embeddings": 18, "hidden_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 3, "intermediate_size": 10, "hidden_act": "relu", "layer_norm_eps": 1e-3},
    ],
    "pegasus": BART,
    "roberta": [
        {"vocab_size": 90, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 3,
         "num_attention_heads": 2, "intermediate_size": 40, "pad_token_id": 5},
        {"vocab_size": 128, "max_position_embeddings": 18, "hidden_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 3, "intermediate_size": 10, "hidden_act": "relu", "type_vocab_size": 1,
         "layer_norm_eps": 1e-3, "model_type": "xlm-roberta", "pad_token_id": 0},
    ],
    "t5": [
        {"vocab_size": 90, "d_model": 16, "d_kv": 6, "d_ff": 40, "num_layers": 3, "num_decoder_layers": 2,
         "num_heads": 2, "decoder_start_token_id": 0},
        {"vocab_size": 128, "d_model": 12, "d_kv": 3, "d_ff": 10, "num_layers": 1, "num_heads": 3,
         "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 2,
         "relative_attention_num_buckets": 6, "relative_attention_max_distance": 5, "layer_norm_epsilon": 1e-3},
        {"vocab_size": 100, "d_model": 12, "d_kv": 4, "d_ff": 10, "num_layers": 2, "num_heads": 2,
         "model_type": "umt5", "relative_attention_num_buckets": 8},
        {"vocab_size": 100, "d_model": 12, "d_kv": 4, "d_ff": 10, "num_layers": 2, "num_heads": 2,
         "model_type": "mt5", "feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
    ],
}  # fmt: skip
TINY = {family: TINY.get(family) or [families.written(family)] for family in registry.families()}
CASES = [
    pytest.param(name, task, settings, id=f"{name}-{task}-{i}")
    for name in registry.families()
    for task in families.tasks(name)
    for i, settings in enumerate(TINY[name])
]
SPECIAL = {"bos_token_id": 0, "eos_token_id": 3}  # MPNet reads 1 as padding, whatever it is told


def configuration(family: str, settings: dict[str, Any]) -> Any:
    """The reference's configuration."""
    config = transformers.AutoConfig.for_model(
        **{"model_type": registry.family(family).PUBLISHED.model_type} | settings | SPECIAL
    )
    reference.pad_inside(config)
    return config


def theirs(family: str, task: str, settings: dict[str, Any], dtype: Any = torch.float64) -> Any:
    """A model of the reference with random parameters, biases and norms too."""
    module, config = registry.family(family), configuration(family, settings)
    torch.manual_seed(0)
    build = getattr(transformers, module.PUBLISHED.class_names(config.model_type)[task])
    with reference.in_double() if dtype == torch.float64 else contextlib.nullcontext():  # speeds of rotation
        model = build(config).to(dtype).eval()
    reference.settle(model)
    if dtype in (torch.float16, torch.bfloat16):  # as when it reads a file
        for name, weight in reference.weights(model):
            if any(kept in name for kept in model._keep_in_fp32_modules_strict or ()):
                weight.data = weight.data.float()
    if config.tie_word_embeddings and not settings.get("tie_word_embeddings", True):
        reference.untie(model)
    with torch.no_grad():
        for _, weight in reference.weights(model):
            weight.copy_(torch.randn(weight.shape) * 0.2)
    return model


def tokens(vocab_size: int, length: int) -> np.ndarray:
    """Rows whose last token, and no other, ends a text."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (2, length))
    ids = np.where(ids == SPECIAL["eos_token_id"], 2, ids)
    ids[:, -1] = SPECIAL["eos_token_id"]
    return ids


def outputs(task: str, model: Any, ids: np.ndarray) -> np.ndarray:
    """All outputs, concatenated; for a body its hidden states."""
    if hasattr(model, "score"):  # it needs an id of padding to score several rows: one that ends none
        model.config.pad_token_id = 0
    model.config._experts_implementation = "eager"  # products of groups know no float64
    with torch.no_grad(), reference.in_double():
        # All is real, which ModernBERT's means over the tokens of a choice want to be told.
        given = {"input_ids": torch.as_tensor(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.long)}
        if "decoder_input_ids" in inspect.signature(model.forward).parameters:
            given["decoder_input_ids"] = given["input_ids"]
        out = model.double()(**families.for_task(task, given))
    return concatenated({name: x.double().numpy() for name, x in reference.named_outputs([out]).items()})


def ours(bundle: Any, ids: np.ndarray) -> np.ndarray:
    takes = inspect.signature(type(bundle.model).__call__).parameters
    names = [name for name in families.MASKS if name in takes]
    given = families.for_task(bundle.model.task, {name: jnp.asarray(ids) for name in names})
    return concatenated(families.named_outputs(bundle.model.task, families.apply(bundle.model, bundle.params, **given)))


def concatenated(outputs: families.Outputs) -> np.ndarray:
    return np.concatenate([np.ravel(x) for name, x in outputs.items() if name != "pooled_BD"])


def assert_identical_tensors(one: Path, other: Path) -> None:
    a, b = safetensors.read_folder(one), safetensors.read_folder(other)
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


SHARDS = [pytest.param(*case.values, "5GB", id=f"{case.id}-5GB") for case in CASES]
SHARDS += [pytest.param(name, "base", TINY[name][0], "4KB", id=f"{name}-4KB") for name in registry.families()]


@pytest.mark.parametrize(("family", "task", "settings", "shard"), SHARDS)
def test_there_and_back(tmp_path: Path, family: str, task: str, settings: dict[str, Any], shard: str):
    """Theirs, loaded by us, saved by us and loaded by them: the same tensors to the byte, the same outputs."""
    model = theirs(family, task, settings)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (shard == "4KB")
    with jax.enable_x64(True):
        bundle = from_pretrained(tmp_path / "theirs", dtype="float64", param_dtype="float64")
        assert bundle.model.task == task
        ids = tokens(settings["vocab_size"], 10)
        np.testing.assert_allclose(ours(bundle, ids), outputs(task, model, ids), rtol=1e-9, atol=1e-9)
        save_pretrained(tmp_path / "ours", bundle, max_shard_bytes=10**9 if shard == "5GB" else 4000)
    assert_identical_tensors(tmp_path / "theirs", tmp_path / "ours")
    with reference.in_double():
        again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert again.dtype == torch.float64
    reference.settle(again)
    # The tensors are the same to the byte; torch rounds its products by where they lie in memory.
    np.testing.assert_allclose(outputs(task, again, ids), outputs(task, model, ids), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("family", registry.families())
def test_narrow_dtypes(tmp_path: Path, family: str, dtype: str):
    task = list(registry.family(family).PUBLISHED.tasks)[-1]
    model = theirs(family, task, TINY[family][0], getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs")
    save_pretrained(tmp_path / "ours", from_pretrained(tmp_path / "theirs", param_dtype=dtype))
    assert_identical_tensors(tmp_path / "theirs", tmp_path / "ours")
    assert type(model).from_pretrained(tmp_path / "ours").dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("family", "task", "settings"), [case for case in CASES if case.id.endswith("-0")])
def test_fresh_models_load_there(tmp_path: Path, family: str, task: str, settings: dict[str, Any]):
    """As they are made, but for the numbers: random ones need no program, and hide no fault."""
    module = registry.family(family)
    with jax.enable_x64(True):
        bundle = families.made(family, settings | SPECIAL, task=task, dtype="float64", param_dtype="float64")
        save_pretrained(tmp_path, bundle)
    config = configuration(family, settings)
    if task == "question-answering":
        config.num_labels = 2  # a start and an end, as its class says
    name = module.PUBLISHED.class_names(config.model_type)[task]
    with reference.in_double():
        model, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    reference.settle(model)
    assert not any(info.values()), info
    drop = {"architectures", "dtype", "transformers_version", "_name_or_path", "bos_token_id"}
    drop |= {"is_encoder_decoder", "use_cache"}  # an encoder without its decoder says so itself
    drop |= set() if hasattr(bundle.config, "eos_id") else {"eos_token_id"}
    strip = lambda config: {key: value for key, value in config.to_dict().items() if key not in drop}
    assert strip(model.config) == strip(config)
    if task in families.WRITERS:
        ids = tokens(settings["vocab_size"], 10)
        with jax.enable_x64(True):
            np.testing.assert_allclose(ours(bundle, ids), outputs(task, model, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", registry.families())
def test_each_task_reads_the_checkpoints_of_the_others(tmp_path: Path, family: str):
    """The body is found with and without its prefix, also beside other heads."""
    module, settings = registry.family(family), TINY[family][0]
    body = module.Model(config_map.read(module, settings | SPECIAL), task="base")
    paths = trees.flatten(registry.param_shapes(body))
    for task in module.PUBLISHED.tasks:
        whole = theirs(family, task, settings)
        whole.save_pretrained(tmp_path / task)
        if any(re.fullmatch(module.PUBLISHED.absent.get(task, "(?!)"), path) for path in paths):
            with pytest.raises(ValueError, match="missing:  decoder"):
                from_pretrained(tmp_path / task, task="base")
            continue
        with jax.enable_x64(True):
            bundle = from_pretrained(tmp_path / task, task="base", dtype="float64", param_dtype="float64")
        base = getattr(transformers, module.PUBLISHED.class_names()["base"])
        if module.PUBLISHED.prefixes.get(task):  # which the reference does not find
            model = getattr(whole, whole.base_model_prefix)
        else:
            with reference.in_double():
                model = base.from_pretrained(tmp_path / task)
            reference.settle(model)
        ids = tokens(settings["vocab_size"], 10)
        with jax.enable_x64(True):
            np.testing.assert_allclose(ours(bundle, ids), outputs("base", model, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["t5", "longt5"])
def test_an_encoder_alone(tmp_path: Path, family: str):
    """What the reference saves from the class of the encoder; and ours, read by it."""
    spec = registry.family(family).PUBLISHED
    config = transformers.AutoConfig.for_model(**{"model_type": spec.model_type} | TINY[family][0] | SPECIAL)
    torch.manual_seed(0)
    model = getattr(transformers, spec.encoder_class())(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    bundle = from_pretrained(tmp_path / "theirs")
    assert (bundle.model.task, bundle.config.num_decoder_layers) == ("base", 0)
    save_pretrained(tmp_path / "ours", bundle)
    assert_identical_tensors(tmp_path / "theirs", tmp_path / "ours")
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    ids = tokens(TINY[family][0]["vocab_size"], 10)
    for theirs in (model, again):
        expected = theirs(input_ids=torch.as_tensor(ids)).last_hidden_state.detach()
        np.testing.assert_allclose(ours(bundle, ids), expected.ravel(), rtol=2e-4, atol=2e-5)


def test_gpt2_with_the_buffers_of_old_versions(tmp_path: Path):
    """GPT-2 as first published: no prefix, masks among the tensors, a config.json without most keys."""
    model = theirs("gpt2", "causal-lm", TINY["gpt2"][0], torch.float32)
    model.save_pretrained(tmp_path / "new")
    tensors = {
        k.removeprefix("transformer."): np.asarray(x) for k, x in safetensors.read_folder(tmp_path / "new").items()
    }
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = np.ones((1, 1, 24, 24), np.float32)
        tensors[f"h.{layer}.attn.masked_bias"] = np.asarray(-1e4, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    safetensors.write_folder(tmp_path, tensors)
    (tmp_path / "config.json").write_text(
        '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_ctx": 24, "n_embd": 16, "n_head": 2,'
        ' "n_layer": 3, "n_positions": 24, "vocab_size": 90, "n_inner": 40, "task_specific_params": {}}'
    )
    ids = tokens(90, 10)
    said_by_them = outputs("causal-lm", model, ids)
    np.testing.assert_allclose(ours(from_pretrained(tmp_path), ids), said_by_them, rtol=2e-4, atol=2e-5)


def test_fresh_sinusoids_of_distilbert():
    settings = TINY["distilbert"][1]
    assert settings["sinusoidal_pos_embds"]
    model = transformers.DistilBertModel(transformers.DistilBertConfig(**settings))
    table = from_config("distilbert", settings).params["position_embed"]["embedding"]
    np.testing.assert_allclose(table, model.embeddings.position_embeddings.weight.detach(), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (32, 400), (8, 20), (5, 9)])
def test_distances_of_t5(buckets: int, farthest: int, causal: bool):
    """Far beyond the last distance that has a bucket of its own."""
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        torch.arange(-999, 1000), bidirectional=not causal, num_buckets=buckets, max_distance=farthest
    )
    np.testing.assert_array_equal(relative_buckets(1000, buckets, farthest, causal), theirs)


def test_distances_of_mpnet():
    """All distances of the longest row; rows of the other tests are too short for shared buckets."""
    distances = torch.arange(-511, 512)
    buckets = transformers.models.mpnet.modeling_mpnet.MPNetEncoder.relative_position_bucket(distances)
    np.testing.assert_array_equal(relative_buckets(512, mpnet.Config.num_buckets, mpnet.Config.max_distance), buckets)
