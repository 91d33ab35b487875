"""A training run from beginning to end: data, model, checkpoints, the loop, evaluation, and what it leaves behind."""

import collections
import dataclasses
import functools
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from transformer_zoo import logs, plots, runs, sharding, training
from transformer_zoo.checkpoints.orbax import Checkpoints
from transformer_zoo.config import Run
from transformer_zoo.data import pipeline, sources
from transformer_zoo.data.packing import Rows
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.diagnosis import first_not_finite
from transformer_zoo.evaluation import evaluate
from transformer_zoo.objectives.objective import MakeRows
from transformer_zoo.pretrained import Bundle, load_tokenizer

Batch = dict[str, jax.Array]

# Tokenizers that were trained here, by their corpus: the second run on a corpus does not train one again.
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "transformer_zoo" / "tokenizers"


class NotFinite(RuntimeError):
    """The loss or its gradient was not finite too many times in a row."""


def train(run: Run, console: Console | None = None) -> dict[str, float]:
    """Trains, or goes on where a run in the same folder stopped; evaluates at the end.

    Killed at any moment and started again, a run ends with the same parameters, bit for bit, as one that was let be.
    SIGTERM saves and returns. Ctrl-C saves and is then passed on; a second one is passed on at once.

    Returns:
        The last evaluation on held-out text.

    Raises:
        ValueError: settings or data that cannot work, or processes that do not know of one another or do not share the
            folder; nothing has been computed yet.
        NotFinite: the loss was not finite in `training.patience` updates in a row.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(
            f"this is one of {jax.process_count()} processes, which do not know of one another: give each of them "
            "--distributed True (in Python, call sharding.join_processes() first)"
        )
    console = console or Console(quiet=jax.process_index() != 0)
    directory = Path(run.directory)

    # ---- what was here before -----------------------------------------------------------------------------------
    run, bundle, notes = _begin(_for_data(run), directory)
    for note in notes:
        console.print(f"changed since this run began: {note}", style="yellow")

    # ---- program and data: everything that can be wrong is found out here -----------------------------------------
    program = training.prepare(run)
    tokenizer = _tokenizer(run, directory, bundle)
    if tokenizer.vocab_size > run.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {run.model.vocab_size}: "
            "set model.vocab-size to at least that"
        )
    make_rows = run.objective.rows(tokenizer, run.data)
    batches = _batches(run, make_rows, run.data.train_split, seed=run.training.seed, workers=run.data.workers)
    held_out = _HeldOut(
        _batches(run, make_rows, run.data.validation_split, shuffle=False, epochs=1), run.evaluation.batches
    )

    # ---- state: the latest checkpoint, else published weights, else fresh -----------------------------------------
    multihost_utils.sync_global_devices("all have seen what the folder held")
    checkpoints = Checkpoints(
        directory / "checkpoints", keep=run.checkpoints.keep, keep_every=run.checkpoints.keep_every
    )
    step = checkpoints.latest() or 0
    if step:
        state, position = checkpoints.restore(step, program.state)
        batches.set_state(position)
        console.print(f"going on from step {step}")
    else:
        params = program.fresh(run.training.seed) if bundle is None else bundle.params
        if jax.tree.structure(params) != jax.tree.structure(program.state.params):
            raise ValueError(f"init_from cannot start the objective {run.objective.name}, which has a model of its own")
        params = run.objective.begin(params, functools.partial(_load, run))
        state = program.begin(params, run)
    if jax.process_index() == 0:
        if not (directory / "tokenizer").is_dir():
            tokenizer.save(directory / "tokenizer")
        runs.write(run)
    multihost_utils.sync_global_devices("run.json is written")
    if not multihost_utils.process_allgather(np.array((directory / "run.json").is_file())).all():
        raise ValueError(f"{directory} is not one folder for all processes: choose a --directory that every host sees")
    record = _writers(run, directory, step)
    del bundle

    # ---- the loop -------------------------------------------------------------------------------------------------
    console.print(_summary(run, program, tokenizer), soft_wrap=True, highlight=False)
    stop = _Stop(console)
    recent: collections.deque[tuple[int, Batch, dict[str, jax.Array]]] = collections.deque(maxlen=2)
    clock = _Clock(step)
    report: dict[str, float] = {}
    feed = _ahead(batches, lambda rows: _on_device(rows, program.batch))

    with logs.Bar(run.training.steps, step, console) as bar, jax.set_mesh(program.mesh), stop:
        while step < run.training.steps and not stop.now(step):
            batch, position = next(feed)
            state, metrics = program.step(state, batch)
            step += 1
            # The device is already at this step: what is read now is the step before, so that it never waits for us.
            recent.append((step, batch, metrics))
            if len(recent) == 2:
                _watch(run, program, state, *recent[0], console)
            last = step == run.training.steps
            if step % run.logging.every == 0 or last:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                values |= clock.lap(step, values["tokens"])
                record(step, values)
                bar.show(step, values, (run.training.steps - step) * clock.seconds_per_step)
            bar.advance(step)
            if step % run.evaluation.every == 0 or last:
                params = state.params if state.ema is None else state.ema
                rows = (_on_device(rows, program.batch) for rows in held_out)
                report = evaluate(program.model, run.objective, params, rows)
                record(step, {f"validation/{name}": value for name, value in report.items()})
                bar.say(f"step {step}: held out: {logs.line(report)}")
                _draw(directory)
                clock.skip()
            if step % run.checkpoints.every == 0 or last or stop.now(step):
                checkpoints.save(step, state, position)
        if recent:
            _watch(run, program, state, *recent[-1], console)
    checkpoints.wait()
    checkpoints.close()
    batches.close()
    if stop.signalled:
        console.print(f"stopped by a signal at step {step}; the same command goes on from there")
    if stop.interrupted:
        raise KeyboardInterrupt
    return report


def _begin(run: Run, directory: Path) -> tuple[Run, Bundle | None, list[str]]:
    """The run with the architecture it really has, published weights if it starts from some, and what changed."""
    described, kept = (directory / "run.json").is_file(), (directory / "checkpoints").is_dir()
    if kept and not described and Checkpoints(directory / "checkpoints").latest() is not None:
        raise ValueError(
            f"{directory} holds checkpoints and no run.json, which says of what: give this run another --directory, or "
            "put run.json back"
        )
    if kept and described:
        before = runs.read(directory)
        if run.init_from is not None and run.init_from == before.init_from:
            run = _for_data(dataclasses.replace(run, model=before.model))
        notes = runs.check_same(before, run)
        if Checkpoints(directory / "checkpoints").latest() is not None:
            return run, None, notes
    bundle = None
    if run.init_from is not None:
        bundle = _load(run, run.init_from, task=run.objective.task, labels=getattr(run.model, "labels", None))
        run = _for_data(dataclasses.replace(run, model=bundle.config))
    return run, bundle, []


def _for_data(run: Run) -> Run:
    """The run with what its data say about it, such as the names of the classes."""
    classes = lambda field: sources.source(run.data.source, run.data.train_split).classes(field)
    objective, model = run.objective.for_data(run.model, classes)
    return dataclasses.replace(run, objective=objective, model=model)


def _load(run: Run, name: str, **how: Any) -> Bundle:
    """Other weights, in this run's precision and on its devices."""
    mesh = sharding.make_mesh(**dataclasses.asdict(run.mesh))
    how = {"dtype": run.compute.dtype, "param_dtype": run.compute.param_dtype, "seed": run.training.seed} | how
    return runs.load(name, mesh=mesh, **how)


