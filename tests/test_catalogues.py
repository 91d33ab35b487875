"""Messages of programs: how catalogues are found, read and split."""

import pickle
import struct

import pytest

from transformer_zoo.data import catalogues, sources
from transformer_zoo.data.stdlib import rank

HEADER = "Content-Type: text/plain; charset={}\n"


def compiled(messages, charset="utf-8", order="<"):
    """The bytes of a .mo file."""
    strings = sorted((key.encode(charset), value.encode(charset)) for key, value in messages.items())
    strings = [(b"", HEADER.format(charset).encode()), *strings]
    count, body, tables = len(strings), b"", ([], [])
    for side in (0, 1):
        for pair in strings:
            tables[side].append((len(pair[side]), 28 + 16 * count + len(body)))
            body += pair[side] + b"\0"
    numbers = [0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0]
    numbers += [number for table in tables for row in table for number in row]
    return struct.pack(f"{order}{len(numbers)}I", *numbers) + body


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with only the catalogues that the test installs: `machine(NAME, messages)`."""
    root = tmp_path / "locale"
    root.mkdir()
    monkeypatch.setattr(catalogues, "_roots", lambda: [root])
    monkeypatch.setattr(catalogues, "_packages", lambda: ())
    catalogues._pairs.cache_clear()

    def put(name, content, language="fr"):
        file = root / language / "LC_MESSAGES" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else compiled(content))
        return file

    yield put
    catalogues._pairs.cache_clear()


PO = r"""
# A translator
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"

#: a.c:1
msgctxt "menu"
msgid "Open"
msgstr "Ouvrir"

#, fuzzy, c-format
msgid "Guessed %s"
msgstr "Deviné %s"

msgid "one \"file\"\n"
msgid_plural "%d files\n"
msgstr[0] "un fichier\n"
msgstr[1] "%d "
"fichiers\n"

msgid "Untranslated"
msgstr ""

