"""The training loop: steps, evaluation, checkpoints, logs and signals, from the first step or from where it stopped."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from rich.console import Console

from transformer_zoo import (
    arguments,
    ended,
    folders,
    json_files,
    logs,
    lora,
    measures,
    messages,
    names,
    plots,
    runs,
    tables,
    training,
    trees,
)
from transformer_zoo.checkpoints.orbax import Checkpoints
from transformer_zoo.config import Run
from transformer_zoo.data import pipeline
from transformer_zoo.data.rows import Rows
from transformer_zoo.data.sources import Source
from transformer_zoo.diagnosis import first_not_finite
from transformer_zoo.evaluation.loss import Report, evaluate
from transformer_zoo.generation import published
from transformer_zoo.pretrained import save_generation
from transformer_zoo.resolve import Resolved, load_weights, resolve

Batch = dict[str, jax.Array]


class NotFinite(RuntimeError):
    """The loss or its gradient was not finite too many times in a row."""


def train(run: Run, console: Console | None = None) -> dict[str, float]:
    """Trains, or resumes the run in the same folder; evaluates at the end, unless `evaluation.every` is None.

    Killed at any moment and started again, a run ends with the same parameters, bit for bit, as an undisturbed one.
    SIGTERM and SIGHUP save and then raise SystemExit with 143 and 129, the exit codes by the convention of shells (on
    several hosts, only SIGTERM is handled); a signal that the process ignores, as nohup makes it, stays ignored. Ctrl-C
    saves and then raises KeyboardInterrupt; a second one does not save. Before the first step is computed there is
    nothing to save, and signals do what they did before the call. Whatever ends the run, a checkpoint in flight is
    completed first, and after an error the console names the last one. A picture or a TensorBoard file that cannot be
    written is a warning.

    A run that is finished already is not computed again: it says so. One that does not get better in
    `evaluation.patience` evaluations stops early.

    Returns:
        The last evaluation on held-out text; empty if there is none.

    Raises:
        ValueError: settings or data that cannot work, processes that were not joined or do not share the folder, or
            another process that trains in it; nothing has been computed yet.
        NotFinite: the loss was not finite in `training.patience` updates in a row.
        OSError: data that cannot be read, or a file that cannot be written, as on a full disk.
        TypeError: an argument of another type.
    """
    arguments.check(train, locals())
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(
            f"this is one of {jax.process_count()} processes that have not been joined: start each of them with "
            "--distributed True (in Python, call sharding.join_processes() first)"
        )
    with _alone(run.directory):
        return _train(run, console or tables.console(quiet=jax.process_index() != 0))


def _train(run: Run, console: Console) -> dict[str, float]:
    if (done := ended.as_given(run)) is None:
        resolved = resolve(run, functools.partial(console.print, soft_wrap=True, highlight=False, markup=False))
        for note in resolved.notes:
            warnings.warn(f"changed since this run began: {note}", stacklevel=3)
        done = ended.of(resolved.run, resolved.steps, runs.comparable_since(resolved.facts))
    if done is not None:
        console.print(done.message, soft_wrap=True, highlight=False, markup=False)
        return done.report
    run, program, steps = resolved.run, resolved.program, resolved.steps
    directory = folders.folder(run.directory)
    batches = _batches(resolved, resolved.train_source, seed=run.training.seed, workers=run.data.workers)
    held_out: Iterable[Rows] = ()
    if resolved.validation_source is not None:
        rows = _batches(resolved, resolved.validation_source, shuffle=False, epochs=1)
        held_out = _HeldOut(rows, run.evaluation.batches)
    multihost_utils.sync_global_devices("all have read the folder")
    checkpoints = Checkpoints(
        directory / "checkpoints", write=True, keep=run.checkpoints.keep, keep_every=run.checkpoints.keep_every
    )
    step = resolved.step or 0
    if step:
        state, position = checkpoints.restore(step, program.state)
        base = None if program.base is None else runs.read_base(directory, program.base)
        batches.set_state(position)
        console.print(f"resuming from step {step}")
    else:
        (state, base), position = _first_state(resolved), batches.get_state()
    if resolved.bundle is not None:  # frees its weights, which are in the state
        resolved = dataclasses.replace(resolved, bundle=resolved.bundle.replace(params=None))
    # Lines of steps after this one are dropped, and their evaluations with them.
    lines = (line for line in runs.lines(directory) if line["step"] <= step)
    history = measures.history(run.evaluation, lines, runs.comparable_since(resolved.facts))
    _describe(resolved)
    if base is not None and not step:
        runs.write_base(directory, base)

    console.print(_summary(resolved), soft_wrap=True, highlight=False)
    if resolved.labels:
        console.print(resolved.labels, soft_wrap=True, highlight=False, markup=False)
    stop = _Stop(console)
    recent: collections.deque[tuple[int, Batch, dict[str, jax.Array]]] = collections.deque(maxlen=2)
    clock = _Clock()
    report = Report()
    feed = _ahead(batches, lambda rows: _on_device(rows, program.batch))

    with (
        contextlib.ExitStack() as stepping,
        _completed(checkpoints, batches, console),
        _writers(run, directory, step) as record,
        logs.Bar(steps, step, console) as bar,
        jax.set_mesh(program.mesh),
    ):

        def is_measured() -> bool:
            """Whether there is an evaluation after this step."""
            every = run.evaluation.every
            return every is not None and step > 0 and (step % every == 0 or step == steps)

        def measured() -> Report:
            """The evaluation of the state after this step, which is saved if it is the best."""
            params = lora.joined(base, state.params if state.ema is None else state.ema)
            rows = (_on_device(rows, program.batch) for rows in held_out)
            found = evaluate(program.model, run.objective, params, rows)
            record(step, {f"{logs.HELD_OUT}{name}": value for name, value in found.items()})
            if run.evaluation.best is not None:
                history[step] = found[run.evaluation.best]
            is_best = find_best() == step
            bar.print(f"step {step}: held out: {logs.line(found)}{' (the best so far)' if is_best else ''}")
            if is_best:
                checkpoints.save(step, state, position)
            _draw(run, directory, found)
            clock.skip()
            return found

        def find_best() -> int | None:
            """The step of the best evaluation, whose checkpoint is kept."""
            best = measures.best_of(run.evaluation, history)
            checkpoints.kept.best = None if best is None else best.step
            return checkpoints.kept.best

        find_best()
        if is_measured() and not logs.has_evaluation(directory / "metrics.jsonl", step):  # it ended between the two
            report = measured()
        early = measures.stops_early(run.evaluation, history)
        while step < steps and early is None and not stop.now(step):
            batch, position = next(feed)
            state, metrics = program.step(state, batch, base)
            step += 1
            if not clock.runs:
                # Signals are handled from here on: during the compilation, which can be long, they end a program at
                # once, and nothing is lost.
                stepping.enter_context(stop)
                clock.start(step, metrics)
            # The device computes this step while the metrics of the step before are read, so that it never waits.
            recent.append((step, batch, metrics))
            if len(recent) == 2:
                _watch(run, program, state, base, *recent[0], console)
            last = step == steps
            if step % run.logging.every == 0 or last:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                values |= clock.lap(step, values["tokens"])
                record(step, values)
                bar.show(step, values)
            bar.advance(step)
            # First the checkpoint, so that an error of the evaluation costs no step.
            if step % run.checkpoints.every == 0 or last:
                checkpoints.save(step, state, position)
            if is_measured():
                report = measured()
                early = measures.stops_early(run.evaluation, history)
            checkpoints.check()
        if run.evaluation.every is None:
            _draw(run, directory, report)
        if step:
            checkpoints.save(step, state, position)  # where a signal stopped it
        if recent:
            _watch(run, program, state, base, *recent[-1], console)
    if stop.signal is not None:
        console.print(f"stopped by {stop.signal.name} at step {step}; the same command resumes it")
        raise KeyboardInterrupt if stop.signal == signal.SIGINT else SystemExit(128 + stop.signal)
    if early is not None:
        console.print(early, soft_wrap=True, highlight=False, markup=False)
    if (best := measures.best_of(run.evaluation, history)) is not None:
        console.print(
            f"the best checkpoint by {run.evaluation.best} is that of step {best.step}: load it with --step best",
            highlight=False,
        )
    return report


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Keeps other processes than those of this run from training in the folder.

    Raises:
        ValueError: another one does already.
        OSError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        fault = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(runs.locked(directory))
            except (ValueError, OSError) as error:
                fault = error
        if multihost_utils.broadcast_one_to_all(np.array(fault is not None)):
            raise fault or ValueError(f"the first process of this run cannot have {directory} for itself")
        yield


@contextlib.contextmanager
def _completed(checkpoints: Checkpoints, batches: pipeline.Pipeline, console: Console) -> Iterator[None]:
    """Whatever ends the run, the checkpoint in flight is completed; after an error the console names the last one."""
    try:
        yield
        checkpoints.wait()
    except BaseException:
        with contextlib.suppress(OSError):
            checkpoints.wait()
        if (step := checkpoints.latest()) is None:
            console.print("no checkpoint has been written: the same command starts from the beginning", style="yellow")
        else:
            console.print(f"the checkpoint of step {step} is good: the same command goes on from it", style="yellow")
        raise
    finally:
        checkpoints.close()
        batches.close()


def _batches(resolved: Resolved, source: Source, **kwargs: Any) -> pipeline.Pipeline:
    """This process's rows of a split."""
    return pipeline.Pipeline(
        source, resolved.make_rows, batch_size=resolved.run.training.batch_size, process_index=jax.process_index(),
        process_count=jax.process_count(), **kwargs,
    )  # fmt: skip


