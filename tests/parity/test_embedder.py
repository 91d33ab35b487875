"""Folders that sentence-transformers saved are read, and their vectors are those that it computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transformer_zoo import vectors
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.embedding import load_embedder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer, util  # noqa: E402
from sentence_transformers.sentence_transformer import modules  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()

LINE = "The window and the door of a house are open or shut, as its owner likes; naïve Übung, 3.14 + 2 = ?"
WORDS = LINE.split(" ")
TEXTS = [
    "The window", "", " ", "  a door \t\n", "an  open\ndoor", "NAÏVE übung", "the [SEP] door [MASK]",
    "a</s> <mask>b", "x" * 120, *(" ".join(WORDS[i:] + WORDS[:i]) * (1 + i % 4) for i in range(0, len(WORDS), 2)),
]  # fmt: skip
SIZES = {
    "max_position_embeddings": 66, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip
DEBERTA = SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # the kind of the tokenizer, and the sizes
    "bert": ("wordpiece", SIZES),
    "roberta": ("roberta", SIZES | {"pad_token_id": 1}),
    "xlm-roberta": ("roberta", SIZES | {"pad_token_id": 1}),
    "distilbert": (
        "wordpiece",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "albert": ("wordpiece", SIZES | {"embedding_size": 16}),
    "electra": ("wordpiece", SIZES | {"embedding_size": 16}),
    "mpnet": ("roberta", SIZES | {"pad_token_id": 1}),
    "deberta": ("wordpiece", DEBERTA),
    "deberta-v2": ("wordpiece", DEBERTA | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}),
    "modernbert": ("wordpiece", SIZES | {"global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0}),
    "gpt2": ("bpe", {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "t5": ("wordpiece", {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48}),  # its encoder alone
}
E = 32
MODULES = {  # of the families in turn
    "mean": lambda: [modules.Pooling(E, "mean"), modules.Normalize()],
    "list": lambda: [modules.Pooling(E, ("lasttoken", "cls", "weightedmean"))],
    "no prompt": lambda: [modules.Pooling(E, ("cls", "mean", "lasttoken"), include_prompt=False), modules.Normalize()],
    "dense": lambda: [
        modules.Pooling(E, ("max", "mean_sqrt_len_tokens")),
        modules.Dense(2 * E, 24, activation_function=torch.nn.GELU()),
        modules.Normalize(),
    ],
    "layer norm": lambda: [
        modules.Pooling(E, "mean"),
        modules.LayerNorm(E),
        modules.Dense(E, 24, bias=False, activation_function=torch.nn.Mish(), use_residual=True),
        modules.Dropout(0.5),
        modules.Normalize(),
    ],
}
PROMPTS = {"query": "open the ", "passage": "naïve: "}


def load(folder: Path) -> Any:
    """Their model of a folder."""
    return SentenceTransformer(str(folder), device="cpu")


def assert_equal(actual: np.ndarray, expected: np.ndarray) -> float:
    """Each vector to 4e-7 of its length, which is 1 for normalized ones."""
    assert actual.dtype == expected.dtype == np.float32
    difference = float((np.abs(actual - expected) / np.linalg.norm(expected, axis=1, keepdims=True)).max())
    assert difference <= 4e-7
    return difference


def settle(module: Any, seed: int, scale: float) -> None:
    """Random parameters, biases and norms too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            is_scale = parameter.ndim == 1 and bool((parameter == 1).all())
            parameter.copy_(is_scale + scale * torch.randn(parameter.shape, generator=draw))


