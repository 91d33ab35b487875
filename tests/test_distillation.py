"""Distillation: each loss by hand, the student's first parameters, and a teacher that does not change."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from transformer_zoo import commands, loop, registry, runs, save_pretrained, trees
from transformer_zoo.config import Data, Evaluation, Logging, Run, Training, Vocabulary
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.evaluation.source import objective_of
from transformer_zoo.models import bert
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import Distillation
from transformer_zoo.objectives.distillation import inherit, spread
from transformer_zoo.pretrained import Bundle

LARGE = families.without_dropout(families.small("bert", num_layers=4))
SMALL = dataclasses.replace(LARGE, num_layers=2)
DOUBLE = Compute(dtype="float64", param_dtype="float64")
# Every loss and every relation.
ALL = {"relation_weight": 3.0, "relations": ("attention", "query", "key", "value")}


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def objective(teacher: Any = LARGE, **settings: Any) -> Distillation:
    return Distillation(teacher="the teacher", architecture=json.dumps(registry.as_json(teacher)), **settings)


def batch() -> dict[str, np.ndarray]:
    """Four rows, the last of which is only padding."""
    rows = families.masked_lm(families.documents(SMALL, 3, 16), 16)
    return {name: np.concatenate([x, np.zeros_like(x[:1])]) for name, x in rows.items()}


def report(objective: Distillation, model: Any, params: Any, rows: Any) -> dict[str, float]:
    measure = jax.jit(lambda params, rows: (objective.sums(model, params, rows), objective.counts(rows)))
    return {name: float(x) for name, x in objective.report(*measure(params, rows)).items()}


def in_numpy(params: Any) -> Any:
    """The parameters as numpy's arrays, with which nothing is compiled."""
    return jax.tree.map(np.asarray, params)


def divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """The Kullback-Leibler divergence, from logarithms."""
    return (np.exp(teacher) * (teacher - student)).sum(axis=-1)


# ---- the losses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("again", [{}, {"relations": ("query", "value"), "relation_heads": 4, "relation_layer": 1}])
def test_every_loss_by_hand(everywhere: bool, again: dict[str, Any]):
    """From the outputs and attention that both models compute on their own."""
    learns = objective(**ALL | again, everywhere=everywhere, temperature=3.0)
    model, rows = learns.model(SMALL, DOUBLE), batch()
    params = families.random_params(model, scale=0.4)
    said, shown = {}, {}
    for who, part in (("student", model.student), ("teacher", model.teacher)):
        inputs = {name: rows[name] for name in ("tokens_BT", "valid_BT")}
        output, asked = families.apply(part, params[who], **inputs, mutable=("intermediates",))
        said[who] = np.asarray(output.hidden_BTD), np.asarray(output.logits)
        shown[who] = {path: x[0] for path, x in trees.flatten(asked["intermediates"]["blocks"]["attention"]).items()}

    real_BT, weights_BP = np.asarray(rows["valid_BT"]), np.asarray(rows["weights_BP"])
    places_BP, targets_BP = np.asarray(rows["masked_BP"]), np.asarray(rows["targets_BP"])
    masked = weights_BP.sum()
    expected: dict[str, float] = {}
    for name, who in (("", "student"), ("teacher_", "teacher")):
        scores_BPV = np.take_along_axis(said[who][1], places_BP[..., None], axis=1)
        found_BP = np.take_along_axis(log_softmax(scores_BPV, axis=-1), targets_BP[..., None], axis=-1)[..., 0]
        expected[f"{name}perplexity"] = np.exp(-(found_BP * weights_BP).sum() / masked)
        expected[f"{name}accuracy"] = ((scores_BPV.argmax(-1) == targets_BP) * weights_BP).sum() / masked
    expected["masked_loss"] = np.log(expected["perplexity"])
    flat = [log_softmax(said[who][1] / 3, axis=-1) for who in ("teacher", "student")]
    nats_BT = divergence(*flat)
    nats_BP = np.take_along_axis(nats_BT, places_BP, axis=1)
    by_place = nats_BT[real_BT].mean() if everywhere else (nats_BP * weights_BP).sum() / masked
    expected["soft_loss"] = 9 * by_place
    s, t = said["student"][0], said["teacher"][0]
    cosine_BT = (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
    expected["cosine_loss"] = (1 - cosine_BT)[real_BT].mean()
    names = {"query": "queries_BTHK", "key": "keys_BSGK", "value": "values_BSGK"}
    for name in learns.relations:
        logs = []
        for who, layer in (("teacher", learns.relation_layer), ("student", -1)):
            if name == "attention":
                logs.append(np.log(np.maximum(shown[who]["weights_BHTS"][layer], 1e-300)))
                continue
            x = np.asarray(shown[who][names[name]][layer])
            x = x.reshape(*x.shape[:2], learns.relation_heads or SMALL.num_heads, -1)
            scores_BHTS = np.einsum("bthk,bshk->bhts", x, x) / np.sqrt(x.shape[-1])
            logs.append(log_softmax(np.where(real_BT[:, None, None], scores_BHTS, -1e300), axis=-1))
        expected[f"{name}_loss"] = divergence(*logs).mean(axis=1)[real_BT].mean()
    weights = {"masked": 2, "soft": 5, "cosine": 1} | dict.fromkeys(learns.relations, 3)
    expected["loss"] = sum(weight * expected[f"{name}_loss"] for name, weight in weights.items())

    actual = report(learns, model, params, rows)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-9, err_msg=name)
        assert value > 1e-4 or "accuracy" in name, name


