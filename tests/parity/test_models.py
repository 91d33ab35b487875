"""Every family against its reference, live: logits, all hidden states and all gradients, in float64."""

import dataclasses
from collections.abc import Callable
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
from transformer_zoo.nn import cache as caches  # noqa: E402
from transformer_zoo.nn.rotary import Rope  # noqa: E402

EXACT = 1e-9
T, PROMPT = 8, 3


def cases() -> list[Any]:
    """Each family for each task: several configurations for its main task, and one for heads. The body by itself is
    compared in test_published.py: its hidden states are those of every other task."""
    found = []
    for family in registry.families():
        for task in families.tasks(family):
            if task == "base" != families.main_task(family):
                continue
            case = families.Case(family=family, task=task, config=families.random_config(family, 0, task))
            main = task == families.main_task(family)
            for seed in range(4 if main else 1):
                drawn = dataclasses.replace(case, config=families.random_config(family, seed, task))
                found.append(pytest.param(drawn, seed, id=f"{family}-{task}-{seed}"))
    return found


def padding(mode: str, ids: str, T: int) -> np.ndarray | None:
    """The mask of real tokens of three rows."""
    ends = np.array([[0], [5], [2]])  # how many are not
    if mode == "one row":
        return None
    if ids == "source_BS" and "cache" in mode:
        mode = "right" if mode == "left, cache" else "left"
    if mode == "cache":
        return np.ones((3, T), bool)
    if mode == "left, cache":
        ends = np.array([[0], [2], [1]])
    return np.arange(T) < T - ends if mode == "right" else np.arange(T) >= ends


@pytest.fixture(autouse=True)
def short_rings(monkeypatch: pytest.MonkeyPatch):
    """One slot besides a window, so that a cache has rings though the texts here are short."""
    monkeypatch.setattr(caches, "SPARE", 1)


@pytest.mark.parametrize(("case", "seed"), cases())
def test_everything_agrees(case: families.Case, seed: int, record_property: Callable[[str, float], None]):
    """Rows padded on either side, or for the main task's first configuration, which the heads share, a row without
    padding; and for the main task with a cache: a prompt, then token by token. (Of every task, the outputs without
    padding are compared in test_published.py.)"""
    with jax.enable_x64(True):
        case = case.wide()
        theirs = reference.build(case, seed)
        settings = theirs.config.to_dict()
        tensors = reference.tensors(theirs)
        config = weight_map.settled(case.module, config_map.read(case.module, settings), tensors, case.task)
        if hasattr(config, "tied") and theirs.get_output_embeddings() is None:  # so that nobody sees it
            config = dataclasses.replace(config, tied=case.config.tied)
        assert config == case.config
        params = weight_map.load(
            case.module, registry.param_shapes(case.model), tensors,
            config=case.config, task=case.task, param_dtype="float64",
        )  # fmt: skip
        given = families.rows(case, 3, T, seed)
        main = case.task == families.main_task(case.family)
        modes = ["one row"] if main and seed == 0 else ["right", "left"]
        modes += ["cache", "left, cache"] * (main and case.caches)
        modes = ["left"] if families.is_head_alone(case) else modes
        for mode in modes:
            for what, difference in compare(case, params, theirs, given, mode).items():
                record_property(f"{what}, {mode}", difference)  # what pytest prints at the end
                assert difference <= EXACT, f"{what} ({mode}) differ by {difference:.1e}"


def test_a_text_beyond_the_original_length():
    """Phi-4-mini's positions: others for a long text, of a part of each head. The reference goes by the longest text
    of a batch, so that there is one row."""
    rope = Rope(
        kind="longrope", share=0.5, factor=2.0, original_length=5, short_factors=(1.1, 2.0), long_factors=(1.5, 4.0)
    )
    config = families.random_config("phi3", 0, "causal-lm")
    config = dataclasses.replace(config, rope=rope, max_length=10, width=32, num_heads=4, num_kv_heads=2, head_dim=8)
    with jax.enable_x64(True):
        case = families.Case(family="phi3", task="causal-lm", config=config).wide()
        theirs = reference.build(case, 0)
        params = weight_map.load(
            case.module, registry.param_shapes(case.model), reference.tensors(theirs),
            config=case.config, task=case.task, param_dtype="float64",
        )  # fmt: skip
        assert config_map.read(case.module, theirs.config.to_dict()) == config
        for length in (5, 6, T):
            for what, difference in compare(case, params, theirs, families.rows(case, 1, length), "one row").items():
                assert difference <= EXACT, f"{what} of {length} tokens differ by {difference:.1e}"


