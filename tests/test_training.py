"""The train step and its parts: optimizers, schedules, skipped updates, and the origin of a NaN."""

import dataclasses
import functools
import math
import re
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_zoo import diagnosis, optim, registry, trees
from transformer_zoo.checkpoints import peft
from transformer_zoo.config import Optimizer
from transformer_zoo.nn.embedding import padded_vocab
from transformer_zoo.training import TrainState, make_state, prepare, train_step

OPTIMIZERS = ("adamw", "adafactor", "lion", "muon")
# A decoder and an encoder-decoder, for properties of the step alone.
each_writer = pytest.mark.parametrize("case", families.objective_cases("cache"), ids=families.name_of)
by_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def batch_of(case: families.Case, seed: int = 0) -> dict[str, np.ndarray]:
    return families.BATCHES[case.learns](families.documents(case.config, 8, 16, seed), 16)


def spoilt(objective: Any) -> Any:
    """An objective that a batch can spoil with `good_B`: its loss by negative values, or only its gradient by zeros."""

    def shapes(self: Any, batch: int, length: int) -> Any:
        return super(kind, self).shapes(batch, length) | {"good_B": jax.ShapeDtypeStruct((batch,), jnp.float32)}

    def counts(self: Any, batch: Any) -> Any:
        return super(kind, self).counts(batch) | {"good": batch["good_B"].sum()}

    def loss(self: Any, sums: Any, counts: Any) -> jax.Array:
        good = super(kind, self).loss(sums, counts)
        return good + 0 * jnp.sqrt(counts["good"] * good)

    methods = {"shapes": shapes, "counts": counts, "loss": loss}
    kind = dataclasses.dataclass(frozen=True, kw_only=True)(type("Spoilt", (type(objective),), methods))
    return kind(**{field.name: getattr(objective, field.name) for field in dataclasses.fields(objective)})


def good(batch: Any, value: float = 1) -> dict[str, np.ndarray]:
    """A batch for an objective that can be spoilt."""
    rows = len(next(iter(batch.values())))
    return batch | {"good_B": np.full(rows, value, np.float32)}


def identical(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def host(tree: Any) -> Any:
    """A copy that outlives the step, which reuses the memory of its argument."""
    return jax.tree.map(np.array, tree)


@jax.jit
def copied(tree: Any) -> Any:
    """A copy on the device."""
    return jax.tree.map(jnp.copy, tree)


# ---- the step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (case, name)
        for case in families.objective_cases()
        for name in OPTIMIZERS
        if name == "adamw" or case.learns == "causal-lm"
    ],
    ids=families.name_of,
)
def test_training_a_model(case: families.Case, name: str):
    """Some steps on one batch lower its loss by a fifth; frozen parameters keep every bit and have no state; padding
    rows of the vocabulary stay zero, with or without weight decay."""
    if name != "adamw":  # whose programs have dropout, for every objective
        case = dataclasses.replace(case, config=families.without_dropout(case.config))
    params = case.params(scale=0.05)
    flat, V = trees.flatten(params), case.config.vocab_size
    others = sorted(path for path in flat if "token_embed" not in path)  # which may be all that can learn so quickly
    frozen = sorted({*others[1::4], *trees.select(case.objective.frozen, flat)})
    rate = 0.3 if name == "adafactor" else 0.03  # Adafactor's is relative to a parameter's size
    optimizer = Optimizer(name=name, peak_lr=rate, weight_decay=0.1, freeze=tuple(map(re.escape, frozen)))
    program, state = families.begin(families.run(case, optimizer=optimizer), params)
    step, batch = families.compile_step(program), batch_of(case)
    for random in (
        ({"key": state.key + 1}, {"step": state.step + 1}) if any(families.dropouts(case.config).values()) else ()
    ):
        (_, one), (_, other) = (step(copied(s), batch) for s in (state, state.replace(**random)))
        assert one["loss"] != other["loss"], f"the same dropout for another {[*random]}"
    losses: list[float] = []
    while len(losses) < 120 and not (losses and losses[-1] < 0.8 * losses[0]):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0], losses
    for path, x in trees.flatten(state.params).items():
        assert identical(x, flat[path]) == (path in frozen), path
        if V < x.shape[0] == padded_vocab(V):
            assert not x[V:].any(), path
    kept = ["/".join(str(key.key) for key in keys if hasattr(key, "key")) for keys, _ in leaves_of(state.opt_state)]
    assert not [path for path in kept if any(path.endswith(f) for f in frozen)]
    assert len(kept) > len(flat) - len(frozen)


