"""Masked tokens, words and spans, and pairs of sentences: their number and choice; no text is lost."""

import functools
import itertools
import json
import random

import families
import jax
import numpy as np
import pytest
from scipy.special import log_softmax
from test_pipeline import Documents, assert_equal, pipeline, take

from transformer_zoo import registry
from transformer_zoo.config import Data
from transformer_zoo.data import corruption, sentences
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives import MaskedLM, Pretraining

UNITS = ("tokens", "words", "spans")
SYLLABLES = ("lo", "rem", "ip", "sum", "do", "lor", "sit", "am", "et", "con")


@functools.cache
def texts(count: int, words: int = 300, seed: int = 0) -> list[str]:
    """Documents of lines, each of a few sentences, whose words are one to four tokens; each word names its document."""
    rng = random.Random(seed)

    def document(number: int) -> str:
        made = []
        for _ in range(rng.randrange(words // 2, words)):
            made.append(f"{chr(97 + number % 26)}{''.join(rng.choices(SYLLABLES, k=rng.randrange(1, 4)))}")
            made.append(rng.choice((" ", " ", " ", " ", ". ", ".\n")))
        return "".join(made)

    return [document(number) for number in range(count)]


@pytest.fixture(scope="module")
def source() -> Documents:
    return Documents(texts(24))


@pytest.fixture(scope="module", params=["wordpiece", "roberta"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(texts(26, seed=1), 500, kind=request.param)


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return Tokenizer.train(texts(26, seed=1), 500, kind="wordpiece")


@functools.lru_cache(maxsize=32)
def many(objective: MaskedLM, tokenizer: Tokenizer, length: int = 64, packing: str = "documents", count: int = 200):
    """Rows of many documents."""
    make = objective.rows(tokenizer, Data(length=length, packing=packing))
    return make(list(Documents(texts(count))), np.random.default_rng(0))


def restored(rows: dict) -> np.ndarray:
    """The rows before masking."""
    tokens = rows["tokens_BT"].copy()
    row, place = np.nonzero(rows["weights_BP"])
    tokens[row, rows["masked_BP"][row, place]] = rows["targets_BP"][row, place]
    return tokens


def hidden(rows: dict) -> np.ndarray:
    """bool[B, T]: the tokens to predict."""
    found = np.zeros(rows["tokens_BT"].shape, bool)
    row, place = np.nonzero(rows["weights_BP"])
    found[row, rows["masked_BP"][row, place]] = True
    return found


# ---- what is hidden -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_shares(tokenizer, unit):
    """15 % are predicted: 80 % of these are masks, 10 % random ordinary tokens, 10 % unchanged, to four standard
    deviations."""
    rows = many(MaskedLM(unit=unit), tokenizer, length=128)
    where, row = hidden(rows), rows["weights_BP"].sum(axis=1)
    text = rows["valid_BT"].sum(axis=1) - 2
    assert abs(row.sum() / text.sum() - 0.15) < 0.004  # rounded in each row, and whole words do not always fit
    full = text == 126
    assert full.sum() > 500 and (row[full] <= 19).all() and (unit != "tokens" or (row[full] == 19).all())

    read, was = rows["tokens_BT"][where], restored(rows)[where]
    deviation = 4 * np.sqrt(0.25 / len(was)) * (2 if unit == "spans" else 1)  # a span is one choice of four words
    masks, same = (read == tokenizer.mask_id).mean(), (read == was).mean()
    assert abs(masks - 0.8) < deviation and abs(same - 0.1) < deviation
    other = read[(read != tokenizer.mask_id) & (read != was)]
    assert not np.isin(other, corruption.special_ids(tokenizer)).any()
    assert len(np.unique(other)) > 0.4 * tokenizer.vocab_size  # any token, not those of the text
    custom = many(MaskedLM(unit=unit, rate=0.3, mask_share=1.0, random_share=0.0), tokenizer, length=128)
    assert (custom["tokens_BT"][hidden(custom)] == tokenizer.mask_id).all()
    assert abs(custom["weights_BP"].sum() / text.sum() - 0.3) < 0.006


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("packing", ["documents", "concat"])
def test_the_rows_with_their_labels_are_the_text(tokenizer, unit, packing):
    rows = many(MaskedLM(unit=unit), tokenizer, packing=packing, count=60)
    tokens, valid = restored(rows), rows["valid_BT"]
    assert not hidden(rows)[~valid].any() and (tokens[~valid] == tokenizer.pad_id).all()
    assert (tokens[:, 0] == tokenizer.cls_id).all()
    assert (tokens[np.arange(len(tokens)), valid.sum(axis=1) - 1] == tokenizer.sep_id).all()
    inside = [row[1 : size - 1] for row, size in zip(tokens, valid.sum(axis=1))]
    frames = {"documents": [], "concat": [tokenizer.sep_id]}[packing]
    expected = [[*tokenizer.encode(text).ids.tolist(), *frames] for text in texts(60)]
    expected = list(itertools.chain(*expected))[: None if packing == "documents" else -1]
    assert np.concatenate(inside).tolist() == expected
    assert rows["tokens_BT"].dtype == np.int32 and (rows["tokens_BT"] != tokens).any()
    if packing == "concat":
        assert valid[:-1].all()
    elif "bpe" in tokenizer.kind:
        assert tokenizer.decode(np.concatenate(inside)) == "".join(texts(60))


@pytest.mark.parametrize("objective", [*(MaskedLM(unit=unit) for unit in UNITS), Pretraining()], ids=str)
def test_special_tokens_are_never_hidden(tokenizer, objective):
    """Neither those around a text, nor an unknown token in it, nor the separators of documents."""
    documents = [{"text": text.replace("a", "a 文 ")} for text in texts(20)]
    for packing in ("documents", "concat")[: 1 if isinstance(objective, Pretraining) else 2]:
        rows = objective.rows(tokenizer, Data(length=32, packing=packing))(documents, np.random.default_rng(0))
        assert rows["weights_BP"].sum() > 500
        assert not np.isin(rows["targets_BP"][rows["weights_BP"] > 0], corruption.special_ids(tokenizer)).any()
    if tokenizer.kind == "wordpiece":
        assert (rows["tokens_BT"] == tokenizer.unk_id).any()


@pytest.mark.parametrize("objective", [MaskedLM(), MaskedLM(rate=0.4, unit="words"), Pretraining(rate=0.3)], ids=str)
@pytest.mark.parametrize("length", [9, 16, 33])
def test_there_is_just_enough_room(wordpiece, objective, length):
    """The arrays have the objective's shapes, and a full row fills all masked positions."""
    rows = many(objective, wordpiece, length=length, count=60)
    shapes = objective.shapes(len(rows["tokens_BT"]), length)
    assert {name: (x.shape, x.dtype) for name, x in rows.items()} == {n: (x.shape, x.dtype) for n, x in shapes.items()}
    counts = rows["weights_BP"].sum(axis=1)
    assert counts.max() == rows["weights_BP"].shape[1]
    room = objective.maker(Data(length=length)).room
    assert counts.max() == max(1, round(objective.rate * room + 1e-9))
    assert (np.diff(rows["weights_BP"], axis=1) <= 0).all()  # used places first
    where = np.where(rows["weights_BP"] > 0, rows["masked_BP"], length + np.arange(rows["masked_BP"].shape[1]))
    assert (np.diff(where, axis=1) > 0).all()  # in order, none twice
    assert not rows["masked_BP"][rows["weights_BP"] == 0].any()


def test_words_are_hidden_whole(tokenizer):
    """A word of several tokens is masked as a whole or not at all; masks of single tokens do split words."""
    for unit, whole in (("words", True), ("spans", True), ("tokens", False)):
        rows = many(MaskedLM(unit=unit), tokenizer, count=60)
        cut = 0
        numbers = iter([corruption.encode([{"text": text}], tokenizer)[0][:, 1] for text in texts(60)])
        words = next(numbers)
        for where, size in zip(hidden(rows), rows["valid_BT"].sum(axis=1) - 2):
            part, words = words[:size], words[size:]
            if not len(words):
                words = next(numbers, words)
            starts = np.flatnonzero(np.diff(part, prepend=-2))
            hits = np.add.reduceat(where[1 : size + 1].astype(int), starts)
            cut += ((hits > 0) & (hits < np.diff([*starts, size]))).sum()
        assert (cut == 0) == whole, unit


def test_spans():
    """Lengths as drawn, 3.8 words on average; all words of a span are treated alike; spans do not overlap."""
    rng, lengths = np.random.default_rng(0), []
    words = np.repeat(np.arange(2000), rng.integers(1, 4, 2000))  # of one to three tokens
    for _ in range(40):
        budget = int(0.15 * len(words))
        spans = corruption.choose(words, budget, "spans", rng)
        taken = np.concatenate(spans)
        assert len(np.unique(taken)) == len(taken) and budget - 3 <= len(taken) <= budget
        for span in spans:
            assert (np.diff(span) == 1).all()
        lengths += [len(np.unique(words[span])) for span in spans[:-1]]
    found = np.bincount(lengths, minlength=11)[1:] / len(lengths)
    law = np.array([0.2 * 0.8**n for n in range(10)])
    law /= law.sum()
    assert len(found) == 10 and abs(np.mean(lengths) - 3.797) < 0.1
    assert np.abs(found - law).max() < 4 * np.sqrt(0.2 / len(lengths))
    starts = np.concatenate([span[:1] for span in spans])
    assert np.ptp(np.histogram(starts, 4)[0]) < 0.5 * len(starts)  # everywhere in the row


def test_a_span_has_one_fate(tokenizer):
    """Masked words that are neighbours become masks together, far more often than independent tokens would."""
    both = {}
    for unit in ("tokens", "spans"):
        rows = many(MaskedLM(unit=unit, mask_share=0.5, random_share=0.0), tokenizer)
        where, mask = hidden(rows), rows["tokens_BT"] == tokenizer.mask_id
        beside = where[:, 1:] & where[:, :-1]
        both[unit] = (mask[:, 1:] == mask[:, :-1])[beside].mean()
    assert abs(both["tokens"] - 0.5) < 0.05 and both["spans"] > 0.9


def test_texts_that_are_hardly_any(wordpiece):
    """One token is predicted; an empty text gives no row; unknown tokens give a row without predictions."""
    for unit in UNITS:
        make = MaskedLM(unit=unit).rows(wordpiece, Data(length=16))
        rows = make([{"text": "a"}, {"text": ""}, {"text": "文"}], np.random.default_rng(0))
        assert rows["weights_BP"].sum(axis=1).tolist() == [1, 0] and rows["valid_BT"].sum(axis=1).tolist() == [3, 3]
        assert len(make([{"text": ""}], np.random.default_rng(0))["tokens_BT"]) == 0


# ---- the same again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [MaskedLM(unit="spans"), Pretraining()], ids=lambda x: x.name)
def test_the_same_with_any_number_of_workers_and_resumed(source, wordpiece, objective):
    """With none and one, each of which goes on where the other was; test_pipeline.py has several. Pairs of sentences
    are drawn in the same way, and a worker takes seconds to start."""
    workers = 1 if objective.name == "masked-lm" else 0
    settings = {"objective": objective, "epochs": 2, "batch_size": 16}
    whole = take(pipeline(source, wordpiece, **settings))
    assert len(whole) > 8
    batches = pipeline(source, wordpiece, workers=workers, **settings)
    first = [next(batches) for _ in range(4)]
    state = json.loads(json.dumps(batches.get_state()))
    assert_equal([*first, *take(batches)], whole)
    batches = pipeline(source, wordpiece, **settings)
    batches.set_state(state)
    assert_equal(take(batches), whole[4:])
    shares = [take(pipeline(source, wordpiece, process_index=i, process_count=2, **settings)) for i in range(2)]
    assert_equal([{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*shares)], whole)


@pytest.mark.parametrize("static", [False, True])
def test_static_and_dynamic(source, wordpiece, static):
    """The rows of two epochs by their original text: with the masked positions, or without."""
    objective = MaskedLM(static=static)
    epochs = []
    for seed in (3, 3, 4):
        batches = take(
            pipeline(source, wordpiece, objective=objective, epochs=1 + (seed == 3), seed=seed, batch_size=1)
        )
        epochs.append([(restored(b).tobytes(), b["tokens_BT"].tobytes()) for b in batches])
    first, again, other = epochs
    assert first == again
    half = len(first) // 2
    one, two, other = (dict(part) for part in (first[:half], first[half:], other))
    assert one.keys() == two.keys() == other.keys() and len(one) > 100
    for rows in (two, other):
        same = np.mean([one[key] == rows[key] for key in one])
        assert same == 1 if static else same < 0.05


def test_a_position_among_other_rows_is_refused(source, wordpiece):
    state = json.loads(json.dumps(pipeline(source, wordpiece, objective=MaskedLM()).get_state()))
    others = {
        "rate: 0.15 then, 0.2 now": MaskedLM(rate=0.2),
        "unit: tokens then, spans now": MaskedLM(unit="spans"),
        "static: False then, True now": MaskedLM(static=True),
        "rows: masked_rows then, paired_rows now": Pretraining(),
    }
    for message, objective in others.items():
        with pytest.raises(ValueError, match=message):
            pipeline(source, wordpiece, objective=objective).set_state(state)


# ---- sentences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("one", ["one"]),
        ("One. Two! Three? four", ["One.", " Two!", " Three? four"]),
        ('He said "No." Then e.g. nothing.', ['He said "No."', " Then e.g. nothing."]),
        ("def f(x):\n    return x.y\n\n\n    # Done. Really.\n", 
         ["def f(x):\n", "    return x.y\n\n\n", "    # Done.", " Really.\n"]),
        ("3.14 and 2.  (Two.)", ["3.14 and 2.", "  (Two.)"]),
        ("一。二！三", ["一。", "二！", "三"]),
        ("\n\n a", ["\n\n", " a"]),
    ],
)  # fmt: skip
def test_splitting(text, expected):
    assert sentences.split(text) == expected
    assert "".join(expected) == text


def test_sentences_keep_every_token(tokenizer):
    documents = [{"text": text} for text in [*texts(20), "x", "", "one two"]]
    found = sentences.sentences_of(documents, tokenizer, longest=12)
    for document, parts in zip(documents, found):
        encoding = tokenizer.encode(document["text"])
        assert [token for part in parts for token in part[:, 0].tolist()] == encoding.ids.tolist()
        assert all(0 < len(part) <= 12 for part in parts)
    cut = [tokenizer.decode(part[:, 0]).strip() for part in found[0]]
    ends = [text.endswith(".") for text, part in zip(cut, found[0]) if len(part) < 12]
    assert np.mean(ends) > 0.9


def pairs(rows: dict, tokenizer: Tokenizer) -> list[tuple[list[int], list[int], int]]:
    """(a, b, label) of each row."""
    found = []
    for tokens, valid, segments, label in zip(restored(rows), rows["valid_BT"], rows["segments_BT"], rows["next_B"]):
        size, middle = valid.sum(), int(segments.argmax())
        assert tokens[0] == tokenizer.cls_id and tokens[middle - 1] == tokens[size - 1] == tokenizer.sep_id
        assert (segments == (np.arange(len(tokens)) >= middle) * valid).all()
        found.append((tokens[1 : middle - 1].tolist(), tokens[middle : size - 1].tolist(), int(label)))
    return found


@pytest.mark.parametrize("next_sentence", ["nsp", "sop"])
def test_half_of_the_pairs_are_in_order(wordpiece, next_sentence):
    """The others are of two documents, or in the wrong order. Pairs fill their rows, except those cut short."""
    rows = many(Pretraining(next_sentence=next_sentence), wordpiece, length=48)
    spelt = lambda ids: f" {' '.join(map(str, ids))} "
    everything = spelt(token for text in texts(200) for token in wordpiece.encode(text).ids)
    inside = lambda ids: spelt(ids) in everything
    labels, sizes = [], []
    for a, b, label in pairs(rows, wordpiece):
        assert a and b
        assert inside(a) and inside(b)
        if len(a) + len(b) < 45 and min(len(a), len(b)) > 5:  # nothing was cut off, and chance is no explanation
            assert inside(a + b) == (label == 0)
            if label and next_sentence == "sop":
                assert inside(b + a)
        labels.append(label)
        sizes.append(len(a) + len(b))
    assert len(labels) > 1500
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(len(labels))
    assert np.mean(np.array(sizes) == 45) > 0.7


def test_cutting_pairs():
    """To the length of a row, the longer segment first, equally from both ends."""
    rng, firsts = np.random.default_rng(0), []
    for size_a, size_b in ((30, 4), (4, 30), (30, 25), (10, 6), (3, 2)):
        for _ in range(200):
            a, b = (np.stack([np.arange(n)] * 2, axis=1) for n in (size_a, size_b))
            short_a, short_b = sentences._truncate(a, b, 16, rng)
            assert len(short_a) + len(short_b) == min(16, size_a + size_b)
            assert len(short_a) >= min(8, size_a) and len(short_b) >= min(8, size_b)
            for part in (short_a, short_b):
                assert (np.diff(part[:, 0]) == 1).all()
            if size_a == 30 and size_b == 4:
                firsts.append(short_a[0, 0])
    assert abs(np.mean(firsts) - 9) < 1 and np.ptp(firsts) > 5


def test_one_document_is_enough_for_pairs(wordpiece):
    make = Pretraining().rows(wordpiece, Data(length=32))
    rows = make([{"text": texts(1)[0]}, {"text": ""}, {"text": "a"}], np.random.default_rng(0))
    assert 0.2 < rows["next_B"].mean() < 0.8
    assert len(make([{"text": "a"}], np.random.default_rng(0))["tokens_BT"]) == 0


# ---- the objectives -------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused(wordpiece):
    plain = Tokenizer.train(texts(3), 300)
    for objective in (MaskedLM(), Pretraining()):
        with pytest.raises(ValueError, match="no special token for cls, sep, mask: .*vocabulary.kind=wordpiece"):
            objective.rows(plain, Data(length=16))
        with pytest.raises(ValueError, match="data.length=3: . tokens frame a row"):
            objective.rows(wordpiece, Data(length=3))
    with pytest.raises(ValueError, match="need data.packing=documents"):
        Pretraining().rows(wordpiece, Data(length=16, packing="concat"))
    for how in ({"rate": 0.0}, {"rate": 1.0}, {"mask_share": 0.95}, {"random_share": -0.1}):
        with pytest.raises(ValueError, match="MaskedLM"):
            MaskedLM(**how)
    with pytest.raises(ValueError, match="must be tokens, words or spans"):
        MaskedLM(unit="letters")
    with pytest.raises(ValueError, match="must be nsp or sop"):
        Pretraining(next_sentence="next")


@pytest.mark.parametrize("objective", [MaskedLM(), Pretraining()], ids=lambda objective: objective.name)
def test_the_loss_is_that_of_the_hidden_tokens(objective, wordpiece, source):
    """By hand from all the logits; rows of padding do not count."""
    family = next(f for f in registry.families() if objective.task in registry.family(f).PUBLISHED.tasks)
    case = families.Case(
        family=family, task=objective.task, config=families.small(family, vocab_size=500, max_length=32)
    ).wide()
    batch = next(pipeline(source, wordpiece, objective=objective, batch_size=6))
    empty = {name: np.concatenate([x, np.zeros_like(x[:2])]) for name, x in batch.items()}
    with jax.enable_x64(True):
        params = case.params()

        @jax.jit
        def measured(params, rows):
            sums, counts = objective.sums(case.model, params, rows), objective.counts(rows)
            return counts, objective.report(sums, counts), objective.loss(sums, counts)

        counts, report, loss = jax.tree.map(np.asarray, measured(params, empty))
        inputs = {name: batch[name] for name in ("tokens_BT", "valid_BT", "segments_BT") if name in batch}
        output = families.apply(case.model, params, **inputs)
    scores = log_softmax(np.asarray(output.logits), axis=-1)
    judged = log_softmax(np.asarray(output.next_sentence_B2), axis=-1) if "next_B" in batch else None
    row, place = np.nonzero(batch["weights_BP"])
    places, targets = batch["masked_BP"][row, place], batch["targets_BP"][row, place]
    masked = -scores[row, places, targets].mean()
    name = "masked_loss" if "next_B" in batch else "loss"
    np.testing.assert_allclose(report[name], masked, rtol=1e-9)
    np.testing.assert_allclose(report["perplexity"], np.exp(masked), rtol=1e-9)
    np.testing.assert_allclose(report["accuracy"], (scores[row, places].argmax(axis=-1) == targets).mean())
    assert counts["tokens"] == batch["valid_BT"].sum() and counts["masked"] == len(row)
    if "next_B" in batch:
        nats, right = -judged[np.arange(6), batch["next_B"]], judged.argmax(axis=1) == batch["next_B"]
        np.testing.assert_allclose(report["next_loss"], nats.mean(), rtol=1e-9)
        np.testing.assert_allclose(report["next_accuracy"], right.mean())
        np.testing.assert_allclose(report["loss"], masked + nats.mean(), rtol=1e-9)
    np.testing.assert_allclose(report["loss"], loss)