def test_a_student_like_its_teacher_has_nothing_to_learn_but_the_text():
    learns = objective(teacher=SMALL, **ALL)
    model = learns.model(SMALL, DOUBLE)
    params = families.random_params(model)
    found = report(learns, model, {"student": params["teacher"], "teacher": params["teacher"]}, batch())
    for name, value in found.items():
        if name.endswith("_loss") and name != "masked_loss":
            assert abs(value) < 1e-10, (name, value)
    np.testing.assert_allclose(found["loss"], 2 * found["masked_loss"], rtol=1e-9)
    assert found["accuracy"] == found["teacher_accuracy"]


@pytest.mark.parametrize("settings", [{}, ALL], ids=["DistilBERT", "with relations"])
def test_only_the_student_has_gradients_and_only_relations_are_shown(settings: dict[str, Any]):
    """Attention weights are requested only where relations are compared."""
    learns = objective(**settings)
    model, rows = learns.model(SMALL, DOUBLE), batch()
    params = families.random_params(model)
    loss = lambda params: learns.loss(learns.sums(model, params, rows), learns.counts(rows))
    grads = trees.flatten(jax.jit(jax.grad(loss))(params))
    for path, x in grads.items():
        assert (np.abs(x).max() > 0) == path.startswith("student/"), path
    shown = []
    apply = type(model).apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "apply", lambda *args, **how: shown.append(how["mutable"]) or apply(*args, **how))
        jax.eval_shape(loss, params)
    assert shown == [["intermediates"] if settings else []]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"soft_weight": 0.0, "cosine_weight": 0.0}, {"masked_loss"}),
        ({"masked_weight": 0.0, "cosine_weight": 0.0}, {"soft_loss"}),
        ({"masked_weight": 0.0, "soft_weight": 0.0}, {"cosine_loss"}),
    ],
    ids=str,
)
def test_losses_of_no_weight_are_left_out(settings: dict[str, float], left: set[str]):
    learns = objective(**settings)
    model = learns.model(SMALL, DOUBLE)
    found = report(learns, model, families.random_params(model), batch())
    assert {name for name in found if name.endswith("_loss")} == left
    (name,) = left
    weight = {"masked_loss": 2, "soft_loss": 5, "cosine_loss": 1}[name]
    np.testing.assert_allclose(found["loss"], weight * found[name], rtol=1e-12)


# ---- teacher and student --------------------------------------------------------------------------------------------


