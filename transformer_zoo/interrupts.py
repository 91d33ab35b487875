"""How a program ends: on Ctrl-C while there is nothing to save, and after an error; and who hears Ctrl-C."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker


def end_at_once() -> None:
    """From now on Ctrl-C ends this program at once and in silence, as it does a program in C.

    Python would raise KeyboardInterrupt at any place of an import or of a library's start, which prints a traceback or
    crashes, and it would wait for the compiler. A run that has something to save handles the signal itself. A signal
    that is ignored, as in a shell's background, stays so. Call it first of all.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Threads that this one starts within, and their processes, never get Ctrl-C. A terminal sends it to each process
    of a program, and one that is still importing would print a traceback. (Windows has no mask of signals.)"""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # before Python 3.12 its start unblocks the signal in the thread that needs it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(code: int) -> None:
    """Ends this program with an exit code; after an error, without waiting for threads: for a file that could not be
    written, as on a full disk, some of Orbax's wait for ever."""
    if code == 0:
        sys.exit()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
