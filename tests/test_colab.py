"""The notebooks run from the first cell to the last, with a small model in place of the published one, and few steps.
`make test` runs the quick start, and `make notebooks` runs all of them."""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import QUICKLY
from nbclient import NotebookClient

import transformer_zoo as zoo
from transformer_zoo.data.tokenizers import Tokenizer

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "colab").glob("*.ipynb"))}
RUN = [*NOTEBOOKS] if os.environ.get("NOTEBOOKS") == "all" else ["quickstart"]
CORPUS = [file.read_text() for file in sorted((ROOT / "transformer_zoo" / "nn").glob("*.py"))]


def save_model(folder: Path, family: str, task: str, settings: dict[str, Any], **vocabulary: Any) -> str:
    """A small model with fresh weights and a tokenizer of its own, as a published one is saved."""
    bundle = zoo.from_config(family, settings, task=task)
    zoo.save_pretrained(folder, bundle.replace(tokenizer=Tokenizer.train(CORPUS, settings["vocab_size"], **vocabulary)))
    return str(folder)


def save_bert(folder: Path, task: str) -> str:
    settings = {"vocab_size": 600, "max_position_embeddings": 128, "hidden_size": 32, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 2, "intermediate_size": 64}
    return save_model(folder, "bert", task, settings, kind="wordpiece", lower_case=True)


def save_texts(folder: Path) -> str:
    """The corpus as files, and their name as a source."""
    for index, text in enumerate(CORPUS * 3):
        (folder / f"{index}.txt").write_text(text)
    return f"text:{folder}/*.txt"


def quickstart(folder: Path) -> dict[str, Any]:
    settings = {"vocab_size": 400, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 0}
    model = save_model(folder / "model", "gpt2", "causal-lm", settings)
    return {"MODEL": model, "SOURCE": save_texts(folder), "STEPS": 10, "LENGTH": 32, "BATCH": 8}


def classify_your_own_texts(folder: Path) -> dict[str, Any]:
    return {"MODEL": save_bert(folder / "model", "base"), "STEPS": 6, "LENGTH": 16}


def inside_attention(folder: Path) -> dict[str, Any]:
    return {"MODEL": save_bert(folder / "model", "base"), "SENTENCES": 8, "STEPS": 2, "LAYERS": 2}


def translate_and_summarise(folder: Path) -> dict[str, Any]:
    settings = {"vocab_size": 600, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    model = save_model(folder / "model", "t5", "seq2seq-lm", settings, kind="t5")
    return {"MODEL": model, "STEPS": 4, "LENGTH": 32, "TARGET_LENGTH": 8, "BATCH": 8, "EXAMPLES": 4}


def search_with_embeddings(folder: Path) -> dict[str, Any]:
    return {"MODEL": save_bert(folder / "model", "base"), "DOCUMENTS": 40, "LENGTH": 32}


def pretrain_bert_on_a_tpu(folder: Path) -> dict[str, Any]:
    sizes = {"STEPS": 40, "LENGTH": 32, "BATCH": 8, "WIDTH": 32, "LAYERS": 2, "VOCABULARY": 600}
    return {"SOURCE": save_texts(folder), "TENSORBOARD": False, **sizes}


PARAMETERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "quickstart": quickstart,
    "classify_your_own_texts": classify_your_own_texts,
    "inside_attention": inside_attention,
    "pretrain_bert_on_a_tpu": pretrain_bert_on_a_tpu,
    "search_with_embeddings": search_with_embeddings,
    "translate_and_summarise": translate_and_summarise,
}
"""For each notebook, a function of an empty folder: the parameters to run it with."""
WRITES = {
    "quickstart": "quickstart-model/model.safetensors",
    "classify_your_own_texts": "my-classifier/model.safetensors",
    "pretrain_bert_on_a_tpu": "bert-model/model.safetensors",
    "translate_and_summarise": "describe-model/model.safetensors",
}
"""A file that a notebook leaves behind."""


@pytest.mark.parametrize("name", RUN)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    cell = parameters_of(notebook)
    values = PARAMETERS[name](tmp_path)
    assert values.keys() <= names_in(cell.source), "a parameter that the notebook does not have"
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures are shown in the notebook
    if "fit.main(" not in source:  # the TPU compiler does not know all of these flags
        monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {QUICKLY}")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert (tmp_path / WRITES.get(name, "")).exists()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == source.count("plt.show()") + source.count("Image(") > 0


def test_every_notebook_is_run() -> None:
    assert PARAMETERS.keys() == NOTEBOOKS.keys()


@pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=lambda path: path.stem)
def test_a_notebook_is_whole(path: Path) -> None:
    """A valid file without outputs, with a title and one cell of parameters, in the README's table."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert notebook.cells[0].source.startswith("# transformer_zoo: ")
    assert names_in(parameters_of(notebook).source)
    assert f"| [`{path.stem}`](colab/{path.name}) |" in (ROOT / "README.md").read_text()


def parameters_of(notebook: Any) -> Any:
    """The cell that holds the notebook's parameters."""
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    return cell


def names_in(source: str) -> set[str]:
    """The names that a cell assigns to."""
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}
