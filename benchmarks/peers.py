"""Processes for the reference library or for ours. The threads of one sleep while another runs."""

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
"""Seconds for a process to end by itself."""
ROUNDS = 5
"""The number of measurements of a program, each of several steps."""


class Process:
    """Runs `serve(pipe, *arguments)` in a new process, `serve` being a function of a script in this folder.

    `serve` sends a message when it is ready, then an answer to each message that it receives, and returns after None.

    Args:
        python: the interpreter of an environment for the imports of script and `serve`. None: this one.
        environment: variables to add.
    """

    def __init__(
        self,
        serve: Callable[..., None],
        *arguments: Any,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.pipe, there = multiprocessing.Pipe()
        # As usually run: the settings of our own programs (`transformer_zoo.pages`) are not passed on.
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
            TimeoutError: there was no answer in this number of seconds.
            RuntimeError: the process has ended.
        """
        try:
            self.pipe.send(question)
        except OSError:
            self._lost()
        return self.answer(timeout)

    def answer(self, timeout: float | None = None) -> Any:
        """Waits for the next message of the process; raises as `ask` does."""
        try:
            if not self.pipe.poll(timeout):
                raise TimeoutError(f"no answer after {timeout:.0f} s")
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self._lost()

    def _lost(self) -> None:
        code = self.process.wait()
        fault = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise RuntimeError(f"the process {fault}")

    def end(self, patience: float = PATIENCE) -> None:
        """Asks the process to end, and kills it if it does not."""
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
    """Starts a peer, which first sends its name. Returns the name, and a function that asks the peer a question."""
    process = Process(serve, *arguments, python=python)
    return process.answer(), process.ask


def reply(pipe: Connection, worker: Any) -> None:
    """Answers each (name of a method of `worker`, *arguments) with its result, or with {"error": reason}."""
    while question := pipe.recv():
        method, *arguments = question
        try:
            pipe.send(getattr(worker, method)(*arguments))
        except Exception as error:
            if not isinstance(error, ImportError):  # its message is enough
                traceback.print_exc()
            pipe.send({"error": reason(error)})


def timed(run: Callable[[int], float], seconds: float) -> list[float]:
    """The seconds of a step, measured `ROUNDS` times, in `seconds` altogether or slightly more.

    Args:
        run: runs this number of steps, and returns their seconds.
    """
    run(2)  # a warm-up
    start = time.perf_counter()
    run(1)
    times = max(1, min(100, int(seconds / ROUNDS / (time.perf_counter() - start))))
    return [run(times) / times for _ in range(ROUNDS)]


def reason(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text or "out of memory" in text:
        return f"out of memory: {text[:160]}"
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    file, name, descriptor = sys.argv[1:]
    # The other end pickles the script's classes as those of __main__.
    sys.modules["__main__"] = module = importlib.import_module(Path(file).stem)
    pipe = Connection(int(descriptor))
    getattr(module, name)(pipe, *pipe.recv())
