"""Mixtures of experts: the leaf of `nn/experts.py` against a loop over tokens and experts in numpy."""

import dataclasses
import functools
import math
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import optim, sharding, trees
from transformer_zoo.config import Lora, Mesh, Optimizer, Training
from transformer_zoo.nn import Compute, experts
from transformer_zoo.training import prepare

E, D, F, J = 4, 8, 6, 2
GATED = lambda gate, up: jax.nn.silu(gate) * up
WIDE = Compute(dtype="float64", param_dtype="float64")


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def routing(logits_LBTE: np.ndarray, balance_weight: float = 1.0, **settings: Any) -> experts.Routing:
    """That of a softmax of these logits."""
    chosen_LBTJ = jax.lax.top_k(logits_LBTE, J)[1]
    return experts.Routing(jax.nn.log_softmax(logits_LBTE), chosen_LBTJ, balance_weight, **settings)


def layers(seed: int = 0, bias: bool = True, dtype: Any = np.float64) -> Any:
    draw = np.random.default_rng(seed)
    sizes = {"gate": (D, F), "up": (D, F), "down": (F, D)}
    return {
        name: {"kernel": draw.normal(size=(E, *size)).astype(dtype)}
        | ({"bias": draw.normal(size=(E, size[1])).astype(dtype)} if bias and name != "down" else {})
        for name, size in sizes.items()
    }


def expert(dense: Any, layers: Any, x_PD: Any) -> Any:
    return dense(layers["down"], GATED(dense(layers["gate"], x_PD), dense(layers["up"], x_PD)))


def naive(layers: Any, x_BTD: Any, weights_BTJ: Any, chosen_BTJ: np.ndarray) -> Any:
    """One expert after the other, for all tokens; the weight of those that it does not get is zero."""
    dense = lambda layer, x: x @ layer["kernel"] + layer.get("bias", 0.0)
    weight = lambda e: (weights_BTJ * (chosen_BTJ == e)).sum(axis=-1, keepdims=True)
    one = lambda e: jax.tree.map(lambda x: x[e], layers)
    return sum(weight(e) * expert(dense, one(e), x_BTD) for e in range(E))


