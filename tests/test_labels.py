"""Labels as people have them: names found in the data, numbers that are names, and errors before the first step."""

import dataclasses
import functools
import json
import re

import families
import numpy as np
import pytest
from test_classification import Constant, texts
from test_sources import write_table

import transformer_zoo as zoo
from transformer_zoo import commands, plots, registry, resolve, runs
from transformer_zoo.config import Data, Run, Training, Vocabulary
from transformer_zoo.data import labels, sources
from transformer_zoo.data.labelled import spans_in
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.evaluation.loss import evaluate
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import (
    QuestionAnswering,
    Seq2SeqLM,
    SequenceClassification,
    TokenClassification,
    metrics,
)

Config = registry.family("bert").Config
STARS = ("1", "2", "3", "4", "5")

# ---- one label ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "names", "index"),
    [
        (3, STARS, 2), ("3", STARS, 2), (3.0, STARS, 2), ("3.0", STARS, 2), (np.int64(3), STARS, 2),
        (3, ("10", "3"), 1), ("03", ("03", "3"), 0), (3, ("03", "3"), 1), (3, ("3.0", "4.0"), 0),
        ("0.5", ("0.5", "1"), 0),
        ("yes", ("no", "yes"), 1), (1, ("no", "yes"), 1), ("1", ("no", "yes"), 1), (1.0, ("no", "yes"), 1),
        (True, ("false", "true"), 1), (True, ("True", "False"), 0), ("true", ("false", "true"), 1),
        (3, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), 3), (b"yes", ("no", "yes"), 1),
    ],
)  # fmt: skip
def test_a_number_among_the_names_means_that_name(value, names, index):
    assert labels.class_of(value, names, "stars") == index


@pytest.mark.parametrize(
    ("value", "names", "message"),
    [
        (0, STARS, "stars 0 is none of the 5 classes 1, 2, 3, 4, 5"), ("6", STARS, "'6' is none of"),
        (2, ("no", "yes"), "2 is none of"), (-1, ("no", "yes"), "that split has no labels"),
        ("Yes", ("no", "yes"), "Did you mean 'yes'?"), (True, ("no", "yes"), "True is none of"),
        (None, STARS, "stars is null: leave"), ("", STARS, "stars is empty"), (" ", STARS, "is empty"),
        (float("nan"), STARS, "is NaN"),
        (2.5, STARS, "2.5 is a number, and no class: set objective.problem=regression"),
        ("2.5", ("no", "yes"), "'2.5' is a number, and no class"), (["no"], ("no", "yes"), "label of one class"),
    ],
)  # fmt: skip
def test_what_is_no_label(value, names, message):
    with pytest.raises(ValueError, match="^stars.*") as error:
        labels.class_of(value, names, "stars")
    assert message in str(error.value)


