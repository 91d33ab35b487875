"""Labelled sources, and rows made from labelled examples."""

import ast
import dataclasses
import functools
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds

from transformer_zoo.config import Data
from transformer_zoo.data import labelled, rows, sources, stdlib, stdlib_labels
from transformer_zoo.data.documents import text_in
from transformer_zoo.data.pipeline import Pipeline
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives import OBJECTIVES

# ---- data sets of the same features as GLUE's and SQuAD's -----------------------------------------------------------

PAIRS = [(f"The first sentence, number {i}.", f"Sentence {i} the sécond.", i % 2) for i in range(20)]
CONTEXT = "In 1998 the Zürich team, led by Ada, built the machine; it ran for ten years in Bern. "


class Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self):
        pass


class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set without downloads."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = {}  # noqa: RUF012
    features, examples = None, None

    def _info(self):
        return Info(builder=self, features=tfds.features.FeaturesDict(self.features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.examples)


class ZooGlue(Made):
    """As glue/mrpc, glue/stsb in one."""

    features = {  # noqa: RUF012
        "sentence1": tfds.features.Text(),
        "sentence2": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=("not_equivalent", "equivalent")),
        "score": np.float32,
        "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=("a", "b", "c"))),
        "idx": np.int32,
    }
    examples = [  # noqa: RUF012
        {"sentence1": a, "sentence2": b, "label": label, "score": i / 4, "tags": [0, 2][: i % 3], "idx": i}
        for i, (a, b, label) in enumerate(PAIRS)
    ]


class ZooSquad(Made):
    """As squad."""

    features = {  # noqa: RUF012
        "id": tfds.features.Text(),
        "title": tfds.features.Text(),
        "context": tfds.features.Text(),
        "question": tfds.features.Text(),
        "answers": tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32}),
    }
    examples = [  # noqa: RUF012
        {
            "id": str(i),
            "title": "Machines",
            "context": CONTEXT * i,
            "question": f"Who led the team {i}?",
            "answers": {
                "text": ["Ada", "led by Ada"],
                "answer_start": [CONTEXT.index("Ada") + len(CONTEXT) * (i - 1), CONTEXT.index("led by")],
            },
        }
        for i in range(1, 5)
    ]


