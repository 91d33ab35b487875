"""Memory for large arrays on a CPU: every training step allocates gigabytes, which has to be cheap."""

import ctypes
import os
import sys

_VARIABLE, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of mallopt(3)


def use_huge_pages() -> None:
    """Starts this program again, once, with glibc's allocator asking Linux for huge pages and giving none back.

    XLA allocates the temporaries of every step anew, gigabytes in pages of 4 KiB, and the page faults take a third of a
    step on a CPU. The allocator reads its settings only when a process starts, so the program is executed again, under
    the same process id. Nothing happens if the variable is set already, or on another system. Call it first of all.
    """
    if not sys.platform.startswith("linux"):
        return
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = _HUGE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
