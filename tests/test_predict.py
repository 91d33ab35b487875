"""Text in, answers out: each task's results by hand; order, batches and programs; errors; the command."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import pytest

import transformer_zoo as zoo
from transformer_zoo import sharding
from transformer_zoo.__main__ import main
from transformer_zoo.config import Data, Run
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation import generate as generation
from transformer_zoo.models import bart, bert, gpt2, t5
from transformer_zoo.objectives import QuestionAnswering, Seq2SeqLM, SequenceClassification, TokenClassification
from transformer_zoo.prediction import engine, files, record
from transformer_zoo.prediction import predict as prediction
from transformer_zoo.prediction.reader import program_of, softmax
from transformer_zoo.pretrained import Bundle, save_pretrained

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "door", "win", "##dow", "is", "open", "a", "in", "new", "york",
    "ann", "lee", ".", "?", "where",
]  # fmt: skip
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LABELS = ("good", "bad", "so so")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("wordpiece")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}', encoding="utf-8")
    return Tokenizer.load(folder)


def bundle(tokenizer: Tokenizer, task: str, **settings: Any) -> Bundle:
    """A small BERT of random numbers."""
    sizes = {"vocab_size": 64, "max_length": 24, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 24}
    config = bert.Config(**sizes | settings)
    model = bert.Model(config, task=task)
    return Bundle(model, families.random_params(model, 0, 0.5), config, tokenizer)


def alone(m: Bundle, ids: Any, segments: Any = None) -> Any:
    """The model's output for one row."""
    tokens_BT, segments_BT = np.zeros((2, 1, 24), np.int32)
    tokens_BT[0, : len(ids)] = ids
    given = {"tokens_BT": tokens_BT, "valid_BT": np.arange(24)[None] < len(ids)}
    if segments is not None:
        segments_BT[0, : len(ids)] = segments
        given["segments_BT"] = segments_BT
    given = {name: x[None] for name, x in given.items()} if m.model.task == "multiple-choice" else given
    return np.asarray(families.apply(m.model, m.params, **given).logits)[0, : len(ids)]


def logits_of(m: Bundle, text: str, pair: str | None = None) -> np.ndarray:
    """The logits for one text, or a pair of texts."""
    encoding = m.tokenizer.encode(text, pair, template=True, special=True)
    return alone(m, encoding.ids, encoding.segments)


def of_outputs(m: Bundle, value: Any, name: str, *outputs: Any, **settings: Any) -> Any:
    """The result for an input whose rows have these outputs."""
    reader = prediction.reader_of(m, **settings)
    (example,) = reader.examples(m, [reader.check(value, "input")])
    assert len(outputs) == len(example.rows)
    return reader.result(m, example, [{name: np.asarray(x, np.float32)} for x in outputs])


# ---- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [None, "single_label_classification", "multi_label_classification", "regression"])
def test_labels(tokenizer: Tokenizer, problem: str | None):
    m = bundle(tokenizer, "sequence-classification", labels=LABELS, problem=problem)
    logits = np.array([1.0, -2.0, 0.5], np.float32)
    found = of_outputs(m, "the door", "logits_BC", logits)
    if problem == "regression":
        scores = logits
    elif problem == "multi_label_classification":
        scores = [0.7310586, 0.1192029, 0.6224593]
        assert found.pop("labels") == ["good", "so so"]
    else:
        scores = [0.6037489, 0.0300589, 0.3661922]
    assert list(found) == ["label", "score", "scores"] and found["label"] == "good"
    assert list(found["scores"]) == ["good", "bad", "so so"] and found["score"] == found["scores"]["good"]
    np.testing.assert_allclose(list(found["scores"].values()), scores, rtol=1e-5)
    assert json.loads(json.dumps(found)) == found


def test_one_label_is_a_probability(tokenizer: Tokenizer):
    m = bundle(tokenizer, "sequence-classification", labels=("good",))
    assert of_outputs(m, "the door", "logits_BC", [0.0]) == {"label": "good", "score": 0.5, "scores": {"good": 0.5}}


def test_pairs_of_texts(tokenizer: Tokenizer):
    """Beside single texts, in one call; their segments matter."""
    m = bundle(tokenizer, "sequence-classification", labels=LABELS)
    inputs = [{"text": "the door", "text_pair": "is open"}, "the door", {"text": "is open", "text_pair": "the door"}]
    found = zoo.predict(m, inputs)
    for result, texts in zip(found, (("the door", "is open"), ("the door",), ("is open", "the door"))):
        np.testing.assert_allclose(list(result["scores"].values()), softmax(logits_of(m, *texts)), rtol=1e-4)
    assert zoo.predict(m, inputs[1]) == m.predict(inputs[1])
    tuples = [("the door", "is open"), "the door", ("is open", "the door")]
    assert zoo.predict(m, tuples) == found
    with pytest.raises(
        ValueError, match=r"a tuple of two texts: give \[\(text, text_pair\)\] for a pair, \[text, text\]"
    ):
        zoo.predict(m, tuples[0])
    assert zoo.predict(m, ()) == [] and len(zoo.predict(m, ("a", "the", "door"))) == 3


def test_texts_that_are_too_long(tokenizer: Tokenizer):
    """A warning, and the row is what training would make of it."""
    m = bundle(tokenizer, "sequence-classification", labels=LABELS)
    with pytest.warns(UserWarning, match="1 of 2 inputs are longer than the model's 24 tokens: their ends are left"):
        found = zoo.predict(m, ["the door " * 20, "the door"])
    expected = softmax(logits_of(m, "the door " * 11))
    np.testing.assert_allclose(list(found[0]["scores"].values()), expected, rtol=1e-4)


def scored(*labels: tuple[int, float]) -> np.ndarray:
    """Logits with this probability of a label; the others share the rest."""
    logits = np.zeros((len(labels), len(TAGS)))
    for row, (label, score) in enumerate(labels):
        logits[row] = np.log((1 - score) / (len(TAGS) - 1))
        logits[row, label] = np.log(score)
    return logits


