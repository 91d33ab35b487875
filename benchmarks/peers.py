"""The reference library beside us: in a process of its own, so that its threads sleep while ours run."""

import multiprocessing
from collections.abc import Callable
from typing import Any


def start(serve: Callable[..., None], *arguments: Any) -> tuple[str, Callable[[Any], Any]]:
    """Runs `serve(pipe, *arguments)` in a new process.

    `serve` sends the peer's name when it is ready, and then an answer to whatever it receives.

    Returns:
        The name, and a function that sends a question and waits for the answer.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, *arguments), daemon=True).start()
    there.close()  # so that a peer that dies ends the wait for its answer

    def ask(question: Any) -> Any:
        here.send(question)
        return here.recv()

    return here.recv(), ask
