"""`gettext_catalogues`: the messages of the programs on this machine, in English and in another language.

Operating systems and Python packages bring them as gettext catalogues. They are read where they lie: their licences
are those of the programs.
"""

import ast
import difflib
import functools
import gettext
import hashlib
import locale
import os
import re
import struct
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from transformer_zoo.data.stdlib import Local, rank

HELD_OUT = 0.1
"""Share of the pairs that are held out, in whole catalogues; at most."""

FOLDER = "LC_MESSAGES"

Pair = dict[str, str]

_PO_LINE = re.compile(r'(msg[a-z_]+(?:\[\d+\])?)?\s*("(?:[^"\\]|\\.)*")\s*')


def catalogues(language: str = "fr") -> dict[str, Path]:
    """The catalogues of a language by name: the program's, after the folder of its package if it comes with one.

    They are searched in gettext's folders (of Python, of the C library and of TEXTDOMAINDIR), and in installed Python
    packages except their tests. If there are both, the compiled file is taken and not its source.

    Args:
        language: as in gettext: `fr`, `pt_BR`. Its variants, such as `fr_CA`, are languages of their own.

    Raises:
        FileNotFoundError: there are none.
    """
    found: dict[str, Path] = {}
    for root in _roots():
        for suffix in (".mo", ".po"):
            for file in sorted((root / language / FOLDER).glob(f"*{suffix}")):
                found.setdefault(file.stem, file)
    for name, folder in _packages():
        if folder.parent.name == language:
            for suffix in (".mo", ".po"):
                for file in sorted(folder.glob(f"*{suffix}")):
                    found.setdefault(f"{name}/{file.stem}", file)
    # Distributions link the old names of a catalogue to its new one.
    files = {file.resolve(): name for name, file in sorted(found.items(), reverse=True)}
    if not files:
        there = sorted(_languages())
        near = difflib.get_close_matches(language, there, n=3, cutoff=0.4)
        raise FileNotFoundError(
            f"this machine has no gettext catalogue in {language!r}"
            + (f" (in {', '.join(near)} it has)" if near else f"; it has {len(there)} other languages")
            + ". They come with programs (images of containers often leave them out) and with Python packages, such as "
            f"pip install django; or set TEXTDOMAINDIR to a folder that has {language}/{FOLDER}/*.mo"
        )
    return {name: found[name] for name in sorted(files.values())}


def messages(file: Path) -> Iterator[tuple[str, str]]:
    """The pairs of a catalogue, .mo or .po: English and translation, in the file's order.

    A message that depends on a number gives its first form and its last. Untranslated messages and automatic guesses
    (fuzzy) are left out, as are translations that differ from the English only in capitals and spaces.

    Raises:
        ValueError: it is not a catalogue.
    """
    try:
        for sources, targets in _compiled(file) if file.suffix == ".mo" else _source(file):
            for source, target in dict.fromkeys(((sources[0], targets[0]), (sources[-1], targets[-1]))):
                source, target = source.rpartition("\x04")[2].strip(), target.strip()  # what is before it is context
                if source and target and _key(source) != _key(target):
                    yield source, target
    except (struct.error, UnicodeDecodeError, LookupError, SyntaxError) as error:
        raise ValueError(f"{file} is not a gettext catalogue that can be read: {error}") from None


def pairs(language: str = "fr") -> dict[str, list[Pair]]:
    """Both sides of the split, `train` and `validation`: `catalogue`, `source` and `target` of each message.

    Whole catalogues are held out: the first, in the order of a hash of their names, that do not make up more than
    `HELD_OUT` of all pairs. A message of several catalogues is on one side only, compared without capitals and spaces.
    No pair occurs twice. A file that cannot be read is left out, with a warning.

    Raises:
        FileNotFoundError: there are fewer than two catalogues, so that none can be held out.
    """
    content = {}
    for name, file in catalogues(language).items():
        try:
            content[name] = list(messages(file))
        except ValueError as error:  # one damaged file of one package should not prevent reading the others
            warnings.warn(f"left out: {error}", stacklevel=2)
    content = {name: found for name, found in content.items() if found}
    if len(content) < 2:
        raise FileNotFoundError(
            f"this machine has {len(content)} gettext catalogue with messages in {language!r}: to train on one and be "
            "evaluate on another takes two, such as those of pip install django"
        )
    room, held = HELD_OUT * sum(map(len, content.values())), set()
    for name in sorted(content, key=rank):
        if len(content[name]) <= room:
            held.add(name)
            room -= len(content[name])
    held = held or {min(content, key=lambda name: (len(content[name]), name))}
    held_messages = {_key(source) for name in held for source, _ in content[name]}
    sides: dict[str, dict[tuple[str, str], Pair]] = {"train": {}, "validation": {}}
    for name, found in content.items():
        side = "validation" if name in held else "train"
        for source, target in found:
            if name in held or _key(source) not in held_messages:
                pair = {"catalogue": name, "source": source, "target": target}
                sides[side].setdefault((source, target), pair)
    return {side: list(found.values()) for side, found in sides.items()}


