"""Predictions for the documents of a source, written as JSON lines that another call goes on with."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer_zoo.data import sources
from transformer_zoo.prediction.predict import results
from transformer_zoo.prediction.reader import Input, Reader


def read(source: str, reader: Reader) -> list[Input]:
    """The checked inputs of a source: its documents, of which fields that the task does not use are left out; or the
    lines of a file of text.

    Args:
        source: the name of a source as in a recipe's data.source, such as jsonl:reviews.jsonl:review; or a file with
            one text a line, or one JSON object where its name ends in .jsonl.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown source, a file that is empty or not UTF-8, or an input that the task cannot use.
    """
    file = Path(source).expanduser()
    if file.is_file() and file.suffix == ".jsonl":
        source = f"jsonl:{file}:{reader.text_field}"
    elif file.is_file():
        return [reader.check(text, f"{file}, line {i}") for i, text in enumerate(lines(file), start=1)]
    elif ":" not in source:
        raise FileNotFoundError(f"there is no file {source!r}; a source has a name such as jsonl:GLOB:KEY")
    documents = sources.source(source, "all")
    return [reader.check(document, f"{source}, document {i}", others=True) for i, document in enumerate(documents)]


def write(m: Any, reader: Reader, inputs: list[Input], output: Path, done: int, *, batch_size: int) -> Iterator[None]:
    """Writes the result of each input as a line of JSON, and yields after each.

    Args:
        done: the number of results that the file has already (`results_in`), those of the first inputs: the others
            follow.

    Raises:
        ValueError: the file has more results than there are inputs.
    """
    if done > len(inputs):
        raise ValueError(f"{output} has {done} lines, and there are {len(inputs)} inputs: name another file")
    yield from (None for _ in range(done))
    with output.open("a", encoding="utf-8", buffering=1) as file:  # a line at a time
        for result in results(m, reader, inputs[done:], batch_size=batch_size):
            file.write(line(result) + "\n")
            yield


def lines(file: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: it is not UTF-8, or is empty.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise ValueError(f"{file} is not text in UTF-8: byte {error.start} is {found:#04x}") from None
    if not text:
        raise ValueError(f"{file} is empty")
    return text.removesuffix("\n").split("\n")  # `splitlines` would also split at other characters


def line(result: Any) -> str:
    """A result as JSON in one line."""
    return json.dumps(result, ensure_ascii=False)


def results_in(file: Path) -> int:
    """The number of results that a file has, a line each; 0 if there is none. What was written only in part of a last
    one is cut off.

    Raises:
        ValueError: the file has something else.
    """
    if not file.exists():
        return 0
    count = end = 0
    with file.open("rb+") as stream:
        for count, text in enumerate(stream, start=1):
            whole = text.endswith(b"\n")
            if not (_is_json(text) if whole else text.startswith((b"{", b"["))):
                raise ValueError(f"{file}, line {count} is no result of an earlier call: name another file")
            end += len(text) if whole else 0
        stream.seek(0, os.SEEK_END)
        if stream.tell() > end:
            count -= 1
            stream.truncate(end)
    return count


def check_output(output: Path, source: str | Path | None) -> None:
    """Refuses a file for results that cannot be written, or that is the one with the texts.

    Raises:
        FileNotFoundError: its folder does not exist.
        ValueError: it is a folder, or the source.
    """
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: name a file")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}")
    texts = None if source is None else Path(source).expanduser()
    if texts is not None and texts.is_file() and output.exists() and output.samefile(texts):
        raise ValueError(f"--output {output} is the file with the texts: name another one")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
