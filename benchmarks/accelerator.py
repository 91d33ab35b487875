"""BERT, ModernBERT, GPT-2 and T5 on an accelerator, compared with the reference library: one table in minutes.

    python benchmarks/accelerator.py --output FILE.json --results benchmarks/RESULTS.md
    python benchmarks/accelerator.py --cases "train T5-base" decode --minutes 5
    python benchmarks/accelerator.py --small

All models have random weights and no dropout, on both sides, and rows are full of random tokens. Training is in
bfloat16 with parameters and AdamW in float32; for encoding and decoding parameters are bfloat16 too. Attention is the
platform's fused one unless the setting says "xla" or the model adds a bias to the scores, as T5 does.

Utilisation is model FLOPs a second relative to the device's peak. The forward pass counts 2 for each weight that a
token is multiplied with, and 4 x K for each head and visible pair of query and key (causal attention: half of all
pairs; a window: the pairs in it). Training counts three times that. Lookups and recomputation count as 0. Decoding is
measured by memory bandwidth: each new token reads all weights once and the filled part of the cache, on average; the
time includes the prompt. For masked tokens the reference library computes the logits of all tokens, and its utilisation
counts these.

Each library has a process of its own, on an accelerator a new one for each case. Both compile at the same time; then
ours is timed and ends, and then theirs. Each case has a share of the time that is left; as many of its settings are
tried as that allows, and the fastest is kept. A failure is a row with its reason. All is written after every case.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peers
from cases import CASES, Case, described, small
from peak import BANDWIDTH, PEAK
from rich.console import Console
from rich.table import Table

# Functions import jax and torch, in the processes that need them. This process keeps the time.

OURS, THEIRS = "transformer_zoo", "transformers"
NO_TIME = "no time was left"
GIB = 2**30


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    chosen = [case for case in CASES if not options.cases or any(part in case.name for part in options.cases)]
    if not chosen:
        sys.exit(f"error: no case is named like {options.cases}: there are {', '.join(case.name for case in CASES)}")
    cases = [small(case) for case in chosen] if options.small else chosen
    if limit := options.settings or (1 if options.small else None):
        cases = [dataclasses.replace(case, ours=case.ours[:limit], theirs=case.theirs[:limit]) for case in cases]

    def save(report: dict[str, Any]) -> None:
        if options.output:
            Path(options.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if options.results:
            write_results(Path(options.results), report)

    report = measure(cases, 60 * options.minutes, save, quick=options.small, peer=not options.no_peer)
    Console(width=None if sys.stdout.isatty() else 200).print(table(report))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE.json", help="the file for all measurements")
    parser.add_argument(
        "--results", metavar="FILE.md", help="the file whose section about this kind of device is replaced"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="the time limit (default: 9)")
    parser.add_argument("--cases", nargs="+", metavar="PART", help="only cases whose names contain one of these")
    parser.add_argument("--small", action="store_true", help="tiny models and few tokens, to test the script")
    parser.add_argument(
        "--settings", type=int, metavar="N", help="settings to try in a case (default: all, or 1 if small)"
    )
    parser.add_argument("--no-peer", action="store_true", help="without the reference library")
    options = parser.parse_args(arguments)
    if options.small and options.results:
        parser.error("--small with --results: figures of tiny models are no results; leave out one of the two")
    return options


# ---- the two sides ------------------------------------------------------------------------------------------------


def serve_ours(pipe: Any) -> None:
    """Our side. It sends a message when its imports are done, and uses the device only to answer questions."""
    import programs

    pipe.send(None)
    peers.reply(pipe, programs.Worker())


def serve_theirs(pipe: Any) -> None:
    """The reference library's side."""
    import reference

    with contextlib.suppress(ImportError):  # the answer to the first question is then this error
        import torch  # noqa: F401
        import transformers  # noqa: F401
    pipe.send(None)
    peers.reply(pipe, reference.Worker())