class Drawn:
    """An objective whose loss is a random number from its key."""

    def counts(self, batch: Any) -> Any:
        return {"tokens": batch["x_B"].size}

    def sums(self, model: Any, params: Any, batch: Any, key: jax.Array) -> Any:
        x = jax.random.normal(key) + 0 * params["x"]
        return {"x": x, "square": x * x}

    def loss(self, sums: Any, counts: Any) -> jax.Array:
        return sums["x"]

    def report(self, sums: Any, counts: Any) -> Any:
        return sums


def test_no_number_becomes_not_finite_by_the_update():
    """With an `eps` that is 0 in float32, a parameter without a gradient is 0 / 0: it stays, and the others are
    trained."""
    model = Drawn()
    optimizer = optim.make_optimizer(Optimizer(eps=1e-60, peak_lr=0.1, weight_decay=0.0), 10, {"x": jnp.zeros(2)})
    state = make_state({"x": jnp.ones(2)}, optimizer=optimizer, seed=0, ema=True)
    model.sums = lambda model, params, batch, key: {"x": params["x"][0], "square": 0.0}
    step = functools.partial(
        train_step, batch={"x_B": jnp.ones(4)}, model=None, objective=model, optimizer=optimizer,
        rate=lambda step: step, ema=0.5,
    )  # fmt: skip
    state, metrics = jax.jit(step)(state)
    np.testing.assert_allclose(state.params["x"], [0.9, 1.0], rtol=1e-5)
    np.testing.assert_allclose(state.ema["x"], [0.95, 1.0], rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)) and metrics["skipped"] == 0


@pytest.mark.parametrize("name", ["dtype", "param_dtype"])
def test_training_in_float16_is_refused(name: str):
    case = families.objective_cases("cache")[0].with_(**{name: "float16"})
    with pytest.raises(ValueError, match=f"compute.{name}=float16 is for inference.*bfloat16 or float32"):
        prepare(families.run(case))


def drawing(seed: int, accumulation: int = 1) -> tuple[TrainState, Any]:
    """A state before the first step, and the step."""
    optimizer = optax.sgd(0.0)
    state = make_state({"x": jnp.zeros(())}, optimizer=optimizer, seed=seed, ema=False)
    step = functools.partial(
        train_step, batch={"x_B": jnp.ones(4)}, model=None, objective=Drawn(), optimizer=optimizer,
        rate=lambda step: step, accumulation=accumulation,
    )  # fmt: skip
    return state, step


def test_each_step_of_each_seed_draws_other_numbers():
    """From the seed's key, which does not change."""
    drawn = {}
    for seed in (0, 1):
        state, step = drawing(seed)
        key = state.key
        for number in range(3):
            other, _ = drawing(2)
            drawn[seed, number] = float(step(state)[1]["x"])
            drawn[seed, number, "other key"] = float(step(state.replace(key=other.key))[1]["x"])
            state, _ = step(state)
            assert state.key.tolist() == key.tolist()
    assert len({*drawn.values()}) == 9  # the other key gives the same three numbers twice
    state, step = drawing(0)
    assert float(step(state)[1]["x"]) == drawn[0, 0]


def test_each_part_of_a_batch_draws_other_numbers():
    """If the numbers were equal, the square of their sum would be four times the sum of their squares."""
    state, step = drawing(0, accumulation=4)
    sums = step(state)[1]
    assert abs(4 * sums["square"] - sums["x"] ** 2) > 0.1


