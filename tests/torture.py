"""Faults at random moments, by `tools/torture.py`, and a few of them in the tests.

Small runs of four kinds are killed (SIGKILL), stopped (SIGTERM, and Ctrl-C, which the workers get too), deprived of
their disk and deprived of their data, at random moments from their start on. The same command resumes each. In the end
its parameters, optimizer, position in the data and logs must be, bit for bit, those of a run that nothing disturbed;
what a fault may cost is the steps after the last checkpoint, and a signal that is handled costs none.

The full disk is a limit on the size of files that is set on the running process from outside (`prlimit`): from then on
no write of any of its threads succeeds beyond the limit, in Python or in C++. The lost data are its folder, moved away.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import re
import resource
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import processes
from conftest import QUICKLY
from rich.console import Console
from rich.table import Table

from transformer_zoo.checkpoints.orbax import steps

RECIPE = """
from transformer_zoo.config import *
from transformer_zoo.models import bert, gpt2, t5
from transformer_zoo.objectives import *

sizes = dict(max_length=32, width=16, num_layers=2, num_heads=2)
config = Run(
    {kind},
    directory="{directory}",
    training=Training(steps={steps}, batch_size=8, accumulation={accumulation}),
    evaluation=Evaluation(every=30, batches=1),
    checkpoints=Checkpoints(every=4, keep=2),
    logging=Logging(every=1),
)
"""
# The rest of the recipe, and the number of parts of a batch.
CASES = {
    "causal": ("""model=gpt2.Config(vocab_size=300, eos_id=0, **sizes), objective=CausalLM(),
    data=Data(source="text:{texts}/*.txt", length=32), vocabulary=Vocabulary(size=300),
    optimizer=Optimizer(peak_lr=1e-2, warmup_steps=5, ema=0.9)""", 2),
    "masked": ("""model=bert.Config(vocab_size=128, mlp_dim=32, **sizes), objective=MaskedLM(),
    data=Data(source="text:{texts}/*.txt", length=32, workers=1), vocabulary=Vocabulary(kind="wordpiece", size=128),
    optimizer=Optimizer(peak_lr=1e-2, warmup_steps=5)""", 1),
    "spans": ("""model=t5.Config(vocab_size=400, width=16, num_layers=1, num_decoder_layers=1, num_heads=2, mlp_dim=32),
    objective=SpanCorruption(), data=Data(source="text:{texts}/*.txt", length=32),
    vocabulary=Vocabulary(kind="t5", size=400), optimizer=Optimizer(name="adafactor", peak_lr=1e-2, ema=0.9)""", 2),
    "classes": ("""model=bert.Config(vocab_size=128, mlp_dim=32, **sizes),
    objective=SequenceClassification(labels=("few", "many")),
    data=Data(source="jsonl:{texts}/*.jsonl", length=32), vocabulary=Vocabulary(kind="wordpiece", size=128),
    optimizer=Optimizer(peak_lr=1e-2, warmup_steps=5)""", 4),
}  # fmt: skip
# What may stop a process -> the exit codes that are right: before a run has begun to step, the system ends it.
FAULTS = {
    "SIGKILL": (-signal.SIGKILL,),
    "SIGTERM": (128 + signal.SIGTERM, -signal.SIGTERM),
    "Ctrl-C": (128 + signal.SIGINT, -signal.SIGINT),
    "full disk": (1,),
    "lost data": (1,),
}
PACE = 5
"""The largest number of steps from a start to its fault."""
AHEAD = 24
"""Steps, roughly, for which the data are read ahead."""


@dataclasses.dataclass(frozen=True)
class Struck:
    """What a fault did."""

    fault: str
    at: int | None
    """The last step in the log when it struck. None: before the first step of this process."""
    code: int
    saved: int
    """The step of the last checkpoint afterwards; 0: none."""
    lost: int
    """Steps in the log behind it."""


class Run:
    """A run that is struck by faults and resumed by the same command."""

    def __init__(self, case: str, folder: Path, *, faults: int, rng: random.Random, cache: Path) -> None:
        self.folder, self.texts, self._rng = folder, folder / "data", rng
        _write_data(self.texts)
        kind, accumulation = CASES[case]
        self.recipe = folder / "recipe.py"
        settings = {
            "steps": (PACE + AHEAD // 4) * faults + AHEAD,
            "accumulation": accumulation,
            "directory": folder / "torn",
        }
        self.recipe.write_text(RECIPE.format(kind=kind.format(texts=self.texts), **settings))
        self._environment = {
            "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": QUICKLY,
        }  # fmt: skip
        self._seconds_to_start = 2.0

    def start(self, name: str = "torn") -> processes.Process:
        """The command, in a process of its own."""
        return processes.Process(
            processes.train, [str(self.recipe), "--directory", str(self.folder / name)], **self._environment
        )

    def finish(self, name: str) -> None:
        """Runs the command to the end."""
        process = self.start(name)
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said

    def strike(self, fault: str) -> Struck:
        """Starts the command, lets the fault strike at a random moment, and checks what is left."""
        log, base, began = self.folder / "torn" / "metrics.jsonl", self._saved(), time.monotonic()
        before = log.stat().st_ino if log.exists() else None

        def at() -> int | None:
            """The last step that this process has logged; it begins with a new file."""
            begun = log.exists() and log.stat().st_ino != before
            return self._logged() if begun and self._logged() > base else None

        process = self.start()
        if self._rng.random() < 0.2:
            time.sleep(self._rng.random() * self._seconds_to_start)
        else:
            target = base + self._rng.randint(1, PACE)
            while process.poll() is None and (at() or 0) < target:
                if at() is None:
                    self._seconds_to_start = time.monotonic() - began
                time.sleep(0.01)
            time.sleep(self._rng.random() * 0.1)
        struck_at = at()
        away = self.texts.with_name("away")
        if fault == "SIGKILL":
            process.kill()
        elif fault == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        elif fault == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        elif fault == "full disk":
            room = self._rng.choice([0, self._rng.randrange(30_000)])
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        else:
            self.texts.rename(away)
        said = process.communicate(timeout=600)[0]
        if away.is_dir():
            away.rename(self.texts)
        saved = self._saved()
        assert process.returncode in FAULTS[fault], (fault, process.returncode, said)
        assert "Traceback" not in said, said
        lost = max(self._logged() - saved, 0)
        if stopped := re.search(r"stopped by SIG\w+ at step (\d+)", said):
            assert saved == int(stopped[1]) and lost == 0, said
        if good := re.search(r"the checkpoint of step (\d+) is good", said):
            assert saved == int(good[1]), said
        return Struck(fault, struck_at, process.returncode, saved, lost)

    def _saved(self) -> int:
        """The step of the last checkpoint, or 0."""
        return max(steps(self.folder / "torn" / "checkpoints"), default=0)

    def _logged(self) -> int:
        """The last step in the log, or 0."""
        log = self.folder / "torn" / "metrics.jsonl"
        return max(map(int, re.findall(r'"step": (\d+),', log.read_text())), default=0) if log.exists() else 0

    def check(self) -> None:
        """The run is the one that nothing disturbed: state, position, and every line of the logs."""
        (state, *logs), (expected, *expected_logs) = (_left(self.folder / name) for name in ("torn", "whole"))
        assert state.keys() == expected.keys() and len(state) > 20
        for name, array in state.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
        assert logs == expected_logs


def _left(directory: Path) -> tuple[dict[str, Any], Any, Any, Any]:
    """The arrays of the last checkpoint, the position in the data, the log without times, and TensorBoard's steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last = directory.absolute() / "checkpoints" / str(max(steps(directory / "checkpoints")))
    tree = ocp.PyTreeCheckpointer().restore(last / "state")
    arrays = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    log = [{name: value for name, value in line.items() if "second" not in name} for line in lines]
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    shown = {
        name: [(event.step, event.value) for event in events.Scalars(name)] for name in ("loss", "validation/loss")
    }
    return arrays, json.loads((last / "data" / "metadata").read_text()), log, shown


