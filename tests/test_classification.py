"""Objectives of fine-tuning: their measures by hand, padding, and a run from data to eval.py."""

import dataclasses
import functools
import io
import json

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import transformer_zoo as zoo
from transformer_zoo import commands, loop, registry, resolve, runs, trees
from transformer_zoo.config import Checkpoints, Data, Evaluation, Logging, Optimizer, Run, Training, Vocabulary
from transformer_zoo.diagnosis import first_not_finite
from transformer_zoo.evaluation import evaluate
from transformer_zoo.nn import Output
from transformer_zoo.objectives import OBJECTIVES, MaskedLM, SequenceClassification, TokenClassification, metrics
from transformer_zoo.objectives.classification import best_span

TASKS = ("sequence-classification", "token-classification", "question-answering")


@dataclasses.dataclass(frozen=True)
class Constant:
    """A model whose logits are its parameters."""

    config: object = registry.family("distilbert").Config()

    def apply(self, variables, tokens_BT, segments_BT, valid_BT, train, rngs, method):
        assert method == "read"
        return Output(hidden_BTD=None, logits=variables["params"])


def measured(objective, logits, batch):
    """The report of a batch whose logits are these."""

    @jax.jit
    def report(logits, batch):
        return objective.report(objective.sums(Constant(), logits, batch), objective.counts(batch))

    return {name: float(value) for name, value in report(np.asarray(logits, np.float32), batch).items()}


def texts(rows, real, length=3):
    valid_BT = np.zeros((rows, length), bool)
    valid_BT[:real] = True
    return {"tokens_BT": np.zeros((rows, length), np.int32), "valid_BT": valid_BT}


def one_hot(guesses, classes, high=5.0):
    return high * np.eye(classes)[guesses]


def test_measures_of_classes_by_hand():
    """Ten items of three classes, one of which neither occurs nor is predicted, and two rows of padding."""
    true = [0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 0, 0]
    guess = [0, 0, 0, 0, 2, 2, 2, 2, 2, 0, 1, 1]
    objective = SequenceClassification(labels=("a", "b", "c"))
    got = measured(objective, one_hot(guess, 3), texts(12, 10) | {"targets_B": np.array(true, np.int32)})
    # Confusions: a as a 4, a as c 2, c as c 3, c as a 1.
    f1_a, f1_c = 2 * 4 / (5 + 6), 2 * 3 / (5 + 4)
    nats = np.log(np.exp(5) + 2)
    assert got == pytest.approx(
        {
            "loss": (7 * (nats - 5) + 3 * nats) / 10,
            "accuracy": 0.7,
            "macro_f1": (f1_a + f1_c) / 2,
            "matthews": (4 * 3 - 2 * 1) / np.sqrt(5 * 6 * 5 * 4),
        },
        rel=1e-5,
    )
    two = measured(
        SequenceClassification(labels=("no", "yes")),
        one_hot([0, 0, 1, 1, 1], 2),
        texts(5, 5) | {"targets_B": np.array([0, 1, 1, 1, 0], np.int32)},
    )
    assert two["f1"] == pytest.approx(2 * 2 / (3 + 3)) and two["accuracy"] == pytest.approx(0.6)


def test_matthews_for_several_classes_is_a_correlation():
    draw = np.random.default_rng(0)
    matthews = jax.jit(lambda true, guess: metrics.matthews(metrics.confusion(true, guess, jnp.ones(50), 4)))
    for _ in range(5):
        true, guess = draw.integers(0, 4, (2, 50))
        # Gorodkin's R_K: the covariance of the one-hot columns, over the roots of the variances.
        x, y = np.eye(4)[true], np.eye(4)[guess]
        x, y = x - x.mean(0), y - y.mean(0)
        expected = (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())
        assert float(matthews(true, guess)) == pytest.approx(expected, rel=1e-5)
    assert matthews(true, np.zeros_like(true)) == 0  # who always says the same knows nothing


def test_several_classes_and_numbers_by_hand():
    objective = SequenceClassification(labels=("a", "b"), problem="multi_label_classification")
    logits = np.array([[2.0, -1.0], [1.0, 3.0], [-2.0, -3.0], [9.0, 9.0]])
    targets = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.float32)
    got = measured(objective, logits, texts(4, 3) | {"targets_BC": targets})
    chance = 1 / (1 + np.exp(-logits[:3]))
    nats = -np.where(targets[:3] > 0, np.log(chance), np.log(1 - chance))
    assert got == pytest.approx(
        {"loss": nats.mean(), "macro_f1": (2 / 4 + 1) / 2, "micro_f1": 2 * 2 / (3 + 3), "exact_match": 1 / 3}, rel=1e-5
    )
    objective = SequenceClassification(labels=("score",), problem="regression")
    x, y = np.array([1.0, 2.0, 4.0, 3.0, 9.0]), np.array([1.5, 2.0, 5.0, 2.5, 0.0], np.float32)
    got = measured(objective, x[:, None], texts(5, 4) | {"targets_B": y})
    expected = {"loss": ((x - y)[:4] ** 2).mean(), "pearson": np.corrcoef(x[:4], y[:4])[0, 1]}
    assert got == pytest.approx(expected, rel=1e-4)


