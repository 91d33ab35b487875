"""Mixtures of experts against the reference: its load-balancing loss, and its reading of our exports."""

from pathlib import Path

import families
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # noqa: E402

from parity import reference  # noqa: E402
from transformer_zoo import registry  # noqa: E402
from transformer_zoo.checkpoints import mxfp4, weight_map  # noqa: E402
from transformer_zoo.nn import experts  # noqa: E402
from transformer_zoo.pretrained import Bundle, save_pretrained  # noqa: E402

FAMILIES = [name for name in registry.families() if hasattr(families.small(name), "num_experts")]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_load_balancing_loss(family: str):
    """With padding, which both leave out."""
    with jax.enable_x64(True):
        case = families.main(family).wide()
        theirs = reference.build(case, 0)
        params = weight_map.load(
            case.module, registry.param_shapes(case.model), reference.tensors(theirs),
            config=case.config, task=case.task, param_dtype="float64",
        )  # fmt: skip
        tokens_BT, valid_BT = case.tokens(3, 8), np.arange(8) < np.array([[8], [5], [3]])
        _, sown = families.apply(case.model, params, tokens_BT, valid_BT, mutable=experts.ROUTING)
        found = experts.routing_of(sown).measure(valid_BT)["balance"] / case.config.balance_weight
    with reference.in_double(), torch.no_grad():
        inputs = {"input_ids": torch.tensor(tokens_BT).long(), "attention_mask": torch.tensor(valid_BT).long()}
        expected = theirs(**inputs, output_router_logits=True).aux_loss
    np.testing.assert_allclose(found, float(expected), rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_is_read(tmp_path: Path, family: str):
    """Experts that files hold apart, and the reference stacks."""
    case = families.main(family)
    params = families.random_params(case.model)
    save_pretrained(tmp_path, Bundle(case.model, params, case.config, None))
    theirs, notes = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values()), notes
    tokens_BT = case.tokens(2, 8)
    ours = families.apply(case.model, params, tokens_BT).logits
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens_BT).long()).logits.numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-4 * np.abs(expected).max())


def test_mxfp4():
    """Every byte, with scales of ordinary size: the reference computes in bfloat16, in which the results are exact."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (3, 8, 4, 16)).astype(np.uint8)
    scales = draw.integers(90, 150, (3, 8, 4)).astype(np.uint8)
    expected = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales)).float().numpy()
    np.testing.assert_array_equal(np.asarray(mxfp4.Tensor(blocks=blocks, scales=scales)), expected)
