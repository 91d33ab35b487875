"""Pairs of a source and a target: rows, loss and training."""

import dataclasses
import functools
import itertools
import json

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax
from test_pipeline import Documents, assert_equal, pipeline, take

from transformer_zoo import registry, resolve, runs
from transformer_zoo.config import Data, Run, Vocabulary
from transformer_zoo.data import sources
from transformer_zoo.data.encoding import Frame
from transformer_zoo.data.rows import pad
from transformer_zoo.data.seq2seq import PairRows, best_fit, frame, pack_pairs
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives import (
    OBJECTIVES,
    GapSentences,
    MixtureOfDenoisers,
    PrefixLM,
    Seq2SeqLM,
    SpanCorruption,
    TextInfilling,
)

START = 9  # no token that a tokenizer would propose
EXAMPLES = [
    {"en": f"the {noun} is {word}.", "fr": f"{word}: {noun} la"}
    for noun, word in itertools.product(("house", "tree", "sea", "sun", "stone"), ("red", "tall", "very old", "wide"))
]
TRANSLATE = {"source": "en", "target": "fr", "start_id": START}
# The last one, as in tests/families.py.
FAMILY = [name for name in registry.families() if "seq2seq-lm" in registry.family(name).PUBLISHED.tasks][-1]


@pytest.fixture(scope="module")
def t5() -> Tokenizer:
    return Tokenizer.train([text for example in EXAMPLES for text in example.values()], 400, kind="t5")


@pytest.fixture(scope="module")
def bart() -> Tokenizer:
    return Tokenizer.train([text for example in EXAMPLES for text in example.values()], 320, kind="roberta")


def random_pairs(count: int, longest: tuple[int, int], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(2, 1000, rng.integers(1, most + 1)) for most in longest) for _ in range(count)]


def in_rows(rows) -> list[tuple[list[int], list[int], list[int]]]:
    """(source, decoder input, target) of every pair of every row."""
    found = []
    for row, numbers in enumerate(rows["source_documents_BS"]):
        for number in range(1, numbers.max() + 1):
            here = rows["target_documents_BT"][row] == number
            parts = (
                rows["source_BS"][row][numbers == number],
                rows["target_BT"][row][here],
                rows["targets_BT"][row][here],
            )
            found.append(tuple(part.tolist() for part in parts))
    return found


# ---- packing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(1, 1), (7, 3), (16, 16), (64, 20), (20, 64)])
def test_every_pair_is_there_once_and_whole(lengths):
    for seed in range(10):
        pairs = random_pairs(60, lengths, seed)
        rows = pack_pairs(pairs, *lengths, start=START, padding=1)
        expected = [(a.tolist(), [START, *b[:-1].tolist()], b.tolist()) for a, b in pairs]
        assert sorted(in_rows(rows)) == sorted(expected)


@pytest.mark.parametrize("lengths", [(7, 3), (64, 20)])
def test_rows_are_well_formed(lengths):
    rows = pack_pairs(random_pairs(80, lengths), *lengths, start=START, padding=1)
    for side, length, tokens in (("S", lengths[0], ("source_BS",)), ("T", lengths[1], ("target_BT", "targets_BT"))):
        numbers = rows[f"{'source' if side == 'S' else 'target'}_documents_B{side}"]
        np.testing.assert_array_equal(rows[f"valid_B{side}"], numbers > 0)
        assert numbers.shape[1] == length and numbers.dtype == np.int32 and (numbers[:, 0] == 1).all()
        step = np.diff(numbers, axis=1)
        assert (((step == 0) | (step == 1)) | (numbers[:, 1:] == 0)).all()  # one behind the other, then padding
        for name in tokens:
            assert (rows[name][numbers == 0] == 1).all() and rows[name].dtype == np.int32
    assert (rows["source_documents_BS"].max(axis=1) == rows["target_documents_BT"].max(axis=1)).all()
    assert not len(pack_pairs([], 4, 4, start=0, padding=0)["source_BS"])