def inputs(choice: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, weights and choices: of one token or of many, among all experts, some of them, or the last alone."""
    draw, shape = np.random.default_rng(0), (1, 1) if choice == "one" else (2, 11)
    among = {"empty": (1, 3), "last": (3, 3)}.get(choice, range(E))
    chosen = np.stack([draw.choice(among, J, replace=False) for _ in range(shape[0] * shape[1])])
    return (
        draw.normal(size=(*shape, D)), draw.uniform(size=(*shape, J)), chosen.reshape(*shape, J).astype(np.int32)
    )  # fmt: skip


@pytest.mark.parametrize("choice", ["one", "random", "empty", "last"])
def test_the_mixture_and_its_gradients_are_those_of_a_loop(choice: str, monkeypatch: pytest.MonkeyPatch):
    """One token, experts without tokens, and one expert with all of them; in float64, by both ways to multiply."""
    own, (x_BTD, weights_BTJ, chosen_BTJ) = layers(), inputs(choice)
    towards = np.random.default_rng(1).normal(size=x_BTD.shape)

    def of(function: Any, *args: Any) -> Any:
        total = lambda *args: (function(*args, chosen_BTJ) * towards).sum()
        return jax.value_and_grad(total, argnums=(0, 1, 2))(*args)

    def all_ways(*args: Any) -> Any:
        found = [of(naive, *args), of(functools.partial(experts.mixture, expert), *args)]
        monkeypatch.setattr(experts, "tiled", experts.ragged)
        return [*found, of(functools.partial(experts.mixture, expert), *args)]

    right, *ways = jax.jit(all_ways)(own, x_BTD, weights_BTJ)
    for actual in ways:
        for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_pairs_are_sorted_by_expert():
    """As by a stable sort; the last number stands for no expert of this device."""
    expert_P = np.random.default_rng(0).integers(0, 4, 50)
    order_P, place_P, sizes_E = experts.sorted_by_expert(jnp.asarray(expert_P), 3)
    expected_P = np.argsort(expert_P, kind="stable")
    np.testing.assert_array_equal(order_P, expected_P)
    np.testing.assert_array_equal(place_P, np.argsort(expected_P))
    np.testing.assert_array_equal(sizes_E, np.bincount(expert_P)[:3])


def test_tiles_hold_as_many_rows_as_an_expert_has_on_average():
    for rows, size in ((1, 1), (4, 1), (5, 2), (100, 32), (10**5, experts.LARGEST_TILE)):
        assert experts._tiles(np.zeros((rows, 0)), np.zeros(E, np.int32))[0] == size


def test_rows_behind_the_last_expert_are_zero_and_have_no_gradient():
    own, x_PD = jax.tree.map(jnp.asarray, layers()), np.random.default_rng(0).normal(size=(9, D))
    sizes_E = jnp.array([2, 0, 3, 0])
    for multiply in (experts.tiled, experts.ragged):
        function = lambda x_PD, multiply=multiply: multiply(expert, own, x_PD, sizes_E)
        y_PD, back = jax.vjp(function, x_PD)
        assert not np.asarray(y_PD)[5:].any() and np.asarray(y_PD)[:5].all()
        (dx_PD,) = back(np.ones_like(y_PD))
        assert not np.asarray(dx_PD)[5:].any() and np.asarray(dx_PD)[:5].all()


def test_the_weights_are_those_of_a_softmax_and_of_equal_logits_the_first_are_chosen():
    logits_BTE = np.array([[[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])
    weights_BTJ, chosen_BTJ = experts.choose(logits_BTE, 2, True)
    np.testing.assert_array_equal(chosen_BTJ, [[[1, 2], [0, 1]]])
    np.testing.assert_allclose(weights_BTJ, 0.5)
    parts = np.exp(logits_BTE) / np.exp(logits_BTE).sum(axis=-1, keepdims=True)
    found = experts.choose(logits_BTE, 2, False)[0]
    np.testing.assert_allclose(found, np.take_along_axis(parts, np.asarray(chosen_BTJ), axis=-1), rtol=1e-14)


@pytest.mark.parametrize(("normalised", "total"), [(True, 2.5), (False, None)])
def test_sigmoids_choose_among_the_best_groups(normalised: bool, total: float | None):
    """Against a loop; the correction decides who is chosen, and not with what weight."""
    draw, (groups, of_token, chosen, size) = np.random.default_rng(0), (4, 2, 3, 3)
    logits, bias = draw.normal(size=(2, 5, groups * size)), 2 * draw.normal(size=groups * size)
    scores = 1 / (1 + np.exp(-logits))
    sigmoid = experts.Sigmoid(num_groups=groups, num_chosen_groups=of_token, scale=2.5)
    weights, found = experts.choose_by_sigmoid(logits, scores + bias, chosen, normalised, sigmoid)
    flat = (scores.reshape(-1, groups * size), found.reshape(-1, chosen), weights.reshape(-1, chosen))
    for own, at, weight in zip(*flat):
        best = [sum(sorted((own + bias)[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
        among = [e for g in np.argsort(best)[-of_token:] for e in range(g * size, (g + 1) * size)]
        assert at.tolist() == sorted(among, key=lambda e: -(own + bias)[e])[:chosen]  # noqa: B023
        expected = own[at] / (own[at].sum() if normalised else 1) * 2.5
        np.testing.assert_allclose(weight, expected, rtol=1e-13)
        assert total is None or weight.sum() == pytest.approx(total)


def test_the_correction_has_no_gradient_and_keeps_its_precision():
    module, scores_BTE = experts.Correction(E, Compute(param_dtype="bfloat16")), np.ones((1, 1, E))
    params = module.init(jax.random.key(0), scores_BTE)["params"]
    assert params["bias"].dtype == jnp.float32
    run = lambda params, scores_BTE: module.apply({"params": params}, scores_BTE).sum()
    assert run({"bias": jnp.arange(4.0)}, scores_BTE) == 4 + 6
    assert not any(x.any() for x in jax.tree.leaves(jax.grad(run, argnums=(0, 1))(params, scores_BTE)))


def test_bfloat16(monkeypatch: pytest.MonkeyPatch):
    """Parameters in float32, computed in bfloat16: near the same in float32, and of this dtype."""
    module = lambda dtype: experts.Experts(E, J, F, Compute(dtype=dtype), GATED, use_bias=True)
    x_BTD = np.random.default_rng(0).normal(size=(2, 7, D)).astype(np.float32)
    params = jax.jit(module("float32").init)(jax.random.key(0), x_BTD)["params"]
    apply = lambda dtype: jax.jit(module(dtype).apply)({"params": params}, x_BTD)
    right, near = apply("float32"), [apply("bfloat16")]
    monkeypatch.setattr(experts, "tiled", experts.ragged)
    for found in [*near, apply("bfloat16")]:
        assert found.dtype == jnp.bfloat16
        assert np.abs(np.asarray(found, np.float32) - right).max() < 0.03 * np.abs(right).max()


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [
        ({"expert": 2, "tensor": 2, "sequence": 2}, 4),
        ({"fsdp": 2, "expert": 4}, 1),  # too few rows to divide
    ],
    ids=str,
)
def test_a_mesh_changes_nothing(sizes: dict[str, int], batch: int):
    """Values and gradients of the whole module, with its parameters divided as those of a model."""
    module = experts.Experts(E, J, F, WIDE, GATED, use_bias=True)
    x_BTD = np.random.default_rng(0).normal(size=(batch, 6, D))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x_BTD)["params"]
    params = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), shapes)

    def run(params: Any, x_BTD: Any) -> Any:
        total = lambda params, x_BTD: (module.apply({"params": params}, x_BTD) ** 2).sum()
        return jax.value_and_grad(total, argnums=(0, 1))(params, x_BTD)

    right = jax.jit(run)(params, x_BTD)
    mesh = sharding.make_mesh(**sizes)
    shardings = sharding.param_shardings({"blocks": {"experts": params}}, mesh)["blocks"]["experts"]
    divided = jax.device_put(params, shardings)
    ways = math.prod(sizes.get(axis, 1) for axis in ("expert", "fsdp", "tensor"))
    kernel = divided["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * ways == kernel.size
    with jax.set_mesh(mesh):
        actual = jax.jit(run)(divided, x_BTD)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_load_balancing_loss_is_that_of_the_real_tokens_of_all_layers():
    """Against the definition; if all tokens are shared evenly it is the number of a token's experts."""
    logits_LBTE = np.random.default_rng(0).normal(size=(3, 2, 5, E))
    real_BT = np.arange(5) < np.array([[5], [2]])
    found = jax.jit(experts.Routing.measure)(routing(logits_LBTE, balance_weight=0.5), real_BT)
    parts = np.exp(logits_LBTE) / np.exp(logits_LBTE).sum(axis=-1, keepdims=True)
    rows = parts[:, real_BT].reshape(-1, E)
    chosen = np.argsort(-rows, axis=-1)[:, :J]
    share_E = (chosen[..., None] == np.arange(E)).sum(axis=(0, 1)) / len(rows)
    np.testing.assert_allclose(found["balance"], 0.5 * E * (share_E * rows.mean(axis=0)).sum(), rtol=1e-13)
    np.testing.assert_allclose(np.sum(found["chosen_LE"], axis=0), share_E * len(rows), rtol=1e-13)
    np.testing.assert_allclose(found["router_entropy"], -(rows * np.log(rows)).sum(axis=-1).mean(), rtol=1e-13)
    even = np.zeros((1, 1, 4, E))
    np.testing.assert_allclose(routing(even).measure(np.ones((1, 4), bool))["balance"], J)

    by_row = routing(logits_LBTE, balance_weight=0.5, by_row=True).measure(real_BT)
    assert by_row.keys() == found.keys()
    np.testing.assert_array_equal(by_row["chosen_LE"], found["chosen_LE"])
    each = []
    for layer in parts:
        for row, real in zip(layer, real_BT):
            share_E = (np.argsort(-row[real], axis=-1)[:, :J, None] == np.arange(E)).sum(axis=(0, 1)) / real.sum()
            each.append(E / J * (share_E * row[real].mean(axis=0)).sum())
    np.testing.assert_allclose(by_row["balance"], 0.5 * sum(each) / len(real_BT), rtol=1e-13)
    empty = routing(logits_LBTE, by_row=True).measure(np.array([[True] * 5, [False] * 5]))["balance"]
    np.testing.assert_allclose(empty, sum(each[::2]), rtol=1e-13)


def test_the_layers_of_all_mixtures_count_together():
    """As those of one; how often the experts were chosen is told apart by path."""
    logits_LBTE = np.random.default_rng(0).normal(size=(3, 2, 5, E))
    real_BT, parts = np.arange(5) < np.array([[5], [2]]), {"blocks/layer_0": slice(2), "blocks/layer_1": slice(2, 3)}
    sown = {path: {"routing": (routing(logits_LBTE[part]),)} for path, part in parts.items()}
    found = experts.measured(experts.routings_of({"routing": sown}), real_BT)
    whole = routing(logits_LBTE).measure(real_BT)
    for path, part in parts.items():
        np.testing.assert_array_equal(found["chosen"][path], whole["chosen_LE"][part])
    for name in ("balance", "router_entropy"):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-14)
    assert experts.routings_of({}) == {}