def _first_state(resolved: Resolved) -> tuple[training.TrainState, Any]:
    """The state before the first step, from published weights or fresh ones; and of a run with adapters, its base.

    Raises:
        ValueError: the weights do not fit the model that the objective trains.
    """
    run, program, bundle = resolved.run, resolved.program, resolved.bundle
    params = program.fresh(run.training.seed) if bundle is None else bundle.params
    own_model = jax.tree.structure(params) != jax.tree.structure(program.state.params)
    if own_model and program.base is None:
        raise ValueError(f"init_from cannot start the objective {run.objective.name}, which has a model of its own")
    params = run.objective.begin(params, functools.partial(load_weights, run))
    trained, base = program.divided(params, run.training.seed)
    return program.begin(trained, run), base


def _describe(resolved: Resolved) -> None:
    """Writes run.json, by which the folder is known as a run's, the tokenizer and generation_config.json.

    Raises:
        ValueError: a process does not see the folder.
    """
    directory = folders.folder(resolved.run.directory)
    if jax.process_index() == 0:
        runs.write(resolved.run, resolved.facts)
        if resolved.step is None:  # what a run that never saved has left, perhaps for other data
            (directory / "tokenizer").rmtree(missing_ok=True)
            (directory / runs.BASE).rmtree(missing_ok=True)
            (directory / published.FILE).unlink(missing_ok=True)
        if not (directory / "tokenizer").is_dir():
            resolved.tokenizer.save(directory / "tokenizer")
        if resolved.bundle is not None and resolved.bundle.generation is not None:
            save_generation(directory, resolved.bundle)
    multihost_utils.sync_global_devices("run.json is written")
    if not multihost_utils.process_allgather(np.array(names.is_run(directory))).all():
        raise ValueError(f"{directory} is not one folder for all processes: choose a --directory that every host sees")


