"""Plots of a run."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath


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
