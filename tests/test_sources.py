"""Documents by name: files, and any TFDS data set."""

import csv
import json
import pickle
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from transformer_zoo.data import files, sources, text_files
from transformer_zoo.data.documents import field_of, text_in

WORDS = [f"document {i} naïve 文 {'x' * (i % 7)}\nsecond line" for i in range(40)]


class ZooReviews(tfds.core.GeneratorBasedBuilder):
    """A small TFDS data set with two text features, none of which is called text."""

    name = "zoo_reviews"
    VERSION = tfds.core.Version("2.1.0")
    url_infos = {}

    def _info(self):
        features = {
            "title": tfds.features.Text(),
            "body": tfds.features.Text(),
            "stars": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"title": f"title {i}", "body": f"bödy {i}", "stars": i % 5}


@pytest.fixture
def corpus(tmp_path):
    """The same forty documents as text files, JSON lines and Parquet."""
    for i, text in enumerate(WORDS):
        file = tmp_path / "text" / f"{i % 3}" / f"{i:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    lines = [json.dumps({"id": i, "body": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(WORDS)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines[:15]) + "\n")
    (tmp_path / "b.jsonl").write_text("\r\n".join(lines[15:]))  # no newline at the end
    for name, part in (("a", WORDS[:15]), ("b", WORDS[15:])):
        table = pa.table({"id": list(range(len(part))), "body": part})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
        for kind, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
            with (tmp_path / f"{name}.{kind}").open("w", newline="") as out:
                csv.writer(out, dialect).writerows([("id", "body"), *enumerate(part)])
    return tmp_path


SPECS = (
    "text:{}/text/**/*.txt", "jsonl:{}/*.jsonl:body", "parquet:{}/*.parquet", "parquet:{}/*.parquet:body",
    "csv:{}/*.csv:body", "tsv:{}/*.tsv:body",
)  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_random_access_to_every_document(corpus, spec):
    whole = sources.source(spec.format(corpus), "all")
    assert len(whole) == len(WORDS)
    texts = [whole[i]["text"] for i in np.random.default_rng(0).permutation(len(WORDS))]
    assert sorted(texts) == sorted(WORDS)
    assert whole[-1] == whole[len(WORDS) - 1]
    assert list(pickle.loads(pickle.dumps(whole))) == list(whole)
    with pytest.raises(IndexError, match="document 40 of 40"):
        whole[40]


@pytest.mark.parametrize("spec", SPECS)
def test_splits_are_disjoint_complete_and_the_same_elsewhere(corpus, spec, tmp_path_factory):
    def split(folder, name, share=0.2):
        return {document["text"] for document in sources.source(spec.format(folder), name, validation=share)}

    train, held_out = split(corpus, "train"), split(corpus, "validation")
    assert not train & held_out and train | held_out == set(WORDS)
    assert 1 <= len(held_out) <= 16
    assert held_out <= split(corpus, "validation", 0.5)
    assert split(corpus, "train", 0) == split(corpus, "validation", 1) == set(WORDS)
    with pytest.raises(ValueError, match="a share of 0 that is held out leaves nothing for the split 'validation'"):
        split(corpus, "validation", 0)
    moved = tmp_path_factory.mktemp("elsewhere") / "corpus"
    corpus.rename(moved)
    assert split(moved, "validation") == held_out
    parts = [sources.source(spec.format(moved), name, validation=0.2) for name in ("train", "validation")]
    assert [part.split for part in parts] == ["train", "validation"]
    assert len({part.fingerprint for part in (*parts, pickle.loads(pickle.dumps(parts[0])))}) == 2
    assert all(list(pickle.loads(pickle.dumps(part))) == list(part) for part in parts)
    place = next(part.place(i) for part in parts for i, row in enumerate(part) if row["text"] == WORDS[16])
    assert place.startswith(str(moved)) and place.endswith(("16.txt", "line 2", "line 4", "row 1"))