def entities(m: Bundle, text: str, *labels: tuple[int, float], **settings: Any) -> list[tuple]:
    found = of_outputs(m, text, "logits_BTC", scored((0, 0.9), *labels, (0, 0.9)), **settings)
    return [tuple(round(x, 6) if isinstance(x, float) else x for x in entity.values()) for entity in found]


def test_entities(tokenizer: Tokenizer):
    """[CLS] ann lee in new york . [SEP]: B- begins an entity, also behind one of its kind; I- goes on."""
    m = bundle(tokenizer, "token-classification", labels=TAGS)
    text = "Ann Lee in New York."
    assert entities(m, text, (1, 0.8), (2, 0.6), (0, 0.9), (3, 0.5), (4, 0.7), (0, 0.9)) == [
        ("PER", 0.7, "ann lee", 0, 7), ("LOC", 0.6, "new york", 11, 19)
    ]  # fmt: skip
    assert entities(m, text, (1, 0.8), (1, 0.6), (4, 0.9), (4, 0.5), (2, 0.7), (0, 0.9)) == [
        ("PER", 0.8, "ann", 0, 3), ("PER", 0.6, "lee", 4, 7), ("LOC", 0.7, "in new", 8, 14),
        ("PER", 0.7, "york", 15, 19),
    ]  # fmt: skip
    raw = entities(m, text, (1, 0.8), (0, 0.6), (0, 0.9), (3, 0.5), (0, 0.7), (0, 0.9), aggregation="none")
    assert raw == [("B-PER", 0.8, 1, "ann", 0, 3), ("B-LOC", 0.5, 4, "new", 11, 14)]
    everything = entities(m, text, *[(0, 0.9)] * 6, ignored=[])
    for name, hint in (("per", "Did you mean 'PER'"), ("PERS", "Did you mean 'PER'"), ("xyzzy", TAGS[-1])):
        with pytest.raises(ValueError, match=rf"ignored: the model has no class '{name}': it has O, .*{hint}"):
            zoo.predict(m, text, ignored=name)
    assert everything == [("O", 0.9, "ann lee in new york.", 0, 20)]


def test_entities_of_words(tokenizer: Tokenizer):
    """[CLS] win ##dow zebra [SEP]: a word has one class; an unknown word is written as in the text."""
    m, text = bundle(tokenizer, "token-classification", labels=TAGS), "Window Zebra"
    labels = (1, 0.4), (3, 0.8), (4, 0.6)
    assert entities(m, text, *labels) == [("PER", 0.4, "win", 0, 3), ("LOC", 0.7, "##dow Zebra", 3, 12)]
    first = [("PER", 0.4, "window", 0, 6), ("LOC", 0.6, "Zebra", 7, 12)]
    assert entities(m, text, *labels, aggregation="first") == first
    best = [("LOC", 0.7, "window Zebra", 0, 12)]
    assert entities(m, text, *labels, aggregation="max") == best
    (average,) = entities(m, text, *labels, aggregation="average")
    assert average == ("LOC", round(((0.8 + 0.15) / 2 + 0.6) / 2, 6), "window Zebra", 0, 12)
    assert entities(m, text, *labels, aggregation="none")[-1][3] == "Zebra"


def test_entities_of_long_texts(tokenizer: Tokenizer):
    """Rows have tokens in common, and an entity in both is found once, whole."""
    m = bundle(tokenizer, "token-classification", labels=TAGS)
    text = "the door . " * 6 + "ann lee " + "the door . " * 4  # 32 tokens, in rows of 22
    first = [(0, 0.9)] * 24
    first[19], first[20] = (1, 0.8), (2, 0.8)
    second = [(0, 0.9)] * 20
    second[5], second[6] = (1, 0.6), (2, 0.6)
    reader = prediction.reader_of(m, overlap=8)
    (example,) = reader.examples(m, [reader.check(text, "input")])
    assert [len(row["tokens_BT"]) for row in example.rows] == [24, 20]
    found = of_outputs(m, text, "logits_BTC", scored(*first), scored(*second), overlap=8)
    assert [(e["word"], round(e["score"], 6)) for e in found] == [("ann lee", 0.8)]
    assert text[found[0]["start"] : found[0]["end"]] == "ann lee"
    second[4] = (3, 0.95)  # the token before, of which the first row is less sure
    found = of_outputs(m, text, "logits_BTC", scored(*first), scored(*second), overlap=8, aggregation="none")
    raw = [(e["entity"], round(e["score"], 6), e["index"], e["word"], text[e["start"] : e["end"]]) for e in found]
    assert raw == [("B-LOC", 0.95, 18, ".", "."), ("B-PER", 0.8, 19, "ann", "ann"), ("I-PER", 0.8, 20, "lee", "lee")]
    everything = zoo.predict(m, text, aggregation="none", ignored=[])
    assert [token["index"] for token in everything] == list(range(1, 33))


def spans(length: int, *best: tuple[int, int, float]) -> np.ndarray:
    """Logits [T, 2] in which the first and last token of each span have this one."""
    logits = np.full((length, 2), -9.0)
    for first, last, score in best:
        logits[first, 0] = logits[last, 1] = score
    return logits


