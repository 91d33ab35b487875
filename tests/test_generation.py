"""Generation: the compiled loop against the plain one, rows that know nothing of one another, and bad requests."""

import dataclasses
import functools

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry, sharding, trees
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation import generate as module
from transformer_zoo.generation.beam import Beam
from transformer_zoo.generation.generate import generate
from transformer_zoo.generation.sampling import Greedy, Sample
from transformer_zoo.pretrained import Bundle

CASES = families.kinds(families.cases("cache"))
TEXTS = [
    "def read(path):\n    return open(path).read()\n",
    "class Queue:\n    def put(self, item):\n        pass\n",
] * 3


@pytest.fixture(params=CASES, ids=families.name_of)
def case(request):
    none = dict.fromkeys(("eos_id", "forced_bos_id", "forced_eos_id"))
    return request.param.sized(max_length=96, num_layers=2, decoder_start_id=1, **none)


@pytest.fixture(autouse=True)
def small_bucket(monkeypatch):
    """One that nearly all prompts and answers here fit into, so that few programs are compiled."""
    monkeypatch.setattr(module, "BUCKET", 16)


@pytest.fixture
def tokenizer(case):
    return tokenizer_for(registry.is_encoder_decoder(case.config))


@functools.cache
def tokenizer_for(sources: bool) -> Tokenizer:
    """One that knows how to end a source, if there are any."""
    return Tokenizer.train(TEXTS, 400, kind="t5") if sources else Tokenizer.train(TEXTS, 300)


def bundle(case, tokenizer=None, **params) -> Bundle:
    """With small biases, or they would decide what is said, whatever was read."""
    flat = trees.flatten(case.params(**params))
    flat = {path: x / 20 if path.endswith("/bias") else x for path, x in flat.items()}
    return Bundle(case.model, trees.unflatten(flat), case.config, tokenizer)


def with_text(case, tokenizer) -> Bundle:
    config = dataclasses.replace(case.config, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id)
    return bundle(dataclasses.replace(case, config=config), tokenizer)


def one_by_one(m: Bundle, row: list[int], n: int) -> list[int]:
    """Greedy decoding as it is defined: all that was read and written again for each token."""
    length = m.config.max_length or 96
    # Padded on the right to one length, so that one program is compiled.
    padded = lambda row: np.asarray([row + [0] * (length - len(row))])
    real = lambda row: np.arange(length)[None] < len(row)
    beside = registry.is_encoder_decoder(m.config)
    source, row = {"source_BS": padded(row), "valid_BS": real(row)}, [m.config.decoder_start_id] if beside else row
    for _ in range(n):
        given = {"tokens_BT": padded(row), "valid_BT": real(row)}
        if beside:
            given = source | {"target_BT": padded(row), "target_valid_BT": real(row)}
        row = [*row, int(families.apply(m.model, m.params, **given).logits[0, len(row) - 1].argmax())]
    return row[-n:]


def test_greedy_is_the_plain_loop(case):
    """Rows of unequal lengths, padded inside, in float64: each as alone, and as without cache and padding."""
    with jax.enable_x64(True):
        m = bundle(case.wide(), scale=0.5)
        prompts = [case.tokens(1, length, seed=length)[0].tolist() for length in (1, 7, 8, 13)]
        together = generate(m, prompts, max_new_tokens=10)
        assert together.shape == (4, 10) and together.dtype == np.int32
        for row, new in zip(prompts, together):
            assert one_by_one(m, row, 10) == new.tolist()
            assert (generate(m, [row], max_new_tokens=10)[0] == new).all()
        assert len({tuple(new) for new in together.tolist()}) > 2  # or there was nothing to confuse


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


def test_a_row_is_its_own(case):
    """A sample depends on prompt, place and seed, and not on the other rows."""
    m, sampling = bundle(case), Sample(temperature=1.5)
    rows = case.tokens(4, 6).tolist()
    kwargs = {"max_new_tokens": 12, "sampling": sampling}
    samples = generate(m, rows, seed=3, **kwargs)
    assert (generate(m, rows, seed=3, **kwargs) == samples).all()
    assert (generate(m, [rows[0], [5], [6, 7], [8] * 9], seed=3, **kwargs)[0] == samples[0]).all()
    assert (generate(m, [rows[0]], seed=3, **kwargs)[0] == samples[0]).all()
    assert (generate(m, rows, seed=4, **kwargs) != samples).any()
    same = generate(m, [rows[0]] * 4, seed=3, **kwargs)
    assert (same[0] != same[1]).any()  # equal prompts are still sampled apart


def test_samples_follow_the_distribution(case):
    m = bundle(case, scale=0.05)
    row = case.tokens(1, 4)[0]
    start = getattr(case.config, "decoder_start_id", None)
    given = (row[None],) if start is None else (row[None], np.array([[start]], np.int32))
    logits = np.asarray(families.apply(m.model, m.params, *given).logits[0, -1], np.float64)
    expected = by_definition(logits, 0.5, 9, None)
    new = generate(m, [row] * 4000, max_new_tokens=1, sampling=Sample(temperature=0.5, top_k=9))[:, 0]
    seen = np.bincount(new, minlength=len(expected)) / 4000
    assert np.abs(seen - expected).max() < 5 * np.sqrt(expected.max() / 4000)
    assert ((seen > 0) == (expected > 0)).all()


def test_a_prompt_up_to_the_last_position(case):
    m = bundle(case)
    beside = registry.is_encoder_decoder(case.config)  # which has as many for each side
    row = case.tokens(1, 96 if beside else 92)[0].tolist()
    assert generate(m, [row], max_new_tokens=4)[0].tolist() == one_by_one(m, row, 4)
    if case.config.max_length is None:
        assert generate(m, [row * 2], max_new_tokens=4).shape == (1, 4)
        return
    for length, new in ((97, 4), (1, 97)) if beside else ((92, 5),):
        words = f"{length} tokens and max_new_tokens is {new}, and the model has 96 positions"
        with pytest.raises(ValueError, match=words):
            generate(m, [[1] * length], max_new_tokens=new)


def test_stop_tokens(case):
    """A row that has ended repeats what ended it, and the others go on."""
    m, sampling = bundle(case), Sample(temperature=1.5)
    rows = case.tokens(4, 6).tolist()
    free = generate(m, rows, max_new_tokens=16, sampling=sampling)
    stop = int(next(token for token in free[0] if token not in free[1:]))
    end = free[0].tolist().index(stop)
    stopped = generate(m, rows, max_new_tokens=16, sampling=sampling, stop=stop)
    assert (stopped[0, : end + 1] == free[0, : end + 1]).all() and (stopped[0, end:] == stop).all()
    assert (stopped[1:] == free[1:]).all()
    assert (generate(m, rows, max_new_tokens=16, sampling=sampling, stop=[stop, stop]) == stopped).all()
    with_eos = bundle(dataclasses.replace(case, config=dataclasses.replace(case.config, eos_id=stop)))
    assert (generate(with_eos, rows, max_new_tokens=16, sampling=sampling) == stopped).all()


def test_the_loop_ends_when_all_rows_have(case):
    """Every choice of tokens is counted on the host: after the last stop there is none."""
    counted = []

    @dataclasses.dataclass(frozen=True)
    class Counting(Greedy):
        def choose(self, keys_B, logits_BV):
            jax.debug.callback(lambda: counted.append(1))
            return super().choose(keys_B, logits_BV)

    m, rows = bundle(case), case.tokens(4, 5).tolist()
    first = generate(m, rows, max_new_tokens=16)
    stops = sorted({int(token) for token in (first[0, 0], first[1, 2], first[2, 1], first[3, 2])})
    answer = generate(m, rows, max_new_tokens=16, sampling=Counting(), stop=stops)
    jax.effects_barrier()
    last = max(min(row.tolist().index(stop) for stop in stops if stop in row) for row in first)
    assert len(counted) == last + 1
    assert np.isin(answer[:, -1], stops).all()


def test_lengths_share_programs(case):
    m, others = bundle(case), bundle(case, seed=1)
    generate(m, case.tokens(4, 3), max_new_tokens=5)
    programs = module._compiled_on_cpu._cache_size()
    for length, new in ((16, 16), (5, 1), (1, 7)):
        generate(m, case.tokens(4, length), max_new_tokens=new, seed=9)
        generate(others, case.tokens(4, length), max_new_tokens=new)
    assert module._compiled_on_cpu._cache_size() == programs
    generate(m, case.tokens(4, 17), max_new_tokens=1)
    assert module._compiled_on_cpu._cache_size() == programs + 1


def test_bfloat16(case):
    m = bundle(case.with_(dtype="bfloat16"))
    row = case.tokens(1, 6)[0].tolist()
    assert generate(m, [row], max_new_tokens=5)[0].tolist() == one_by_one(m, row, 5)
    shapes = jax.eval_shape(lambda: case.module.init_cache(case.config, 1, 8, m.model.compute.dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes.kv)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("axes", "batch", "sampling"),
    [({"tensor": 8}, 1, Greedy()), ({"data": 2, "fsdp": 2, "tensor": 2}, 4, Sample(temperature=1.5))],
    ids=str,
)
def test_on_a_mesh(case, axes, batch, sampling):
    """Divided parameters give the tokens of a single device, whether the mesh divides the batch or not."""
    m, rows = bundle(case), case.tokens(batch, 7)
    mesh = sharding.make_mesh(**axes)
    params = jax.device_put(m.params, sharding.param_shardings(registry.param_shapes(m.model), mesh))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    expected = generate(m, rows, max_new_tokens=9, sampling=sampling, seed=1)
    divided = dataclasses.replace(m, params=params)
    assert (generate(divided, rows, max_new_tokens=9, sampling=sampling, seed=1) == expected).all()


def test_params_are_views_on_a_cpu(case):
    """Layer by layer, and not a byte copied."""
    params = bundle(case).params
    apart = module._by_layer(params, jax.devices()[0])
    whole = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(params)}
    # An array is only seen in place where it is aligned, as those of real sizes are.
    large = [leaf for leaf in jax.tree.leaves(apart) if leaf.nbytes % 64 == 0]
    assert len(large) > 10
    for leaf in large:
        assert any(start <= leaf.unsafe_buffer_pointer() < start + size for start, size in whole.items())


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


def test_an_empty_prompt_starts_a_text(case, tokenizer):
    m = with_text(case, tokenizer)
    if registry.is_encoder_decoder(case.config):  # to it, this is a text of which there is but the end
        new = generate(m, [[tokenizer.eos_id]], max_new_tokens=6)[0]
        assert generate(m, "", max_new_tokens=6) == module.decode_text(tokenizer, new, [tokenizer.eos_id])
        return
    new = generate(m, [[tokenizer.bos_id]], max_new_tokens=6)[0]
    assert generate(m, "", max_new_tokens=6) == module.decode_text(tokenizer, new, [tokenizer.eos_id])
    tokenizer = dataclasses.make_dataclass("NoStart", [("bos_id", object, None)])()
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generate(dataclasses.replace(m, tokenizer=tokenizer), "", max_new_tokens=6)


def test_rows_that_stand_for_nothing(case, tokenizer):
    """A table may be longer than the tokenizer's, as T5's, and who has not learned that may choose of the rest."""
    config = dataclasses.replace(case.config, vocab_size=tokenizer.vocab_size + 200, eos_id=tokenizer.eos_id)
    m = bundle(dataclasses.replace(case, config=config), tokenizer)
    ids = tokenizer.encode("class", template=registry.is_encoder_decoder(config)).ids
    how = {"max_new_tokens": 8, "sampling": Sample(temperature=2.0)}
    new = generate(m, [ids], **how)[0].tolist()
    new = new[: new.index(tokenizer.eos_id)] if tokenizer.eos_id in new else new
    spelt = [token for token in new if token < tokenizer.vocab_size]
    assert 0 < len(spelt) < len(new)
    assert generate(m, "class", **how) == tokenizer.decode(spelt)