def test_a_training_loss_has_the_load_balancing_loss_and_an_evaluation_has_not():
    """Of a whole model with several mixtures, on a mesh as on one device; and what is logged."""
    case = families.mixture("gemma4").sized(num_layers=2, balance_weight=0.1).wide()
    case = dataclasses.replace(case, learns="causal-lm")
    batch = families.causal_lm(families.documents(case.config, 8, 16), 16)
    params, objective, key = case.params(), case.objective, jax.random.key(0)

    def report(params: Any, batch: Any, case: families.Case, key: Any) -> Any:
        return objective.report(objective.sums(case.model, params, batch, key), objective.counts(batch))

    run = jax.jit(report, static_argnums=2)
    trained, evaluated = run(params, batch, case, key), run(params, batch, case, None)
    own = {"cross_entropy", "balance_loss", "router_entropy", "highest_expert_share", "lowest_expert_share"}
    assert trained.keys() - evaluated.keys() == own
    np.testing.assert_allclose(evaluated["loss"], trained["cross_entropy"], rtol=1e-12)
    np.testing.assert_allclose(trained["loss"], trained["cross_entropy"] + trained["balance_loss"], rtol=1e-12)
    np.testing.assert_allclose(trained["perplexity"], np.exp(trained["cross_entropy"]), rtol=1e-12)
    balance = trained["balance_loss"] / case.config.balance_weight
    assert 1.5 < balance < 4  # of two experts a token, evenly shared: 2
    assert 0 <= trained["lowest_expert_share"] < 1 / 4 < trained["highest_expert_share"] <= 1 / 2
    assert 1 < trained["router_entropy"] < np.log(4)

    mesh = sharding.make_mesh(expert=4, tensor=2)
    placed = (
        jax.device_put(jax.tree.map(np.asarray, params), sharding.param_shardings(params, mesh)),
        jax.device_put(batch, sharding.batch_shardings(batch, mesh)),
    )
    with jax.set_mesh(mesh):
        divided = run(*placed, case, key)
    for name, value in trained.items():
        np.testing.assert_allclose(divided[name], value, rtol=1e-10, err_msg=name)


