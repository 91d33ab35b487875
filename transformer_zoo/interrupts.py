"""Ctrl-C while there is nothing to save."""

import signal


def end_at_once() -> None:
    """From now on Ctrl-C ends this program at once and in silence, as it does a program in C.

    Python would raise KeyboardInterrupt at any place of an import or of a library's start, which prints a traceback or
    crashes, and it would wait for the compiler. A run that has something to save handles the signal itself. A signal
    that is ignored, as in a shell's background, stays so. Call it first of all.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
