"""What holds for every family: checked over the registry, in float64 where equal means equal to a dozen digits.

A family's model is compiled once for whole rows with masks (`read`); what a row sees, padding, default positions and
single documents are other values for that program. Tests of what `stack`, the compiler or the decode loop does with the
layers run for one family of each kind (`each_kind`).
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import families
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.linear_util import WrappedFun

from transformer_zoo import registry, sharding, trees
from transformer_zoo.generation.generate import generate
from transformer_zoo.nn import Compute, Encoder
from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.embedding import padded_vocab
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.stack import ByKind, groups, stack
from transformer_zoo.pretrained import Bundle

EXACT = 1e-12
LONGEST, PADDING = families.SMALL["max_length"], 3


def each(*takes: str) -> Any:
    """Once for every family whose model takes these arguments."""
    return pytest.mark.parametrize("case", families.cases(*takes), ids=families.name_of)


def each_encoder_without(name: str) -> Any:
    """Once for every encoder that refuses this argument."""
    found = [case for case in families.cases() if issubclass(case.module.Model, Encoder) and name not in case.takes]
    return pytest.mark.parametrize("case", found, ids=families.name_of)


def each_kind(*takes: str) -> Any:
    """Once for every set of operations that the layers of these families have."""
    found = families.kinds(families.cases(*takes), families.operations)
    return pytest.mark.parametrize("case", found, ids=families.name_of)


def each_stacking() -> Any:
    """Once for every way of using `stack`."""
    return pytest.mark.parametrize("case", families.kinds(families.cases(), families.stacking), ids=families.name_of)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


float64 = pytest.mark.usefixtures("x64")


def inputs(case: families.Case, batch: int = 1, length: int = 6) -> dict[str, np.ndarray]:
    """Token ids for each argument that takes them; the source of an encoder-decoder is longer than its target. A model
    that scores a source reads no other target."""
    scores = len(case.ids) > 1 and case.task not in families.WRITERS
    lengths = {name: length + len(case.ids) - 1 - i for i, name in enumerate(case.ids[:1] if scores else case.ids)}
    return {name: case.tokens(batch, lengths[name], seed=i) for i, name in enumerate(lengths)}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape)


@functools.cache
def outputs(case: families.Case) -> int:
    """The width of a model's output."""
    args = case.module.Model.example_inputs(case.task)
    return families.outputs(jax.eval_shape(case.model.init_with_output, jax.random.key(0), *args)[0]).shape[-1]


# ---- one program of a family ----------------------------------------------------------------------------------------


def whole_rows(case: families.Case) -> dict[str, np.ndarray]:
    """As many rows as the longest row has tokens. Targets have the largest length, a source one token less."""
    lengths = {ids: LONGEST - (len(case.ids) - 1 - i) for i, ids in enumerate(case.ids)}
    return {ids: case.tokens(LONGEST, lengths[ids], seed=i) for i, ids in enumerate(case.ids)}


def read(
    case: families.Case, params: trees.Tree, tokens: dict[str, np.ndarray],
    valid: dict[str, np.ndarray] | None = None, direction: np.ndarray | None = None,
) -> tuple[np.ndarray, trees.Tree]:  # fmt: skip
    """Outputs for `whole_rows`, or others of their shape, and gradients in a direction; valid None: no padding. A model
    that takes documents is also given their numbers, which may stand in `valid`: as a rule a row is one document."""
    if direction is None:
        direction = np.zeros((*tokens[case.ids[-1]].shape, outputs(case)))
    result, grads = families.gradients(case.model, params, direction, **with_masks(case, tokens, valid))
    return np.asarray(result), grads


