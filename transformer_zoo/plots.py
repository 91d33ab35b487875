"""Plots of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def curve(lines: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draws the loss on training and on held-out text against the step, and saves the picture."""
    figure, axes = _plot()
    for name, label, style in (("loss", "training", "-"), ("validation/loss", "held out", "o-")):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.legend()
    figure.savefig(path, dpi=150)


def curves(by_run: Mapping[str, Mapping[int, float]], path: Path, measure: str) -> None:
    """Draws a measure of several runs against the step, and saves the picture.

    Args:
        by_run: its values by step, by the name of the run.
    """
    figure, axes = _plot()
    for name, by_step in by_run.items():
        axes.plot(*zip(*sorted(by_step.items()), strict=True), "o-", label=name, linewidth=1, markersize=3)
    axes.set(xlabel="step", ylabel=measure)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _plot() -> tuple[Any, Any]:
    """A figure and its axes."""
    import matplotlib.figure  # here, since it takes a second of every start

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes
