"""Generation: the compiled loop against a plain one, independent rows, sampling, settings by name, bad requests."""

import dataclasses
import functools
import json
import re
import warnings
from unittest import mock

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from transformer_zoo import registry, sharding, trees
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation import generate as module
from transformer_zoo.generation import published, sampling, speculative, strategies
from transformer_zoo.generation.beam import Beam
from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.rules import penalize_repeats
from transformer_zoo.generation.sampling import Greedy, Sample
from transformer_zoo.generation.strategy import Strategy
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.pretrained import Bundle

# A decoder and an encoder-decoder. That every family decodes with a cache as without is proved in test_models.py.
CASES = families.writers()
TEXTS = [
    "def read(path):\n    return open(path).read()\n",
    "class Queue:\n    def put(self, item):\n        pass\n",
] * 3


@pytest.fixture(params=CASES, ids=families.name_of)
def case(request):
    """Of one layer. Several are in test_greedy_is_the_plain_loop and test_on_a_mesh."""
    none = dict.fromkeys(("eos_id", "forced_bos_id", "forced_eos_id"))
    return request.param.sized(max_length=96, num_layers=1, num_decoder_layers=1, decoder_start_id=1, **none)


@pytest.fixture(autouse=True)
def small_bucket(monkeypatch):
    """A bucket for nearly all prompts and answers here, so that few programs are compiled."""
    monkeypatch.setattr(module, "BUCKET", 16)


@pytest.fixture
def tokenizer(case):
    return tokenizer_for(registry.is_encoder_decoder(case.config))


@functools.cache
def tokenizer_for(sources: bool) -> Tokenizer:
    """A tokenizer; with `sources`, one with a special token at the end of a source."""
    return Tokenizer.train(TEXTS, 400, kind="t5") if sources else Tokenizer.train(TEXTS, 300)


def bundle(case, tokenizer=None, **params) -> Bundle:
    """A small model. Its biases are small, or the logits would hardly depend on the prompt."""
    flat = trees.flatten(case.params(**params))
    flat = {path: x / 20 if path.endswith("/bias") else x for path, x in flat.items()}
    return Bundle(case.model, trees.unflatten(flat), case.config, tokenizer)


