"""Another process beside us, with the reference library or with ours: its threads sleep while those of others run."""

import atexit
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PATIENCE = 10
"""Seconds that a process is given to end by itself."""
ROUNDS = 5
"""How often a program is timed, so many steps each time."""


class Process:
    """Runs `serve(pipe, *arguments)` in a new process, `serve` being a function of a script in this folder.

    `serve` sends something when it is ready, then an answer to whatever it receives, and returns after a None.

    Args:
        python: the interpreter of an environment in which there is what `serve` needs; and whatever the script imports
            at its beginning. None: the one that runs this.
        environment: variables of its own.
    """

    def __init__(
        self,
        serve: Callable[..., None],
        *arguments: Any,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.pipe, there = multiprocessing.Pipe()
        # As people run it: how we start our own programs (`transformer_zoo.pages`) is not handed on.
        variables = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        self.process = subprocess.Popen(
            [python or sys.executable, __file__, serve.__code__.co_filename, serve.__name__, str(there.fileno())],
            env=variables | dict(environment or {}),
            pass_fds=[there.fileno()],
        )
        there.close()  # so that a process that dies ends the wait for its answer
        self.pipe.send(arguments)
        atexit.register(self.end)

    def ask(self, question: Any, timeout: float | None = None) -> Any:
        """Sends a question and waits for the answer.

        Raises:
            TimeoutError: there was none after so many seconds.
            RuntimeError: the process has ended.
        """
        try:
            self.pipe.send(question)
        except OSError:
            self._lost()
        return self.answer(timeout)

    def answer(self, timeout: float | None = None) -> Any:
        """Waits for what the process sends next; raises as `ask` does."""
        try:
            if not self.pipe.poll(timeout):
                raise TimeoutError(f"no answer after {timeout:.0f} s")
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self._lost()

    def _lost(self) -> None:
        code = self.process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise RuntimeError(f"the process {how}")

    def end(self, patience: float = PATIENCE) -> None:
        """Asks the process to end, and ends it where it does not."""
        atexit.unregister(self.end)
        if self.process.poll() is None:
            try:
                self.pipe.send(None)
                self.process.wait(patience)
            except (OSError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()
        self.pipe.close()


def start(serve: Callable[..., None], *arguments: Any, python: str | None = None) -> tuple[str, Callable[[Any], Any]]:
    """A peer in a process of its own, which first sends its name: that, and a function that asks it a question."""
    process = Process(serve, *arguments, python=python)
    return process.answer(), process.ask


def reply(pipe: Connection, worker: Any) -> None:
    """Answers each (name of a method, *arguments) with what that method of `worker` returns, or with {"error": why}."""
    while question := pipe.recv():
        method, *arguments = question
        try:
            pipe.send(getattr(worker, method)(*arguments))
        except Exception as error:
            if not isinstance(error, ImportError):  # which says it all
                traceback.print_exc()
            pipe.send({"error": reason(error)})


def timed(run: Callable[[int], float], seconds: float) -> list[float]:
    """Seconds of a step, as many times as there are rounds, within so many seconds or little more.

    Args:
        run: runs so many steps, and says how many seconds they took.
    """
    run(2)  # a warm-up
    start = time.perf_counter()
    run(1)
    times = max(1, min(100, int(seconds / ROUNDS / (time.perf_counter() - start))))
    return [run(times) / times for _ in range(ROUNDS)]


def reason(error: BaseException) -> str:
    """What went wrong, in a line."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text:
        return f"out of memory: {text[:160]}"
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    file, name, descriptor = sys.argv[1:]
    # What the script defines, the other end's pickle calls __main__'s.
    sys.modules["__main__"] = module = importlib.import_module(Path(file).stem)
    pipe = Connection(int(descriptor))
    getattr(module, name)(pipe, *pipe.recv())