ANY_LENGTH = [
    case for case in families.cases() if case.config.max_length is None and hasattr(case.config, "num_buckets")
]


@pytest.mark.parametrize("case", ANY_LENGTH, ids=families.name_of)
def test_rows_longer_than_any_distance_that_is_told_apart(case: families.Case):
    """For families with rows of any length and default buckets: all distances that have a bucket, and far beyond."""
    defaults = {field.name: field.default for field in dataclasses.fields(case.config)}
    with jax.enable_x64(True):
        case = case.with_(**{name: defaults[name] for name in ("num_buckets", "max_distance")}, num_heads=2).wide()
        length = case.config.max_distance + 40
        theirs = reference.build(case, 0)
        params = weight_map.load(
            case.module, registry.param_shapes(case.model), reference.tensors(theirs),
            config=case.config, task=case.task, param_dtype="float64",
        )  # fmt: skip
        given = families.rows(case, 3, length)
        for what, difference in compare(case, params, theirs, given, "left").items():
            assert difference <= EXACT, f"{what} differ by {difference:.1e}"


def compare(
    case: families.Case, params: trees.Tree, theirs: Any, given: dict[str, np.ndarray], mode: str
) -> dict[str, float]:
    """The largest differences, each relative to the largest number of its array."""
    masks = {ids: padding(mode, ids, given[ids].shape[1]) for ids in case.ids if ids in given}
    if mode == "one row":
        given = {name: x[:1] for name, x in given.items()}
    given = families.padded(case, given, {ids: mask for ids, mask in masks.items() if mask is not None})
    valid_BT = families.mask_of(given)
    prompt = PROMPT if "cache" in mode else None
    outputs, hidden, grads = jax.device_get(families.evaluate(case, params, given, prompt=prompt))
    offset = getattr(case.config, "first_position", 0)
    their_outputs, their_hidden, their_grads = reference.evaluate(case.task, theirs, given, offset, prompt)

    # Outputs at padding have no meaning.
    kind, both = "logits" if case.task != "base" else "hidden states", [outputs, their_outputs]
    pairs = {
        kind: [
            [families.zero_padding(case.task, name, x[name], valid_BT) for x in both]
            for name in outputs | their_outputs
        ]
    }
    assert hidden.keys() == their_hidden.keys()
    for ids in hidden:
        mask = families.mask_of(given, ids)
        real = np.ones(hidden[ids].shape[1:3], bool) if mask is None else mask
        assert len(hidden[ids]) == len(their_hidden[ids]) > getattr(case.config, families.STACKS[ids][1])
        pairs.setdefault("hidden states", []).extend((a[real], b[real]) for a, b in zip(hidden[ids], their_hidden[ids]))
    zero = {}
    if prompt is None:
        exported = weight_map.dump(case.module, grads, config=case.config, task=case.task)
        assert exported.keys() == their_grads.keys()
        pairs["gradients"] = [(np.asarray(exported[name]), their_grads[name]) for name in exported]
        # A gradient that is zero in mathematics, as a key's bias', is rounding in both.
        zero = {"gradients": 1e-12 * max(np.abs(grad).max() for grad in their_grads.values())}
    return {what: max(apart(*pair, zero.get(what, 0.0)) for pair in found) for what, found in pairs.items()}


def apart(ours: np.ndarray, theirs: np.ndarray, zero: float) -> float:
    assert ours.shape == theirs.shape and np.isfinite(theirs).all()
    size = np.abs(theirs).max()
    return float(np.abs(ours - theirs).max() / (size if size > zero else zero * 1e12))


@pytest.mark.parametrize("family", registry.families())
def test_the_configurations_are_various(family: str):
    """Every switch on and off, every activation, every kind of size: no field always has its default."""
    drawn = [families.random_config(family, seed) for seed in range(30)]
    for field in dataclasses.fields(registry.family(family).Config):
        values = {getattr(config, field.name) for config in drawn}
        if isinstance(field.default, bool):
            assert values == {False, True}, field.name
        elif field.name == "activation":
            assert values == set(families.known_choices(family, field.name))
        elif field.name in families.RANDOM:
            known = families.ropes(family) if field.name == "rope" else families.RANDOM[field.name]
            assert len(values) >= min(3, len(known)), (field.name, values)
            assert field.default is not None or None in values, field.name
