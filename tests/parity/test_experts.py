"""Mixtures of experts against the reference: its load-balancing loss, and its reading of our exports."""

from pathlib import Path

import families
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight  # noqa: E402
from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # noqa: E402

from parity import reference  # noqa: E402
from transformer_zoo import registry  # noqa: E402
from transformer_zoo.checkpoints import fp8, mxfp4, weight_map  # noqa: E402
from transformer_zoo.nn import experts  # noqa: E402
from transformer_zoo.pretrained import Bundle, save_pretrained  # noqa: E402

FAMILIES = [name for name in registry.families() if families.mixture(name) is not None]
KEYS = {name: registry.family(name).PUBLISHED.config["balance_weight"].name for name in FAMILIES}
# Those whose reference computes a loss: others train without one.
BALANCED = [name for name, key in KEYS.items() if key == "router_aux_loss_coef" and families.small(name).balance_weight]


@pytest.mark.parametrize("family", BALANCED)
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
        found = experts.measured(experts.routings_of(sown), valid_BT)["balance"] / case.config.balance_weight
    with reference.in_double(), torch.no_grad():
        inputs = {"input_ids": torch.tensor(tokens_BT).long(), "attention_mask": torch.tensor(valid_BT).long()}
        expected = theirs(**inputs, output_router_logits=True).aux_loss
    np.testing.assert_allclose(found, float(expected), rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_is_read(tmp_path: Path, family: str):
    """Experts that files hold apart, and the reference stacks."""
    case = families.mixture(family)
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


def test_fp8():
    """Blocks at ragged edges; every number of the format that is one."""
    draw, bytes_ = np.random.default_rng(0), torch.arange(7 * 36).to(torch.uint8).reshape(7, 36)
    numbers = bytes_.where((bytes_ & 127) != 127, 0).view(torch.float8_e4m3fn)
    scales = torch.tensor(draw.uniform(0.1, 3.0, (3, 8))).float()
    expected = _dequantize_fp8_weight(numbers, scales, [3, 5], torch.float32).numpy()
    ours = fp8.Tensor(numbers=numbers.view(torch.uint8).numpy().view(fp8.DTYPES[0]), scales=scales, block=(3, 5))
    np.testing.assert_array_equal(np.asarray(ours), expected)