def begun(learns: Distillation, student: bert.Config = SMALL, fresh: tuple[str, ...] = ()) -> tuple[Any, Any, Any]:
    """The student's first parameters from fresh ones, and the teacher's parameters."""
    model = learns.model(student, DOUBLE)
    params = in_numpy(families.random_params(model, seed=1))
    teacher = in_numpy(families.random_params(model.teacher, seed=2))
    asked = []

    def load(name: str, **how: Any) -> Bundle:
        asked.append((name, how))
        return Bundle(model.teacher, teacher, model.teacher.config, None, fresh)

    found = learns.begin(params, load)
    assert asked == [("the teacher", {"task": "masked-lm"})]
    return found, params, teacher


@pytest.mark.parametrize(("layers", "chosen"), [(None, (0, 2)), ((3, 1), (3, 1)), ((0, 0), (0, 0))], ids=str)
def test_the_student_begins_as_layers_of_the_teacher(layers: Any, chosen: tuple[int, ...]):
    found, _, teacher = begun(objective(layers=layers))
    theirs = trees.flatten(teacher)
    assert trees.flatten(found["teacher"]).keys() == theirs.keys()
    for path, x in trees.flatten(found["student"]).items():
        expected = theirs[path][np.array(chosen)] if path.startswith("blocks/") else theirs[path]
        np.testing.assert_array_equal(x, expected, err_msg=path)
    for path, x in trees.flatten(found["teacher"]).items():
        np.testing.assert_array_equal(x, theirs[path], err_msg=path)


def test_the_student_may_begin_fresh():
    """And then have other sizes, for losses that allow it."""
    narrow = dataclasses.replace(SMALL, width=16, mlp_dim=24)
    found, params, teacher = begun(objective(layers=(), cosine_weight=0.0), narrow)
    for who, expected in (("student", params["student"]), ("teacher", teacher)):
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), found[who], expected))


def test_layers_are_spread_evenly():
    assert spread(6, 12) == (0, 2, 4, 6, 8, 10)
    assert spread(2, 4) == (0, 2) and spread(3, 3) == (0, 1, 2) and spread(1, 5) == (0,)
    assert spread(4, 6) == (0, 1, 3, 4)


def test_another_family_inherits_what_bears_the_same_names():
    """DistilBERT is BERT without segments and pooler."""
    teacher = in_numpy(families.random_params(bert.Model(LARGE, task="masked-lm")))
    module = registry.family("distilbert")
    sizes = {name: getattr(SMALL, name) for name in ("vocab_size", "max_length", "width", "num_heads", "mlp_dim")}
    student = in_numpy(families.random_params(module.Model(module.Config(num_layers=2, **sizes)), seed=3))
    found = trees.flatten(inherit(student, teacher))
    assert found.keys() == trees.flatten(student).keys()
    np.testing.assert_array_equal(found["blocks/mlp_up/kernel"], teacher["blocks"]["mlp_up"]["kernel"][::2])
    np.testing.assert_array_equal(found["lm_head/dense/kernel"], teacher["lm_head"]["dense"]["kernel"])


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((0,), r"layers=\[0\]: the student has 2 layers"),
        ((0, 4), r"layers=\[0, 4\].* of the teacher's 4, from 0"),
        ((-1, 0), r"layers=\[-1, 0\]"),
    ],
    ids=str,
)
def test_layers_that_are_not_there(layers: tuple[int, ...], words: str):
    with pytest.raises(ValueError, match=words):
        begun(objective(layers=layers))