class ZooNames(Made):
    """As conll2003."""

    features = {  # noqa: RUF012
        "tokens": tfds.features.Sequence(tfds.features.Text()),
        "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=("O", "PER", "LOC"))),
    }
    examples = [{"tokens": ["Ada", "lives", "in", "Zürich", "."], "ner": ["PER", "O", "O", "LOC", "O"]}]  # noqa: RUF012


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for kind in (ZooGlue, ZooSquad, ZooNames):
        kind(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(scope="module")
def read(data_dir):
    return functools.partial(sources.source, data_dir=data_dir)


@pytest.fixture(scope="module")
def tokenizers():
    texts = [*(text for a, b, _ in PAIRS for text in (a, b)), CONTEXT, "Who led the team?"] * 3
    texts += [source for _, source in stdlib_labels.functions_in("class A:\n    def read(self):\n        return 1\n")]
    return {kind: Tokenizer.train(texts, 420, kind=kind) for kind in ("wordpiece", "roberta")}


kinds = pytest.mark.parametrize("kind", ["wordpiece", "roberta"])


def rows_of(name, tokenizer, examples, length, **settings):
    objective = OBJECTIVES[name](**settings)
    return objective.rows(tokenizer, Data(length=length))(list(examples), np.random.default_rng(0))


# ---- the labels of the standard library -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def functions(read):
    return {split: read("stdlib_functions", split) for split in ("train", "validation")}


def test_functions_say_where_they_come_from(functions):
    names = functions["train"].classes("label")
    assert names == functions["validation"].classes("label") == tuple(sorted(names))
    assert len(names) == 20 and {"asyncio", "email", "tkinter", "xml", "multiprocessing"} <= set(names)
    assert 4000 < len(functions["train"]) < 7000 and 800 < len(functions["validation"]) < 1600
    seen, files, shares = set(), {}, {}
    for split, source in functions.items():
        for example in source:
            name = names[example["label"]]
            assert name == stdlib_labels.package(example["path"]) and example["text"] not in seen
            assert files.setdefault(example["path"], split) == split  # never half a file
            seen.add(example["text"])
            shares.setdefault(name, []).append(split == "validation")
    assert len(files) > 200
    for name in names:
        assert 0 < np.mean(shares[name]) <= 0.2
    assert not any(text.startswith(" ") for text in seen)


def test_functions_are_cut_out_whole_and_to_the_left():
    source = (
        "import a\n\nclass A:\n    @staticmethod\n    def f(x):\n        '''Doc\nat the margin\n        '''\n"
        "        def g():\n            return 1\n        return g\n\nif a:\n    async def h(): pass\n"
    )
    found = dict(stdlib_labels.functions_in(source))
    assert list(found) == ["A.f", "h"]
    assert found["A.f"].startswith("@staticmethod\ndef f(x):\n    '''Doc\nat the margin\n    '''\n    def g():\n")
    assert found["h"] == "async def h(): pass\n"
    for text in found.values():
        ast.parse(text)


def test_spans_of_tokens():
    text = 'def f(x):  # é\n    return x + 0x1F, \'a\' """b\nc"""\n'
    spans = stdlib_labels.token_spans(text)
    kinds = {kind: [text[start:end] for start, end, other in spans if other == kind] for kind in stdlib_labels.KINDS}
    assert kinds == {
        "keyword": ["def", "return"],
        "name": ["f", "x", "x"],
        "operator": ["(", ")", ":", "+", ","],
        "number": ["0x1F"],
        "string": ["'a'", '"""b\nc"""'],
        "comment": ["# é"],
    }


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A part of `stdlib_tokens`; the whole takes long to write."""
    some = stdlib_labels.functions()[::7]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib_labels, "functions", lambda: some)
        return sources.source("stdlib_tokens", "validation", data_dir=tmp_path_factory.mktemp("tokens"))


def test_kinds_of_tokens_by_character(tokens):
    source = tokens
    assert source.classes("spans") == stdlib_labels.KINDS
    assert len(source) > 30
    for example in source:
        assert stdlib.held_out(example["path"])
        spans = np.array([example["spans"][name] for name in ("start", "end", "label")]).T
        assert (spans[:, 0] < spans[:, 1]).all() and (spans[1:, 0] >= spans[:-1, 1]).all()
        text = example["text"]
        rest = list(text)
        for start, end, kind in spans:
            part, kind = text[start:end], stdlib_labels.KINDS[kind]
            rest[start:end] = " " * (end - start)
            assert kind not in ("name", "keyword") or part.isidentifier()
            assert kind != "comment" or part.startswith("#")
            assert kind != "number" or part[0].isdigit() or part[0] == "."
        assert not "".join(rest).replace("\\\n", "").strip()  # nothing but spaces has no kind


# ---- examples with all their fields ---------------------------------------------------------------------------------


def test_glue_by_its_tfds_name(read):
    source = read("tfds:zoo_glue", "validation")
    example = next(example for example in source if example["idx"] == 3)
    assert (example["sentence1"], example["sentence2"], example["label"]) == PAIRS[3]
    assert example["score"] == 0.75 and "text" not in example
    assert source.classes("label") == ("not_equivalent", "equivalent") and source.classes("tags") == ("a", "b", "c")
    assert source.classes("score") is None
    with pytest.raises(ValueError, match=r"has no feature 'lable': it has idx, label"):
        source.classes("lable")
    with pytest.raises(ValueError, match=r"example \d+ has no field 'text': it has .* sentence1, sentence2"):
        text_in(example, "text")
    with pytest.raises(KeyError):
        example["other"]
    assert pickle.loads(pickle.dumps(source))[0] == source[0]
    assert read("tfds:zoo_glue:sentence2")[0]["text"].startswith("Sentence")


def test_squad_by_its_tfds_name(read):
    for example in read("tfds:zoo_squad"):
        for text, start in zip(example["answers"]["text"], example["answers"]["answer_start"], strict=True):
            assert isinstance(text, str) and example["context"][start : start + len(text)] == text


# ---- rows -----------------------------------------------------------------------------------------------------------


def parts_of(tokenizer, row, segmented):
    """The text of a row's tokens, and of each of its segments."""
    ids = row["tokens_BT"][row["valid_BT"]]
    if not segmented:
        return [tokenizer.decode(ids)]
    segments = row["segments_BT"][row["valid_BT"]]
    return [tokenizer.decode(ids[segments == segment]) for segment in range(segments.max() + 1)]


def row_of(rows, number):
    return {name: values[number] for name, values in rows.items()}


def test_rows_of_pairs_give_back_their_texts(tokenizers, read):
    examples = sorted(read("tfds:zoo_glue"), key=lambda example: example["idx"])
    settings = {"texts": ("sentence1", "sentence2"), "labels": ("not_equivalent", "equivalent")}
    tokenizer = tokenizers["wordpiece"]
    rows = rows_of("sequence-classification", tokenizer, examples, 64, **settings)
    assert rows["targets_B"].tolist() == [label for _, _, label in PAIRS]
    without_spaces = lambda text: text.replace(" ", "")
    for number, (a, b, _) in enumerate(PAIRS):
        got = parts_of(tokenizer, row_of(rows, number), True)
        assert [without_spaces(text) for text in got] == [without_spaces(a), without_spaces(b)]
    rows = rows_of("sequence-classification", tokenizers["roberta"], examples, 64, **settings)
    assert parts_of(tokenizers["roberta"], row_of(rows, 2), False) == ["".join(PAIRS[2][:2])]
    assert not rows["segments_BT"].any()
    assert (rows["tokens_BT"][~rows["valid_BT"]] == tokenizers["roberta"].pad_id).all()


@kinds
@pytest.mark.parametrize("length", [6, 9, 14, 23])
def test_the_longer_text_gives_way(tokenizers, kind, length):
    tokenizer = tokenizers[kind]
    examples = [{"a": "the team led", "b": CONTEXT, "label": 0}, {"a": CONTEXT, "b": "machine", "label": 1}]
    rows = rows_of(
        "sequence-classification", tokenizer, examples, length, texts=("a", "b"), labels=("x", "y")
    )  # fmt: skip
    for number, example in enumerate(examples):
        full = tokenizer.encode(example["a"], example["b"], template=True)
        ids = rows["tokens_BT"][number]
        assert rows["valid_BT"][number].all()  # no place is wasted
        assert (full.texts < 0).sum() == np.isin(ids, full.ids[full.texts < 0]).sum()  # the frame stays
        sizes = [len(tokenizer.encode(example[name])) for name in ("a", "b")]
        room = length - (full.texts < 0).sum()
        short = min(min(sizes), room // 2 + (room % 2 and sizes[0] < sizes[1]))
        kept = [(full.texts == 0).sum(), (full.texts == 1).sum()]
        first = ids[1 : 1 + min(kept[0], room)]
        assert short == 0 or full.ids[1 : 1 + min(short, kept[0])].tolist() == first[: min(short, kept[0])].tolist()
    one = rows_of("sequence-classification", tokenizer, examples, length, texts=("b",), labels=("x", "y"))
    encoding = tokenizer.encode(CONTEXT, template=True)
    assert one["tokens_BT"][0].tolist() == [*encoding.ids[: length - 1], encoding.ids[-1]]


def test_other_problems(tokenizers, read):
    examples = sorted(read("tfds:zoo_glue"), key=lambda example: example["idx"])
    make = functools.partial(rows_of, "sequence-classification", tokenizers["wordpiece"], examples, 32)
    rows = make(texts=("sentence1",), label="score", problem="regression", labels=("score",))
    assert rows["targets_B"].dtype == np.float32 and rows["targets_B"].tolist() == [i / 4 for i in range(20)]
    rows = make(texts=("sentence1",), label="tags", problem="multi_label_classification", labels=("a", "b", "c"))
    assert rows["targets_BC"][:4].tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0]]
    by_name = [{"text": "the team", "label": name} for name in ("no", "yes")]
    rows = rows_of("sequence-classification", tokenizers["wordpiece"], by_name, 32, labels=("yes", "no"))
    assert rows["targets_B"].tolist() == [1, 0]