def _tokenizer(run: Run, directory: Path, bundle: Bundle | None) -> Tokenizer:
    """The run's own, that of the weights it starts from, the one asked for, or one trained on the training split."""
    kept = directory / "tokenizer"
    if kept.is_dir():
        return Tokenizer.load(kept)
    if run.vocabulary.path is not None:
        tokenizer = load_tokenizer(run.vocabulary.path)
    elif bundle is not None and bundle.tokenizer is not None:
        tokenizer = bundle.tokenizer
    else:
        documents = sources.source(run.data.source, run.data.train_split)
        texts, how = (text for document in documents for text in run.objective.texts_of(document)), run.vocabulary
        tokenizer = Tokenizer.train(texts, how.size, CACHE, kind=how.kind, lower_case=how.lower_case)
    return tokenizer


def _batches(run: Run, make_rows: MakeRows, split: str, **how: Any) -> pipeline.Pipeline:
    """This process's rows of a split."""
    return pipeline.Pipeline(
        sources.source(run.data.source, split), make_rows, batch_size=run.training.batch_size,
        process_index=jax.process_index(), process_count=jax.process_count(), **how,
    )  # fmt: skip


class _HeldOut:
    """The batches of an evaluation, again and again: a bounded number is kept, a whole split is read anew each time."""

    def __init__(self, batches: pipeline.Pipeline, count: int | None) -> None:
        self._batches, self._count, self._start = batches, count, batches.get_state()
        self._kept: list[Rows] = []

    def __iter__(self) -> Iterator[Rows]:
        if not self._kept:
            self._batches.set_state(self._start)
            rows = itertools.islice(self._batches, self._count)
            if self._count is None:
                yield from rows
            else:
                self._kept = list(rows)
            self._batches.close()
        yield from self._kept