def test_little_room_is_wasted():
    """As many rows as the fuller side needs, and few more; the fewest where the pairs fit."""
    rng = np.random.default_rng(0)
    for draw in (
        lambda: rng.integers(1, 64, (400, 2)),
        lambda: rng.integers(1, 20, (400, 2)),
        lambda: np.minimum(rng.geometric(0.05, (400, 2)), 64),
        lambda: np.stack([n := rng.integers(1, 50, 400), np.clip(n + rng.integers(-9, 9, 400), 1, 64)], axis=1),
    ):
        sizes = draw()
        row, column, number = best_fit(sizes, (64, 64))
        fewest = -(-sizes.sum(axis=0).max() // 64)
        assert row.max() + 1 <= 1.25 * fewest + 1
        for side in (0, 1):  # nothing lies upon another
            cells = row * 64 + column[:, side]
            taken = np.concatenate([np.arange(at, at + size) for at, size in zip(cells, sizes[:, side])])
            assert len(np.unique(taken)) == len(taken) and (column[:, side] + sizes[:, side] <= 64).all()
    assert best_fit(np.full((100, 2), 32), (64, 64))[0].max() == 49
    mixed = np.array([[40, 10], [24, 54]] * 30)
    assert best_fit(mixed, (64, 64))[0].max() == 29


# ---- pairs of texts -------------------------------------------------------------------------------------------------


def rows_of(objective, tokenizer, examples, length=32, seed=0):
    return objective.rows(tokenizer, Data(length=length))(examples, np.random.default_rng(seed))


def test_sources_and_targets_are_the_fields(t5):
    """With the prefix before the source, and the end of a text after both."""
    prefix = "translate English to French: "
    rows = rows_of(Seq2SeqLM(**TRANSLATE, prefix=prefix), t5, EXAMPLES, length=64)
    found = {(t5.decode(a[:-1]), t5.decode(b[:-1])) for a, _, b in in_rows(rows) if a[-1] == b[-1] == t5.eos_id}
    assert found == {(prefix + example["en"], example["fr"]) for example in EXAMPLES}
    assert all(read[0] == START for _, read, _ in in_rows(rows))
    assert rows["source_documents_BS"].max() > 1 and not rows["too_long_B"].any()


def test_frames_are_the_tokenizers(t5, bart):
    """<s> a </s> on both sides for BART; always an end."""
    for source, _, target in in_rows(rows_of(Seq2SeqLM(**TRANSLATE), bart, EXAMPLES)):
        for side in (source, target):
            assert side[0] == bart.bos_id and side[-1] == bart.eos_id and bart.eos_id not in side[:-1]
    plain = Tokenizer.train(["a text"], 260)  # has no template
    assert [part.tolist() for part in frame(plain)] == [[], [plain.eos_id]]
    assert [part.tolist() for part in frame(t5)] == [[], [t5.eos_id]]


class Bilingual:
    """A tokenizer that tokenizes targets differently, and marks languages."""

    eos_id, pad_id, languages = 1, 0, {"en": 500, "fr": 501}

    def encode(self, text, template=False, target=False, language=None):
        return self.encode_batch([text], template, target, language)[0]

    def encode_batch(self, texts, template=False, target=False, language=None):
        frame = Frame(last=(1, self.languages[language or "en"])) if template else Frame()
        cut = lambda text: np.array([ord(c) + 300 * target for c in text], np.int32)
        zeros = lambda ids: (ids, np.zeros((len(ids), 2), int), np.zeros(len(ids), int))
        return [frame.around(zeros(cut(text))) for text in texts]


def test_languages_and_targets_of_their_own():
    make = PairRows(
        tokenizer=Bilingual(), length=8, target_length=6, start=501, source="en", target="fr", prefix="",
        languages=("en", "fr"), too_long="refuse",
    )  # fmt: skip
    assert in_rows(make([{"en": "ab", "fr": "cd"}], None)) == [
        ([97, 98, 1, 500], [501, 399, 400, 1], [399, 400, 1, 501])
    ]


@pytest.mark.parametrize("too_long", ["truncate", "drop", "refuse"])
def test_what_is_too_long(t5, too_long):
    """Is truncated or left out, and counted; or refused."""
    long = {"en": "red " * 40, "fr": "red"}, {"en": "red", "fr": "red " * 30}
    objective = Seq2SeqLM(**TRANSLATE, target_length=20, too_long=too_long)
    make = functools.partial(rows_of, objective, t5)
    if too_long == "refuse":
        with pytest.raises(ValueError, match="its source by 0 tokens and its target by .*objective.too_long to"):
            make([*EXAMPLES, long[1]])
        assert not make(EXAMPLES)["too_long_B"].any()
        return
    rows = make([*EXAMPLES, *long])
    assert rows["too_long_B"].sum() == 2
    found = in_rows(rows)
    assert len(found) == len(EXAMPLES) + (2 if too_long == "truncate" else 0)
    assert all(source[-1] == target[-1] == t5.eos_id for source, _, target in found)
    if too_long == "truncate":
        assert sorted(map(len, itertools.chain(*((a, b) for a, _, b in found))))[-2:] == [20, 32]
    only = make(list(long))
    assert only["too_long_B"].tolist()[0] == 2 and only["valid_BS"].any() == (too_long == "truncate")
    counts = objective.counts({name: jnp.asarray(x) for name, x in only.items()})
    assert (counts["examples"], counts["too_long"]) == (0 if too_long == "drop" else 2, 2)


def test_empty_texts(t5):
    """An empty source or target, or both, are only the end of a text."""
    found = in_rows(rows_of(Seq2SeqLM(**TRANSLATE), t5, [{"en": a, "fr": b} for a in ("", "red") for b in ("", "red")]))
    red = [*t5.encode("red").ids.tolist(), t5.eos_id]
    assert sorted((a, b) for a, _, b in found) == sorted((a, b) for a in ([1], red) for b in ([1], red))


def test_what_cannot_work_is_refused(t5, bart):
    for objective, examples, message in (
        (Seq2SeqLM(**TRANSLATE), [{"en": "a", "de": "b"}], "an example has no field 'fr': it has en, de"),
        (Seq2SeqLM(**TRANSLATE), [{"en": "a", "fr": ["b"]}], r"field 'fr' holds no text: \['b'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            rows_of(objective, t5, examples)
    for settings, message in (  # before there are any examples
        ({"languages": ("en_XX", None)}, "has no tokens for languages|unknown language"),
        ({"target_length": 1}, "rows of 1 tokens leave no room for text"),
    ):
        with pytest.raises(ValueError, match=message):
            Seq2SeqLM(**TRANSLATE, **settings).rows(t5, Data())
    with pytest.raises(ValueError, match="pairs of texts need data.packing=documents"):
        Seq2SeqLM(**TRANSLATE).rows(t5, Data(packing="concat"))
    with pytest.raises(ValueError, match="start_id is not known"):
        Seq2SeqLM().rows(t5, Data())
    with pytest.raises(ValueError, match="Seq2SeqLM.too_long is 'cut': it must be truncate, drop, refuse"):
        Seq2SeqLM(too_long="cut")


def test_the_same_resumed(t5):
    settings = {"objective": Seq2SeqLM(**TRANSLATE), "epochs": 3, "batch_size": 2, "group": 6}
    source = Documents(EXAMPLES)
    every = take(pipeline(source, t5, **settings))
    batches = pipeline(source, t5, **settings)
    first, state = [next(batches) for _ in range(3)], json.loads(json.dumps(batches.get_state()))
    assert_equal([*first, *take(batches)], every)
    fresh = pipeline(source, t5, **settings)
    fresh.set_state(state)
    assert_equal(take(fresh), every[3:])
    epoch = take(pipeline(source, t5, **settings | {"epochs": 1}))
    assert sum(batch["source_documents_BS"].max(axis=1).sum() for batch in epoch) == len(EXAMPLES)


# ---- settings -------------------------------------------------------------------------------------------------------


def test_the_start_token_is_the_models(t5):
    objective = Seq2SeqLM(source="en", target="fr", start_id=3)
    for start in (0, 7):
        config = families.small(FAMILY, vocab_size=400, decoder_start_id=start)
        ready, same = objective.for_data(config, None)
        assert same is config and ready == dataclasses.replace(objective, start_id=start)
        assert all(read[0] == start for _, read, _ in in_rows(rows_of(ready, t5, EXAMPLES)))


def test_tokenizers_learn_from_both_sides():
    objective = Seq2SeqLM(source="en", target="fr", prefix="say: ")
    assert objective.texts_of({"en": "a", "fr": "b"}) == ("say: a", "b")
    assert SpanCorruption().texts_of({"text": "a"}) == ("a",)


@pytest.mark.parametrize("objective", [MixtureOfDenoisers(regular=((2.0, 0.1),)), Seq2SeqLM(languages=("a", None))])
def test_settings_survive_run_json(objective, tmp_path):
    run = Run(model=families.small(FAMILY), objective=objective, directory=str(tmp_path))
    runs.write(run)
    assert runs.read(tmp_path) == run and hash(runs.read(tmp_path).objective) == hash(objective)


def test_a_run_keeps_the_start_token_of_its_weights(tmp_path, monkeypatch):
    """When it resumes, for any model in its recipe: the weights' configuration replaces that."""
    settings = {"objective": Seq2SeqLM(), "init_from": "somewhere", "directory": str(tmp_path)}
    recipe = Run(model=families.small(FAMILY, decoder_start_id=7), **settings)
    begun = resolve._for_data(
        dataclasses.replace(recipe, model=families.small(FAMILY, decoder_start_id=5)), open_split=None
    )
    runs.write(begun)
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(resolve, "steps", lambda folder: [3])
    run, _, _, notes, _ = resolve._settle(recipe, open_split=None)
    assert run == begun and run.objective.start_id == 5 and notes == []


def test_a_tokenizer_is_trained_on_both_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(resolve, "CACHE", tmp_path / "cache")
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(example)}\n" for example in EXAMPLES))
    run = Run(
        model=None, objective=Seq2SeqLM(source="en", target="fr", prefix="say: "),
        data=Data(source=f"jsonl:{tmp_path}/pairs.jsonl:en"), vocabulary=Vocabulary(kind="t5", size=400),
        directory=str(tmp_path / "run"),
    )  # fmt: skip
    open_split = functools.partial(sources.source, run.data.source)
    tokenizer = resolve._tokenizer(run, None, None, open_split)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("say: the sun la").ids] == [
        "say",
        ":",
        " the",
        " sun",
        " la",
    ]


# ---- loss -----------------------------------------------------------------------------------------------------------


def model_of(vocab_size: int, **changes):
    config = families.without_dropout(families.small(FAMILY, vocab_size=vocab_size, num_layers=1, **changes))
    if hasattr(config, "num_decoder_layers"):
        config = dataclasses.replace(config, num_decoder_layers=1)
    return families.Case(family=FAMILY, task="seq2seq-lm", config=config)


@functools.partial(jax.jit, static_argnames=("objective", "model"))
def measured(objective, model, params, batch):
    """Report and gradients."""

    def function(params):
        sums, counts = objective.sums(model, params, batch), objective.counts(batch)
        return objective.loss(sums, counts), objective.report(sums, counts)

    grads, report = jax.grad(function, has_aux=True)(params)
    return report, grads


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_packed_is_as_good_as_unpacked(t5, smoothing):
    """Loss, measures and gradients are equal for packed and for single examples, with empty rows, and in chunks."""
    case = model_of(400).wide()
    objective = Seq2SeqLM(**TRANSLATE, label_smoothing=smoothing)
    packed = rows_of(objective, t5, EXAMPLES[:6], length=64)
    alone = [rows_of(objective, t5, [example], length=64) for example in EXAMPLES[:6]]
    alone = {name: np.concatenate([rows[name] for rows in alone]) for name in packed}
    assert len(packed["source_BS"]) < 4
    with jax.enable_x64(True):
        params = case.params()
        report, grads = measured(objective, case.model, params, alone)
        packed, pieces = pad(packed, 6), dataclasses.replace(objective, logits_chunks=4)
        for other, rows in ((objective, packed), (pieces, packed))[: 2 if smoothing else 1]:
            told = measured(other, case.model, params, rows)
            assert families.difference(told[1], grads) < 1e-9
            for name in report:
                np.testing.assert_allclose(told[0][name], report[name], rtol=1e-9)

        # By hand, from the logits of each example by itself.
        output = families.apply(
            case.model, params, alone["source_BS"], alone["target_BT"], valid_BS=alone["valid_BS"],
            target_valid_BT=alone["valid_BT"],
        )  # fmt: skip
        logits, targets = np.asarray(output.logits)[alone["valid_BT"]], alone["targets_BT"][alone["valid_BT"]]
        shares = log_softmax(logits, axis=-1)
        plain = -np.take_along_axis(shares, targets[:, None], axis=-1).mean()
        expected = {
            "loss": (1 - smoothing) * plain - smoothing * shares.mean(),
            "perplexity": np.exp(plain),
            "accuracy": (logits.argmax(axis=-1) == targets).mean(),
            "too_long": 0,
        } | ({"cross_entropy": plain} if smoothing else {})
        assert report.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(report[name], value, rtol=1e-9, err_msg=name)


ADAM = optax.adam(1e-2)


@functools.partial(jax.jit, static_argnames=("objective", "model"))
def step(objective, model, params, state, batch):
    function = lambda params: objective.loss(objective.sums(model, params, batch), objective.counts(batch))
    loss, grads = jax.value_and_grad(function)(params)
    updates, state = ADAM.update(grads, state)
    return optax.apply_updates(params, updates), state, loss


@pytest.mark.parametrize(
    "objective",
    [
        Seq2SeqLM(source="en", target="fr", label_smoothing=0.1),
        SpanCorruption(),
        PrefixLM(),
        MixtureOfDenoisers(),
        TextInfilling(),
        GapSentences(),
    ],
    ids=lambda objective: objective.name,
)
def test_it_is_learned(objective, t5, bart):
    """A few steps on a small corpus, with rows from the pipeline."""
    masks = objective.name in ("text-infilling", "gap-sentences")
    tokenizer = bart if masks else t5
    case = model_of(400, width=32, mlp_dim=64)
    objective, config = objective.for_data(case.config, None)
    objective = dataclasses.replace(objective, target_length=32)
    examples = Documents([{**example, "text": " ".join(example.values())} for example in EXAMPLES * 2])
    batches = pipeline(examples, tokenizer, objective=objective, length=32, batch_size=4, group=40)
    # The others differ from one another in their rows alone, so one program is compiled for all of them.
    measure = objective if objective.name == "seq2seq-lm" else SpanCorruption()
    params = families.fresh(case.model, jax.random.key(0), *case.module.Model.example_inputs(case.task))
    state, losses = ADAM.init(params), []
    for batch in itertools.islice(batches, 25):
        params, state, loss = step(measure, case.model, params, state, batch)
        losses.append(float(loss))
    batches.close()
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.6 * losses[0], losses


def test_every_objective_of_the_task_is_known():
    found = {name for name, kind in OBJECTIVES.items() if kind.task == "seq2seq-lm"}
    assert found == {
        "seq2seq-lm", "span-corruption", "prefix-lm", "mixture-of-denoisers", "text-infilling", "gap-sentences"
    }  # fmt: skip