class Side:
    """A library in a process of its own. A lost process is replaced.

    Args:
        spare: the process of the next case is started beforehand, so that it imports while this one works.
    """

    def __init__(self, name: str, serve: Any, spare: bool = False) -> None:
        self.name, self.serve, self.keeps_spare = name, serve, spare
        self.process: peers.Process | None = None
        self.next = self._start() if spare else None

    def _start(self) -> peers.Process:
        # The other side may use the memory that jax does not.
        return peers.Process(self.serve, environment={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})

    def ask(self, *question: Any, until: float) -> dict[str, Any]:
        """The answer, or {"error": reason}, at the latest at the time `until`."""
        left = lambda: max(1.0, until - time.monotonic())
        try:
            if self.process is None:
                self.process, self.next = self.next or self._start(), self._start() if self.keeps_spare else None
                self.process.answer(left())
            return self.process.ask(question, left())
        except (TimeoutError, RuntimeError) as error:
            self.renew(patience=0.1)
            return {"error": str(error)}

    def renew(self, patience: float = peers.PATIENCE) -> None:
        """Ends the process, which frees its memory on the device."""
        if self.process is not None:
            self.process.end(patience)
        self.process = None

    def end(self) -> None:
        self.renew(0.5)
        if self.next is not None:
            self.next.end(0.5)


# ---- measuring ----------------------------------------------------------------------------------------------------


def measure(
    cases: Sequence[Case], seconds: float, save: Callable[[dict[str, Any]], None], *, quick: bool, peer: bool
) -> dict[str, Any]:
    """Measures the cases, in their order, within this number of seconds. The report is saved after each of them."""
    deadline = time.monotonic() + seconds
    sides = [Side(OURS, serve_ours)]
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [side.end() for side in sides])
        device = sides[0].ask("device", quick, until=deadline)
        if "error" in device:
            sys.exit(f"error: the device cannot be used: {device['error']}")
        sides[0].keeps_spare = device["platform"] != "cpu"
        if peer and device["platform"] != "tpu":  # where torch cannot run
            sides.append(Side(THEIRS, serve_theirs, spare=sides[0].keeps_spare))
        report = begin(device, seconds, quick)
        for i, case in enumerate(cases):
            if sides[0].keeps_spare:  # on a CPU the sides do not compete for memory
                for side in sides:
                    side.renew(0.5)
            left = deadline - time.monotonic()
            row = {"case": case.name, "kind": case.kind}
            if left < min(10.0, seconds / 10):
                row["error"] = NO_TIME
            else:
                share = left * case.weight / sum(case.weight for case in cases[i:])
                row |= one_case(case, sides, share, deadline, report)
            report["rows"].append(row)
            report["seconds"] = seconds - (deadline - time.monotonic())
            save(report)
            print(f"{report['seconds']:5.0f} s  {case.name}: {summary(row)}", file=sys.stderr, flush=True)
    return report


def begin(device: dict[str, Any], seconds: float, quick: bool) -> dict[str, Any]:
    """The report before the first case."""
    return {
        "device": device["kind"],
        "platform": device["platform"],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "versions": versions(),
        "small": quick,
        "limit": seconds,
        "peak": {"table": PEAK.get(device["kind"]), "measured": device["product"]},
        "bandwidth": {"table": BANDWIDTH.get(device["kind"]), "measured": device["copy"]},
        "rows": [],
    }


def one_case(
    case: Case, sides: Sequence[Side], share: float, deadline: float, report: dict[str, Any]
) -> dict[str, Any]:
    """The row of a case, in its share of the time or slightly more."""
    begun = time.monotonic()
    if case.kind == "attention":
        return sides[0].ask("compare", case, until=min(deadline, begun + 2 * share))
    work = sides[0].ask("begin", case, until=min(deadline, begun + share))
    if "error" in work:
        return work
    tried: dict[str, list[dict[str, Any]]] = {}
    for group in [[side] for side in sides] if case.alone else [sides]:
        part = share * len(group) / len(sides)
        tried |= compiled(case, group, work, part, deadline)
        for side in group:  # one after the other
            for row in tried[side.name]:
                last = min(deadline, time.monotonic() + part + 10)
                timed(row, side, 0.1 if report["small"] else 2.0, last)
                rate(row, side.name, case, work, report)
            if side is not sides[-1] and report["platform"] != "cpu":
                side.renew(0.5)
    return compared(tried)