@kinds
@pytest.mark.parametrize("subwords", ["first", "all"])
def test_labels_of_tokens_give_back_the_spans(tokenizers, tokens, kind, subwords):
    """For all lengths of rows and tokenizers, the labels mark exactly the spans."""
    tokenizer = tokenizers[kind]
    examples = [tokens[i] for i in range(0, 60, 5)]
    for length in (16, 256):
        rows = rows_of(
            "token-classification", tokenizer, examples, length, subwords=subwords, labels=stdlib_labels.KINDS
        )  # fmt: skip
        tokens = rows["valid_BT"] & ~np.isin(rows["tokens_BT"], (tokenizer.cls_id, tokenizer.sep_id))
        assert not (rows["judged_BT"] & ~tokens).any() and not rows["targets_BT"][~rows["judged_BT"]].any()
        encodings = tokenizer.encode_batch([example["text"] for example in examples])
        assert rows["tokens_BT"][tokens].tolist() == [i for encoding in encodings for i in encoding.ids]
        judged, targets = rows["judged_BT"][tokens], rows["targets_BT"][tokens]
        at = 0
        for example, encoding in zip(examples, encodings):
            spans = list(zip(*(example["spans"][name] for name in ("start", "end", "label"))))
            expected = []
            for start, end in encoding.offsets:
                hits = [n for n, span in enumerate(spans) if span[0] < end and span[1] > start]
                expected.append(hits[0] if hits else -1)
            for place, number in enumerate(expected):
                bears = number >= 0 and (subwords == "all" or number not in expected[:place])
                assert judged[at + place] == bears
                assert not bears or targets[at + place] == spans[number][2]
            if kind == "wordpiece":  # its tokens never reach over two spans, so none is lost
                assert set(expected) - {-1} == set(range(len(spans)))
            at += len(encoding)


