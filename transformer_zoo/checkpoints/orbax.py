"""Training state on disk, by Orbax: written in the background, atomically."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from transformer_zoo import json_files


class Checkpoints:
    """The checkpoints of one run, each a train state and the position in the data.

    A checkpoint appears under its step's name only when all of it is on disk: a killed process or a full disk leaves
    earlier ones unchanged.
    """

    def __init__(self, directory: Path | epath.Path, *, keep: int | None = None, keep_every: int | None = None) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        with _naming(directory):
            self._manager = ocp.CheckpointManager(
                directory if directory.is_absolute() else directory.absolute(),
                item_handlers={"state": _tree_handler(), "data": ocp.JsonCheckpointHandler()},
                options=options,
            )

    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, position: Any) -> None:
        """Starts writing. The arrays are copied before this returns, so that they may be donated."""
        if step != self.latest():
            args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(position))
            self._manager.save(step, args=args, force=True)

    def restore(self, step: int, state: Any) -> tuple[Any, Any]:
        """(train state, position in the data) of a step.

        Args:
            state: shapes with shardings; each process reads what its devices hold.

        Raises:
            ValueError: the checkpoint is of another architecture or optimizer, or damaged.
        """
        args = ocp.args.Composite(state=_restore(state), data=ocp.args.JsonRestore())
        with _naming(self._manager.directory / str(step)):
            restored = self._manager.restore(step, args=args)
        return restored.state, restored.data

    def restore_parameters(self, step: int, params: Any) -> Any:
        """Only the parameters of a step: their moving average if the run keeps one.

        Args:
            params: shapes with shardings.

        Raises:
            ValueError: the checkpoint is of another architecture, or damaged.
        """
        with _naming(self._manager.directory / str(step)):
            which = "params" if self._manager.item_metadata(step).state["ema"] is None else "ema"
            args = ocp.args.Composite(state=_restore({which: params}, partial_restore=True))
            return self._manager.restore(step, args=args).state[which]

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            OSError: a checkpoint could not be written.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the folder."""
        self._manager.close()


@contextlib.contextmanager
def _naming(place: Path | epath.Path) -> Iterator[None]:
    """Names the place in the errors of what Orbax reads there, which are of any kind."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{place} cannot be read: it is damaged, or of another architecture or optimizer: "
            f"{type(error).__name__}: {json_files.excerpt(error, 2000)}"
        ) from error


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
