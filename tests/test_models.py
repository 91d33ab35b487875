"""What holds for every family: checked over the registry, in float64 where equal means equal to a dozen digits."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import families
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.extend.core import jaxprs_in_params

from transformer_zoo import registry, trees
from transformer_zoo.generation.generate import generate
from transformer_zoo.nn import Compute, Encoder
from transformer_zoo.nn.embedding import padded_vocab
from transformer_zoo.pretrained import Bundle

EXACT = 1e-12


def each(*takes: str, **how: str) -> Any:
    """Once for every family whose model takes these arguments."""
    return pytest.mark.parametrize("case", families.cases(*takes, **how), ids=families.name_of)


def each_encoder_without(name: str) -> Any:
    """Once for every encoder that refuses this argument."""
    found = [case for case in families.cases() if issubclass(case.module.Model, Encoder) and name not in case.takes]
    return pytest.mark.parametrize("case", found, ids=families.name_of)


def each_kind(*takes: str) -> Any:
    """Once for every kind of block in these families: of what comes about in their layers."""
    return pytest.mark.parametrize("case", families.kinds(families.cases(*takes)), ids=families.name_of)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


float64 = pytest.mark.usefixtures("x64")


def inputs(case: families.Case, batch: int = 1, length: int = 6) -> dict[str, np.ndarray]:
    """Token ids for each argument that takes them; what a decoder reads is `length` long, what it looks at longer. Who
    judges a source reads no other target."""
    judges = len(case.ids) > 1 and case.task not in families.WRITERS
    lengths = {name: length + len(case.ids) - 1 - i for i, name in enumerate(case.ids[:1] if judges else case.ids)}
    return {name: case.tokens(batch, lengths[name], seed=i) for i, name in enumerate(lengths)}


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape)


def outputs(case: families.Case) -> int:
    """The width of what a model says."""
    args = case.module.Model.example_inputs(case.task)
    return families.said(jax.eval_shape(case.model.init_with_output, jax.random.key(0), *args)[0]).shape[-1]


# ---- who sees whom --------------------------------------------------------------------------------------------------


@float64
@each()
def test_who_sees_whom(case: families.Case):
    """By gradient: what is said at a place depends on no token behind it, not by a digit, and on all before it."""
    case, T = case.wide(), 6
    given = inputs(case, length=T)
    direction = random(outputs(case))

    def speak(delta_BTD: jax.Array) -> jax.Array:
        def shift(function: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            embedded = function(*args, **kwargs)
            is_table = context.module.name == "token_embed" and context.method_name == "__call__"
            return embedded + delta_BTD if is_table and embedded.shape == delta_BTD.shape else embedded

        with nn.intercept_methods(shift):
            return (families.said(case.model.apply({"params": params}, **given)) @ direction)[0]

    params = case.params()
    width = params["token_embed"]["embedding"].shape[-1]
    influence = jax.jit(jax.jacrev(speak))(jnp.zeros((1, T, width)))
    seen = np.abs(influence).sum(axis=(1, 3)) > 0
    np.testing.assert_array_equal(seen, np.tri(T, dtype=bool) if case.causal else np.ones((T, T), bool))


@float64
@pytest.mark.parametrize(
    ("case", "ids"),
    [(case, ids) for case in families.kinds(families.cases()) for ids in case.ids],
    ids=families.name_of,
)
def test_padding_is_ignored(case: families.Case, ids: str):
    """On either side and whatever it is filled with, in what is said and in the gradients."""
    case = case.wide()
    given, params = inputs(case), case.params()
    real = given[ids].shape[1]
    is_said = ids == case.ids[-1]
    direction = random(1, given[case.ids[-1]].shape[1], outputs(case))
    expected = families.gradients(case.model, params, direction, **given)

    def padded(left: int, right: int, fill: int, real: int = real) -> Any:
        widths = ((0, 0), (left, right))
        ids_BT = np.pad(given[ids], widths, constant_values=fill)
        mask = {families.MASKS[ids]: np.pad(np.ones((1, real), bool), ((0, 0), (left, ids_BT.shape[1] - left - real)))}
        wide = np.pad(direction, (*widths, (0, 0))) if is_said else direction
        said, grads = families.gradients(case.model, params, wide, **given | {ids: ids_BT} | mask)
        return said[:, left : left + real] if is_said else said, grads

    for left, right in ((0, 3), (3, 0)):
        actual = padded(left, right, fill=0)
        assert families.difference(actual, expected) < EXACT
        np.testing.assert_array_equal(padded(left, right, fill=case.config.vocab_size - 1)[0], actual[0])
    nothing = families.gradients(
        case.model, params, np.ones((1, direction.shape[1] + 3 * is_said, direction.shape[2])),
        **given | {ids: np.zeros((1, real + 3), np.int32), families.MASKS[ids]: np.zeros((1, real + 3), bool)},
    )  # fmt: skip
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(nothing))


@float64
@each("documents_BT")
def test_packed_is_unpacked(case: families.Case):
    """Documents side by side in a row are what they are alone, in what is said and in the gradients."""
    case = case.wide()
    params = case.params()
    lengths, numbers = (5, 3, 4), (4, 2, 9)
    tokens_BT = case.tokens(3, 5)
    valid_BT = np.arange(5) < np.array(lengths)[:, None]
    direction = random(3, 5, outputs(case)) * valid_BT[..., None]

    def pack(x_BT: np.ndarray) -> np.ndarray:
        return np.pad(x_BT[valid_BT], [(0, 2)] + [(0, 0)] * (x_BT.ndim - 2))[None]

    documents_BT = pack(np.array(numbers)[:, None] * valid_BT).astype(np.int32)
    said, expected = families.gradients(case.model, params, direction, tokens_BT=tokens_BT, valid_BT=valid_BT)
    packed = {"tokens_BT": pack(tokens_BT), "documents_BT": documents_BT}
    actual, grads = families.gradients(case.model, params, pack(direction), **packed)
    assert families.difference(actual[0, : sum(lengths)], said[valid_BT]) < EXACT
    assert families.difference(grads, expected) < EXACT
    if "positions_BT" in case.takes:
        packed["positions_BT"] = pack(np.arange(5, dtype=np.int32) + 0 * tokens_BT)
        again = families.said(families.apply(case.model, params, **packed))
        assert families.difference(again[0, : sum(lengths)], said[valid_BT]) < EXACT


@float64
@each_kind("target_documents_BT")
def test_packed_pairs_are_unpacked(case: families.Case):
    """Sources side by side in a row, and their targets in another, are what they are alone, in what is said and in the
    gradients; their documents are numbered alike, and in any order."""
    case = case.wide()
    params = case.params()
    lengths, numbers = {"source_BS": (5, 3, 4), "target_BT": (2, 4, 3)}, (4, 2, 9)
    tokens = {ids: case.tokens(3, max(lengths[ids]), seed) for seed, ids in enumerate(lengths)}
    valid = {ids: np.arange(max(lengths[ids])) < np.array(lengths[ids])[:, None] for ids in lengths}
    pack = lambda x, ids: np.pad(x[valid[ids]], [(0, 2)] + [(0, 0)] * (x.ndim - 2))[None]
    direction = random(3, 4, outputs(case)) * valid["target_BT"][..., None]

    said, expected = families.gradients(
        case.model, params, direction, **tokens, **{families.MASKS[ids]: valid[ids] for ids in valid}
    )
    documents = {
        ids.replace("_", "_documents_"): pack(np.array(numbers)[:, None] * valid[ids], ids).astype(np.int32)
        for ids in valid
    }
    packed = {ids: pack(tokens[ids], ids) for ids in tokens} | documents
    actual, grads = families.gradients(case.model, params, pack(direction, "target_BT"), **packed)
    assert families.difference(actual[0, : sum(lengths["target_BT"])], said[valid["target_BT"]]) < EXACT
    assert families.difference(grads, expected) < EXACT


@float64
@each("positions_BT")
def test_positions(case: families.Case):
    """By default they count what is real; others change what is said; where a token stands does not."""
    case = case.wide()
    params = case.params()
    given = inputs(case, length=6)
    said = lambda positions_BT, **more: families.said(
        families.apply(case.model, params, **given, **more, positions_BT=positions_BT)
    )
    counted = np.arange(6, dtype=np.int32)[None]
    expected = said(counted)
    assert families.difference(families.said(families.apply(case.model, params, **given)), expected) < EXACT
    assert families.difference(said(2 * counted), expected) > 1e-3
    left = {"valid_BT": np.arange(6)[None] >= 2}
    assert families.difference(said(None, **left)[:, 2:], said(np.maximum(counted - 2, 0), **left)[:, 2:]) < EXACT


# ---- the cache ------------------------------------------------------------------------------------------------------


@float64
@each("tokens_BT", "cache")
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_is_uncached(case: families.Case, side: str):
    """Prompts of 2 and 4 tokens, padded, and then pieces of 1, 1, 3 and 1: each says what the whole row says there."""
    case = case.wide()
    params = case.params()
    prompts, more, width = np.array([2, 4]), 6, 4
    whole = case.tokens(2, width + more)
    valid_BT = np.arange(width + more) < (prompts + more)[:, None]
    expected = families.said(families.apply(case.model, params, tokens_BT=whole, valid_BT=valid_BT))

    slots = np.arange(width)[None] - (width - prompts[:, None] if side == "left" else 0)
    real_BT = (slots >= 0) & (slots < prompts[:, None])
    cache = case.module.init_cache(case.config, 2, width + more, jnp.float64)
    given = np.where(real_BT, np.take_along_axis(whole, slots.clip(0), 1), 5)
    out = families.apply(case.model, params, tokens_BT=given, valid_BT=real_BT, cache=cache)
    for row, real in enumerate(prompts):
        assert families.difference(families.said(out)[row][real_BT[row]], expected[row, :real]) < EXACT
    start = 0
    for piece in (1, 1, 3, 1):
        places = prompts[:, None] + start + np.arange(piece)
        out = families.apply(case.model, params, tokens_BT=np.take_along_axis(whole, places, 1), cache=out.cache)
        there = np.take_along_axis(np.asarray(expected), places[..., None], 1)
        assert families.difference(families.said(out), there) < EXACT
        start += piece
    assert out.cache.length == width + more


@float64
@each("tokens_BT", "cache")
def test_token_by_token(case: families.Case):
    """From nothing to the last position."""
    case, T = case.wide(), case.config.max_length or 24
    params = case.params()
    tokens_BT = case.tokens(2, T)
    expected = families.said(families.apply(case.model, params, tokens_BT=tokens_BT))
    cache = case.module.init_cache(case.config, 2, T, jnp.float64)
    for t in range(T):
        out = families.apply(case.model, params, tokens_BT=tokens_BT[:, t : t + 1], cache=cache)
        assert families.difference(families.said(out)[:, 0], expected[:, t]) < EXACT
        cache = out.cache


@float64
@each_kind("target_BT", "cache")
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_pairs_are_uncached(case: families.Case, side: str):
    """The same beside sources of 3 and 7 tokens, which are read once: after the first call none is given."""
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
    cache = case.module.init_cache(case.config, 2, width + more, jnp.float64)
    given = {"target_valid_BT": real_BT, "cache": cache}
    given["target_BT"] = np.where(real_BT, np.take_along_axis(whole, slots.clip(0), 1), 5)
    out = families.apply(case.model, params, **source, **given)
    again = families.apply(
        case.model, params, encoded_BSD=encoded_BSD, valid_BS=source["valid_BS"], **given, method="decode"
    )
    assert families.difference((again.cache.kv, again.cache.cross), (out.cache.kv, out.cache.cross)) < EXACT
    expected = np.asarray(families.said(expected))
    for row, real in enumerate(prompts):
        assert families.difference(families.said(out)[row][real_BT[row]], expected[row, :real]) < EXACT
    start = 0
    for piece in (1, 1, 3, 1):
        places = prompts[:, None] + start + np.arange(piece)
        given = {"target_BT": np.take_along_axis(whole, places, 1), "cache": out.cache}
        if piece == 1:
            out = families.apply(case.model, params, source_BS=None, **given)
        else:
            out = families.apply(case.model, params, encoded_BSD=None, **given, method="decode")
        assert families.difference(families.said(out), np.take_along_axis(expected, places[..., None], 1)) < EXACT
        start += piece
    assert out.cache.length == width + more


# ---- knobs ----------------------------------------------------------------------------------------------------------


def equations(jaxpr: Any) -> Any:
    """All equations of a program, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@float64