def with_text(case, tokenizer) -> Bundle:
    config = dataclasses.replace(case.config, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    return bundle(dataclasses.replace(case, config=config), tokenizer)


def one_by_one(m: Bundle, row: list[int], n: int) -> list[int]:
    """Greedy decoding without a cache: the whole sequence is read again for each token."""
    length = m.config.max_length or 96
    # Padded on the right to one length, so that one program is compiled.
    padded = lambda row: np.asarray([row + [0] * (length - len(row))])
    real = lambda row: np.arange(length)[None] < len(row)
    is_encoder_decoder = registry.is_encoder_decoder(m.config)
    source, row = (
        {"source_BS": padded(row), "valid_BS": real(row)},
        [m.config.decoder_start_id] if is_encoder_decoder else row,
    )
    for _ in range(n):
        given = {"tokens_BT": padded(row), "valid_BT": real(row)}
        if is_encoder_decoder:
            given = source | {"target_BT": padded(row), "target_valid_BT": real(row)}
        row = [*row, int(np.asarray(families.apply(m.model, m.params, **given).logits)[0, len(row) - 1].argmax())]
    return row[-n:]


def test_greedy_is_the_plain_loop(case):
    """Rows of unequal lengths, in float64: each equals the row alone, and the loop without cache and padding."""
    with jax.enable_x64(True):
        m = bundle(case.sized(num_layers=2, num_decoder_layers=2).wide(), scale=0.5)
        prompts = [case.tokens(1, length, seed=length)[0].tolist() for length in (1, 7, 8, 13)]
        together = generate(m, prompts, max_new_tokens=10)
        assert together.shape == (4, 10) and together.dtype == np.int32
        for row, new in zip(prompts, together):
            assert one_by_one(m, row, 10) == new.tolist()
            assert (generate(m, [row], max_new_tokens=10)[0] == new).all()
        assert len({tuple(new) for new in together.tolist()}) > 2  # or there was nothing to confuse


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        (Greedy(), "the same"),
        (Greedy(), "prompt-lookup"),
        (Greedy(no_repeat_ngram_size=2, min_new_tokens=4, bad_words=((3, 4),)), "another"),
        (Sample(num_return_sequences=2), "another"),
    ],
    ids=["the same", "prompt-lookup", "rules", "samples"],
)
def test_proposals_change_no_answer(strategy, kind):
    """Whatever is proposed: rows take the tokens that they take without proposals, each at its own pace."""
    with jax.enable_x64(True):
        rows, seed = 6, 3
        draft = kind if kind == "prompt-lookup" else toy.toy(seed + (kind == "another"))
        given = (strategy, toy.read_of(rows, seed), np.ones((rows, toy.READ), bool), np.int32(7), np.asarray(toy.STOPS))
        new, drafted, accepted = toy.compiled(*given, jax.random.key(0), seed=seed, draft=draft)
        np.testing.assert_array_equal(new, toy.compiled(*given, jax.random.key(0), seed=seed))
        assert drafted.shape == accepted.shape == new.shape[:2] and (accepted >= 0).all()
        assert kind == "prompt-lookup" or accepted.any()
        ends = np.isin(new, toy.STOPS)[..., :7]
        length = np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, 7)
        if kind == "the same":  # all that the model would choose, and one token of its own to each of them
            np.testing.assert_array_equal(drafted, toy.DRAFT * -(-(length - 1) // (toy.DRAFT + 1)))
        assert (accepted <= np.minimum(drafted, length)).all()


def test_an_encoder_decoder_with_proposals():
    """Of another model, up to the last position, with rows of unequal lengths, in float64."""
    with jax.enable_x64(True):
        case = next(case for case in CASES if registry.is_encoder_decoder(case.config))
        none = dict.fromkeys(("eos_id", "forced_bos_id", "forced_eos_id"))
        case = case.sized(max_length=48, num_layers=1, num_decoder_layers=1, decoder_start_id=1, **none)
        m = bundle(case.wide(), scale=0.5)
        near = m.replace(params=jax.tree.map(lambda x: x * 1.3, m.params))
        prompts = [case.tokens(1, length, seed=length)[0].tolist() for length in (1, 7, 34)]
        given = {"max_new_tokens": 14, "stop": [3, 5, 7, 11, 13]}
        asked = module.request(m, prompts, sampling=None, seed=0, settings={}, draft=near, draft_tokens=3, **given)
        new_BNT, _, drafted_BN, accepted_BN = module.run(asked)
        np.testing.assert_array_equal(new_BNT[:, 0], generate(m, prompts, **given))
        assert drafted_BN.shape == (3, 1) and (accepted_BN <= drafted_BN).all() and accepted_BN.any()


def test_what_prompts_begin_with_is_read_once():
    """Of rows of unequal lengths, in chunks; the answers are those of each row alone."""
    with jax.enable_x64(True):
        case = CASES[0] if not registry.is_encoder_decoder(CASES[0].config) else CASES[1]
        m = bundle(case.sized(max_length=64, num_layers=1, eos_id=None).wide(), scale=0.5)
        prompts = [[*range(20), *case.tokens(1, length, seed=length)[0].tolist()] for length in (1, 3, 22)]
        asked = module.request(
            m, prompts, max_new_tokens=5, sampling=None, seed=0, stop=None, settings={}, prefill_chunk=6
        )  # fmt: skip
        arguments, static, _ = module._prepared(asked)
        assert static["shared"] == 12 and arguments[1].shape[1] >= 42  # 16, but for the chunks
        assert module._run(asked)[:, 0].tolist() == [one_by_one(m, row, 5) for row in prompts]
        assert module._shared([np.arange(n) for n in (17, 40)], m.config) == 16
        assert module._shared([np.arange(n) for n in (16, 40)], m.config) == 0  # each row has a token of its own


def test_caches_of_windows(monkeypatch):
    """Beside layers without a window, of rows of unequal lengths: with proposals, with beams, and of one row."""
    with jax.enable_x64(True):
        case = families.main("gemma3").sized(max_length=96, num_layers=2, eos_id=None).wide()
        m = bundle(case, scale=0.5)
        prompts = [case.tokens(1, length, seed=length)[0].tolist() for length in (1, 7, 13)]
        searched = generate(m, prompts, max_new_tokens=10, num_beams=3)
        monkeypatch.setattr(caches, "SPARE", 4)
        assert len(case.module.init_cache(case.config, 1, 12).kv.trees) == 2
        found = generate(m, prompts, max_new_tokens=10, draft="prompt-lookup", draft_tokens=3, prefill_chunk=6)
        assert found.tolist() == [one_by_one(m, row, 10) for row in prompts]
        monkeypatch.setattr(module, "BUCKET", 12)  # another program
        np.testing.assert_array_equal(generate(m, prompts, max_new_tokens=10, num_beams=3), searched)


def test_what_is_looked_up():
    """The latest of the longest n-grams; what was found is repeated behind the end; padding and other rows are none."""
    for row, start, last, expected in (
        ([1, 2, 3, 9, 2, 3, 8, 1, 2, 3, 0, 0], 0, 9, [9, 2, 3, 8]),  # three tokens, though two stand nearer
        ([7, 2, 3, 9, 2, 3, 8, 1, 2, 3, 0, 0], 0, 9, [8, 1, 2, 3]),
        ([5, 5, 5, 5, 1, 2, 1, 2, 0, 0, 0, 0], 0, 7, [1, 2, 1, 2]),
        ([3, 3, 9, 3, 9, 4, 3, 0, 0, 0, 0, 0], 3, 6, [9, 4, 3, 9]),
        ([4, 6, 4, 5, 6, 7, 8, 4, 4, 4, 4, 4], 3, 7, None),
    ):
        tokens, found = speculative.look_up(np.asarray(row), start, last, 4)
        assert bool(found) == (expected is not None) and (expected is None or tokens.tolist() == expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draft": "prompt"}, "draft='prompt' is not known: pass a model, or 'prompt-lookup'"),
        ({"draft_tokens": 3}, "draft_tokens=3: there is no draft"),
        ({"draft": "prompt-lookup", "draft_tokens": 0}, "draft_tokens=0 must be a number of tokens, from 1 to 31"),
        ({"draft": "prompt-lookup", "num_beams": 2}, "draft: Beam is not decoded with proposals"),
        ({"prefill_chunk": 0}, "prefill_chunk=0 must be a number of tokens"),
    ],
)
def test_drafts_that_cannot_be(case, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(bundle(case), [[1]], max_new_tokens=2, **change)


def test_drafts_and_chunks_of_other_models():
    decoder, other = sorted(map(bundle, CASES), key=lambda m: registry.is_encoder_decoder(m.config))
    scaled = families.main("llama").sized(max_length=32, eos_id=None)
    scaled = bundle(scaled.sized(rope=Rope(kind="dynamic", factor=2.0)))
    for m, change, message in (
        (decoder, {"draft": other}, "one of the models is a decoder and the other an encoder-decoder"),
        (decoder, {"draft": families.made("gpt2", families.small("gpt2", vocab_size=91))}, "vocabulary of 91 tokens"),
        (other, {"prefill_chunk": 2}, "an encoder-decoder's encoder reads a source as a whole"),
        (scaled, {"prefill_chunk": 2}, "beyond 16 tokens the rotary positions of this model depend on the length"),
        (scaled, {"draft": "prompt-lookup"}, "the model has 16 positions of a steady rotation"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(m, [[1] * 20], max_new_tokens=2, **change)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_the_caller_made(case, side):
    m = bundle(case)
    rows = [case.tokens(1, length, seed=length)[0] for length in (5, 9, 1, 7)]
    padded, valid = np.zeros((4, 9), np.int32), np.zeros((4, 9), bool)
    for i, row in enumerate(rows):
        part = slice(9 - len(row), None) if side == "left" else slice(len(row))
        padded[i, part], valid[i, part] = row, True
    expected = generate(m, rows, max_new_tokens=6)
    assert (generate(m, padded, max_new_tokens=6, valid_BT=valid) == expected).all()
    assert (generate(m, jnp.asarray(padded), max_new_tokens=6, valid_BT=jnp.asarray(valid)) == expected).all()


def test_a_prompt_up_to_the_last_position(case):
    m = bundle(case)
    is_encoder_decoder = registry.is_encoder_decoder(
        case.config
    )  # it has `max_length` positions for each of source and target
    row = case.tokens(1, 96 if is_encoder_decoder else 92)[0].tolist()
    assert generate(m, [row], max_new_tokens=4)[0].tolist() == one_by_one(m, row, 4)
    for length, new in ((97, 4), (1, 97)) if is_encoder_decoder else ((92, 5),):
        words = f"{length} tokens and max_new_tokens is {new}, and the model has 96 positions"
        with pytest.raises(ValueError, match=words):
            generate(m, [[1] * length], max_new_tokens=new)


def test_a_model_without_positions_has_no_longest_prompt():
    case = next(case for case in families.cases("cache") if case.config.max_length is None)
    assert generate(bundle(case), [[3] * 200], max_new_tokens=4).shape == (1, 4)


@pytest.fixture
def calls(monkeypatch):
    """The calls of the compiled program, which is not run: rows, max_new, sampling, stop_ids."""
    calls = []

    def run(asked):
        calls.append({name: getattr(asked, name) for name in ("rows", "max_new", "sampling", "stop_ids")})
        return np.zeros((len(asked.rows), 1, asked.max_new), np.int32)

    monkeypatch.setattr(module, "_run", run)
    return calls


def test_stop_tokens_of_the_call_and_of_the_model(case, calls):
    with_eos = bundle(dataclasses.replace(case, config=dataclasses.replace(case.config, eos_id=7)))
    for m, stop, expected in ((bundle(case), 5, [5]), (with_eos, [5, 5, 6], [5, 6, 7]), (with_eos, None, [7])):
        generate(m, [[1]], max_new_tokens=2, stop=stop)
        assert calls[-1]["stop_ids"] == expected


def test_lengths_share_programs(case):
    m, others = bundle(case), bundle(case, seed=1)
    generate(m, case.tokens(4, 3), max_new_tokens=5)
    programs = module._compiled[True]._cache_size()
    for length, new in ((16, 16), (5, 1), (1, 7)):
        generate(m, case.tokens(4, length), max_new_tokens=new, seed=9)
        generate(others, case.tokens(4, length), max_new_tokens=new)
    generate(m, case.tokens(4, 3), max_new_tokens=5, sampling=Greedy(max_new_tokens=9))
    assert module._compiled[True]._cache_size() == programs
    generate(m, case.tokens(4, 17), max_new_tokens=1)
    assert module._compiled[True]._cache_size() == programs + 1


def test_programs_of_random_lengths(case, calls):
    """200 requests need a program for each pair of buckets, however near to the last position they come."""
    m, draw, keys = bundle(case), np.random.default_rng(0), set()
    for _ in range(200):
        length, share = draw.integers(1, 96), draw.random()
        asked = module.request(
            m, [[1] * length], max_new_tokens=1 + int(share * (95 - length)), sampling=None, seed=0, stop=None,
            settings={},
        )  # fmt: skip
        arguments, static, _ = module._prepared(asked)
        keys.add((*(x.shape for x in jax.tree.leaves(arguments[1:])), static["room"]))
    buckets = (16, 32, 64, 96)
    assert {room for *_, room in keys} <= {*buckets} and {shape[1] for shape, *_ in keys} == {*buckets}
    assert len(keys) <= len(buckets) ** 2


def test_bfloat16(case):
    m = bundle(case.with_(dtype="bfloat16"))
    row = case.tokens(1, 6)[0].tolist()
    assert generate(m, [row], max_new_tokens=5)[0].tolist() == one_by_one(m, row, 5)
    shapes = jax.eval_shape(lambda: case.module.init_cache(case.config, 1, 8, m.model.compute.dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes.kv)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("axes", "batch", "sampling"),
    [
        ({"tensor": 8}, 1, Beam(num_beams=3, num_return_sequences=2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 4, Sample(temperature=1.5)),
    ],
    ids=["beam", "sample"],
)
def test_on_a_mesh(case, axes, batch, sampling):
    """Sharded parameters, whose layers are stacked, give the tokens of a single device, whether the mesh divides the
    batch or not."""
    with jax.enable_x64(True):
        case = case.sized(num_layers=2, num_decoder_layers=2).wide()
        m, rows = bundle(case), [case.tokens(1, length, seed=length)[0].tolist() for length in range(5, 5 + batch)]
        mesh = sharding.make_mesh(**axes)
        host = jax.tree.map(np.asarray, m.params)  # to cut an array on a device is a program for each shape
        params = jax.device_put(host, sharding.param_shardings(registry.param_shapes(m.model), mesh))
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
        expected = generate(m, rows, max_new_tokens=9, sampling=sampling, seed=1)
        divided = dataclasses.replace(m, params=params)
        assert (generate(divided, rows, max_new_tokens=9, sampling=sampling, seed=1) == expected).all()


def test_params_are_views_on_a_cpu(case):
    """The parameters of each layer share the memory of the stacked ones."""
    params = bundle(case.sized(num_layers=2, num_decoder_layers=2)).params
    apart = module._by_layer(params, jax.devices()[0])
    whole = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(params)}
    # Only an aligned array can be a view, as those of real sizes are.
    large = [leaf for leaf in jax.tree.leaves(apart) if leaf.nbytes % 64 == 0]
    assert len(large) > 10
    for leaf in large:
        assert any(start <= leaf.unsafe_buffer_pointer() < start + size for start, size in whole.items())


@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_copies_no_cache_on_a_cpu(rows):
    """Each token's keys and values are written in place."""
    case = families.main("gpt2").sized(num_layers=2, max_length=96)
    asked = module.request(
        bundle(case), case.tokens(rows, 40), max_new_tokens=40, sampling=Greedy(), seed=0, stop=None, settings={}
    )
    arguments, static, device = module._prepared(asked)
    with device():
        text = module._compiled[True].lower(*arguments, **static).compile().as_text()
    heads, slots = case.config.num_heads, 2 * 64
    kept = rf"{heads},{slots},{case.config.width // heads}"
    steps = [part for part in re.split(r"\n\n", text) if re.match(r"%\S*wide\S* \(", part)]
    assert any(re.search(rf"f32\[(\d+,)?{kept}\]\S* fusion", part) for part in steps)  # where tokens are written
    assert not any(re.search(rf"f32\[(\d+,)?{kept}\]\S* (copy|gather|transpose)\(", part) for part in steps)


# ---- text


def test_text_in_text_out(case, tokenizer):
    m = with_text(case, tokenizer)
    answers = generate(m, ["def read", "class"], max_new_tokens=8)
    assert [type(answer) for answer in answers] == [str, str]
    assert generate(m, "class", max_new_tokens=8) == answers[1]
    ids = tokenizer.encode("class", template=registry.is_encoder_decoder(case.config)).ids
    new = generate(m, [ids], max_new_tokens=8)[0]
    ends = np.flatnonzero(new == tokenizer.eos_id)
    assert answers[1] == tokenizer.decode(new[: ends[0]] if ends.size else new)


def test_an_empty_prompt_starts_a_text(case, tokenizer, monkeypatch):
    m = with_text(case, tokenizer)
    if registry.is_encoder_decoder(case.config):  # an empty source is its end token
        new = generate(m, [[tokenizer.eos_id]], max_new_tokens=6)[0]
        assert generate(m, "", max_new_tokens=6) == module.decode_text(tokenizer, new, [tokenizer.eos_id])
        return
    new = generate(m, [[tokenizer.bos_id]], max_new_tokens=6)[0]
    assert generate(m, "", max_new_tokens=6) == module.decode_text(tokenizer, new, [tokenizer.eos_id])
    monkeypatch.setattr(tokenizer, "bos_id", None)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generate(m, "", max_new_tokens=6)


def test_tokens_without_text():
    """An embedding may have more rows than the tokenizer has tokens, as T5's, and a model may generate these."""
    tokenizer = tokenizer_for(False)
    ids = tokenizer.encode("class Queue").ids.tolist()
    beyond = [ids[0], tokenizer.vocab_size, *ids[1:], tokenizer.vocab_size + 7]
    assert module.decode_text(tokenizer, np.array(beyond), []) == "class Queue"


def test_stop_texts(case, tokenizer, monkeypatch):
    """A text ends before the first stop text, and always before an end token."""
    m = with_text(case, tokenizer)
    new = np.array([*tokenizer.encode("def read(path):").ids, tokenizer.eos_id, *tokenizer.encode("class").ids])
    monkeypatch.setattr(module, "_run", lambda *_: new[None, None])
    read = lambda **arguments: generate(m, "def", max_new_tokens=len(new), **arguments).strip()
    assert read() == read(stop="class") == "def read(path):"
    assert read(stop=["path", "never there", "ead("]) == "def r"


def test_stop_strings(case, tokenizer, monkeypatch):
    """A row ends with the token that completes the first of these texts, which may begin in a decoder's prompt."""
    m, is_encoder_decoder = with_text(case, tokenizer), registry.is_encoder_decoder(case.config)
    new = tokenizer.encode(" read(path): return").ids
    monkeypatch.setattr(module, "_run", lambda *_: np.array(new)[None, None])
    monkeypatch.setattr(module, "_scores", lambda _, new, counts: (counts, new))
    prompt = tokenizer.encode("def").ids
    for texts, shortest in (
        (["eturn", "th)"], "th)"),
        ("th", "th"),
        (["never"], "return"),
        ("f r" if not is_encoder_decoder else "r", "r"),
    ):
        found = generate(m, "def", max_new_tokens=len(new), stop_strings=texts, output_scores=True)
        count = int(found.log_probs[0])
        assert shortest in found.answers and found.answers.strip() == tokenizer.decode(new[:count]).strip()
        assert count == 1 or shortest not in tokenizer.decode(new[: count - 1])
        assert found.scores[0].tolist() == [*new[:count]] + [new[count - 1]] * (len(new) - count)
    ids = generate(m, [prompt], max_new_tokens=len(new), sampling=Greedy(stop_strings="th"))
    assert len(set(ids[0].tolist()[-3:])) == 1 and ids[0, 0] == new[0]


# ---- bad requests


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        ([], {}, "the batch is empty"),
        (np.zeros((0, 4), int), {}, "the batch is empty"),
        (np.zeros((2, 0), int), {}, "prompt 0 is empty"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [2, 90]], {}, r"prompt 1\[0, 1\] is 90, outside of the vocabulary"),
        ([[-1]], {}, "is -1, outside of the vocabulary"),
        ([[1.0, 2.0]], {}, r"prompts\[0\]\[0\] is 1.0 \(float\): expected a whole number"),
        (np.ones((1, 2)), {}, "prompt 0 is float64: expected integers"),
        ([1, 2, 3], {}, r"prompts\[0\] is 1 \(int\): expected a text or a list of whole numbers"),
        (np.ones(3, int), {}, "prompt 0 is not a row of token ids"),
        (["a", [1]], {}, r"prompts\[1\] is a list of 1: expected a text"),
        ([[1]], {"max_new_tokens": 3.5}, r"max_new_tokens is 3.5 \(float\): expected a whole number or None"),
        ([[1]], {"seed": "a"}, r"seed is 'a' \(str\): expected a whole number"),
        ("text", {}, "no tokenizer"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"stop": "\n"}, "texts end text prompts only"),
        ([[1]], {"stop": 90}, r"stop\[0, 0\] is 90, outside of the vocabulary"),
        (np.ones((1, 4), int), {"valid_BT": np.ones((1, 3), bool)}, "valid_BT has shape"),
        (np.ones((1, 4), int), {"valid_BT": np.zeros((1, 4), bool)}, "prompt 0 is empty"),
        (
            "a",
            {"valid_BT": np.ones((1, 1), bool)},
            "valid_BT: it tells which token ids are real",
        ),
    ],
)
def test_bad_requests(case, prompts, change, message, monkeypatch):
    monkeypatch.setattr(module, "_run", None)  # nothing is computed
    with pytest.raises((TypeError, ValueError), match=message):
        generate(bundle(case), prompts, **{"max_new_tokens": 1} | change)


