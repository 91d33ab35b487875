"""Runs side by side, from files written by hand: nothing is trained."""

import json
import re
from pathlib import Path

import pytest

from transformer_zoo import measures
from transformer_zoo.__main__ import main
from transformer_zoo.comparison import differences

pytestmark = pytest.mark.usefixtures("wide_terminal")


def write_run(
    folder: Path, rate: float, losses: dict[int, float], *, best: str | None = None, **more: float
) -> str:  # fmt: skip
    """A folder with a run's settings and an evaluation for each loss."""
    folder.mkdir(parents=True)
    settings = {
        "model": {"family": "gpt2", "width": 64}, "directory": str(folder), "optimizer": {"peak_lr": rate},
        "training": {"steps": None}, "evaluation": {"best": best},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"settings": settings, "steps": 30}))
    lines = []
    for step, loss in losses.items():
        lines.append({"step": step, "loss": loss + 1, "seconds_per_step": 2.0})
        lines.append({"step": step, "validation/loss": loss, **{f"validation/{name}": x for name, x in more.items()}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return [
        write_run(Path("a"), 1e-3, {10: 3.0, 20: 2.0, 30: 2.5}, accuracy=0.25),
        write_run(Path("b"), 3e-4, {10: 1.5, 20: 2.25}, accuracy=0.75),
        write_run(Path("c"), 1e-4, {}),
    ]


def test_a_table_and_a_picture(sweep: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *sweep]) == 0
    text = capsys.readouterr().out
    above, heading = ([cell.strip() for cell in line.split("┃")[1:-1]] for line in text.splitlines()[1:3])
    assert [f"{one} {other}".strip() for one, other in zip(above, heading)] == [
        "run", "settings that differ", "steps", "training loss", "loss", "best loss", "at step", "time"
    ]  # fmt: skip
    assert rows_of(text) == [
        ["b", "peak_lr 0.0003", "20 of 30", "3.25", "2.25", "1.5", "10", "0:00:40"],
        ["a", "peak_lr 0.001", "30", "3.5", "2.5", "2", "20", "0:01:00"],
        ["c", "peak_lr 0.0001", "0 of 30", "-", "-", "-", "-", "0:00:00"],
    ]
    assert "compare.png shows their loss by step" in text
    assert Path("compare.png").read_bytes()[:4] == b"\x89PNG"


def test_a_narrow_terminal_cuts_no_number_off(
    sweep: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    settings = json.loads(Path("a/run.json").read_text())
    settings["settings"]["evaluation"]["best"] = "accuracy"
    Path("a/run.json").write_text(json.dumps(settings))
    assert main(["compare", *sweep]) == 0
    first, *rest = rows_of(capsys.readouterr().out)
    assert "bestnull" in "".join(row[1].replace(" ", "") for row in rest) and first[0] == "b"
    assert first[2:] == ["20 of 30", "3.25", "2.25", "1.5", "10", "0:00:40"]


def test_another_measure(sweep: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *sweep, "--metric", "accuracy", "--output", "other.png"]) == 0
    assert [row[0] for row in rows_of(capsys.readouterr().out)] == ["b", "a", "c"] and Path("other.png").is_file()
    assert main(["compare", *sweep, "--metric", "accuracy", "--direction", "lowest"]) == 0
    assert [row[0] for row in rows_of(capsys.readouterr().out)] == ["a", "b", "c"]
    write_run(Path("d"), 1.0, {10: 1.0}, best="accuracy", accuracy=0.5)
    assert main(["compare", "d"]) == 0  # the runs' own measure, and no setting differs
    assert rows_of(capsys.readouterr().out) == [["d", "10 of 30", "2", "0.5", "0.5", "10", "0:00:20"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "no"], "no holds no run: there is no no/run.json"),
        (["a", "a"], "a is given twice"),
        (["a", "--metric", "acuracy"], "none of the runs has a measure 'acuracy'.* Did you mean 'accuracy'"),
        (["a", "--output", "no/picture.png"], "--output no/picture.png: there is no folder no"),
        ([], "give the folders of the runs to compare"),
        (["broken"], r"run\.json is not JSON"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_compared(
    sweep: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("broken").mkdir()
    Path("broken/run.json").write_text("{")
    assert main(["compare", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


def test_the_best_evaluation() -> None:
    lines = [{"step": 1, "x": 3.0}, {"step": 2, "x": None}, {"step": 3, "x": 2.0}, {"step": 4, "x": 2.0}, {"step": 5}]
    values = measures.values(lines, "x")
    assert measures.best(values, "lowest") == measures.Best(step=3, value=2.0, since=1)
    assert measures.best(values, "highest") == measures.Best(step=1, value=3.0, since=3)
    assert measures.best({}, "lowest") is None


def test_names_of_measures_tell_which_value_is_best() -> None:
    for name in ("loss", "bits_per_byte", "perplexity", "generator_loss", "cross_entropy", "validation/loss"):
        assert measures.direction(name) == "lowest"
    for name in ("accuracy", "macro_f1", "exact_match", "matthews", "pearson", "teacher_accuracy", "f1/positive"):
        assert measures.direction(name) == "highest"
    assert measures.direction("too_long") is measures.direction("tokens") is None


def test_models_of_several_families_differ_by_name():
    gpt2 = {"model.family": "gpt2", "model.width": 8, "model.eos_id": 0, "training.seed": 0}
    bert = {"model.family": "bert", "model.width": 4, "training.seed": 1}
    assert differences([gpt2, bert]) == ["model.family", "training.seed"]
    assert differences([gpt2, {**gpt2, "model.width": 4}]) == ["model.width"]
