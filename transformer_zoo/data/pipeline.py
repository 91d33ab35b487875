"""Batches from documents, on grain: shuffle, make rows, share out among processes, in the background.

The order of rows is a function of the seed alone. Neither the number of training processes, nor that of workers, nor an
interruption changes a single row. This is due to the **group**: a fixed number of consecutive documents of the epoch's
permutation. A group is read and made into rows by itself, so its rows depend only on its number; any worker can make
it; and a position in the data is two integers, a group and a row of it. Packing across an endless stream, as grain's
own packing does, would tie the rows to how the stream is divided over workers, and a table of all lengths would need a
pass over the corpus before the first step. A group needs neither: the permutation is computed index by index, and only
one group is in memory. A long text file is in the permutation as its pieces, each a document; `PackedTexts` puts an end
after the last of them alone. The cost is about one partly filled row a group, under a percent, and that every training
process tokenises every group in order to find its own rows: text is a few bytes a token, and if one core cannot keep
up, there are `workers`.
"""

import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import grain
import numpy as np
from absl import flags
from grain._src.python.dataset.transformations import process_prefetch

from transformer_zoo.data.documents import PIECE, Source
from transformer_zoo.data.rows import RowMaker, Rows, pad
from transformer_zoo.data.tokenizers import is_old_fingerprint
from transformer_zoo.interrupts import without_ctrl_c

GROUP_TOKENS = 1 << 18
"""Tokens in a group, at least, so that its last, partly filled row is a negligible part of it."""