def test_words_and_their_labels(tokenizers, read):
    source = read("tfds:zoo_names")
    assert source.classes("ner") == ("O", "PER", "LOC")
    tokenizer = tokenizers["wordpiece"]
    settings = {"text": "tokens", "spans": "ner", "labels": source.classes("ner")}
    rows = rows_of("token-classification", tokenizer, source, 32, **settings)
    first = [tokenizer.encode(word).ids[0] for word in source[0]["tokens"]]
    assert rows["tokens_BT"][rows["judged_BT"]].tolist() == first
    assert rows["targets_BT"][rows["judged_BT"]].tolist() == [1, 0, 0, 2, 0]


@kinds
@pytest.mark.parametrize(("length", "overlap"), [(40, 8), (40, 0), (64, 20), (256, 64)])
def test_answers_give_back_their_texts(tokenizers, read, kind, length, overlap):
    tokenizer, source = tokenizers[kind], read("tfds:zoo_squad")
    for example in source:
        rows = rows_of("question-answering", tokenizer, [example], length, overlap=overlap)
        context = tokenizer.encode(example["context"])
        cut = [
            row["tokens_BT"][row["allowed_BT"]][1:].tolist()
            for row in (row_of(rows, number) for number in range(len(rows["valid_BT"])))
        ]
        whole = cut[0] + [i for piece in cut[1:] for i in piece[overlap:]]
        assert whole == context.ids.tolist()  # the windows hold the context, and meet as they should
        question = tokenizer.encode(example["question"]).ids.tolist()
        texts = [text.replace(" ", "") for text in example["answers"]["text"]]
        found = 0
        for number in range(len(cut)):
            one = row_of(rows, number)
            assert one["tokens_BT"][1 : 1 + len(question)].tolist() == question
            for start, end, real in zip(one["starts_BA"], one["ends_BA"], one["answers_BA"]):
                if not real:
                    assert start == end == 0
                elif start or end:
                    found += 1
                    assert one["allowed_BT"][start] and one["allowed_BT"][end]
                    assert tokenizer.decode(one["tokens_BT"][start : end + 1]).replace(" ", "") in texts
                else:
                    assert one["answers_BA"].sum() == 1
        assert found >= 2  # each of the two answers, in one window at least


