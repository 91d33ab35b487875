"""Texts to vectors: every pooling and module by hand; texts do not affect one another."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import families
import jax.numpy as jnp
import numpy as np
import pytest

import transformer_zoo as zoo
from transformer_zoo import embedding
from transformer_zoo.__main__ import main
from transformer_zoo.checkpoints import safetensors, sentence_modules
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.embedding import Embedder, load_embedder
from transformer_zoo.pretrained import Bundle, from_config, save_pretrained

TEXTS = [
    "The window",
    "",
    "a door  ",
    "The door is open and the window is shut " * 4,
    "window window",
    " open the Door",
]
SIZES = {
    "vocab_size": 90, "max_position_embeddings": 40, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
BART = {
    "vocab_size": 64, "max_position_embeddings": 40, "d_model": 4, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 1, "decoder_attention_heads": 1, "encoder_ffn_dim": 4, "decoder_ffn_dim": 4,
}  # fmt: skip
MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    tokenizer = Tokenizer.train(TEXTS * 9, 90, kind="wordpiece")
    bundle = from_config("bert", SIZES | {"vocab_size": max(tokenizer.vocab_size, 64)}, task="base")
    return Bundle(bundle.model, bundle.params, bundle.config, tokenizer)


def write(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def published(
    root: Path, bundle: Bundle, *kinds: str, encoder: str = "", length: int | None = 30, lower_case: bool = False,
    pool: dict[str, Any] | None = None, **own: Any,
) -> Path:  # fmt: skip
    """A folder of sentence-transformers: the encoder, Pooling, and further modules."""
    save_pretrained(root / encoder, bundle)
    write(root / encoder, "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": lower_case})
    write(root / "1_Pooling", "config.json", {"word_embedding_dimension": 16} | (pool or {MODES["mean"]: True}))
    paths = [encoder, "1_Pooling", *(f"{i}_{kind}" for i, kind in enumerate(kinds, start=2))]
    types = ["Transformer", "Pooling", *kinds]
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (path, kind) in enumerate(zip(paths, types))]  # fmt: skip
    write(root, "modules.json", modules)
    write(root, "config_sentence_transformers.json", {"__version__": {}} | own)
    return root


def hidden(bundle: Bundle, text: str, length: int = 30) -> np.ndarray:
    """[T, D] of one text alone, truncated to `length` tokens."""
    ids = bundle.tokenizer.encode(text, template=True, special=True).ids
    ids = ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1])
    row = {"tokens_BT": np.pad(ids, (0, 40 - len(ids)))[None], "valid_BT": np.arange(40)[None] < len(ids)}
    return np.asarray(families.apply(bundle.model, bundle.params, **row).hidden_BTD)[0, : len(ids)]


def by_hand(mode: str, hidden_TD: np.ndarray) -> np.ndarray:
    T = len(hidden_TD)
    weights = np.arange(1, T + 1)
    return {
        "cls": hidden_TD[0], "max": hidden_TD.max(0), "mean": hidden_TD.mean(0), "lasttoken": hidden_TD[-1],
        "mean_sqrt_len": hidden_TD.sum(0) / T**0.5, "weightedmean": weights @ hidden_TD / weights.sum(),
    }[mode]  # fmt: skip


def test_poolings(bundle: Bundle, tmp_path: Path):
    """All poolings concatenated; texts of all lengths in one call, an empty and a too long one among them."""
    alone = [hidden(bundle, text) for text in TEXTS]
    assert min(map(len, alone)) == 2 and max(map(len, alone)) == 30
    embedder = load_embedder(published(tmp_path / "all", bundle, pool=dict.fromkeys(MODES.values(), True)))
    assert embedder.width == 6 * 16
    expected = np.stack([np.concatenate([by_hand(mode, x) for mode in MODES]) for x in alone])
    np.testing.assert_allclose(embedder(TEXTS), expected, rtol=0, atol=2e-6)


def test_how_poolings_are_asked_for(tmp_path: Path):
    """By one switch each, of which the file's order does not matter; or by a list, of which it does."""
    for pool, expected in (
        *(({MODES["mean"]: False, "include_prompt": True, switch: True}, (mode,)) for mode, switch in MODES.items()),
        ({MODES["lasttoken"]: True, MODES["cls"]: True}, ("cls", "lasttoken")),
        ({MODES["mean"]: False}, ("mean",)),
        ({"word_embedding_dimension": 16}, ("mean",)),
        ({"pooling_mode": "lasttoken+mean"}, ("lasttoken", "mean")),
        ({"pooling_mode": ["mean_sqrt_len_tokens", "lasttoken", "mean", "cls"], MODES["max"]: True},
         ("mean_sqrt_len", "lasttoken", "mean", "cls")),
        ({"pooling_mode": "max", "embedding_dimension": 16}, ("max",)),
    ):  # fmt: skip
        write(tmp_path, "config.json", pool)
        assert sentence_modules.of_pooling(tmp_path) == {"poolings": expected, "counts_prompt": True}
    write(tmp_path, "config.json", {"include_prompt": False})
    assert sentence_modules.of_pooling(tmp_path) == {"poolings": ("mean",), "counts_prompt": False}


