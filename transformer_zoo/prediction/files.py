"""Predictions for the documents of a source, written as JSON lines or as a table, which another call goes on with."""

import csv
import dataclasses
import io
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from transformer_zoo import folders
from transformer_zoo.config import Run
from transformer_zoo.data import documents as data
from transformer_zoo.data import sources
from transformer_zoo.data.documents import Document, Source, field_of, place_of
from transformer_zoo.prediction import record as records
from transformer_zoo.prediction.predict import results
from transformer_zoo.prediction.reader import Input, Reader
from transformer_zoo.prediction.record import Record

BEGINNINGS = (b"{", b"[", b"n")  # of a result: an object, a list, or null
TABLES = (".jsonl", ".csv", ".tsv", ".parquet")
"""Ends of the names of files that are sources by themselves. Others are texts, one a line."""


def read(source: str, reader: Reader, run: Run | None = None, *, others: bool = False) -> list[Input]:
    """The checked inputs of a source: its documents, or the lines of a file of text. A warning tells of blank texts.

    Args:
        source: the name of a source as in a recipe's data.source, such as csv:reviews.csv:review, all of which is
            read; or a file: JSON lines, comma- or tab-separated values or Parquet by the end of its name, or else one
            text a line.
        run: the run that trained the model: the fields that it read are read, if the documents have them.
        others: keep the fields that the task does not use.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown source, a file that is empty or not UTF-8, or an input that the task cannot use.
    """
    file = Path(source).expanduser()
    if file.is_file() and file.suffix not in TABLES:
        documents: Any = lines(file)
        places: list[Any] = [f"{file}, line {number}" for number in range(1, len(documents) + 1)]
    elif file.is_file() or ":" in source:
        documents = sources.source(f"{file.suffix[1:]}:{file}" if file.is_file() else source, "all")
        places = [_Place(documents, i) for i in range(len(documents))]
    else:
        raise FileNotFoundError(f"there is no file {source!r}; a source has a name such as csv:GLOB:KEY")
    key = None if isinstance(documents, list) else sources.key_of(source)
    if run is not None and not isinstance(documents, list):
        documents = _as_trained(documents, key, run, reader)
    elif key is not None and key not in (*reader.required, *reader.optional):  # it is under `text` too
        documents = ({name: value for name, value in document.items() if name != key} for document in documents)
    return check(documents, places, reader, source, others=others)


def check(
    documents: Iterable[Any], places: Sequence[Any], reader: Reader, source: str, *, others: bool = False
) -> list[Input]:
    """The checked inputs of documents, as `read` returns them.

    Args:
        places: what errors call them, as strings.
        source: what errors call all of them.
        others: as of `read`.

    Raises:
        ValueError: an input that the task cannot use, or blank texts only.
    """

    def checked(document: Any, place: Any) -> Input:
        if reader.takes_text and not isinstance(document, str):
            try:
                field_of(document, reader.text_field)  # its error tells how a field of another name is chosen
            except ValueError as error:
                second = f". A second text must have the name {reader.pair[1]}" if reader.pair else ""
                raise ValueError(f"{error}{second}") from None
        one = Input(place, {}) if reader.is_blank(document) else reader.check(document, place, others=True)
        if not others or isinstance(document, str):
            return one
        known = (*reader.required, *reader.optional)
        return dataclasses.replace(one, others={name: x for name, x in document.items() if name not in known})

    inputs = [checked(*one) for one in zip(documents, places, strict=True)]
    if blank := [one.name for one in inputs if one.is_blank]:
        count, example = len(blank), blank[0]
        if count == len(inputs):
            raise ValueError(f"{source} has blank texts only, such as {example}")
        warnings.warn(
            f"{count} of {len(inputs)} texts are blank, such as {example}: their result is null", stacklevel=3
        )
    return inputs


