"""Comparison with the reference implementation's results for small models, which are kept in files."""

import collections
import json
from pathlib import Path
from typing import Any

import families
import flax.linen as nn
import jax
import numpy as np
import pytest

from transformer_zoo import registry
from transformer_zoo.checkpoints import config_map, weight_map

GOLDENS = Path(__file__).parent / "goldens"
EXACT = 1e-9
HEADS = ("head", "lm_head", "pooler")


def files(family: str, task: str) -> list[str]:
    """The files of a family's task: two for its main one, with the published settings and with drawn ones."""
    drawn = [f"{family}-{task}-drawn"] if task == families.main_task(family) else []
    return [f"{family}-{task}", *drawn]


ALL = [
    pytest.param(family, task, name, id=name)
    for family in registry.families()
    for task in families.tasks(family)
    for name in files(family, task)
]


def read(family: str, task: str, name: str) -> tuple[families.Case, dict[str, np.ndarray]]:
    """The case of a file, and its arrays."""
    path = GOLDENS / f"{name}.npz"
    assert path.exists(), f"{path} is missing: run tools/make_golden.py {family}"
    with np.load(path) as file:
        golden = dict(file)
    config = config_map.read(registry.family(family), json.loads(str(golden["config"])))
    return families.Case(family=family, task=task, config=config), golden


@pytest.mark.parametrize(("family", "task", "name"), ALL)
def test_golden(family: str, task: str, name: str):
    """All outputs, every hidden state, every gradient: in float64, relative to the largest number of an array. The body
    is that of the main task, of `base` and of encoder-decoders; the other tasks compute their outputs and the gradients
    of their heads from the file's hidden states. (tests/parity compares all.)"""
    case, golden = read(family, task, name)
    shapes = json.loads(str(golden["shapes"]))
    names = [*shapes]
    if families.is_head_alone(case):
        rows = {theirs for theirs, *_ in case.module.PUBLISHED.heads[task]}
        names = [name for name in shapes if name in rows]
    ends = np.cumsum([np.prod(shapes[name], dtype=int) for name in names])[:-1]
    weights, gradients = (
        {name: x.reshape(shapes[name]) for name, x in zip(names, np.split(golden[what], ends))}
        for what in ("weights", "gradients")
    )
    absent = {name: np.zeros(shape, np.float16) for name, shape in shapes.items() if name not in weights}
    with jax.enable_x64(True):
        case = case.wide()
        params = weight_map.load(
            case.module, registry.param_shapes(case.model), weights | absent,
            config=case.config, task=task, param_dtype="float64",
        )  # fmt: skip
        given = {name: golden[name] for name in golden if name in case.takes}
        whole = task == families.main_task(family)
        parts = None if whole else tuple(name for name in params if name in HEADS)
        if whole or task == "base" or "source_BS" in case.takes:
            found = families.evaluate(case, params, given, parts=parts)
        else:
            with families.without_layers(golden.pop("hidden")[-1]):
                found = jax.jit(lambda params: families.evaluate.__wrapped__(case, params, given, parts=parts))(params)
        outputs, hidden, grads = jax.device_get(found)

        assert {f"output {name}" for name in outputs} == {name for name in golden if name.startswith("output ")}
        for name, ours in outputs.items():
            near(families.zero_padding(task, name, ours, families.mask_of(given)), golden[f"output {name}"])
        for ids, states in hidden.items():
            theirs = golden.pop("hidden" if ids == "tokens_BT" else f"hidden {ids}")
            assert len(states) == len(theirs)
            for ours, layer in zip(states, theirs):
                near(ours * families.mask_of(given, ids)[..., None], layer)
        assert not any(name.startswith("hidden") for name in golden)
        unknown = jax.tree.map(lambda x: np.full(x.shape, np.nan), params)
        exported = weight_map.dump(case.module, unknown | grads, config=case.config, task=task)
        assert exported.keys() == shapes.keys()
        largest = max(np.abs(grad).max() for grad in gradients.values())
        known = {name: np.asarray(x) for name, x in exported.items() if not np.isnan(x).any()}
        assert len(known) == len(shapes) if whole else len(known) >= len(jax.tree.leaves(grads))
        for name, ours in known.items():
            near(ours, gradients[name], zero=1e-12 * largest)  # a key's bias has a gradient of rounding


def near(ours: np.ndarray, theirs: np.ndarray, zero: float = 0.0) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float64
    size = np.abs(theirs).max()
    assert max(size, zero) > 0 and np.abs(ours - theirs).max() <= EXACT * (size if size > zero else 1e12 * zero)


@pytest.mark.parametrize(("family", "task", "name"), ALL)
def test_dropout_is_where_the_reference_has_it(family: str, task: str, name: str):
    """The number of dropouts of each rate and width in a training forward pass. (Traced only.)"""
    case, golden = read(family, task, name)
    found: collections.Counter[tuple[float, int]] = collections.Counter()

    def record(function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if isinstance(module, nn.Dropout) and module.rate and not kwargs.get("deterministic", module.deterministic):
            assert not module.broadcast_dims, f"{module.path}: numbers dropped together"
            path = "/".join((*module.path, ""))
            found[round(module.rate, 6), args[0].shape[-1]] += len(case.layers(path)) if "blocks/" in path else 1
        return function(*args, **kwargs)

    given = families.for_task(task, {name: golden[name] for name in golden if name in case.takes})
    case = case.wide()  # whose parameters are known from the comparison above
    run = lambda params, key: case.model.apply({"params": params}, **given, train=True, rngs={"dropout": key})
    with jax.enable_x64(True), nn.intercept_methods(record):
        jax.eval_shape(run, registry.param_shapes(case.model), jax.random.key(0))
    assert found == collections.Counter((rate, width) for rate, width in json.loads(str(golden["dropout"])))


@pytest.mark.parametrize("family", registry.families())
def test_every_rate_of_dropout_is_used(family: str):
    """By the model of one of the tasks, in the golden files, whose rates all differ."""
    rates: set[float] = set()
    for task in families.tasks(family):
        for name in files(family, task):
            case, golden = read(family, task, name)
            assert len(set(families.dropouts(case.config).values())) == len(families.dropouts(case.config))
            rates |= {rate for rate, _ in json.loads(str(golden["dropout"]))}
    assert rates == {round(rate, 6) for rate in families.dropouts(families.small(family)).values()}


def test_every_golden_is_used():
    assert {path.stem for path in GOLDENS.iterdir()} == {parameter.id for parameter in ALL}