def test_balancing_without_a_loss():
    """DeepSeek-V3's rule on a mesh, with accumulation: each step is the one written by hand, and so it is after a
    resume. Experts that hardly share their tokens come to do so, which is the corrections' doing."""
    layers = {"num_layers": 1, "num_dense_layers": 0, "num_expert_groups": 1, "num_chosen_groups": 1}
    case = dataclasses.replace(families.mixture("deepseek_v3").sized(**layers), learns="causal-lm")
    path, rate = "blocks/experts/correction/bias", 0.03
    params = trees.flatten(jax.tree.map(np.array, case.params()))
    params[path][:] = np.linspace(0, 1, case.config.num_experts)  # of scores between 0 and 1
    batch = families.causal_lm(families.documents(case.config, 8, 16), 16)
    tokens, real_BT = {name: batch[name] for name in ("tokens_BT", "documents_BT")}, batch["documents_BT"] > 0

    def loads(flat: Any) -> np.ndarray:
        """How many tokens each expert of the layer gets."""
        _, sown = families.apply(case.model, trees.unflatten(flat), **tokens, mutable=experts.ROUTING)
        chosen_BTJ = np.asarray(experts.routings_of(sown)["blocks/experts"].chosen_LBTJ)[0]
        return np.bincount(chosen_BTJ[real_BT].ravel(), minlength=case.config.num_experts)

    run = families.run(
        case, mesh=Mesh(data=2, expert=2), training=Training(steps=30, batch_size=8, accumulation=2),
        optimizer=Optimizer(balance_rate=rate, peak_lr=1e-3, weight_decay=0.1, ema=0.5),
    )  # fmt: skip
    program, state = families.begin(run, trees.unflatten(params))
    step, rows = families.compile_step(program), families.place(program, batch)
    for number in range(30):
        before = jax.tree.map(np.array, state) if number < 2 else None
        state, _ = step(state, rows)
        if before is None:
            continue
        old, new = trees.flatten(before.params), trees.flatten(state.params)
        load_E = loads(old)
        expected_E = [bias + rate * np.sign(load_E.mean() - load) for bias, load in zip(old[path][0], load_E)]
        np.testing.assert_allclose(new[path][0], expected_E, rtol=1e-6)
        average = (trees.flatten(before.ema)[path] + new[path]) / 2
        np.testing.assert_allclose(trees.flatten(state.ema)[path], average, rtol=1e-6)
        resumed, _ = step(jax.device_put(before, jax.tree.map(lambda x: x.sharding, state)), rows)
        jax.tree.map(np.testing.assert_array_equal, resumed, state)
    trained = trees.flatten(jax.tree.map(np.array, state.params))
    share = lambda flat: loads(flat).max() / loads(flat).mean()
    assert share(trained) < 1.5 < 3 < min(share(params), share(trained | {path: params[path]}))


