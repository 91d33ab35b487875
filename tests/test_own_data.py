"""Files of one's own, from the settings of a run to rows."""

import dataclasses
import json

import numpy as np
import pytest

from transformer_zoo import commands, runs
from transformer_zoo.config import Data, Run, Vocabulary
from transformer_zoo.data import sources, tokenizers
from transformer_zoo.data.documents import PIECE, Record
from transformer_zoo.data.pipeline import Pipeline
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.models import bert, gpt2
from transformer_zoo.objectives import (
    CausalLM,
    QuestionAnswering,
    Seq2SeqLM,
    SequenceClassification,
    TokenClassification,
)
from transformer_zoo.resolve import _share_without_use, resolve, source_of


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Forty reviews, of two columns that no setting names by default."""
    file = tmp_path_factory.mktemp("reviews") / "reviews [v1].csv"
    file.write_text("review,stars\n" + "".join(f'"number {i},\nof some",{i % 5}\n' for i in range(40)))
    return file


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A text file as long as a few pieces."""
    file = tmp_path_factory.mktemp("long") / "long.txt"
    file.write_text(
        "".join(f"{i}. Ein langer Text,\n  über {i * 7919 % 997} Zeilen;  doppelt\n\n" for i in range(6000))
    )
    return file


@pytest.fixture(scope="module")
def tokenizer(long):
    return Tokenizer.train([long.read_text()[:9000]], 400)


def test_an_objective_says_what_it_reads(tmp_path, reviews):
    settings = {"data": Data(source=f"csv:{reviews}"), "directory": str(tmp_path / "run")}
    message = (
        r"sequence-classification reads the field 'text', which is objective.texts: .*v1\].csv, line \d+ has no field"
    )
    with pytest.raises(ValueError, match=f"{message} 'text': it has review, stars; the field that is the text"):
        resolve(Run(model=bert.Config(), objective=SequenceClassification(), **settings))
    with pytest.raises(ValueError, match="causal-lm reads the field 'text': .* line .* it has review, stars"):
        resolve(Run(model=gpt2.Config(), objective=CausalLM(), **settings))
    SequenceClassification(texts=("review",), label="stars").check_documents(source_of(settings["data"], "train"))
    assert not (tmp_path / "run").exists()


def test_texts_for_a_tokenizer_are_in_the_fields_that_are_read():
    document = {"a": "A", "b": {"en": "B", "words": ["C", "D"]}}
    for objective, reads, texts in (
        (SequenceClassification(texts=("a", "b.en"), label="c"), ("a", "b.en", "c"), ("A", "B")),
        (TokenClassification(text="b.words", spans="s"), ("b.words", "s"), ("C D",)),
        (QuestionAnswering(question="a", context="b.en"), ("a", "b.en", "answers"), ("A", "B")),
        (Seq2SeqLM(source="b.en", target="a"), ("b.en", "a"), ("B", "A")),
    ):
        assert objective.reads == reads and objective.texts_of(document) == texts
    with pytest.raises(ValueError, match="rows.csv, line 7 has no field 'c': it has a, b.en, b.words"):
        next(iter([SequenceClassification(texts=("c",)).texts_of(Record(document, lambda: "rows.csv, line 7"))]))


def test_what_is_evaluated_on(reviews, long):
    sizes = lambda data: [len(source_of(data, split)) for split in ("train", "validation")]
    train, held_out = sizes(Data(source=f"csv:{reviews}"))
    assert train + held_out == 40 and 1 <= held_out < 8
    train, held_out = sizes(Data(source=f"csv:{reviews}", validation_share=0.5))
    assert train + held_out == 40 and 10 < held_out < 30
    apart = Data(source=f"csv:{reviews}", validation_source=f"text:{long}")
    assert sizes(apart) == [40, 1] and source_of(apart, "validation")[0]["path"] == "long.txt"
    unused = lambda data: _share_without_use(data, source_of(data, "train"))
    recipe = Data(source=f"csv:{reviews}", validation_share=0.2)
    assert unused(recipe) is unused(apart) is None
    apart = dataclasses.replace(recipe, validation_source=f"text:{long}")
    assert sizes(apart) == [40, 1] and unused(apart).endswith(
        f"share=0.2 is not used: {apart.validation_source} is held out"
    )
    assert "is not used: python_stdlib has splits of its own" in unused(
        dataclasses.replace(recipe, source="python_stdlib")
    )
    for share in (0, 1):
        with pytest.raises(ValueError, match=f"validation_share is {share}: it must be more than 0 and less than 1"):
            Data(validation_share=share)