def write_rows(file, texts):
    """Texts as a file of the form that its name ends in."""
    kind = file.suffix[1:]
    if kind == "jsonl":
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), file)
    else:
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([["text"], *([text] for text in texts)])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_row_on_top_moves_no_other_and_equal_rows_stay_together(tmp_path, kind):
    def split(name, texts):
        write_rows(tmp_path / f"a.{kind}", texts)
        part = sources.source(f"{kind}:{tmp_path}/a.{kind}", name, validation=0.3)
        return [document["text"] for document in part], part.fingerprint

    before, fingerprint = split("validation", WORDS)
    top = ["new on top", *WORDS[:5], *WORDS]
    after, changed = split("validation", top)
    assert set(after) - {"new on top"} == set(before) and 3 < len(before) < 25
    assert sorted(after + split("train", top)[0]) == sorted(top)
    assert fingerprint == split("validation", WORDS)[1] != changed


def write_table(file, rows):
    """Rows of strings, all of the same fields."""
    kind, columns = file.suffix[1:], {name: [row[name] for row in rows] for name in rows[0]}
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.table(columns), file)
    elif kind == "arrow":
        with pa.ipc.new_file(str(file), pa.table(columns).schema) as out:
            out.write_table(pa.table(columns))
    else:
        with file.open("w", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([list(columns), *(row.values() for row in rows)])


def test_a_split_by_some_fields_does_not_depend_on_the_others(tmp_path):
    """Nor on the form of the file. Its fingerprint is of the whole documents."""

    def split(kind, rows, by=("text",), key=""):
        write_table(tmp_path / f"a.{kind}", rows)
        spec = f"{kind}:{tmp_path}/a.{kind}{key}"
        parts = [sources.source(spec, name, validation=0.3, by=by) for name in ("train", "validation")]
        return *({row["text"] for row in part} for part in parts), parts[0].fingerprint

    rows = [{"id": str(i), "text": WORDS[i % 20], "label": str(i % 3)} for i in range(60)]
    train, held_out, fingerprint = split("csv", rows)
    assert not train & held_out and train | held_out == set(WORDS[:20]) and 2 < len(held_out) < 12
    for kind in ("csv", "tsv", "jsonl", "parquet", "arrow"):
        other = [{"id": "new", "text": "on top", "label": "9"}, *({**row, "id": "x", "label": "0"} for row in rows)]
        sides = split(kind, other)
        assert sides[1] - {"on top"} == held_out and not sides[0] & sides[1] and sides[2] != fingerprint
        named = split(kind, [{"body": row["text"], "label": row["label"]} for row in rows], key=":body")
        assert named[:2] == (train, held_out)
    # Where a field is missing, and where none are given, all of a document counts.
    whole = split("jsonl", rows, by=())
    assert whole == split("jsonl", rows, by=("text", "title")) and whole[0] & whole[1]
    same = [{**row, "text": "one"} for row in rows]
    with pytest.raises(ValueError, match="holds documents with one text, so none can be held out: give"):
        split("csv", same)


def test_more_files_and_other_names_move_no_document(corpus):
    spec = f"text:{corpus}/text/**/*.txt"
    before = {document["text"] for document in sources.source(spec, "validation", validation=0.3)}
    for i in range(20):
        (corpus / "text" / f"new{i}.txt").write_text(f"new {i}")
    (corpus / "text" / "0" / "00.txt").rename(corpus / "text" / "zero.txt")
    after = {document["text"] for document in sources.source(spec, "validation", validation=0.3)}
    assert before == after & set(WORDS)


def test_two_documents_give_both_splits_and_a_short_one_gives_none(tmp_path):
    spec = f"text:{tmp_path}/*.txt"
    (tmp_path / "a.txt").write_text("a")
    assert len(sources.source(spec)) == len(sources.source(spec, "all")) == 1
    (tmp_path / "b.txt").write_text("a")  # a copy
    with pytest.raises(ValueError, match="holds one document, so none can be held out"):
        sources.source(spec, "validation")
    (tmp_path / "b.txt").write_text("b")
    assert len(sources.source(spec)) == len(sources.source(spec, "validation")) == 1


def test_one_long_document_is_held_out_by_pieces(tmp_path):
    text = "".join(f"{i}: {'a word or two ' * (i % 9)}\n" for i in range(4000))
    file = write(tmp_path / "a.txt", "\ufeff" + text)
    train, held_out = (sources.source(f"text:{file}", name) for name in ("train", "validation"))
    size = {name: sum(len(piece["text"]) for piece in part) for name, part in (("train", train), ("held", held_out))}
    assert size["train"] + size["held"] == len(text) and 0.02 < size["held"] / len(text) < 0.1
    pieces = sorted([*train, *held_out], key=lambda piece: text.index(piece["text"]))
    assert "".join(piece["text"] for piece in pieces) == text
    assert [piece.get("continued", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert len(train) <= len(held_out) + 1  # what is not held out between two pieces is one
    start = text[: text.index(held_out[0]["text"])].count("\n") + 1
    assert held_out.place(0) == f"{file}, line {start}"
    assert len(sources.source(f"text:{file}", "all")) == 1


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("one two three\nfour five\nsix", ["one two three\n", "four five\nsix"]),
        ("one two\n\nthree four five six", ["one two\n\nthree", " four five six"]),
        ("one\n\n\ntwo\n\n\n\nthree four", ["one\n\n\ntwo\n\n\n\n", "three four"]),
        ("é" * 12, ["é" * 7, "é" * 5]),
        ("", []),
    ],
)
def test_long_texts_are_cut_at_white_space(tmp_path, text, pieces):
    whole = text_files.TextSource([files.File("a", write(tmp_path / "a.txt", text))])
    cut = whole.cut(16)
    assert [piece["text"] for piece in cut] == pieces
    assert len(cut.only(np.arange(len(cut)))) == len(whole) and len(cut.cut(16)) == len(cut)


def test_lines_across_chunks_are_found(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": "é" * n}, ensure_ascii=False) + "\n" for n in range(50)))
    index = text_files.line_spans(files.File("a", file))
    for chunk in (1, 7, 64):
        np.testing.assert_array_equal(text_files.line_spans(files.File("a", file), chunk), index)
    assert len(index) == 50


def test_parquet_keeps_few_groups_in_memory(corpus, monkeypatch):
    whole = sources.source(f"parquet:{corpus}/*.parquet", "all")
    monkeypatch.setattr(type(whole), "CACHE", 1)
    assert [document["text"] for document in whole] == WORDS
    assert len(whole._cache) == 1


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("text", b"fine until \xff here", r"bad\.x is not UTF-8: byte 11 is 0xff"),
        ("text", b"", r"holds no text: 1 file without a document"),
        ("jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"bad\.x is not UTF-8: byte 24 is 0xe9"),
        ("jsonl", b'\n{"text": "a"\n', r"bad\.x, line 2: not JSON"),
        ("jsonl", b"[1, 2]\n", r"bad\.x, line 1: a list where an object is expected; if the file is a list of objects"),
        (
            "jsonl",
            b'[\n  {"text": 1},\n',
            r"bad\.x, line 1: not JSON: .*; if the file is a list of objects, write one o",
        ),
        ("jsonl", b"\n\n", r"holds no text"),
        ("csv", b"text\n\xe9t\xe9\n", r"bad\.x is not UTF-8: byte 5 is 0xe9, line 2; save it as UTF-8$"),
        ("csv", "text\nété\n".encode("utf-16"), r"byte 0 is 0xff, line 1; it begins like UTF-16: save it as UTF-8"),
        ("csv", b"", r"bad\.x is empty: its first line must be the header"),
        ("csv", b"text,stars\n", r"holds no text: 1 file without a document"),
        ("csv", b"text,stars,text\na,1,b\n", r"bad\.x, line 1: the header has text more than once"),
        (
            "csv",
            b'text,stars\n"a\nb",1\n\nc,d,1\n',
            r"bad\.x, line 5: 3 fields, where the header has 2 \(text, stars\)",
        ),
        (
            "csv",
            b'text,stars\na,1\n"b,1\nc,1\n',
            r"bad\.x, line 3: unexpected end of data; a field that begins with a quo",
        ),
        ("csv", b'text,stars\na,1\n"b"s,1\n', r"bad\.x, line 3: ',' expected after '\"'; a field that begins"),
        ("tsv", b"text\tstars\na\n", r"bad\.x, line 2: 1 field, where the header has 2"),
        ("tsv", b'a\tb\nc\td\n"e\nf\tg\n', r"bad\.x, line 3: a quotation mark without another one that ends its field"),
        (
            "tsv",
            b'a\tb\n"c\nd" e\tf\n',
            r"bad\.x, line 2: quotation marks that do not match; .*\(in tsv: they are text",
        ),
        ("parquet", b"not parquet", r"bad\.x is not a Parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path, kind, data, message):
    file = write(tmp_path / "bad.x", data)
    with pytest.raises(ValueError, match=message):
        sources.source(f"{kind}:{file}")


def test_bad_line_in_the_middle_is_named_when_read(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b"\n')
    with pytest.raises(ValueError, match="line 3: not JSON"):
        sources.source(f"jsonl:{file}", "all")[1]


def test_parquet_has_all_columns(tmp_path):
    columns = {"a": ["x", None], "b": ["y", "z"], "n": [1, 2], "translation": [{"en": "e"}, {"en": "f"}]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    rows = sources.source(f"parquet:{tmp_path}/t.parquet", "all")
    assert rows[1] == {"path": "t.parquet", "row": 1, "a": None, "b": "z", "n": 2, "translation": {"en": "f"}}
    with pytest.raises(
        ValueError, match="t.parquet, row 0 has no field 'text': it has path, row, a, b, n, translation.en"
    ):
        text_in(rows[0], "text")
    for key, message in (
        ("m", "has no column 'm': it has a, b, n, tr"),
        ("n", "row 0: the field 'n' holds no text: 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sources.source(f"parquet:{tmp_path}/t.parquet:{key}")
    assert sources.source(f"parquet:{tmp_path}/t.parquet:translation.en", "all")[1]["text"] == "f"
    with pytest.raises(ValueError, match=r"row 1: the field 'text' holds no text: None"):
        text_in(sources.source(f"parquet:{tmp_path}/t.parquet:a", "all")[1], "text")


FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["a", "b"], "_type": "ClassLabel"}, "_type": "Sequence"},
    "spans": [{"start": {"dtype": "int32", "_type": "Value"}, "label": {"names": ["x"], "_type": "ClassLabel"}}],
}


def save(folder, texts, split, described=True):
    """Two Arrow files and their descriptions, as `save_to_disk` of the library `datasets` (5.2) writes them."""
    folder.mkdir(parents=True)
    names = [f"data-0000{i}-of-00002.arrow" for i in range(2)]
    for i, name in enumerate(names):
        part = texts[i::2]
        table = pa.table({"text": part, "label": [len(text) % 2 for text in part]})
        if described:
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
        with pa.ipc.new_stream(str(folder / name), table.schema) as out:
            out.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": split}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def test_folders_of_the_datasets_library(tmp_path):
    save(tmp_path / "one", WORDS, "train")
    whole = sources.source(f"arrow:{tmp_path}/one", "all")
    assert sorted(row["text"] for row in whole) == sorted(WORDS) and whole[0] == {"text": WORDS[0], "label": 1}
    assert whole.place(25) == f"{tmp_path}/one/data-00001-of-00002.arrow, row 5"
    parts = [sources.source(f"arrow:{tmp_path}/one", split, validation=0.2) for split in ("train", "validation")]
    assert sorted(row["text"] for part in parts for row in pickle.loads(pickle.dumps(part))) == sorted(WORDS)
    for field, names in {
        "label": ("bad", "good"),
        "tags": ("a", "b"),
        "spans": ("x",),
        "text": None,
        "no": None,
    }.items():
        assert parts[0].classes(field) == whole.classes(field) == names
    assert list(sources.source(f"arrow:{tmp_path}/one/*.arrow", "all")) == list(whole)

    for split in ("train", "test"):
        save(tmp_path / "two" / split, WORDS[:7] if split == "test" else WORDS[7:], split, described=False)
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    sizes = {split: len(sources.source(f"arrow:{tmp_path}/two:text", split)) for split in ("train", "test", "all")}
    assert sizes == {"train": 33, "test": 7, "all": 40}
    assert sources.source(f"arrow:{tmp_path}/two", "test").classes("label") == ("bad", "good")
    with pytest.raises(ValueError, match="two has no split 'validation': it has train, test and all; data.train_split"):
        sources.source(f"arrow:{tmp_path}/two", "validation")
    with pytest.raises(FileNotFoundError, match="holds neither dataset_dict.json nor state.json"):
        sources.source(f"arrow:{tmp_path}")


def test_arrow_files(tmp_path):
    table = pa.table({"body": WORDS})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table, max_chunksize=7)
    whole = sources.source(f"arrow:{tmp_path}/*.arrow", "all")
    assert [row["text"] for row in pickle.loads(pickle.dumps(whole))] == WORDS


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_compressed_files(tmp_path, kind, monkeypatch):
    """By their first bytes and not by their names. They are decompressed once."""
    monkeypatch.setattr(files, "CACHE", tmp_path / "cache")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in WORDS)
    data = {"jsonl": lines, "text": "\ufeff" + WORDS[0], "csv": "text,n\n" + "".join(f"{i},{i}\n" for i in range(9))}
    for form, content in data.items():
        with pa.CompressedOutputStream(str(tmp_path / f"{form}.x"), kind) as out:
            out.write(content.encode())
        source = sources.source(f"{form}:{tmp_path}/{form}.x", "all")
        found = [row["text"] for row in pickle.loads(pickle.dumps(source))]
        assert found == {"jsonl": WORDS, "text": WORDS[:1], "csv": [str(i) for i in range(9)]}[form]
    cached = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert len(cached) == 3
    assert len(text_files.JsonLinesSource([files.File("jsonl.x", tmp_path / "jsonl.x")])) == 40
    assert cached == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    damaged = write(tmp_path / "b.x", (tmp_path / "jsonl.x").read_bytes()[:-30])
    with pytest.raises(ValueError, match=f"b.x begins like {kind}, and cannot be decompressed"):
        sources.source(f"jsonl:{damaged}")


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_several_streams_in_a_file_and_a_cache_that_cannot_be_written(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(files, "CACHE", write(tmp_path / "occupied", "") / "cache")
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    compress = lambda data: pa.Codec(kind).compress(data, asbytes=True)
    data = b"".join(compress(f'{{"text": "{i}"}}\n'.encode()) for i in range(3))
    source = sources.source(f"jsonl:{write(tmp_path / 'a.jsonl', data)}", "all")
    assert [row["text"] for row in source] == ["0", "1", "2"]


def test_a_mark_and_blank_lines_at_the_beginning(tmp_path):
    lines = '\ufeff\n  \n{"text": "a"}\n \t \n\n{"text": "b"}'
    source = sources.source(f"jsonl:{write(tmp_path / 'a.jsonl', lines)}", "all")
    assert [(row["text"], row.place.rpartition(" ")[2]) for row in source] == [("a", "3"), ("b", "6")]
    assert sources.source(f"text:{write(tmp_path / 'a.txt', chr(0xFEFF) + 'a')}", "all")[0]["text"] == "a"
    with pytest.raises(ValueError, match="holds no text"):
        sources.source(f"text:{write(tmp_path / 'a.txt', chr(0xFEFF))}")


@pytest.mark.parametrize("folder", ["a b", "data [v1]", "[ab]", "~x"])
def test_paths_are_meant_literally_where_they_exist(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / folder).mkdir()
    file = write(tmp_path / folder / "x [1] ~.jsonl", '{"text": "a"}\n')
    for pattern in (file, tmp_path / folder / "*.jsonl", f"~/{folder}/x*.jsonl", f"~/{folder}/x [1] ~.jsonl:text"):
        assert sources.source(f"jsonl:{pattern}", "all")[0]["text"] == "a"
    assert [file.name for file in files.find(f"~/{folder[:-1]}?/*.jsonl")] in ([f"{folder}/x [1] ~.jsonl"], [])


def test_fields_that_are_not_there_are_named_with_their_place(tmp_path):
    lines = '{"text": "a", "translation": {"en": "b", "fr": null}}\n\n{"txt": 3}\n'
    whole = sources.source(f"jsonl:{write(tmp_path / 'a.jsonl', lines)}", "all")
    assert field_of(whole[0], "translation.en") == "b" and whole[1]["txt"] == 3
    with pytest.raises(
        ValueError, match=r"a\.jsonl, line 3 has no field 'text': it has txt; the field that is the text"
    ):
        text_in(whole[1], "text")
    with pytest.raises(
        ValueError, match="line 1 has no field 'translation.de': it has text, translation.en, translati"
    ):
        field_of(whole[0], "translation.de")
    with pytest.raises(ValueError, match="a.jsonl, line 1: the field 'translation.fr' holds no text: None"):
        text_in(whole[0], "translation.fr")
    assert sources.source(f"jsonl:{tmp_path}/a.jsonl:translation.en", "all")[0]["text"] == "b"
    for key, message in (("txt", "line 1 has no field 'txt'"), ("translation", "'translation' holds no text")):
        with pytest.raises(ValueError, match=message):
            sources.source(f"jsonl:{tmp_path}/a.jsonl:{key}")


ROWS = [
    {"text": 'He said "no",\r\nthen\nleft. ', "stars": "01", "of": ""},
    {"text": "x" * 200_000, "stars": "3.0", "of": "é"},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolons"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_rows_of_separated_values(tmp_path, kind, ends):
    """Values are the strings that are written; blank rows, a byte-order mark and spaces in the header are not read."""
    file = tmp_path / "reviews [v1] of 1.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        delimiter = {"csv": ",", "tsv": "\t", "semicolons": ";"}[kind]
        writer = csv.writer(out, delimiter=delimiter, lineterminator=ends)
        writer.writerows([(), ("text", " stars", "of"), (), *(row.values() for row in ROWS), (" ",), ("", "", ""), ()])
    form = "tsv" if kind == "tsv" else "csv"
    whole = sources.source(f"{form}:{file}", "all")
    assert list(whole) == ROWS
    assert [whole.place(i) for i in (0, 1)] == [f"{file}, line 4", f"{file}, line 7"]
    keyed = pickle.loads(pickle.dumps(sources.source(f"{form}:{file}:of", "all")))
    assert [row["text"] for row in keyed] == ["", "é"] and whole[1].place == f"{file}, line 7"
    with pytest.raises(ValueError, match=r"csv has no column 'to': it has text, stars, of"):
        sources.source(f"{form}:{file}:to")


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        (['"a b\t1', "c\t2"], [('"a b', "1"), ("c", "2")]),  # does not end
        (['a"b\t1', '"a" b\t2', '"a""b"\t3'], [('a"b', "1"), ('"a" b', "2"), ('a"b', "3")]),
        (['"a\tb"', '"a\tb"\t1'], [('"a', 'b"'), ("a\tb", "1")]),
        (['1\t"a', 'b"', '2\t"c', "", "3\td"], [("1", "a\nb"), ("2", '"c'), ("3", "d")]),
        (['"a', 'b"\t1', '"c\t2'], [("a\nb", "1"), ('"c', "2")]),
        (['"a\t1', '"b\t2', 'c"\t3'], [('"a', "1"), ('"b', "2"), ('c"', "3")]),
    ],
)
def test_quotation_marks_that_cannot_quote_are_text_between_tabs(tmp_path, lines, rows):
    file = write(tmp_path / "a.tsv", "\n".join(["text\tlabel", *lines, ""]))
    source = sources.source(f"tsv:{file}", "all")
    assert [tuple(row[name] for name in ("text", "label")) for row in source] == rows
    assert len(sources.source(f"tsv:{file}", by=("text",))) < len(rows)


def test_row_numbers_without_a_name_are_left_out(tmp_path):
    """As pandas writes them; a row on top moves no other between the splits although it changes their numbers."""
    held_out = []
    for top in ([], ["on top"]):
        rows = [f"{i},{text},x\n" for i, text in enumerate([*top, *(f"text {i}" for i in range(40))])]
        file = write(tmp_path / "a.csv", ",text,label\n" + "".join(rows))
        part = sources.source(f"csv:{file}", "validation", validation=0.3)
        assert all(row.keys() == {"text", "label"} for row in part)
        held_out.append({row["text"] for row in part} - {"on top"})
    assert held_out[0] == held_out[1] and len(held_out[0]) > 3


def test_the_only_column_is_the_text_and_files_have_the_same_columns(tmp_path):
    write(tmp_path / "a.csv", "Review\ngood\n")
    assert sources.source(f"csv:{tmp_path}/a.csv")[0] == {"Review": "good", "text": "good"}
    write(tmp_path / "b.csv", "review\nbad\n")
    with pytest.raises(ValueError, match=r"b\.csv has the columns review, and .*a\.csv has Review"):
        sources.source(f"csv:{tmp_path}/*.csv")
    write(tmp_path / "a.csv", "stars,review\n1,good\n")
    write(tmp_path / "b.csv", "review,stars\nbad,2\n")
    assert [row["stars"] for row in sources.source(f"csv:{tmp_path}/*.csv", "all")] == ["1", "2"]


def test_unknown_names(tmp_path):
    for spec in ("wikipedia", "texts:a", "text:", "tfds:", "python_stdlib:3", "jsonl"):
        with pytest.raises(ValueError, match="unknown source .* it must be one of python_stdlib, .*, tfds:NAME"):
            sources.source(spec)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        sources.source(f"text:{tmp_path}/*.txt")
    with pytest.raises(FileNotFoundError, match="It is a folder: did you mean"):
        sources.source(f"text:{tmp_path}")
    write(tmp_path / "a.txt", "a")
    with pytest.raises(ValueError, match="no split 'test': it has train, validation and all"):
        sources.source(f"text:{tmp_path}/a.txt", "test")
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        sources.source(f"text:{tmp_path}/a.txt", validation=1.1)


def test_every_form_is_documented_once():
    """In the module's docstring, spelt as in the table."""
    documented = re.findall(r"^    (\w+\S*)  ", sources.__doc__, re.M)
    assert documented == [prefix + form.arguments for prefix, form in sources.FORMS.items()]


def test_a_colon_in_a_file_name(tmp_path):
    file = write(tmp_path / "a:b.jsonl", '{"text": "a", "other": "b"}\n')
    assert sources.source(f"jsonl:{file}")[0]["text"] == "a"
    assert sources.source(f"jsonl:{file}:other")[0]["text"] == "b"


def test_any_tfds_data_set(tmp_path):
    with pytest.raises(
        ValueError, match=r"2\.1\.0, example 0 has no field 'text': it has body, stars, title; the field t"
    ):
        text_in(sources.source("tfds:zoo_reviews", data_dir=tmp_path)[0], "text")
    reviews = sources.source("tfds:zoo_reviews:body", data_dir=tmp_path)
    assert len(reviews) == 30
    assert sorted(review["text"] for review in reviews) == sorted(f"bödy {i}" for i in range(30))
    assert {"title", "body", "stars", "text"} == reviews[0].keys()
    assert list(pickle.loads(pickle.dumps(reviews))) == list(reviews)
    assert reviews.own_splits and reviews.split == "train"
    assert len(sources.source("tfds:zoo_reviews:2.1.0:title", "train[:10%]", data_dir=tmp_path)) == 3
    assert len(sources.source("tfds:zoo_reviews:title", "train[:2]+test", data_dir=tmp_path)) == 6
    assert len(sources.source("tfds:zoo_reviews:title", "all", data_dir=tmp_path)) == 34
    with pytest.raises(ValueError, match="has no split 'validation': it has test, train; a part of one"):
        sources.source("tfds:zoo_reviews:title", "validation", data_dir=tmp_path)
    with pytest.raises(ValueError, match="no text feature 'stars'"):
        sources.source("tfds:zoo_reviews:stars", data_dir=tmp_path)


def test_tfds_data_in_an_old_format_says_what_to_do(tmp_path):
    sources.source("tfds:zoo_reviews:title", data_dir=tmp_path)
    info = tmp_path / "zoo_reviews" / "2.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"as tfrecord, which cannot be read at random: prepare it as array_record"):
        sources.source("tfds:zoo_reviews:title", data_dir=tmp_path)


def test_tfds_name_that_nobody_knows(tmp_path):
    with pytest.raises(
        ValueError, match=r"TFDS knows no data set 'wikipedai/20230601.en'.* Did you mean 'wikipedia'\?"
    ):
        sources.source("tfds:wikipedai/20230601.en", data_dir=tmp_path)


def test_tfds_data_set_that_cannot_be_prepared(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(ZooReviews, "_split_generators", fail)
    with pytest.raises(ValueError, match=r"tfds:zoo_reviews is not prepared in .* failed: OSError: no route to host"):
        sources.source("tfds:zoo_reviews:title", data_dir=tmp_path)
