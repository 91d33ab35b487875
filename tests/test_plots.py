"""Pictures and tables, with no run behind them."""

import io
import json
import math

import matplotlib.figure
import numpy as np
import pytest
from etils import epath
from rich.table import Table

from transformer_zoo import loop, plots, registry, tables
from transformer_zoo.config import Run
from transformer_zoo.evaluation.loss import Report
from transformer_zoo.objectives import OBJECTIVES, Distillation, SequenceClassification, TokenClassification, metrics


def drawn(draw, monkeypatch):
    """The axes of the picture that a function saves."""
    found = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: found.extend(figure.axes))
    draw()
    return found


def test_each_objective_names_the_unit_of_its_loss():
    objectives = [kind(teacher="t") if kind is Distillation else kind() for kind in OBJECTIVES.values()]
    units = {objective.name: objective.loss_unit for objective in objectives}
    assert set(units) == set(OBJECTIVES) and units["causal-lm"] == "nats a token"
    assert units["masked-lm"] == "nats a hidden token" and units["seq2seq-lm"] == "nats a token of the target"
    assert units["pretraining"] == "nats a hidden token + nats a pair"
    problems = {
        "single_label_classification": "nats an example",
        "multi_label_classification": "nats a label",
        "regression": "squared error",
    }
    for problem, unit in problems.items():
        assert SequenceClassification(problem=problem).loss_unit == unit
    weighted = TokenClassification(class_weights="balanced", label_smoothing=0.1)
    assert weighted.loss_unit == "weighted nats a token with a label, smoothed by 0.1"
    assert units["distillation"] == "5 x soft + 2 x masked + 1 x cosine"
    assert units["replaced-token-detection"] == "generator's + 50 x discriminator's"


@pytest.mark.filterwarnings("error")
def test_a_curve_shows_the_unit_single_points_and_gaps(monkeypatch):
    lines = [{"step": 10, "loss": 3.0}, {"step": 10, "validation/loss": 2.0}]
    (axes,) = drawn(lambda: plots.curve(lines, epath.Path("x"), "costs $5, or $6", "squared error"), monkeypatch)
    assert axes.get_ylabel() == "loss (squared error)" and axes.get_title() == r"costs \$5, or \$6"
    assert [line.get_marker() for line in axes.lines] == ["o", "o"]
    lines = [{"step": step, "loss": None if step == 20 else 1.0} for step in (10, 20, 30)]
    lines.append({"step": 30, "validation/loss": None})
    (axes,) = drawn(lambda: plots.curve(lines, epath.Path("x"), "x", "nats a token"), monkeypatch)
    training, held_out = axes.lines
    assert list(training.get_xdata()) == [10, 20, 30] and math.isnan(training.get_ydata()[1])
    assert held_out.get_label() == "held out (not finite)"
    (axes,) = drawn(lambda: plots.curve([], epath.Path("x"), "x", "nats a token"), monkeypatch)
    assert not axes.lines


def test_curves_of_several_groups_have_axes_each(monkeypatch, tmp_path):
    long = [f"runs/{'a long way down/' * 3}{i}" for i in range(2)]
    groups = {"one": ("loss (nats a token)", {name: {1: 2.0} for name in long}), "other": ("x", {"c": {1: 9e9}})}
    one, other = drawn(lambda: plots.curves(groups, epath.Path("x")), monkeypatch)
    assert (one.get_title(), one.get_ylabel(), other.get_title()) == ("one", "loss (nats a token)", "other")
    labels = [line.get_label() for line in one.lines]
    assert len(set(labels)) == 2 and all(len(label) == 40 and label.startswith("runs/") for label in labels)
    assert isinstance(one.figure, matplotlib.figure.Figure)


def test_titles_and_cells_are_not_squeezed_off_a_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    long = "csv:/a/folder/" + "x" * 100 + "/[v1].csv, validation"
    table = Table("a", title=long)
    table.add_row("b" * 200)
    console = tables.console(file=(shown := io.StringIO()))
    tables.show(console, table)
    assert shown.getvalue().splitlines()[0] == long and "b" * 200 in shown.getvalue()
    monkeypatch.setenv("COLUMNS", "50")
    console = tables.console(file=(shown := io.StringIO()))
    narrow = Table("a", title=long)
    narrow.add_row("b" * 40)
    assert tables.fits(console, narrow)
    narrow.add_row("b" * 60)
    assert not tables.fits(console, narrow)
    tables.show(console, narrow)
    assert shown.getvalue().splitlines()[0] == long and max(map(len, shown.getvalue().splitlines()[1:])) == 50


def test_a_multi_label_run_leaves_a_curve_and_its_classes(tmp_path):
    objective = SequenceClassification(problem="multi_label_classification", labels=("a", "b"))
    run = Run(model=registry.family("bert").Config(), objective=objective)
    report = Report(loss=1.0)
    report.by_class = metrics.ByClass(objective.labels, *np.array([[3.0, 0], [4, 0], [6, 0]]))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    loop._draw(run, epath.Path(tmp_path), report)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["classes.png", "curve.png"]