class _HeldOut:
    """The batches of each evaluation: a bounded number is kept in memory, a whole split is read again each time."""

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


def _ahead(batches: Any, to_device: Callable[[Any], Batch], size: int = 2) -> Iterator[tuple[Batch, Any]]:
    """Batches on the devices before they are needed, each with the position in the data right after it."""
    queue: collections.deque[tuple[Batch, Any]] = collections.deque()
    for rows in batches:
        queue.append((to_device(rows), batches.get_state()))
        if len(queue) == size:
            yield queue.popleft()
    yield from queue


def _watch(
    run: Run,
    program: training.Program,
    state: training.TrainState,
    base: Any,
    step: int,
    batch: Batch,
    metrics: Any,
    console: Console,
) -> None:
    """Prints the origin of a loss or gradient that is not finite; ends the run after too many in a row."""
    in_a_row = int(metrics["skipped_in_a_row"])
    if not in_a_row:
        return
    origin = "diagnosed at the first of them"
    if in_a_row == 1:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), step - 1)
        try:
            params = lora.joined(base, state.params)
            origin = first_not_finite(program.model, run.objective, params, batch, key)
        except Exception as error:  # for want of memory, for example: the run goes on
            origin = f"where, could not be found out: {type(error).__name__}: {json_files.excerpt(error, 200)}"
    message = f"step {step}: the loss or its gradient is not finite ({origin}); the update is left out"
    console.print(message, style="red")
    if in_a_row >= run.training.patience:
        raise NotFinite(
            f"{in_a_row} updates in a row were not finite, up to step {step}: lower optimizer.peak-lr or "
            "optimizer.clip-norm, or lengthen the warmup"
        )


