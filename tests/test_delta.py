"""The gated delta rule and the short convolution, against loops over single tokens."""

import functools

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import difference

from transformer_zoo import registry, trees
from transformer_zoo.checkpoints import weight_map
from transformer_zoo.generation.beam import follow
from transformer_zoo.generation.generate import generate
from transformer_zoo.nn import delta
from transformer_zoo.nn.cache import Cache, State, Windowed
from transformer_zoo.pretrained import Bundle

EXACT = 1e-9
B, T, G, H, K, E, J = 3, 11, 2, 4, 3, 5, 4
gated_delta_rule = jax.jit(delta.gated_delta_rule, static_argnames="chunk")
short_convolution = jax.jit(delta.short_convolution)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def drawn(seed: int = 0, T: int = T) -> tuple[np.ndarray, ...]:
    """Queries, keys, values, logarithms of decays, betas and a state. One decay is so strong that nothing is left."""
    draw = np.random.default_rng(seed)
    q, k = (np.asarray(delta.normalized(draw.standard_normal((B, T, G, K)))) for _ in range(2))
    log_decay = -draw.exponential(0.5, (B, T, H))
    log_decay[:, T // 3] = -800.0
    v, state = draw.standard_normal((B, T, H, E)), draw.standard_normal((B, H, K, E))
    return q, k, v, log_decay, draw.uniform(size=(B, T, H)), state


def loop(q, k, v, log_decay, beta, state, valid=None, starts=None):
    """The rule as the module's docstring has it, in numpy, row by row and token by token."""
    y, state = np.zeros(v.shape), np.array(state)
    for b, t, h in np.ndindex(v.shape[:3]):
        if valid is not None and not valid[b, t]:
            continue
        if starts is not None and starts[b, t]:
            state[b, h] = 0
        q_K, k_K, S = q[b, t, h // (H // G)], k[b, t, h // (H // G)], state[b, h] * np.exp(log_decay[b, t, h])
        state[b, h] = S + beta[b, t, h] * np.outer(k_K, v[b, t, h] - k_K @ S)
        y[b, t, h] = q_K @ state[b, h]
    return y, state


def masks(T: int = T) -> dict[str, np.ndarray]:
    """Padding on the left, on the right, and none; and documents that start at the first token, at every token of a
    stretch, and nowhere."""
    t = np.arange(T)
    starts = np.stack([t == 5, (t > 2) & (t < 7), np.zeros(T, bool)])
    return {"valid": np.stack([t >= 3, t < T - 2, t >= 0]), "starts": starts}


@pytest.mark.parametrize("names", [(), ("valid",), ("starts",), ("valid", "starts")], ids="-".join)
def test_in_chunks_it_is_the_loop(names: tuple[str, ...]):
    """In chunks that the length is and is not a multiple of, that are longer than it, and of one token."""
    given = {name: masks()[name] for name in names}
    expected = loop(*drawn(), **given)
    for chunk in (1, 4, 64):
        found = gated_delta_rule(*drawn(), **{f"{name}_BT": jnp.array(x) for name, x in given.items()}, chunk=chunk)
        valid = given.get("valid", np.ones((B, T), bool))
        assert difference((found[0] * valid[..., None, None], found[1]), expected) < EXACT


def test_token_by_token_it_is_the_loop():
    arrays, given = drawn(), masks()
    *tokens, state = map(jnp.array, arrays)
    ys = []
    for t in range(T):
        now = {f"{name}_BT": jnp.array(x[:, t : t + 1]) for name, x in given.items()}
        y, state = gated_delta_rule(*(x[:, t : t + 1] for x in tokens), state, **now)
        ys.append(y * given["valid"][:, t, None, None, None])
    assert difference((jnp.concatenate(ys, axis=1), state), loop(*arrays, **given)) < EXACT


def test_gradients_are_those_of_single_steps():
    """Of all arguments, the initial state included, by what is read and by the final state; across documents and
    padding."""
    given = {f"{name}_BT": jnp.array(x) for name, x in masks().items()}
    towards = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), loop(*drawn()))

    def steps(*arguments):
        *tokens, state = arguments
        once = lambda state, now: delta.gated_delta_rule(*now[0], state, **now[1])[::-1]
        cut = lambda x: jnp.moveaxis(x[:, :, None], 1, 0)
        state, y = jax.lax.scan(once, state, jax.tree.map(cut, (tuple(tokens), given)))
        return jnp.moveaxis(y[:, :, 0], 0, 1), state

    def gradients(function):
        def total(*arguments):
            y, state = function(*arguments)
            return ((y * given["valid_BT"][..., None, None]) * towards[0]).sum() + (state * towards[1]).sum()

        return jax.jit(jax.grad(total, argnums=range(6)))(*drawn())

    expected = gradients(steps)
    for chunk in (4, 64):
        found = gradients(functools.partial(delta.gated_delta_rule, **given, chunk=chunk))
        assert all(np.abs(x).max() > 1e-3 for x in found)
        assert difference(found, expected) < EXACT


