"""LongT5: the visible tokens of a source in blocks, and the summaries."""

from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_zoo import registry, trees
from transformer_zoo.models import t5
from transformer_zoo.models.longt5 import around, in_blocks, summarised


def case_of(**changes: Any) -> families.Case:
    config = families.without_dropout(families.small("longt5", **changes))
    return families.Case(family="longt5", task="base", config=config)


def test_published_sizes():
    """As in T5 1.1, except for a tied output layer; with summaries, also an embedding, and a norm in each layer."""
    names = ("t5-v1_1-base", "long-t5-local-base", "long-t5-tglobal-base")
    count = {name: registry.presets()[name].params for name in names}
    table = 32128 * 768
    assert count["long-t5-local-base"] == count["t5-v1_1-base"] - table
    assert count["long-t5-tglobal-base"] == count["long-t5-local-base"] + 32 * 12 + 12 * 768


def test_blocks():
    x_BS = np.arange(1, 8)[None]
    assert jax.jit(in_blocks, static_argnums=1)(x_BS, 3).tolist() == [[1, 2, 3], [4, 5, 6], [7, 0, 0]]
    assert jax.jit(around, static_argnums=1)(x_BS, 3).tolist() == [
        [0, 0, 0, 1, 2, 3, 4, 5, 6],
        [1, 2, 3, 4, 5, 6, 7, 0, 0],
        [4, 5, 6, 7, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("documents", "summaries", "of"),
    [
        ([1] * 8, [0, 0, 0, 1, 1, 1, 1, 1], [1, 1]),  # those left over go with the last whole block
        ([1] * 6 + [0] * 3, [0, 0, 0, 1, 1, 1, -1, -1, -1], [1, 1, 0]),
        ([0] * 4 + [1] * 7, [-1] * 4 + [0, 0, 0, 1, 1, 1, 1], [1, 1, 0]),  # wherever the padding is
        ([1, 1], [-1, -1], [0]),  # there is no whole block
        ([4, 4, 4, 4, 2, 2, 7, 7, 7, 0], [0, 0, 0, 0, -1, -1, 1, 1, 1, -1], [4, 7, 0]),
    ],
    ids=str,
)
def test_what_is_summed_up(documents: list[int], summaries: list[int], of: list[int]):
    found, documents_BG = jax.jit(summarised, static_argnums=1)(np.array([documents]), 3)
    assert found[0].tolist() == summaries and documents_BG[0].tolist() == of


def test_a_wide_view_is_t5():
    """If every token sees every other and there are no summaries, LongT5 equals T5."""
    with jax.enable_x64(True):
        case = case_of(local_radius=30, encoder_attention="local").wide()
        fields = {name: value for name, value in vars(case.config).items() if hasattr(t5.Config, name)}
        plain = t5.Model(t5.Config(**fields), task="base", compute=case.compute)
        params, ids = case.params(), {"source_BS": case.tokens(2, 23), "target_BT": case.tokens(2, 5)}
        ids["valid_BS"] = np.arange(23) < np.array([[23], [14]])
        one, other = (families.apply(model, params, **ids) for model in (case.model, plain))
        assert families.difference(one.hidden_BTD, other.hidden_BTD) < 1e-12
        real = ids["valid_BS"]
        assert families.difference(one.encoded_BSD[real], other.encoded_BSD[real]) < 1e-12


@pytest.mark.parametrize("kind", ["local", "transient-global"])
def test_who_sees_whom(kind: str):
    """In one layer: the neighbours, and all summarised tokens through the summaries."""
    with jax.enable_x64(True):
        case = case_of(num_layers=1, encoder_attention=kind, local_radius=2, global_block_size=4).wide()
        params, source_BS = case.params(), case.tokens(1, 11)
        flat = trees.flatten(params)

        def encode(rows_SD: jax.Array) -> jax.Array:
            # A token of its own for every place, so that its row is its embedding.
            table = jnp.zeros_like(flat["token_embed/embedding"]).at[:11].set(rows_SD)
            changed = trees.unflatten(flat | {"token_embed/embedding": table})
            return case.model.apply({"params": changed}, np.arange(11)[None], method="encode")[0].sum(axis=-1)

        rows_SD = np.asarray(flat["token_embed/embedding"])[source_BS[0]]
        seen = np.abs(jax.jit(jax.jacrev(encode))(rows_SD)).sum(axis=-1) > 0
        near = np.abs(np.arange(11)[:, None] - np.arange(11)) <= 2
        np.testing.assert_array_equal(seen, near if kind == "local" else np.ones((11, 11), bool))


def test_memory_grows_with_the_length_and_not_with_its_square():
    case = case_of(encoder_attention="local")
    S = 331  # no other size is a multiple
    encode = lambda params, source_BS: case.model.apply({"params": params}, source_BS, method="encode")
    text = jax.jit(encode).lower(registry.param_shapes(case.model), np.zeros((1, S), np.int32)).as_text()
    assert f"{S}x" in text and f"{S}x{S}" not in text
