"""The section of README.md about a classifier of one's own: its CSV, its commands, and what it says of them."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import readme

import transformer_zoo as zoo
from transformer_zoo import commands

OWN = "Your own classifier in five minutes"
TINY = (
    "--training.steps", "2", "--data.length", "32", "--model.width", "16", "--model.num-layers", "1",
    "--model.num-heads", "2", "--model.mlp-dim", "16", "--vocabulary.size", "400", "--evaluation.batches", "1",
    "--optimizer.warmup-steps", "1", "--logging.tensorboard", "False",
)  # fmt: skip


def examples() -> list[dict[str, str]]:
    with (readme.ROOT / "examples" / "docstrings.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_is_what_the_readme_says():
    rows = examples()
    assert f"has {len(rows)} sentences" in (readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert Counter(row["label"] for row in rows) == {"class": 300, "function": 300, "module": 298}
    texts = {row["text"] for row in rows}
    assert len(texts) == len(rows)
    assert any("\n" in text for text in texts) and any("," in text for text in texts)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files of the repository that the commands name."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(readme.ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_classifier_is_trained_predicts_and_is_converted(folder: Path, capsys: pytest.CaptureFixture[str]):
    train, predict, convert = readme.commands_of(OWN)[:3]
    assert readme.run(train, *TINY) == 0
    output = capsys.readouterr().out
    assert "label: 3 classes, found in the data (train / validation): class 247 / 53, function" in output
    assert "step 2: held out: loss" in output
    assert all((folder / "runs" / "classify" / name).is_file() for name in ("curve.png", "confusion.png"))
    assert readme.run(predict) == 0 and readme.run(convert) == 0
    with open("labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [row["text"] for row in examples()]
    names = ("class", "function", "module")
    assert list(rows[0]) == ["text", "label", "score", *(f"scores.{name}" for name in names), "source.label"]
    assert [row["source.label"] for row in rows] == [row["label"] for row in examples()]
    converted = zoo.from_pretrained("my-classifier")
    assert converted.config.labels == names
    for row, found in zip(rows[:5], zoo.predict(converted, [row["text"] for row in rows[:5]])):
        assert found["label"] == row["label"] == max(names, key=lambda name: float(row[f"scores.{name}"]))
        scores = [float(row[f"scores.{name}"]) for name in names]
        np.testing.assert_allclose(list(found["scores"].values()), scores, atol=1e-6)


def test_files_of_ones_own(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Settings that the recipe has, for a text and a label in other columns."""
    runs: list[Any] = []
    monkeypatch.setattr(commands.loop, "train", lambda run, *_: runs.append(run))
    others = readme.commands_of(OWN)[3:]
    assert [readme.run(command) for command in others] == [0, 0]
    for run in runs:
        assert (run.data.source, run.objective.label) == ("csv:reviews.csv:body", "stars")
    assert [run.init_from for run in runs] == [None, "distilbert-base-uncased"]
    assert len({run.directory for run in runs} | {"runs/classify"}) == 3