@each_kind()
def test_knobs_change_nothing(case: families.Case):
    """Rematerialised and unrolled programs say the same and have the same gradients, dropout included."""
    case = case.with_(**vars(families.small(case.family))).wide()
    params, given = case.params(), inputs(case)
    direction = random(1, given[case.ids[-1]].shape[1], outputs(case))
    how = {"key": jax.random.key(3), "train": True} | given
    expected = families.gradients(case.model, params, direction, **how)
    for knob in ({"remat": "dots", "unroll": 99}, {"remat": "full"}):
        actual = families.gradients(case.with_(**knob).model, params, direction, **how)
        assert families.difference(actual, expected) < EXACT, knob


@each_kind()
def test_knobs_do_what_they_say(case: families.Case):
    def program(**knob: Any) -> list[Any]:
        model, given = case.with_(**knob).model, inputs(case)
        loss = lambda params: families.said(model.apply({"params": params}, **given)).sum()
        return list(equations(jax.make_jaxpr(jax.grad(loss))(registry.param_shapes(model)).jaxpr))

    products = lambda knob: sum(equation.primitive.name == "dot_general" for equation in program(remat=knob))
    assert products("none") < products("dots") < products("full")
    depths = {getattr(case.config, families.STACKS[ids][1]) for ids in case.ids}
    for unroll in (1, 2, *depths):
        loops = [e.params["unroll"] for e in program(unroll=unroll) if e.primitive.name == "scan"]
        assert set(loops) == {min(unroll, depth) for depth in depths}


