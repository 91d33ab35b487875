"""What the reference implementation says of small models, kept in files: the check that needs nothing installed."""

import json
from pathlib import Path

import families
import jax
import numpy as np
import pytest

from transformer_zoo import registry
from transformer_zoo.checkpoints import config_map, weight_map

GOLDENS = Path(__file__).parent / "goldens"
EXACT = 1e-9


@pytest.mark.parametrize(
    ("family", "task"),
    [(family, task) for family in registry.families() for task in registry.family(family).PUBLISHED.tasks],
)
def test_golden(family: str, task: str):
    """What is said, every hidden state, every gradient: in float64, relative to the largest number of an array."""
    path = GOLDENS / f"{family}-{task}.npz"
    assert path.exists(), f"{path} is missing: run tools/make_golden.py"
    with np.load(path) as file:
        golden = dict(file)
    shapes = json.loads(str(golden["shapes"]))
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    weights, gradients = (
        {name: x.reshape(shapes[name]) for name, x in zip(shapes, np.split(golden[what], ends))}
        for what in ("weights", "gradients")
    )
    with jax.enable_x64(True):
        module = registry.family(family)
        config = config_map.read(module, json.loads(str(golden["config"])))
        case = families.Case(family=family, task=task, config=config).wide()
        params = weight_map.load(
            module, registry.param_shapes(case.model), weights,
            config=config, task=task, param_dtype="float64",
        )  # fmt: skip
        given = {name: golden[name] for name in golden if name in case.takes}
        words, hidden, grads = families.told(case, params, given)

        assert {f"said {name}" for name in words} == {name for name in golden if name.startswith("said ")}
        for name, ours in words.items():
            near(families.real(task, name, ours, families.mask_of(given)), golden[f"said {name}"])
        for ids, states in hidden.items():
            theirs = golden.pop("hidden" if ids == "tokens_BT" else f"hidden {ids}")
            assert len(states) == len(theirs)
            for ours, layer in zip(states, theirs):
                near(ours * families.mask_of(given, ids)[..., None], layer)
        assert not any(name.startswith("hidden") for name in golden)
        exported = weight_map.dump(module, grads, config=config, task=task)
        assert exported.keys() == gradients.keys()
        largest = max(np.abs(grad).max() for grad in gradients.values())
        for name, grad in gradients.items():
            near(np.asarray(exported[name]), grad, zero=1e-12 * largest)  # a key's bias has a gradient of rounding


def near(ours: np.ndarray, theirs: np.ndarray, zero: float = 0.0) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float64
    size = np.abs(theirs).max()
    assert max(size, zero) > 0 and np.abs(ours - theirs).max() <= EXACT * (size if size > zero else 1e12 * zero)


def test_every_golden_is_used():
    known = {f"{family}-{task}" for family in registry.families() for task in registry.family(family).PUBLISHED.tasks}
    assert {path.stem for path in GOLDENS.iterdir()} == known