#~ msgid "Gone"
#~ msgstr "Parti"
"""


@pytest.mark.parametrize(("charset", "order"), [("utf-8", "<"), ("utf-8", ">"), ("iso-8859-1", "<")])
def test_compiled_catalogues(machine, charset, order):
    messages = {
        "Hello": "Été",
        "menu\x04Open\n": "Ouvrir\n",
        "%d file\0%d files": "%d fichier\0%d fichiers",
        "few\0many": "peu\0moyen\0beaucoup",
        "OK": "Ok",
        "nothing": "",
    }
    file = machine("a.mo", compiled(messages, charset, order))
    assert sorted(catalogues.messages(file)) == [
        ("%d file", "%d fichier"),
        ("%d files", "%d fichiers"),
        ("Hello", "Été"),
        ("Open", "Ouvrir"),
        ("few", "peu"),
        ("many", "beaucoup"),
    ]


def test_catalogues_that_are_not_compiled(machine):
    file = machine("a.po", PO.encode())
    assert list(catalogues.messages(file)) == [
        *(("Open", "Ouvrir"), ('one "file"', "un fichier"), ("%d files", "%d fichiers"))
    ]
    assert catalogues.catalogues("fr") == {"a": file}
    better = machine("a.mo", {"a": "b"})
    assert catalogues.catalogues("fr") == {"a": better}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mo", b"not a catalogue"),
        ("a.mo", b"\xde\x12\x04\x95"),
        ("a.mo", compiled({"a": "b"})[:60]),
        ("a.po", b'msgid "\xff"\nmsgstr "b"'),
        ("a.po", b'msgid "\\xz"\nmsgstr "b"'),
    ],
    ids=["no number", "no tables", "cut off", "no text", "no string"],
)
def test_damaged_catalogues_are_named(machine, name, content):
    with pytest.raises(ValueError, match=rf"{name} is not a gettext catalogue that can be read"):
        list(catalogues.messages(machine(name, content)))


def test_where_they_are_looked_for(tmp_path, monkeypatch):
    file = tmp_path / "mine" / "fr" / "LC_MESSAGES" / "zoo_of_mine.mo"
    file.parent.mkdir(parents=True)
    file.write_bytes(compiled({"a": "b"}))
    monkeypatch.setenv("TEXTDOMAINDIR", str(tmp_path / "mine"))
    (tmp_path / "site" / "pack" / "locale" / "fr" / "LC_MESSAGES").mkdir(parents=True)
    (tmp_path / "site" / "tests" / "fr" / "LC_MESSAGES").mkdir(parents=True)
    for folder in ("pack/locale", "tests"):
        (tmp_path / "site" / folder / "fr" / "LC_MESSAGES" / "django.mo").write_bytes(compiled({"a": "b"}))
    (tmp_path / "mine" / "fr" / "LC_MESSAGES" / "alias.mo").symlink_to(file)
    monkeypatch.setattr(
        catalogues.sysconfig, "get_paths", lambda: dict.fromkeys(("purelib", "platlib"), tmp_path / "site")
    )
    catalogues._packages.cache_clear()
    try:
        found = catalogues.catalogues("fr")
    finally:
        catalogues._packages.cache_clear()
    assert found["alias"].resolve() == file and "zoo_of_mine" not in found  # one file, one name
    assert [name for name in found if "django" in name] == ["pack/locale/django"]


def test_split_is_by_catalogue_and_no_message_is_on_both_sides(machine):
    names = [f"c{i:02}" for i in range(30)]
    for i, name in enumerate(names):
        own = {f"{name} says {j}": f"{name} dit {j}" for j in range(5 + i % 3)}
        machine(
            f"{name}.mo", own | {"Usage:": "Usage :", f"shared {i % 7}": f"partagé {i % 7}", "SHARED 1": "PARTAGÉ 1 !"}
        )
    sides = catalogues.pairs("fr")
    held = {pair["catalogue"] for pair in sides["validation"]}
    assert held and held.isdisjoint(pair["catalogue"] for pair in sides["train"])
    assert held == set(sorted(names, key=rank)[: len(held)])  # by the hash of the name alone
    total = sum(map(len, sides.values()))
    assert len(sides["validation"]) <= 0.15 * total
    train, validation = ({pair["source"].casefold() for pair in side} for side in sides.values())
    assert train.isdisjoint(validation) and "usage:" in validation
    for side in sides.values():
        pairs = [(pair["source"], pair["target"]) for pair in side]
        assert len(set(pairs)) == len(pairs)
    for name in held:  # whole: each of its own messages is there
        assert {f"{name} says {j}" for j in range(5)} <= {pair["source"] for pair in sides["validation"]}


def test_a_machine_with_few_catalogues(machine):
    with pytest.raises(
        FileNotFoundError, match="no gettext catalogue in 'fr'; .* pip install django; or set TEXTDOMAIN"
    ):
        catalogues.catalogues("fr")
    machine("a.mo", {"a": "b", "c": "d"})
    with pytest.raises(FileNotFoundError, match="has 1 gettext catalogue with messages in 'fr': to train on one"):
        catalogues.pairs("fr")
    machine("b.mo", {"e": "f"})
    assert {side: len(pairs) for side, pairs in catalogues.pairs("fr").items()} == {"train": 2, "validation": 1}
    machine("damaged.mo", b"")
    with pytest.warns(UserWarning, match="left out: .*damaged.mo is not a gettext catalogue"):
        assert len(catalogues.pairs("fr")["train"]) == 2
    machine("a.mo", {"a": "b"}, "pt_BR")
    with pytest.raises(FileNotFoundError, match=r"in 'pt' \(in pt_BR it has\)"):
        sources.source("gettext_catalogues:pt")


def test_as_a_source(machine, tmp_path, capfd):
    for i in range(12):
        machine(f"c{i}.mo", {f"c{i} {j}": f"fr {i} {j}" for j in range(10)})
        machine(f"c{i}.mo", {f"c{i} {j}": f"de {i} {j}" for j in range(4)}, "de")
    splits = {
        split: sources.source("gettext_catalogues", split, data_dir=tmp_path) for split in ("train", "validation")
    }
    assert capfd.readouterr() == ("", "")
    assert {split: len(found) for split, found in splits.items()} == {"train": 110, "validation": 10}
    assert splits["train"][0].keys() == {"catalogue", "source", "target"}
    assert list(pickle.loads(pickle.dumps(splits["train"]))) == list(splits["train"])
    assert sources.source("gettext_catalogues:fr", data_dir=tmp_path).name == splits["train"].name
    assert len(sources.source("gettext_catalogues:de", data_dir=tmp_path)) == 44
    # Another catalogue is another version, so nothing old is taken for it.
    machine("new.mo", {"new": "nouveau"})
    catalogues._pairs.cache_clear()
    again = [sources.source("gettext_catalogues", split, data_dir=tmp_path) for split in ("train", "validation")]
    assert sum(map(len, again)) == 121 and again[0].name != splits["train"].name


def test_those_of_this_machine():
    try:
        sides = catalogues.pairs("fr")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    held, known = ({pair["catalogue"] for pair in sides[side]} for side in ("validation", "train"))
    assert held and known and held.isdisjoint(known)
    assert {pair["source"] for pair in sides["train"]}.isdisjoint(pair["source"] for pair in sides["validation"])
    if len(sides["train"]) > 1000:
        letters = "".join(pair["target"] for pair in sides["train"])
        assert letters.count("é") > 0.005 * len(letters)  # French it is
