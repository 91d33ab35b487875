"""Plots of a run."""

import io
from collections.abc import Sequence
from typing import Any

from etils import epath


def curve(lines: Sequence[dict[str, Any]], path: epath.Path, title: str) -> None:
    """Draws the loss on training and on held-out text against the step, and saves the picture."""
    import matplotlib.figure  # here, since it takes a second of every start

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, label, style in (("loss", "training", "-"), ("validation/loss", "held out", "o-")):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1, markersize=4)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    path.write_bytes(picture.getvalue())