def test_a_model_without_a_head(case, monkeypatch):
    with pytest.raises(ValueError, match="the task 'base' does not generate"):
        generate(bundle(dataclasses.replace(case, task="base")), [[1]], max_new_tokens=1)


def test_a_sampling_that_is_none(case):
    with pytest.raises(TypeError, match="Greedy"):
        generate(bundle(case), [[1]], max_new_tokens=1, sampling="greedy")


# ---- the toy


def plain(strategy, row, logits_of, max_new, stops=toy.STOPS, token_ids=toy.FREE):
    """Greedy decoding as a plain loop: the new tokens of one row, up to the one that ends it."""
    new = []
    while len(new) < max_new and not (new and new[-1] in stops):
        logits = logits_of(np, np.array([[*row, *new]]), len(row) + len(new))[0]
        new.append(int(toy.under_rules(logits, strategy, row, new, max_new, stops, token_ids).argmax()))
    return new


@pytest.mark.parametrize(
    ("strategy", "token_ids"),
    [
        (Greedy(), TokenIds()),
        (Greedy(no_repeat_ngram_size=2, min_new_tokens=4, suppressed=(1, 7), forced_first=8), toy.FORCED),
        (Greedy(repetition_penalty=1.5), toy.FORCED),
        (Greedy(repetition_penalty=0.5, no_repeat_ngram_size=1), TokenIds()),
        (
            Greedy(
                sequence_bias={(7,): -1.0, (3, 4): 9.0, (1, 2, 3): 2.0},
                encoder_repetition_penalty=1.4,
                encoder_no_repeat_ngram_size=2,
                bad_words=((2,), (8,), (6, 6), (0, 1)),
                begin_suppressed=(4, 6),
            ),
            TokenIds(eos=(2, 5)),
        ),
        (Greedy(min_length=6, begin_suppressed=(1, 5)), toy.FORCED),
    ],
    ids=str,
)
def test_greedy_is_the_plain_loop_under_all_rules(strategy, token_ids):
    logits_of = toy.toy(1)
    for max_new in (8, 5, 1):
        prompts, stops = toy.read_of(16, max_new), np.asarray(toy.STOPS, np.int32)
        valid = np.arange(toy.READ) >= np.arange(16)[:, None] % toy.READ  # padding counts for no rule
        with jax.enable_x64(True):
            new_BNR = toy.compiled(
                strategy, prompts, valid, np.int32(max_new), stops, jax.random.key(0), seed=1, token_ids=token_ids
            )
        assert new_BNR.shape == (16, 1, toy.ROOM)
        for row, real, new in zip(prompts, valid, np.asarray(new_BNR)[:, 0, :max_new].tolist()):

            def of_all(xp, tokens, length, row=row, real=real):  # the toy reads padding; the rules do not
                return logits_of(xp, np.concatenate([row[~real][None], tokens], axis=1), length + (~real).sum())

            expected = plain(strategy, row[real].tolist(), of_all, max_new, token_ids=token_ids)
            assert new == expected + expected[-1:] * (max_new - len(expected))