def compiled(
    case: Case, sides: Sequence[Side], work: dict[str, Any], share: float, deadline: float
) -> dict[str, list[dict[str, Any]]]:
    """A row for each setting, compiled or with an error, by side. The sides compile at the same time."""
    start = time.monotonic()
    until, hard = start + 0.7 * share, min(deadline, start + 2 * share)  # the rest is for timing
    first = {OURS: (case.ours, None), THEIRS: (case.theirs, ("begin", case, work["config"]))}
    with concurrent.futures.ThreadPoolExecutor(len(sides)) as pool:
        rows = pool.map(lambda side: prepare(side, *first[side.name], until, hard), sides)
        return {side.name: side_rows for side, side_rows in zip(sides, rows)}


def prepare(
    side: Side, settings: Sequence[Any], first: tuple[Any, ...] | None, until: float, hard: float
) -> list[dict[str, Any]]:
    """Compiles a case for one setting after the other; a row for each."""
    rows, longest = [], 0.0
    begun = {} if first is None else side.ask(*first, until=hard)
    for i, setting in enumerate(settings):
        row = {"setting": described(setting), "batch": setting.batch, "sparse": getattr(setting, "sparse", False)}
        start = time.monotonic()
        if "error" in begun:
            rows.append(row | begun)
            break
        if i and start + longest > until:
            rows.append(row | {"error": NO_TIME})
            continue
        rows.append(row | {"untimed": setting} | side.ask("prepare", setting, until=hard))
        longest = max(longest, time.monotonic() - start)
        if side.process is None:  # lost, and its compiled programs with it
            rows = [row if "error" in row else row | {"error": rows[-1]["error"]} for row in rows]
            break
    for row in rows:
        if "error" in row:
            row.pop("untimed", None)
    return rows


def timed(row: dict[str, Any], side: Side, seconds: float, until: float) -> None:
    """Adds the seconds of steps."""
    if "error" in row:
        return
    setting = row.pop("untimed")
    if side.process is None:
        row["error"] = "the process that had compiled it was lost"
    else:
        row |= side.ask("time", setting, seconds, until=until)


def rate(row: dict[str, Any], side: str, case: Case, work: dict[str, Any], report: dict[str, Any]) -> None:
    """Adds tokens a second, and the share of the device's peak."""
    if "error" in row:
        return
    seconds = statistics.median(row["seconds"])
    row["tokens_per_second"] = row["batch"] * work["tokens"] / seconds
    if case.kind == "decode":
        row["bytes"], limit = work["bytes"][str(row["batch"])], report["bandwidth"]
        done = row["bytes"]
    else:
        dense = side == THEIRS and not row["sparse"]
        row["flops"], limit = row["batch"] * work["dense_flops" if dense else "flops"], report["peak"]
        done = row["flops"]
    row["share"] = {name: None if peak is None else done / seconds / peak for name, peak in limit.items()}