def _on_device(rows: Rows, shapes: dict[str, jax.ShapeDtypeStruct]) -> Batch:
    """This process's rows as part of the global batch."""
    return {
        name: jax.make_array_from_process_local_data(shape.sharding, rows[name], shape.shape)
        for name, shape in shapes.items()
    }


def _ahead(batches: Any, place: Callable[[Any], Batch], size: int = 2) -> Iterator[tuple[Batch, Any]]:
    """Batches on the devices before they are needed, each with the position in the data right after it."""
    queue: collections.deque[tuple[Batch, Any]] = collections.deque()
    for rows in batches:
        queue.append((place(rows), batches.get_state()))
        if len(queue) == size:
            yield queue.popleft()
    yield from queue


def _watch(
    run: Run,
    program: training.Program,
    state: training.TrainState,
    step: int,
    batch: Batch,
    metrics: Any,
    console: Console,
) -> None:
    """Says where a loss or gradient that was not finite came from; ends the run after too many in a row."""
    in_a_row = int(metrics["skipped_in_a_row"])
    if not in_a_row:
        return
    place = "diagnosed at the first of them"
    if in_a_row == 1:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), step - 1)
        place = first_not_finite(program.model, run.objective, state.params, batch, key)
    console.print(f"step {step}: the loss or its gradient is not finite ({place}); the update is left out", style="red")
    if in_a_row >= run.training.patience:
        raise NotFinite(
            f"{in_a_row} updates in a row were not finite, up to step {step}: lower optimizer.peak-lr or "
            "optimizer.clip-norm, or lengthen the warmup; the last checkpoint is good"
        )


class _Stop:
    """SIGTERM, Ctrl-C and the end: a machine that is taken away gives a warning, and the run saves."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: dict[int, Any] = {}
        self.signalled = self.interrupted = False

    def __enter__(self) -> None:
        # The processes of a run on several hosts must stop at one step: jax listens for SIGTERM, on behalf of all.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: Any) -> None:
        self.signalled, self.interrupted = True, number == signal.SIGINT
        if self.interrupted:
            signal.signal(number, self._before[number])
            self._console.print("stopping after this step, to save; Ctrl-C once more stops at once")

    def now(self, step: int) -> bool:
        """Whether to save and stop; all processes of a run answer alike."""
        if jax.process_count() > 1:
            self.signalled = multihost_utils.reached_preemption_sync_point(step)
        return self.signalled


class _Clock:
    """Tokens and seconds between two lines of the log. Evaluation does not count."""

    def __init__(self, step: int) -> None:
        self._step, self._time, self.seconds_per_step = step, time.monotonic(), 0.0

    def lap(self, step: int, tokens: float) -> dict[str, float]:
        now, steps = time.monotonic(), max(1, step - self._step)
        self.seconds_per_step = (now - self._time) / steps
        self._step, self._time = step, now
        return {"tokens_per_second": tokens / self.seconds_per_step, "seconds_per_step": self.seconds_per_step}

    def skip(self) -> None:
        self._time = time.monotonic()


def _writers(run: Run, directory: Path, step: int) -> logs.Writer:
    if jax.process_index() != 0:
        return lambda step, values: None
    writers = [logs.json_lines(directory / "metrics.jsonl", step)]
    if run.logging.tensorboard:
        writers.append(logs.tensorboard(directory / "tensorboard"))
    if run.logging.wandb is not None:
        writers.append(logs.wandb(run.logging.wandb, directory, runs.settings(run)))

    def write(step: int, values: Any) -> None:
        for writer in writers:
            writer(step, values)

    return write


def _draw(directory: Path) -> None:
    if jax.process_index() == 0:
        plots.curve(logs.read_json_lines(directory / "metrics.jsonl"), directory / "curve.png", directory.name)


def _summary(run: Run, program: training.Program, tokenizer: Tokenizer) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    device = program.mesh.devices.flat[0].device_kind
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items() if size > 1) or "one device"
    return (
        f"{count / 1e6:.1f} M parameters, {tokenizer.vocab_size} tokens in the vocabulary; "
        f"{run.training.batch_size} x {run.data.length} tokens a step; {device}, {mesh}"
    )
