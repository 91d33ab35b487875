"""README's classifier of one's own, read by the reference: the same labels and probabilities.

A few steps of training, or with WHOLE=1 in the environment all of it, as the commands stand: three minutes.
"""

import csv
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import readme  # noqa: E402

WHOLE = "WHOLE" in os.environ
FEW = ("--training.steps", "4", "--optimizer.warmup-steps", "1", "--evaluation.batches", "1")


def test_the_reference_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(readme.ROOT / name)
    monkeypatch.chdir(tmp_path)
    train, predict, convert = readme.commands_of("Your own classifier in five minutes")[:3]
    assert readme.run(train, *(() if WHOLE else FEW)) == readme.run(predict) == readme.run(convert) == 0
    with open("labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 898
    rows = rows if WHOLE else rows[:100]
    torch.set_num_threads(1)
    theirs = transformers.pipeline("text-classification", "my-classifier", top_k=None, device="cpu", batch_size=32)
    largest = 0.0
    for row, scores in zip(rows, theirs([row["text"] for row in rows]), strict=True):
        assert scores[0]["label"] == row["label"]
        assert {f"scores.{one['label']}" for one in scores} == {name for name in row if name.startswith("scores.")}
        largest = max(largest, *(abs(one["score"] - float(row[f"scores.{one['label']}"])) for one in scores))
    assert largest < 1e-5
    print(f"{len(rows)} texts: the same labels; the largest difference of probabilities is {largest:.1e}")