def test_packed_documents_are_as_alone():
    """Wherever the border lies inside a chunk; and no gradient crosses it."""
    *arrays, state = drawn()

    @jax.jit
    def after(border):
        later_BT = jnp.broadcast_to(jnp.arange(T) >= border, (B, T))
        function = lambda *arrays: delta.gated_delta_rule(
            *arrays, starts_BT=jnp.diff(later_BT, axis=1, prepend=False), chunk=4
        )[0] * later_BT[..., None, None]  # fmt: skip
        y, back = jax.vjp(function, *arrays)
        return y, back(y)

    for border in range(1, T):
        y, gradients = after(border)
        alone, _ = loop(*(x[:, border:] for x in arrays), np.zeros_like(state))
        assert difference(y[:, border:], jnp.array(alone)) < EXACT
        assert all(np.abs(x[:, :border]).max() < 1e-12 for x in gradients)  # of sums of decays, rounding is left
        assert np.abs(gradients[2][:, border:]).min() > 0


def test_a_row_in_parts_is_the_row():
    *tokens, state = map(jnp.array, drawn())
    expected, ys = loop(*drawn()), []
    for part in (slice(0, 5), slice(5, 6), slice(6, None)):
        y, state = gated_delta_rule(*(x[:, part] for x in tokens), state, chunk=4)
        ys.append(y)
    assert difference((jnp.concatenate(ys, axis=1), state), expected) < EXACT


def test_keys_that_are_all_the_same():
    """The system of equations has powers that grow beyond any number: its solution must not be a sum of them."""
    q, k, v, log_decay, beta, state = drawn(T=64)
    arrays = (q, np.broadcast_to(k[:, :1], k.shape), v, np.zeros_like(log_decay), np.ones_like(beta), state)
    assert difference(gated_delta_rule(*arrays), loop(*arrays)) < EXACT


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_memory_is_linear_in_length(backward: bool):
    """Of the compiled program: twice the tokens take twice the memory; and less than the states after all tokens, which
    the backward pass of single steps keeps, would take alone."""
    K = E = 64
    per_token = {"q": (1, K), "k": (1, K), "v": (1, E), "log_decay": (1,), "beta": (1,)}

    def used(T: int) -> int:
        arrays = [jax.ShapeDtypeStruct((1, T, *shape), jnp.float32) for shape in per_token.values()]
        total = lambda *arrays: delta.gated_delta_rule(*arrays)[0].sum()
        program = jax.jit(jax.grad(total, argnums=range(5)) if backward else total)
        return program.lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    one, two, four = (used(T) for T in (1024, 2048, 4096))
    assert abs((four - two) / (two - one) - 2) < 0.05
    assert 1024 * E * 4 < two - one < 1024 * K * E * 4


def test_what_is_kept_for_the_backward_pass_is_the_arguments():
    arrays = [jnp.array(x) for x in drawn()]
    _, back = jax.vjp(lambda *arrays: delta.gated_delta_rule(*arrays, chunk=4)[0], *arrays)
    kept = sum(x.size for x in jax.tree.leaves(back) if jnp.issubdtype(x.dtype, jnp.floating))
    repeated = B * T * (2 * H * K + H * E + 2 * H) + B * H * K * E
    assert kept <= repeated


