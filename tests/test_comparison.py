"""Runs side by side, from files written by hand: nothing is trained."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from transformer_zoo import measures, plots
from transformer_zoo.__main__ import main
from transformer_zoo.comparison import differences

CLASSIFY = {"name": "sequence-classification"}

pytestmark = pytest.mark.usefixtures("wide_terminal")


def write_run(
    folder: Path, rate: float, losses: dict[int, float], *, best: str | None = None,
    objective: dict[str, Any] | None = None, facts: dict[str, Any] | None = None, **more: float,
) -> str:  # fmt: skip
    """A folder with a run's settings and an evaluation for each loss.

    Args:
        facts: what run.json has besides.
    """
    folder.mkdir(parents=True)
    settings = {
        "model": {"family": "gpt2", "width": 64, "num_heads": 4}, "objective": objective or {"name": "causal-lm"},
        "directory": str(folder), "optimizer": {"peak_lr": rate},
        "training": {"steps": None}, "evaluation": {"best": best},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"settings": settings, "steps": 30, **(facts or {})}))
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
    text = capsys.readouterr().out
    assert rows_of(text)[0] == ["b", "20 of 30", "3.25", "2.25", "1.5", "10", "0:00:40"]
    listed = text[text.index("settings that differ:") :].splitlines()  # below the table, a line each
    assert listed[1:3] == ["  peak_lr: 0.0003 (b), 0.001 (a), 0.0001 (c)", "  best: accuracy (a)"]


def test_in_a_pipe_nothing_is_cut(
    sweep: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    name = f"{'long_' * 20}name"
    write_run(Path(name), 1.0, {10: 1.0})
    assert main(["compare", "a", name]) == 0
    first, *_ = rows_of(capsys.readouterr().out)
    assert first == [name, "peak_lr 1", "10 of 30", "2", "1", "1", "10", "0:00:20"]
    settings = json.loads(Path("a/run.json").read_text())
    settings["settings"] |= {"training": {"steps": 9, "batch_size": 4, "seed": 5}, "data": {"length": 8}}
    Path("a/run.json").write_text(json.dumps(settings))
    assert main(["compare", "a", name]) == 0
    assert "  batch_size: " in capsys.readouterr().out  # five of them are listed below the table


def test_runs_of_several_objectives_do_not_compare(
    sweep: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, problem, losses in (
        ("far", "regression", {10: 10_000.0, 20: 9_000.0}),
        ("several", "multi_label_classification", {10: 0.5}),
    ):
        write_run(Path(name), 1.0, losses, objective={**CLASSIFY, "problem": problem})
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plots, "curves", lambda groups, path: drawn.update(groups))
    assert main(["compare", "far", *sweep, "several"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("the loss of these runs is of 3 kinds, which do not compare\n")
    far, several = (f"sequence-classification, loss in {unit}" for unit in ("squared error", "nats a label"))
    kinds = [far, "causal-lm, loss in nats a token", several]
    assert [line for line in text.splitlines() if "loss in" in line] == kinds
    assert [row[0] for row in rows_of(text)] == ["far", "b", "a", "c", "several"]
    assert list(drawn) == kinds
    assert drawn[far] == ("loss (squared error), held out", {"far": {10: 10_000.0, 20: 9_000.0}})

    for name, smoothing in {"plain": 0.0, "smooth": 0.1}.items():  # whose losses do not compare, and accuracies do
        write_run(Path(name), 1.0, {10: 1.0}, objective={**CLASSIFY, "label_smoothing": smoothing}, accuracy=smoothing)
    assert main(["compare", "plain", "smooth"]) == 0
    text = capsys.readouterr().out
    assert "2 kinds, which do not compare (--metric accuracy compares them all)" in text
    assert "sequence-classification, loss in nats an example, smoothed by 0.1" in text
    assert main(["compare", "plain", "smooth", "--metric", "accuracy"]) == 0
    text = capsys.readouterr().out
    assert "kinds" not in text and [row[0] for row in rows_of(text) if row[0]] == ["smooth", "plain"]


def test_runs_evaluated_on_different_documents_are_named(sweep: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name, contents in {"x": "1", "y": "2", "z": "1"}.items():
        facts = {"data": {"validation": {"documents": 3, "contents": contents}}}
        write_run(Path(name), 1.0, {10: 1.0}, facts=facts)
    line = "these runs were evaluated on different documents, whose values do not compare: "
    assert main(["compare", "x", "y", "z", "a"]) == 0  # an older run lacks the record
    assert f"{line}x, z; y\n" in capsys.readouterr().out
    for names in (["x", "z"], ["x", "y", "--metric", "seconds_per_step"]):
        assert main(["compare", *names]) == 0 and line not in capsys.readouterr().out


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


def test_what_differs_only_in_its_form_or_is_a_copy_is_not_listed() -> None:
    named = lambda *names: {"model.labels": names, "objective.labels": names, "training.epochs": 5, "model.width": 8}
    assert differences([named("a"), named("b")]) == ["objective.labels"]
    assert differences([named("a"), named("a") | {"training.epochs": 5.0}]) == []
    assert differences([named("a"), named("a") | {"training.epochs": 7.0}]) == ["training.epochs"]