def test_a_long_question_loses_its_end(tokenizers):
    example = {"question": "team " * 50, "context": CONTEXT, "answers": {"text": ["Ada"], "answer_start": [32]}}
    assert CONTEXT[32:35] == "Ada"
    rows = rows_of("question-answering", tokenizers["wordpiece"], [example], 96, question_length=5, overlap=8)
    team = tokenizers["wordpiece"].encode("team").ids
    assert (rows["tokens_BT"][0] == team[0]).sum() == 5 // len(team) + 1  # and the one in the context
    assert rows["answers_BA"][0].sum() == 1 and rows["starts_BA"][0, 0] > 5


class Listed(sources.Source):
    def __init__(self, documents):
        self.documents = documents

    def __len__(self):
        return len(self.documents)

    def read(self, index):
        return self.documents[index]


def test_texts_that_are_cut_are_counted(tokenizers, monkeypatch):
    """As many as lose tokens in rows; of many documents, an estimate."""

    def line(name, splits, longest=None, length=8, **settings):
        make_rows = OBJECTIVES[name](**settings).rows(tokenizers["wordpiece"], Data(length=length))
        return rows.cut_line(make_rows, {split: Listed(documents) for split, documents in splits.items()}, longest)

    team = [
        {"text": "team " * n, "question": "team " * n, "other": "a", "context": "team", "label": 0}
        for n in range(1, 11)
    ]
    size = len(tokenizers["wordpiece"].encode("team").ids)
    cut = sum(n * size + 2 > 8 for n in range(1, 11))
    splits, classify = {"train": team, "validation": team[:1]}, "sequence-classification"
    expected = f"too long, their end is cut off: {cut} of 10 in train, 0 of 1 in validation (data.length is 8"
    assert line(classify, splits) == f"{expected})"
    assert line(classify, splits, 512) == f"{expected}, and the model reads rows of up to 512)"
    pairs = sum(n * size + 1 + 3 > 8 for n in range(1, 11))
    assert f" {pairs} of 10 in train" in line(classify, splits, texts=("text", "other"))
    assert line(classify, splits, length=10 * size + 2) == "" == line("token-classification", splits)
    answers = line("question-answering", splits, question_length=3, overlap=1)
    assert f"{sum(n * size > 3 for n in range(1, 11))} of 10 in train" in answers and "question_length is 3" in answers
    monkeypatch.setattr(rows, "SAMPLE", 5)
    assert "about 1,000 of 1,000 in train" in line(classify, {"train": team[-1:] * 1000})


@pytest.mark.parametrize(
    ("name", "settings", "example", "message"),
    [
        ("sequence-classification", {}, {"txt": "a", "label": 0}, "an example has no field 'text': it has txt, label"),
        ("sequence-classification", {}, {"text": "a", "label": 2}, "label 2 is none of the 2 classes no, yes"),
        ("sequence-classification", {}, {"text": "a", "label": -1}, "that split has no labels"),
        ("sequence-classification", {}, {"text": "a", "label": "maybe"}, "label 'maybe' is none of"),
        (
            "token-classification",
            {},
            {"text": "a", "spans": {"start": [0], "end": [9], "label": [0]}},
            "outside of its",
        ),
        (
            "token-classification",
            {},
            {"text": "a", "spans": {"start": [0], "end": [1], "label": []}},
            "there are 0 lab",
        ),
        (
            "question-answering",
            {"overlap": 4},
            {"question": "a", "context": "b c", "answers": {"text": ["c"], "answer_start": [0]}},
            "'c' does not stand at character 0",
        ),
        ("question-answering", {"overlap": 4}, {"question": "a", "context": "b", "answers": {}}, "no field 'text'"),
    ],
)
def test_examples_that_contradict_themselves(tokenizers, name, settings, example, message):
    settings |= {} if name == "question-answering" else {"labels": ("no", "yes")}
    with pytest.raises(ValueError, match=message):
        rows_of(name, tokenizers["wordpiece"], [example], 32, **settings)