@pytest.mark.parametrize(("encoder", "bias"), [("", True), ("0_Transformer", False)])
def test_modules(bundle: Bundle, tmp_path: Path, encoder: str, bias: bool):
    root = published(tmp_path, bundle, "Dense", "Dropout", "Normalize", encoder=encoder)
    draw = np.random.default_rng(0)
    weight, shift = draw.normal(size=(5, 16)).astype(np.float32), draw.normal(size=5).astype(np.float32)
    kind = "torch.nn.modules.activation.Tanh"
    write(
        root / "2_Dense",
        "config.json",
        {"in_features": 16, "out_features": 5, "bias": bias, "activation_function": kind},
    )
    safetensors.write_folder(root / "2_Dense", {"linear.weight": weight} | ({"linear.bias": shift} if bias else {}))
    vectors = np.tanh(np.stack([hidden(bundle, text).mean(0) for text in TEXTS]) @ weight.T + bias * shift)
    embedder = load_embedder(root)
    assert embedder.width == 5
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder(TEXTS), expected, rtol=0, atol=5e-6)


def test_batches(bundle: Bundle):
    """Of any size, in any order: the same vectors, from few programs."""
    embedder = Embedder(bundle=bundle, max_length=40)
    embedding._program.clear_cache()
    texts = [" ".join(["door", "window", "open"][i % 3 :][:2] * (i % 23)) for i in range(70)]
    vectors = embedder(texts, batch_size=8)
    assert vectors.dtype == np.float32 and vectors.shape == (70, 16)
    assert embedding._program._cache_size() == 3  # rows of 16, 32 and 40 tokens
    np.testing.assert_array_equal(zoo.embed(Embedder(bundle=bundle, max_length=40), texts, batch_size=8), vectors)
    assert embedding._program._cache_size() == 3  # another embedder of the same model compiles nothing
    order = np.random.default_rng(0).permutation(70)
    np.testing.assert_allclose(embedder([texts[i] for i in order], batch_size=8), vectors[order], atol=2e-6)
    np.testing.assert_allclose(embedder(texts[41:42])[0], vectors[41], atol=2e-6)
    assert embedder([]).shape == (0, 16)
    small = embedder.quantize("int8")(texts[:1])
    assert 0 < np.abs(small - vectors[:1]).max() < 0.02 * np.abs(vectors[:1]).max()