def test_tokens_that_bear_no_label_do_not_count():
    objective = TokenClassification(labels=("a", "b"))
    batch = texts(2, 2, 4) | {
        "targets_BT": np.array([[0, 1, 0, 0], [1, 1, 0, 0]], np.int32),
        "judged_BT": np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool),
    }
    guesses = np.array([[0, 1, 1, 1], [0, 0, 0, 0]])
    got = measured(objective, one_hot(guesses, 2), batch)
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert got["f1"] == pytest.approx(2 / 3) and got["macro_f1"] == pytest.approx(2 / 3)
    nats = np.log(1 + np.exp(-5))
    assert got["loss"] == pytest.approx((2 * nats + nats + 5) / 3, rel=1e-4)


def test_spans_against_all_spans():
    draw = np.random.default_rng(1)
    start, end = draw.standard_normal((2, 4, 9))
    for length in (1, 3, 9):
        got = np.array(jax.jit(best_span, static_argnums=2)(start, end, length)).T
        for row in range(4):
            spans = [(i, j) for i in range(9) for j in range(i, min(9, i + length))]
            assert tuple(got[row]) == max(spans, key=lambda span: start[row, span[0]] + end[row, span[1]])


def test_answers_by_hand():
    objective = OBJECTIVES["question-answering"](answer_length=4)
    size = 8
    batch = texts(4, 3, size) | {
        "allowed_BT": np.array([[1, 0, 0, 1, 1, 1, 1, 0]] * 3 + [[0] * 8], bool),
        "starts_BA": np.array([[3, 5, 0], [4, 0, 0], [0, 0, 0], [0, 0, 0]], np.int32),
        "ends_BA": np.array([[4, 6, 0], [6, 0, 0], [0, 0, 0], [0, 0, 0]], np.int32),
        "answers_BA": np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], bool),
    }
    guesses = [(5, 6), (5, 6), (3, 3), (0, 0)]  # the second answer; all but a token of it; something for nothing
    logits = np.zeros((4, size, 2))
    logits[:, [1, 7]] = 50  # question and padding, which are no answers
    for row, (start, end) in enumerate(guesses):
        logits[row, start, 0] = logits[row, end, 1] = 3
    got = measured(objective, logits, batch)
    other = np.log(np.exp(3) + 4)
    nats = [other, (other + other - 3) / 2, other]  # only the first answer is what is trained on
    assert got == pytest.approx({"loss": np.mean(nats), "exact_match": 1 / 3, "f1": (1 + 0.8 + 0) / 3}, rel=1e-5)


def rows_of(objective, count, length, draw, vocab_size):
    """Random rows for an objective, some shorter than others."""
    rows = {name: np.zeros(like.shape, like.dtype) for name, like in objective.shapes(count, length).items()}
    rows["tokens_BT"][:] = draw.integers(0, vocab_size, (count, length))
    rows["valid_BT"][:] = np.arange(length) < draw.integers(4, length, (count, 1))
    if "judged_BT" in rows:
        rows["judged_BT"][:] = rows["valid_BT"] & (np.arange(length) % 3 > 0)
    if "answers_BA" in rows:
        rows["answers_BA"][:, 0] = True
        rows["allowed_BT"][:] = rows["valid_BT"]
        rows["starts_BA"][:, 0], rows["ends_BA"][:, 0] = 1, 2
    for name in rows.keys() & {"targets_B", "targets_BT"}:
        rows[name][:] = draw.integers(0, 3, rows[name].shape)
    return rows


@pytest.mark.parametrize("task", TASKS)
def test_sums_add_up_and_rows_of_padding_count_for_nothing(task):
    """Batches of two, the last one padded, give the results and gradients of one batch of seven."""
    config = families.without_dropout(families.small("bert", labels=("a", "b", "c"), num_layers=1))
    case = families.Case(family="bert", task=task, config=config)
    objective = OBJECTIVES[task](**({} if task == "question-answering" else {"labels": config.labels}))
    rows = rows_of(objective, 7, 12, np.random.default_rng(0), config.vocab_size)
    filled = {name: np.concatenate([x, np.zeros_like(x[:1])]) for name, x in rows.items()}
    params = families.random_params(case.model)
    whole = evaluate(case.model, objective, params, [rows])
    parts = [{name: x[i : i + 2] for name, x in filled.items()} for i in range(0, 8, 2)]
    assert evaluate(case.model, objective, params, parts) == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert np.isfinite(list(whole.values())).all()

    def loss(params, batch):
        return objective.loss(objective.sums(case.model, params, batch, jax.random.key(0)), objective.counts(batch))

    grads = [jax.jit(jax.grad(loss))(params, batch) for batch in (rows, filled)]
    assert families.difference(*grads) < 1e-4