def test_rows_with_no_room(tokenizers):
    """They are refused before there are any rows; that of a question, once its tokens are counted."""
    wordpiece = tokenizers["wordpiece"]
    for name, length, settings, message in (
        ("sequence-classification", 2, {"labels": ("x",)}, "no room for text besides its frame"),
        ("sequence-classification", 3, {"labels": ("x",), "texts": ("a", "b")}, "no room for text besides its frame"),
        ("token-classification", 2, {"labels": ("x",)}, "no room for text besides its frame"),
        ("question-answering", 64, {"overlap": 60}, "data.length=64 .*: 3 are .* at least 65, or"),
    ):
        objective = OBJECTIVES[name](**settings)
        with pytest.raises(ValueError, match=message):
            objective.rows(wordpiece, Data(length=length))
        objective.rows(wordpiece, Data(length=length + 1))
    make_rows = OBJECTIVES["question-answering"](overlap=60, question_length=8).rows(wordpiece, Data(length=68))
    short, long = ([{"question": question}] for question in ("a", "def read(path): return 1"))
    cut = lambda questions: rows.cut_line(make_rows, {"train": questions}, None)
    assert cut(short) == ""
    with pytest.raises(ValueError, match="of a question of 8 tokens: .* to at least 72"):
        cut(long)


def test_batches_are_as_the_objectives_say(tokenizers, read):
    """Shapes and dtypes; the same rows with a worker; a saved position with other rows is refused."""
    for name, spec, settings in (
        ("sequence-classification", "tfds:zoo_glue", {"texts": ("sentence1", "sentence2")}),
        (
            "sequence-classification",
            "tfds:zoo_glue",
            {"texts": ("sentence1",), "label": "score", "problem": "regression"},
        ),
        (
            *("sequence-classification", "tfds:zoo_glue"),
            {"texts": ("sentence1",), "label": "tags", "problem": "multi_label_classification"},
        ),
        ("token-classification", "tfds:zoo_names", {"text": "tokens", "spans": "ner"}),
        ("question-answering", "tfds:zoo_squad", {"overlap": 4}),
    ):
        source = read(spec)
        objective, _ = OBJECTIVES[name](**settings).for_data(None, source.classes)
        make = objective.rows(tokenizers["wordpiece"], Data(length=40))
        batches = Pipeline(source, make, batch_size=16, epochs=1)
        state = batches.get_state()
        for batch in batches:
            shapes = objective.shapes(16, 40)
            assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {
                n: (x.shape, x.dtype) for n, x in shapes.items()
            }
        other = Pipeline(source, objective.rows(tokenizers["roberta"], Data(length=40)), batch_size=16, epochs=1)
        with pytest.raises(ValueError, match="belongs to other rows"):
            other.set_state(state)
    other = dataclasses.replace(objective, overlap=5).rows(tokenizers["wordpiece"], Data(length=40))
    with pytest.raises(ValueError, match="overlap: 4 then, 5 now"):
        Pipeline(source, other, batch_size=16, epochs=1).set_state(state)
    here, elsewhere = (Pipeline(source, make, batch_size=16, epochs=1, workers=workers) for workers in (0, 1))
    for one, other in zip(here, elsewhere, strict=True):
        for array in one:
            np.testing.assert_array_equal(one[array], other[array])
    elsewhere.close()


def test_spans_find_tokens_of_any_kind(tokenizers):
    text = "'):  x"
    encoding = tokenizers["roberta"].encode(text)
    owners = labelled.span_of_tokens(len(text), encoding, np.array([0, 1, 2, 5]), np.array([1, 2, 3, 6]))
    for owner, (start, end) in zip(owners, encoding.offsets):
        inside = [n for n, place in enumerate((0, 1, 2, 5)) if start <= place < end]
        assert owner == (inside[0] if inside else -1)