def sampled(strategy, prompts, max_new, stops=(), seed=0, size=toy.V):
    """New tokens [B, max_new] of the toy."""
    valid, stops = np.ones(prompts.shape, bool), np.asarray(stops, np.int32)
    new = toy.compiled(strategy, prompts, valid, np.int32(max_new), stops, jax.random.key(seed), seed=3, size=size)
    return np.asarray(new)[:, 0, :max_new]


def test_samples_follow_the_distribution():
    """The frequencies of the first two tokens; the second is sampled given the first, with other random numbers."""
    strategy, size, count = Sample(temperature=0.9, top_k=4, top_p=0.95), 5, 20_000
    row, logits_of = toy.read_of(1, 4, size), toy.toy(3, size)
    new = sampled(strategy, np.repeat(row, count, axis=0), 2, size=size)
    seen = np.bincount(new[:, 0] * size + new[:, 1], minlength=size * size) / count
    first = by_definition(logits_of(np, row, toy.READ)[0], 0.9, 4, 0.95)
    second = [logits_of(np, np.append(row, [[token]], axis=1), toy.READ + 1)[0] for token in range(size)]
    expected = np.concatenate([p * by_definition(logits, 0.9, 4, 0.95) for p, logits in zip(first, second)])
    assert (np.abs(seen - expected) <= 5 * np.sqrt(expected / count)).all()
    assert (first > 0).sum() > 1 and (expected > 0).sum() > 4  # or little would have been compared