def test_stop_texts(case, tokenizer):
    m = with_text(case, tokenizer)
    answer = generate(m, "def", max_new_tokens=20, sampling=Sample(temperature=2.0))
    stop = answer[len(answer) // 2 :][:2]
    cut = generate(m, "def", max_new_tokens=20, sampling=Sample(temperature=2.0), stop=["never there", stop])
    assert cut == answer[: answer.index(stop)] and cut != answer


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
        ([[1.0, 2.0]], {}, "expected integers"),
        ([1, 2, 3], {}, "prompt 0 is not a row of token ids"),
        ("text", {}, "no tokenizer"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"stop": "\n"}, "texts end text prompts only"),
        ([[1]], {"stop": 90}, r"stop\[0, 0\] is 90, outside of the vocabulary"),
        (np.ones((1, 4), int), {"valid_BT": np.ones((1, 3), bool)}, "valid_BT has shape"),
        (np.ones((1, 4), int), {"valid_BT": np.zeros((1, 4), bool)}, "prompt 0 is empty"),
    ],
)
def test_bad_requests(case, prompts, change, message, monkeypatch):
    monkeypatch.setattr(module, "_run", None)  # nothing is computed
    with pytest.raises(ValueError, match=message):
        generate(bundle(case), prompts, **{"max_new_tokens": 1} | change)


def test_a_model_without_a_head(case, monkeypatch):
    with pytest.raises(ValueError, match="the task 'base' does not generate"):
        generate(bundle(dataclasses.replace(case, task="base")), [[1]], max_new_tokens=1)


def test_a_sampling_that_is_none(case):
    with pytest.raises(TypeError, match="Greedy"):
        generate(bundle(case), [[1]], max_new_tokens=1, sampling="greedy")


# ---- sampling


def by_definition(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """Which tokens can be sampled, and with which probability, a row at a time and in plain numpy."""
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
        filtered_of = jax.jit(Sample(temperature=temperature, top_k=top_k, top_p=top_p).filter)
        for scale in (0.01, 1, 30):
            logits = draw.standard_normal((6, 50)) * scale
            logits[1] = np.round(logits[1])  # ties
            logits[2] = 0.0
            logits[3, ::2] = -1e30  # as a model marks tokens that there are not
            logits = logits.astype(dtype)
            filtered = filtered_of(jnp.asarray(logits))
            shares = np.asarray(jax.nn.softmax(filtered, axis=-1))
            for row, share in zip(logits, shares):
                expected = by_definition(row.astype(np.float64), temperature, top_k, top_p)
                np.testing.assert_allclose(share, expected, atol=2e-6 if dtype == "float32" else 1e-12)


def test_equal_tokens_are_not_parted():
    logits = jnp.asarray([[2.0, 1.0, 1.0, 0.0]])
    assert np.isfinite(Sample(top_k=2).filter(logits)).tolist() == [[True, True, True, False]]
    assert np.isfinite(Sample(top_p=0.7).filter(logits)).tolist() == [[True, True, True, False]]
    assert np.isfinite(Sample(top_p=0.5).filter(logits)).tolist() == [[True, False, False, False]]
    assert Greedy().choose(None, jnp.asarray([[0.0, 1.0, 1.0]])).tolist() == [1]


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": float("inf")},
     {"top_k": 0}, {"top_k": 1.5}, {"top_p": 0.0}, {"top_p": 1.1}],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sample(**settings)


def test_samplings_are_values():
    assert hash(Sample(top_k=3)) == hash(Sample(top_k=3)) and Sample(top_k=3) == Sample(top_k=3) != Sample(top_k=4)
    assert hash(Greedy()) == hash(Greedy()) and Greedy() == Greedy()


def test_another_way_of_choosing_under_the_same_rules():
    rules = {"min_new_tokens": 2, "no_repeat_ngram_size": 3, "suppressed": (5,), "forced_first": 7}
    beam = Beam(num_beams=4, length_penalty=2.0, num_return_sequences=2, **rules)
    assert Greedy.from_strategy(beam) == Greedy(**rules)
    assert Sample.from_strategy(beam, temperature=0.5, suppressed=()) == Sample(
        temperature=0.5, **rules | {"suppressed": ()}
    )
    found = Beam.from_strategy(beam, num_beams=3, num_return_sequences=1)
    assert found == dataclasses.replace(beam, num_beams=3, num_return_sequences=1)