def test_teachers_that_cannot_teach():
    with pytest.raises(ValueError, match="is not a masked language model: it lacks lm_head/bias"):
        begun(objective(), fresh=("lm_head/bias",))
    narrow = dataclasses.replace(SMALL, width=16)
    with pytest.raises(ValueError, match=r"student's .* has the shape .* objective.layers=\(\)"):
        begun(objective(cosine_weight=0.0), narrow)
    with pytest.raises(ValueError, match=r"student's width is 16 and the teacher's \(the teacher\) 32"):
        objective().model(narrow, DOUBLE)
    with pytest.raises(ValueError, match="vocab_size is 91"):
        objective().model(dataclasses.replace(SMALL, vocab_size=91), DOUBLE)
    few = dataclasses.replace(SMALL, num_heads=2)
    with pytest.raises(ValueError, match="num_heads is 2"):
        objective(relation_weight=1.0).model(few, DOUBLE)
    with pytest.raises(ValueError, match="num_heads is 2"):
        objective(relation_weight=1.0, relations=("attention",), relation_heads=4).model(few, DOUBLE)
    objective(relation_weight=1.0, relations=("value",), relation_heads=4).model(few, DOUBLE)
    with pytest.raises(ValueError, match="relation_heads=5 must divide"):
        objective(relation_weight=1.0, relations=("value",), relation_heads=5).model(few, DOUBLE)
    with pytest.raises(ValueError, match="relation_layer=4: the teacher has 4 layers"):
        objective(relation_weight=1.0, relation_layer=4).model(SMALL, DOUBLE)
    with pytest.raises(FileNotFoundError, match="no folder"):
        Distillation(teacher="./nowhere").model(SMALL, DOUBLE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"soft_weight": -1.0}, "at least 0"),
        ({"soft_weight": 0.0, "masked_weight": 0.0, "cosine_weight": 0.0}, "one of them more"),
        ({"temperature": 0.5}, "temperature and relation_heads must be at least 1"),
        ({"relation_heads": 0}, "temperature and relation_heads must be at least 1"),
        ({"relations": ("attention", "keys")}, "relations has {'keys'}"),
        ({"relation_weight": 1.0, "relations": ()}, "relations is empty"),
        ({"mask_share": 2.0}, "Distillation: mask_share=2.0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        objective(**settings)


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_run_from_a_folder_to_its_student(tmp_path: Path):
    """The teacher keeps every bit and has no moments; the student can be loaded after the teacher is deleted."""
    for number in range(24):
        (tmp_path / f"{number:02}.txt").write_text(" ".join(f"word{number * k % 17}" for k in range(30)))
    texts = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    tokenizer = Tokenizer.train(texts, 120, None, kind="wordpiece")
    large = bert.Model(dataclasses.replace(LARGE, vocab_size=tokenizer.vocab_size))
    with jax.enable_x64(False):
        params = in_numpy(families.random_params(large, scale=0.1))
        save_pretrained(tmp_path / "teacher", Bundle(large, params, large.config, tokenizer))
        run = Run(
            model=dataclasses.replace(large.config, num_layers=2),
            objective=Distillation(teacher=str(tmp_path / "teacher")),
            directory=str(tmp_path / "run"),
            data=Data(source=f"text:{tmp_path}/*.txt", length=24),
            vocabulary=Vocabulary(path=str(tmp_path / "teacher")),
            training=Training(steps=3, batch_size=8),
            evaluation=Evaluation(every=3, batches=1),
            logging=Logging(every=1, tensorboard=False),
        )
        report = loop.train(run)
        assert report["loss"] > 0 and report["teacher_perplexity"] > 1
        shutil.rmtree(tmp_path / "teacher")
        whole = runs.load_run(tmp_path / "run", whole=True)
        for path, x in trees.flatten(whole.params["teacher"]).items():
            assert np.asarray(x).tobytes() == np.asarray(trees.flatten(params)[path]).tobytes(), path
        student = runs.load(tmp_path / "run")
        assert student.config == run.model and student.model.task == "masked-lm"
        # The run's objective measures the pair; the student alone is measured as any model of its task.
        assert [objective_of(m).name for m in (whole, student)] == ["distillation", "masked-lm"]
        assert trees.flatten(student.params).keys() == trees.flatten(params).keys()
        moved = trees.flatten(inherit(student.params, params))
        assert all((np.asarray(x) != moved[path]).any() for path, x in trees.flatten(student.params).items())
        assert commands.evaluate_command([str(tmp_path / "run"), "--split", "train", "--batches", "1"]) == 0
