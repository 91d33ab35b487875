"""Replaced-token detection: sampling, the labels, both losses by hand, and shared embeddings."""

import dataclasses
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transformer_zoo import registry, runs, trees
from transformer_zoo.models import bert
from transformer_zoo.objectives import ReplacedTokens, replaced_tokens
from transformer_zoo.objectives.replaced_tokens import Detection, Detector, put

CASES = [case for case in families.train_cases() if case.learns == ReplacedTokens.name]
each = pytest.mark.parametrize("case", CASES, ids=families.name_of)


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def plain(case: families.Case) -> families.Case:
    """In float64, without dropout."""
    return dataclasses.replace(case.wide(), config=families.without_dropout(case.config))


def batch_of(case: families.Case, rows: int = 4) -> dict[str, np.ndarray]:
    return families.masked_lm(families.documents(case.config, rows, 16), 16)


def judged(case: families.Case, params: trees.Tree, batch: dict[str, np.ndarray]) -> Detection:
    """The outputs of both models, for given samples."""
    rngs = {"sample": jax.random.key(5)}
    return jax.jit(lambda params, batch: case.model.apply({"params": params}, **batch, rngs=rngs))(params, batch)


def objective_of(case: families.Case, **changes: Any) -> ReplacedTokens:
    return dataclasses.replace(case.objective, **changes)


def test_guesses_are_drawn_as_often_as_the_generator_holds_them_likely():
    scores_V = np.array([0.0, 1.0, -2.0, 3.0, 0.5, 2.5, np.finfo(np.float64).min])
    draws = 40000
    sample = jax.jit(replaced_tokens.sample, static_argnums=2)
    for temperature in (1.0, 2.5):
        drawn_BP = sample(np.tile(scores_V, (4, draws // 4, 1)), jax.random.key(7), temperature)
        assert drawn_BP.dtype == jnp.int32
        likely_V = np.exp(scores_V / temperature) / np.exp(scores_V / temperature).sum()
        share_V = np.bincount(np.asarray(drawn_BP).ravel(), minlength=len(scores_V)) / draws
        assert (np.abs(share_V - likely_V) <= 4.5 * np.sqrt(likely_V * (1 - likely_V) / draws)).all()
    assert (np.asarray(sample(np.tile(scores_V, (1, 99, 1)), jax.random.key(7), 0.0)) == 3).all()
    one, other = (np.asarray(sample(np.tile(scores_V, (1, 99, 1)), jax.random.key(seed))) for seed in (0, 1))
    assert (one != other).any()


def test_tokens_are_put_where_there_is_a_weight():
    tokens_BT = jnp.array([[5, 6, 7, 8], [1, 2, 3, 4]])
    places_BP, new_BP = jnp.array([[2, 0, 0], [0, 3, 0]]), jnp.array([[9, 9, 9], [7, 8, 9]])
    weights_BP = jnp.array([[1.0, 0, 0], [1, 1, 0]])
    assert jax.jit(put)(tokens_BT, places_BP, new_BP, weights_BP).tolist() == [[5, 6, 9, 8], [7, 2, 3, 8]]


@each
def test_both_losses_by_hand(case: families.Case):
    """With a constant generator: a correct sample does not count as replaced."""
    case = plain(case)
    objective, batch, flat = objective_of(case), batch_of(case), trees.flatten(case.params())
    always = int(batch["targets_BP"][0, 0])
    flat = {path: np.array(x) for path, x in flat.items()}
    flat["generator/lm_head/bias"][always] = 100.0
    bias = "discriminator/head/scores/bias"  # such that half of the tokens are held to be replaced
    flat[bias] -= np.median(judged(case, trees.unflatten(flat), batch).scores_BT)
    params = trees.unflatten(flat)
    said = judged(case, params, batch)

    real_BT, targets_BP, weights_BP = (np.asarray(batch[name]) for name in ("valid_BT", "targets_BP", "weights_BP"))
    expected_BT, original_BT = np.array(batch["tokens_BT"]), np.array(batch["tokens_BT"])
    for row, places in enumerate(np.asarray(batch["masked_BP"])):
        original_BT[row, places], expected_BT[row, places] = targets_BP[row], always
    replaced_BT = expected_BT != original_BT
    np.testing.assert_array_equal(said.corrupted_BT, expected_BT)
    np.testing.assert_array_equal(said.replaced_BT, replaced_BT)
    assert not replaced_BT[0, int(batch["masked_BP"][0, 0])] and 0 < replaced_BT.sum() < weights_BP.sum()

    scores_BPV = np.asarray(said.logits_BPV)[..., : case.config.vocab_size]
    highest_BP = scores_BPV.max(axis=-1, keepdims=True)
    log_BPV = scores_BPV - highest_BP - np.log(np.exp(scores_BPV - highest_BP).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_BPV, targets_BP[..., None], axis=-1).sum()
    judged_BT = 1 / (1 + np.exp(-np.asarray(said.scores_BT)))
    judged_nats = -np.log(np.where(replaced_BT, judged_BT, 1 - judged_BT))[real_BT].sum()
    suspected = (judged_BT > 0.5) & real_BT
    found, tokens = (suspected & replaced_BT).sum(), real_BT.sum()
    precision, recall = found / suspected.sum(), found / replaced_BT.sum()

    @jax.jit
    def measure(params, batch):
        return objective.report(objective.sums(case.model, params, batch), objective.counts(batch))

    report = measure(params, batch)
    expected = {
        "loss": nats / weights_BP.sum() + 50 * judged_nats / tokens,
        "generator_loss": nats / weights_BP.sum(),
        "generator_accuracy": (targets_BP == always).mean(),
        "discriminator_loss": judged_nats / tokens,
        "accuracy": (suspected == replaced_BT)[real_BT].mean(),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "replaced": replaced_BT.sum() / tokens,
    }
    assert report.keys() == expected.keys()
    assert 0 < found < suspected.sum(), "the test would not see what is counted wrongly"
    for name, value in expected.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-9, err_msg=name)


@each
def test_rows_of_zeros_count_for_nothing(case: families.Case):
    case = plain(case)
    objective, batch, params = objective_of(case, sampling_temperature=0.0), batch_of(case), case.params()
    more = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x)]), batch)
    measure = jax.jit(lambda batch: objective.sums(case.model, params, batch))
    for function in (measure, jax.jit(objective.counts)):
        few, many = function(batch), function(more)
        for name in few:
            np.testing.assert_allclose(few[name], many[name], rtol=1e-12, err_msg=name)