def leaves_of(tree: Any) -> list[Any]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


@pytest.mark.parametrize("case", families.objective_cases("cache")[:1], ids=families.name_of)
def test_what_is_not_finite_is_passed_over(case: families.Case):
    """A loss or a gradient that is not finite changes no bit of parameters, optimizer and average, and is counted."""
    case = dataclasses.replace(case, config=families.without_dropout(case.config))
    optimizer = Optimizer(peak_lr=0.01, warmup_steps=5, ema=0.75)
    program, state = families.begin(
        families.run(case, optimizer=optimizer, objective=spoilt(case.objective)), params := case.params()
    )
    step = families.compile_step(program)
    first, second = good(batch_of(case)), good(batch_of(case, seed=1))
    bad_loss, bad_grad = good(first, -1), good(first, 0)
    expected = [(first, 0, 0), (bad_loss, 1, 1), (bad_grad, 2, 2), (second, 2, 0), (bad_grad, 3, 1)]
    averages, updates = [params], 0
    for number, (batch, skipped, in_a_row) in enumerate(expected, start=1):
        before = host((state.params, state.opt_state, state.ema))
        state, metrics = step(state, batch)
        assert state.step == number and state.skipped.tolist() == [skipped, in_a_row]
        assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (skipped, in_a_row)
        assert identical(before, (state.params, state.opt_state, state.ema)) == (in_a_row > 0)
        assert bool(jnp.isfinite(metrics["loss"])) == (batch is not bad_loss)
        assert bool(jnp.isfinite(metrics["grad_norm"])) == (in_a_row == 0)
        np.testing.assert_allclose(metrics["lr"], 0.01 * (updates + 1) / 5, rtol=1e-6)  # what is or would be applied
        if not in_a_row:
            updates += 1
            averages.append(jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, averages[-1], host(state.params)))
            assert families.difference(host(state.ema), averages[-1]) < 1e-6
    assert updates == 2 and families.difference(host(state.ema), params) > 1e-4

    _, undisturbed = families.begin(families.run(case, optimizer=optimizer, objective=spoilt(case.objective)), params)
    for batch in (first, second):
        undisturbed, _ = step(undisturbed, batch)
    assert identical((undisturbed.params, undisturbed.opt_state), (state.params, state.opt_state))


WIDE = {"dtype": "float64", "param_dtype": "float64"}


@pytest.mark.parametrize(
    ("case", "name", "compute"),
    [(case, "adamw", {"dtype": "bfloat16"}) for case in families.objective_cases()]
    + [(families.objective_cases("cache")[0], name, WIDE) for name in OPTIMIZERS],
    ids=families.name_of,
)
def test_a_step_keeps_every_dtype(case: families.Case, name: str, compute: dict[str, str]):
    """And every shape: the new state is the next input of the same program. (test_sharding has each objective's step in
    float64.)"""
    with jax.enable_x64(compute["dtype"] == "float64"):
        program = prepare(
            families.run(case.with_(**compute), optimizer=Optimizer(name=name, ema=0.9)), jax.devices()[:1]
        )
        with jax.set_mesh(program.mesh):
            state, metrics = jax.eval_shape(program.step, program.state, program.batch)
        described = lambda tree: [(jax.tree_util.keystr(path), x.shape, x.dtype) for path, x in leaves_of(tree)]
        assert described(state) == described(program.state)
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(compute.get("param_dtype", "float32"))}
        assert metrics["loss"].dtype == (jnp.float64 if compute["dtype"] == "float64" else jnp.float32)


