"""Weights in MXFP4, as gpt-oss is published."""

import json
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import pytest

import transformer_zoo as zoo
from transformer_zoo import json_files
from transformer_zoo.checkpoints import mxfp4, safetensors


def packed(draw: np.random.Generator, *shape: int) -> dict[str, np.ndarray]:
    """Random blocks and scales of a tensor [..., O, I / 32]; the numbers are of ordinary size."""
    blocks = draw.integers(0, 256, (*shape, mxfp4.BLOCK_BYTES)).astype(np.uint8)
    return {"blocks": blocks, "scales": draw.integers(122, 128, shape).astype(np.uint8)}


def test_numbers():
    """Each value of the format, the lower half of a byte first, and scales at both ends (from the format's tables)."""
    blocks = np.zeros((3, 1, 16), np.uint8)
    blocks[:, 0, :8] = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]
    scales = np.array([[127], [129], [0]], np.uint8)
    x = np.asarray(mxfp4.Tensor(blocks=blocks, scales=scales))
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    expected = np.concatenate([values, -values, np.zeros(16)])
    assert x.shape == (32, 3) == mxfp4.Tensor(blocks=blocks, scales=scales).shape and x.dtype == np.float32
    np.testing.assert_array_equal(x, np.stack([expected, 4 * expected, expected * 2.0**-127], axis=1))


def test_a_folder_is_read_and_written_without_it(tmp_path: Path):
    """gpt-oss with experts in MXFP4: what they stand for is loaded, which one warning tells; the export has numbers."""
    config = families.without_dropout(families.small("gpt_oss", mlp_dim=64, num_layers=2))
    m = families.made("gpt_oss", config, task="causal-lm")
    zoo.save_pretrained(tmp_path / "whole", m)
    tensors: dict[str, Any] = dict(safetensors.read_folder(tmp_path / "whole"))
    draw, names = np.random.default_rng(0), [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]
    assert len(names) == 4
    for name in names:
        experts, inputs, outputs = tensors.pop(name).shape
        parts = packed(draw, experts, outputs, inputs // 32)
        tensors |= {f"{name}_{part}": x for part, x in parts.items()}
    (tmp_path / "packed").mkdir()
    settings = json_files.read(tmp_path / "whole" / "config.json")
    settings["quantization_config"] = {"quant_method": "mxfp4"}
    json_files.write(tmp_path / "packed" / "config.json", json.dumps(settings))
    safetensors.write_folder(tmp_path / "packed", tensors, max_shard_bytes=2**30)

    with pytest.warns(UserWarning, match=r"4 tensors are stored in four bits a number \(MXFP4\)") as told:
        found = zoo.from_pretrained(tmp_path / "packed")
    assert len([warning for warning in told if "MXFP4" in str(warning.message)]) == 1
    name = "model.layers.1.mlp.experts.gate_up_proj"
    right = np.asarray(mxfp4.Tensor(blocks=tensors[f"{name}_blocks"], scales=tensors[f"{name}_scales"]))
    experts = jax.device_get(found.params["blocks"]["experts"])
    np.testing.assert_array_equal(experts["gate"]["kernel"][1], right[..., ::2])
    np.testing.assert_array_equal(experts["up"]["kernel"][1], right[..., 1::2])

    zoo.save_pretrained(tmp_path / "again", found)
    written = safetensors.read_folder(tmp_path / "again")
    assert written.keys() == safetensors.read_folder(tmp_path / "whole").keys()
    np.testing.assert_array_equal(np.asarray(written[name]), right)
    assert "quantization_config" not in json_files.read(tmp_path / "again" / "config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w_scales": None}, "w_blocks and no w_scales"),
        ({"w": np.zeros(1)}, "w twice: as it is, and in MXFP4"),
        ({"w_scales": np.zeros((2, 4), np.uint8)}, r"w_blocks \[2, 3, 16\] and w_scales \[2, 4\] of uint8 do not go"),
        ({"w_scales": np.zeros((2, 3), np.int8)}, "of int8 do not go together"),
        ({"w_blocks": np.zeros((2, 3, 8), np.uint8)}, "do not go together: .* and 16 bytes for each"),
    ],
)
def test_parts_that_do_not_go_together(change: dict[str, Any], words: str):
    tensors = {"w_blocks": np.zeros((2, 3, 16), np.uint8), "w_scales": np.zeros((2, 3), np.uint8)} | change
    with pytest.raises(ValueError, match=f"somewhere.* {words}"):
        mxfp4.unpacked({name: x for name, x in tensors.items() if x is not None}, "somewhere")


def test_what_is_not_packed_stays():
    tensors = {"w_blocks": np.zeros((2, 3, 16), np.float32), "b": np.zeros(2)}
    assert mxfp4.unpacked(tensors, "somewhere") is tensors