@each
def test_the_embeddings_are_one(case: families.Case):
    """The shared embeddings are stored in the discriminator, and both losses have gradients with respect to them. The
    samples pass no gradient."""
    case = plain(case)
    batch, params, model = batch_of(case), case.params(), case.model
    flat = trees.flatten(params)
    assert [path for path in flat if path.endswith("token_embed/embedding")] == ["discriminator/token_embed/embedding"]
    assert not [path for path in flat if path.startswith("generator/") and "embed/" in path]
    shared = [path for path in flat if "_embed/" in path or "embed_norm/" in path]
    assert len(shared) >= 4

    objectives = [objective_of(case, discriminator_weight=weight) for weight in (0.0, 1.0, 3.0)]

    def losses(params: Any) -> jax.Array:
        sums, counts = objectives[0].sums(model, params, batch), objectives[0].counts(batch)  # the same for all
        return jnp.stack([objective.loss(sums, counts) for objective in objectives])

    gradients = jax.tree.map(np.asarray, jax.jit(jax.jacrev(losses))(params))
    alone, both, stronger = ({path: x[i] for path, x in trees.flatten(gradients).items()} for i in range(3))
    for path in flat:
        if path.startswith("generator/"):
            np.testing.assert_allclose(alone[path], stronger[path], rtol=1e-9, atol=1e-12, err_msg=path)
        else:
            assert (np.abs(alone[path]).max() > 0) == (path in shared), path
        np.testing.assert_allclose(stronger[path] - alone[path], 3 * (both[path] - alone[path]), rtol=1e-7, atol=1e-12)
    assert all(np.abs(both[path] - alone[path]).max() > 0 for path in shared)


@each
def test_the_generator_is_the_family_s_own_and_the_result_is_the_discriminator(case: families.Case):
    case = plain(case)
    batch, params, model = batch_of(case), case.params(), case.model
    said = judged(case, params, batch)
    small = model.generator.config
    assert (small.num_heads, small.width, small.mlp_dim) == (8, 16, 40) and small.num_layers == case.config.num_layers
    flat = trees.flatten(registry.param_shapes(model.generator))
    theirs = trees.flatten(params["discriminator"]) | trees.flatten(params["generator"])
    generator = trees.unflatten({path: theirs[path] for path in flat})
    inputs = {name: batch[name] for name in ("tokens_BT", "valid_BT")}
    hidden_BTD = families.apply(model.generator, generator, **inputs).hidden_BTD
    scores_BTV = families.apply(model.generator, generator, hidden_BTD, method="logits")
    expected_BPV = np.take_along_axis(np.asarray(scores_BTV), np.asarray(batch["masked_BP"])[..., None], axis=1)
    np.testing.assert_allclose(said.logits_BPV, expected_BPV, rtol=1e-9, atol=1e-12)

    discriminator, found = case.objective.result(model, params)
    assert discriminator.config == case.config and discriminator.task == "replaced-token-detection"
    assert jax.tree.structure(found) == jax.tree.structure(registry.param_shapes(discriminator))
    output = families.apply(discriminator, found, **inputs | {"tokens_BT": said.corrupted_BT})
    np.testing.assert_allclose(output.logits, said.scores_BT, rtol=1e-9, atol=1e-12)


def test_embeddings_as_wide_as_the_layers_cannot_be_shared_with_a_smaller_generator():
    large = families.small("bert")
    small = dataclasses.replace(large, width=16, num_heads=4)
    parts: list[nn.Module] = [bert.Model(config) for config in (small, large)]
    with pytest.raises(ValueError, match=r"cannot share .*token_embed/embedding.*objective.generator_size=1"):
        registry.param_shapes(Detector(*parts, temperature=1.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"generator_size": 0}, "generator_size is 0"),
        ({"generator_size": 1.5}, "generator_size is 1.5"),
        ({"discriminator_weight": -1}, "must be at least 0"),
        ({"sampling_temperature": -1}, "must be at least 0"),
        ({"rate": 0}, "ReplacedTokens.rate is 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        ReplacedTokens(**settings)


def test_a_family_without_the_task():
    with pytest.raises(ValueError, match="needs the task 'replaced-token-detection', which .*bert lacks"):
        ReplacedTokens().model(bert.Config(), None)


@each
def test_a_run_cannot_go_on_with_another_generator(case: families.Case):
    run = families.run(case)
    larger = dataclasses.replace(case.objective, generator_size=1.0)
    with pytest.raises(ValueError, match="objective.generator_size: 0.5 there, 1.0 now"):
        runs.check_same(run, dataclasses.replace(run, objective=larger))
    heavier = dataclasses.replace(case.objective, discriminator_weight=10.0)
    assert runs.check_same(run, dataclasses.replace(run, objective=heavier)) == [
        "objective.discriminator_weight: 50.0, now 10.0"
    ]