@each_writer
def test_depth_costs_no_compile_time(case: families.Case):
    """Parameters and program are the same for 12 layers and 48, except for one size: compilation takes no longer."""
    text = {}
    for layers in (12, 48):
        deep = case.sized(num_layers=layers, num_decoder_layers=layers, width=16)
        program = prepare(families.run(deep), jax.devices()[:1])
        stacked = [leaf for path, leaf in trees.flatten(program.state.params).items() if "blocks/" in path]
        assert stacked and all(leaf.shape[0] == layers for leaf in stacked)
        with jax.set_mesh(program.mesh):
            text[layers] = program.step.lower(program.state, program.batch).as_text()
    count = {layers: len(re.findall(r"^ +%\S+ = ", program, re.M)) for layers, program in text.items()}
    assert count[12] > 500
    assert abs(count[48] / count[12] - 1) < 0.02, count


# ---- optimizers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> trees.Tree:
    """Parameters of every kind: stacked and not, matrices large enough to be factored."""
    draw = np.random.default_rng(0)
    shapes = {
        "token_embed/embedding": (256, 128),
        "blocks/norm/scale": (3, 128),
        "blocks/attention/query/kernel": (3, 128, 4, 32),
        "blocks/attention/query/bias": (3, 4, 32),
        "blocks/attention/out/kernel": (3, 4, 32, 128),
        "blocks/mlp_up/kernel": (3, 128, 192),
        "blocks/mlp_down/kernel": (3, 192, 128),
        "final_norm/bias": (128,),
    }
    return trees.unflatten({path: draw.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()})


def gradient(tree: trees.Tree, seed: int) -> trees.Tree:
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: draw.standard_normal(x.shape).astype(np.float32), tree)


def updates(settings: Optimizer, tree: trees.Tree, *grads: trees.Tree) -> tuple[trees.Tree, trees.Tree]:
    """The last of these updates, and the parameters before it."""
    optimizer = optim.make_optimizer(settings, 100, tree)
    state, update = jax.jit(optimizer.init)(tree), jax.jit(optimizer.update)
    for grad in grads[:-1]:
        change, state = update(grad, state, tree)
        tree = jax.tree.map(np.add, tree, change)
    return update(grads[-1], state, tree)[0], tree


@by_optimizer
def test_weight_decay_belongs_to_kernels_and_embeddings(tree: trees.Tree, name: str):
    """Without gradients a step is only weight decay: rate x decay x parameter, and zero for the others."""
    zeros = jax.tree.map(np.zeros_like, tree)
    settings = Optimizer(name=name, schedule="constant", peak_lr=0.1, weight_decay=0.3)
    change = trees.flatten(updates(settings, tree, zeros)[0])
    for path, x in trees.flatten(tree).items():
        decayed = path.endswith(("/kernel", "/embedding"))
        np.testing.assert_allclose(change[path], -0.03 * x * decayed, rtol=1e-5, atol=1e-9, err_msg=path)
    none = updates(dataclasses.replace(settings, weight_decay=0.0), tree, zeros)[0]
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(none))


@pytest.mark.parametrize("family", registry.families())
def test_tables_of_every_family_are_decayed(family: str):
    """Those of tokens, positions, segments and distances alike; no norms or biases."""
    model = registry.family(family).Model(families.small(family))
    decayed = trees.flatten(optim._decayed(registry.param_shapes(model)))
    assert {path for path, is_decayed in decayed.items() if is_decayed} == {
        path for path in decayed if path.endswith(("/kernel", "/embedding"))
    }
    assert any("embed" in path or "position" in path for path, is_decayed in decayed.items() if is_decayed)


@by_optimizer
@pytest.mark.parametrize("frozen", [("blocks/.*",), (".*embedding", ".*(scale|bias)"), (".*kernel",)], ids=str)
def test_freezing(tree: trees.Tree, name: str, frozen: tuple[str, ...]):
    """No update, no state, and no part in the norm that clips the others."""
    settings = Optimizer(name=name, peak_lr=0.1, freeze=frozen, clip_norm=1.0)
    chosen = trees.select(frozen, trees.flatten(tree))
    small, large = gradient(tree, 0), gradient(tree, 1)
    large = trees.map_paths(lambda path, x, y: 1e4 * x if path in chosen else y, large, small)
    change, other = (trees.flatten(updates(settings, tree, grad)[0]) for grad in (small, large))
    for path in change:
        assert (not np.asarray(change[path]).any()) == (path in chosen), path
        np.testing.assert_array_equal(change[path], other[path])
    state = optim.make_optimizer(settings, 100, tree).init(tree)
    paths = ["/".join(str(key.key) for key in keys if hasattr(key, "key")) for keys, _ in leaves_of(state)]
    assert not [path for path in paths if any(path.endswith(f) for f in chosen)]


