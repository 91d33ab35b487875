"""The reference library beside us: in a process of its own, so that its threads sleep while ours run."""

import atexit
import multiprocessing
import os
from collections.abc import Callable
from typing import Any


def start(serve: Callable[..., None], *arguments: Any) -> tuple[str, Callable[[Any], Any]]:
    """Runs `serve(pipe, *arguments)` in a new process.

    `serve` sends the peer's name when it is ready, then an answer to whatever it receives, and returns after a None.

    Returns:
        The name, and a function that sends a question and waits for the answer.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, *arguments), daemon=True)
    # As people run it: how we start our own programs (`transformer_zoo.pages`) is not handed on.
    tunables = os.environ.pop("GLIBC_TUNABLES", None)
    process.start()
    if tunables is not None:
        os.environ["GLIBC_TUNABLES"] = tunables
    there.close()  # so that a peer that dies ends the wait for its answer

    @atexit.register
    def end() -> None:
        if process.is_alive():
            here.send(None)
            process.join()

    def ask(question: Any) -> Any:
        here.send(question)
        return here.recv()

    return here.recv(), ask