def test_a_number_that_is_not_finite_is_found_in_a_classifier():
    config = families.without_dropout(families.small("bert", labels=("a", "b"), num_layers=1))
    case = families.Case(family="bert", task="sequence-classification", config=config)
    objective, params = SequenceClassification(labels=config.labels), trees.flatten(case.params())
    params["token_embed/embedding"] = np.full_like(params["token_embed/embedding"], np.inf)
    batch = rows_of(objective, 2, 8, np.random.default_rng(0), config.vocab_size)
    found = first_not_finite(case.model, objective, trees.unflatten(params), batch, jax.random.key(0))
    assert found.startswith("the output of token_embed")


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_rows_of_padding_count_for_nothing_in_other_problems(problem):
    objective = SequenceClassification(problem=problem, labels=("a", "b", "c")[: 1 if problem == "regression" else 3])
    draw = np.random.default_rng(0)
    rows = rows_of(objective, 5, 8, draw, 50)
    logits = draw.standard_normal((5, len(objective.labels)))
    filled = {name: np.concatenate([x, np.zeros_like(x[:2])]) for name, x in rows.items()}
    got = measured(objective, np.concatenate([logits, logits[:2]]), filled)
    assert got == pytest.approx(measured(objective, logits, rows), rel=1e-5)


def test_names_of_classes_come_from_the_data():
    Config = registry.family("bert").Config
    classes = {"label": ("no", "yes"), "score": None}.get
    objective, config = SequenceClassification().for_data(Config(), classes)
    assert objective.labels == config.labels == ("no", "yes") and config.problem == "single_label_classification"
    assert objective.for_data(config, classes) == (objective, config)  # again, as when a run goes on
    objective, config = SequenceClassification(label="score").for_data(Config(labels=("a", "b", "c")), classes)
    assert objective.labels == config.labels == ("a", "b", "c")  # the data name none
    objective, config = SequenceClassification(label="score").for_data(Config(problem="regression"), classes)
    assert objective.problem == config.problem == "regression" and config.labels == ("score",)
    objective, config = TokenClassification(spans="score", labels=("x", "y", "z")).for_data(Config(), classes)
    assert config.labels == ("x", "y", "z")
    for kind, own in ((SequenceClassification(), ("yes", "no")), (TokenClassification(spans="score"), ("a", "b"))):
        other = dataclasses.replace(kind, labels=("x", "y")) if kind.name.startswith("token") else kind
        with pytest.raises(ValueError, match=f"and those of the model are {', '.join(own)}: leave model.labels"):
            other.for_data(Config(labels=own), classes)
    with pytest.raises(ValueError, match="the classes are yes, no, and those of the data are no, yes"):
        SequenceClassification(labels=("yes", "no")).for_data(Config(), classes)
    with pytest.raises(ValueError, match="labels is empty: name the classes"):
        SequenceClassification(problem="multi_label_classification").shapes(2, 8)
    assert MaskedLM().for_data(Config(), None) == (MaskedLM(), Config())
    with pytest.raises(ValueError, match="the model has 4 classes, and the data 2"):
        measured(
            SequenceClassification(labels=("a", "b")), np.zeros((2, 4)), texts(2, 2) | {"targets_B": np.zeros(2, int)}
        )
    with pytest.raises(ValueError, match="it must name one or two fields"):
        SequenceClassification(texts=())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sentences of two classes, which a word in the middle distinguishes."""
    draw = np.random.default_rng(0)
    words = np.array(["river", "stone", "cloud", "light", "paper", "window", "garden"])
    file = tmp_path_factory.mktemp("corpus") / "kinds.jsonl"
    lines = []
    for i in range(400):
        some = list(draw.choice(words, 6))
        some[int(draw.integers(6))] = ("north", "south")[i % 2]
        lines.append(json.dumps({"text": " ".join(some), "label": ("cold", "warm")[i % 2]}))
    file.write_text("\n".join(lines) + "\n")
    return file


def recipe(corpus, directory, **parts):
    Config = registry.family("bert").Config
    model = families.without_dropout(
        Config(vocab_size=200, max_length=16, width=32, num_layers=1, num_heads=2, mlp_dim=64)
    )
    defaults = {
        "model": model,
        "objective": SequenceClassification(),
        "directory": str(directory),
        "data": Data(source=f"jsonl:{corpus}", length=16),
        "vocabulary": Vocabulary(kind="wordpiece", size=200),
        "optimizer": Optimizer(peak_lr=3e-3, warmup_steps=5),
        "training": Training(steps=60, batch_size=16),
        "evaluation": Evaluation(every=60, batches=None),
        "checkpoints": Checkpoints(every=60),
        "logging": Logging(every=20, tensorboard=False),
    }
    return Run(**defaults | parts)


def open_split(run):
    return functools.partial(resolve.source_of, run.data)


def test_a_run_from_scratch_and_from_a_pretrained_body(corpus, tmp_path, capsys):
    quiet, shown = Console(quiet=True), Console(file=io.StringIO())
    report = loop.train(recipe(corpus, tmp_path / "scratch"), shown)
    assert "label: 2 classes, found in the data (train / validation): cold 1" in shown.file.getvalue()
    assert (tmp_path / "scratch" / "confusion.png").is_file()
    assert report["accuracy"] > 0.9 and report["f1"] > 0.9 and 5 < report["examples"] < 60
    run = runs.read(tmp_path / "scratch")
    assert run.model.labels == run.objective.labels == ("cold", "warm")
    assert run.model.problem == run.objective.problem == "single_label_classification"
    lines = [json.loads(line) for line in (tmp_path / "scratch" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation/macro_f1"] == report["macro_f1"] and "matthews" in lines[0]

    assert commands.evaluate_command([str(tmp_path / "scratch"), "--json", str(tmp_path / "eval.json")]) == 0
    record, printed = json.loads((tmp_path / "eval.json").read_text()), capsys.readouterr().out
    assert record["accuracy"] == pytest.approx(report["accuracy"]) and "macro f1" in printed and "precision" in printed
    assert np.trace(record["confusion"]) / np.sum(record["confusion"]) == pytest.approx(report["accuracy"])
    assert record["classes"]["warm"]["f1"] == pytest.approx(report["f1"])
    assert "too long" not in printed and commands.evaluate_command([str(tmp_path / "scratch"), "--length", "7"]) == 0
    cut = (
        f"too long, their end is cut off: {record['examples']} of {record['examples']} in validation (data.length is 7"
    )
    assert cut in capsys.readouterr().out
    scratch = runs.load_run(tmp_path / "scratch")
    assert runs.read(tmp_path / "scratch").data.held_out_by == "inputs" and scratch.run.data == run.data
    own = zoo.evaluate(scratch)  # by default on what its run held out
    assert own == pytest.approx(report) and own["examples"] == report["examples"]
    found = scratch.predict(["river cloud north stone paper", "light garden south window cloud"])
    assert [one["label"] for one in found] == ["cold", "warm"]
    scratch.save_pretrained(tmp_path / "export")
    exported = json.loads((tmp_path / "export" / "config.json").read_text())
    assert exported["id2label"] == {"0": "cold", "1": "warm"}

    # A classifier to begin with keeps its head and its names; in another order, the scores move with their names.
    begins = recipe(corpus, tmp_path / "again", init_from=str(tmp_path / "scratch"))
    for labels, order in ((), [0, 1]), (("warm", "cold"), [1, 0]):
        objective = SequenceClassification(labels=labels)
        _, _, bundle, _, line = resolve._settle(dataclasses.replace(begins, objective=objective), open_split(begins))
        head, began = (np.asarray(m.params["head"]["scores"]["kernel"]) for m in (bundle, scratch))
        np.testing.assert_array_equal(head, began[:, order])
        assert bundle.fresh == () and ("those of the weights" in line) != bool(labels)
    other = dataclasses.replace(begins, objective=SequenceClassification(labels=("cold", "warm", "hot")))
    with pytest.warns(UserWarning, match="has other labels, cold, warm: fresh parameters are head/scores/bias"):
        resolve._settle(other, open_split(begins))

    body = recipe(corpus, tmp_path / "body", objective=MaskedLM(), training=Training(steps=10, batch_size=16))
    loop.train(body, quiet)
    with pytest.warns(UserWarning, match="fresh parameters are .*head/scores/kernel"):
        fine = recipe(corpus, tmp_path / "fine", init_from=str(tmp_path / "body"))
        loop.train(dataclasses.replace(fine, training=Training(steps=6, batch_size=16)), quiet)
    began = runs.load_run(tmp_path / "fine")
    assert began.config.labels == ("cold", "warm") and began.config.problem == "single_label_classification"
    ours, theirs = (
        runs.load_run(tmp_path / name).params["blocks"]["mlp_up"]["kernel"] for name in ("fine", "body")
    )  # fmt: skip
    assert 0 < np.abs(np.asarray(ours) - np.asarray(theirs)).max() < 0.03  # a few steps from the body