def test_freezing_what_is_not_there_or_everything(tree: trees.Tree):
    with pytest.raises(ValueError, match=r"'token_embd/.*' matches no parameter. Did you mean 'token_embed/embedding'"):
        optim.make_optimizer(Optimizer(freeze=("token_embd/.*",)), 100, tree)
    with pytest.raises(ValueError, match="matches every parameter: nothing is left to train"):
        optim.make_optimizer(Optimizer(freeze=(".*",)), 100, tree)


def test_clipping(tree: trees.Tree):
    """To a global norm: it does not change Lion's first step, which uses only signs, and scales Adam's moments."""
    grads = gradient(tree, 0)
    optimizer = optim.make_optimizer(Optimizer(clip_norm=1.0, b1=0.9), 100, tree)
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(tree), tree)
    moment = next(x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
    norm = math.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in jax.tree.leaves(grads)))
    assert families.difference(host(moment), jax.tree.map(lambda g: np.float32(0.1 / norm) * g, grads)) < 1e-5


def test_adamw_and_lion_by_the_book(tree: trees.Tree):
    """Two steps against the papers' formulas, with the weight decay decoupled."""
    one, two = gradient(tree, 1), gradient(tree, 2)
    how = {"schedule": "constant", "peak_lr": 0.1, "weight_decay": 0.3, "clip_norm": None, "b1": 0.8, "b2": 0.95}
    for name in ("adamw", "lion"):
        change, before = updates(Optimizer(name=name, eps=1e-3, **how), tree, one, two)
        for path, step in trees.flatten(change).items():
            g, h, p = (trees.flatten(t)[path].astype(np.float64) for t in (one, two, before))
            decay = 0.3 * p * path.endswith(("kernel", "embedding"))
            if name == "adamw":
                m = (0.8 * 0.2 * g + 0.2 * h) / (1 - 0.8**2)
                v = (0.95 * 0.05 * g**2 + 0.05 * h**2) / (1 - 0.95**2)
                direction = m / (np.sqrt(v) + 1e-3)
            else:
                direction = np.sign(0.8 * (0.05 * g) + 0.2 * h)
            np.testing.assert_allclose(step, -0.1 * (direction + decay), rtol=2e-4, atol=2e-6, err_msg=f"{name} {path}")


def test_adafactor_treats_each_layer_on_its_own(tree: trees.Tree):
    """Three steps are the same for stacked and unstacked layers: its statistics of a tensor do not mix layers."""
    flat = {path: x for path, x in trees.flatten(tree).items() if not re.search("attention/.*/kernel|down", path)}
    # Layers of very different sizes, so that a mixture would show.
    sizes = np.array([0.01, 1, 30], np.float32)
    flat = {p: x * sizes.reshape(3, *[1] * (x.ndim - 1)) if "blocks" in p else x for p, x in flat.items()}

    def unstack(tree: trees.Tree) -> trees.Tree:
        loose = {}
        for path, x in trees.flatten(tree).items():
            loose |= {f"{i}/{path}": x[i] for i in range(3)} if "blocks" in path else {path: x}
        return trees.unflatten({path.replace("blocks", "layer"): x for path, x in loose.items()})

    tree = trees.unflatten(flat)
    grads = [gradient(tree, seed) for seed in range(3)]
    settings = Optimizer(name="adafactor", peak_lr=0.1, weight_decay=0.3, clip_norm=None)
    change, before = updates(settings, tree, *grads)
    loose, loose_before = updates(settings, unstack(tree), *map(unstack, grads))
    assert families.difference(unstack(host(before)), host(loose_before)) < 1e-6
    assert families.difference(unstack(host(change)), host(loose)) < 1e-5

    plain = optax.adafactor(0.1)  # and the same as optax's own, but for the decay
    once = updates(dataclasses.replace(settings, weight_decay=0.0), unstack(tree), unstack(grads[0]))[0]
    first = jax.jit(lambda grad, tree: plain.update(grad, plain.init(tree), tree)[0])
    expected = first(unstack(grads[0]), unstack(tree))
    assert families.difference(host(once), host(expected)) < 1e-5