@float64
@each_kind()
def test_intermediates(case: families.Case):
    """Attention weights and hidden states of every layer, on request, which changes nothing that the model says."""
    case, T = case.wide(), 6
    params = case.params()
    given = inputs(case, 2, T)
    ids = case.ids[-1]
    valid_BT = np.arange(T) >= np.array([[0], [2]])
    given[families.MASKS[ids]] = valid_BT
    expected = families.apply(case.model, params, **given)
    output, asked = families.apply(case.model, params, **given, mutable=("intermediates",))
    real = lambda out: families.said(out)[valid_BT] if families.said(out).ndim == 3 else families.said(out)
    assert families.difference(real(output), real(expected)) < EXACT

    asked = {path: value for path, (value,) in trees.flatten(asked["intermediates"]).items()}
    hidden = {path: x for path, x in asked.items() if path.endswith("blocks/hidden_BTD")}
    assert len(hidden) == len(case.ids)
    for path, x in hidden.items():
        assert x.shape[0] == case.layers(path) and x.shape[-1] == case.config.width
        assert all(families.difference(x[i], x[i + 1]) > 1e-3 for i in range(len(x) - 1))
    weights = {path: x for path, x in asked.items() if path.endswith("weights_BHTS")}
    assert len(weights) == 2 * len(case.ids) - 1
    for path, weights_LBHTS in weights.items():
        layers, rows, num_heads = weights_LBHTS.shape[:3]  # a row of the batch may be cut into several
        assert (layers, rows % 2, num_heads) == (case.layers(path), 0, case.config.num_heads)
        np.testing.assert_allclose(weights_LBHTS.sum(-1), 1, rtol=1e-12)
    own = next(x for x in weights.values() if x.shape[-2:] == (T, T))  # of what is said, to itself
    seen_BTS = valid_BT[:, None, :] & (np.tri(T, dtype=bool) if case.causal else np.ones((T, T), bool))
    has_any = seen_BTS.any(-1) & valid_BT  # a query that sees nothing is nobody's business, nor is one of padding
    nonzero = np.moveaxis(np.asarray(own) > 0, 2, 0)  # [H, L, B, T, S]
    seen_LBTS = np.stack([seen_BTS] * len(own))
    if hasattr(case.module, "local_layers"):  # which see but a window
        near_TS = np.abs(np.arange(T)[:, None] - np.arange(T)) <= case.config.window // 2
        seen_LBTS[case.module.local_layers(case.config)] &= near_TS
    assert (nonzero == seen_LBTS)[:, :, has_any].all()