def _as_trained(documents: Source, key: str | None, run: Run, reader: Reader) -> Iterable[Document]:
    """Documents with the texts that a run read under the names of the task, and not under their own, if they have them;
    a field that the name of the source calls the text comes first.

    Raises:
        ValueError: they have neither these fields nor those of the task.
    """
    own, known = run.objective.input_fields, sources.key_of(run.data.source)
    texts = {*own, *reader.optional, key, known}

    def trained(document: Document) -> Document:
        fields = {}
        if key is not None:
            fields = {own[0]: document["text"]}
        elif known is not None and "text" in own:
            fields = {"text": field_of(document, known)}
        found = run.objective.input_of(data.Record(document | fields, lambda: place_of(document)))
        return {name: value for name, value in document.items() if name not in texts} | found

    try:
        trained(documents[0])
    except ValueError as error:
        needed = tuple(run.objective.inputs) if reader.pair else reader.required
        if all(name in documents[0] for name in needed):
            return documents
        asked = " and ".join(needed)
        raise ValueError(f"{error}. The run was trained on that field; without it, predict needs {asked}") from None
    return map(trained, documents)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a document is from. It is looked up only for an error: to count the lines of a file takes time."""

    documents: Source
    index: int

    def __str__(self) -> str:
        return self.documents.place(self.index)


def results_of(m: Any, reader: Reader, inputs: Sequence[Input], *, batch_size: int) -> Iterator[Any]:
    """The results of checked inputs, in their order; that of a blank one is None."""
    found = results(m, reader, [one for one in inputs if not one.is_blank], batch_size=batch_size)
    return (None if one.is_blank else next(found) for one in inputs)


def columns_of(m: Any, reader: Reader, inputs: Sequence[Input], output: Path) -> tuple[str, ...]:
    """The columns of a table of results: those of the texts, the fields of a result, and other fields of the documents.
    Empty: the file is to hold JSON lines, since its name does not end in .csv.

    Raises:
        ValueError: the results of the task are lists.
    """
    if output.suffix != ".csv":
        return ()
    if not (columns := reader.columns(m)):
        raise ValueError(
            f"--output {output}: a result for {m.model.task} is a list, which fits no row of a table: name a file that "
            "ends in .jsonl"
        )
    given = [name for name in reader.optional if any(name in one.fields for one in inputs)]
    others = [name for one in inputs for name in _others(one, reader, m)]
    return tuple(dict.fromkeys([*reader.required, *given, *columns, *others]))


def begin(output: Path, record: Record, inputs: Sequence[Input], columns: Sequence[str] = ()) -> int:
    """Prepares a file for results: writes its record, and cuts off what was written only in part of a last one.

    Args:
        columns: of a table (`columns_of`).

    Returns:
        The number of results that it has already, those of the first inputs.

    Raises:
        ValueError: the file has something else, more results than there are inputs, or results that were made with
            something else. It stays as it is.
    """
    done, end = _results_in(output, columns)
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
    m: Any, reader: Reader, inputs: Sequence[Input], output: Path, done: int, *, batch_size: int,
    columns: Sequence[str] = (),
) -> Iterator[None]:  # fmt: skip
    """Writes the result of each input, as a line of JSON or as the row of a table, and yields after each.

    Args:
        done: the number of results that the file has already (`begin`): the others follow.
        columns: of a table (`columns_of`).
    """
    yield from (None for _ in range(done))
    with output.open("a", encoding="utf-8", newline="", buffering=1) as file:  # a line at a time
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        if columns and not file.tell():
            file.write(_header(columns))
        for one, result in zip(inputs[done:], results_of(m, reader, inputs[done:], batch_size=batch_size)):
            if columns:
                table.writerow({**one.fields, **_flat(result or {}), **_others(one, reader, m)})
            else:
                file.write(line(result) + "\n")
            yield


def _others(one: Input, reader: Reader, m: Any) -> dict[str, Any]:
    """The other fields of an input as columns; `source.label` where a column of texts or results is called `label`."""
    first = (*reader.required, *reader.optional, *reader.columns(m))
    return {f"source.{name}" if name in first else name: value for name, value in _flat(one.others).items()}


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the members of its objects as fields of their own, and lists as JSON."""
    flat: dict[str, Any] = {}
    for name, value in result.items():
        members = {f"{name}.{key}": member for key, member in value.items()} if isinstance(value, dict) else {}
        flat |= members or {name: line(value) if isinstance(value, list) else value}
    return flat


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
    return json.dumps(result, ensure_ascii=False, default=str)


def _results_in(file: Path, columns: Sequence[str]) -> tuple[int, int]:
    """The number of results that a file has, and their bytes; 0 if there is none. What was written only in part of a
    last one does not count.

    Raises:
        ValueError: the file has something else.
    """
    count = end = 0
    if not file.exists():
        return count, end
    with file.open("rb") as stream:
        for number, text in enumerate(_rows(stream) if columns else stream, start=1):
            whole = text.endswith(b"\n")
            if not (_is_row(text, whole, number == 1, columns) if columns else _is_result(text, whole)):
                place = f"{'row' if columns else 'line'} {number}"
                raise ValueError(f"{file}, {place} is no result of an earlier call: name another file")
            if whole:
                count, end = number, end + len(text)
    return max(0, count - 1) if columns else count, end


def _rows(stream: BinaryIO) -> Iterator[bytes]:
    """The rows of a table. A line within quotation marks does not end one; of a last one, a part without its end."""
    row = b""
    for text in stream:
        row += text
        if row.count(b'"') % 2 == 0:
            yield row
            row = b""
    if row:
        yield row.removesuffix(b"\n")


def _header(columns: Sequence[str]) -> str:
    """The first row of a table."""
    csv.writer(text := io.StringIO(), lineterminator="\n").writerow(columns)
    return text.getvalue()


def _is_row(text: bytes, whole: bool, is_header: bool, columns: Sequence[str]) -> bool:
    """Whether this is a row of a table with these columns, or may be part of one."""
    if is_header:
        header = _header(columns).encode()
        return text == header if whole else header.startswith(text)
    return not whole or len(next(csv.reader([text.decode(errors="replace")]))) == len(columns)


def _is_result(text: bytes, whole: bool) -> bool:
    """Whether this is a line of JSON, or may be the beginning of one."""
    if not whole:
        return text.startswith(BEGINNINGS)
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def check_output(output: Path, source: str | Path | None) -> None:
    """Refuses a file for results that cannot be written, or that is the one with the texts.

    Raises:
        OSError: its folder does not exist, or may not be written.
        ValueError: it is a folder, or the source.
    """
    folders.check_file(output, "--output")
    texts = None if source is None else Path(source).expanduser()
    if texts is not None and texts.is_file() and output.exists() and output.samefile(texts):
        raise ValueError(f"--output {output} is the file with the texts: name another one")