def test_muon_makes_matrices_orthogonal(tree: trees.Tree):
    """Each layer's kernel, with heads and their size as one axis, moves by a matrix of equal singular values, up to the
    error of five iterations, and as far as with Adam: 0.2 x rate, in the root mean square."""
    settings = Optimizer(name="muon", schedule="constant", peak_lr=0.1, weight_decay=0.0)
    change = trees.flatten(updates(settings, tree, gradient(tree, 0))[0])
    shapes = {"query/kernel": (128, 128), "out/kernel": (128, 128), "up/kernel": (128, 192), "down/kernel": (192, 128)}
    met = 0
    for path, x in change.items():
        shape = next((shape for name, shape in shapes.items() if path.endswith(name)), None)
        for layer in [] if shape is None else np.asarray(x).reshape(3, *shape):
            values = np.linalg.svd(layer, compute_uv=False) / (0.1 * 0.2 * math.sqrt(max(shape)))
            # The smallest of a random square matrix are too near to zero for five rounds.
            assert np.quantile(values, 0.05) > 0.5 and values.max() < 1.3, path
            met += 1
    assert met == 12
    # What is no matrix is Adam's (with Nesterov's momentum): at first a step of one size against the gradient's sign.
    bias, grad = change["final_norm/bias"], trees.flatten(gradient(tree, 0))["final_norm/bias"]
    assert (np.sign(bias) == -np.sign(grad)).all() and np.ptp(np.abs(bias)) < 1e-3
    assert 0.1 < np.abs(bias).mean() < 0.2


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "qwen3_5", "deepseek_v3"])
def test_muon_tells_inputs_from_outputs(family: str):
    """Of every matrix, as it is published: heads and their size are one axis, and experts none."""
    case = families.main(family)
    shapes = registry.param_shapes(case.model)
    found = trees.match(optim.MUON_AXES, trees.flatten(shapes))
    for matrix in peft.matrices(case.module, shapes, config=case.config, task=case.task).values():
        axes = range(-len(matrix.inputs) - len(matrix.outputs), 0)
        expected = tuple(axes[: len(matrix.inputs)]), tuple(axes[len(matrix.inputs) :])
        for path in matrix.row.paths:
            assert tuple(tuple(np.atleast_1d(side)) for side in found[path]) == expected, path


# ---- schedules ------------------------------------------------------------------------------------------------------

PEAK, STEPS, WARMUP, DECAY, FINAL = 0.5, 100, 10, 40, 0.2

FORMULAS = {
    "constant": lambda n: PEAK,
    "cosine": lambda n: PEAK * (FINAL + (1 - FINAL) * (1 + math.cos(math.pi * min(1, (n - WARMUP) / DECAY))) / 2),
    "linear": lambda n: PEAK * (1 - (1 - FINAL) * min(1, (n - WARMUP) / DECAY)),
    "wsd": lambda n: PEAK * (1 - (1 - FINAL) * min(1, max(0, (n - (STEPS - DECAY)) / DECAY))),
    "inverse_sqrt": lambda n: PEAK * math.sqrt(WARMUP / (n + 1)),  # the paper counts steps from one
}