def test_several_labels_and_numbers():
    assert labels.labels_in("a| b |", "|", "f") == ["a", "b"] and labels.labels_in("", "|", "f") == []
    assert labels.labels_in([], None, "f") == [] and labels.labels_in(np.array([0, 2]), None, "f") == [0, 2]
    for value, message in (
        ("a|b", r"'a\|b', where a list .* objective.separator"), (None, "is None, where a list"),
        (3, "is 3, where a list"),
        ([0, 1, 0], "with a label twice: list the classes that apply, and not a 0 or 1 for each"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            labels.labels_in(value, None, "f")
    assert labels.number_of(" 2.5 ", "f") == 2.5 and labels.number_of("1e-3", "f") == 1e-3
    for value in ("n/a", "", None, "nan", float("inf"), True, [1.0], "1_000"):
        with pytest.raises(ValueError, match=r"^f is .*, where objective.problem=regression needs a finite number"):
            labels.number_of(value, "f")


def test_spans_of_texts_and_words():
    lists = {"start": [0, 4], "end": [3, 5], "label": ["PER", "LOC"]}
    objects = [{"start": 0, "end": 3, "label": "PER"}, {"start": 4, "end": 5, "label": "LOC"}]
    for text, spans in (("Ada X", lists), ("Ada X", objects), (["Ada", "X"], ["PER", "LOC"])):
        whole, starts, ends, names = spans_in(text, spans, "f")
        assert (whole, starts.tolist(), ends.tolist(), names) == ("Ada X", [0, 4], [3, 5], ["PER", "LOC"])
    for text, spans, message in (
        (["a"], "O", "f is 'O', where a list of labels is expected"), (["a"], None, "f is None, where a list"),
        ("a", None, "f has no field 'start': None"), ("a", [{"start": 0}], "f has no field 'end': it has start"),
        (3, [], "f are the labels of 3, which is no text"), (["a"], ["O", "O"], "there are 2 labels"),
        ("a", {"start": [0], "end": [2], "label": ["O"]}, "a span lies outside of its text of 1 characters"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            spans_in(text, spans, "f")


# ---- all labels of a split ------------------------------------------------------------------------------------------


def named(values, **settings):
    """The names that are found in a training split with these labels."""
    documents = {"train": Listed(values)}
    return SequenceClassification(**settings).with_labels(Config(), documents)[0].labels


class Listed(sources.Source):
    """Documents with these labels."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def read(self, index):
        value = self.values[index]
        return {"text": "some text", "label": value, "words": ["word"] * len(value) if isinstance(value, list) else []}


def test_names_are_found_in_order():
    assert named(["b", "a", "b", "C"]) == ("C", "a", "b")
    assert named([10, 9, 2, 9]) == named(["10", "9", "2", "9"]) == named([10.0, 9.0, 2, 9]) == ("2", "9", "10")
    assert named(["10", "9", "x", "9"]) == ("10", "9", "x")
    assert named([True, False, True]) == ("false", "true")
    several = {"problem": "multi_label_classification"}
    assert named([["b"], [], ["a", "b"]], **several) == named(["b", "", "a;b"], separator=";", **several) == ("a", "b")
    words = TokenClassification(text="words", spans="label").with_labels(
        Config(), {"train": Listed([["O", "PER"], [], ["O"]])}
    )
    assert words[0].labels == ("O", "PER")
    assert words[1] == "label: 2 classes, found in the data (train): O 2, PER 1"


def test_numbers_of_a_data_set_with_names_are_indices(monkeypatch):
    """As those of TFDS, where the names may be numbers themselves: the first of 1 and 2 is 0."""
    monkeypatch.setattr(Listed, "classes", lambda self, field: ("1", "2"))
    documents = Listed([0, 1, 1, "2"])
    objective, line = SequenceClassification().with_labels(Config(), {"train": documents})
    objective, _ = objective.for_data(Config(), documents.classes)
    assert objective.labels == ("1", "2") and "those of the data set (train): 1 1, 2 3" in line
    maker = objective.maker(Data(length=8))
    assert maker.by_index and labels.class_of(1, objective.labels, "label", maker.by_index) == 1
    assert SequenceClassification(labels=("1", "2")).maker(Data(length=8)).by_index is None
    with pytest.raises(ValueError, match="document 1: label 2 is none of the 2 classes"):
        SequenceClassification().with_labels(Config(), {"train": Listed([0, 2])})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([f"id {i}" for i in range(11)], "no label twice among 11 in the split train, such as id 0, id 1, id 10"),
        ([i % 1001 for i in range(3000)], "more than 1,000 distinct values .*problem=regression; if they are, name"),
        (["x"] * 3, "the 3 examples of the split train have only the label 'x' under 'label': there is nothing"),
        ([0.5, 1.0], "^split train, document 0: label 0.5 is a number, and no class"),
        (["a", None], "^split train, document 1: label is null"),
    ],
)  # fmt: skip
def test_what_are_no_classes(values, message):
    with pytest.raises(ValueError, match=message):
        named(values)


def test_the_line_about_the_classes():
    counts = {f"c{i}": i for i in range(30)}
    line = labels.line([counts, counts], ["train", "validation"], "label", "given")
    assert line.startswith("label: 30 classes, given (train / validation): c29 29 / 29, c28 28 / 28")
    assert line.endswith(", and 10 more; no example in train: c0")
    line = labels.line([{"Good": 1, "bad": 2, "good ": 3}], ["train"], "label", "given")
    assert line.endswith("good  3; these differ in case or spaces only: 'Good', 'good '")


def test_slow_reading_is_announced(monkeypatch):
    ticks = iter(range(0, 10_000, 2))
    monkeypatch.setattr(labels.time, "monotonic", lambda: next(ticks))
    lines = []
    assert len(list(labels.each(Listed(["a"] * 9000), "train", len, (), lines.append))) == 9000
    assert lines == ["reading the 9,000 examples of train: about 18 s"]


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["a good film and a bad film"] * 3, 100, kind="wordpiece").save(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """A run on a table of these labels, and on one to evaluate on."""

    def make(values, init_from=None, held_out=None, **settings):
        for split, rows in (("train", values), ("held_out", held_out or values)):
            lines = ["text,label\n", *(f"a {value} film,{value}\n" for value in rows)]
            (tmp_path / f"{split}.csv").write_text("".join(lines))
        train, held_out = (f"csv:{tmp_path}/{split}.csv" for split in ("train", "held_out"))
        return Run(
            model=families.small("bert", num_layers=1, vocab_size=120, max_length=16), init_from=init_from,
            objective=SequenceClassification(**settings), directory=str(tmp_path / "run"),
            data=Data(source=train, train_split="all", validation_source=held_out, validation_split="all", length=16),
            vocabulary=Vocabulary(path=str(tokenizer)), training=Training(steps=2, batch_size=8),
        )  # fmt: skip

    return make


def test_a_run_finds_its_names_and_keeps_them(recipe, tmp_path, monkeypatch):
    run = recipe(["1", "3", "3", "2"] * 3, class_weights="balanced")
    lines = []
    same = rf"the documents to evaluate on \({re.escape(run.data.validation_source)}\) are those to train on, and m"
    with pytest.warns(UserWarning, match=same):
        got = resolve.resolve(run, lines.append)
    assert lines == []
    assert got.run.objective.labels == got.run.model.labels == ("1", "2", "3")
    assert got.run.objective.class_weights == pytest.approx((12 / 9, 12 / 9, 12 / 18))
    assert got.labels == "label: 3 classes, found in the data (train / validation): 1 3 / 3, 2 3 / 3, 3 6 / 6"
    rows = got.make_rows([{"text": "a", "label": value} for value in (3, "3", "1")], np.random.default_rng(0))
    assert rows["targets_B"].tolist() == [2, 2, 0]
    # Once it has begun, the data are not asked again.
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    runs.write(got.run)
    monkeypatch.setattr(resolve, "steps", lambda folder: [1])
    monkeypatch.setattr(labels, "survey", None)
    again = resolve.resolve(run)
    assert again.run == got.run and again.labels == "" and again.notes == []


@pytest.mark.parametrize(("split", "file"), [("train", "train"), ("validation", "held_out")])
def test_a_wrong_label_is_an_error_before_anything_is_computed(recipe, tmp_path, split, file):
    """It names split, file and line."""
    for label, settings, message in (
        ("", {}, "label is empty: leave examples without a label out"),
        ("fine", {"labels": ("good", "bad")}, "label 'fine' is none of the 2 classes good, bad"),
        ("n/a", {"problem": "regression"}, "label is 'n/a', where objective.problem=regression needs a finite number"),
    ):
        run = recipe(["1", "2"] if "problem" in settings else ["bad", "good"], **settings)
        with (tmp_path / f"{file}.csv").open("a") as table:
            table.write(f'"two\nlines",{label}\n')
        with pytest.raises(ValueError, match=rf"^split {split}, .*/{file}.csv, line 4: {message}"):
            resolve.resolve(run)


def test_answers_stand_where_they_should():
    good = {"question": "c", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}
    objective = QuestionAnswering()
    assert objective.with_labels(Config(), {"train": [good]}) == (objective, "")
    for answers, message in (
        ({"text": ["b"], "answer_start": [1]}, "^split train, document 1: answers: 'b' does not stand at character 1"),
        ({"text": ["b"], "answer_start": []}, "1 answers, and 0 places where they start"),
        (None, "answers has no field 'text': None"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.with_labels(Config(), {"train": [good, good | {"answers": answers}]})


FORMS = {"csv": ("",), "tsv": (" ",), "jsonl": ("", None, 3.0), "parquet": ("", None), "arrow": (" \u00a0", None)}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FORMS.items() for value in values])
def test_examples_without_a_text_are_an_error_in_all_forms_of_files(tmp_path, kind, value):
    """In both splits, of every objective with labels or targets. A published data set is taken as it is."""
    row = {"text": "a", "label": "1"}
    if kind not in ("csv", "tsv"):
        row |= {"spans": [{"start": 0, "end": 1, "label": "x"}], "answers": {"text": ["1"], "answer_start": [0]}}
    for name, rows in (("good", [row, row]), ("bad", [row | {"text": value}, row])):
        write_table(tmp_path / f"{name}.{kind}", rows)
    good, bad = (sources.source(f"{kind}:{tmp_path}/{name}.{kind}", "all") for name in ("good", "bad"))
    place = {"csv": "line 2", "tsv": "line 2", "jsonl": "line 1"}.get(kind, "row 0")
    message = {"": "text is empty: leave ", None: "text is null: leave ", 3.0: "text is 3.0, where a text is expected"}
    message = rf"^split validation, .*bad.{kind}, {place}: {message.get(value, message[''])}"
    objectives = [
        SequenceClassification(labels=("1",)), SequenceClassification(texts=("label", "text"), problem="regression"),
        Seq2SeqLM(source="text", target="label"), Seq2SeqLM(source="label", target="text"),
    ]  # fmt: skip
    if "answers" in row:
        objectives += [QuestionAnswering(question="text", context="label"), TokenClassification(labels=("x",))]
    for objective in objectives:
        objective.with_labels(Config(), {"train": good, "validation": good})
        with pytest.raises(ValueError, match=message):
            objective.with_labels(Config(), {"train": good, "validation": bad})
    bad.as_published = True
    objectives[0].with_labels(Config(), {"train": good, "validation": bad})


def test_numbers_are_all_read(recipe):
    run, _, line = settled(recipe(["0.5", "2", "5"], problem="regression"))
    assert line.startswith("label: numbers, 3 in train, from 0.5 to 5, mean 2.5; ")
    assert run.model.labels == ("label",) and run.model.problem == "regression"


def test_numbers_far_from_0_get_advice():
    objective, head = SequenceClassification(problem="regression"), Config(labels=("label",))
    line = lambda numbers, head=None: objective.with_labels(
        Config(), {"train": [{"text": "a", "label": number} for number in numbers]}, head
    )[1]
    assert "train on (label - 104) / 2 instead" in line([102, 106])
    for numbers, begun in (([1, 5], None), ([7, 7], None), ([102, 106], head)):  # near, all alike, trained already
        assert "\n" not in line(numbers, begun)


@pytest.mark.parametrize(
    "objective",
    [
        SequenceClassification(),
        SequenceClassification(texts=("question", "text"), label="several", problem="multi_label_classification"),
        SequenceClassification(label="number", problem="regression"),
        TokenClassification(),
        QuestionAnswering(context="text", overlap=2, question_length=4),
    ],
    ids=["class", "several", "number", "spans", "answers"],
)
def test_what_is_evaluated_by_default(tmp_path, tokenizer, monkeypatch, objective):
    """All of a local file; an error about a label has the split's name."""
    row = {
        "text": "a good film", "question": "a film", "label": "good", "several": ["good", "bad"], "number": 1.5,
        "spans": [{"start": 2, "end": 6, "label": "good"}], "answers": {"text": ["good"], "answer_start": [2]},
    }  # fmt: skip
    wrong = {"label": "ugly", "several": ["ugly"], "number": "ugly", "spans": [], "answers": None}
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    (tmp_path / "b.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | wrong | {'spans': [{}]})}\n")
    names = {} if objective.name == "question-answering" else {"labels": ("bad", "good")}
    if getattr(objective, "problem", None) == "regression":
        names = {"labels": ("number",), "problem": "regression"}
    config = families.small("bert", num_layers=1, vocab_size=120, max_length=16, **names)
    m = zoo.Bundle(objective.model(config, Compute()), {}, config, Tokenizer.load(tokenizer))
    monkeypatch.setattr(
        "transformer_zoo.evaluation.loss.evaluate", lambda model, objective, params, batches: [*batches]
    )
    (batch,) = zoo.evaluate(m, source=f"jsonl:{tmp_path}/a.jsonl", objective=objective)
    assert batch["valid_BT"].any(axis=1).sum() == 3
    for split in (None, "all"):
        with pytest.raises(ValueError, match="^split all, .*b.jsonl, line 2: "):
            zoo.evaluate(m, source=f"jsonl:{tmp_path}/b.jsonl", split=split, objective=objective)


# ---- the head of a classifier to begin with -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tokenizer):
    """A published classifier, and its scores by name."""
    config = families.small("bert", num_layers=1, vocab_size=120, max_length=16, labels=("a", "b", "c"))
    of_three = zoo.from_config("bert", config, task="sequence-classification", seed=3)

    def make(names, **settings):
        folder = tmp_path_factory.mktemp("classifier")
        config = dataclasses.replace(of_three.config, labels=names, **settings)
        scores = {name: np.asarray(x)[..., : len(names)] for name, x in of_three.params["head"]["scores"].items()}
        params = {**of_three.params, "head": {**of_three.params["head"], "scores": scores}}
        m = of_three.replace(model=of_three.model.clone(config=config), params=params, config=config)
        zoo.save_pretrained(folder, m.replace(tokenizer=Tokenizer.load(tokenizer)))
        return str(folder), {name: scores["kernel"][:, i] for i, name in enumerate(names)}

    return make


def check_head(run, kept, labels, fresh=()):
    """Resolves a run that begins with a classifier: names in this order, each with its scores."""
    run, bundle, line = settled(run)
    assert run.objective.labels == run.model.labels == bundle.config.labels == labels
    kernel = np.asarray(bundle.params["head"]["scores"]["kernel"])
    for index, name in enumerate(labels):
        assert np.array_equal(kernel[:, index], kept[name]) != bool(fresh)
    assert bundle.fresh == fresh
    return run.objective, line


def settled(run):
    """The run with what the data add, before its program is made."""
    run, _, bundle, _, line = resolve._settle(run, functools.partial(resolve.source_of, run.data))
    return run, bundle, line


def test_a_classifier_keeps_its_head(recipe, classifier):
    folder, kept = classifier(("neutral", "good", "bad"), problem="single_label_classification")
    _, line = check_head(recipe(["bad", "good"] * 3, folder), kept, ("neutral", "good", "bad"))
    assert "those of the weights to begin with" in line and "no example in train: neutral" in line
    check_head(recipe(["0", "1"] * 3, folder), kept, ("neutral", "good", "bad"))
    check_head(recipe(["bad", "good"], folder, labels=("bad", "good", "neutral")), kept, ("bad", "good", "neutral"))
    fresh = ("head/scores/bias", "head/scores/kernel")
    with pytest.warns(UserWarning, match="fresh, to be trained for .*; its labels are neutral, good, bad"):
        check_head(recipe(["bad", "fine"] * 3, folder), kept | {"fine": kept["good"]}, ("bad", "fine"), fresh)
    unnamed, kept = classifier(("LABEL_0", "LABEL_1", "LABEL_2"))
    check_head(recipe(["0", "2"] * 3, unnamed), kept, ("LABEL_0", "LABEL_1", "LABEL_2"))
    with pytest.warns(UserWarning, match="its labels are LABEL_0"):  # stars from 1 are no indices
        check_head(recipe(["1", "2"] * 3, unnamed), {"1": 0, "2": 0}, ("1", "2"), fresh)
    number, kept = classifier(("similarity",), problem="regression")
    objective, _ = check_head(recipe(["0.5", "2"], number), kept, ("similarity",))
    assert objective.problem == "regression"


# ---- losses ---------------------------------------------------------------------------------------------------------

LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, -1.0], [0.3, 0.2, 0.1]], np.float32)
TARGETS = np.array([0, 2, 1, 2], np.int32)
# torch.nn.functional.cross_entropy(LOGITS, TARGETS, weight=(0.5, 2.0, 3.0), label_smoothing=...)
LOSSES = {
    (None, 0.0): 1.62253988, (None, 0.1): 1.63253987,
    ((0.5, 2.0, 3.0), 0.0): 2.05779433, ((0.5, 2.0, 3.0), 0.1): 2.02219487,
}  # fmt: skip


@pytest.mark.parametrize(("weights", "smoothing"), LOSSES)
def test_weights_and_smoothing_are_torchs(weights, smoothing):
    objective = SequenceClassification(labels=("a", "b", "c"), class_weights=weights, label_smoothing=smoothing)
    rows = texts(6, 4) | {"targets_B": np.append(TARGETS, [0, 0]).astype(np.int32)}
    logits = np.concatenate([LOGITS, np.ones((2, 3), np.float32)])
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    w = np.array(weights or (1, 1, 1))
    target = (1 - smoothing) * np.eye(3)[TARGETS] + smoothing / 3
    by_hand = -(target * w * log_p).sum() / w[TARGETS].sum()

    def loss(logits, rows, counts):
        return objective.loss(objective.sums(Constant(), logits, rows), counts)

    counts = objective.counts(rows)
    assert float(loss(logits, rows, counts)) == pytest.approx(by_hand, rel=1e-5)
    assert by_hand == pytest.approx(LOSSES[weights, smoothing], rel=1e-5)
    # Parts of the batch, each divided by the counts of all of it, as accumulation and sharding compute them.
    halves = [{name: x[part] for name, x in rows.items()} for part in (slice(0, 3), slice(3, 6))]
    parts = [loss(logits[part], half, counts) for half, part in zip(halves, (slice(0, 3), slice(3, 6)))]
    assert float(sum(parts)) == pytest.approx(by_hand, rel=1e-5)
    same = TokenClassification(labels=("a", "b", "c"), class_weights=weights, label_smoothing=smoothing)
    rows = texts(1, 1, 4) | {"targets_BT": TARGETS[None], "judged_BT": np.ones((1, 4), bool)}
    tokens = same.loss(same.sums(Constant(), LOGITS[None], rows), same.counts(rows))
    assert float(tokens) == pytest.approx(by_hand, rel=1e-5)


def test_weights_that_are_none():
    for settings, message in (
        ({"class_weights": (1.0, -1.0)}, "finite and at least 0"), ({"class_weights": (0.0, 0.0)}, "one of them more"),
        ({"label_smoothing": 1.0}, "at least 0 and less than 1"), ({"separator": ""}, "separator is empty"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            SequenceClassification(**settings)
    nothing = lambda field: None
    with pytest.raises(ValueError, match="has 2 numbers, and there are 3 classes: .* a, b, c, in this order"):
        SequenceClassification(labels=("a", "b", "c"), class_weights=(1.0, 2.0)).for_data(Config(), nothing)
    with pytest.raises(ValueError, match="problem is regression, which has no class_weights and no label_smoothing"):
        SequenceClassification(problem="regression", label_smoothing=0.1).for_data(Config(), nothing)
    with pytest.raises(ValueError, match="is balanced, and the split train has no example of c: give a number"):
        named(["a", "b"], labels=("a", "b", "c"), class_weights="balanced")


# ---- measures of each class -----------------------------------------------------------------------------------------


def test_measures_of_each_class():
    confusion_CC = np.array([[4.0, 1, 0], [2, 3, 0], [0, 0, 0]])
    by_class = metrics.ByClass.of(("a", "b", "c"), confusion_CC)
    record = by_class.record()
    assert record["classes"]["a"] == pytest.approx({"precision": 4 / 6, "recall": 4 / 5, "f1": 8 / 11, "support": 5})
    assert record["classes"]["c"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert json.loads(json.dumps(record))["confusion"] == [[4, 1, 0], [2, 3, 0], [0, 0, 0]]


def test_the_report_has_them_of_the_whole_split():
    objective = SequenceClassification(labels=("a", "b", "c"))
    batches = [texts(4, 4) | {"targets_B": TARGETS}, texts(4, 2) | {"targets_B": TARGETS}]
    report = evaluate(Constant(), objective, LOGITS, batches)
    assert report.by_class.confusion_CC.tolist() == [[2, 0, 0], [1, 0, 0], [1, 2, 0]]
    assert report["examples"] == 6 and all(isinstance(value, float | int) for value in report.values())
    several = SequenceClassification(labels=("a", "b", "c"), problem="multi_label_classification")
    batch = texts(4, 4) | {"targets_BC": np.eye(3, dtype=np.float32)[TARGETS]}
    found = evaluate(Constant(), several, LOGITS, [batch]).by_class
    assert found.confusion_CC is None and found.measures()["a"]["support"] == 1 and "confusion" not in found.record()
    weighted = dataclasses.replace(objective, class_weights=(0.5, 1.0, 1.0))
    assert evaluate(Constant(), weighted, LOGITS, batches)["weight"] == 5.0


def test_a_confusion_matrix_is_drawn(tmp_path):
    names = ("plain", "$5", "a name that is longer than thirty letters")
    by_class = metrics.ByClass.of(names, np.diag([3.0, 2, 1]))
    assert plots.confusion(by_class, tmp_path / "small.png", "cost: $")
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")
    many = metrics.ByClass.of(tuple(map(str, range(201))), np.eye(201))
    assert not plots.confusion(many, tmp_path / "many.png", "many") and not (tmp_path / "many.png").exists()


def test_precision_and_recall_of_each_class_are_drawn(tmp_path):
    counts = (np.array([3.0, 0]), np.array([4.0, 0]), np.array([6.0, 0]))
    several = metrics.ByClass(("$5", "a name that is longer than thirty letters"), *counts)
    assert plots.picture_of(several) == "classes.png"
    assert plots.classes(several, tmp_path / "classes.png", "cost: $")
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")
    matrix = metrics.ByClass.of(("a", "b"), np.eye(2))
    assert plots.picture_of(matrix) == "confusion.png"
    many = metrics.ByClass(tuple(map(str, range(201))), *np.ones((3, 201)))
    assert not plots.classes(many, tmp_path / "many.png", "many") and not (tmp_path / "many.png").exists()


def test_few_of_many_classes_are_printed():
    many = metrics.ByClass.of(tuple(f"c{i}" for i in range(40)), np.diag(np.arange(40.0)))
    table = commands._class_table(many)
    assert table.row_count == 30 and table.title == "the 30 most frequent classes"
