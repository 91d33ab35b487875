"""Training: the state, the step, and its program."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from transformer_zoo import lora, optim, registry, sharding, trees
from transformer_zoo.config import Run

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """The state of a run. Checkpoints also hold the position in the data.

    Attributes:
        step: int32[], batches seen.
        skipped: int32[2], updates left out because the loss or gradient was not finite: in total, and since the last
            update.
        key: data of the random key of the run's dropout.
        params: all parameters; of a run with adapters, only what is trained.
        ema: moving average of the parameters, or None.
    """

    step: jax.Array
    skipped: jax.Array
    key: jax.Array
    params: trees.Tree
    opt_state: Any
    ema: trees.Tree | None


def make_state(params: trees.Tree, *, optimizer: optax.GradientTransformation, seed: int, ema: bool) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros(2, jnp.int32),
        key=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 1)),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    base: trees.Tree | None = None,
    *,
    model: Any,
    objective: Any,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    accumulation: int = 1,
    ema: float | None = None,
    balance_rate: float = 0.0,
    corrections: frozenset[str] = frozenset(),
) -> tuple[TrainState, Metrics]:
    """One update from one global batch, computed in `accumulation` parts of its rows. The base has the parameters that
    are not in the state: none of them has a gradient. The `corrections` have none either: they balance experts
    (`optim.balanced`), and the moving average has theirs as it has the routers'.

    A loss or gradient that is not finite changes neither parameters nor optimizer: the batch is skipped. A number that
    the optimizer makes not finite, of finite ones (0 / 0 for want of an `eps`), keeps its old value by itself: to let
    all numbers wait for one another would cost five more passes over the parameters, 11 % of a small step on a TPU.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    counts = objective.counts(batch)  # of the whole batch, so that the losses of the parts add up

    def part(params: trees.Tree, rows: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, Metrics]:
        sums = objective.sums(model, lora.joined(base, params), rows, key)
        return objective.loss(sums, counts), sums

    grads, (loss, sums) = _accumulate(part, state.params, batch, key, accumulation)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if corrections:
        params = optim.balanced(params, state.params, sums["chosen"], balance_rate, corrections)
    average = None if ema is None else optax.incremental_update(params, state.ema, 1 - ema)
    new, old = (params, opt_state, average), (state.params, state.opt_state, state.ema)
    keep = lambda new, old: jnp.where(finite & jnp.isfinite(new), new, old)
    params, opt_state, average = jax.tree.map(keep, new, old)
    skipped = jnp.where(finite, state.skipped.at[1].set(0), state.skipped + 1)
    metrics = objective.report(sums, counts) | {
        "grad_norm": norm, "lr": rate(state.step - state.skipped[0]), "tokens": counts["tokens"],
        "skipped": skipped[0], "skipped_in_a_row": skipped[1],
    }  # fmt: skip
    return TrainState(state.step + 1, skipped, state.key, params, opt_state, average), metrics


def _accumulate(function: Any, params: trees.Tree, batch: dict[str, jax.Array], key: jax.Array, parts: int) -> Any:
    """Sums of gradients, loss and extras over the parts of a batch."""
    differentiated = jax.value_and_grad(function, has_aux=True)

    def one(rows: dict[str, jax.Array], part: jax.Array | int) -> Any:
        (loss, sums), grads = differentiated(params, rows, jax.random.fold_in(key, part))
        return grads, (loss, sums)

    if parts == 1:
        return one(batch, 0)
    # Strided parts: every row stays on its device.
    strided = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    first = jax.tree.map(lambda x: x[0], strided)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first, 0))

    def step(total: Any, xs: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*xs)), None

    return jax.lax.scan(step, zeros, (strided, jnp.arange(parts)))[0]


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's compiled functions, and the shapes and shardings of their arguments."""

    model: Any
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    state: TrainState
    """Shapes of the state, each with its sharding."""
    batch: dict[str, jax.ShapeDtypeStruct]
    """Shapes of a global batch, each with its sharding."""
    step: Any
    """jit of `train_step`: (state, batch, base) -> (state, metrics); the new state reuses the old one's memory."""
    base: trees.Tree | None = None
    """Shapes of the frozen parameters of a run with adapters, each with its sharding. None: all are in the state."""
    measures: tuple[str, ...] = ()
    """Names of the objective's measures."""

    def fresh(self, seed: int) -> trees.Tree:
        """Fresh parameters, made on their devices."""
        with jax.set_mesh(self.mesh):
            return registry.initializer(self.model, self.mesh)(jax.random.key(seed))

    def divided(self, params: trees.Tree, seed: int) -> tuple[trees.Tree, trees.Tree | None]:
        """What is trained, fresh adapters included, and the frozen base (None: all is trained), from the first
        weights."""
        if self.base is None:
            return params, None
        params = self.model.based(params)
        with jax.set_mesh(self.mesh):
            adapters = jax.jit(self.model.fresh)(jax.random.fold_in(jax.random.key(seed), 2), params)
        return self.model.divided(lora.joined(params, adapters))

    def begin(self, params: trees.Tree, run: Run) -> TrainState:
        """The state before the first step, from what is trained."""
        make = functools.partial(
            make_state, optimizer=self.optimizer, seed=run.training.seed, ema=run.optimizer.ema is not None
        )
        shardings = jax.tree.map(lambda x: x.sharding, self.state)
        with jax.set_mesh(self.mesh):
            return jax.jit(make, out_shardings=shardings)(params)


