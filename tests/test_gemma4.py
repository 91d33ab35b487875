"""Gemma 4: layers that reuse the keys and values of others, and experts beside the MLP."""

import families
import jax
import numpy as np
import pytest

from transformer_zoo import lora, quantization, registry, sharding, trees
from transformer_zoo.checkpoints import weight_map
from transformer_zoo.config import Lora
from transformer_zoo.nn import cache as caches

CASE = families.mixture("gemma4").with_(num_layers=5, num_reusing_layers=3, global_every=2)


def test_the_cache_has_no_slots_of_layers_that_reuse_others():
    cache = CASE.module.init_cache(CASE.config, 2, 7)
    sizes = [(x.shape[0], x.shape[-1]) for x in jax.tree.leaves(cache.kv)]
    assert sizes == [(1, CASE.config.local_head_dim)] * 2 + [(1, CASE.config.head_dim)] * 2


def test_layers_with_a_window_keep_only_that(monkeypatch: pytest.MonkeyPatch):
    """Unless others reuse their keys and values: in parts of more tokens than spare slots, and of one."""
    monkeypatch.setattr(caches, "SPARE", 1)
    assert CASE.module.init_cache(CASE.config, 2, 12).ring is None
    with jax.enable_x64(True):
        case = CASE.with_(num_layers=2, num_reusing_layers=0).wide()
        params, tokens_BT = case.params(), case.tokens(2, 12)
        expected = families.outputs(families.apply(case.model, params, tokens_BT=tokens_BT))
        cache = case.module.init_cache(case.config, 2, 12, np.float64)
        assert [x.shape[3] for x in jax.tree.leaves(cache.kv)] == [case.config.window + 1] * 2 + [12] * 2
        for part in (slice(6), *(slice(i, i + 1) for i in range(6, 12))):
            out = families.apply(case.model, params, tokens_BT=tokens_BT[:, part], cache=cache)
            assert families.difference(families.outputs(out), expected[:, part]) < 1e-12
            cache = out.cache


def test_published_files_hold_keys_and_values_that_nothing_reads():
    """Of the layers that reuse others, and of no others."""
    params = families.random_params(CASE.model)
    arguments = {"config": CASE.config, "task": CASE.task}
    tensors = {name: np.asarray(x) for name, x in weight_map.dump(CASE.module, params, **arguments).items()}
    names = [f"model.layers.{i}.self_attn.{name}.weight" for i in (2, 3, 4) for name in ("k_proj", "v_proj", "k_norm")]
    assert not tensors.keys() & {*names}
    load = lambda more: weight_map.load(
        CASE.module, params, tensors | dict.fromkeys(more, np.ones((3, 3))), **arguments, param_dtype="float32"
    )
    jax.tree.map(np.testing.assert_array_equal, load(names), trees.unflatten(trees.flatten(params)))
    with pytest.raises(ValueError, match="unexpected:  model.layers.5.self_attn.k_proj.weight"):
        load(["model.layers.5.self_attn.k_proj.weight"])


def test_experts_are_matrices_and_their_router_is_none():
    """What is quantised, what has an adapter, and how a mesh divides it."""
    ours, mesh = "blocks/layer_0/experts", sharding.make_mesh(expert=4, tensor=2)
    found = {path for path in quantization.matrices(CASE.model) if path.startswith(ours)}
    assert found == {f"{ours}/{name}/kernel" for name in ("gate", "up", "down")}
    (adapted,) = lora.adapted(CASE.model, Lora(rank=2, targets=(rf"{ours}/router",))).adapters
    assert adapted == f"{ours}/router"
    divided = trees.flatten(sharding.param_shardings(registry.param_shapes(CASE.model), mesh))
    assert tuple(divided[f"{ours}/up/kernel"].spec) == (None, "expert", None, "tensor")
    assert divided[f"{ours}/scale"].is_fully_replicated and divided[f"{ours}/router/kernel"].is_fully_replicated


def test_layers_reuse_the_last_keys_and_values_of_their_kind():
    """They change a layer that adds nothing to the residual stream itself: of two layers of a kind, the last one."""
    case = families.main("gemma4").with_(num_layers=4, num_reusing_layers=2, global_every=1, values_are_keys=False)
    params = trees.flatten(jax.tree.map(np.array, case.params()))
    params["blocks/layer_0/attention/out/kernel"][:] = 0
    tokens_BT = case.tokens(1, 6)
    read = lambda: np.asarray(
        families.outputs(families.apply(case.model, trees.unflatten(params), tokens_BT=tokens_BT))
    )
    before = read()
    for layer in (0, 1):
        params["blocks/layer_0/attention/value/kernel"][layer] *= -2
        assert (read() != before).any() == (layer == 1)
