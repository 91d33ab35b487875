"""Processes of tests that import nothing: each is forked from a server that has imported everything, without a backend.

A forked process is as one that was started anew: it has an environment, a session and an output of its own, and what it
registered for its end runs at its end. The server ends with the process that runs the tests.
"""

import atexit
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import jax

IMPORTED = [
    "transformer_zoo.commands", "transformer_zoo.models.gpt2", "grain.experimental", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "tensorboard.summary.writer.record_writer",
]  # fmt: skip


class Process:
    """Calls a function in a process and a process group of its own, as a terminal does; the process exits with what the
    function returns. The methods are those of `subprocess.Popen`.

    Args:
        environment: variables that differ from those of this process; None: not set.
    """

    def __init__(self, function: Callable[..., int | None], *arguments: Any, **environment: str | None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self._output, there = context.Pipe(duplex=False)
        variables = {name: value for name, value in (os.environ | environment).items() if value is not None}
        self._process = context.Process(
            target=_begin, args=(there, variables, function, arguments), name=function.__name__
        )
        self._process.start()
        there.close()  # so that the output ends with the processes that write it
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """What the process has printed, to either stream, when it and its own processes have ended."""
        deadline, parts = time.monotonic() + timeout, []
        while not parts or parts[-1]:
            if not self._output.poll(max(0.0, deadline - time.monotonic())):
                raise subprocess.TimeoutExpired(self._process.name, timeout, b"".join(parts))
            parts.append(os.read(self._output.fileno(), 1 << 16))
        self._process.join(max(0.0, deadline - time.monotonic()))
        self._output.close()
        atexit.unregister(self.kill)
        return b"".join(parts).decode(), None


def _begin(
    output: Connection, environment: dict[str, str], function: Callable[..., int | None], arguments: tuple[Any, ...]
) -> None:
    """Runs first in the new process."""
    gc.disable()  # as conftest.py does
    os.setsid()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    os.environ.clear()
    os.environ.update(environment)
    # jax read these when it was imported; the rest when its backend starts.
    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    seconds = float(environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    try:
        sys.exit(function(*arguments))
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def train(arguments: list[str]) -> None:
    """What train.py does."""
    from transformer_zoo import commands, interrupts, messages

    messages.show_warnings_plainly()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    interrupts.end_at_once()
    interrupts.leave(commands.train(arguments))


def run(code: str, *arguments: str) -> None:
    """What `python -c` does."""
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})
