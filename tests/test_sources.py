"""Documents by name: files, and any TFDS data set."""

import json
import pickle
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from transformer_zoo.data import sources

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
    return tmp_path


SPECS = ("text:{}/text/**/*.txt", "jsonl:{}/*.jsonl:body", "parquet:{}/*.parquet", "parquet:{}/*.parquet:body")


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
    moved = tmp_path_factory.mktemp("elsewhere") / "corpus"
    corpus.rename(moved)
    assert split(moved, "validation") == held_out


def test_more_files_move_no_document_across(corpus):
    spec = f"text:{corpus}/text/**/*.txt"
    before = {document["path"] for document in sources.source(spec, "validation", validation=0.3)}
    for i in range(20):
        (corpus / "text" / f"new{i}.txt").write_text("new")
    after = {document["path"] for document in sources.source(spec, "validation", validation=0.3)}
    assert before <= after


def test_two_documents_give_both_splits_and_one_gives_none(tmp_path):
    spec = f"text:{tmp_path}/*.txt"
    (tmp_path / "a.txt").write_text("a")
    assert len(sources.source(spec)) == len(sources.source(spec, "all")) == 1
    with pytest.raises(ValueError, match="holds one document, so none can be held out"):
        sources.source(spec, "validation")
    (tmp_path / "b.txt").write_text("b")
    assert len(sources.source(spec)) == len(sources.source(spec, "validation")) == 1


def test_lines_across_chunks_are_found(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": "é" * n}, ensure_ascii=False) + "\n" for n in range(50)))
    index = sources._lines(file)
    for chunk in (1, 7, 64):
        np.testing.assert_array_equal(sources._lines(file, chunk), index)
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
        ("jsonl", b"[1, 2]\n", r"bad\.x, line 1: a list where an object is expected"),
        ("jsonl", b'{"txt": "a"}\n', r"bad\.x, line 1: 'text' is missing; the object has txt"),
        ("jsonl", b'{"text": 3}\n', r"bad\.x, line 1: 'text' is not a string"),
        ("jsonl", b"\n\n", r"holds no text"),
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


def test_parquet_columns(tmp_path):
    pq.write_table(pa.table({"a": ["x", None], "b": ["y", "z"], "n": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(
        ValueError, match=r"leaves open which column is the text: its text columns are a, b \(all: a, b, n"
    ):
        sources.source(f"parquet:{tmp_path}/t.parquet")
    with pytest.raises(ValueError, match="has no text column 'n'"):
        sources.source(f"parquet:{tmp_path}/t.parquet:n")
    with pytest.raises(ValueError, match=r"row 1: 'a' holds no text \(null\)"):
        list(sources.source(f"parquet:{tmp_path}/t.parquet:a", "all"))


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
        sources.source(f"text:{tmp_path}/a.txt", validation=1.0)


def test_every_form_is_documented_once():
    """In the module's docstring, spelt as in the table."""
    documented = re.findall(r"^    (\w+\S*)  ", sources.__doc__, re.M)
    assert documented == [prefix + form.arguments for prefix, form in sources.FORMS.items()]


def test_a_colon_in_a_file_name(tmp_path):
    file = write(tmp_path / "a:b.jsonl", '{"text": "a", "other": "b"}\n')
    assert sources.source(f"jsonl:{file}")[0]["text"] == "a"
    assert sources.source(f"jsonl:{file}:other")[0]["text"] == "b"


def test_any_tfds_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"leaves open what its text is: its text features are body, title \(all: "):
        sources.source("tfds:zoo_reviews", data_dir=tmp_path)[0]["text"]
    reviews = sources.source("tfds:zoo_reviews:body", data_dir=tmp_path)
    assert len(reviews) == 30
    assert sorted(review["text"] for review in reviews) == sorted(f"bödy {i}" for i in range(30))
    assert {"title", "body", "stars", "text"} == reviews[0].keys()
    assert list(pickle.loads(pickle.dumps(reviews))) == list(reviews)
    assert len(sources.source("tfds:zoo_reviews:2.1.0:title", "train[:10%]", data_dir=tmp_path)) == 3
    assert len(sources.source("tfds:zoo_reviews:title", "train[:2]+test", data_dir=tmp_path)) == 6
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
