"""DeBERTa as it is published, and details of its attention that few random configurations cover."""

import json
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.deberta_v2 import modeling_deberta_v2  # noqa: E402

from parity import reference  # noqa: E402
from parity.test_models import EXACT, T, compare  # noqa: E402
from transformer_zoo import registry  # noqa: E402
from transformer_zoo.checkpoints import safetensors, weight_map  # noqa: E402
from transformer_zoo.nn import disentangled  # noqa: E402
from transformer_zoo.pretrained import from_pretrained, save_pretrained  # noqa: E402

BOTH = {"position_terms": "c2p|p2c"}
V3 = BOTH | {"absolute_positions": False, "share_projections": True, "position_buckets": 4, "relative_norm": True,
             "max_distance": None, "conv_size": 0, "embed_width": None}  # fmt: skip
CONFIGURATIONS = {
    "v1 as published": ("deberta", BOTH | {"absolute_positions": False, "max_distance": None, "embed_width": None}),
    "v1, rows longer than its distances": ("deberta", BOTH | {"max_distance": 3, "embed_width": 16}),
    "v1, talking heads": ("deberta", BOTH | {"talking_heads": True, "num_segments": 0}),
    "v1, a table for nothing": ("deberta", {"position_terms": ""}),
    "v3 as published": ("deberta_v2", V3),
    "v2 as published, with its convolution": ("deberta_v2", V3 | {"conv_size": 3, "conv_activation": "gelu"}),
    "v2, a wide convolution of segments": ("deberta_v2", V3 | {"conv_size": 5, "num_segments": 3, "embed_width": 16}),
    "v2, positions projected apart": ("deberta_v2", V3 | {"share_projections": False, "relative_norm": False}),
    "v2, buckets that rows do not fill": ("deberta_v2", V3 | {"position_buckets": 32, "max_distance": 40}),
    "v2, no buckets": ("deberta_v2", V3 | {"position_buckets": None, "max_distance": 5, "position_terms": "p2c"}),
    "v2, a table for nothing": ("deberta_v2", V3 | {"position_terms": ""}),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations(name: str):
    """Logits, hidden states and gradients, with padding on either side."""
    family, changes = CONFIGURATIONS[name]
    config = families.without_dropout(families.small(family, num_layers=2, **changes))
    with jax.enable_x64(True):
        case = families.Case(family=family, task="masked-lm", config=config).wide()
        theirs = reference.build(case, seed=0)
        params = weight_map.load(
            case.module, registry.param_shapes(case.model), reference.tensors(theirs),
            config=config, task=case.task, param_dtype="float64",
        )  # fmt: skip
        for mode in ("right", "left"):
            differences = compare(case, params, theirs, families.rows(case, 3, T), mode)
            assert max(differences.values()) <= EXACT, (mode, differences)


@pytest.mark.parametrize(("count", "most"), [(256, 512), (32, 512), (64, 100), (7, 20), (8, 9), (2, 24), (512, 1024)])
def test_buckets(count: int, most: int):
    """For every distance: the last digit of float32 can decide between two buckets."""
    distances = np.arange(-3 * most, 3 * most + 1)
    theirs = modeling_deberta_v2.make_log_bucket_position(torch.as_tensor(distances), count, most).long() + count
    ours = disentangled.table_rows(distances, 2 * count, most)
    np.testing.assert_array_equal(ours, theirs.clamp(0, 2 * count - 1))


PUBLISHED = {
    "deberta": {"model_type": "deberta", "max_relative_positions": -1, "position_biased_input": False,
                "pos_att_type": "c2p|p2c", "padding_idx": 0},
    "deberta_v2": {"model_type": "deberta-v2", "max_relative_positions": -1, "position_biased_input": False,
                   "pos_att_type": "p2c|c2p", "position_buckets": 8, "norm_rel_ebd": "layer_norm",
                   "share_att_key": True},
}  # fmt: skip
SIZES = {
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 16,
    "initializer_range": 0.02, "intermediate_size": 40, "max_position_embeddings": 24, "relative_attention": True,
    "num_attention_heads": 2, "num_hidden_layers": 2, "type_vocab_size": 0, "vocab_size": 90,
    "pooler_dropout": 0, "pooler_hidden_act": "gelu", "pooler_hidden_size": 16, "layer_norm_eps": 1e-7,
}  # fmt: skip


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_folder_as_published(tmp_path: Path, family: str):
    """No architectures, the language model's head under its first name, and tensors that the reference ignores:
    positions of the pretraining decoder, and the head that detects replaced tokens."""
    settings: dict[str, Any] = PUBLISHED[family] | SIZES
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**settings, legacy=False)
    prefix = registry.family(family).PUBLISHED.class_prefix
    model = getattr(transformers, f"{prefix}ForMaskedLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    tensors = {name: x.numpy() for name, x in model.state_dict().items()}
    assert any(name.startswith("lm_predictions.lm_head.") for name in tensors)
    assert not any(name.startswith("cls.") for name in tensors)
    extra = {"deberta.embeddings.position_embeddings.weight": np.zeros((24, 16), np.float32)}
    if family == "deberta_v2":
        extra |= {f"mask_predictions.{name}.weight": np.zeros(16, np.float32) for name in ("LayerNorm", "classifier")}
    safetensors.write_folder(tmp_path, tensors | extra)
    (tmp_path / "config.json").write_text(json.dumps(settings))

    with pytest.raises(ValueError, match="names no architectures: give the task"):
        from_pretrained(tmp_path)
    bundle = from_pretrained(tmp_path, task="masked-lm")
    tokens = np.random.default_rng(0).integers(1, 90, (2, 30))  # more than max_position_embeddings: nothing forbids it
    with torch.no_grad():
        theirs = model(torch.as_tensor(tokens)).logits.numpy()
    ours = families.apply(bundle.model, bundle.params, tokens).logits
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
    with pytest.warns(UserWarning, match="has no head/dense/bias, head/dense/kernel, head/scores/bias, head/scores/ke"):
        judge = from_pretrained(tmp_path, task="sequence-classification", labels=3)
    assert len(judge.fresh) == 4

    save_pretrained(tmp_path / "ours", bundle)
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        np.testing.assert_allclose(again.eval()(torch.as_tensor(tokens)).logits, theirs, rtol=1e-5, atol=1e-6)