def with_masks(
    case: families.Case, tokens: dict[str, np.ndarray], valid: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """What `read` gives the model."""
    valid = valid or {ids: np.ones(x.shape, bool) for ids, x in tokens.items()}
    given = tokens | {families.MASKS[ids]: mask > 0 for ids, mask in valid.items()}
    given |= {families.DOCUMENTS[ids]: mask.astype(np.int32) for ids, mask in valid.items()}
    return {name: x for name, x in given.items() if name in case.takes}


def placed(
    case: families.Case, params: trees.Tree, tokens: dict[str, np.ndarray], positions_BT: np.ndarray,
    valid: dict[str, np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """Outputs of a model that takes positions, for rows as those of `read`."""
    positions_BT = np.broadcast_to(positions_BT, tokens["tokens_BT"].shape).astype(np.int32)
    given = with_masks(case, tokens, valid) | {"positions_BT": positions_BT}
    return np.asarray(families.outputs(families.apply(case.model, params, **given)))


def read_first(
    case: families.Case, params: trees.Tree, tokens_BT: np.ndarray, valid_BT: np.ndarray | None = None
) -> np.ndarray:
    """Outputs for a few rows of the largest length, as the first of `whole_rows`."""
    tokens, valid = whole_rows(case)["tokens_BT"], np.ones((LONGEST, LONGEST), bool)
    tokens[: len(tokens_BT)] = tokens_BT
    if valid_BT is not None:
        valid[: len(valid_BT)] = valid_BT
    return read(case, params, {"tokens_BT": tokens}, {"tokens_BT": valid})[0][: len(tokens_BT)]


def aside(case: families.Case, tokens: dict[str, np.ndarray], side: str, fill: int) -> tuple[dict, dict, dict]:
    """(tokens, masks, slices of real tokens) of the rows without their last tokens, padded to their old shape on a side
    (a source on the other)."""
    where, padded, valid = {}, {}, {}
    for ids, x in tokens.items():
        left = (side == "left") == (ids == case.ids[-1])
        where[ids] = slice(PADDING, None) if left else slice(0, -PADDING)
        padded[ids], valid[ids] = np.full_like(x, fill), np.zeros(x.shape, bool)
        padded[ids][:, where[ids]], valid[ids][:, where[ids]] = x[:, :-PADDING], True
    return padded, valid, where


def reach(config: Any) -> float:
    """The distance of the farthest token that a token of a decoder has read, layer by layer."""
    local_L = config.local_layers() if hasattr(config, "local_layers") else np.zeros(config.num_layers, bool)
    return np.inf if not local_L.all() else len(local_L) * (config.window - 1)


def has_windows(case: families.Case) -> bool:
    """Whether layers of a decoder have a window, and so a ring."""
    with mock.patch.object(caches, "SPARE", 0):
        return families.empty_cache(case, 1, LONGEST).ring is not None


# A family for each way in which attention writes to a cache, all of whose layers have a window, and one some of whose.
WITH_RINGS = families.kinds(
    [case for case in families.cases("tokens_BT", "cache") if has_windows(case)],
    lambda case: (case.model.block.__call__, case.config.local_layers().all()),
)


@float64
@each()
def test_who_sees_whom(case: families.Case):
    """If one token of a row changes, a causal model's outputs before it stay the same to the bit, and all others
    change; an encoder, and a decoder of its source, see the whole row. Rows have the largest length."""
    case = case.wide()
    params, tokens = case.params(), whole_rows(case)
    tokens = {ids: np.repeat(x[:1], LONGEST, axis=0) for ids, x in tokens.items()}
    before, _ = read(case, params, tokens)
    assert np.isfinite(before).all()
    for ids in case.ids:
        changed, T = tokens[ids].copy(), tokens[ids].shape[1]
        changed[np.arange(T), np.arange(T)] = (changed[0] + 1) % case.config.vocab_size
        after, _ = read(case, params, tokens | {ids: changed})
        differs = (after != before).any(axis=-1)
        expected = np.ones((T, LONGEST), bool)
        if case.causal and ids == case.ids[-1]:
            behind_TS = np.arange(LONGEST) - np.arange(T)[:, None]
            expected = (behind_TS >= 0) & (behind_TS <= reach(case.config))
        np.testing.assert_array_equal(differs[:T], expected)


@float64
@each()
def test_padding_is_ignored(case: families.Case):
    """On either side and with any content: outputs equal those of rows without padding, and all gradients agree.
    (test_goldens compares the gradients of padded rows with the reference's.)"""
    case = case.wide()
    params, tokens = case.params(), whole_rows(case)
    alone = {ids: x[:, :-PADDING] for ids, x in tokens.items()}
    direction = random(*alone[case.ids[-1]].shape, outputs(case))
    expected = families.outputs(families.apply(case.model, params, **alone))
    found = []
    for side in ("left", "right"):
        for fill in (0, case.config.vocab_size - 1):
            padded, valid, where = aside(case, tokens, side, fill)
            wide = np.zeros((*padded[case.ids[-1]].shape, outputs(case)))
            wide[:, where[case.ids[-1]]] = direction
            result, grads = read(case, params, padded, valid, wide)
            found.append((result[:, where[case.ids[-1]]], grads))
        np.testing.assert_array_equal(found[-1][0], found[-2][0])
        assert families.difference(found[-1][0], expected) < EXACT
    assert all(families.difference(grads, found[0][1]) < EXACT for _, grads in found)
    nothing = {ids: np.zeros(x.shape, bool) for ids, x in tokens.items()}
    everywhere = np.ones((*tokens[case.ids[-1]].shape, outputs(case)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(read(case, params, tokens, nothing, everywhere)))


SCORERS = [
    families.Case(family=family, task=task, config=families.without_dropout(families.small(family)))
    for family in registry.families()
    for task in families.tasks(family)
    if task in families.PER_ROW or (task == "base" and not families.main(family).causal)
]


@float64
@pytest.mark.parametrize("case", SCORERS, ids=lambda case: f"{case.family}-{case.task}")
def test_a_row_is_scored_by_its_first_or_last_real_token(case: families.Case):
    """Padding on either side, with any content, changes no score and not what the pooler returns: they are those of the
    row alone. Of an encoder the head is run by itself, and of a decoder without layers, since hidden states are tested
    above; others run whole."""
    case, T = case.wide(), 5
    if case.causal:
        ids, end = case.ids[0], case.config.eos_id or 0  # of a vocabulary without an end of text, any token
        text = np.append(families.without(case, case.tokens(1, T), "eos_id"), end)
        tokens, valid = (np.zeros((4, len(text) + PADDING), kind) for kind in (np.int32, bool))
        for row, (side, fill) in enumerate((side, fill) for side in (0, PADDING) for fill in (1, end)):
            tokens[row], valid[row, side : side + len(text)] = fill, True
            tokens[row, valid[row]] = text
        run = jax.jit(lambda params, **given: case.model.apply({"params": params}, **given).logits)
        params = case.params()
        with families.without_layers(None):
            logits_BC = run(params, **{ids: tokens, families.MASKS[ids]: valid})
        assert families.difference(logits_BC, np.repeat(logits_BC[:1], 4, axis=0)) < EXACT
        return
    rows = lambda T: np.zeros((1, 2, T) if case.task == "multiple-choice" else (2, T), np.int32)
    hidden_BTD = random(2, T, case.config.width)
    init = functools.partial(case.model.init, train=False, method="_output")
    shapes = jax.eval_shape(init, jax.random.key(0), rows(T), hidden_BTD, None)
    variables = jax.tree.map(lambda x: jnp.asarray(random(*x.shape)), shapes)

    def scores(hidden_BTD: np.ndarray, valid_BT: np.ndarray | None) -> dict[str, jax.Array]:
        tokens = rows(hidden_BTD.shape[1])
        output = case.model.apply(variables, tokens, hidden_BTD, valid_BT, False, method="_output")
        found = {name: getattr(output, name) for name in ("pooled_BD", "logits", "next_sentence_B2")}
        return {name: x for name, x in found.items() if x is not None and not families.is_per_token(case.task, name)}

    alone = scores(hidden_BTD, None)
    assert case.task == "base" or alone
    for side in (slice(0, T), slice(PADDING, None)):
        padded, valid_BT = 9 * random(2, T + PADDING, case.config.width), np.zeros((2, T + PADDING), bool)
        padded[:, side], valid_BT[:, side] = hidden_BTD, True
        found = scores(padded, valid_BT)
        assert all(families.difference(found[name], alone[name]) < EXACT for name in alone)


@float64
@each()
def test_training_without_its_dropout_is_evaluation(case: families.Case):
    """Padded on either side: training takes another path through attention, with the same masks and biases. (Here the
    parameters are numpy arrays, and constants of the program.)"""
    case = case.wide()
    params, tokens = jax.tree.map(np.asarray, case.params()), whole_rows(case)
    training = dataclasses.replace(case, config=families.small(case.family))
    assert all(rate > 0 for rate in families.dropouts(training.config).values())

    def identity(function: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        return args[0] if isinstance(context.module, nn.Dropout) else function(*args, **kwargs)

    @jax.jit
    def train(given: Any) -> Any:
        return families.outputs(training.model.apply({"params": params}, **given, train=True, rngs={"dropout": key}))

    key = jax.random.key(0)
    for side in ("left", "right"):
        padded, valid, where = aside(case, tokens, side, 0)
        masks = {families.MASKS[ids]: mask for ids, mask in valid.items()}
        with nn.intercept_methods(identity):
            actual = np.asarray(train(padded | masks))
        expected, _ = read(case, params, padded, valid)
        assert families.difference(actual[:, where[case.ids[-1]]], expected[:, where[case.ids[-1]]]) < EXACT


# Documents that lie side by side in a row, on each side; they are numbered alike, and in any order.
NUMBERS = (4, 2, 9, 7, 1, 3)
DOCUMENTS = {"tokens_BT": (5, 3, 4, 1, 2, 6), "source_BS": (5, 3, 4, 1, 2, 6), "target_BT": (2, 4, 3, 5, 6, 1)}


@float64
@pytest.mark.parametrize(
    "case", families.cases("documents_BT") + families.cases("target_documents_BT"), ids=families.name_of
)
def test_packed_is_unpacked(case: families.Case):
    """Documents, or pairs of them, packed into a row equal single ones, in outputs and in gradients."""
    case = case.wide()
    params, tokens, ids = case.params(), whole_rows(case), case.ids[-1]
    valid = {name: np.zeros(x.shape, bool) for name, x in tokens.items()}
    for name in case.ids:
        for row, length in enumerate(DOCUMENTS[name]):
            valid[name][row, :length] = True
    number = np.zeros(LONGEST, np.int32)
    number[: len(NUMBERS)] = NUMBERS

    def pack(x: np.ndarray, name: str) -> np.ndarray:
        """All documents in the first row; nothing in the others."""
        packed, count = np.zeros_like(x), sum(DOCUMENTS[name])
        packed[0, :count] = x[valid[name]]
        return packed

    direction = random(*tokens[ids].shape, outputs(case)) * valid[ids][..., None]
    alone, expected = read(case, params, tokens, valid, direction)
    packed = {name: pack(x, name) for name, x in tokens.items()}
    documents = {name: pack(number[:, None] * valid[name], name) for name in case.ids}
    actual, grads = read(case, params, packed, documents, pack(direction, ids))
    count = sum(DOCUMENTS[ids])
    assert families.difference(actual[0, :count], alone[valid[ids]]) < EXACT
    assert families.difference(grads, expected) < EXACT
    if "positions_BT" in case.takes:
        counted = pack(np.arange(LONGEST, dtype=np.int32) + 0 * tokens[ids], ids)
        again = placed(case, params, packed, counted, documents)
        assert families.difference(again[0, :count], alone[valid[ids]]) < EXACT


@float64
@each("positions_BT")
def test_positions(case: families.Case):
    """By default they count real tokens; other positions change the outputs; a token's slot does not."""
    case = case.wide()
    params, tokens = case.params(), whole_rows(case)
    counted = np.arange(LONGEST)
    expected = placed(case, params, tokens, counted)
    assert families.difference(read(case, params, tokens)[0], expected) < EXACT
    assert families.difference(placed(case, params, tokens, counted[::-1]), expected) > 1e-3
    left = {"tokens_BT": np.ones((LONGEST, 1), bool) & (counted >= 2)}
    actual, _ = read(case, params, tokens, left)
    there = placed(case, params, tokens, np.maximum(counted - 2, 0), left)
    assert families.difference(actual[:, 2:], there[:, 2:]) < EXACT


@each_kind()
def test_the_shortest_rows(case: families.Case):
    """A single token. (Of decoders with a cache, also token by token.)"""
    params, given = case.params(), inputs(case, length=1)
    one = families.outputs(families.apply(case.model, params, **{ids: x[:, :1] for ids, x in given.items()}))
    assert one.shape[:2] == (1, 1) and np.isfinite(np.asarray(one)).all()


# ---- the cache ------------------------------------------------------------------------------------------------------


@float64
@each("tokens_BT", "cache")
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_is_uncached(case: families.Case, side: str, monkeypatch: pytest.MonkeyPatch):
    """Prompts of 2 and 6 tokens, padded, and then parts of 1, 1, 6 and 1: all outputs equal the whole row's. Windows
    are shorter, and rings have one slot more than they: the parts are of fewer and of more tokens than that. (A part of
    6 has a mask, as the prompts have, for the same program.)"""
    monkeypatch.setattr(caches, "SPARE", 1)
    case = case.wide()
    params = case.params()
    prompts, more, width = np.array([2, 6]), 9, 6
    whole = case.tokens(2, LONGEST)
    expected = read_first(case, params, whole, np.arange(LONGEST) < (prompts + more)[:, None])

    slots = np.arange(width)[None] - (width - prompts[:, None] if side == "left" else 0)
    real_BT = (slots >= 0) & (slots < prompts[:, None])
    cache = families.empty_cache(case, 2, LONGEST)
    given = np.where(real_BT, np.take_along_axis(whole, slots.clip(0), 1), 5)
    out = families.apply(case.model, params, tokens_BT=given, valid_BT=real_BT, cache=cache)
    first = np.asarray(families.outputs(out))
    for row, real in enumerate(prompts):
        assert families.difference(first[row][real_BT[row]], expected[row, :real]) < EXACT
    start = 0
    for piece in (1, 1, width, 1):
        places = prompts[:, None] + start + np.arange(piece)
        given = {"tokens_BT": np.take_along_axis(whole, places, 1)}
        mask = {"valid_BT": np.ones(places.shape, bool)} if piece == width else {}
        out = families.apply(case.model, params, **given, **mask, cache=out.cache)
        there = np.take_along_axis(expected, places[..., None], 1)
        assert families.difference(families.outputs(out), there) < EXACT
        start += piece
    assert out.cache.length == width + more


@float64
@each("tokens_BT", "cache")
def test_token_by_token(case: families.Case):
    """From nothing to the last position."""
    case = case.wide()
    params = case.params()
    tokens_BT = case.tokens(2, LONGEST)
    expected = read_first(case, params, tokens_BT)
    cache = families.empty_cache(case, 2, LONGEST)
    for t in range(LONGEST):
        out = families.apply(case.model, params, tokens_BT=tokens_BT[:, t : t + 1], cache=cache)
        assert families.difference(np.asarray(families.outputs(out))[:, 0], expected[:, t]) < EXACT
        cache = out.cache


@float64
@pytest.mark.parametrize("case", WITH_RINGS, ids=families.name_of)
def test_a_cache_of_windows_keeps_no_more(case: families.Case, monkeypatch: pytest.MonkeyPatch):
    """Slots for a window and one token more, of layers that have one: a token is taken back, and slots are added."""
    make = lambda length=LONGEST: case.module.init_cache(case.config, 2, length, jnp.float64)
    assert make().ring is None and make(PADDING).ring is None  # the slots would be more than the tokens
    monkeypatch.setattr(caches, "SPARE", 1)
    local = case.config.local_layers()
    for cache in (make(), make(12).widen(LONGEST)):
        slots = [len(local[local]) * (case.config.window + 1), len(local[~local]) * LONGEST]
        held = [x.shape[0] * x.shape[3] for x in jax.tree.leaves(cache.kv)]
        assert sum(held) == 2 * sum(slots) and cache.valid_BS.shape == (2, LONGEST)
    case = case.wide()
    tokens_BT = case.tokens(2, LONGEST)
    run = functools.partial(families.apply, case.model, case.params(), mutable=("intermediates",))
    (_, sown), (first, _) = run(tokens_BT=tokens_BT[:, :7]), run(tokens_BT=tokens_BT[:, :4], cache=cache)
    wrong, _ = run(tokens_BT=tokens_BT[:, 8:9], cache=first.cache)
    found, sown_cached = run(tokens_BT=tokens_BT[:, 4:7], cache=wrong.cache.rewind(jnp.int32(4)))
    hidden = [x["intermediates"]["blocks"]["hidden_BTD"][0] for x in (sown, sown_cached)]
    assert families.difference(hidden[1], hidden[0][:, :, 4:]) < EXACT
    assert families.difference(found.hidden_BTD, run(tokens_BT=tokens_BT[:, :7])[0].hidden_BTD[:, 4:]) < EXACT


def test_groups_of_layers():
    """Gemma 3's and Qwen2's, among others: with the fewest layers in them."""
    for kinds, expected in {
        "": "", "a": "a1", "aaaa": "a4", "abab": "ab2", "ababa": "ab2 a1", "aaabbb": "a3 b3", "abcd": "abcd1",
        "aaaaab" * 4 + "aa": "aaaaab4 a2", "baab" * 3: "baab3", "cababab": "c1 ab3",
    }.items():  # fmt: skip
        found = groups(tuple(kinds))
        assert "".join("".join(group) * times for group, times in found) == kinds
        assert " ".join(f"{''.join(group)}{times}" for group, times in found) == expected


def test_what_layers_of_two_kinds_keep():
    """Each its own: arrays, and `Layers` of them."""
    kept = ByKind(({"a": np.arange(3)}, np.arange(3, 5)), kinds=(1, 0, 0, 1, 0))
    layers = [kept[i] for i in range(5)]
    assert layers == [3, {"a": 0}, {"a": 1}, 4, {"a": 2}]
    assert [kept.of_layers(layers)[i] for i in range(5)] == layers


def test_a_long_text_in_layers_with_and_without_a_window():
    """What Gemma 3 1B keeps of 32,768 tokens: of 4 of its 26 layers all, and of the others a window; and the program of
    a deeper model is as long."""
    family = families.main("gemma3").module
    config = family.PRESETS["gemma-3-1b"][1]
    kv = jax.eval_shape(lambda: family.init_cache(config, 1, 32768)).kv
    numbers = sum(x.size for x in jax.tree.leaves(kv))
    assert numbers == (4 * 32768 + 22 * (512 + caches.SPARE)) * config.num_kv_heads * config.head_dim * 2

    def equations(num_layers: int) -> int:
        case = families.main("gemma3").with_(num_layers=num_layers, max_length=64)
        cache = jax.eval_shape(lambda: case.module.init_cache(case.config, 1, 64))
        run = lambda params, cache: case.model.apply({"params": params}, np.zeros((1, 4), np.int32), cache=cache)
        program = jax.make_jaxpr(run)(registry.param_shapes(case.model), cache)
        return len(list(families.equations(program.jaxpr)))

    assert equations(5) == equations(9)


@float64
@each("target_BT", "cache")
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_pairs_are_uncached(case: families.Case, side: str):
    """The same with sources of 3 and 7 tokens, which are passed only to the first call."""
    case = case.wide()
    params = case.params()
    prompts, more, width = np.array([2, 4]), 6, 4
    source_BS, whole = case.tokens(2, 7, seed=1), case.tokens(2, width + more)
    source = {"source_BS": source_BS, "valid_BS": np.arange(7) >= np.array([[4], [0]])}
    valid_BT = np.arange(width + more) < (prompts + more)[:, None]
    expected = families.apply(case.model, params, **source, target_BT=whole, target_valid_BT=valid_BT)
    encoded_BSD = families.apply(case.model, params, **source, method="encode")
    assert families.difference(encoded_BSD, expected.encoded_BSD) < EXACT

    slots = np.arange(width)[None] - (width - prompts[:, None] if side == "left" else 0)
    real_BT = (slots >= 0) & (slots < prompts[:, None])
    cache = families.empty_cache(case, 2, width + more)
    given = {"target_valid_BT": real_BT, "cache": cache}
    given["target_BT"] = np.where(real_BT, np.take_along_axis(whole, slots.clip(0), 1), 5)
    out = families.apply(case.model, params, **source, **given)
    again = families.apply(
        case.model, params, encoded_BSD=encoded_BSD, valid_BS=source["valid_BS"], **given, method="decode"
    )
    assert families.difference((again.cache.kv, again.cache.cross), (out.cache.kv, out.cache.cross)) < EXACT
    expected = np.asarray(families.outputs(expected))
    first = np.asarray(families.outputs(out))
    for row, real in enumerate(prompts):
        assert families.difference(first[row][real_BT[row]], expected[row, :real]) < EXACT
    start = 0
    for piece in (1, 1, 3, 1):
        places = prompts[:, None] + start + np.arange(piece)
        given = {"target_BT": np.take_along_axis(whole, places, 1), "cache": out.cache}
        if piece == 1:
            out = families.apply(case.model, params, source_BS=None, **given)
        else:
            out = families.apply(case.model, params, encoded_BSD=None, **given, method="decode")
        assert families.difference(families.outputs(out), np.take_along_axis(expected, places[..., None], 1)) < EXACT
        start += piece
    assert out.cache.length == width + more


# ---- knobs ----------------------------------------------------------------------------------------------------------


@each_stacking()
def test_knobs_do_what_they_say(case: families.Case):
    """Fewer products are kept for the backward pass, and loops are unrolled. (test_sharding compares the results.)"""
    depths = {*case.depths}

    def products(**knobs: Any) -> int:
        model, given = case.with_(**knobs).model, inputs(case)
        loss = lambda params: families.outputs(model.apply({"params": params}, **given)).sum()
        program = jax.make_jaxpr(jax.grad(loss))(registry.param_shapes(model))
        names = [(equation.primitive.name, equation.params) for equation in families.equations(program.jaxpr)]
        loops = {params["unroll"] for name, params in names if name == "scan"}
        assert loops == {min(knobs["unroll"], depth) for depth in depths}
        return sum(name == "dot_general" for name, _ in names)

    none, dots, full = products(unroll=1), products(unroll=2, remat="dots"), products(unroll=max(depths), remat="full")
    assert none < dots < full


@float64
@each_kind()
def test_intermediates(case: families.Case):
    """Attention weights and hidden states of every layer, on request; the outputs stay the same."""
    case, T = case.wide(), LONGEST
    params, ids = case.params(), case.ids[-1]
    padded, valid, _ = aside(case, whole_rows(case), "left", 0)
    expected, _ = read(case, params, padded, valid)
    masks = {families.MASKS[name]: mask for name, mask in valid.items()}
    output, asked = families.apply(case.model, params, **padded, **masks, mutable=("intermediates",))
    valid_BT = valid[ids]
    assert families.difference(np.asarray(families.outputs(output))[valid_BT], expected[valid_BT]) < EXACT

    asked = {path: np.asarray(value) for path, (value,) in trees.flatten(asked["intermediates"]).items()}
    hidden = {path: x for path, x in asked.items() if path.endswith("blocks/hidden_BTD")}
    assert len(hidden) == len(case.depths)
    for path, x in hidden.items():
        assert x.shape[0] == len(case.layers(path)) and x.shape[-1] == case.config.width
        assert all(families.difference(x[i], x[i + 1]) > 1e-3 for i in range(len(x) - 1))
    weights = {path: x for path, x in asked.items() if path.endswith("weights_BHTS")}
    assert len({re.sub(r"layer_\d+/", "", path) for path in weights}) == len(case.depths) + len(case.ids) - 1
    for path, weights_LBHTS in weights.items():
        layers, rows, num_heads = weights_LBHTS.shape[:3]  # a row of the batch may be cut into several
        assert (layers, rows % T, num_heads) == (len(case.layers(path)), 0, case.config.num_heads)
        if any(name.endswith("attention/sinks") for name in trees.flatten(params)):
            assert (weights_LBHTS.sum(-1) < 1).all()  # the sinks have the rest
        else:
            np.testing.assert_allclose(weights_LBHTS.sum(-1), 1, rtol=1e-12)
    path, own = next((path, x) for path, x in weights.items() if x.shape[-2:] == (T, T))  # of what is said, to itself
    seen_BTS = valid_BT[:, None, :] & (np.tri(T, dtype=bool) if case.causal else np.ones((T, T), bool))
    has_any = seen_BTS.any(-1) & valid_BT  # a query that sees nothing is nobody's business, nor is one of padding
    nonzero = np.moveaxis(np.asarray(own) > 0, 2, 0)  # [H, L, B, T, S]
    seen_LBTS = np.stack([seen_BTS] * len(own))
    if window := getattr(case.config, "window", None):  # which some layers see only
        local_L = case.config.local_layers()[case.layers(path)]
        near_TS = np.abs(np.arange(T)[:, None] - np.arange(T)) <= (window - 1 if case.causal else window // 2)
        seen_LBTS[local_L] &= near_TS
    assert (nonzero == seen_LBTS)[:, :, has_any].all()


@each_kind("tokens_BT")
def test_fused_attention_says_the_same(case: families.Case):
    """The TPU's kernel, interpreted, inside a whole model: it gets the padding and the scales of the layers."""
    case = case.with_(num_layers=2, **({"max_length": 128} if case.config.max_length else {}))
    params, tokens_BT = case.params(), case.tokens(1, 128)
    valid_BT = np.arange(128)[None] < 100
    given, xla = {"tokens_BT": tokens_BT, "valid_BT": valid_BT}, case.with_(attention="xla")
    speak = lambda case: families.outputs(families.apply(case.model, params, **given))
    try:
        fused = speak(case.with_(attention="splash"))
    except ValueError as error:
        assert "attention 'splash'" in str(error)
        program, plain = (families.apply.trace(one.model, params, **given).jaxpr for one in (case, xla))
        assert values_of(program) == values_of(plain)
        return
    plain = speak(xla)
    assert 0 < families.difference(fused[:, :100], plain[:, :100]) < 1e-5


# ---- fresh parameters -----------------------------------------------------------------------------------------------

# The distributions of fresh weights in the papers, by path. (Norms' scales are one, biases zero, everywhere.) Families
# without a row here draw all weights from a normal distribution of `init_std`, which may be cut at two deviations.
normal = lambda std: scipy.stats.norm(scale=std)
truncated = lambda std: scipy.stats.truncnorm(-2, 2, scale=std)
uniform = lambda largest: scipy.stats.uniform(-largest, 2 * largest)
all_truncated = lambda cfg: ((r".*/(embedding|kernel|sinks)", truncated(cfg.init_std)),)
all_normal = lambda cfg: ((r".*/(embedding|kernel|sinks)", normal(cfg.init_std)),)
FRESH: dict[str, Callable[[Any], Any]] = {
    "albert": all_truncated,
    "bart": all_normal,
    "bert": all_truncated,
    "bloom": lambda cfg: FRESH["gpt2"](cfg),
    "deberta": all_normal,
    "deberta_v2": all_normal,
    "distilbert": all_normal,
    "electra": all_truncated,
    "gpt2": lambda cfg: (
        (r".*/(out|mlp_down)/kernel", normal(cfg.init_std / (2 * cfg.num_layers) ** 0.5)),
        (r".*/embedding|.*/(query|key|value|mlp_up)/kernel", normal(cfg.init_std)),
    ),
    "gpt_neo": lambda cfg: (
        (r".*/query/kernel", normal(cfg.init_std * (cfg.width // cfg.num_heads) ** -0.5)),
        (r".*/(out|mlp_down)/kernel", normal(cfg.init_std / (2 * cfg.num_layers) ** 0.5)),
        (r".*/embedding|.*/(key|value|mlp_up)/kernel", normal(cfg.init_std)),
    ),
    "longt5": lambda cfg: FRESH["t5"](cfg),
    "marian": lambda cfg: (
        (r"token_embed/embedding", normal(cfg.width**-0.5)),
        (r".*/(query|key|value|out)/kernel", uniform((6 / (2 * cfg.width)) ** 0.5)),
        (r"encoder_blocks/mlp_(up|down)/kernel", uniform((6 / (cfg.width + cfg.mlp_dim)) ** 0.5)),
        (r"decoder_blocks/mlp_(up|down)/kernel", uniform((6 / (cfg.width + cfg.mlp_decoder_dim)) ** 0.5)),
    ),
    "mbart": all_normal,
    "modernbert": lambda cfg: (
        (r".*/(out|mlp_down|dense)/kernel", truncated(cfg.init_std / (2 * cfg.num_layers) ** 0.5)),
        (r".*/embedding|.*/(query|key|value|mlp_gate|mlp_up)/kernel", truncated(cfg.init_std)),
    ),
    "mpnet": all_normal,
    "openai_gpt": all_normal,
    "opt": lambda cfg: (
        (r".*/(out|mlp_down)/kernel", normal(cfg.init_std / (2 * cfg.num_layers) ** 0.5)),
        (r".*/embedding|.*_project/kernel|.*/(query|key|value|mlp_up)/kernel", normal(cfg.init_std)),
    ),
    "pegasus": all_normal,
    "qwen3_5": lambda cfg: (
        (r".*/log_rate", scipy.stats.uniform(0.01, 15.99)),  # of the rates themselves
        *all_normal(cfg),
    ),
    "roberta": all_normal,
    "t5": lambda cfg: (
        (r"token_embed/embedding", normal(1.0)),
        (r".*relative_bias/embedding", uniform((6 / (cfg.num_buckets + cfg.num_heads)) ** 0.5)),
        (r".*/query/kernel", normal((cfg.width * cfg.head_dim) ** -0.5)),
        (r".*/(key|value|mlp_gate|mlp_up)/kernel", normal(cfg.width**-0.5)),
        (r".*/out/kernel", normal((cfg.num_heads * cfg.head_dim) ** -0.5)),
        (r".*/mlp_down/kernel", normal(cfg.mlp_dim**-0.5)),
    ),
}


@each()
def test_fresh_parameters_are_those_of_the_paper(case: families.Case):
    """The distributions by the Kolmogorov-Smirnov test; the spread to five standard errors. Initialisers are collected
    while `init` is traced; each is sampled once, by operations that are compiled once for all families."""
    case = case.with_(width=64, vocab_size=500)
    initialisers: dict[str, Any] = {}
    declare = nn.Module.param

    def record(module: nn.Module, name: str, init: Any, *args: Any, **kwargs: Any) -> Any:
        initialisers["/".join((*module.path, name))] = (init, args)
        return declare(module, name, init, *args, **kwargs)

    with mock.patch.object(nn.Module, "param", record):
        shapes = trees.flatten(registry.param_shapes(case.model))
    weights, key = {}, jax.random.key(0, impl="rbg")  # whose programs are the quickest to compile
    for path in shapes:
        init, args = initialisers[path]
        x, name = np.asarray(init(key, *args), np.float64), path.rpartition("/")[2]
        assert shapes[path].shape[shapes[path].ndim - x.ndim :] == x.shape, path
        assert name in ("bias", "offset", "scale", "decay_shift", "log_rate", "kernel", "embedding", "sinks"), path
        if name in ("bias", "offset", "scale", "decay_shift"):
            assert (x == (name in ("scale", "decay_shift"))).all(), path
        elif len(x) == padded_vocab(500):
            assert not x[500:].any(), path
            weights[path] = x[:500].ravel()
        else:
            weights[path] = np.exp(x.ravel()) if name == "log_rate" else x.ravel()
    fits = lambda x, law: (
        abs(x.var() / law.var() - 1) < 5 * (2 / x.size) ** 0.5 and scipy.stats.kstest(x, law.cdf).pvalue > 1e-5
    )
    laws = [FRESH[case.family]] if case.family in FRESH else [all_normal, all_truncated]
    misfits = [
        [path for path, law in trees.match(expected(case.config), weights).items() if not fits(weights[path], law)]
        for expected in laws
    ]
    assert not all(misfits), misfits


class Toy(nn.Module):
    """A block of one dense layer and dropout."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: None) -> tuple[jax.Array, jax.Array]:
        y_BTD = nn.Dropout(0.5, deterministic=False)(nn.Dense(x_BTD.shape[-1])(x_BTD))
        return x_BTD, y_BTD == 0


@pytest.mark.parametrize("places", [None, np.array([(0, 0), (0, 1), (1, 0), (1, 1)])], ids=["own", "shared"])
@pytest.mark.parametrize("knobs", [{}, {"remat": "full"}, {"unroll": 4}], ids=str)
def test_every_layer_draws_its_own_numbers(places: np.ndarray | None, knobs: dict[str, Any]):
    """Fresh parameters differ in each layer that does not share them, and dropout in each layer and row."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x_BTD: jax.Array) -> Any:
            return stack(Toy(), x_BTD, None, length=4, compute=Compute(**knobs), places=places)[1]

    x_BTD, keys = jnp.ones((2, 3, 16)), {name: jax.random.key(i) for i, name in enumerate(("params", "dropout"))}
    init = jax.jit(lambda keys: Model().init(keys, x_BTD)["params"])
    params = init(keys)
    (kernels,) = (x for x in jax.tree.leaves(params) if x.shape[-2:] == (16, 16))
    kernels = np.asarray(kernels).reshape(4, 256)
    assert abs(np.corrcoef(kernels) - np.eye(4)).max() < 5 / 16
    apply = jax.jit(lambda key: Model().apply({"params": params}, x_BTD, rngs={"dropout": key}))
    draw = lambda seed: np.asarray(apply(jax.random.key(seed)))
    dropped = draw(0).reshape(8, -1)
    assert all((dropped[i] != dropped[j]).mean() > 0.2 for i in range(8) for j in range(i)) and dropped.shape == (8, 48)
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(1) != draw(0)).mean() > 0.2
    other = init({name: jax.random.key(7) for name in keys})
    assert families.difference(other, params) > 0.1


# ---- what is set is read --------------------------------------------------------------------------------------------


# A loss is chosen by the problem, and weighs the balance of experts; by the model type are chosen the names in
# config.json; too long rows are refused.
READ_ELSEWHERE = ("problem", "model_type", "max_length", "balance_weight")
# What encoder-decoders are told to stand for padding, others want to know who read their config.json.
READ_BY_OTHERS = ("pad_id",)
# Fields of which another value needs another value of a field that no program reads.
TOGETHER = {
    "bias_per_layer": {"model_type": "umt5"},
    "num_heads": {"num_kv_heads": 2, "local_kv_heads": 2},
    "num_reusing_layers": {"num_reusing_layers": 0},
}


# Read in generation alone: the token that ends a text, that which a decoder reads first, and those that an output must
# begin or end with, by their place.
STARTS = {"decoder_start_id": 1}
FORCED = {"forced_bos_id": 0, "forced_eos_id": -1}
GENERATED = ("eos_id", *STARTS, *FORCED)


def other(family: str, name: str, value: Any) -> Any:
    """Another value that a field may have."""
    if isinstance(value, bool):
        return not value
    if value is None or name in READ_ELSEWHERE:
        return value
    if isinstance(value, str | tuple) or dataclasses.is_dataclass(value):
        known = families.known_choices(family, name) if isinstance(value, str) else families.RANDOM[name]
        known = families.ropes(family) if isinstance(value, Rope) else known
        meaning = lambda choice: ACTIVATIONS.get(choice, choice)  # several names stand for one function
        return next(choice for choice in known if meaning(choice) != meaning(value))
    if name in ("head_dim", "width"):
        return 2 * value  # rotary positions turn pairs of a head's elements
    if isinstance(value, int):
        return (value + 1) // 2 if value > 1 else 2
    return value / 2 or 0.5


def values_of(program: ClosedJaxpr) -> Any:
    """A traced program in types that are compared by their values: variables by their numbers, arrays by their bytes,
    functions not at all."""

    @functools.cache  # what is called often is one program
    def equations(jaxpr: Jaxpr) -> Any:
        numbers: dict[Any, int] = {}

        def typed(variables: Any) -> Any:
            return tuple(
                (of(var.val) if isinstance(var, Literal) else numbers.setdefault(var, len(numbers)), var.aval)
                for var in variables
            )

        begin = typed((*jaxpr.constvars, *jaxpr.invars))
        body = [(e.primitive, typed(e.invars), typed(e.outvars), *map(of, e.params.items())) for e in jaxpr.eqns]
        return begin, body, typed(jaxpr.outvars)

    def of(x: Any) -> Any:
        if isinstance(x, ClosedJaxpr):
            return equations(x.jaxpr), of(x.consts)
        if isinstance(x, Jaxpr):
            return equations(x)
        if isinstance(x, tuple | list):
            return [*map(of, x)]
        if isinstance(x, np.ndarray | np.generic | jax.Array):
            return np.asarray(x).tobytes()
        return None if callable(x) or isinstance(x, WrappedFun) else x

    found = of(program)
    equations.cache_clear()  # these are a million objects, which would wait for the garbage collector
    return found


@each()
def test_every_field_of_the_config_is_read(case: families.Case):
    """Each field changes the program that initialises and trains a model for the main task, or else what another task
    does with hidden states, or else generation."""
    config = case.config

    def traced(task: str, config: Any) -> Any:
        small = dataclasses.replace(case, task=task, config=config)
        given = families.for_task(task, {name: jnp.zeros((1, 8), jnp.int32) for name in inputs(small)})
        make = lambda key: small.model.init_with_output({"params": key, "dropout": key}, **given, train=True)
        hidden_BTD = None if case.causal else np.zeros((1, 8, config.width), np.float32)
        with contextlib.nullcontext() if task == case.task else families.without_layers(hidden_BTD):
            return values_of(jax.make_jaxpr(make)(jax.random.key(0)))

    program = traced(case.task, config)
    assert traced(case.task, config) == program  # so that a difference means something
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values = {name: value for name, value in values.items() if value is not None or name not in families.EXPERTS}
    others = {name: other(case.family, name, value) for name, value in values.items() if name not in READ_ELSEWHERE}
    changes = {name: {name: value} | TOGETHER.get(name, {}) for name, value in others.items()}
    changed = {name: families.sized(config, **change) for name, change in changes.items()}
    unread = [name for name in changed if not (case.causal and name in GENERATED)]
    if "source_BS" in case.takes:
        unread = [name for name in unread if name not in READ_BY_OTHERS]
    heads = sorted(families.tasks(case.family), key=lambda task: task not in families.PER_ROW)  # most fields first
    for task in dict.fromkeys((case.task, *heads)):
        if not unread:
            break
        if task != case.task:
            program = traced(task, config)
        unread = [name for name in unread if traced(task, changed[name]) == program]
    assert not unread, f"nothing reads {unread}"


def generated(case: families.Case) -> tuple[str, ...]:
    """The fields of a config that generation reads."""
    return tuple(field.name for field in dataclasses.fields(case.config) if field.name in GENERATED)


# A decoder and an encoder-decoder with most of such fields: `generate` reads them, and no family does.
WRITERS = [
    max(families.cases(ids, "cache"), key=lambda case: len(generated(case))).sized(num_layers=1, num_decoder_layers=1)
    for ids in ("tokens_BT", "source_BS")
]


@pytest.mark.parametrize("case", WRITERS, ids=families.name_of)
def test_special_tokens_are_generated(case: families.Case):
    prompts, fields = case.tokens(8, 3), generated(case)
    answer = lambda config, scale: generate(
        Bundle(dataclasses.replace(case, config=config).model, case.params(scale=scale), config), prompts,
        max_new_tokens=8,
    )  # fmt: skip
    config = dataclasses.replace(case.config, **{name: STARTS.get(name) for name in fields})
    # With small or large parameters, some row is to have different tokens.
    tried = ((scale, answer(config, scale)) for scale in (0.5, 1.0, 2.0))
    scale, words = next((scale, words) for scale, words in tried if (words[:, :-1] != words[:, 1:]).any())
    row, end = np.argwhere(words[:, :-1] != words[:, 1:])[0]
    token = int(words[row, end])
    for name in fields:
        others = answer(dataclasses.replace(config, **{name: token}), scale)
        if name in STARTS:
            assert token != STARTS[name] and (others != words).any(), name
        elif name in FORCED:
            assert (others[:, FORCED[name]] == token).all(), name
        else:
            assert (others[row, : end + 1] == words[row, : end + 1]).all() and (others[row, end:] == token).all(), name


# ---- dropout --------------------------------------------------------------------------------------------------------


@each_stacking()
def test_dropout(case: families.Case):
    """Depends on the key, and has its rate at every site, independently in all layers and rows. (test_goldens compares
    the sites with the reference.)"""
    case = dataclasses.replace(case, config=families.small(case.family))
    # So many rows that each rate is told from the next.
    params, given = case.params(), families.padded(case, inputs(case, 64, 4), {})

    def record(function: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result = function(*args, **kwargs)
        if isinstance(context.module, nn.Dropout) and context.module.rate:
            context.module.sow("intermediates", f"rate {context.module.rate}", jnp.where(args[0] == 0, -1, result == 0))
        return result

    @jax.jit
    def train(key: jax.Array) -> Any:
        with nn.intercept_methods(record):
            output, found = case.model.apply(
                {"params": params}, **given, train=True, rngs={"dropout": key}, mutable="intermediates"
            )
        return families.outputs(output), {k: x for k, x in trees.flatten(found["intermediates"]).items() if "rate" in k}

    (one, masks), (again, _), (two, _) = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    plain = families.outputs(families.apply(case.model, params, **given))
    assert min(families.difference(one, two), families.difference(one, plain)) > 1e-2
    assert masks
    for path, found in masks.items():
        rate = float(path.rpartition("rate ")[2])
        for x in map(np.asarray, found):
            live = x[x >= 0]
            assert abs(live.mean() - rate) < 5 * (rate / live.size) ** 0.5, f"{path} drops {live.mean():.3f}"
            if "blocks/" in path:
                assert x.shape[0] == len(case.layers(path))
                assert all((x[i] != x[i + 1]).mean() > 0.05 for i in range(len(x) - 1)), f"{path}: layers agree"
            rows = np.moveaxis(x, 1, 0) if "blocks/" in path else x
            assert (rows[0] != rows[1]).any(), f"{path}: rows agree"


# ---- precision ------------------------------------------------------------------------------------------------------


@each_kind()
def test_bfloat16(case: families.Case):
    """Computation in bfloat16 stays near float32's, or as near as with rounded parameters, to which some models are
    sensitive; parameters (and so their gradients) and logits are float32."""
    # All experts: with fewer, rounding may choose others.
    if getattr(case.config, "num_experts", None) is not None:
        sizes = families.SMALL
        case = case.sized(num_chosen=sizes["num_experts"], num_chosen_groups=sizes["num_expert_groups"])
    params, given = case.params(scale=0.1), inputs(case, 2, 12)
    low = case.with_(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(registry.param_shapes(low.model))} == {jnp.dtype("float32")}
    stored = case.with_(param_dtype="bfloat16")
    kept = trees.flatten(registry.param_shapes(stored.model)).items()
    assert {x.dtype for path, x in kept if not path.endswith("correction/bias")} == {jnp.dtype("bfloat16")}
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16).astype(x.dtype), params)
    sensitivity = families.apply(case.model, rounded, **given)
    expected, actual = (families.apply(c.model, params, **given) for c in (case, low))
    assert actual.hidden_BTD.dtype == jnp.bfloat16
    if actual.logits is not None:
        assert actual.logits.dtype == jnp.float32
    results = (actual, expected, sensitivity)
    actual, expected, sensitivity = (np.asarray(families.outputs(x), np.float32) for x in results)
    error = lambda x: np.linalg.norm(x - expected) / np.linalg.norm(expected)
    assert 1e-4 < error(actual) < max(2e-2, 2 * error(sensitivity))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_of_numbers_far_from_zero(dtype: str):
    """Statistics are float32 and computed in two passes: E[x^2] - E[x]^2 would lose all digits here."""
    step = {"float32": 1, "bfloat16": 64}[dtype]  # the numbers that there are near 10000
    x_BD = 10048 + step * np.random.default_rng(0).integers(-4, 5, (8, 512))
    norm = Compute(dtype=dtype).layer_norm()
    y_BD = norm.apply(norm.init(jax.random.key(0), x_BD), jnp.asarray(x_BD, dtype)).astype(jnp.float32)
    expected = (x_BD - x_BD.mean(1, keepdims=True)) / x_BD.std(1, keepdims=True)
    np.testing.assert_allclose(y_BD, expected, atol=1e-3 if dtype == "float32" else 1e-2)


@float64
@each()
def test_float64_is_float64_from_end_to_end(case: families.Case):
    """No intermediate number, forward or backward, has fewer bits: one would lose half of the digits."""
    case = case.wide()
    tokens = whole_rows(case)
    direction = np.zeros((*tokens[case.ids[-1]].shape, outputs(case)))
    program = families.gradients.trace(case.model, case.params(), direction, **with_masks(case, tokens)).jaxpr
    found = {
        str(var.aval.dtype)
        for equation in families.equations(program.jaxpr)
        for var in (*equation.invars, *equation.outvars)
        if jnp.issubdtype(var.aval.dtype, jnp.floating) and not getattr(var.aval, "weak_type", False)
    }
    assert found == {"float64"}


# ---- the padded vocabulary ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in families.cases() if hasattr(case.module.Model, "logits")], ids=families.name_of
)
def test_tokens_that_do_not_exist(case: families.Case):
    """The rows that pad the vocabulary get no probability and no gradient."""
    V = case.config.vocab_size
    params, given = case.params(), inputs(case, 2, 12)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params: Any) -> Any:
        with families.without_layers(None if case.causal else random(2, 12, case.config.width).astype(np.float32)):
            output = case.model.apply({"params": params}, **given)
        hidden_BTD = jax.lax.stop_gradient(output.hidden_BTD)
        logits = case.model.apply({"params": params}, hidden_BTD, method="logits")
        return jax.nn.log_softmax(logits)[..., 0].sum(), (logits, output.logits)

    grads, (logits, own) = gradient(params)
    assert logits.shape == (2, 12, padded_vocab(V)) and padded_vocab(V) > V
    assert (np.asarray(logits)[..., V:] == np.finfo(logits.dtype).min).all()
    grads = trees.flatten(grads)
    axes = trees.match(sharding.PARAM_AXES, grads)
    tables = {path: np.asarray(g) for path, g in grads.items() if "vocab" in axes[path].split()}
    if not getattr(case.config, "tied", True):  # the output layer is another table
        assert not tables.pop("token_embed/embedding").any()
    assert not np.any(tables.pop("input_embed/embedding", 0))  # which is no output layer
    if "source_BS" in case.takes:  # whose logits may have a bias that is not trained
        assert not np.any(tables.pop("lm_head/bias", 0))
    assert tables and all(not g[V:].any() and (g[:V].reshape(V, -1) != 0).any(1).all() for g in tables.values())
    # The model's own logits are the same ones, without those rows.
    assert own.shape == (2, 12, V)
    np.testing.assert_allclose(np.asarray(logits)[..., :V], own, rtol=1e-6, atol=1e-6)


# ---- bad input ------------------------------------------------------------------------------------------------------


def refused(case: families.Case, words: str, cache: Any = None, **given: Any) -> None:
    """Raises one error, outside jit and before any computation."""
    if "cache" in case.takes:
        given["cache"] = cache
    with pytest.raises(ValueError, match=words):
        case.model.apply({"params": {}}, **given)


@each()
def test_bad_ids(case: families.Case):
    V, longest = case.config.vocab_size, case.config.max_length
    for ids in case.ids:
        given = inputs(case, 2)
        tokens_BT = given[ids]
        for wrong in (-1, V, 2**31 - 1):
            bad = tokens_BT.copy()
            bad[1, 2] = wrong
            refused(case, rf"{ids}\[1, 2\] is {wrong}, outside of the vocabulary, which has 0 to {V - 1}",
                    **given | {ids: bad})  # fmt: skip
        for dtype in (np.float32, np.bool_):
            refused(case, f"{ids} is .*: expected integers", **given | {ids: tokens_BT.astype(dtype)})
        refused(case, f"{ids} is a list: expected an array of integers", **given | {ids: tokens_BT.tolist()})
        for shape in ((0, 6), (2, 0), (6,), (2, 6, 1)):
            refused(case, rf"{ids} has shape \({shape[0]},", **given | {ids: np.zeros(shape, np.int32)})
        if longest is not None:
            refused(case, f"{ids} has rows of {longest + 1} tokens, and the model has {longest} positions",
                    **given | {ids: np.zeros((2, longest + 1), np.int32)})  # fmt: skip
        mask = families.MASKS[ids]
        for shape in ((2, 5), (1, 6), (6,), (2, 6, 1)):
            refused(case, rf"{mask} has shape \({shape[0]},.* and the tokens \(2, ", **given | {mask: np.ones(shape)})


@pytest.mark.parametrize("family", [f for f in registry.families() if "multiple-choice" in families.tasks(f)])
def test_choices_are_rows(family: str):
    case = families.Case(family=family, task="multiple-choice", config=families.small(family))
    refused(case, r"shape \(2, 6\): multiple-choice needs \[batch, choices, length\]", **inputs(case, 2))


@each()
def test_arguments_that_differ_in_shape(case: families.Case):
    for name in {"positions_BT", "documents_BT", "segments_BT", "target_documents_BT"}.intersection(case.takes):
        wrong = {name: np.zeros((2, 5), np.int32)}
        refused(case, rf"{name} has shape \(2, 5\) and the tokens \(2, 6\)", **inputs(case, 2) | wrong)


@each_encoder_without("segments_BT")
def test_segments_where_the_family_has_none(case: families.Case):
    segments_BT = np.zeros((2, 6), np.int32)
    refused(case, "segments_BT: this family has no segments", **inputs(case, 2), segments_BT=segments_BT)


@each("source_BS")
def test_sides_that_do_not_belong_together(case: families.Case):
    given = inputs(case, 2)
    numbers = {"source_BS": np.ones((2, 7), np.int32), "target_BT": np.ones((2, 6), np.int32)}
    documents = {"source_BS": "source_documents_BS", "target_BT": "target_documents_BT"}
    wrong = {documents["source_BS"]: numbers["source_BS"][:, :5]}
    refused(case, r"source_documents_BS has shape \(2, 5\) and the tokens \(2, 7\)", **given | wrong)
    for ids, name in documents.items():
        refused(case, "source_documents_BS and target_documents_BT go together", **given | {name: numbers[ids]})
    refused(case, "the source has 2 rows and the target 3", **given | {"target_BT": case.tokens(3, 6)})
    with pytest.raises(ValueError, match="neither encoded_BSD nor a cache that has seen it"):
        case.model.apply({"params": {}}, given["target_BT"], None, method="decode")
    make = functools.partial(families.empty_cache, case)
    refused(case, "the cache has 5 slots and holds 0 tokens, so 6 more do not fit", **given, cache=make(2, 5))
    refused(case, "the cache has 3 rows and the tokens 2", **given, cache=make(3, 8))
    packed = {name: numbers[ids] for ids, name in documents.items()}
    refused(case, "documents_BT and a cache do not go together", **given, **packed, cache=make(2, 8))
    for length in (0, -1):
        with pytest.raises(ValueError, match=f"a cache of {length} tokens"):
            make(2, length)


@each("positions_BT")
def test_positions_that_do_not_exist(case: families.Case):
    longest = case.config.max_length
    if longest is None:
        pytest.skip("any position exists")
    for wrong in (-1, longest):
        positions_BT = np.zeros((2, 6), np.int32)
        positions_BT[0, 3] = wrong
        words = rf"positions_BT\[0, 3\] is {wrong}, outside of the positions, which has 0 to {longest - 1}"
        refused(case, words, **inputs(case, 2), positions_BT=positions_BT)
    if hasattr(case.config, "absolute_positions"):
        without = case.with_(absolute_positions=False)
        refused(without, "no absolute positions, leave it out", **inputs(case, 2), positions_BT=np.zeros((2, 6), int))


@each("tokens_BT", "cache")
def test_bad_caches(case: families.Case):
    make = functools.partial(families.empty_cache, case)
    given = inputs(case, 2)
    refused(case, "the cache has 5 slots and holds 0 tokens, so 6 more do not fit", **given, cache=make(2, 5))
    full = make(2, 8).replace(length=jnp.int32(4))
    refused(case, "the cache has 8 slots and holds 4 tokens, so 6 more do not fit", **given, cache=full)
    for rows in (1, 3):
        refused(case, f"the cache has {rows} rows and the tokens 2", **given, cache=make(rows, 8))
    if "documents_BT" in case.takes:
        refused(case, "documents_BT and a cache do not go together",
                **given, documents_BT=np.ones((2, 6), np.int32), cache=make(2, 8))  # fmt: skip
    longest = case.config.max_length
    for length in (0, -1) if longest is None else (0, -1, longest + 1):
        with pytest.raises(ValueError, match=f"a cache of {length} tokens"):
            make(2, length)


@pytest.mark.parametrize("family", registry.families())
def test_configurations_that_contradict_themselves(family: str):
    good = families.small(family)
    for field in dataclasses.fields(good):
        value = getattr(good, field.name)
        if field.name in families.SMALL and value is not None:
            for wrong in (-3,) if field.default == 0 or field.name in good.can_be_zero else (0, -3):
                with pytest.raises(ValueError, match=f"{field.name}(=| is ){wrong}"):
                    dataclasses.replace(good, **{field.name: wrong})
        if field.name.endswith("dropout"):
            for wrong in (-0.1, 1.0):
                with pytest.raises(ValueError, match=f"{field.name} is {wrong}"):
                    dataclasses.replace(good, **{field.name: wrong})
        if isinstance(value, str):
            with pytest.raises(ValueError, match=f"{field.name} 'gelo' is not known: choose one of .*{value}"):
                dataclasses.replace(good, **{field.name: "gelo"})
    if not hasattr(good, "head_dim"):
        with pytest.raises(ValueError, match="num_heads=7 does not divide width=32"):
            dataclasses.replace(good, num_heads=7)
