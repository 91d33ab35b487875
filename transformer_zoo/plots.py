"""Plots of a run."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

CONFUSION = "confusion.png"
"""The picture of a confusion matrix in the folder of a run."""
CLASSES = "classes.png"
"""The picture of the measures of each class in the folder of a run, if an example may have several classes."""
MOST_CLASSES = 200
"""Classes that can still be seen in a picture."""
FEW = 30
"""Points of a curve, up to which each has a mark."""


def curve(lines: Sequence[dict[str, Any]], path: epath.Path, title: str, unit: str) -> None:
    """Draws the loss on training and on held-out text against the step, and saves the picture. Where a loss was not
    finite, its curve has a gap.

    Args:
        unit: of the loss.
    """
    found = {
        label: {line["step"]: math.nan if line[name] is None else line[name] for line in lines if name in line}
        for name, label in (("loss", "training"), ("validation/loss", "held out"))
    }
    figure = _figure(7, 4)
    axes = _by_step(figure.add_subplot(), found, f"loss ({unit})")
    axes.set(title=_plain(title))
    if axes.lines:
        axes.legend()
    _save(figure, path)


def curves(groups: Mapping[str, tuple[str, Mapping[str, Mapping[int, float]]]], path: epath.Path) -> None:
    """Draws a measure of several runs against the step, and saves the picture: axes for each group of runs.

    Args:
        groups: by their titles, the measure with its unit, and its values by step by the name of the run.
    """
    figure = _figure(9, 4 * len(groups))
    grid = figure.subplots(len(groups), squeeze=False)
    for axes, (title, (measure, by_run)) in zip(grid.flat, groups.items(), strict=True):
        named = {_short(name, 40): by_step for name, by_step in by_run.items()}
        _by_step(axes, named if len(named) == len(by_run) else by_run, measure)
        axes.set(title=title)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def picture_of(by_class: Any) -> str:
    """The name of the picture of a `metrics.ByClass` in the folder of a run."""
    return CLASSES if by_class.confusion_CC is None else CONFUSION


def classes(by_class: Any, path: epath.Path, title: str) -> bool:
    """Draws the confusion matrix and saves the picture; where there is none, since an example may have several classes,
    precision and recall of each class.

    Args:
        by_class: a `metrics.ByClass`.

    Returns:
        False: nothing is drawn, since there are too many classes.
    """
    return (bars if by_class.confusion_CC is None else confusion)(by_class, path, title)


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
    shares_CC = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    size = min(4 + 0.4 * len(labels), 20)
    figure = _figure(size + 1, size)
    axes = figure.add_subplot()
    image = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    font, shown = _font(labels), [_plain(_short(label)) for label in labels]
    axes.set_xticks(range(len(labels)), shown, rotation=90 if len(labels) > 4 else 0, fontsize=font)
    axes.set_yticks(range(len(labels)), shown, fontsize=font)
    if len(labels) <= 30:
        for (true, guessed), count in np.ndenumerate(counts_CC):
            color = "white" if shares_CC[true, guessed] > 0.5 else "black"
            axes.text(guessed, true, f"{count:.0f}", ha="center", va="center", color=color, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title=f"{_plain(title)} (n = {counts_CC.sum():,.0f})")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    _save(figure, path)
    return True


def bars(by_class: Any, path: epath.Path, title: str) -> bool:
    """Draws precision and recall of each class as bars, with its number of examples, and saves the picture.

    Args:
        by_class: a `metrics.ByClass`.

    Returns:
        False: nothing is drawn, since there are too many classes.
    """
    measures, labels = by_class.measures(), by_class.labels
    if len(labels) > MOST_CLASSES:
        return False
    figure = _figure(8, min(2 + 0.45 * len(labels), 20))
    axes, places = figure.add_subplot(), np.arange(len(labels))
    for name, offset in (("precision", -0.2), ("recall", 0.2)):
        shares = [measures[label][name] for label in labels]
        drawn = axes.barh(places + offset, shares, height=0.38, label=name)
        if len(labels) <= 30:
            axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
    shown = [f"{_plain(_short(label))} ({measures[label]['support']:,})" for label in labels]
    axes.set_yticks(places, shown, fontsize=_font(labels))
    axes.set_ylim(len(labels) - 0.5, -0.5)  # the first class is on top
    axes.set(xlim=(0, 1.1), xlabel="share", ylabel="class (examples)", title=_plain(title))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)
    return True


def _figure(width: float, height: float) -> Any:
    """A figure, in inches."""
    import matplotlib.figure  # here, since it takes a second of every start

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _by_step(axes: Any, curves: Mapping[str, Mapping[int, float]], measure: str) -> Any:
    """Draws values against the step."""
    for i, (name, by_step) in enumerate(curves.items()):
        style = ("-", "--", ":")[i // 10 % 3]  # colours repeat after ten
        mark = "o" if len(by_step) <= FEW else ""
        label = _plain(name) + ("" if any(map(math.isfinite, by_step.values())) else " (not finite)")
        if by_step:
            axes.plot(*zip(*sorted(by_step.items()), strict=True), f"{mark}{style}", label=label, lw=1, markersize=4)
    axes.set(xlabel="step", ylabel=measure)
    axes.grid(alpha=0.3)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return axes


def _font(labels: Sequence[str]) -> float:
    """The size of the labels of an axis."""
    return 9 if len(labels) <= 40 else max(2.0, 9 * 40 / len(labels))


def _short(name: str, most: int = 30) -> str:
    """A name without its middle, where it is long: names that belong together often begin alike."""
    return name if len(name) <= most else f"{name[: most // 2]}\u2026{name[len(name) - most // 2 + 1 :]}"


def _plain(text: str) -> str:
    """Text without formulas, which a $ would begin."""
    return text.replace("$", r"\$")


def _save(figure: Any, path: epath.Path) -> None:
    """Writes a picture where a path may be in a bucket."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    path.write_bytes(picture.getvalue())