class Pipeline:
    """An iterator of batches whose position can be saved and restored exactly.

    A batch is a dictionary of arrays, those of the maker's `shapes`. Every row that is made of the documents occurs
    exactly once in an epoch. A batch may hold rows of two epochs; the last batch is filled up with rows of zeros.

    One pass over everything, as for evaluation, is `shuffle=False, epochs=1`.
    """

    def __init__(
        self,
        source: Any,
        make_rows: RowMaker,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        epochs: int | None = None,
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        group: int | None = None,
    ) -> None:
        """Checks everything, reads a few documents, and starts nothing yet.

        Args:
            source: a random-access sequence of documents: dictionaries with a text under "text", or other fields. Text
                files longer than `PIECE` bytes are cut into pieces.
            make_rows: rows of some documents, as `Objective.rows` gives it. Its random numbers follow from the seed,
                the epoch and the group. A position that was saved with a maker of another description is refused.
            batch_size: rows of a global batch, of which a process gets `batch_size / process_count`.
            shuffle: another order of documents, and of rows within a group, in each epoch.
            seed: of the order, and of the maker's random numbers.
            epochs: passes over the source; None: without end.
            workers: processes that prepare groups; 0: a thread does.
            process_index: which slice of each global batch this process gets.
            process_count: how many processes train together.
            group: documents in a group; None: enough for `GROUP_TOKENS` tokens, by the lengths of a few of them.

        Raises:
            ValueError: a setting out of its range, an empty source.
        """
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("epochs", epochs, 1),
            ("workers", workers, 0),
            ("process_count", process_count, 1),
            ("group", group, 1),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: it must be at least {least}")
        if not 0 <= process_index < process_count:
            raise ValueError(
                f"process_index={process_index}: it must be from 0 to process_count - 1 = {process_count - 1}"
            )
        if batch_size % process_count:
            raise ValueError(f"batch_size={batch_size} rows cannot be shared out evenly to {process_count} processes")
        if not len(source):
            raise ValueError("the source has no documents")
        source = source.cut(PIECE) if isinstance(source, Source) else source
        group = group or _group_size(source, make_rows)
        self._settings = {
            **make_rows.describe(),
            "shuffle": shuffle,
            "seed": seed,
            "documents": len(source),
            "group": group,
        }
        if (content := getattr(source, "fingerprint", None)) is not None:
            self._settings["content"] = content
        self._batch_size = batch_size
        self._rows_here = batch_size // process_count
        self._first_here = process_index * self._rows_here
        self._workers = workers
        self.row_per_document = make_rows.row_per_document
        self._groups_per_epoch = math.ceil(len(source) / group)

        documents = grain.MapDataset.source(source)
        if shuffle:
            make_rows = partial(_shuffled, make_rows)
            # Grain adds the epoch to the seed: hash it, or the second epoch of seed 0 would be the first of seed 1.
            documents = documents.shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
        self._groups = documents.batch(group, batch_fn=list).random_map(make_rows, seed=seed).repeat(epochs)
        self._iterator: Any = None
        self._go_to(0, 0)

    def __iter__(self) -> Iterator[Rows]:
        return self

    def __next__(self) -> Rows:
        """This process's rows of the next global batch.

        Raises:
            StopIteration: the epochs are over.
            ValueError: no document of a whole epoch gives a row.
        """
        parts, taken = [], 0
        while taken < self._batch_size and self._fill():
            count = min(self._batch_size - taken, self._count - self._row)
            first = max(self._first_here - taken, 0)
            last = max(min(self._first_here + self._rows_here - taken, count), first)
            parts.append({name: values[self._row + first : self._row + last] for name, values in self._rows.items()})
            taken += count
            self._row += count
        if not taken:
            raise StopIteration
        return pad({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, self._rows_here)

    @property
    def epoch(self) -> int:
        """Passes over the source that are complete."""
        return self._group // self._groups_per_epoch

    @property
    def rows(self) -> dict[str, Any]:
        """What the rows and their order follow from, besides the documents, as JSON."""
        return dict(self._settings)

    def count_rows(self, passes: int) -> Iterator[tuple[int, float, int]]:
        """Counts the rows of the first passes over the source. The position does not change.

        Where a document does not stand for a row, the rows are made to count them, group by group.

        Yields:
            The number of a pass, from 0; the share of it that has been counted; the rows of it so far.
        """
        if self.row_per_document:
            yield from ((number, 1.0, self._settings["documents"]) for number in range(passes))
            return
        groups = self._start(0)
        try:
            for number in range(passes):
                rows = 0
                for group in range(1, self._groups_per_epoch + 1):
                    rows += len(next(iter(next(groups).values())))
                    yield number, group / self._groups_per_epoch, rows
        finally:
            _close(groups)

    def get_state(self) -> dict[str, Any]:
        """The position, the same on every process, as a dictionary for JSON.

        It can be restored with another number of workers or processes, another batch size or more epochs.
        """
        return {"group": self._group, "row": self._row, "settings": dict(self._settings)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave.

        Raises:
            ValueError: the state of a pipeline that makes other rows; the message names the settings that differ. Of a
                tokenizer that an older version described, a warning says that it is not compared.
        """
        saved = state["settings"]
        differ = [name for name in self._settings | saved if saved.get(name) != self._settings.get(name)]
        if differ == ["tokenizer"] and is_old_fingerprint(saved["tokenizer"]):
            differ = []
            warnings.warn(
                "the data's saved position is by an older version, whose fingerprint of a tokenizer cannot be compared "
                "with today's: the run's tokenizer is taken to be the same one",
                stacklevel=2,
            )
        if differ:
            lines = [f"  {name}: {saved.get(name)} then, {self._settings.get(name)} now" for name in differ]
            if {"content", "documents"} & set(differ):
                lines.append(
                    "the documents of the split are not those that the run began with (older versions also divided "
                    "local files in another way): put them back, or begin another run, with init_from to go on with "
                    "these weights"
                )
            raise ValueError("the data's saved position belongs to other rows:\n" + "\n".join(lines))
        self._stop()
        self._go_to(state["group"], state["row"])

    def close(self) -> None:
        """Ends the workers. The position stays, and the next batch, if one is asked for, starts them again."""
        self._stop()
        self._go_to(self._group, self._row)

    def _stop(self) -> None:
        if self._iterator is not None:
            _close(self._iterator)
            self._iterator = None

    def _go_to(self, group: int, row: int) -> None:
        self._group, self._row = group, row
        self._rows: Rows | None = None

    @property
    def _count(self) -> int:
        """Rows of the current group."""
        return len(next(iter(self._rows.values())))

    def _fill(self) -> bool:
        """Goes on to the next group with rows left; False if the epochs are over."""
        without_rows = 0
        while self._rows is None or self._row == self._count:
            if self._rows is not None:
                self._go_to(self._group + 1, 0)
            if self._iterator is None:
                self._iterator = self._start(self._group)
            try:
                self._rows = next(self._iterator)
            except StopIteration:
                return False
            if self._row > self._count:
                raise ValueError(
                    f"the data's saved position is row {self._row} of group {self._group}, which has {self._count} "
                    "rows: the documents are not those of the run that saved it"
                )
            without_rows = 0 if self._count else without_rows + 1
            if without_rows == self._groups_per_epoch:
                raise ValueError("no document of the source has any text to make a row of")
        return True

    def _start(self, group: int) -> Iterator[Rows]:
        """The groups from one on, prepared in the background."""
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        groups = self._groups[group:].to_iter_dataset(ahead)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads flags, which only programs that absl itself runs have parsed
            # By pipe and not by shared memory, which a killed run would leave behind for good.
            by_pipe = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
            groups = grain.experimental.WithOptionsIterDataset(groups, by_pipe)
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
            iterator = iter(groups.mp_prefetch(options, worker_init_fn=_begin_worker))
            with without_ctrl_c():
                iterator._prefetch_ds_iter.start_prefetch()  # threads of grain's, which start the workers
            return iterator
        return iter(groups)


def _close(groups: Any) -> None:
    """Ends the workers that prepare groups."""
    # A worker cannot end while its rows wait in the pipe, and grain waits 25 seconds before it kills one. Our workers
    # have nothing to finish.
    patience = process_prefetch._PROCESS_KILL_TIMEOUT_S
    process_prefetch._PROCESS_KILL_TIMEOUT_S = 0
    try:
        groups.close()
    finally:
        process_prefetch._PROCESS_KILL_TIMEOUT_S = patience


def _shuffled(make_rows: RowMaker, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
    """The rows of a group in another order."""
    rows = make_rows(documents, rng)
    order = rng.permutation(len(next(iter(rows.values()))))
    return {name: values[order] for name, values in rows.items()}


def _group_size(source: Any, make_rows: RowMaker) -> int:
    """Documents in a group, by the mean length of a few evenly spaced ones; the same for a source wherever it is."""
    sample = np.linspace(0, len(source) - 1, min(len(source), 32)).astype(int)
    characters = max(1.0, float(np.mean([make_rows.characters(source[i]) for i in sample.tolist()])))
    characters_per_token = 4
    wanted = characters_per_token * max(GROUP_TOKENS, 64 * make_rows.length) / characters
    return min(len(source), max(16, math.ceil(wanted)))


def _begin_worker(index: int, count: int) -> None:
    """Runs first in each worker: one thread, since the workers share the cores; and a worker ends with the run, and not
    by Ctrl-C, which the terminal also sends to workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
