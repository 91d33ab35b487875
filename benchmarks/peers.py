"""The reference library beside us: in a process of its own, so that its threads sleep while ours run."""

import atexit
import importlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def start(serve: Callable[..., None], *arguments: Any, python: str | None = None) -> tuple[str, Callable[[Any], Any]]:
    """Runs `serve(pipe, *arguments)` in a new process, `serve` being a function of a script in this folder.

    `serve` sends the peer's name when it is ready, then an answer to whatever it receives, and returns after a None.

    Args:
        python: the interpreter of an environment in which there is what the peer needs; and whatever the script imports
            at its beginning. None: the one that runs this.

    Returns:
        The name, and a function that sends a question and waits for the answer.
    """
    here, there = multiprocessing.Pipe()
    # As people run it: how we start our own programs (`transformer_zoo.pages`) is not handed on.
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [python or sys.executable, __file__, serve.__code__.co_filename, serve.__name__, str(there.fileno())],
        env=environment,
        pass_fds=[there.fileno()],
    )
    there.close()  # so that a peer that dies ends the wait for its answer
    here.send(arguments)

    @atexit.register
    def end() -> None:
        if process.poll() is None:
            here.send(None)
            process.wait()

    def ask(question: Any) -> Any:
        here.send(question)
        return here.recv()

    return here.recv(), ask


if __name__ == "__main__":
    file, name, descriptor = sys.argv[1:]
    # What the script defines, the other end's pickle calls __main__'s.
    sys.modules["__main__"] = module = importlib.import_module(Path(file).stem)
    pipe = Connection(int(descriptor))
    getattr(module, name)(pipe, *pipe.recv())
