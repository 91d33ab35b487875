"""Texts to vectors: every pooling and module by hand; texts do not affect one another."""

import json
from pathlib import Path
from typing import Any

import families
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo.__main__ import main
from transformer_zoo.checkpoints import safetensors
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
    ids = bundle.tokenizer.encode(text.strip(), template=True).ids
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


def test_how_poolings_are_asked_for(bundle: Bundle, tmp_path: Path):
    for mode, switch in MODES.items():
        pool = {MODES["mean"]: False, "include_prompt": True, switch: True}
        assert load_embedder(published(tmp_path, bundle, pool=pool)).poolings == (mode,)
    for named in ("lasttoken+mean", ["lasttoken", "mean"]):
        assert load_embedder(published(tmp_path, bundle, pool={"pooling_mode": named})).poolings == (
            "mean",
            "lasttoken",
        )


@pytest.mark.parametrize(("encoder", "bias"), [("", True), ("0_Transformer", False)])
def test_modules(bundle: Bundle, tmp_path: Path, encoder: str, bias: bool):
    root = published(tmp_path, bundle, "Dense", "Dropout", "Normalize", encoder=encoder)
    draw = np.random.default_rng(0)
    weight, shift = draw.normal(size=(5, 16)).astype(np.float32), draw.normal(size=5).astype(np.float32)
    kind = "torch.nn.modules.activation.Tanh"
    write(root / "2_Dense", "config.json", {"in_features": 16, "bias": bias, "activation_function": kind})
    safetensors.write_folder(root / "2_Dense", {"linear.weight": weight} | ({"linear.bias": shift} if bias else {}))
    vectors = np.tanh(np.stack([hidden(bundle, text).mean(0) for text in TEXTS]) @ weight.T + bias * shift)
    embedder = load_embedder(root)
    assert embedder.width == 5
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(embedder(TEXTS), expected, rtol=0, atol=5e-6)


def test_batches(bundle: Bundle):
    """Of any size, in any order: the same vectors, from few programs."""
    embedder = Embedder(bundle=bundle, max_length=40)
    texts = [" ".join(["door", "window", "open"][i % 3 :][:2] * (i % 23)) for i in range(70)]
    vectors = embedder(texts, batch_size=8)
    assert vectors.dtype == np.float32 and vectors.shape == (70, 16)
    assert embedder._program._cache_size() == 3  # rows of 16, 32 and 40 tokens
    order = np.random.default_rng(0).permutation(70)
    np.testing.assert_allclose(embedder([texts[i] for i in order], batch_size=8), vectors[order], atol=2e-6)
    np.testing.assert_allclose(embedder(texts[41:42])[0], vectors[41], atol=2e-6)
    assert embedder([]).shape == (0, 16)


def test_prompts(bundle: Bundle, tmp_path: Path):
    prompts = {"prompts": {"query": "open: ", "document": ""}, "default_prompt_name": "query"}
    root = published(tmp_path / "whole", bundle, **prompts)
    embedder = load_embedder(root)
    expected = np.stack([hidden(bundle, "open: " + text.strip()).mean(0) for text in TEXTS])
    np.testing.assert_allclose(embedder(TEXTS), expected, atol=2e-6)
    plain = np.stack([hidden(bundle, text).mean(0) for text in TEXTS])
    np.testing.assert_allclose(embedder(TEXTS, prompt="document"), plain, atol=2e-6)
    with pytest.raises(ValueError, match="there is no prompt 'querry': known are query, document"):
        embedder(TEXTS, prompt="querry")

    without = published(tmp_path / "without", bundle, pool={MODES["mean"]: True, "include_prompt": False}, **prompts)
    skipped = len(bundle.tokenizer.encode("open:")) + 1  # [CLS] goes with the prompt, [SEP] closes the text
    expected = np.stack([hidden(bundle, "open: " + text.strip())[skipped:].mean(0) for text in TEXTS])
    np.testing.assert_allclose(load_embedder(without)(TEXTS), expected, atol=2e-6)


def test_lower_case_and_lengths(bundle: Bundle, tmp_path: Path):
    small = load_embedder(published(tmp_path / "small", bundle, lower_case=True))
    np.testing.assert_array_equal(small(["The DOOR"]), small(["the door"]))
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
    np.testing.assert_array_equal(load_embedder(bundle)(TEXTS), embedder(TEXTS))


def test_bfloat16(bundle: Bundle, tmp_path: Path):
    root = published(tmp_path, bundle)
    low = load_embedder(root, dtype="bfloat16")
    assert low.bundle.params["embed_norm"]["scale"].dtype == jnp.bfloat16
    full = load_embedder(root)(TEXTS)
    assert low(TEXTS).dtype == np.float32 and 1e-4 < np.abs(low(TEXTS) - full).max() < 0.1


def test_what_is_refused(bundle: Bundle, tmp_path: Path):
    embedder = load_embedder(bundle)
    with pytest.raises(TypeError, match="give a list"):
        embedder("one text")
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load_embedder(Bundle(bundle.model, bundle.params, bundle.config))
    with pytest.raises(ValueError, match="2_LSTM: a module 'LSTM' is not known: known are Dense"):
        load_embedder(published(tmp_path / "lstm", bundle, "LSTM"))
    with pytest.raises(ValueError, match="1_Pooling pools by nothing: known are cls, max"):
        load_embedder(published(tmp_path / "nothing", bundle, pool={MODES["mean"]: False}))
    with pytest.raises(ValueError, match="1_Pooling pools by median: known are cls, max"):
        load_embedder(published(tmp_path / "median", bundle, pool={"pooling_mode_median": True}))
    for modules, message in (
        ([{"path": "../other", "type": "x.Transformer"}], "names folders outside its own: ../other"),
        ([{"path": "/etc", "type": "x.Transformer"}], "names folders outside its own: /etc"),
        ({"path": ""}, "is an object of 1, where a list is expected"),
        ([{"path": 3, "type": "x.Transformer"}], "is not a list of modules, each with its path and type"),
        ([], "has nothing: the first module must be a Transformer, and the second a Pooling"),
        (
            [{"path": "", "type": "x.CLIPModel"}, {"path": "1", "type": "x.Pooling"}],
            "has CLIPModel, Pooling: the first",
        ),
    ):
        write(tmp_path, "modules.json", modules)
        with pytest.raises(ValueError, match=message):
            load_embedder(tmp_path)


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

    assert main(["embed", str(root)]) == 1 and "give texts, or --input with a file" in capsys.readouterr().err
    assert main(["embed", str(root), "one", "--similar"]) == 1 and "at least two" in capsys.readouterr().err
