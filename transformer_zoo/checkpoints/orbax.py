"""Training state on disk, by Orbax: written in the background, atomically."""

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from transformer_zoo import folders, json_files


def silence() -> None:
    """For a program that prints the errors of `Checkpoints`: of what cannot be written, Orbax and TensorStore print
    tracebacks besides, by the dozen."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook
    sys.unraisablehook = lambda found: None if str(found.exc_value) == "Event loop is closed" else before(found)


def steps(directory: epath.Path) -> list[int]:
    """The steps of the checkpoints that are whole in a folder, which need not be there."""
    entries = directory.iterdir() if directory.is_dir() else ()
    named = [path for path in entries if path.name.isdecimal()]
    return sorted(int(path.name) for path in named if ocp.utils.is_checkpoint_finalized(path))


class Checkpoints:
    """The checkpoints of one run, each a train state and the position in the data.

    A checkpoint appears under its step's name only when all of it is on disk: a killed process or a full disk leaves
    earlier ones unchanged.

    Args:
        write: for the one process (or the processes of one run) that writes; what an earlier one left half written is
            removed. False: only to read, also while a run writes there.
        keep, keep_every: as in `config.Checkpoints`.
    """

    def __init__(
        self,
        directory: epath.Path,
        *,
        write: bool = False,
        keep: int | None = None,
        keep_every: int | None = None,
    ) -> None:
        self.kept = _Kept(keep, keep_every)
        if write:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self.kept, cleanup_tmp_directories=True, enable_async_checkpointing=True
            )
        else:
            options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
        self._directory = directory if directory.is_absolute() else directory.absolute()
        self._asked: int | None = None  # the last step that was to be saved
        with _naming(directory), contextlib.nullcontext() if write else _unlogged():
            self._manager = ocp.CheckpointManager(
                self._directory,
                item_handlers={"state": _tree_handler(), "data": ocp.JsonCheckpointHandler()},
                options=options,
            )

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is whole on disk, or None."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The steps of all checkpoints."""
        return steps(self._directory)

    def save(self, step: int, state: Any, position: Any) -> None:
        """Starts writing, unless this step is written already. The arrays are copied before this returns, so that they
        may be donated.

        Raises:
            OSError: this checkpoint, or the one before, could not be written.
        """
        if step not in (self._asked, self.latest()):
            self._asked = step
            args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(position))
            with self._writing():
                self._manager.save(step, args=args, force=True)

    def restore(self, step: int, state: Any) -> tuple[Any, Any]:
        """(train state, position in the data) of a step.

        Args:
            state: shapes with shardings; each process reads what its devices hold.

        Raises:
            ValueError: the checkpoint is of another architecture or optimizer, or damaged; the message names the last
                one that is whole.
        """
        restored = self._read(step, lambda step: ocp.args.Composite(state=_restore(state), data=ocp.args.JsonRestore()))
        return restored.state, restored.data

    def restore_parameters(self, step: int, params: Any) -> Any:
        """Only the parameters of a step: their moving average if the run keeps one.

        Args:
            params: shapes with shardings.

        Raises:
            ValueError: as `restore`.
        """

        def args(step: int) -> ocp.args.Composite:
            which = "params" if self._manager.item_metadata(step).state["ema"] is None else "ema"
            return ocp.args.Composite(state=_restore({which: params}, partial_restore=True))

        (restored,) = self._read(step, args).state.values()
        return restored

    def _read(self, step: int, args: Callable[[int], ocp.args.Composite]) -> Any:
        def read(step: int) -> Any:
            with _naming(self._directory / str(step)):
                return self._manager.restore(step, args=args(step))

        def is_whole(step: int) -> bool:
            try:
                read(step)
            except ValueError:
                return False
            return True

        try:
            return read(step)
        except ValueError as error:
            whole = next(filter(is_whole, (other for other in reversed(self.steps()) if other < step)), None)
            if whole is None:
                raise
            place = self._directory / str(step)
            raise ValueError(
                f"{place} is damaged ({_in_short(error.__cause__, 200)}), and the checkpoint of step {whole} is whole: "
                f"remove the folder {place}, and the same command goes on from step {whole}"
            ) from error

    def check(self) -> None:
        """Raises the error of writing in the background, if there was one.

        Raises:
            OSError: a checkpoint could not be written.
        """
        with self._writing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            OSError: a checkpoint could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the folder. Errors of writing are those that `wait` has raised."""
        with contextlib.suppress(Exception):
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Names the checkpoint in the errors of what Orbax writes, which are of any kind."""
        try:
            yield
        except Exception as error:
            place, free = self._directory, ""
            if folders.is_local(place):
                free = f", where {shutil.disk_usage(place).free / 1e6:,.0f} MB are free"
            raise OSError(
                f"the checkpoint of step {self._asked} could not be written to {place}{free}: {_in_short(error, 500)}"
            ) from error


class _Kept:
    """Which checkpoints remain when another one is saved: a policy of Orbax."""

    best: int | None = None
    """The step of one that is kept besides."""

    def __init__(self, latest: int | None, every: int | None) -> None:
        self._latest, self._every = latest, every

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each of the checkpoints, which have a step, is kept."""
        saved = sorted(checkpoint.step for checkpoint in checkpoints)
        latest = saved if self._latest is None else saved[-self._latest :]
        kept = {*latest, self.best, *(step for step in saved if self._every and step % self._every == 0)}
        return [checkpoint.step in kept for checkpoint in checkpoints]


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Without the warning of Orbax that a folder is only read."""
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(min(before, absl.logging.ERROR))
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)


@contextlib.contextmanager
def _naming(place: epath.Path) -> Iterator[None]:
    """Names the place in the errors of what Orbax reads there, which are of any kind."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError | EOFError):
            raise  # such as a folder that this user may not read
        raise ValueError(
            f"{place} cannot be read: it is damaged, or of another architecture or optimizer: {_in_short(error, 2000)}"
        ) from error


def _in_short(error: BaseException | None, length: int) -> str:
    return f"{type(error).__name__}: {json_files.excerpt(' '.join(str(error).split()), length)}"


_SLICE = 2**20
"""Bytes. Of what several devices hold, each writes its part if the part is at least as large."""


def _tree_handler() -> ocp.PyTreeCheckpointHandler:
    """Reads and writes trees. Unlike with Orbax's own settings, a small array is written whole by one device: to cut it
    up, a program would be compiled for each shape."""
    types = ocp.type_handlers
    array = types.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICE)
    others = {int: types.ScalarHandler(), float: types.ScalarHandler(), np.ndarray: types.NumpyHandler()}
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=types.create_type_handler_registry((jax.Array, array), *others.items())
    )


def _restore(shapes: Any, **options: Any) -> ocp.args.PyTreeRestore:
    """The arguments to restore arrays of these shapes and shardings."""
    return ocp.args.PyTreeRestore(shapes, ocp.checkpoint_utils.construct_restore_args(shapes), **options)
