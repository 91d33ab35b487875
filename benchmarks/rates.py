"""What a model and its peer took, as a table."""

import statistics

from rich.table import Table


def table(
    title: str, unit: str, seconds: dict[str, list[float]], *, tokens: int, flops: float, peak: float, digits: int
) -> Table:
    """A row a program: medians of its tokens a second, of its seconds, with the least and the largest, and of its share
    of the peak; below two programs, how many times faster the first is.

    Args:
        unit: what is timed: a step, a batch.
        seconds: name -> seconds of each unit.
        tokens, flops: of a unit.
        peak: the device's FLOP/s.
        digits: decimals of the seconds.
    """
    lines = Table("", title=title)
    for column in ("tokens/s", f"seconds {unit}", "of the peak"):
        lines.add_column(column, justify="right")
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, median in medians.items():
        least, most = (f"{bound(seconds[name]):.{digits}f}" for bound in (min, max))
        spread = f"{median:.{digits}f} ({least} to {most})"
        lines.add_row(name, f"{tokens / median:,.0f}", spread, f"{flops / median / peak:.0%}")
    if len(medians) == 2:
        mine, theirs = medians.values()
        lines.add_row("times faster than the peer", f"{theirs / mine:.2f}", "", "", style="bold")
    return lines