def test_only_corrections_that_are_trained_move():
    """By their paths, without the optimizer's own update; of several mixtures each by its own tokens."""
    params = {name: {"experts": {"correction": {"bias": np.zeros((1, 3))}}} for name in ("blocks", "more_blocks")}
    params["blocks"]["experts"]["router"] = {"bias": np.zeros((1, 3))}
    after = jax.tree.map(lambda x: x + 7, params)
    chosen = {"blocks/experts": np.array([[1.0, 2.0, 3.0]]), "more_blocks/experts": np.array([[5.0, 0.0, 0.0]])}

    def moved(**settings: Any) -> dict[str, list[float]]:
        found = optim.corrections(Optimizer(**settings), params)
        flat = trees.flatten(optim.balanced(after, params, chosen, 0.5, found))
        return {path: x[0].tolist() for path, x in flat.items() if x[0].tolist() != [7, 7, 7]}

    first, second = (f"{name}/experts/correction/bias" for name in params)
    assert moved(balance_rate=0.5) == {first: [0.5, 0, -0.5], second: [-0.5, 0.5, 0.5]}
    assert moved(balance_rate=0.5, freeze=("more_.*",)) == {first: [0.5, 0, -0.5]}
    assert moved() == {}


def test_a_balance_that_nothing_would_come_of_is_refused():
    """Adapters over frozen routers, and frozen ones; routers without a correction; an objective without the loads."""
    case = families.train_case("deepseek_v3", "causal-lm")
    wanted, classes = Optimizer(balance_rate=0.001), families.train_case("deepseek_v3", "sequence-classification")
    nothing = "balance_rate=0.001: nothing that is trained corrects"
    for run, words in (
        (families.run(case, optimizer=wanted, init_from="a run", lora=Lora(rank=2, targets=(".*/out",))), nothing),
        (families.run(case, optimizer=dataclasses.replace(wanted, freeze=(".*/correction/bias",))), nothing),
        (families.run(families.train_case("mixtral", "causal-lm"), optimizer=wanted), nothing),
        (families.run(classes, optimizer=wanted), "sequence-classification does not count how often experts"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare(run, jax.devices()[:1])