def compared(tried: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The fastest setting of each side, and their ratio."""
    result: dict[str, Any] = {"tried": tried}
    for side, rows in tried.items():
        done = [row for row in rows if "error" not in row]
        if done:
            result[side] = max(done, key=lambda row: row["tokens_per_second"])
        else:
            result[side] = {"error": "; ".join(dict.fromkeys(row["error"] for row in rows))}
    if "error" in result[OURS]:
        result["error"] = result[OURS]["error"]
    elif THEIRS in result and "error" not in result[THEIRS]:
        result["times"] = result[OURS]["tokens_per_second"] / result[THEIRS]["tokens_per_second"]
    return result


def versions() -> dict[str, str]:
    """The versions of Python and of the installed libraries."""
    found = {"python": sys.version.split()[0]}
    for name in ("jax", "flax", "optax", "torch", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """The version of the code."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "not known"
    return done.stdout.strip() or "not known"


# ---- what is printed ----------------------------------------------------------------------------------------------

COLUMNS = (
    "case", "library", "tokens/s", "of the peak by the table", "of the peak measured", "GiB", "compiled in, s",
    "setting", "times the peer",
)  # fmt: skip


def lines(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of the table, as text: one for each case and library."""
    for row in report["rows"]:
        if row["kind"] == "attention" and "error" not in row:
            yield (row["case"], OURS, *[""] * 5, summary(row), "")
            continue
        sides = [side for side in (OURS, THEIRS) if side in row]
        for side in sides:
            yield (row["case"] if side == OURS else "", side, *cells(row, side))
        if not sides:
            yield (row["case"], OURS, *[""] * 5, row["error"], "")


def cells(row: dict[str, Any], side: str) -> tuple[str, ...]:
    """The cells of a library in a case."""
    best = row[side]
    if "error" in best:
        return (*[""] * 5, best["error"], "")
    shares = ["" if share is None else f"{share:.1%}" for share in best["share"].values()]
    memory = "" if best["memory"] is None else f"{best['memory'] / GIB:.3g}"
    times = f"{row['times']:.2f}" if side == OURS and "times" in row else ""
    return f"{best['tokens_per_second']:,.0f}", *shares, memory, f"{best['compiling']:.0f}", best["setting"], times


def summary(row: dict[str, Any]) -> str:
    """A case in one line."""
    if "error" in row:
        return row["error"]
    if row["kind"] == "attention":
        worst = {key: max(x[key] for x in row["differences"]) for key in row["differences"][0] if key != "mask"}
        name = "no fused kernel here: the plain one" if row["implementation"] == "xla" else row["implementation"]
        return (
            f"{name} in bfloat16 differs from the plain one in float32 by at most {worst['forward']:.1e}, in gradients "
            f"{worst['gradients']:.1e}; the plain one in bfloat16 by {worst['plain_forward']:.1e} and "
            f"{worst['plain_gradients']:.1e}"
        )
    rate, *shares, memory, compiling, setting, times = cells(row, OURS)
    parts = [f"{rate} tokens/s", *shares, setting, f"{times} times the peer" if times else ""]
    return ", ".join(filter(None, parts))


def heading(report: dict[str, Any]) -> str:
    """Date, versions, and the peaks of the device."""
    figures = lambda limit, unit: " and ".join(
        f"{value / 1e12:.4g} {unit} {'by the table' if name == 'table' else 'measured'}"
        for name, value in limit.items()
        if value is not None
    )
    libraries = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{report['date']}, commit {report['commit']}; {libraries}. Peak: {figures(report['peak'], 'TFLOP/s')} "
        f"(bfloat16); memory: {figures(report['bandwidth'], 'TB/s')}. {report['seconds']:.0f} s in all."
    )


def table(report: dict[str, Any]) -> Table:
    made = Table(title=report["device"], caption=heading(report))
    for column in COLUMNS:
        made.add_column(
            column, justify="left" if column in ("case", "library", "setting") else "right", no_wrap=column == "case"
        )
    for line in lines(report):
        made.add_row(*line)
    return made


def write_results(path: Path, report: dict[str, Any]) -> None:
    """Replaces the section about this kind of device, or appends one."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *([cell.replace("|", "/") for cell in row] for row in lines(report))]
    section = [f"## {report['device']}", "", heading(report), "", *(f"| {' | '.join(row)} |" for row in rows)]
    written = path.read_text(encoding="utf-8") if path.exists() else "# Results on accelerators\n"
    before, *sections = written.rstrip().split("\n## ")
    kept = {text.partition("\n")[0]: f"## {text.rstrip()}" for text in sections}
    kept[report["device"]] = "\n".join(section)
    path.write_text("\n\n".join([before.rstrip(), *kept.values()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