@each("tokens_BT")
def test_fused_attention_says_the_same(case: families.Case):
    """The TPU's kernel, interpreted, inside a whole model: padding and the scales of the layers arrive there."""
    case = case.with_(num_layers=2, **({"max_length": 128} if case.config.max_length else {}))
    params, tokens_BT = case.params(), case.tokens(1, 128)
    valid_BT = np.arange(128)[None] < 100
    speak = lambda case: families.said(families.apply(case.model, params, tokens_BT=tokens_BT, valid_BT=valid_BT))
    plain = speak(case.with_(attention="xla"))
    try:
        fused = speak(case.with_(attention="splash"))
    except ValueError as error:
        assert "attention 'splash'" in str(error)
        np.testing.assert_array_equal(speak(case), plain)
        return
    assert 0 < families.difference(fused[:, :100], plain[:, :100]) < 1e-5


# ---- fresh parameters -----------------------------------------------------------------------------------------------

# What the papers say of fresh weights: their distribution, by path. (Norms' scales are one, biases zero, everywhere.)
normal = lambda std: scipy.stats.norm(scale=std)
truncated = lambda std: scipy.stats.truncnorm(-2, 2, scale=std)
uniform = lambda largest: scipy.stats.uniform(-largest, 2 * largest)
FRESH: dict[str, Callable[[Any], Any]] = {
    "albert": lambda cfg: ((r".*/(embedding|kernel)", truncated(cfg.init_std)),),
    "bart": lambda cfg: ((r".*/(embedding|kernel)", normal(cfg.init_std)),),
    "bert": lambda cfg: ((r".*/(embedding|kernel)", truncated(cfg.init_std)),),
    "deberta": lambda cfg: ((r".*/(embedding|kernel)", normal(cfg.init_std)),),
    "deberta_v2": lambda cfg: ((r".*/(embedding|kernel)", normal(cfg.init_std)),),
    "distilbert": lambda cfg: ((r".*/(embedding|kernel)", normal(cfg.init_std)),),
    "electra": lambda cfg: ((r".*/(embedding|kernel)", truncated(cfg.init_std)),),
    "gpt2": lambda cfg: (
        (r".*/(out|mlp_down)/kernel", normal(cfg.init_std / (2 * cfg.num_layers) ** 0.5)),
        (r".*/embedding|.*/(query|key|value|mlp_up)/kernel", normal(cfg.init_std)),
    ),
    "longt5": lambda cfg: FRESH["t5"](cfg),
    "marian": lambda cfg: (
        (r"token_embed/embedding", normal(cfg.width**-0.5)),
        (r".*/(query|key|value|out)/kernel", uniform((6 / (2 * cfg.width)) ** 0.5)),
        (r"encoder_blocks/mlp_(up|down)/kernel", uniform((6 / (cfg.width + cfg.mlp_dim)) ** 0.5)),
        (r"decoder_blocks/mlp_(up|down)/kernel", uniform((6 / (cfg.width + cfg.mlp_decoder_dim)) ** 0.5)),
    ),
    "mbart": lambda cfg: ((r".*/(embedding|kernel)", normal(cfg.init_std)),),
    "modernbert": lambda cfg: (
        (r".*/(out|mlp_down|dense)/kernel", truncated(cfg.init_std / (2 * cfg.num_layers) ** 0.5)),
        (r".*/embedding|.*/(query|key|value|mlp_gate|mlp_up)/kernel", truncated(cfg.init_std)),
    ),
    "mpnet": lambda cfg: ((r".*/(embedding|kernel)", normal(cfg.init_std)),),
    "pegasus": lambda cfg: ((r".*/(embedding|kernel)", normal(cfg.init_std)),),
    "roberta": lambda cfg: ((r".*/(embedding|kernel)", normal(cfg.init_std)),),
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
    """The distributions, as the test of Kolmogorov and Smirnov tells them apart; the spread to five standard errors."""
    case = case.with_(width=64, vocab_size=500)
    ids = case.module.Model.example_inputs(case.task)
    init = lambda seed: families.fresh(case.model, jax.random.key(seed), *ids)
    params = trees.flatten(init(0))
    weights = {}
    for path, x in params.items():
        x, name = np.asarray(x, np.float64), path.rpartition("/")[2]
        assert name in ("bias", "scale", "kernel", "embedding"), path
        if name in ("bias", "scale"):
            assert (x == (name == "scale")).all(), path
        elif len(x) == padded_vocab(500):
            assert not x[500:].any(), path
            weights[path] = x[:500]
        else:
            weights[path] = x
    for path, expected in trees.match(FRESH[case.family](case.config), weights).items():
        x = weights[path].ravel()
        assert abs(x.var() / expected.var() - 1) < 5 * (2 / x.size) ** 0.5, (path, x.std())
        assert scipy.stats.kstest(x, expected.cdf).pvalue > 1e-5, path
        if re.search("blocks/", path):
            first, second = (weights[path][layer].ravel() / expected.std() for layer in (0, 1))
            assert abs((first * second).mean()) < 5 / first.size**0.5, path  # layers are drawn one by one
    assert families.difference(init(1), init(0)) > 0.1


# ---- what is set is read --------------------------------------------------------------------------------------------


# A loss is chosen by the problem, and by the model type the names in config.json; too long rows are refused.
READ_ELSEWHERE = ("problem", "model_type", "max_length")
# What encoder-decoders are told to stand for padding, others want to know who read their config.json.
READ_BY_OTHERS = ("pad_id",)


# What is generated begins with one token, which is not said, and may have to begin or to end with others, which are.
STARTS = {"decoder_start_id": 1}
FORCED = {"forced_bos_id": 0, "forced_eos_id": -1}


def other(name: str, value: Any) -> Any:
    """Another value that a field may have."""
    if isinstance(value, bool):
        return not value
    if value is None or name in READ_ELSEWHERE:
        return value
    if isinstance(value, str | tuple):
        return next(choice for choice in families.RANDOM[name] if choice != value)
    if isinstance(value, int):
        return (value + 1) // 2 if value > 1 else 2
    return value / 2


@each()
def test_every_field_of_the_config_is_read(case: families.Case):
    """Each changes the program that makes parameters and reads in training; or else what is generated."""
    config = families.small(case.family)

    @functools.cache
    def traced(task: str, config: Any) -> Any:
        small = dataclasses.replace(case, task=task, config=config)

        def everything(key: jax.Array) -> Any:
            given = families.as_asked(task, {name: jnp.zeros((1, 8), jnp.int32) for name in inputs(small)})
            return small.model.init_with_output({"params": key, "dropout": key}, **given, train=True)

        return jax.jit(everything).trace(jax.random.key(0))

    @functools.cache
    def lowered(task: str, config: Any) -> str:
        return traced(task, config).lower().as_text()

    text = lambda program: re.sub(" at 0x[0-9a-f]+", "", str(program.jaxpr))

    def same(task: str, other: Any) -> bool:
        # Programs that are traced alike may differ in constants, which only the lowered ones spell out.
        alike = text(traced(task, config)) == text(traced(task, other))
        return alike and lowered(task, config) == lowered(task, other)

    # So that a difference means something:
    assert text(traced.__wrapped__(case.task, config)) == text(traced(case.task, config))
    assert lowered.__wrapped__(case.task, config) == lowered(case.task, config)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changed = {name: dataclasses.replace(config, **{name: other(name, value)}) for name, value in fields.items()}
    unread = [name for name in fields if name not in READ_ELSEWHERE]
    if "source_BS" in case.takes:
        unread = [name for name in unread if name not in READ_BY_OTHERS]
    for task in dict.fromkeys((case.task, *case.module.PUBLISHED.tasks)):
        unread = [name for name in unread if same(task, changed[name])]
    if not case.causal or not unread:
        assert not unread, f"nothing reads {unread}"
        return

    prompts = case.tokens(8, 3)
    answer = lambda config, scale: generate(
        Bundle(dataclasses.replace(case, config=config).model, case.params(scale=scale), config), prompts,
        max_new_tokens=8,
    )  # fmt: skip
    config = dataclasses.replace(config, **{name: STARTS.get(name) for name in (*unread, "eos_id")})
    # Small or large, the parameters are to make it say different things.
    tried = ((scale, answer(config, scale)) for scale in (0.2, 0.5, 1.0))
    scale, words = next((scale, words) for scale, words in tried if (words[:, :-1] != words[:, 1:]).any())
    row, end = np.argwhere(words[:, :-1] != words[:, 1:])[0]
    token = int(words[row, end])
    for name in unread:
        others = answer(dataclasses.replace(config, **{name: token}), scale)
        if name in STARTS:
            assert token != STARTS[name] and (others != words).any(), name
        elif name in FORCED:
            assert (others[:, FORCED[name]] == token).all(), name
        else:
            assert (others[row, : end + 1] == words[row, : end + 1]).all() and (others[row, end:] == token).all(), name


# ---- dropout --------------------------------------------------------------------------------------------------------


@each()
def test_dropout(case: families.Case):
    """Only in training; by the key; at the rates of the config, each somewhere; and every layer draws its own."""
    plain, case = case, case.with_(**vars(families.small(case.family)))
    rates = families.dropouts(case.config)
    if not rates:
        pytest.skip("this family has no dropout")
    params, given = case.params(), inputs(case, 4, 20)
    speak = lambda case, **how: families.said(families.apply(case.model, params, **given, **how))
    np.testing.assert_array_equal(speak(case), speak(plain, train=True))
    one, again, two = (speak(case, train=True, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert min(families.difference(one, two), families.difference(one, speak(case))) > 1e-2

    def watch(function: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        result = function(*args, **kwargs)
        if isinstance(context.module, nn.Dropout) and context.module.rate:
            context.module.sow("intermediates", "dropped", jnp.where(args[0] == 0, -1, result == 0))
        return result

    def masks(case: families.Case) -> dict[str, list[np.ndarray]]:
        # So many rows that each rate is told from the next, also where it is one number of a row that is dropped.
        given = families.as_asked(case.task, families.padded(case, inputs(case, 64, 4), {}))
        rngs = {"dropout": jax.random.key(0)}
        run = lambda params: case.model.apply(
            {"params": params}, **given, train=True, rngs=rngs, mutable="intermediates"
        )
        with nn.intercept_methods(watch):
            asked = trees.flatten(jax.jit(run)(case.params())[1]["intermediates"])
        return {path: [np.asarray(x) for x in found] for path, found in asked.items() if path.endswith("dropped")}

    met = set()

    def judge(path: str, found: list[np.ndarray]) -> None:
        for x in found:
            live = x[x >= 0]
            near = [name for name, rate in rates.items() if abs(live.mean() - rate) < 5 * (rate / live.size) ** 0.5]
            assert near, f"{path} drops {live.mean():.3f}, and the rates are {rates}"
            met.update(near)
            if "blocks/" in path:
                assert x.shape[0] == case.layers(path)
                assert all((x[i] != x[i + 1]).mean() > 0.05 for i in range(len(x) - 1)), f"{path}: layers agree"
            rows = np.moveaxis(x, 1, 0) if "blocks/" in path else x
            assert (rows[0] != rows[1]).any(), f"{path}: rows agree"

    heads = ("sequence-classification", "question-answering", "multiple-choice")  # they have rates too
    for task in (case.task, *(task for task in heads if task in case.module.PUBLISHED.tasks)):
        if met != set(rates):
            for path, found in masks(dataclasses.replace(case, task=task)).items():
                judge(path, found)
    assert met == set(rates), f"nothing is dropped at the rates of {set(rates) - met}"


# ---- precision ------------------------------------------------------------------------------------------------------


@each_kind()
def test_bfloat16(case: families.Case):
    """Computation in bfloat16 stays near that in float32; parameters, gradients and logits are float32."""
    params, given = case.params(scale=0.1), inputs(case, 2, 12)
    low = case.with_(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(registry.param_shapes(low.model))} == {jnp.dtype("float32")}
    stored = case.with_(param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(registry.param_shapes(stored.model))} == {jnp.dtype("bfloat16")}
    expected, actual = (families.apply(c.model, params, **given) for c in (case, low))
    assert actual.hidden_BTD.dtype == jnp.bfloat16
    if actual.logits is not None:
        assert actual.logits.dtype == jnp.float32
    error = jnp.linalg.norm(families.said(actual) - families.said(expected)) / jnp.linalg.norm(families.said(expected))
    assert 1e-4 < error < 2e-2
    loss = lambda params: families.said(low.model.apply({"params": params}, **given)).astype(jnp.float32).sum()
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(jax.grad(loss), params))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_of_numbers_far_from_zero(dtype: str):
    """Statistics are of float32 and taken in two passes: E[x^2] - E[x]^2 would have no digit left here."""
    step = {"float32": 1, "bfloat16": 64}[dtype]  # the numbers that there are near 10000
    x_BD = 10048 + step * np.random.default_rng(0).integers(-4, 5, (8, 512))
    norm = Compute(dtype=dtype).layer_norm()
    y_BD = norm.apply(norm.init(jax.random.key(0), x_BD), jnp.asarray(x_BD, dtype)).astype(jnp.float32)
    expected = (x_BD - x_BD.mean(1, keepdims=True)) / x_BD.std(1, keepdims=True)
    np.testing.assert_allclose(y_BD, expected, atol=1e-3 if dtype == "float32" else 1e-2)


@float64
@each()
def test_float64_is_float64_from_end_to_end(case: families.Case):
    """No number on the way, forwards or backwards, is of fewer bits: one would cost half of the digits."""
    case, given = case.wide(), families.as_asked(case.task, inputs(case))
    loss = lambda params: families.said(case.model.apply({"params": params}, **given)).sum()
    program = jax.make_jaxpr(jax.value_and_grad(loss))(registry.param_shapes(case.model))
    found = {
        str(var.aval.dtype)
        for equation in equations(program.jaxpr)
        for var in (*equation.invars, *equation.outvars)
        if jnp.issubdtype(var.aval.dtype, jnp.floating) and not getattr(var.aval, "weak_type", False)
    }
    assert found == {"float64"}


# ---- lengths --------------------------------------------------------------------------------------------------------


@each()
def test_the_shortest_and_the_longest_rows(case: families.Case):
    params, longest = case.params(), case.config.max_length or 64
    rows = {name: case.tokens(1, longest) for name in case.ids}
    whole, one = (
        families.said(families.apply(case.model, params, **{name: x[:, :n] for name, x in rows.items()}))
        for n in (longest, 1)
    )
    assert whole.shape[:2] == (1, longest) and one.shape[:2] == (1, 1)
    assert jnp.isfinite(whole).all() and jnp.isfinite(one).all()
    if len(case.ids) == 1:
        assert (families.difference(one[:, 0], whole[:, 0]) < 1e-5) == case.causal


# ---- the padded vocabulary ------------------------------------------------------------------------------------------


@each()
def test_tokens_that_do_not_exist(case: families.Case):
    """The rows that pad the vocabulary win no softmax and get no gradient."""
    V = case.config.vocab_size
    params, given = case.params(), inputs(case, 2)
    out = families.apply(case.model, params, **given)
    if not hasattr(case.module.Model, "logits"):
        pytest.skip("this family has no output over the vocabulary")
    assert out.logits.shape == (2, 6, V)
    logits = families.apply(case.model, params, out.hidden_BTD, method="logits")
    assert logits.shape == (2, 6, padded_vocab(V)) and padded_vocab(V) > V
    np.testing.assert_allclose(logits[..., :V], out.logits, rtol=1e-6, atol=1e-6)
    assert (logits[..., V:] == jnp.finfo(logits.dtype).min).all()

    def loss(params: Any) -> jax.Array:
        hidden = case.model.apply({"params": params}, **given).hidden_BTD
        return jax.nn.log_softmax(case.model.apply({"params": params}, hidden, method="logits"))[..., 0].sum()

    grads = trees.flatten(jax.jit(jax.grad(loss))(params))
    tables = {path: g for path, g in grads.items() if padded_vocab(V) in g.shape}
    if "source_BS" in case.takes:  # whose logits may have a bias that is not trained
        assert not np.any(tables.pop("lm_head/bias", 0))
    assert tables and all(not g[V:].any() and (g[:V].reshape(V, -1) != 0).any(1).all() for g in tables.values())


# ---- bad input ------------------------------------------------------------------------------------------------------


def refused(case: families.Case, words: str, cache: Any = None, **given: Any) -> None:
    """Outside of jit, before anything is computed, with one error."""
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


@pytest.mark.parametrize(
    "family", [f for f in registry.families() if "multiple-choice" in registry.family(f).PUBLISHED.tasks]
)
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
    params, given = case.params(), inputs(case, 2)
    read = lambda **more: case.model.apply({"params": params}, **given | more)
    numbers = {"source_BS": np.ones((2, 7), np.int32), "target_BT": np.ones((2, 6), np.int32)}
    with pytest.raises(ValueError, match=r"source_documents_BS has shape \(2, 5\) and the tokens \(2, 7\)"):
        read(source_documents_BS=numbers["source_BS"][:, :5])
    for one, ids in (("source_documents_BS", "source_BS"), ("target_documents_BT", "target_BT")):
        with pytest.raises(ValueError, match="source_documents_BS and target_documents_BT go together"):
            read(**{one: numbers[ids]})
    with pytest.raises(ValueError, match="the source has 2 rows and the target 3"):
        read(target_BT=case.tokens(3, 6))
    with pytest.raises(ValueError, match="neither encoded_BSD nor a cache that has seen it"):
        case.model.apply({"params": params}, given["target_BT"], None, method="decode")
    make = lambda *sizes: case.module.init_cache(case.config, *sizes)
    with pytest.raises(ValueError, match="the cache has 5 slots and holds 0 tokens, so 6 more do not fit"):
        read(cache=make(2, 5))
    with pytest.raises(ValueError, match="the cache has 3 rows and the tokens 2"):
        read(cache=make(3, 8))
    with pytest.raises(ValueError, match="documents_BT and a cache do not go together"):
        read(cache=make(2, 8), source_documents_BS=numbers["source_BS"], target_documents_BT=numbers["target_BT"])
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
    make = lambda *sizes: case.module.init_cache(case.config, *sizes)
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
            for wrong in (0, -3) if field.default != 0 else (-3,):
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
