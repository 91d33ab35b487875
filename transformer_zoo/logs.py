"""Logs of a run: JSON lines, TensorBoard, Weights & Biases, and one line or bar on the console."""

import contextlib
import io
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from transformer_zoo import folders, json_files

HELD_OUT = "validation/"
"""In front of the names of an evaluation's values."""
Writer = Callable[[int, Mapping[str, float]], None]


@contextlib.contextmanager
def json_lines(path: epath.Path, step: int) -> Iterator[Writer]:
    """One object a line. Lines of steps after `step`, which a resumed run computes again, are dropped, and so is a last
    line that a kill or a full disk cut off. In a bucket each line writes the whole file.

    Raises:
        OSError: the file could not be written.
    """
    kept = [json.dumps(values) + "\n" for values in read_json_lines(path) if values["step"] <= step]
    json_files.write(path, "".join(kept))

    def write(step: int, values: Mapping[str, float]) -> None:
        # JSON has no infinity and no NaN.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with naming(path):
            file.write((json.dumps({"step": step, **finite}) + "\n").encode())

    with _appended(path) as file:
        yield write


def _appended(path: epath.Path) -> BinaryIO:
    """A file that is open for what is written at its end, without a buffer."""
    if folders.is_local(path):
        return open(path, "ab", buffering=0)
    return _Object(path)


class _Object(io.BytesIO):
    """An object in a bucket, which cannot grow: each write writes all of it."""

    def __init__(self, path: epath.Path) -> None:
        super().__init__()
        self._path = path
        super().write(path.read_bytes() if path.exists() else b"")

    def write(self, data: bytes) -> int:
        written = super().write(data)
        self._path.write_bytes(self.getvalue())
        return written


@contextlib.contextmanager
def naming(path: epath.Path) -> Iterator[None]:
    """Names the file in an error of writing, such as of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with its step, without a last line that a kill cut off.

    Raises:
        ValueError: a line is no object with a step.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    lines = lines[:-1] if lines and not lines[-1].endswith(b"}") else lines
    found = [json_files.parse(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]
    for number, values in enumerate(found, 1):
        if type(values.get("step")) is not int:
            raise ValueError(f"line {number} of {path} has no step: it was not written by a run")
    return found


def has_evaluation(path: epath.Path, step: int) -> bool:
    """Whether a file of JSON lines has the evaluation of a step."""
    lines = read_json_lines(path)
    return any(name.startswith(HELD_OUT) for values in lines if values["step"] == step for name in values)


@contextlib.contextmanager
def tensorboard(directory: epath.Path, step: int) -> Iterator[Writer]:
    """Event files that TensorBoard shows. What was written of steps after `step`, which a resumed run computes again,
    is not shown.

    Raises:
        OSError: the files could not be written.
    """
    # These parts of tensorboard need neither TensorFlow nor torch.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    def add(step: int = 0, **content: Any) -> None:
        with naming(path):
            records.write(Event(step=step, wall_time=time.time(), **content).SerializeToString())

    def write(step: int, values: Mapping[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        add(step, summary=Summary(value=scalars))

    # TensorBoard reads the files of a folder in the order of their names.
    path = directory / f"events.out.tfevents.{time.time():017.6f}.{platform.node()}.{os.getpid()}"
    directory.mkdir(exist_ok=True)
    with _appended(path) as file:
        records = RecordWriter(file)
        add(file_version="brain.Event:2")
        add(step + 1, session_log=SessionLog(status=SessionLog.START))
        yield write


@contextlib.contextmanager
def wandb(project: str, directory: epath.Path, step: int, settings: Mapping[str, Any]) -> Iterator[Writer]:
    """Weights & Biases. A run that goes on after a step goes on there too, by the id in the file wandb_id; of steps
    that it computes again, W&B keeps the first values.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        import wandb as library
    except ImportError as error:
        raise ImportError("logging.wandb needs the package: pip install 'transformer-zoo[wandb]'") from error
    folder, file = str(directory) if folders.is_local(directory) else None, directory / "wandb_id"
    known = file.read_text() if step and file.exists() else None
    run = library.init(
        project=project, name=directory.name, dir=folder, config=dict(settings), id=known, resume="allow"
    )  # fmt: skip
    json_files.write(file, run.id)
    yield lambda step, values: run.log(dict(values), step=step)


def line(values: Mapping[str, float]) -> str:
    """Measurements in one line: `loss 4.031, bits per byte 1.522, tokens 32,768`."""
    number = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in values.items())


class Bar:
    """The console: a bar with step, loss, tokens a second and time left; plain lines where it is no terminal."""

    def __init__(self, steps: int, done: int, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True), TextColumn("left"),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("compiling", total=steps, completed=done)
        self._steps = steps

    def __enter__(self) -> "Bar":
        self._progress.start()
        self._console.show_cursor(True)  # a signal may end the program at once
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Training values: the loss and, where they were measured, the speed and the time to the end."""
        text, left = f"loss {values['loss']:.3f}", ""
        if "seconds_per_step" in values:
            text = f"{text}  {values['tokens_per_second']:,.0f} tokens/s"
            minutes, seconds = divmod(round((self._steps - step) * values["seconds_per_step"]), 60)
            left = f"  {minutes}:{seconds:02d} left"
        self._progress.update(self._task, completed=step, description=text)
        if not self._console.is_terminal:
            self.print(f"step {step}/{self._steps}  {text}{left}")

    def print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)