def encoder(folder: Path, family: str) -> Path:
    """A folder with a tiny random model and a tokenizer."""
    kind, sizes = FAMILIES[family]
    tokenizer = Tokenizer.train(TEXTS, 300 if kind != "wordpiece" else 120, kind=kind)
    tokenizer.save(folder)
    config = transformers.AutoConfig.for_model(family, vocab_size=tokenizer.vocab_size, **sizes)
    model = transformers.AutoModel.from_config(config)
    settle(model, len(family), 0.05)
    model.save_pretrained(folder)
    if tokenizer.pad_id is None:  # sentence-transformers pads with it
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "<|endoftext|>"}))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors(family: str, tmp_path: Path, record_property: Any):
    kind = list(MODULES)[list(FAMILIES).index(family) % len(MODULES)]
    reader = modules.Transformer(str(encoder(tmp_path / "encoder", family)), max_seq_length=40)
    layers = MODULES[kind]()
    for i, layer in enumerate(layers):
        settle(layer, i, 0.5)
    saved = SentenceTransformer(
        modules=[reader, *layers], prompts=PROMPTS, default_prompt_name=None, device="cpu",
        similarity_fn_name="dot" if kind == "dense" else None, truncate_dim=20 if kind == "mean" else None,
    )  # fmt: skip
    saved.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    theirs, ours = load(tmp_path / "saved"), load_embedder(tmp_path / "saved")
    assert (ours.width, ours.max_length) == (theirs.get_embedding_dimension(), theirs.max_seq_length)
    assert ours.similarity_fn_name == theirs.similarity_fn_name

    texts = [text for text in TEXTS if text or family != "gpt2"]  # of no token at all, a first one is not defined
    for our_options, their_options in (
        ({}, {}),
        ({"prompt": "query"}, {"prompt_name": "query"}),
        ({"prompt_text": "a door: ", "truncate_dim": 16, "normalize_embeddings": True},
         {"prompt": "a door: ", "truncate_dim": 16, "normalize_embeddings": True}),
    ):  # fmt: skip
        expected = theirs.encode(texts, **their_options)
        record_property("embedder (float32)", assert_equal(ours(texts, **our_options), expected))
    for name in vectors.SIMILARITIES:
        score = util.SimilarityFunction.to_similarity_fn(name)(expected, expected[:5]).numpy()
        np.testing.assert_allclose(vectors.similarity(expected, expected[:5], name), score, rtol=0, atol=2e-6)


def test_quantization():
    """Ranges, calibration, values outside, a number that never changes, and sizes that are no multiple of eight."""
    draw = np.random.default_rng(0)
    given, calibration = (draw.normal(size=(count, 13)).astype(np.float32) for count in (100, 200))
    given[:, 3] = calibration[:, 3] = 0.25
    ranges = np.stack([given.min(0), given.max(0)])
    for precision in ("float32", "int8", "uint8", "binary", "ubinary"):
        by = (
            [{}]
            if precision not in vectors.CALIBRATED
            else [{"ranges": ranges}, {"calibration_embeddings": calibration}]
        )
        for options in by:
            found = vectors.quantize_embeddings(given, precision, **options)
            wanted = util.quantize_embeddings(given, precision, **options)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)


def test_an_old_folder(tmp_path: Path):
    """Switches for poolings, lower case in the encoder's settings, and a cased tokenizer."""
    folder = encoder(tmp_path, "roberta")
    (folder / "1_Pooling").mkdir()
    switches = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "word_embedding_dimension": E}
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    for name, value in {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(types.items())
        ],
        "1_Pooling/config.json": switches,
        "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": True},
    }.items():
        (folder / name).write_text(json.dumps(value))
    texts = [*TEXTS, "ΟΔΟΣ </S> <MASK></s>"]
    expected = load(folder).encode(texts)
    assert_equal(load_embedder(folder)(texts), expected)


def test_a_vocabulary_without_settings(tmp_path: Path):
    """Texts are put in lower case, whatever the vocabulary holds; and vectors are means."""
    folder = encoder(tmp_path, "bert")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert "T" in vocabulary
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)))
    for file in folder.glob("*token*"):
        file.unlink()
    expected = load(folder).encode(TEXTS)
    with pytest.warns(UserWarning, match="it will be the mean"):
        ours = load_embedder(folder)
    assert_equal(ours(TEXTS), expected)
