"""The notebooks run from the first cell to the last, with a small model instead of the published one."""

import os
from pathlib import Path

import nbformat
import pytest
from conftest import QUICKLY
from nbclient import NotebookClient

import transformer_zoo as zoo
from transformer_zoo.data.tokenizers import Tokenizer

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = [file.read_text() for file in sorted((ROOT / "transformer_zoo" / "nn").glob("*.py"))]
    for index, text in enumerate(corpus * 3):
        (tmp_path / f"{index}.txt").write_text(text)
    tokenizer = Tokenizer.train(corpus, 400)
    settings = {"vocab_size": 400, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 0}
    bundle = zoo.from_config("gpt2", settings, task="causal-lm")
    zoo.save_pretrained(tmp_path / "model", zoo.Bundle(bundle.model, bundle.params, bundle.config, tokenizer))

    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source = (
        f'MODEL = "{tmp_path}/model"\nSOURCE = "text:{tmp_path}/*.txt"\nSTEPS, LENGTH, BATCH = 10, 32, 8'
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {QUICKLY}")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert (tmp_path / "quickstart-model" / "model.safetensors").is_file()
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert pictures


def test_notebooks_are_committed_without_outputs() -> None:
    for path in NOTEBOOKS:
        assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells), path
