"""Every family beside its reference, live: logits, all hidden states and all gradients, in float64."""

import dataclasses
from typing import Any

import families
import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity import reference  # noqa: E402
from transformer_zoo import registry, trees  # noqa: E402
from transformer_zoo.checkpoints import config_map, weight_map  # noqa: E402

EXACT = 1e-9
CONFIGURATIONS = 14  # of each family for its main task; a third as many for the others
T, PROMPT = 8, 3
LARGEST: dict[str, float] = {}  # what pytest prints at the end


def cases() -> list[Any]:
    return [
        pytest.param(families.Case(family=family, task=task, config=families.random_config(family, seed, task)), seed,
                     id=f"{family}-{task}-{seed}")
        for family in registry.families()
        for task in registry.family(family).TASKS
        for seed in range(CONFIGURATIONS if task == families.main_task(family) else CONFIGURATIONS // 3)
    ]  # fmt: skip


def padding(mode: str) -> np.ndarray | None:
    """Which tokens of three rows are real."""
    ends = np.array([[0], [5], [2]])  # how many are not
    if mode in ("none", "one row", "cache"):
        return np.ones((3, T), bool) if mode == "cache" else None
    if mode == "left, cache":
        ends = np.array([[0], [2], [1]])
    return np.arange(T) < T - ends if mode == "right" else np.arange(T) >= ends


@pytest.mark.parametrize(("case", "seed"), cases())
def test_everything_agrees(case: families.Case, seed: int):
    """Without padding, padded on either side, and with a cache: a prompt, then token by token."""
    with jax.enable_x64(True):
        case = case.wide()
        theirs = reference.build(case, seed)
        settings = theirs.config.to_dict()
        assert config_map.read(case.module, settings) == case.config
        params = weight_map.load(
            case.module, registry.param_shapes(case.model), reference.tensors(theirs),
            config=case.config, task=case.task, param_dtype="float64",
        )  # fmt: skip
        given = families.rows(case, 3, T, seed)
        for mode in ("none", "right", "left", *(("cache", "left, cache") if case.causal else ("one row",))):
            compare(case, params, theirs, given, mode)


def compare(case: families.Case, params: trees.Tree, theirs: Any, given: dict[str, np.ndarray], mode: str) -> None:
    valid_BT = padding(mode)
    if mode == "one row":
        given = {name: x[:1] for name, x in given.items()}
    if valid_BT is not None:
        given = given | {"valid_BT": valid_BT}
    prompt = PROMPT if "cache" in mode else None
    words, hidden, grads = families.told(case, params, given, prompt=prompt)
    offset = getattr(case.module, "position_offset", lambda config: 0)(case.config)
    their_words, their_hidden, their_grads = reference.told(case.task, theirs, given, offset, prompt)

    # What is said of padding is nobody's business.
    assert words.keys() == their_words.keys()
    for name in words:
        one, other = (families.real(case.task, name, x[name], valid_BT) for x in (words, their_words))
        note("logits" if case.task != "base" else "hidden states", mode, one, other)
    real_BT = np.ones(given["tokens_BT"].shape, bool) if valid_BT is None else valid_BT
    assert len(hidden) == len(their_hidden) == case.config.num_layers + 1
    for ours, other in zip(hidden, their_hidden):
        note("hidden states", mode, ours[real_BT], other[real_BT])
    exported = weight_map.dump(case.module, grads, config=case.config, task=case.task)
    assert exported.keys() == their_grads.keys()
    largest = max(np.abs(grad).max() for grad in their_grads.values())
    for name, grad in their_grads.items():
        # A gradient that is zero in mathematics, as a key's bias', is rounding in both.
        note("gradients", mode, np.asarray(exported[name]), grad, 1e-12 * largest, name)


def note(what: str, mode: str, ours: Any, theirs: np.ndarray, zero: float = 0.0, name: str = "") -> None:
    """Demands that the largest difference, relative to the largest number, is small, and remembers it."""
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()
    size = np.abs(theirs).max()
    difference = float(np.abs(ours - theirs).max() / (size if size > zero else zero * 1e12))
    LARGEST[f"{what}, {mode}"] = max(difference, LARGEST.get(f"{what}, {mode}", 0.0))
    assert difference <= EXACT, f"{what} {name} ({mode}) differ by {difference:.1e}"


@pytest.mark.parametrize("family", registry.families())
def test_the_configurations_are_various(family: str):
    """Every switch on and off, every activation, every kind of size: nothing is always what it is by default."""
    drawn = [families.random_config(family, seed) for seed in range(CONFIGURATIONS)]
    for field in dataclasses.fields(registry.family(family).Config):
        values = {getattr(config, field.name) for config in drawn}
        if isinstance(field.default, bool):
            assert values == {False, True}, field.name
        elif field.name == "activation":
            assert values == set(families.RANDOM["activation"])
        elif field.name in families.RANDOM:
            assert len(values) >= 3 and (field.default is not None or None in values), (field.name, values)