def test_prompts(bundle: Bundle, tmp_path: Path):
    prompts = {"prompts": {"query": "open: ", "document": ""}, "default_prompt_name": "query"}
    root = published(tmp_path / "whole", bundle, **prompts)
    embedder = load_embedder(root)
    expected = np.stack([hidden(bundle, "open: " + text).mean(0) for text in TEXTS])
    np.testing.assert_allclose(embedder(TEXTS), expected, atol=2e-6)
    plain = np.stack([hidden(bundle, text).mean(0) for text in TEXTS])
    np.testing.assert_allclose(embedder(TEXTS, prompt="document"), plain, atol=2e-6)
    np.testing.assert_array_equal(embedder(TEXTS, prompt_text="open: "), embedder(TEXTS))
    np.testing.assert_array_equal(embedder(TEXTS, prompt_text=""), embedder(TEXTS, prompt="document"))
    message = "there is no prompt 'querry': known are query, document; any other text is given as prompt_text"
    with pytest.raises(ValueError, match=message):
        embedder(TEXTS, prompt="querry")
    with pytest.raises(ValueError, match="prompt='query' and prompt_text='': give one of them"):
        embedder(TEXTS, prompt="query", prompt_text="")

    pool = {"pooling_mode": ["cls", "mean"], "include_prompt": False}
    without = published(tmp_path / "without", bundle, pool=pool, **prompts)
    skipped = len(bundle.tokenizer.encode("open:")) + 1  # [CLS] goes with the prompt, [SEP] closes the text
    counted = [hidden(bundle, "open: " + text)[skipped:] for text in TEXTS]
    expected = np.stack([np.concatenate([x[0], x.mean(0)]) for x in counted])  # the first token that counts
    np.testing.assert_allclose(load_embedder(without)(TEXTS), expected, atol=2e-6)


def test_lower_case_and_lengths(bundle: Bundle, tmp_path: Path):
    small = load_embedder(published(tmp_path / "small", bundle, lower_case=True))
    np.testing.assert_array_equal(small(["The DOOR [SEP]"]), small(["the door [SEP]"]))
    sep, read = bundle.tokenizer.sep_id, lambda text: list(small._tokens([text])[0])
    assert [read(text).count(sep) for text in ("a [SEP]", "a [sep]")] == [2, 1]
    as_is = load_embedder(published(tmp_path / "as is", bundle))
    assert np.abs(as_is(["The DOOR"]) - as_is(["the door"])).max() > 1e-3
    for stated, of_tokenizer, expected in ((8, 512, 8), (None, 12, 12), (None, 10**30, 40), (512, 512, 40)):
        root = published(tmp_path / "length", bundle, length=stated)
        write(root, "tokenizer_config.json", {"model_max_length": of_tokenizer})
        assert load_embedder(root).max_length == expected


def test_any_other_encoder(bundle: Bundle, tmp_path: Path):
    """The mean, with a warning; there is none about a missing pooler."""
    save_pretrained(tmp_path, bundle)
    tensors = {name: np.asarray(x) for name, x in safetensors.read_folder(tmp_path).items() if "pooler" not in name}
    (tmp_path / "model.safetensors").unlink()
    safetensors.write_folder(tmp_path, tensors)
    with pytest.warns(UserWarning, match="has no modules.json, .* it will be the mean over its tokens") as warned:
        embedder = load_embedder(tmp_path)
    assert len(warned) == 1 and embedder.max_length == 40
    expected = np.stack([hidden(bundle, text, 40).mean(0) for text in TEXTS])
    np.testing.assert_allclose(embedder(TEXTS), expected, atol=2e-6)
    with pytest.warns(UserWarning, match="a model by itself has no modules.json"):
        np.testing.assert_array_equal(zoo.embed(bundle, TEXTS), embedder(TEXTS))


def test_bfloat16(bundle: Bundle, tmp_path: Path):
    root = published(tmp_path, bundle)
    low = load_embedder(root, dtype="bfloat16")
    assert low.bundle.params["embed_norm"]["scale"].dtype == jnp.bfloat16
    full = load_embedder(root)(TEXTS)
    assert low(TEXTS).dtype == np.float32 and 1e-4 < np.abs(low(TEXTS) - full).max() < 0.1