class GettextCatalogues(Local):
    """Messages of programs as a TFDS builder. Its version is made of the catalogues that the machine has."""

    name = "gettext_catalogues"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, language: str = "fr", **kwargs: object) -> None:
        self._language = language
        sizes = [(name, file.stat().st_size) for name, file in catalogues(language).items()]
        digest = int.from_bytes(hashlib.sha256(repr(sizes).encode()).digest()[:8], "big")
        self.name, self.VERSION = f"{self.name}_{language.lower()}", tfds.core.Version(f"1.0.{digest % 10**9}")
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        description = f"Messages of programs, in English and in {self._language}."
        return self._described(description, "catalogue", "source", "target")

    def _generate_examples(self, held: bool) -> Iterator[tuple[str, Pair]]:
        for number, pair in enumerate(_pairs(self._language)["validation" if held else "train"]):
            yield f"{number:06d}", pair


# Where they are


def _roots() -> list[Path]:
    """The folders that have one folder a language, without those that are not there."""
    nobody = "transformer_zoo"  # a domain that is bound to no folder: the answer is the default one
    folders = [os.environ.get("TEXTDOMAINDIR"), gettext.bindtextdomain(nobody)]
    if hasattr(locale, "bindtextdomain"):  # not on Windows
        folders.append(locale.bindtextdomain(nobody, None))
    return [Path(folder) for folder in dict.fromkeys(folders) if folder and Path(folder).is_dir()]


@functools.cache
def _packages() -> tuple[tuple[str, Path], ...]:
    """The folders of catalogues in installed packages, each with a name in which its language is not. A second."""
    found = {}
    for root in map(Path, {sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}):
        for folder, below, _ in os.walk(root):
            below[:] = [name for name in below if name not in ("test", "tests", "__pycache__")]
            if Path(folder).name == FOLDER:
                found[Path(folder)] = Path(folder).parent.parent.relative_to(root).as_posix()
    return tuple((name, folder) for folder, name in sorted(found.items()))


def _languages() -> set[str]:
    """Those that have a catalogue."""
    folders = [folder for root in _roots() for folder in root.glob(f"*/{FOLDER}")]
    folders += [folder for _, folder in _packages()]
    return {folder.parent.name for folder in folders if any(folder.glob("*.[mp]o"))}


# What is in them


def _compiled(file: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The forms of each message of a .mo file: two tables of strings, in the byte order of its first number."""
    data = file.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    magic, _, count, sources, targets = struct.unpack_from(f"{order}5I", data)
    if magic != 0x950412DE:
        raise struct.error("its first bytes are not those of a .mo file")

    def string(table: int, number: int) -> bytes:
        size, start = struct.unpack_from(f"{order}2I", data, table + 8 * number)
        return struct.unpack_from(f"{size}s", data, start)[0]

    charset = "utf-8"
    for number in range(count):
        source, target = string(sources, number), string(targets, number)
        if not source:
            charset = _charset(target)
        else:
            yield source.decode(charset).split("\0"), target.decode(charset).split("\0")


def _source(file: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The forms of each message of a .po file: messages are divided by empty lines, and strings are those of C."""
    data = file.read_bytes()
    for block in re.split(r"\n\s*\n", data.decode(_charset(data)).replace("\r\n", "\n")):
        entry, field = {}, ""
        for line in block.split("\n"):
            if match := _PO_LINE.fullmatch(line.strip()):
                field = match[1] or field
                entry[field] = entry.get(field, "") + ast.literal_eval(match[2])
        targets = [text for name, text in entry.items() if name.startswith("msgstr")]
        if entry.get("msgid") and targets and not re.search(r"^#,.*\bfuzzy\b", block, re.MULTILINE):
            yield [entry["msgid"], entry.get("msgid_plural", entry["msgid"])], targets


def _charset(header: bytes) -> str:
    named = re.search(rb"charset=([\w-]+)", header)
    return named[1].decode() if named else "utf-8"


_pairs = functools.lru_cache(maxsize=1)(pairs)


def _key(message: str) -> str:
    """What messages that differ in capitals and spaces alone have in common."""
    return " ".join(message.casefold().split())
