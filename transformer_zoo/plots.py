"""Plots of a run."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

CONFUSION = "confusion.png"
"""The picture of a confusion matrix in the folder of a run."""
MOST_CLASSES = 200
"""Classes in a confusion matrix that can still be seen in a picture."""


def curve(lines: Sequence[dict[str, Any]], path: epath.Path, title: str) -> None:
    """Draws the loss on training and on held-out text against the step, and saves the picture."""
    figure, axes = _plot()
    for name, label, style in (("loss", "training", "-"), ("validation/loss", "held out", "o-")):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.legend()
    _save(figure, path)


def curves(by_run: Mapping[str, Mapping[int, float]], path: epath.Path, measure: str) -> None:
    """Draws a measure of several runs against the step, and saves the picture.

    Args:
        by_run: its values by step, by the name of the run.
    """
    figure, axes = _plot()
    for name, by_step in by_run.items():
        axes.plot(*zip(*sorted(by_step.items()), strict=True), "o-", label=name, linewidth=1, markersize=3)
    axes.set(xlabel="step", ylabel=measure)
    axes.legend(fontsize="small")
    _save(figure, path)


def confusion(by_class: Any, path: epath.Path, title: str) -> bool:
    """Draws a confusion matrix and saves the picture: a row for each true class, whose colours are shares of the row,
    with the counts where there is room for them.

    Args:
        by_class: a `metrics.ByClass`.

    Returns:
        False: nothing is drawn, since there is no confusion matrix or too many classes.
    """
    counts_CC, labels = by_class.confusion_CC, by_class.labels
    if counts_CC is None or len(labels) > MOST_CLASSES:
        return False
    import matplotlib.figure

    shares_CC = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    size = min(4 + 0.4 * len(labels), 20)
    figure = matplotlib.figure.Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    font = 9 if len(labels) <= 40 else max(2.0, 9 * 40 / len(labels))
    shown = [label if len(label) <= 30 else f"{label[:29]}\u2026" for label in labels]
    title, *shown = (text.replace("$", r"\$") for text in (title, *shown))  # which would begin a formula
    axes.set_xticks(range(len(labels)), shown, rotation=90 if len(labels) > 4 else 0, fontsize=font)
    axes.set_yticks(range(len(labels)), shown, fontsize=font)
    if len(labels) <= 30:
        for (true, guessed), count in np.ndenumerate(counts_CC):
            color = "white" if shares_CC[true, guessed] > 0.5 else "black"
            axes.text(guessed, true, f"{count:.0f}", ha="center", va="center", color=color, fontsize=8)
    axes.set(
        xlabel="predicted", ylabel="true", title=f"{title.replace('$', chr(92) + '$')} (n = {counts_CC.sum():,.0f})"
    )
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    _save(figure, path)
    return True


def _plot() -> tuple[Any, Any]:
    """A figure and its axes."""
    import matplotlib.figure  # here, since it takes a second of every start

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: epath.Path) -> None:
    """Writes a picture where a path may be in a bucket."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    path.write_bytes(picture.getvalue())