def test_answers(tokenizer: Tokenizer):
    """[CLS] where is ann ? [SEP] ann is in the win ##dow [SEP]: whole words, not in the question, not too long."""
    m = bundle(tokenizer, "question-answering")
    given = {"question": "Where is Ann?", "context": "Ann is in the window"}
    answer = lambda *best, **settings: of_outputs(m, given, "logits_BT2", spans(13, *best), **settings)
    found = answer((9, 10, 3.0), (1, 3, 9.0))
    assert (found["answer"], found["start"], found["end"]) == ("the window", 10, 20)
    assert abs(found["score"] - 1 / (1 + 6 * np.exp(-12.0)) ** 2) < 1e-6  # of seven tokens: the context's and [CLS]
    several = answer((9, 10, 3.0), (6, 7, 2.0), top_k=3)
    assert [a["answer"] for a in several] == ["the window", "Ann is in the window", "Ann is"]
    assert several[0]["score"] > several[1]["score"] > several[2]["score"]
    assert answer((6, 11, 3.0), (9, 9, 2.0), answer_length=3)["answer"] == "the window"
    assert answer((0, 0, 3.0), (9, 9, 1.0))["answer"] == "the"
    assert answer((0, 0, 3.0), (9, 9, 1.0), no_answer=True) | {"score": 0} == {
        "answer": "", "score": 0, "start": 0, "end": 0
    }  # fmt: skip


def test_answers_in_windows(tokenizer: Tokenizer):
    """The best of all windows; that there is none, by the window that believes it least."""
    m = bundle(tokenizer, "question-answering")
    given = {"question": "where ?", "context": "the door . " * 6 + "ann . " + "a door . " * 4}
    reader = prediction.reader_of(m, row_length=16, overlap=4)
    (example,) = reader.examples(m, [reader.check(given, "input")])
    sizes = [len(row["tokens_BT"]) for row in example.rows]
    assert sizes == [16] * 4 and all((row["tokens_BT"][:4] == [2, 19, 18, 3]).all() for row in example.rows)
    best = (5, 5, 1.0), (5, 5, 1.0), (8, 8, 9.0), (0, 0, 5.0)
    outputs = [spans(16, span) for span in best]
    found = of_outputs(m, given, "logits_BT2", *outputs, row_length=16, overlap=4)
    assert found["answer"] == "ann" == given["context"][found["start"] : found["end"]] and found["score"] > 0.99
    settings = {"row_length": 16, "overlap": 4, "no_answer": True, "top_k": 999}
    answers = of_outputs(m, given, "logits_BT2", *outputs, **settings)
    (nothing,) = [answer for answer in answers if answer["answer"] == ""]
    assert nothing["score"] < 1e-7


def test_masks(tokenizer: Tokenizer):
    body = bundle(tokenizer, "masked-lm")
    found = zoo.predict(body, ["the [MASK] is open.", "[MASK] door is [MASK]"], top_k=3)
    for text, lists in zip(("the [MASK] is open.", "[MASK] door is [MASK]"), ([found[0]], found[1])):
        ids = body.tokenizer.encode(text, template=True, special=True).ids
        positions = np.flatnonzero(ids == body.tokenizer.mask_id)
        assert len(lists) == len(positions)
        for position, fillings in zip(positions, lists):
            scores = softmax(logits_of(body, text)[position])
            best = np.argsort(-scores)[:3]
            assert [f["token"] for f in fillings] == best.tolist()
            np.testing.assert_allclose([f["score"] for f in fillings], scores[best], rtol=1e-4)
            for filling in fillings:
                word = WORDS[filling["token"]] if filling["token"] < len(WORDS) else ""
                assert filling["token_str"] == word
                changed = np.where(np.arange(len(ids)) == position, filling["token"], ids)
                kept = [i for i in changed if 0 < i < len(WORDS)]
                assert filling["sequence"] == body.tokenizer.decode(kept, special=len(positions) > 1)


