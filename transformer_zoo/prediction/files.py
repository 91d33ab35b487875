"""Predictions for the documents of a source, written as JSON lines that another call goes on with."""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformer_zoo.data import sources
from transformer_zoo.prediction import record as records
from transformer_zoo.prediction.predict import results
from transformer_zoo.prediction.reader import Input, Reader
from transformer_zoo.prediction.record import Record

TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
"""Ends of the names of files that are sources by themselves."""
BEGINNINGS = (b"{", b"[", b"n")  # of a result: an object, a list, or null


def read(source: str, reader: Reader) -> list[Input | None]:
    """The checked inputs of a source: its documents, of which fields that the task does not use are left out; or the
    lines of a file of text. None stands for a blank text, of which a warning tells.

    Args:
        source: the name of a source as in a recipe's data.source, such as csv:reviews.csv:review, all of which is
            read; or a file: JSON lines, comma- or tab-separated values or Parquet by the end of its name, or else one
            text a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown source, a file that is empty or not UTF-8, or an input that the task cannot use.
    """
    file = Path(source).expanduser()
    if file.is_file() and file.suffix not in TABLES:
        documents, place, first = lines(file), f"{file}, line", 1
    elif file.is_file() or ":" in source:
        source = f"{file.suffix[1:]}:{file}" if file.is_file() else source
        documents, place, first = sources.source(source, "all"), f"{source}, document", 0
    else:
        raise FileNotFoundError(f"there is no file {source!r}; a source has a name such as jsonl:GLOB:KEY")
    inputs = [
        None if reader.is_blank(document) else reader.check(document, f"{place} {i}", others=True)
        for i, document in enumerate(documents, start=first)
    ]
    if count := inputs.count(None):
        example = f"{place} {inputs.index(None) + first}"
        if count == len(inputs):
            raise ValueError(f"{source} has blank texts only, such as {example}")
        warnings.warn(
            f"{count} of {len(inputs)} texts are blank, such as {example}: their result is null", stacklevel=2
        )
    return inputs


def results_of(m: Any, reader: Reader, inputs: Sequence[Input | None], *, batch_size: int) -> Iterator[Any]:
    """The results of checked inputs, in their order; that of a blank one is None."""
    found = results(m, reader, [one for one in inputs if one is not None], batch_size=batch_size)
    return (None if one is None else next(found) for one in inputs)


def begin(output: Path, record: Record, inputs: Sequence[Input | None]) -> int:
    """Prepares a file for results: writes its record, and cuts off what was written only in part of a last line.

    Returns:
        The number of results that it has already, those of the first inputs.

    Raises:
        ValueError: the file has something else, more results than there are inputs, or results that were made with
            something else. It stays as it is.
    """
    done, end = _results_in(output)
    if done > len(inputs):
        raise ValueError(f"{output} has {done} lines, and there are {len(inputs)} inputs: name another file")
    if output.exists() and output.stat().st_size:
        before = records.read(output)
        if done:
            records.check_same(output, before, record, inputs)
        os.truncate(output, end)
    records.write(output, record)
    return done


def write(
    m: Any, reader: Reader, inputs: Sequence[Input | None], output: Path, done: int, *, batch_size: int
) -> Iterator[None]:
    """Writes the result of each input as a line of JSON, and yields after each.

    Args:
        done: the number of results that the file has already (`begin`): the others follow.
    """
    yield from (None for _ in range(done))
    with output.open("a", encoding="utf-8", buffering=1) as file:  # a line at a time
        for result in results_of(m, reader, inputs[done:], batch_size=batch_size):
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


def _results_in(file: Path) -> tuple[int, int]:
    """The number of results that a file has, a line each, and their bytes; 0 if there is none. What was written only in
    part of a last one does not count.

    Raises:
        ValueError: the file has something else.
    """
    count = end = 0
    if not file.exists():
        return count, end
    with file.open("rb") as stream:
        for number, text in enumerate(stream, start=1):
            whole = text.endswith(b"\n")
            if not (_is_json(text) if whole else text.startswith(BEGINNINGS)):
                raise ValueError(f"{file}, line {number} is no result of an earlier call: name another file")
            if whole:
                count, end = number, end + len(text)
    return count, end


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