def prepare(run: Run, devices: Sequence[jax.Device] | None = None, steps: int | None = None) -> Program:
    """A run's program. It reads no data and allocates no memory: the devices need not be attached.

    Args:
        steps: of the schedule. None: those of the settings, or where these count epochs, as few as the schedule needs,
            which changes neither shapes nor memory.

    Raises:
        ValueError: settings that contradict each other: a mesh that does not divide devices, rows or parameters, a task
            that the family lacks, ...; or float16, in which small gradients vanish.
    """
    training, objective = run.training, run.objective
    steps = steps or training.steps or run.optimizer.least_steps
    for name in ("dtype", "param_dtype"):
        if getattr(run.compute, name) == "float16":
            raise ValueError(
                f"compute.{name}=float16 is for inference: in training, gradients below 6e-8 would become zero, as the "
                "loss is not scaled. Choose bfloat16 or float32"
            )
    mesh = sharding.make_mesh(**dataclasses.asdict(run.mesh), devices=devices)
    ways = sharding.ways(sharding.MESH_RULES["batch"], mesh)
    if training.batch_size % (training.accumulation * ways):
        raise ValueError(
            f"batch_size={training.batch_size} does not divide into accumulation={training.accumulation} x data x fsdp "
            f"x expert={ways}: choose a multiple of {training.accumulation * ways}"
        )
    model = lora.adapted(objective.model(run.model, run.compute), run.lora)
    shapes, base = lora.divided(model, registry.param_shapes(model))
    frozen = dataclasses.replace(run.optimizer, freeze=run.optimizer.freeze + objective.frozen)
    optimizer, corrections = optim.make_optimizer(frozen, steps, shapes), optim.corrections(frozen, shapes)
    state = jax.eval_shape(
        functools.partial(make_state, optimizer=optimizer, seed=0, ema=run.optimizer.ema is not None), shapes
    )
    param_shardings, replicated = sharding.param_shardings(shapes, mesh), sharding.replicated(mesh)
    shardings = TrainState(
        step=replicated, skipped=replicated, key=replicated, params=param_shardings,
        opt_state=optim.state_shardings(state.opt_state, shapes, param_shardings, mesh),
        ema=None if run.optimizer.ema is None else param_shardings,
    )  # fmt: skip
    step = functools.partial(
        train_step, model=model, objective=objective, optimizer=optimizer,
        rate=optim.schedule(run.optimizer, steps), accumulation=training.accumulation, ema=run.optimizer.ema,
        balance_rate=run.optimizer.balance_rate, corrections=corrections,
    )  # fmt: skip
    batch = batch_shapes(run, mesh)
    with_shardings = lambda shapes, shardings: jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )
    # Traced, so that the model raises its own errors, such as for rows longer than its positions.
    whole = lora.joined(base, shapes)
    measures = jax.eval_shape(
        lambda params, batch: objective.report(objective.sums(model, params, batch), objective.counts(batch)),
        whole, batch,
    )  # fmt: skip
    sums = functools.partial(objective.sums, model)
    if corrections and "chosen" not in jax.eval_shape(sums, whole, batch, jax.eval_shape(lambda: jax.random.key(0))):
        raise ValueError(
            f"optimizer.balance_rate={run.optimizer.balance_rate}: the objective {objective.name} does not count how "
            "often experts are chosen, as causal-lm does. Set it to 0"
        )
    return Program(
        model=model,
        mesh=mesh,
        optimizer=optimizer,
        state=with_shardings(state, shardings),
        base=None if base is None else with_shardings(base, sharding.param_shardings(base, mesh)),
        batch=batch,
        measures=tuple(measures),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated)),
    )


def batch_shapes(run: Run, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch, each with its sharding.

    Raises:
        ValueError: the mesh does not divide the length of the rows.
    """
    shapes = run.objective.shapes(run.training.batch_size, run.data.length)
    shardings = sharding.batch_shardings(shapes, mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in shapes.items()}