def test_the_dtype_is_that_of_the_values_and_the_state_is_wide():
    arrays = [jnp.array(x, "float32" if i == 3 else "bfloat16") for i, x in enumerate(drawn())]
    for cut in (slice(None), slice(0, 1)):
        given = [x[:, cut] for x in arrays[:-1]]
        y, state = jax.eval_shape(delta.gated_delta_rule, *given, arrays[-1])
        assert (y.dtype, state.dtype) == (jnp.bfloat16, jnp.float32)


# ---- the convolution ------------------------------------------------------------------------------------------------


def convolved(x, kernel, last, valid=None, starts=None):
    """Row by row, by a list of the inputs that a token may see."""
    y, lasts = np.zeros(x.shape), np.zeros(last.shape)
    for b in range(len(x)):
        seen, inputs = list(last[b]), list(last[b])
        for t in range(x.shape[1]):
            if valid is not None and not valid[b, t]:
                continue
            if starts is not None and starts[b, t]:
                seen = [np.zeros_like(kernel[0])] * (J - 1)
            seen.append(x[b, t])
            inputs.append(x[b, t])
            y[b, t] = (np.array(seen[-J:]) * kernel).sum(0)
        lasts[b] = inputs[len(inputs) - J + 1 :]
    return y, lasts


@pytest.mark.parametrize("names", [(), ("valid",), ("starts",), ("valid", "starts")], ids="-".join)
@pytest.mark.parametrize("length", [1, 2, T])
def test_the_convolution_is_the_loop(names: tuple[str, ...], length: int):
    """Rows shorter and longer than the kernel, with padding in the middle too."""
    draw = np.random.default_rng(0)
    x, kernel, last = (draw.standard_normal((*shape, H, K)) for shape in ((B, length), (J,), (B, J - 1)))
    given = {name: mask[:, :length].copy() for name, mask in masks().items() if name in names}
    if "valid" in names:
        given["valid"][2, length // 2] = False
    y, now = short_convolution(x, kernel, last, **{f"{name}_BT": jnp.array(m) for name, m in given.items()})
    valid = given.get("valid", np.ones((B, length), bool))
    assert difference((y * valid[..., None, None], now), convolved(x, kernel, last, **given)) < EXACT
    if not names:
        y, _ = short_convolution(x, kernel)
        assert difference(y, jnp.array(convolved(x, kernel, np.zeros_like(last))[0])) < EXACT


def test_documents_start_where_their_number_changes():
    assert delta.starts(None) is None
    found = delta.starts(jnp.array([[1, 1, 2, 2, 1], [3, 4, 4, 0, 0]]))
    assert found.tolist() == [[False, False, True, False, True], [False, True, False, True, False]]


# ---- groups of layers -----------------------------------------------------------------------------------------------


def test_layers_of_a_group_have_their_own_places():
    """In the published tensors, and in the hidden states: with two groups of two layers."""
    case = families.main("qwen3_5").with_(num_layers=4, full_every=2).wide()
    params, tokens_BT = case.params(), case.tokens(2, 5)
    tensors = weight_map.dump(case.module, params, config=case.config, task=case.task)
    for layer in range(4):
        own = params["blocks"][f"layer_{layer % 2}"]
        kernel_DF = np.asarray(own["mlp_up"]["kernel"][layer // 2])
        np.testing.assert_array_equal(tensors[f"model.layers.{layer}.mlp.up_proj.weight"], kernel_DF.T)
        assert (f"model.layers.{layer}.self_attn.o_proj.weight" in tensors) == (layer % 2 == 1)
    assert len([name for name in tensors if name.endswith("linear_attn.A_log")]) == 2
    loaded = weight_map.load(
        case.module, registry.param_shapes(case.model), tensors, config=case.config, task=case.task,
        param_dtype="float64",
    )  # fmt: skip
    assert difference(loaded, params) == 0

    output, sown = families.apply(case.model, params, tokens_BT=tokens_BT, mutable=("intermediates",))
    (hidden_LBTD,) = trees.flatten(sown["intermediates"])["blocks/hidden_BTD"]
    first = case.with_(num_layers=2)
    halved = params | {"blocks": jax.tree.map(lambda x: x[:1], params["blocks"])}
    _, sown = families.apply(first.model, halved, tokens_BT=tokens_BT, mutable=("intermediates",))
    (expected,) = trees.flatten(sown["intermediates"])["blocks/hidden_BTD"]
    assert hidden_LBTD.shape == (4, 2, 5, 32) and difference(hidden_LBTD[:2], expected) < EXACT


def test_the_program_is_as_long_for_any_number_of_groups():
    def equations(groups: int) -> int:
        case = families.main("qwen3_5").with_(num_layers=2 * groups)
        run = lambda params: case.model.apply({"params": params}, np.zeros((1, 4), np.int32)).logits
        return len(list(families.equations(jax.make_jaxpr(run)(registry.param_shapes(case.model)).jaxpr)))

    assert equations(2) == equations(8)


def test_beams_take_their_parents_states():
    """And their rings, stacked and of a single layer; other keys and values stay, and what is seen of them is the
    parent's."""
    rows = np.arange(4.0)
    state = State(
        inputs=(np.broadcast_to(rows[:, None, None, None], (4, 2, 3, 3)),),
        matrices=np.broadcast_to(rows[:, None, None, None], (4, 2, 3, 5)),
    )
    slots, valid = np.ones((2, 2, 6, 3)), np.arange(24).reshape(4, 6) % 5 < 2
    whole = (state, Windowed(state.inputs))
    for kv in ((whole, slots), jax.tree.map(lambda x: np.stack([x, x + 10]), (whole, slots))):
        cache = follow(Cache(kv=kv, valid_BS=jnp.asarray(valid), length=jnp.arange(4)), jnp.array([[1, 1], [1, 0]]))
        for old, new in zip(jax.tree.leaves(kv[0]), jax.tree.leaves(cache.kv[0])):
            np.testing.assert_array_equal(new, np.take(old, [1, 1, 3, 2], axis=old.ndim - 4))
        assert cache.kv[1] is kv[1]
        np.testing.assert_array_equal(cache.valid_BS, valid[[1, 1, 3, 2]])


def test_a_state_cannot_be_rewound():
    """Speculative decoding is refused by name; more slots change no state."""
    case = families.main("qwen3_5")
    cache = case.module.init_cache(case.config, 2, 8)
    with pytest.raises(ValueError, match=r"keep a state of all tokens together.*decode without speculation"):
        cache.rewind(4)
    wider = cache.widen(12)
    assert jax.tree.map(jnp.shape, wider.kv[0]) == jax.tree.map(jnp.shape, cache.kv[0])
    assert [x.shape[-2] for x in wider.kv[1]] == [12, 12] and wider.valid_BS.shape == (2, 12)
    m = Bundle(case.model, case.params(), case.config)
    with pytest.raises(ValueError, match="decode without speculation"):
        generate(m, [[1, 2, 3]], max_new_tokens=4, draft="prompt-lookup")


def test_generated_token_by_token_it_is_the_whole_row():
    """Prompts of unequal length in chunks, layer by layer on a CPU: the most likely token of the row read anew."""
    case = families.main("qwen3_5").with_(num_layers=4, full_every=2).wide()
    params, prompts, new = case.params(scale=0.5), [[5, 6, 7, 8, 9], [3], [11, 12]], 6
    answers = generate(Bundle(case.model, params, case.config), prompts, max_new_tokens=new, prefill_chunk=2)
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, np.asarray(answers).tolist())]
    tokens_BT, valid_BT = np.zeros((3, 11), np.int32), np.zeros((3, 11), bool)
    for row, tokens in enumerate(rows):
        tokens_BT[row, : len(tokens)], valid_BT[row, : len(tokens)] = tokens, True
    logits = np.asarray(families.apply(case.model, params, tokens_BT=tokens_BT, valid_BT=valid_BT).logits)
    for row, prompt in enumerate(prompts):
        assert logits[row, len(prompt) - 1 : len(prompt) + new - 1].argmax(-1).tolist() == rows[row][len(prompt) :]
    assert len({tuple(answer) for answer in np.asarray(answers).tolist()}) == 3
