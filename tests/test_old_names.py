"""Checkpoints as first published: the names of a norm in TensorFlow, buffers, other heads, config.jsons with gaps."""

import json
from pathlib import Path

import families
import numpy as np
import pytest

from transformer_zoo.checkpoints import safetensors
from transformer_zoo.pretrained import from_pretrained, save_pretrained

TINY = {
    "vocab_size": 90, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 40,
}  # fmt: skip


def old_bert(folder: Path, **more: np.ndarray) -> dict[str, np.ndarray]:
    """BERT of 2018 for the task pretraining: gamma and beta, position ids, a config.json without most keys. Returns the
    expected tensors."""
    save_pretrained(folder / "new", families.made("bert", TINY, task="pretraining"))
    tensors = {name: np.asarray(x) for name, x in safetensors.read_folder(folder / "new").items()}
    old = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    buffer = {"bert.embeddings.position_ids": np.arange(24)[None]}
    (folder / "old").mkdir()
    safetensors.write_folder(folder / "old", {old(name): x for name, x in tensors.items()} | buffer | more)
    settings = {**TINY, "model_type": "bert", "architectures": ["BertForMaskedLM"], "type_vocab_size": 2}
    (folder / "old" / "config.json").write_text(json.dumps(settings))
    return tensors


@pytest.mark.parametrize("task", [None, "base", "pretraining", "next-sentence"])
def test_gamma_and_beta(tmp_path: Path, task: str | None):
    assert any("gamma" in old for old in (old_bert(tmp_path), safetensors.read_folder(tmp_path / "old"))[1])
    new, old = (from_pretrained(tmp_path / age, task=task or "masked-lm") for age in ("new", "old"))
    assert from_pretrained(tmp_path / "old").model.task == "masked-lm"
    assert families.difference(old.params, new.params) == 0 and new.fresh == old.fresh == ()


def test_both_names_of_a_norm_are_one_too_many(tmp_path: Path):
    more = {"bert.embeddings.LayerNorm.weight": np.ones(16, np.float32)}
    old_bert(tmp_path, **more)
    words = (
        "there twice:  bert.embeddings.LayerNorm.weight and bert.embeddings.LayerNorm.gamma  \\(for embed_norm/scale"
    )
    with pytest.raises(ValueError, match=words):
        from_pretrained(tmp_path / "old")


def test_gamma_of_no_norm_is_unexpected(tmp_path: Path):
    old_bert(tmp_path, **{"bert.encoder.layer.0.gamma": np.ones(16, np.float32)})
    with pytest.raises(ValueError, match="unexpected:  bert.encoder.layer.0.gamma"):
        from_pretrained(tmp_path / "old")