def test_draws_from_many_tokens():
    """By a chi-squared test over a vocabulary of several blocks; what is excluded is never drawn, also next to a share
    of 0 or of nearly 1."""
    draw, count, size = np.random.default_rng(0), 50_000, 1000
    logits = draw.normal(size=size).astype(np.float32)
    logits[draw.random(size) < 0.6], logits[256:384], logits[[0, -1]] = -np.inf, -np.inf, -np.inf
    tokens = jax.jit(jax.vmap(sampling.draw, (0, None)))(jax.random.split(jax.random.key(1), count), logits)
    seen, expected = np.bincount(tokens, minlength=size), count * np.asarray(jax.nn.softmax(logits))
    kept = np.isfinite(logits)
    assert seen[~kept].sum() == 0
    freedom = kept.sum() - 1
    statistic = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)
    for uniform in (0.0, 1 - 2**-24):
        with mock.patch("jax.random.uniform", lambda key, shape, dtype: jnp.full(shape, uniform, dtype)):  # noqa: B023
            assert kept[sampling.draw(jax.random.key(0), jnp.asarray(logits))]


def test_a_row_is_its_own():
    """A sample depends on prompt, index and seed, and not on the other rows, nor on their number."""
    strategy, prompts = Sample(temperature=1.5), toy.read_of(4, 6)
    samples = sampled(strategy, prompts, 8, seed=3)
    assert (sampled(strategy, prompts, 8, seed=3) == samples).all()
    others = np.concatenate([prompts[:1], toy.read_of(3, 7)])
    assert (sampled(strategy, others, 8, seed=3)[0] == samples[0]).all()
    assert (sampled(strategy, prompts[:1], 8, seed=3)[0] == samples[0]).all()
    assert (sampled(strategy, prompts, 8, seed=4) != samples).any()
    same = sampled(strategy, np.repeat(prompts[:1], 4, axis=0), 8, seed=3)
    assert len({tuple(row) for row in same.tolist()}) > 1  # equal prompts are still sampled apart