def _write_data(folder: Path) -> None:
    """Forty texts, so short that they are read anew after a few steps, and as many labelled ones."""
    folder.mkdir(parents=True)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "brew"]
    rng, examples = random.Random(0), []
    for index in range(40):
        text = rng.choices(words, k=rng.randrange(3, 18))
        (folder / f"{index:02}.txt").write_text(" ".join(text))
        examples.append({"text": " ".join(text), "label": "many" if len(text) > 10 else "few"})
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, examples)))


def torture(case: str, folder: Path, faults: list[str], rng: random.Random, cache: Path) -> list[Struck]:
    """Strikes a run with these faults, finishes it, and compares it with one that nothing disturbs."""
    run = Run(case, folder, faults=len(faults), rng=rng, cache=cache)
    run.finish("whole")
    struck = []
    for number, fault in enumerate(faults, 1):
        struck.append(run.strike(fault))
        print(f"{case} {number}/{len(faults)}: {struck[-1]}", flush=True)
    run.finish("torn")
    run.check()
    return struck


def main(description: str) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(1000))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    chosen = parser.parse_args()
    print(f"{chosen.faults} faults, seed {chosen.seed}", flush=True)
    rng, began = random.Random(chosen.seed), time.monotonic()
    kinds = [list(FAULTS)[index % len(FAULTS)] for index in range(chosen.faults)]
    table = Table("run", "fault", "struck", "before its first step", "exit codes", "steps lost, at most")
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        for index, case in enumerate(chosen.cases):
            faults = kinds[index * len(kinds) // len(chosen.cases) : (index + 1) * len(kinds) // len(chosen.cases)]
            rng.shuffle(faults)
            found = torture(case, Path(temporary, case), faults, rng, Path(temporary, "cache"))
            for fault in FAULTS:
                of = [struck for struck in found if struck.fault == fault]
                codes = collections.Counter(struck.code for struck in of)
                table.add_row(
                    case, fault, str(len(of)), str(sum(struck.at is None for struck in of)),
                    ", ".join(f"{code} ({count})" for code, count in sorted(codes.items())),
                    str(max((struck.lost for struck in of), default=0)), end_section=fault == "lost data",
                )  # fmt: skip
    Console().print(table)
    print(f"every run ended bit for bit as an undisturbed one; {time.monotonic() - began:.0f} s, seed {chosen.seed}")