def test_a_run_keeps_its_split(tmp_path, monkeypatch):
    """Equal texts are on one side. A run that an older version began goes on with its split, of whole rows."""
    rows = [f"{i},some words {i % 20},{'no' if i % 3 else 'yes'}\n" for i in range(80)]
    (tmp_path / "a.csv").write_text("".join(["id,text,label\n", *rows]))
    run = Run(
        model=bert.Config(vocab_size=300, max_length=16, width=16, num_layers=1, num_heads=1, mlp_dim=16),
        objective=SequenceClassification(), directory=str(tmp_path / "run"), vocabulary=Vocabulary(size=300),
        data=Data(source=f"csv:{tmp_path}/a.csv", length=16, validation_share=0.2),
    )  # fmt: skip
    monkeypatch.setattr("transformer_zoo.resolve.CACHE", tmp_path / "cache")
    monkeypatch.setattr("transformer_zoo.resolve._tokenizer", lambda *_: Tokenizer.train(["some words"], 300))
    sides = lambda got: [{row["text"] for row in part} for part in (got.train_source, got.validation_source)]
    got = resolve(run)
    train, held_out = sides(got)
    assert held_out and not train & held_out

    old = resolve(dataclasses.replace(run, data=dataclasses.replace(run.data, held_out_by="rows")))
    assert set.intersection(*sides(old))
    (tmp_path / "run").mkdir()
    runs.write(old.run, old.facts)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    del record["settings"]["data"]["held_out_by"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("transformer_zoo.resolve.steps", lambda folder: [1])
    lines = []
    again = resolve(run, lines.append)
    assert sides(again) == sides(old) and again.facts["data"] == old.facts["data"] and again.notes == []
    assert lines == [
        f"{run.directory} began with data.held_out_by=rows, the rule of older versions, and keeps that split"
    ]


def test_a_source_that_is_given_is_evaluated_whole(reviews, long):
    """By eval.py, unless it is the run's own or a split is asked for."""

    def found(data=None, **chosen):
        data = data or Data(source=f"csv:{reviews}")
        name, documents = commands._documents(commands._Evaluate(model="", **chosen), data)
        return name.rpartition("/")[2], documents.split, len(documents)

    own = found()
    assert own[:2] == ("reviews [v1].csv", "validation") and own[2] < 8
    assert found(source=f"csv:{reviews}") == ("reviews [v1].csv", "all", 40)
    assert found(source=f"csv:{reviews}", split="validation") == own
    assert found(split="train") == ("reviews [v1].csv", "train", 40 - own[2])
    apart = Data(source=f"csv:{reviews}", validation_source=f"text:{long}")
    assert found(apart) == ("long.txt", "validation", 1)
    assert found(apart, split="train") == ("reviews [v1].csv", "train", 40)


def test_one_text_file_is_all_that_a_run_needs(tmp_path, long, monkeypatch):
    monkeypatch.setattr("transformer_zoo.resolve.CACHE", tmp_path / "cache")
    model = gpt2.Config(vocab_size=300, max_length=32, width=16, num_layers=1, num_heads=1, eos_id=0)
    settings = {"data": Data(source=f"text:{long}", length=32), "vocabulary": Vocabulary(size=300)}
    got = resolve(Run(model=model, objective=CausalLM(), directory=str(tmp_path / "run"), **settings))
    sizes = [sum(len(piece["text"]) for piece in source) for source in (got.train_source, got.validation_source)]
    assert sum(sizes) == len(long.read_text()) and 0.04 < sizes[1] / sum(sizes) < 0.06
    rows = next(Pipeline(got.validation_source, got.make_rows, batch_size=4, shuffle=False, epochs=1))
    assert rows["valid_BT"].all()


@pytest.mark.parametrize("packing", ["documents", "concat"])
def test_pieces_of_a_document_have_the_tokens_of_the_whole(long, tokenizer, packing):
    """Byte-level BPE: the same tokens, one end, and all bytes; only the first input of a piece is another one."""
    make_rows = CausalLM().rows(tokenizer, Data(length=128, packing=packing))
    document = sources.source(f"text:{long}", "all")
    batches = Pipeline(document, make_rows, batch_size=64, shuffle=False, epochs=1)
    assert batches.get_state()["settings"]["documents"] == len(document.cut(PIECE)) > 3
    rows = list(batches)
    batches.close()
    text = long.read_text()
    assert sum(batch["bytes_B"].sum() for batch in rows) == len(text.encode())
    targets = np.concatenate([batch["targets_BT"][batch["valid_BT"]] for batch in rows])
    whole = [*tokenizer.encode(text).ids, tokenizer.eos_id]
    if packing == "concat":
        np.testing.assert_array_equal(targets, whole)
    np.testing.assert_array_equal(np.bincount(targets, minlength=400), np.bincount(whole, minlength=400))


def test_long_texts_are_tokenised_in_pieces(long, tokenizer, monkeypatch, tmp_path):
    """Of any source. A tokenizer that drops spaces still accounts for all bytes but the last."""
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "##n", "ein", "zeile"])
    )
    texts = [long.read_text()[:80_000], "kurz ", "  ein\n\n" * 10_000 + " " * 9_000]
    for one in (tokenizer, Tokenizer.load(tmp_path)):
        whole = one.encode_bytes(texts)
        with monkeypatch.context() as patch:
            patch.setattr(tokenizers, "LONG", 1000)
            pieces = one.encode_bytes(texts)
        for (ids, counts), (other_ids, other_counts) in list(zip(whole, pieces))[: 2 if one is tokenizer else 3]:
            np.testing.assert_array_equal(ids, other_ids)
            np.testing.assert_array_equal(counts, other_counts)


def test_another_split_is_told_when_a_position_is_restored(tmp_path, tokenizer):
    def batches(texts, split="train"):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        rows = CausalLM().rows(tokenizer, Data(length=16))
        return Pipeline(sources.source(f"jsonl:{tmp_path}/a.jsonl", split, validation=0.3), rows, batch_size=4)

    texts = [f"some words, number {i}" for i in range(30)]
    state = json.loads(json.dumps(batches(texts).get_state()))
    batches(texts).set_state(state)
    for other in ([*texts[:-1], "changed"], [*texts, "more", "and more", "and more of it", "and yet more"]):
        with pytest.raises(ValueError, match="content: .* then, .* now(.|\n)*are not those that the run began with"):
            batches(other).set_state(state)
    old = {**state, "settings": {name: x for name, x in state["settings"].items() if name != "content"}}
    with pytest.raises(ValueError, match="content: None then, .* now(.|\n)*older versions also divided local files"):
        batches(texts).set_state(old)
