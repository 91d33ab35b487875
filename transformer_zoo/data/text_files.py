"""Files of text as sources: texts, JSON lines, comma- and tab-separated values."""

import abc
import array
import codecs
import collections
import contextlib
import copy
import csv
import json
from collections.abc import Iterator, Sequence

import numpy as np

from transformer_zoo.data.documents import Document, border
from transformer_zoo.data.files import File, FileSource, as_numbers, count, digest_of, part_of, text_column

csv.field_size_limit(2**31 - 1)  # Python's own limit, 131,072 characters, is shorter than many texts


class TextSource(FileSource):
    """Text files, each a document, or pieces of them: `text` and `path`. Empty files are left out.

    Raises:
        ValueError: a file is not UTF-8. All are read once, so that the error comes now and not at step 40,000.
    """

    def __init__(self, files: list[File], key: None = None) -> None:
        super().__init__(files)
        sizes = [_check_utf8(file) for file in files]
        spans = [(i, file.start, size, 0) for i, (file, size) in enumerate(zip(files, sizes)) if size > file.start]
        self._spans = np.array(spans, np.int64).reshape(-1, 4)  # file, first byte, end, another piece follows

    def __len__(self) -> int:
        return len(self._spans)

    def fields(self, index: int) -> Document:
        which, start, end, continued = self._spans[index].tolist()
        file = self._files[which]
        with file.open() as stream:
            stream.seek(start)
            text = file.text(stream.read(end - start), start)
        return {"text": text, "path": file.name} | ({"continued": True} if continued else {})

    def place(self, index: int) -> str:
        """The file, and the line if it is a piece of it."""
        file, start = self._files[self._spans[index, 0]], self._spans[index, 1]
        return str(file.path) if start == file.start else f"{file.path}, line {file.line(start)}"

    def only(self, indices: np.ndarray) -> "TextSource":
        """Some of the documents; consecutive pieces are one piece again."""
        spans = self._spans[indices]
        if not len(spans):
            return self._with(spans)
        joined = (spans[1:, 0] == spans[:-1, 0]) & (spans[1:, 1] == spans[:-1, 2])
        firsts = np.flatnonzero(np.append(True, ~joined))
        lasts = np.append(firsts[1:], len(spans)) - 1
        return self._with(np.concatenate([spans[firsts, :2], spans[lasts, 2:]], axis=1))

    def cut(self, size: int) -> "TextSource":
        """Cut where a line ends or else at white space, in its last few thousand bytes. A piece is cut within a word
        only if it has no white space there."""
        spans = []
        for which, start, end, continued in self._spans.tolist():
            with self._files[which].open() if end - start > size else contextlib.nullcontext() as stream:
                while end - start > size:
                    window = min(size // 2, 1 << 12)
                    stream.seek(start + size - window)
                    at = start + size - window + border(stream.read(window))
                    spans.append((which, start, at, 1))
                    start = at
            spans.append((which, start, end, continued))
        return self._with(np.array(spans, np.int64).reshape(-1, 4))

    def divided(self, share: float) -> "TextSource":
        """Twenty pieces, on average, of at least a kibibyte are in the share."""
        return self.cut(max(1 << 10, int((self._spans[:, 2] - self._spans[:, 1]).sum() * share / 20)))

    def _with(self, spans: np.ndarray) -> "TextSource":
        other = copy.copy(self)
        other._spans = spans
        return other

    def hashes(self, by: Sequence[str] = ()) -> np.ndarray:
        found = []
        for which, start, end, _ in self._spans.tolist():
            digest = digest_of()
            with self._files[which].open() as stream:
                stream.seek(start)
                while data := stream.read(min(1 << 20, end - stream.tell())):
                    digest.update(data)
            found.append(2 * digest.digest())
        return as_numbers(found)


class LinesSource(FileSource):
    """Documents that are consecutive bytes of files. 16 bytes are kept for each.

    Every file is read once to find them and to check that it is UTF-8.
    """

    def __init__(self, files: list[File], key: str | None = None) -> None:
        super().__init__(files, key)
        self._spans = [self.spans(file) for file in files]  # int64[documents, 2] each: first byte, bytes
        self._ends = np.cumsum([len(spans) for spans in self._spans])
        self.check()

    @abc.abstractmethod
    def spans(self, file: File) -> np.ndarray:
        """int64[documents, 2]: first byte, and number of bytes, of each document of a file."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[File, int, int]:
        """The file that holds a document, its first byte there, and its bytes."""
        which, row = part_of(self._ends, index)
        return self._files[which], *map(int, self._spans[which][row])

    @abc.abstractmethod
    def parsed(self, file: File, start: int, data: bytes) -> Document:
        """The fields of the document that these bytes of a file are."""

    def fields(self, index: int) -> Document:
        file, start, size = self.locate(index)
        return self.parsed(file, start, file.part(start, size))

    def place(self, index: int) -> str:
        """File and line."""
        file, start, _ = self.locate(index)
        return f"{file.path}, line {file.line(start)}"

    def content(self, file: File, data: bytes) -> bytes:
        """What makes a document of these bytes equal to another one."""
        return data.strip()

    def hashes(self, by: Sequence[str] = ()) -> np.ndarray:
        found = bytearray()
        for file, spans in zip(self._files, self._spans):
            with file.open() as stream:
                for some in np.array_split(spans, len(spans) // 4096 + 1):
                    for start, size in some.tolist():
                        stream.seek(start)
                        data = stream.read(size)
                        content = digest_of(self.content(file, data)).digest()
                        found += content + (by and self.digest_by(by, self.parsed(file, start, data)) or content)
        return as_numbers([found])


class JsonLinesSource(LinesSource):
    """JSON lines: the fields of each object. Blank lines are left out.

    Raises:
        ValueError: besides, not JSON, or not an object.
    """

    def spans(self, file: File) -> np.ndarray:
        return line_spans(file)

    def parsed(self, file: File, start: int, data: bytes) -> Document:
        hint = "; if the file is a list of objects, write one object a line instead (jq -c '.[]' does)"
        hint = hint if data.startswith(b"[") else ""
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:  # nested too deeply
            raise ValueError(f"{file.path}, line {file.line(start)}: not JSON: {error}{hint}") from None
        if not isinstance(fields, dict):
            kind = type(fields).__name__
            raise ValueError(f"{file.path}, line {file.line(start)}: a {kind} where an object is expected{hint}")
        return fields


class TableSource(LinesSource):
    """Comma-separated values. The first line is the header, the names of the columns; the fields of a row are strings,
    exactly as they are written, also where they are numbers: whoever reads a label or a number converts it.

    A field in quotation marks may have separators and line ends in it, and a quotation mark where there are two.
    A header with semicolons and without commas tells that semicolons separate, as spreadsheets in many countries write.
    Blank rows are left out, and so are columns without a name, such as a table's row numbers.

    Raises:
        ValueError: besides, no header, columns of one name, a row with more or fewer fields than the header, quotation
            marks that do not match, files with different columns.
    """

    separators = (",", ";")

    def __init__(self, files: list[File], key: str | None = None) -> None:
        self._separators: dict[File, str] = {}
        self._headers: dict[File, list[str]] = {}
        super().__init__(files, key)

    def check(self) -> None:
        """Besides: the columns of all files are the same, and one of them has the name of the key."""
        first, *others = self._files
        named = lambda file: [name for name in self._headers[file] if name]
        columns = named(first)
        for file in others:
            if sorted(named(file)) != sorted(columns):
                raise ValueError(
                    f"{file.path} has the columns {', '.join(named(file))}, and {first.path} has "
                    f"{', '.join(columns)}: the files of a source must have the same ones"
                )
        self._key = text_column(first.path, columns, columns, self._key)
        super().check()

    def spans(self, file: File) -> np.ndarray:
        header, found = None, array.array("q")
        self._separators[file] = self._separator(file)
        for start, end, fields in self.rows(file):
            place = f"{file.path}, line {{}}"
            if not any(field.strip() for field in fields):
                pass
            elif header is None:
                header = [field.strip() for field in fields]
                self._headers[file] = _header(header, place.format(file.line(start)))
            elif len(fields) != len(header):
                raise ValueError(
                    f"{place.format(file.line(start))}: {count(len(fields), 'field')}, where the header has "
                    f"{len(header)} ({', '.join(header)}); a field with a separator in it is written in quotation marks"
                )
            else:
                found.extend((start, end - start))
        if header is None:
            raise ValueError(f"{file.path} is empty: its first line must be the header, the names of the columns")
        return np.array(found, np.int64).reshape(-1, 2)

    def rows(self, file: File) -> Iterator[tuple[int, int, list[str]]]:
        """First byte, end and fields of each row of a file, the header and blank ones among them.

        Raises:
            ValueError: quotation marks that do not match.
        """
        start, ends = file.start, [file.start]

        def texts() -> Iterator[str]:
            for _, ends[0], text in file.lines():
                yield text

        try:
            for fields in csv.reader(texts(), delimiter=self._separators[file], strict=True):
                yield start, ends[0], fields
                start = ends[0]
        except csv.Error as error:
            raise _unmatched(file, start, str(error)) from None

    def _separator(self, file: File) -> str:
        with file.open() as stream:
            stream.seek(file.start)
            header = next((line for line in stream if line.strip()), b"")
        first, *others = self.separators
        return next((other for other in others if other.encode() in header and first.encode() not in header), first)

    def parsed(self, file: File, start: int, data: bytes) -> Document:
        fields = self.row(file, file.text(data, start))
        return {name: field for name, field in zip(self._headers[file], fields, strict=True) if name}

    def row(self, file: File, text: str) -> list[str]:
        """The fields of a row."""
        (fields,) = csv.reader([text], delimiter=self._separators[file], strict=True)
        return fields

    def content(self, file: File, data: bytes) -> bytes:
        """Without the columns that have no name."""
        header = self._headers[file]
        if "" not in header:
            return super().content(file, data)
        fields = self.row(file, data.decode())
        return "\0".join(field for name, field in zip(header, fields) if name).encode()


class TabSource(TableSource):
    """Tab-separated values, quoted as comma-separated ones where that can be meant. A line whose quotation marks do not
    match, or with them does not have a field for each column, is read as it is written, quotation marks included, if
    that gives a field for each column. A field in quotation marks may go on in lines that are no rows by themselves.
    """

    separators = ("\t",)

    def row(self, file: File, text: str) -> list[str]:
        """Quoted, or else as it is written."""
        quoted, plain = _quoted(text)[0], text.rstrip("\r\n").split("\t")
        width = len(self._headers.get(file, plain))
        return plain if quoted is None or len(quoted) != width == len(plain) else quoted

    def rows(self, file: File) -> Iterator[tuple[int, int, list[str]]]:
        is_row = lambda text: len(self.row(file, text)) == len(self._headers[file])
        held: list[tuple[int, int, str]] = []  # lines that may be one row
        written = lambda: [(start, end, self.row(file, text)) for start, end, text in held]
        for start, end, text in file.lines():
            if held and is_row(held[0][2]) and is_row(text):
                yield from written()
                held = []
            held.append((start, end, text))
            if len(held) > 1 and '"' not in text:
                continue
            fields, is_open = _quoted("".join(text for *_, text in held))
            if is_open and file in self._headers:
                continue
            if len(held) > 1 and fields is not None:
                yield held[0][0], end, fields
            elif len(held) == 1 or is_row(held[0][2]):
                yield from written()
            else:
                raise _unmatched(file, held[0][0], "quotation marks that do not match")
            held = []
        if held and not is_row(held[0][2]):
            raise _unmatched(file, held[0][0], "a quotation mark without another one that ends its field")
        yield from written()


def _quoted(text: str) -> tuple[list[str] | None, bool]:
    """The fields of a row separated by tabs, or None if its quotation marks do not match; and whether one is open."""
    try:
        (fields,) = csv.reader([text], delimiter="\t", strict=True)
    except csv.Error as error:
        return None, "end of data" in str(error)
    return fields, False


def _unmatched(file: File, start: int, fault: str) -> ValueError:
    return ValueError(
        f"{file.path}, line {file.line(start)}: {fault}; a field that begins with a quotation mark ends with one, and "
        "a quotation mark in it is written twice (in tsv: they are text where a line has a field for each column)"
    )


def _header(names: list[str], place: str) -> list[str]:
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1 and name]:
        raise ValueError(f"{place}: the header has {', '.join(repeated)} more than once")
    return names


def _check_utf8(file: File, chunk: int = 1 << 22) -> int:
    """The number of bytes in a file of text.

    Raises:
        ValueError: not UTF-8.
    """
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 0
    with file.open() as stream:
        while True:
            data = stream.read(chunk)
            before = len(decoder.getstate()[0])
            try:
                decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise file.not_utf8(size - before + error.start, error.object[error.start]) from None
            if not data:
                return size
            size += len(data)


def line_spans(file: File, chunk: int = 1 << 24) -> np.ndarray:
    """int64[lines, 2]: first byte and number of bytes of each line that is not blank. Checks that all is UTF-8."""
    found, start = [np.empty((0, 2), np.int64)], file.start
    with file.open() as stream:
        stream.seek(start)
        while data := stream.read(chunk) + stream.readline():
            file.text(data, start)
            ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
            if not data.endswith(b"\n"):
                ends = np.append(ends, len(data))
            starts = np.concatenate([[0], ends[:-1]])
            full = np.ones(len(starts), bool)
            first = np.frombuffer(data, np.uint8)[starts]
            maybe = np.flatnonzero(first <= ord(" "))  # only a line that begins with white space may be blank
            full[maybe] = [data[starts[i] : ends[i]].strip() != b"" for i in maybe]
            found.append(np.stack([start + starts, ends - starts], axis=1)[full])
            start += len(data)
    return np.concatenate(found)