def test_what_is_refused(bundle: Bundle, tmp_path: Path):
    embedder = Embedder(bundle=bundle, max_length=40)
    for texts, options, message in (
        ("one text", {}, r"texts is 'one text' \(str\): expected a list of texts"),
        (["a", 3], {}, r"texts\[1\] is 3 \(int\): expected a text"),
        (iter(["a", 3]), {}, r"texts\[1\] is 3 \(int\): expected a text"),
        (["a"], {"prompt_name": "query"}, "unexpected keyword argument 'prompt_name'. Hugging Face's"),
        (["a"], {"truncate_din": 3}, "unexpected keyword argument 'truncate_din'. Did you mean 'truncate_dim'"),
        (["a"], {"batch_size": 0}, "batch_size=0: it counts texts"),
        (["a"], {"truncate_dim": 17}, "truncate_dim=17: the vectors have 16 numbers"),
        (["a"], {"precision": "int8"}, "a single vector has no ranges"),
        (["a"], {"precision": "int4"}, "there is no precision 'int4': choose among float32, "),
        (["a"], {"precision": "int8", "ranges": np.zeros((2, 3))}, r"ranges must be \[2, 16\]: these are \[2, 3\]"),
        (["\ud800"], {}, "text 0 has a lone surrogate"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            embedder(texts, **options)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        Embedder(bundle=Bundle(bundle.model, bundle.params, bundle.config), max_length=40)
    with pytest.raises(ValueError, match="max_length is 2: 2 special tokens leave no room for a text"):
        Embedder(bundle=bundle, max_length=2)
    bart = families.made("bart", BART)
    with pytest.raises(ValueError, match="bart reads a source and writes a target"):
        Embedder(bundle=bart.replace(tokenizer=bundle.tokenizer), max_length=40)


POOL = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
BERT = {"path": "", "type": "sentence_transformers.models.Transformer"}
FAULTS = (
    ("modules.json", {"path": ""}, "modules.json is an object of 1, where a list is expected"),
    ("modules.json", [BERT, "x"], "modules.json: module 1 is not an object with the texts path and type"),
    ("modules.json", [BERT, {"path": "x"}], "modules.json: module 1 is not an object with the texts path and type"),
    ("modules.json", [BERT | {"path": "../other"}], "names a folder that cannot be within its own: '../other'"),
    ("modules.json", [BERT | {"path": "/etc"}], "names a folder that cannot be within its own: '/etc'"),
    (
        "modules.json",
        [],
        "has nothing: the first module must be a Transformer of sentence-transformers",
    ),
    ("modules.json", [BERT | {"type": "custom.Transformer"}, POOL], "has custom.Transformer, Pooling: the first"),
    ("modules.json", [BERT, POOL, POOL | {"path": "2_x", "type": "y" * 999}], "2_x: a module 'yyyy"),
    ("modules.json", [BERT, POOL, BERT | {"path": "2_x"}], "2_x: a module 'Transformer' is not known: known are Dense"),
    ("1_Pooling/config.json", {"pooling_mode_median": True}, "config.json pools by median: known are cls, max"),
    ("1_Pooling/config.json", {"pooling_mode": []}, "config.json pools by nothing: known are cls, max"),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": "x"}, "max_tokens is a text .'x'., where true or false is"),
    ("sentence_bert_config.json", {"max_seq_length": 0}, "config.json: the longest text has 0 tokens"),
    ("sentence_bert_config.json", {"max_seq_length": "8"}, "max_seq_length is a text .'8'., where a whole number is"),
    ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "task is 'fill-mask', and only 'feature-extr"),
    ("tokenizer_config.json", {"model_max_length": -1}, "tokenizer_config.json: the longest text has -1 tokens"),
    ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts: a is a whole number"),
    ("config_sentence_transformers.json", {"default_prompt_name": "a"}, "there is no prompt 'a': known are none"),
    ("config_sentence_transformers.json", {"similarity_fn_name": "l2"}, "similarity_fn_name is 'l2': choose among"),
    ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim is 0: it counts numbers of a vector"),
)


def test_each_fault_of_a_folder_is_one_error_that_names_it(bundle: Bundle, tmp_path: Path):
    published(tmp_path, bundle, length=None)
    (tmp_path / "sentence_bert_config.json").unlink()
    for name, settings, message in FAULTS:
        kept = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        write(tmp_path, name, settings)
        with pytest.raises(ValueError, match=message) as raised:
            load_embedder(tmp_path)
        assert str(tmp_path) in str(raised.value) and len(str(raised.value)) < 600
        (tmp_path / name).unlink() if kept is None else (tmp_path / name).write_bytes(kept)
    write(tmp_path, "1_Pooling/config.json", {"include_prompt": True, "heads": 3})
    with pytest.warns(UserWarning, match="config.json has settings that are not known and not used: heads"):
        load_embedder(tmp_path)


VALUES = (None, True, -1, 0, 3, 10**30, 1e400, float("nan"), "", "x" * 9999, "../..", [], [[]], ["mean"], {}, {"a": {}})


def mutants(value: Any, draw: np.random.Generator) -> bytes:
    """A file with one key or value changed, or with a byte changed, or cut off."""
    kind, value = draw.integers(5), json.loads(json.dumps(value))
    inner = value
    while isinstance(inner, dict | list) and inner and kind < 3:
        key = draw.choice(list(inner)) if isinstance(inner, dict) else int(draw.integers(len(inner)))
        if draw.random() < 0.5 or not isinstance(inner[key], dict | list):
            changed = VALUES[draw.integers(len(VALUES))]
            inner[f"{key}s" if kind == 2 and isinstance(inner, dict) else key] = changed
            break
        inner = inner[key]
    text = bytearray(json.dumps(value).encode())
    if kind == 3:
        text[draw.integers(len(text))] = draw.integers(256)
    return bytes(text[: draw.integers(len(text))] if kind == 4 else text)


def test_mutated_settings(tmp_path: Path):
    """Each file of settings with something wrong in it is read, or is refused by one error that names it."""
    dense, norm = tmp_path / "2_Dense", tmp_path / "3_LayerNorm"
    files = {
        "modules.json": [BERT, POOL, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
                         {"path": "3_LayerNorm", "type": "sentence_transformers.models.LayerNorm"}],
        "1_Pooling/config.json": {"pooling_mode": ["cls", "mean"], "include_prompt": True, MODES["max"]: False},
        "2_Dense/config.json": {"in_features": 4, "out_features": 3, "activation_function": "torch.nn.ReLU"},
        "3_LayerNorm/config.json": {"dimension": 3},
        "sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True, "processing_kwargs": {}},
        "tokenizer_config.json": {"model_max_length": 512, "truncation_side": "left"},
        "config_sentence_transformers.json": {"prompts": {"a": "b"}, "truncate_dim": 2, "similarity_fn_name": "dot"},
    }  # fmt: skip
    for name, value in files.items():
        write(tmp_path / Path(name).parent, Path(name).name, value)
    safetensors.write_folder(
        dense, {"linear.weight": np.ones((3, 4), np.float32), "linear.bias": np.ones(3, np.float32)}
    )
    safetensors.write_folder(norm, {f"norm.{name}": np.ones(3, np.float32) for name in ("weight", "bias")})
    draw, refused = np.random.default_rng(0), 0
    for name, value in files.items():
        for _ in range(int(os.environ.get("MUTANTS", "20"))):
            (tmp_path / name).write_bytes(mutants(value, draw))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    modules = sentence_modules.read(tmp_path)
                    fields = sentence_modules.of_model(tmp_path) | sentence_modules.of_encoder(tmp_path, 40)
                    fields |= sentence_modules.of_pooling(tmp_path / modules[1][0])
                    sentence_modules.layers([(kind, tmp_path / folder) for folder, kind in modules[2:]], 4)
                assert 1 <= fields["max_length"] <= 40
            except (ValueError, FileNotFoundError) as error:
                refused += 1
                assert str(tmp_path) in str(error) and len(str(error)) < 700, error
        write(tmp_path / Path(name).parent, Path(name).name, value)
    assert refused > 30


TORCH = {  # of -30, -2.5, -1, -0.2, 0, 0.3, 0.9, 2, 4, 30, as torch.nn computes them
    "Identity": [-30, -2.5, -1, -0.2, 0, 0.3, 0.9, 2, 4, 30],
    "Tanh": [-1, -0.9866143, -0.7615942, -0.1973753, 0, 0.2913126, 0.7162979, 0.9640276, 0.9993293, 1],
    "Sigmoid": [9.357624e-14, 0.07585818, 0.2689414, 0.450166, 0.5, 0.5744425, 0.7109495, 0.880797, 0.9820138, 1],
    "LogSigmoid": [-30, -2.57889, -1.313262, -0.7981389, -0.6931472, -0.5543552, -0.3411539,
        -0.126928, -0.01814993, -9.357623e-14],
    "ReLU": [0, 0, 0, 0, 0, 0.3, 0.9, 2, 4, 30],
    "ReLU6": [0, 0, 0, 0, 0, 0.3, 0.9, 2, 4, 6],
    "LeakyReLU": [-0.3, -0.025, -0.01, -0.002, 0, 0.3, 0.9, 2, 4, 30],
    "ELU": [-1, -0.917915, -0.6321205, -0.1812692, 0, 0.3, 0.9, 2, 4, 30],
    "CELU": [-1, -0.917915, -0.6321205, -0.1812692, 0, 0.3, 0.9, 2, 4, 30],
    "SELU": [-1.758099, -1.613786, -1.111331, -0.3186893, 0, 0.3152103, 0.9456309, 2.101402, 4.202804, 31.52103],
    "GELU": [-0, -0.01552418, -0.1586553, -0.08414806, 0, 0.1853734, 0.7343459, 1.9545, 3.999874, 30],
    "SiLU": [-2.807287e-12, -0.1896455, -0.2689414, -0.0900332, 0, 0.1723328, 0.6398545, 1.761594, 3.928055, 30],
    "Mish": [-2.807287e-12, -0.1968162, -0.3034014, -0.1071448, 0, 0.2080014, 0.7612059, 1.943959, 3.997413, 30],
    "Softplus": [9.357623e-14, 0.07888974, 0.3132617, 0.5981389, 0.6931472, 0.8543553, 1.241154,
        2.126928, 4.01815, 30],
    "Softsign": [-0.9677419, -0.7142857, -0.5, -0.1666667, 0, 0.2307692, 0.4736842, 0.6666667, 0.8, 0.9677419],
    "Hardtanh": [-1, -1, -1, -0.2, 0, 0.3, 0.9, 1, 1, 1],
    "Hardsigmoid": [0, 0.08333334, 0.3333333, 0.4666667, 0.5, 0.55, 0.65, 0.8333333, 1, 1],
    "Hardswish": [-0, -0.2083333, -0.3333333, -0.09333333, 0, 0.165, 0.585, 1.666667, 4, 30],
    "Tanhshrink": [-29, -1.513386, -0.2384058, -0.002624676, 0, 0.008687377, 0.1837021, 1.035972, 3.000671, 29],
    "Softmax": [4.124672e-14, 0.03618159, 0.1621546, 0.3608818, 0.440782, 1.263146e-13,
        2.301603e-13, 6.9144e-13, 5.109089e-12, 1],
}  # fmt: skip


def test_layers(tmp_path: Path):
    """Dense with each activation, a residual and LayerNorm: what torch computes of two rows."""
    rows = np.array([[-30.0, -2.5, -1.0, -0.2, 0.0], [0.3, 0.9, 2.0, 4.0, 30.0]], np.float32)
    config = {"in_features": 5, "out_features": 5, "bias": False}
    safetensors.write_folder(tmp_path, {"linear.weight": np.eye(5, dtype=np.float32)})
    assert set(TORCH) == set(sentence_modules.ACTIVATIONS)
    for name, expected in TORCH.items():
        write(tmp_path, "config.json", config | {"activation_function": f"torch.nn.modules.activation.{name}"})
        (dense,) = sentence_modules.layers([("Dense", tmp_path)], 5)
        np.testing.assert_allclose(dense(rows), np.reshape(expected, (2, 5)), rtol=2e-6, atol=2e-7, err_msg=name)
    write(tmp_path, "config.json", config | {"use_residual": True})
    (dense,) = sentence_modules.layers([("Dense", tmp_path)], 5)
    np.testing.assert_allclose(dense(rows), np.tanh(rows) + rows, rtol=1e-6)

    narrow = tmp_path / "narrow"
    write(narrow, "config.json", config | {"out_features": 2, "use_residual": True})
    weight, other = np.arange(20, dtype=np.float32).reshape(2, 2, 5) / 100
    safetensors.write_folder(narrow, {"linear.weight": weight, "residual.weight": other})
    norm = tmp_path / "norm"
    write(norm, "config.json", {"dimension": 2})
    scale, shift = np.array([[2.0, 3.0], [0.5, -1.0]], np.float32)
    safetensors.write_folder(norm, {"norm.weight": scale, "norm.bias": shift})
    modules = [("Dense", narrow), ("LayerNorm", norm)]
    dense, layer_norm = sentence_modules.layers(modules, 5)
    hidden_B2 = np.tanh(rows @ weight.T) + rows @ other.T
    np.testing.assert_allclose(dense(rows), hidden_B2, rtol=1e-6)
    hidden_B2 = np.append(hidden_B2, [[0.001, -0.003]], axis=0)  # its variance is smaller than the epsilon
    centred = hidden_B2 - hidden_B2.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * scale + shift
    np.testing.assert_allclose(layer_norm(hidden_B2), expected, rtol=1e-5)

    for settings, message in (
        ({"in_features": 4}, "config.json: in_features is 4, and the vectors before it have 5 numbers"),
        ({"out_features": 10**7}, r"linear.weight has the shape \(2, 5\), and config.json asks for \(10000000, 5\)"),
        ({"out_features": None}, "config.json lacks out_features"),
        ({"bias": True}, "narrow holds linear.weight, residual.weight; expected are linear.bias, linear.weight"),
        (
            {"activation_function": "torch.nn.PReLU"},
            "the activation 'torch.nn.PReLU' is not known: known are",
        ),
        ({"activation_function": "os.Tanh"}, "the activation 'os.Tanh' is not known"),
        ({"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings', and only 'sentence_emb"),
    ):
        write(narrow, "config.json", config | {"out_features": 2, "use_residual": True} | settings)
        with pytest.raises(ValueError, match=message):
            sentence_modules.layers(modules, 5)


def test_sizes_and_precisions(bundle: Bundle, tmp_path: Path):
    """A folder's own size, another one in a call; then normalized, then quantized."""
    root = published(tmp_path, bundle, truncate_dim=6, similarity_fn_name="dot")
    embedder, texts = load_embedder(root), TEXTS * 20
    full = embedder(texts, truncate_dim=16)
    assert embedder.width == 6 and full.shape == (120, 16)
    np.testing.assert_array_equal(embedder(texts), full[:, :6])
    units = full[:, :9] / np.linalg.norm(full[:, :9], axis=1, keepdims=True)
    np.testing.assert_allclose(embedder(texts, truncate_dim=9, normalize_embeddings=True), units, rtol=1e-6)
    np.testing.assert_allclose(embedder.similarity(full, full[:3]), full @ full[:3].T, rtol=1e-6)
    ranges = np.array([full.min(0), full.max(0)]) / 2
    for precision, options in (
        ("float16", {}), ("binary", {}), ("ubinary", {}), ("int8", {}), ("uint8", {}), ("int8", {"ranges": ranges}),
    ):  # fmt: skip
        found = embedder(texts, truncate_dim=16, precision=precision, **options)
        expected = zoo.quantize_embeddings(full, precision, **options)
        assert found.dtype == {"binary": "int8", "ubinary": "uint8"}.get(precision, precision)
        np.testing.assert_array_equal(found, expected)
        assert embedder([], precision=precision).shape == (0, 1 if "binary" in precision else 6)


def test_special_tokens_in_texts(bundle: Bundle):
    """They are read, as sentence-transformers reads them, or are ordinary characters."""
    embedder = Embedder(bundle=bundle, max_length=40)
    sep = bundle.tokenizer.sep_id
    read, plain = (embedder._tokens(["a [SEP] door"], special)[0] for special in (True, False))
    assert list(read).count(sep) == 2 and list(plain).count(sep) == 1
    np.testing.assert_allclose(embedder(["a [SEP] door"])[0], hidden(bundle, "a [SEP] door").mean(0), atol=2e-6)
    assert np.abs(embedder(["a [SEP] door"], special=False) - embedder(["a [SEP] door"])).max() > 1e-3


def test_truncation_on_the_left(bundle: Bundle, tmp_path: Path):
    root = published(tmp_path, bundle, length=6)
    write(root, "tokenizer_config.json", {"truncation_side": "left"})
    whole = bundle.tokenizer.encode(TEXTS[3], template=True).ids
    (row,) = load_embedder(root)._tokens(TEXTS[3:4])
    np.testing.assert_array_equal(row, [whole[0], *whole[-5:]])


def test_command(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = published(tmp_path / "model", bundle, "Normalize")
    embedder = load_embedder(root)
    assert main(["embed", str(root), "a door", "the window"]) == 0
    printed = np.array([line.split() for line in capsys.readouterr().out.splitlines()], np.float32)
    np.testing.assert_allclose(printed, embedder(["a door", "the window"]), atol=1e-5)

    (tmp_path / "texts.txt").write_text("a door\nthe window\na  door", encoding="utf-8")
    options = ["--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "vectors.npy"), "--similar"]
    assert main(["embed", str(root), *options]) == 0
    first, *similar = capsys.readouterr().out.splitlines()
    assert first.endswith("vectors.npy holds 3 vectors of 16 numbers")
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy").shape, (3, 16))
    assert similar[0] == "1.000  a door  ~  a  door" and similar[2] == "1.000  a  door  ~  a door"

    (tmp_path / "texts.txt").write_text("a\u2028door\n\nthe window\n", encoding="utf-8-sig")  # three lines, one empty
    options = ["--input", str(tmp_path / "texts.txt"), "--truncate-dim", "5", "--precision", "ubinary"]
    assert main(["embed", str(root), *options, "--prompt-text", "open "]) == 0
    expected = embedder(["a\u2028door", "", "the window"], prompt_text="open ", truncate_dim=5, precision="ubinary")
    assert capsys.readouterr().out == "".join(f"{byte}\n" for byte in expected[:, 0])
    # Ranges of one call are those of another.
    numbers, quantized = embedder(["a door", "the window"]), tmp_path / "int8.npy"
    options = ["--precision", "int8", "--output", str(quantized)]
    assert main(["embed", str(root), "a door", "the window", *options]) == 0
    assert "int8.ranges.npy holds their ranges" in capsys.readouterr().out
    ranges = np.load(tmp_path / "int8.ranges.npy")
    np.testing.assert_array_equal(np.load(quantized), zoo.quantize_embeddings(numbers, "int8", ranges=ranges))
    np.testing.assert_allclose(ranges, [numbers.min(0), numbers.max(0)], atol=1e-6)
    options += ["--ranges", str(tmp_path / "int8.ranges.npy")]
    assert main(["embed", str(root), "a door", *options]) == 0 and capsys.readouterr().out.count("\n") == 1
    np.testing.assert_array_equal(np.load(quantized), zoo.quantize_embeddings(numbers[:1], "int8", ranges=ranges))

    (tmp_path / "latin.txt").write_bytes("a\nna\xefve".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    for arguments, message in (
        (["--input", str(tmp_path / "latin.txt")], "latin.txt is not text in UTF-8: byte 4 is 0xef"),
        (["--input", str(tmp_path / "empty.txt")], "empty.txt is empty"),
        (["a", "b", "--output", str(tmp_path / "no" / "x.npy")], f"there is no folder {tmp_path / 'no'}"),
        (["a", "b", "--similar", "--precision", "int8"], "--similar compares float vectors"),
        (["a", "--precision", "int8"], "--precision int8 of a single text needs --ranges"),
        (["a", "--precision", "int8", "--ranges", str(tmp_path / "latin.txt")], "latin.txt holds no numpy array"),
        (["a", "--precision", "int8", "--ranges", str(tmp_path / "none.npy")], "none.npy"),
        (["a", "--precision", "int8", "--ranges", str(quantized)], "ranges must be [2, 16]: these are [1, 16]"),
        (["a", "--ranges", str(tmp_path / "int8.ranges.npy")], "--precision 'float32' needs no ranges"),
        (["a", "b", "--prompt", "query"], "there is no prompt 'query': known are none"),
        (["a", "b", "--truncate-dim", "17"], "--truncate-dim 17: the vectors have 16 numbers"),
    ):
        assert main(["embed", str(root), *arguments]) == 1
        assert message in capsys.readouterr().err
    assert main(["embed", str(root)]) == 1 and "give either texts, or --input with a file" in capsys.readouterr().err
    assert main(["embed", str(root), "one", "--similar"]) == 1 and "at least two" in capsys.readouterr().err