def test_a_row_that_has_ended_repeats_its_end_and_changes_no_other():
    strategy, prompts = Sample(temperature=1.5), toy.read_of(8, 6)
    free = sampled(strategy, prompts, 8).tolist()
    stop = free[0][3]
    expected = [row[: row.index(stop)] + [stop] * (8 - row.index(stop)) if stop in row else row for row in free]
    assert sampled(strategy, prompts, 8, stops=(stop,)).tolist() == expected != free
    assert any(stop not in row for row in free)


def test_the_loop_ends_when_all_rows_have():
    """Choices are counted on the host: none follows the last stop."""
    counted = []

    @dataclasses.dataclass(frozen=True)
    class Counting(Greedy):
        def choose(self, keys_B, logits_BV):
            jax.debug.callback(lambda: counted.append(1))
            return super().choose(keys_B, logits_BV)

    prompts = toy.read_of(4, 6)
    free = sampled(Greedy(), prompts, 8)
    stops = sorted({int(free[0, 0]), int(free[1, 2]), int(free[2, 1]), int(free[3, 2])})
    answer = sampled(Counting(), prompts, 8, stops=stops)
    jax.effects_barrier()
    last = max(min(row.tolist().index(stop) for stop in stops if stop in row) for row in free)
    assert 0 < last < 7 and len(counted) == last + 1
    assert np.isin(answer[:, -1], stops).all()


def test_samples_are_under_the_rules():
    prompts = toy.read_of(16, 2)
    rules = {"suppressed": (1, 4), "no_repeat_ngram_size": 1, "forced_first": 8, "min_new_tokens": 2}
    new = sampled(Sample(temperature=2.0, **rules), prompts, 4, stops=(2,))
    assert (new[:, 0] == 8).all() and not np.isin(new, (1, 4)).any() and not (new[:, 1] == 2).any()
    for row, answer in zip(prompts.tolist(), new.tolist()):
        until = answer.index(2) + 1 if 2 in answer else 4
        assert len({*row, *answer[:until]} - {8}) == len({*row} - {8}) + until - 1


def test_repetition_penalty_by_hand():
    """Positive logits are divided and negative ones multiplied, only for the tokens in the row's slots."""
    logits_BV = jnp.asarray([[2.0, -2.0, 0.0, 3.0, -3.0], [2.0, -2.0, 0.0, 3.0, -3.0]])
    tokens_BS = jnp.asarray([[3, 0, 1, 0, 4], [0, 4, 4, 4, 3]])  # slot 0 of the first row is padding; slot 4 is not set
    found = penalize_repeats(logits_BV, tokens_BS, jnp.asarray([1, 0]), 4, penalty=2.0)
    assert found.tolist() == [[1.0, -4.0, 0.0, 3.0, -3.0], [1.0, -2.0, 0.0, 3.0, -6.0]]


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 0.0}, {"min_new_tokens": 1.5}, {"max_new_tokens": 0}, {"max_length": 0}],
    ids=str,
)
def test_rules_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Greedy(**settings)


# ---- sampling