class _Stop:
    """Handles SIGTERM, which announces the end of a machine, SIGHUP, the end of a terminal, and Ctrl-C: the run saves
    and stops."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: dict[int, Any] = {}
        self.signal: signal.Signals | None = None
        """The signal that stops the run."""

    def __enter__(self) -> None:
        # The processes of a run on several hosts must stop at the same step: there, jax handles SIGTERM.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]
            heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heeded}

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        self.signal = self.signal or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            self._console.print("stopping after this step, to save; Ctrl-C once more stops at once")

    def now(self, step: int) -> bool:
        """Whether to save and stop; the same in all processes of a run."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None


class _Clock:
    """Tokens and seconds between two lines of the log, without compilation and evaluation."""

    def __init__(self) -> None:
        self.runs = False

    def start(self, step: int, metrics: Any) -> None:
        """The time begins at the end of the first step, which was compiled."""
        jax.block_until_ready(metrics)
        self.runs, self._step, self._time = True, step, time.monotonic()

    def lap(self, step: int, tokens: float) -> dict[str, float]:
        """Measures of the steps since the last call; none where there was no step."""
        now, steps = time.monotonic(), step - self._step
        if not steps:
            return {}
        seconds = (now - self._time) / steps
        self._step, self._time = step, now
        return {"tokens_per_second": tokens / seconds, "seconds_per_step": seconds}

    def skip(self) -> None:
        self._time = time.monotonic()


@contextlib.contextmanager
def _writers(run: Run, directory: epath.Path, step: int) -> Iterator[logs.Writer]:
    """Writes to every log, in the first process."""
    with contextlib.ExitStack() as stack:
        writers = []
        if jax.process_index() == 0:
            writers.append(stack.enter_context(logs.json_lines(directory / "metrics.jsonl", step)))
            if run.logging.tensorboard:
                writers.append(stack.enter_context(_expendable(logs.tensorboard(directory / "tensorboard", step))))
            if run.logging.wandb is not None:
                log = logs.wandb(run.logging.wandb, directory, step, runs.settings(run))
                writers.append(stack.enter_context(_expendable(log)))

        def write(step: int, values: Any) -> None:
            for writer in writers:
                writer(step, values)

        yield write


@contextlib.contextmanager
def _expendable(log: contextlib.AbstractContextManager[logs.Writer]) -> Iterator[logs.Writer]:
    """A log that the run does not need: an error of writing it is a warning, and this log ends there."""
    with contextlib.ExitStack() as stack:
        writer = None

        def write(step: int, values: Any) -> None:
            nonlocal writer
            try:
                if writer is not None:
                    writer(step, values)
            except OSError as error:
                writer = None
                warnings.warn(f"{messages.words(error)}: this log ends here", stacklevel=2)

        try:
            writer = stack.enter_context(log)
        except OSError as error:
            warnings.warn(f"{messages.words(error)}: this log is not written", stacklevel=2)
        yield write


def _draw(run: Run, directory: epath.Path, report: Report) -> None:
    """Draws the curve, and the confusion matrix of a classifier or its measures of each class. The run goes on without
    a picture that cannot be written."""
    if jax.process_index() != 0:
        return
    unit = run.objective.loss_unit
    pictures = {"curve.png": lambda path: plots.curve(runs.lines(directory), path, directory.name, unit)}
    if report.by_class is not None:
        title = f"{directory.name}, held out"
        pictures[plots.picture_of(report.by_class)] = lambda path: plots.classes(report.by_class, path, title)
    for name, draw in pictures.items():
        try:
            with logs.naming(directory / name):
                draw(directory / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                (directory / name).unlink(missing_ok=True)  # what there is of it
            warnings.warn(messages.words(error), stacklevel=2)


def _summary(resolved: Resolved) -> str:
    run, program = resolved.run, resolved.program
    sizes = (trees.flatten(x or {}).values() for x in (program.state.params, program.base))
    count, base = (sum(leaf.size for leaf in leaves) for leaves in sizes)
    device = program.mesh.devices.flat[0].device_kind
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items() if size > 1) or "one device"
    short = lambda count: f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"
    parameters = f"{short(count)} of {short(count + base)} parameters" if base else f"{short(count)} parameters"
    return (
        f"{parameters}{' are trained' if base else ''}, {resolved.tokenizer.vocab_size} tokens in the vocabulary; "
        f"{resolved.steps:,} steps of {run.training.batch_size} x {run.data.length} tokens; {device}, {mesh}"
    )