@pytest.mark.parametrize("name", FORMULAS)
def test_schedules(name: str):
    """Ten steps up to the peak, and then the formula of the step, counted from zero."""
    settings = Optimizer(
        schedule=name, peak_lr=PEAK, warmup_steps=WARMUP, final_lr=FINAL,
        decay_steps=DECAY if name in ("cosine", "linear", "wsd") else None,
    )  # fmt: skip
    rate = jax.jit(jax.vmap(optim.schedule(settings, STEPS)))(jnp.arange(STEPS))
    expected = [PEAK * (n + 1) / WARMUP if n < WARMUP else FORMULAS[name](n) for n in range(STEPS)]
    np.testing.assert_allclose(rate, expected, rtol=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_schedules_without_a_warmup_start_at_the_peak(name: str):
    rate = jax.jit(jax.vmap(optim.schedule(Optimizer(schedule=name, peak_lr=PEAK, final_lr=0.0), 50)))(jnp.arange(51))
    np.testing.assert_allclose(rate[0], PEAK, rtol=1e-6)
    assert (np.diff(rate) <= 1e-9).all()
    ends = {"constant": PEAK, "inverse_sqrt": PEAK / math.sqrt(51)}
    np.testing.assert_allclose(rate[50], ends.get(name, 0.0), rtol=1e-5, atol=1e-7)
    if name == "wsd":  # by default the last tenth of the run
        assert (rate[:46] == PEAK).all() and rate[46] < PEAK
    whole = optim.schedule(Optimizer(schedule=name, peak_lr=PEAK, warmup_steps=10), 10)  # a run of the warmup alone
    np.testing.assert_allclose([whole(0), whole(9)], [PEAK / 10, PEAK], rtol=1e-6)


@pytest.mark.parametrize("how", [{"warmup_steps": 101}, {"warmup_steps": 50, "decay_steps": 51}], ids=str)
def test_schedules_that_do_not_fit(how: dict[str, int]):
    with pytest.raises(ValueError, match=f"warmup_steps={how['warmup_steps']} .* do not fit into 100 steps"):
        optim.schedule(Optimizer(**how), 100)


# ---- where a NaN came from ------------------------------------------------------------------------------------------


# A decoder, an encoder-decoder, and the objectives with models within a model.
NESTED = [case for case in families.objective_cases() if type(case.model) is not case.module.Model]


@pytest.mark.parametrize(
    ("case", "layer"),
    [(case, number % 2) for number, case in enumerate(families.objective_cases("cache") + NESTED)],
    ids=families.name_of,
)
def test_the_first_module_that_is_not_finite(case: families.Case, layer: int):
    """With an infinity in a parameter, of layer 1 or outside of the layers: its module and layer are named."""
    model, objective, params = case.model, case.objective, trees.flatten(case.params())
    batch, key = batch_of(case), jax.random.key(0)
    paths = [path for path in sorted(params) if path.endswith(("kernel", "embedding"))]
    stacked = [path for path in paths if "blocks/" in path]
    path = stacked[len(stacked) // 2] if layer else next(path for path in reversed(paths) if path not in stacked)
    spoiled = np.array(params[path])
    spoiled[1 if "blocks/" in path else ...] = np.inf
    answer = diagnosis.first_not_finite(model, objective, trees.unflatten(params | {path: spoiled}), batch, key)
    module = path.rpartition("/")[0]
    # What a generator and a discriminator share is first used by the generator.
    names = {module, module.replace("discriminator/", "generator/")}
    assert answer.startswith(tuple(f"the output of {name}" for name in names)), (path, answer)
    assert answer.endswith("in layer 1") == ("blocks/" in path), (path, answer)


@pytest.mark.parametrize("case", families.objective_cases("cache")[:1], ids=families.name_of)
def test_a_loss_or_a_gradient_that_is_not_finite_on_its_own(case: families.Case):
    arguments = case.model, spoilt(case.objective), case.params()
    for value, words in ((-1, "the loss itself"), (0, "the gradient of ")):
        batch = good(batch_of(case), value)
        assert diagnosis.first_not_finite(*arguments, batch, jax.random.key(0)).startswith(words)