def by_definition(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The tokens that can be sampled and their probabilities, a row at a time in plain numpy."""
    scores = logits / temperature
    keep = np.ones(len(scores), bool)
    if top_k is not None:
        keep = scores >= np.sort(scores)[::-1][min(top_k, len(scores)) - 1]
    if top_p is not None:
        shares = np.where(keep, np.exp(scores - scores.max()), 0)
        shares /= shares.sum()
        keep &= np.array([shares[scores > score].sum() < top_p for score in scores])
    shares = np.where(keep, np.exp(scores - scores.max()), 0)
    return shares / shares.sum()


@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(None, None), (1, None), (3, None), (1000, None), (None, 1e-6), (None, 0.5), (None, 0.9), (None, 1.0), (3, 0.5),
     (20, 0.9)],
)  # fmt: skip
@pytest.mark.parametrize(("dtype", "temperature"), [("float32", 0.7), ("float64", 2.0), ("float64", 1e-3)])
def test_filter_is_the_definition(top_k, top_p, dtype, temperature):
    draw = np.random.default_rng(0)
    with jax.enable_x64(True):
        sample = Sample(temperature=temperature, top_k=top_k, top_p=top_p)
        shares_of = jax.jit(lambda logits_BV: jax.nn.softmax(sample.filter(logits_BV), axis=-1))
        for scale in (0.01, 1, 30):
            logits = draw.standard_normal((6, 50)) * scale
            logits[1] = np.round(logits[1])  # ties
            logits[2] = 0.0
            logits[3, ::2] = -1e30  # masked tokens of a padded vocabulary
            logits = logits.astype(dtype)
            shares = np.asarray(shares_of(logits))
            for row, share in zip(logits, shares):
                expected = by_definition(row.astype(np.float64), temperature, top_k, top_p)
                np.testing.assert_allclose(share, expected, atol=2e-6 if dtype == "float32" else 1e-12)


def test_equal_tokens_are_not_parted():
    kept = lambda **how: np.isfinite(jax.jit(Sample(**how).filter)(jnp.asarray([[2.0, 1.0, 1.0, 0.0]]))).tolist()
    assert kept(top_k=2) == kept(top_p=0.7) == [[True, True, True, False]]
    assert kept(top_p=0.5) == [[True, False, False, False]]
    assert Greedy().choose(None, jnp.asarray([[0.0, 1.0, 1.0]])).tolist() == [1]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")},
     {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0.0}, {"top_p": 1.1}],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sample(**settings)


def test_numbers_of_other_types():
    """Those of numpy, and whole ones with a decimal point."""
    settings = {"temperature": np.float32(0.5), "top_k": np.int64(3), "no_repeat_ngram_size": 2.0}
    found = strategies.build(settings)
    assert found == Sample(temperature=0.5, top_k=3, no_repeat_ngram_size=2)
    assert json.dumps(published.write(found)) == json.dumps(published.write(Sample(**settings)))
    assert type(found.no_repeat_ngram_size) is type(found.top_k) is int


def test_samplings_are_values():
    assert hash(Sample(top_k=3)) == hash(Sample(top_k=3)) and Sample(top_k=3) == Sample(top_k=3) != Sample(top_k=4)
    assert hash(Greedy()) == hash(Greedy()) and Greedy() == Greedy()


def test_another_strategy_under_the_same_rules():
    rules = {"min_new_tokens": 2, "no_repeat_ngram_size": 3, "suppressed": (5,), "forced_first": 7}
    beam = Beam(num_beams=4, length_penalty=2.0, num_return_sequences=2, **rules)
    assert Greedy.from_strategy(beam) == Greedy(**rules)
    assert Sample.from_strategy(beam, temperature=0.5, suppressed=()) == Sample(
        temperature=0.5, **rules | {"suppressed": ()}
    )
    found = Beam.from_strategy(beam, num_beams=3, num_return_sequences=1)
    assert found == dataclasses.replace(beam, num_beams=3, num_return_sequences=1)


# ---- settings by name, and lengths


@pytest.mark.parametrize(
    ("settings", "base", "expected"),
    [
        ({}, Beam(), Beam()),
        ({"temperature": 0.8, "top_p": 0.9}, Greedy(), Sample(temperature=0.8, top_p=0.9, top_k=50)),
        ({"do_sample": True}, Greedy(), Sample(top_k=50)),
        ({"do_sample": True}, Sample(), Sample()),  # a file that asks for all tokens
        ({"do_sample": True, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1}, Greedy(), Sample()),
        ({"do_sample": True, "top_k": None}, Greedy(), Sample()),
        ({"top_p": 1.0, "typical_p": 1.0, "min_p": 0, "epsilon_cutoff": 0.0, "length_penalty": 1.0,
          "early_stopping": False, "num_return_sequences": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
         Greedy(), Greedy()),
        ({"do_sample": False, "temperature": 1.0, "top_k": 50, "num_beams": 1}, Greedy(), Greedy()),
        ({"num_beams": 3, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "do_sample": False}, Greedy(),
         Beam(num_beams=3)),
        ({"temperature": 1.0}, Greedy(), Sample(top_k=50)),
        ({"min_new_tokens": 0, "min_length": 5}, Greedy(max_new_tokens=4), Greedy(max_new_tokens=4)),
        ({"min_new_tokens": 0}, Greedy(min_length=3, max_length=4), Greedy(max_length=4)),
        ({"max_length": 9, "min_length": 2}, Greedy(max_new_tokens=4, min_new_tokens=1),
         Greedy(max_length=9, min_length=2)),
        ({"temperature": 0.8}, Sample(top_k=50), Sample(temperature=0.8, top_k=50)),
        ({"temperature": 0.8}, Beam(suppressed=(3,)), Sample(temperature=0.8, suppressed=(3,), top_k=50)),
        ({"temperature": 0}, Sample(top_k=50, min_new_tokens=2), Greedy(min_new_tokens=2)),
        ({"temperature": 0}, Beam(), Greedy()),
        ({"temperature": 0, "num_beams": 3}, Sample(), Beam(num_beams=3)),
        ({"top_k": 9}, Sample(temperature=0.5), Sample(temperature=0.5, top_k=9)),
        ({"top_k": None}, Sample(temperature=0.5, top_k=50), Sample(temperature=0.5)),
        ({"do_sample": True}, Beam(), Sample(top_k=50)),
        ({"do_sample": False}, Sample(top_k=50), Greedy()),
        ({"do_sample": False, "temperature": None, "top_p": None}, Sample(), Greedy()),
        ({"do_sample": False}, Beam(), Beam()),
        ({"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never"}, Greedy(min_new_tokens=1),
         Beam(num_beams=3, length_penalty=2.0, early_stopping="never", min_new_tokens=1)),
        ({"num_beams": 2}, Beam(num_return_sequences=4, length_penalty=0.5), Beam(num_beams=2, length_penalty=0.5)),
        ({"num_beams": 3, "num_return_sequences": 2}, Greedy(), Beam(num_beams=3, num_return_sequences=2)),
        ({"num_return_sequences": 2}, Beam(), Beam(num_return_sequences=2)),
        ({"num_beams": 1}, Beam(), Greedy()),
        ({"num_beams": 1, "do_sample": True}, Greedy(), Sample(top_k=50)),
        ({"num_beams": 1}, Sample(top_k=9), Sample(top_k=9)),
        ({"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}, Sample(top_k=9),
         Sample(top_k=9, repetition_penalty=1.2, no_repeat_ngram_size=3)),
        ({"suppress_tokens": [3], "forced_bos_token_id": 4}, Greedy(), Greedy(suppressed=(3,), forced_first=4)),
    ],
)  # fmt: skip
def test_settings_by_name(settings, base, expected):
    assert strategies.build(settings, base) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temprature": 0.8}, TypeError, "there is no setting temprature. Did you mean 'temperature'?"),
        ({"attention_mask": None}, TypeError, "no argument 'attention_mask': pass valid_BT"),
        ({"max_length": 9}, ValueError, "max_new_tokens and max_length, which counts the prompt too: give one of them"),
        ({"stop_strings": [""]}, ValueError, r"stop_strings=\[''\] must be texts that are not empty"),
        ({"stop_strings": "."}, ValueError, r"has no tokenizer, .* Pass stop_strings=None in place of \['\.'\]"),
        ({"stop_strings": ".", "num_beams": 2}, ValueError, "is a setting of Beam, and stop_strings of Sample"),
        ({"num_beam_groups": 2}, ValueError, "num_beam_groups=2 is not supported"),
        ({"temperature": "hot"}, ValueError, "temperature='hot' must be a number"),
        ({"no_repeat_ngram_size": 2.5}, ValueError, "no_repeat_ngram_size=2.5 must be a whole number"),
        ({"min_new_tokens": True}, ValueError, "min_new_tokens=True must be a whole number"),
        ({"do_sample": "yes"}, ValueError, "do_sample='yes' must be True or False"),
        ({"suppress_tokens": 5}, ValueError, "suppressed=5 must be token ids"),
        ({"sequence_bias": [[3, 2.0]]}, ValueError, r"sequence_bias=\[\[3, 2.0\]\] must be pairs of a sequence"),
        ({"num_beams": 2, "early_stopping": 1}, ValueError, "early_stopping=1: choose False, True or 'never'"),
        ({"eos_token_id": [1, 10**6]}, ValueError, "eos_token_id.*is 1000000, outside of the vocabulary"),
        ({"eos_token_id": "</s>"}, ValueError, "eos_token_id is '</s>', where a token id or a list of them is"),
        ({"bos_token_id": [1]}, ValueError, r"bos_token_id is \[1\], where a token id is expected"),
        ({"pad_token_id": True}, ValueError, "pad_token_id is True, where a token id is expected"),
        ({"num_return_sequences": 3}, ValueError,
         "is a setting of Beam and Sample: give num_beams as well, such as 4, or temperature as well, such as 0.8"),
        ({"top_k": 50}, ValueError, "top_k is a setting of Sample: give temperature as well"),
        ({"early_stopping": True, "num_beams": 1}, ValueError, "early_stopping is a setting of Beam: give num_beams"),
        ({"num_beams": 4, "top_k": 7}, ValueError, "num_beams is a setting of Beam, and top_k of Sample"),
        ({"sampling": Greedy(), "top_k": 3}, TypeError, "sampling and top_k: put all settings into `sampling`"),
        ({"num_beams": 4, "temperature": 0.7}, ValueError,
         "num_beams is a setting of Beam, and temperature of Sample: give the settings of one of them"),
        ({"num_beams": 4, "do_sample": True}, ValueError, "and do_sample of Sample: give the settings of one"),
        ({"temperature": 0.7, "do_sample": False}, ValueError, "temperature=0.7 and do_sample=False contradict"),
        ({"temperature": 0, "do_sample": True}, ValueError, "temperature=0 and do_sample=True contradict"),
        ({"top_k": 3}, ValueError, "top_k is a setting of Sample: give temperature as well, such as 0.8"),
        ({"length_penalty": 2.0}, ValueError, "length_penalty is a setting of Beam: give num_beams as well, such as 4"),
        ({"temperature": -1.0}, ValueError, "temperature=-1.0 must be positive"),
        ({"num_beams": 0}, ValueError, "num_beams=0"),
        ({"repetition_penalty": -1.0}, ValueError, "repetition_penalty=-1.0"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings(arguments, error, message, calls):
    case = CASES[0]
    with pytest.raises(error, match=message):
        generate(Bundle(case.model, None, case.config), [[1]], max_new_tokens=1, **arguments)
    assert not calls


def test_settings_by_name_are_over_those_of_the_checkpoint(calls):
    case = CASES[0]
    m = Bundle(case.model, None, case.config, sampling=Beam(min_new_tokens=1, repetition_penalty=1.2))
    generate(m, [[1]], max_new_tokens=2, temperature=0.7, top_k=5)
    generate(m, [[1]], max_new_tokens=2, num_beams=2)
    generate(m, [[1]], max_new_tokens=2)
    generate(m, [[1]], max_new_tokens=2, sampling=Greedy())
    sample = Sample(temperature=0.7, top_k=5, min_new_tokens=1, repetition_penalty=1.2)
    beams = [dataclasses.replace(m.sampling, num_beams=2), m.sampling]
    assert [call["sampling"] for call in calls] == [sample, *beams, Greedy()]


def test_a_new_strategy_is_one_class_and_one_entry(case, monkeypatch):
    """It is read from generation_config.json, built by name and used to decode, without other changes."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Constant(Strategy):
        switch, example = ("constant", None), ("constant", 7)
        constant: int | None = None

        def decode(self, inputs):
            return jnp.full((len(inputs.logits_BV), 1, inputs.room), self.constant)

    monkeypatch.setattr(strategies, "STRATEGIES", (Constant, *strategies.STRATEGIES))
    m = bundle(case)
    assert (generate(m, [[1]], max_new_tokens=3, constant=7) == 7).all()
    strategy = published.read({"constant": 5, "min_new_tokens": 1}, case.config)
    assert strategy == Constant(constant=5, min_new_tokens=1)
    assert published.write(strategy) == {"min_new_tokens": 1, "constant": 5}
    with pytest.raises(ValueError, match="constant is a setting of Constant, and num_beams of Beam"):
        strategies.build({"constant": 5, "num_beams": 3})
    with pytest.raises(ValueError, match="top_k is a setting of Sample"):
        strategies.build({"top_k": 5}, strategy)


def test_a_length_that_nobody_gave(case, calls):
    """The strategy's, else the checkpoint's, else 128; at most the model's positions."""
    is_encoder_decoder = registry.is_encoder_decoder(case.config)
    m, prompts = bundle(case), [[1] * 6, [1]]
    read = 1 if is_encoder_decoder else 6

    def length(m, **arguments):
        generate(m, prompts, **arguments)
        return calls[-1]["max_new"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of = lambda **lengths: dataclasses.replace(m, sampling=Beam(**lengths))
        assert length(m, sampling=Greedy(max_new_tokens=5)) == 5
        assert length(of(max_new_tokens=7)) == length(of(max_new_tokens=7, max_length=9)) == 7
        assert length(of(max_length=40)) == 40 - read
        assert length(of(max_length=40), sampling=Greedy()) == length(of(max_length=40), temperature=0.5) == 40 - read
        assert length(of(max_new_tokens=7), sampling=Greedy(max_length=20)) == 20 - read
        assert length(of(max_new_tokens=7), max_new_tokens=3) == 3
        assert length(of(max_length=9999)) == 96 - (0 if is_encoder_decoder else 6)
        too_short = of(max_length=read)
    with pytest.raises(ValueError, match="max_length leaves no room for more: pass max_new_tokens"):
        length(too_short)


def test_the_default_length_is_said_once(calls):
    case = next(case for case in families.cases("cache") if case.config.max_length is None)
    m = Bundle(case.model, None, case.config)
    module._warn_of_default.cache_clear()
    with pytest.warns(UserWarning, match="has max_new_tokens: at most 128 are generated"):
        generate(m, [[1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(m, [[1]])
    assert [call["max_new"] for call in calls] == [128, 128]