def test_targets(tokenizer: Tokenizer):
    """Only these tokens are scored, by their probability among all."""
    m, text = bundle(tokenizer, "masked-lm"), "the [MASK] is open."
    (position,) = np.flatnonzero(tokenizer.encode(text, template=True).ids == tokenizer.mask_id)
    scores = softmax(logits_of(m, text)[position])
    ids = [WORDS.index(word) for word in ("door", "##dow", "Ann".lower())]
    found = zoo.predict(m, text, targets=["door", "##dow", "Ann", 6], top_k=9)
    assert [one["token"] for one in found] == sorted(ids, key=lambda i: -scores[i])
    np.testing.assert_allclose([one["score"] for one in found], scores[[one["token"] for one in found]], rtol=1e-4)
    assert zoo.predict(m, text, targets=["door", "##dow", "ann"], top_k=1) == found[:1]
    for target, message in (
        ("window", "targets: 'window' is no single token of the vocabulary, but win ##dow"),
        ("zebra", r"targets: 'zebra' is no single token of the vocabulary, but \[UNK\]"),
        ("", "targets: '' is no single token of the vocabulary, but nothing"),
        (64, "targets: 64 is outside of the vocabulary, which has 0 to 63"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.predict(m, text, targets=["door", target])
    assert zoo.predict(m, text, targets="door") == zoo.predict(m, text, targets=["door"])
    with pytest.raises(TypeError, match=r"targets is 1.0 \(float\): expected a tuple of texts or whole numbers"):
        zoo.predict(m, text, targets=1.0)


def test_continuations(tokenizer: Tokenizer):
    bare = Tokenizer.train(["the door is open, the window is shut"], 280)
    config = gpt2.Config(vocab_size=bare.vocab_size, max_length=24, width=16, num_layers=1, num_heads=2)
    m = Bundle(model := gpt2.Model(config), families.random_params(model, 0, 0.5), config, bare)
    given = {"text": "the door", "continuations": [" is open", " is shut, the window is"]}
    for text, found in ((given["text"], zoo.predict(m, given)), ("", zoo.predict(m, {"continuations": ["the door"]}))):
        for result in found:
            whole = bare.encode(text + result["continuation"]).ids
            whole = whole if text else [bare.bos_id, *whole]
            before = len(bare.encode(text).ids) or 1
            logits = alone(m, whole)
            expected = sum(np.log(softmax(logits[i - 1]))[whole[i]] for i in range(before, len(whole)))
            assert result["tokens"] == len(whole) - before and abs(result["score"] - expected) < 1e-4
    assert [result["continuation"] for result in zoo.predict(m, given)] == given["continuations"]


def test_choices(tokenizer: Tokenizer):
    m = bundle(tokenizer, "multiple-choice")
    given = {"text": "where is ann ?", "choices": ["in the door", "in new york", "a window is open"]}
    found = zoo.predict(m, [given, given | {"choices": given["choices"][:2]}])
    for result, choices in zip(found, (given["choices"], given["choices"][:2])):
        logits = [float(logits_of(m, given["text"], choice)[0]) for choice in choices]
        np.testing.assert_allclose(result["scores"], softmax(np.array(logits)), rtol=1e-4)
        best = int(np.argmax(logits))
        expected = {"choice": best, "answer": choices[best], "score": result["scores"][best]}
        assert result == expected | {"scores": result["scores"]}


def test_next_sentences(tokenizer: Tokenizer):
    m = bundle(tokenizer, "next-sentence")
    given = {"text": "the door is open.", "text_pair": "ann is in new york."}
    found = of_outputs(m, given, "logits_BC", [2.0, 1.0])
    assert found == {"is_next": True, "score": pytest.approx(0.7310586)}
    assert not of_outputs(m, given, "logits_BC", [1.0, 2.0])["is_next"]


def test_generated_texts(monkeypatch: pytest.MonkeyPatch):
    """Those of `generate` for each text by itself, in the order of the texts."""
    texts = ["the door is open", "a window", "the door is shut, the window is open", "shut"]
    own = Tokenizer.train(texts * 3, 400, kind="t5")
    sizes = {"width": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "head_dim": 8, "mlp_dim": 24}
    config = t5.Config(vocab_size=own.vocab_size, **sizes)
    m = Bundle(model := t5.Model(config), families.random_params(model, 0, 0.5), config, own)
    found = zoo.predict(m, texts, batch_size=2, max_new_tokens=6)
    pairs = (texts[:2], texts[2:])
    expected = [text for pair in pairs for text in zoo.generate(m, pair, max_new_tokens=6)]
    assert found == [{"generated_text": text} for text in expected]
    assert len(set(expected)) > 1
    assert zoo.predict(m, texts[::-1], batch_size=2, max_new_tokens=6) == found[::-1]

    monkeypatch.setattr(generation, "BUCKET", 4)
    before, many = generation._compiled[True]._cache_size(), [" ".join(["door"] * n) for n in (1, 3, 5, 6, 7)]
    lengths = {len(own.encode(text, template=True)) for text in many}
    assert len(zoo.predict(m, many, batch_size=1, max_new_tokens=3)) == 5
    programs = generation._compiled[True]._cache_size() - before
    assert programs == len({max(4, 2 ** int(np.ceil(np.log2(n)))) for n in lengths}) == 3
    assert len({generation.bucket(n) for n in range(1, 4 * 2**7 + 1)}) == 8  # BUCKET is 32: sources of 4,096 tokens


def test_an_encoder_decoder_classifies(tokenizer: Tokenizer):
    sizes = {"width": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "num_decoder_heads": 2}
    sizes |= {"mlp_dim": 24, "mlp_decoder_dim": 24, "max_length": 24, "eos_id": 3, "labels": ("good", "bad")}
    config = bart.Config(vocab_size=64, **sizes)
    model = bart.Model(config, task="sequence-classification")
    m = Bundle(model, families.random_params(model, 0, 0.5), config, tokenizer)
    texts = ["the door", "a door"]
    source_BS = np.stack([tokenizer.encode(text, template=True).ids for text in texts])
    logits_BC = np.asarray(families.apply(m.model, m.params, source_BS=source_BS).logits)
    for found, logits_C in zip(zoo.predict(m, texts), logits_BC, strict=True):
        np.testing.assert_allclose(list(found["scores"].values()), softmax(logits_C), rtol=1e-4)


# ---- the engine -----------------------------------------------------------------------------------------------------


def mixed(count: int) -> list[str]:
    return [" ".join(["door", "window", "open"][i % 3 :][:2] * (1 + i % 5)) for i in range(count)]


def test_order_batches_and_programs(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    """A text's result does not depend on the others; a long list has batches of one size and few programs."""
    m, texts = bundle(tokenizer, "sequence-classification", labels=("yes", "no")), mixed(70)
    monkeypatch.setattr(engine, "CHUNK", 16)
    found = zoo.predict(m, texts, batch_size=8)
    assert program_of(m.model, prediction.reader_of(m))._cache_size() == 2  # rows of 16 and of 24 tokens
    scores = lambda results: [result["score"] for result in results]
    order = np.random.default_rng(0).permutation(70)
    again = zoo.predict(m, [texts[i] for i in order], batch_size=8)
    np.testing.assert_allclose(scores(again), np.array(scores(found))[order], atol=1e-6)
    assert abs(zoo.predict(m, texts[41])["score"] - found[41]["score"]) < 1e-6
    assert zoo.predict(m, []) == []
    with pytest.raises(ValueError, match=r"inputs\[70\]: text is empty"):
        zoo.predict(m.replace(params={}), [*texts, ""])
    with pytest.raises(ValueError, match=r"inputs\[70\]: text has a lone surrogate at character 1"):
        zoo.predict(m.replace(params={}), [*texts, "a\ud800"])  # before anything is computed
    assert engine.batch_size_for(16, 16, 10**9) == 16 and engine.batch_size_for(40, 700, 10**9) == 16


@pytest.mark.parametrize("limit", [24, 384, 512, 1024, 2048, 8192, 100_000])
def test_few_lengths(limit: int):
    lengths = {engine.padded_length(tokens, limit) for tokens in range(1, limit + 1)}
    assert len(lengths) <= 8 and max(lengths) == limit
    assert all(engine.padded_length(tokens, limit) >= tokens for tokens in range(1, limit + 1, 7))
    rows = [{"tokens_BT": np.zeros(n)} for n in (3, limit - 1)]
    assert engine.limit_of(rows, limit) == limit and limit - 1 <= engine.limit_of(rows, None) < 2 * limit
    assert engine.limit_of([], None) == 1


def test_on_a_mesh(tokenizer: Tokenizer):
    m = bundle(tokenizer, "sequence-classification", labels=LABELS)
    mesh = sharding.make_mesh(data=4, tensor=2)
    shardings = sharding.param_shardings(m.params, sharding.adopt_mesh(mesh))
    on_mesh = m.replace(params=jax.device_put(m.params, shardings))
    scores = lambda m: [result["score"] for result in zoo.predict(m, mixed(6))]
    np.testing.assert_allclose(scores(on_mesh), scores(m), atol=1e-6)


ODD = (
    "\U0001f642\U0001f469\u200d\U0001f467", "\u05e9\u05dc\u05d5\u05dd \u0645\u0631", "door", "door " * 22,
    "door " * 23, "x" * 10_000, "the door . " * 900, "\x01\x02\x7f", "\0", "the\0door", "\u200d", "\ufeff",
    "e\u0301\u0301", "[SEP][CLS][PAD]", "\tthe door\t", "\ufb01 \ufb00", "\u0130stanbul",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* inputs are longer")
@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_odd_texts(tokenizer: Tokenizer, kind: str):
    """They have results, which are plain JSON, and whose characters are those of the text."""
    own = tokenizer if kind == "wordpiece" else Tokenizer.train(["the door is open"] * 3, 290, kind="roberta")
    model = lambda task, **settings: bundle(own, task, **{"vocab_size": 320} | settings)
    plain = lambda results: json.loads(json.dumps(results, allow_nan=False)) == results and len(results) == len(ODD)
    assert plain(zoo.predict(model("sequence-classification", labels=LABELS), list(ODD)))
    m = model("token-classification", labels=TAGS)
    for aggregation in ("none", "simple", "average"):
        assert plain(found := zoo.predict(m, list(ODD), aggregation=aggregation, ignored=[]))
        for text, entities in zip(ODD, found):
            assert all(0 <= one["start"] < one["end"] <= len(text) for one in entities)
    m = model("question-answering")
    assert plain(found := zoo.predict(m, [{"question": "where ?", "context": text} for text in ODD]))
    assert all(text[one["start"] : one["end"]] == one["answer"] for text, one in zip(ODD, found))


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "value", "message"),
    [
        ("sequence-classification", "", r"inputs\[1\]: text is empty"),
        ("sequence-classification", 3, r"inputs\[1\] is int: expected a text, or a dictionary with text \(and "),
        ("sequence-classification", ("a", "b", "c"), r"expected .*, or a tuple \(text, text_pair\)$"),
        ("sequence-classification", ("a", ""), r"inputs\[1\]: text_pair is empty"),
        ("token-classification", ("a", "b"), r"inputs\[1\] is tuple: expected a text, or a dictionary with text$"),
        ("sequence-classification", {"text": None}, r"inputs\[1\]: text is NoneType, where a text is expected"),
        ("sequence-classification", {"text": "a", "pair": "b"}, r"inputs\[1\] has the field 'pair', which the task "),
        ("sequence-classification", "a \ud800", "lone surrogate"),
        ("question-answering", "a", r"inputs\[1\] is str: expected a dictionary with question and context"),
        ("question-answering", {"question": "a"}, r"inputs\[1\] has the fields question: expected a dictionary with"),
        ("question-answering", {"question": "a " * 30, "context": "a"}, r"inputs\[1\] has a question of 33 tokens"),
        ("masked-lm", "the door", r"inputs\[1\] has no mask: write \[MASK\] where"),
        ("masked-lm", "[MASK] " * 30, r"inputs\[1\] has 32 tokens, and the model 24 positions"),
        ("multiple-choice", {"text": "a", "choices": []}, r"inputs\[1\]: choices must be a list of texts, and not"),
        ("multiple-choice", {"text": "a", "choices": ["a", ""]}, r"inputs\[1\]: choices is empty"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_inputs(tokenizer: Tokenizer, task: str, value: Any, message: str):
    good = {
        "sequence-classification": "the door", "masked-lm": "a [MASK]", "token-classification": "a",
        "question-answering": {"question": "where", "context": "a door"},
        "multiple-choice": {"text": "a", "choices": ["the"]},
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        zoo.predict(bundle(tokenizer, task).replace(params={}), [good[task], value])


def test_what_is_refused(tokenizer: Tokenizer):
    body = bundle(tokenizer, "masked-lm")
    m = bundle(tokenizer, "sequence-classification")
    with pytest.raises(ValueError, match="task 'base' cannot predict: load it for one of masked-lm, next-sentence, "):
        zoo.predict(bundle(tokenizer, "base"), "a")
    with pytest.raises(ValueError, match="has no tokenizer"):
        zoo.predict(m.replace(tokenizer=None), "a")
    with pytest.raises(TypeError, match="no setting 'topk' for masked-lm: it has batch_size, top_k, targets. Did"):
        zoo.predict(body, "a [MASK]", topk=3)
    with pytest.raises(TypeError, match="Hugging Face's stride is overlap here"):
        zoo.predict(bundle(tokenizer, "question-answering"), {}, stride=3)
    with pytest.raises(ValueError, match="top_k is 0: it must be at least 1"):
        zoo.predict(body, "a [MASK]", top_k=0)
    with pytest.raises(FloatingPointError, match=r"output is not a number \(NaN\): its weights are damaged"):
        zoo.predict(m.replace(params=jax.tree.map(lambda x: np.full_like(x, np.nan), m.params)), "a")
    with pytest.raises(TypeError, match=r"top_k is '3' \(str\): expected a whole number"):
        zoo.predict(body, "a [MASK]", top_k="3")
    with pytest.raises(ValueError, match="aggregation is 'all': choose one of none, simple"):
        zoo.predict(bundle(tokenizer, "token-classification"), "a", aggregation="all")
    reader = bundle(tokenizer, "question-answering")
    with pytest.raises(ValueError, match="row_length is 25, and the model has 24 positions"):
        zoo.predict(reader, {"question": "where", "context": "a door"}, row_length=25)
    long = "the door . " * 9
    with pytest.raises(ValueError, match=r"inputs\[1\] has rows with room for 19 tokens of its text, and overlap is"):
        zoo.predict(reader, [{"question": "where ?", "context": text} for text in ("a door", long)], overlap=19)
    with pytest.raises(ValueError, match=r"inputs\[0\] has rows with room for 22 tokens of its text, and overlap is"):
        zoo.predict(bundle(tokenizer, "token-classification", labels=TAGS), long, overlap=32)
    with pytest.raises(ValueError, match="batch_size is 0"):
        zoo.predict(m, "a", batch_size=0)
    small = m.replace(config=dataclasses.replace(m.config, vocab_size=6))
    with pytest.raises(ValueError, match=r"inputs\[0\]\[0, 1\] is 10, outside of the model's vocabulary"):
        zoo.predict(small, "open")


def test_a_name_is_no_model():
    with pytest.raises(TypeError, match=r"m is 'bert-base-uncased' \(str\): expected a model, as from_pretrained"):
        zoo.predict("bert-base-uncased", "a door")


# ---- the command ----------------------------------------------------------------------------------------------------


def test_command(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    m = bundle(tokenizer, "sequence-classification", labels=LABELS)
    save_pretrained(tmp_path / "model", m)
    texts = mixed(9)
    expected = [result["label"] for result in zoo.predict(m, texts)]
    labels = lambda text: [json.loads(line)["label"] for line in text.splitlines()]
    command = ["predict", str(tmp_path / "model")]

    assert main([*command, "--text", *texts[:2]]) == 0
    assert labels(capsys.readouterr().out) == expected[:2]
    source, output = tmp_path / "texts.txt", tmp_path / "labels.jsonl"
    source.write_text("\n".join(texts), encoding="utf-8")
    whole = [*command, "--source", str(source), "--output", str(output)]
    assert main(whole) == 0 and labels(output.read_text()) == expected
    assert "labels.jsonl holds the results of 9 texts" in capsys.readouterr().out

    # It goes on after the last whole line: the lines before are not computed again.
    lines = output.read_text().splitlines()
    output.write_text('{"label": "old"}\n' + lines[1] + "\n" + lines[2][:9])
    assert main(whole) == 0
    assert labels(output.read_text()) == ["old", *expected[1:]]
    assert "holds the results of 9 texts, 2 of which it had before" in capsys.readouterr().out
    long = output.read_text() + "{}\n"
    output.write_text(long)
    assert main(whole) == 1 and "has 10 lines, and there are 9 inputs" in capsys.readouterr().err
    assert output.read_text() == long

    # JSON lines, with fields that the task does not use; the text may have another name.
    for key, name in (("text", str(tmp_path / "a.jsonl")), ("review", f"jsonl:{tmp_path}/a.jsonl:review")):
        documents = [{"id": i, key: text} for i, text in enumerate(texts)]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
        assert main([*command, "--source", name]) == 0
        assert labels(capsys.readouterr().out) == expected

    # A blank line has a result too, so that results stay beside their texts.
    source.write_text("\n".join(["", *texts[:2], " \t", texts[2]]), encoding="utf-8")
    output.unlink()
    for kept in (0, 1, 2, 4):
        lines = output.read_text().splitlines(keepends=True) if kept else []
        output.write_text("".join(lines[:kept]))
        with pytest.warns(UserWarning, match=f"2 of 5 texts are blank, such as {source}, line 1: their result is null"):
            assert main(whole) == 0
        found = [json.loads(line) and json.loads(line)["label"] for line in output.read_text().splitlines()]
        assert found == [None, *expected[:2], None, expected[2]]
    capsys.readouterr()

    (tmp_path / "a.jsonl").write_text('{"text": "a door"}\n\n{"text": " "}\n', encoding="utf-8")
    with pytest.warns(UserWarning, match="1 of 2 texts are blank, such as .*a.jsonl, line 3"):
        assert main([*command, "--source", str(tmp_path / "a.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "null"

    with pytest.warns(UserWarning, match="1 of 3 texts are blank, such as text 1: their result is null"):
        assert main([*command, "--text", texts[0], "", texts[1]]) == 0
    first, blank, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["label"], blank, second["label"]) == (expected[0], None, expected[1])

    source.write_text("\n \n", encoding="utf-8")
    (tmp_path / "deep.jsonl").write_text("[" * 99_999, encoding="utf-8")
    for arguments, message in (
        ([], "give either --text, or --source with a file that has one text a line"),
        (["--source", str(source)], f"{source} has blank texts only, such as {source}, line 1"),
        (["--text", " "], "--text has blank texts only, such as text 0"),
        (["--source", "nowhere.txt"], "there is no file 'nowhere.txt'"),
        (["--text", "a", "--set", "top_k=3"], "--set: predict() has no setting 'top_k' for sequence-classification"),
        (["--text", "a", "--set", "top_k"], "--set top_k: give NAME=VALUE"),
        (["--text", "a", "--set", "batch_size=3"], "--set batch_size: give --batch-size"),
        (["--source", str(tmp_path / "deep.jsonl")], "deep.jsonl, line 1: not JSON"),
        (["--text", "a", "--source", str(source)], "give either --text, or --source"),
        (["--source", str(source), "--output", str(tmp_path)], "is a folder: name a file"),
        (["--source", str(source), "--output", str(tmp_path / "none" / "x")], "there is no folder"),
        (["--source", str(source), "--output", str(source)], "is the file with the texts: name another one"),
    ):
        assert main([*command, *arguments]) == 1
        assert message in capsys.readouterr().err
    # What no earlier call has written stays as it is.
    for notes in ("my notes\nan unfinished line", "an unfinished line", "{}\n{}\nnotes\n"):
        output.write_text(notes)
        assert main([*command, "--text", "a", "--output", str(output)]) == 1
        assert "is no result of an earlier call: name another file" in capsys.readouterr().err
        assert output.read_text() == notes


def test_tables(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A CSV in, with a line end in a text and another column, and a CSV out, wherever the call before stopped."""
    m = bundle(tokenizer, "sequence-classification", labels=("good", "so, so"))
    save_pretrained(tmp_path / "model", m)
    source, output = tmp_path / "reviews.csv", tmp_path / "labels.csv"
    texts = ["the door", 'a "window",\nopen', " ", "in new york", "where is ann lee ?"]
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *enumerate(texts)])
    command = ["predict", str(tmp_path / "model"), "--source", str(source), "--output", str(output)]
    with pytest.warns(UserWarning, match=f"1 of 5 texts are blank, such as {source}, line 5"):
        assert main(command) == 0
    with output.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "label", "score", "scores.good", "scores.so, so", "id"]
    assert [row.pop() for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows.pop(2) == [""] * 5
    texts.remove(" ")
    for row, text, found in zip(rows, texts, zoo.predict(m, texts), strict=True):
        assert row[:2] == [text, found["label"]]
        np.testing.assert_allclose([float(x) for x in row[2:]], [found["score"], *found["scores"].values()], rtol=1e-5)

    reader = prediction.reader_of(m)
    with pytest.warns(UserWarning, match="blank"):
        inputs = files.read(str(source), reader, others=True)
    columns = files.columns_of(m, reader, inputs, output)
    made = record.of(m, reader, inputs, model="m", source=str(source))
    whole = output.read_bytes()
    ends = [len("".join(parts)) for parts in _prefixes(whole.decode())]
    for size in range(len(whole) + 1):
        output.write_bytes(whole[:size])
        done = files.begin(output, made, inputs, columns)
        assert done == max(0, sum(end <= size for end in ends) - 1)
        assert output.read_bytes() == whole[: max([0, *(end for end in ends if end <= size)])]
    output.write_bytes(whole[:-3])
    with pytest.warns(UserWarning, match="blank"):
        assert main([*command[:3], f"csv:{source}", *command[4:]]) == 0
    assert output.read_bytes() == whole and "5 texts, 4 of which it had before" in capsys.readouterr().out

    source.write_text("id,text\n1,the door\n")
    for arguments, message in (
        (["--source", f"csv:{source}", "--output", str(source)], "reviews.csv, row 1 is no result of an earlier call"),
        (["--source", f"csv:{source}:body"], "reviews.csv has no column 'body': it has id, text"),
        (["--source", "nowhere.csv"], "there is no file 'nowhere.csv'; a source has a name such as csv:GLOB:KEY"),
    ):
        assert main([*command[:2], *arguments]) == 1 and message in capsys.readouterr().err
    source.write_text("id,body\n1,the door\n")
    missing = (
        "reviews.csv, line 2 has no field 'text': it has id, body; the field that is .* csv:GLOB:KEY. A second text "
    )
    with pytest.raises(ValueError, match=f"{missing}must have the name text_pair"):
        files.read(str(source), reader)
    (one,) = files.read(f"csv:{source}:body", reader, others=True)
    assert (one.fields, one.others) == ({"text": "the door"}, {"id": "1"})
    one = dataclasses.replace(one, others={"label": "good", "at": {"page": 3, "lines": [1, 2]}, "none": None})
    assert files.columns_of(m, reader, [one], output)[5:] == ("source.label", "at.page", "at.lines", "none")
    list(
        files.write(
            m, reader, [one], table := tmp_path / "more.csv", 0, batch_size=1, columns=("source.label", "at.lines")
        )
    )
    assert table.read_text() == 'source.label,at.lines\ngood,"[1, 2]"\n'

    pairs = [reader.check({"text": "a", "text_pair": "the door"}, "a pair")]
    several = m.replace(config=dataclasses.replace(m.config, problem="multi_label_classification"))
    found = files.columns_of(several, reader, pairs, output)
    assert found == ("text", "text_pair", "label", "score", "scores.good", "scores.so, so", "labels")
    (result,) = zoo.predict(several, ["the door"])
    assert files._flat(result)["labels"] == json.dumps(result["labels"])
    masks = bundle(tokenizer, "masked-lm")
    with pytest.raises(ValueError, match="labels.csv: a result for masked-lm is a list, .* ends in .jsonl"):
        files.columns_of(masks, prediction.reader_of(masks), [], output)


def test_a_run_reads_the_fields_that_it_was_trained_on(tokenizer: Tokenizer, tmp_path: Path):
    def read(source: str, run: Run) -> list[Any]:
        return [dict(one.fields) for one in files.read(source, reader, run)]

    def trained(objective: Any, source: str = "csv:old.csv") -> Run:
        config = bert.Config(vocab_size=64)
        return Run(model=config, objective=objective, directory="run", data=Data(source=source, length=16))

    table, other = tmp_path / "pairs.csv", tmp_path / "other.csv"
    table.write_text("id,first,second,gold\n1,a,the door,yes\n2,is,open,no\n")
    other.write_text("text,text_pair\na,in\n")
    reader = prediction.reader_of(bundle(tokenizer, "sequence-classification", labels=LABELS))
    of_pairs = trained(SequenceClassification(texts=("first", "second"), label="gold"))
    pairs = [{"text": "a", "text_pair": "the door"}, {"text": "is", "text_pair": "open"}]
    assert read(str(table), of_pairs) == read(f"csv:{table}", of_pairs) == pairs
    (one, _) = files.read(str(table), reader, of_pairs, others=True)
    assert one.others == {"id": "1", "gold": "yes"}
    assert read(f"csv:{table}:gold", of_pairs)[0] == {"text": "yes", "text_pair": "the door"}
    of_other_key = trained(of_pairs.objective, "csv:old.csv:sentence")  # a KEY that the objective did not read
    assert read(str(table), of_other_key) == pairs
    assert read(str(other), of_pairs) == [{"text": "a", "text_pair": "in"}]  # the names of the task
    of_one = trained(SequenceClassification(texts=("text",)), "csv:old.csv:second")
    assert read(str(table), of_one) == [{"text": "the door"}, {"text": "open"}]  # the KEY of its source
    assert read(f"csv:{table}:first", of_one) == [{"text": "a"}, {"text": "is"}]
    assert read(str(other), trained(SequenceClassification())) == [{"text": "a"}]  # it has read no second text
    (tmp_path / "lines.txt").write_text("the door\n")
    assert read(str(tmp_path / "lines.txt"), of_pairs) == [{"text": "the door"}]
    table.write_text("id,first\n1,a\n")
    with pytest.raises(
        ValueError, match="pairs.csv, line 2 has no field 'second': it has id, first.* needs text and text_pair$"
    ):
        read(str(table), of_pairs)
    table.write_text("text\na\n")
    with pytest.raises(
        ValueError, match="pairs.csv, line 2 has no field 'first': it has text. .* needs text and text_pair$"
    ):
        read(str(table), of_pairs)
    late = tmp_path / "late.jsonl"
    late.write_text('{"first": "a", "second": "b"}\n{"first": "a"}\n')
    with pytest.raises(ValueError, match="late.jsonl, line 2 has no field 'second'"):
        read(str(late), of_pairs)

    reader = prediction.READERS["question-answering"]()
    table.write_text("q,c,answers\nwhere ?,a door,\n")
    assert read(str(table), trained(QuestionAnswering(question="q", context="c"))) == [
        {"question": "where ?", "context": "a door"}
    ]
    table.write_text("question,context\nwhere ?,a door\n")
    assert files.read(f"csv:{table}:question", reader)[0].fields == {"question": "where ?", "context": "a door"}
    words = trained(TokenClassification(text="words"))
    assert words.objective.input_of({"words": ["a", "door"]}) == {"text": "a door"}
    pairs = Seq2SeqLM(source="en", prefix="translate: ")
    assert [pairs.input_of({"en": text}) for text in ("a", " ")] == [{"text": "translate: a"}, {"text": " "}]


def test_columns_are_fields_of_results():
    """Of every reader whose results fit a row, by the results that other tests check."""
    config = bert.Config(vocab_size=8, labels=("a", "b"))
    m = Bundle(bert.Model(config, task="base"), {}, config)
    results = {
        "sequence-classification": {"label": "a", "score": 0.9, "scores": {"a": 0.9, "b": 0.1}},
        "next-sentence": {"is_next": True, "score": 0.9},
        "question-answering": {"answer": "a", "score": 0.9, "start": 0, "end": 1},
        "seq2seq-lm": {"generated_text": "a"},
    }
    for task, reader in prediction.READERS.items():
        assert reader().columns(m) == tuple(files._flat(results.get(task, {})))
    assert prediction.READERS["question-answering"](top_k=2).columns(m) == ()


def _prefixes(text: str) -> list[list[str]]:
    """The rows of a table, as the first, the first two, ... of them."""
    rows, row = [], ""
    for line in text.splitlines(keepends=True):
        row += line
        if row.count('"') % 2 == 0:
            rows, row = [*rows, row], ""
    return [rows[:n] for n in range(1, len(rows) + 1)]


def test_only_the_same_results_are_continued(tokenizer: Tokenizer, tmp_path: Path):
    """What differs is named, and the file stays as it is."""
    m, output = bundle(tokenizer, "masked-lm"), tmp_path / "masks.jsonl"
    words = ["a [MASK]", "the [MASK]", "in [MASK]"]

    def begin(m: Bundle = m, texts: list[str] = words, **settings: Any) -> int:
        reader = prediction.reader_of(m, **settings)
        inputs = [reader.check(text, f"text {i}") for i, text in enumerate(texts)]
        return files.begin(output, record.of(m, reader, inputs, model="m", source="words.txt"), inputs)

    assert begin() == 0 and begin(top_k=2) == 0  # as long as there is no result
    output.write_text("[]\n[1")
    low = m.model.clone(compute=zoo.Compute(dtype="bfloat16"))
    for arguments, message in (
        ({}, "  settings.top_k: 2, now 5\n"),
        ({"m": m.replace(params=families.random_params(m.model, 1, 0.5)), "top_k": 2}, "  parameters: [0-9a-f]{32}, "),
        ({"m": m.replace(config=dataclasses.replace(m.config, norm_epsilon=0.5)), "top_k": 2},
         "  config.norm_epsilon: 1e-12, now 0.5\n"),
        ({"m": m.replace(model=low), "top_k": 2}, "  dtype: float32, now bfloat16\n"),
        ({"texts": ["the [MASK]", *words[1:]], "top_k": 2}, "  inputs: texts of words.txt, now others of words.txt\n"),
        ({"texts": words[:2], "top_k": 2}, "  inputs: 3, now 2\n"),
    ):  # fmt: skip
        expected = f"{output} has results of m that were made otherwise, and cannot be continued:\n{message}"
        with pytest.raises(ValueError, match=expected):
            begin(**arguments)
        assert output.read_text() == "[]\n[1"
    assert begin(texts=[*words, "[MASK]"], top_k=2) == 1 and output.read_text() == "[]\n"  # a longer list goes on
    assert begin(texts=[*words, "[MASK]", "is [MASK]"], top_k=2) == 1

    beside = record.file_of(output)
    for text, message in (("[", "is not JSON"), ('{"count": "x"}', "count is a text"), ("{}", "lacks count, inputs")):
        beside.write_text(text)
        with pytest.raises(ValueError, match=f"{beside}:? {message}"):
            begin(top_k=2)
    beside.unlink()
    for text in ("[]\n", "{"):
        output.write_text(text)
        with pytest.raises(ValueError, match="masks.jsonl has results, and there is no masks.jsonl.record.json beside"):
            begin(top_k=2)
        assert output.read_text() == text
