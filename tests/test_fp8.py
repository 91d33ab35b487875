"""Weights in FP8 with scales, as DeepSeek-V3 is published."""

import json
from pathlib import Path
from typing import Any

import families
import jax
import ml_dtypes
import numpy as np
import pytest

import transformer_zoo as zoo
from transformer_zoo import json_files
from transformer_zoo.checkpoints import fp8, safetensors

BLOCK = (5, 3)


def quantised(x: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers and scales of a matrix in blocks, by a loop over the blocks."""
    rows, columns = BLOCK
    scales = np.zeros((-(-x.shape[0] // rows), -(-x.shape[1] // columns)), np.float32)
    numbers = np.zeros(x.shape, ml_dtypes.float8_e4m3fn)
    for i, j in np.ndindex(scales.shape):
        block = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        scales[i, j] = np.abs(x[block]).max() / 448
        numbers[block] = (x[block] / scales[i, j]).astype(ml_dtypes.float8_e4m3fn)
    return {"": numbers, "_scale_inv": scales}


def dequantised(parts: dict[str, np.ndarray]) -> np.ndarray:
    """What they stand for, number by number."""
    numbers, scales = parts[""].astype(np.float32), parts["_scale_inv"]
    found = np.empty_like(numbers)
    for i, j in np.ndindex(numbers.shape):
        found[i, j] = numbers[i, j] * scales[i // BLOCK[0], j // BLOCK[1]]
    return found


def test_a_folder_is_read_and_written_without_it(tmp_path: Path):
    """DeepSeek-V3 as it is published: blocks at ragged edges; the router, norms and embeddings as they are; and a
    module that predicts a further token. One warning tells of either; the export has numbers alone."""
    m = families.made("deepseek_v3", families.without_dropout(families.small("deepseek_v3")), task="causal-lm")
    zoo.save_pretrained(tmp_path / "whole", m)
    whole = {name: np.asarray(x) for name, x in safetensors.read_folder(tmp_path / "whole").items()}
    tensors, right = dict(whole), dict(whole)
    for name, x in whole.items():
        if name.endswith("_proj.weight") or name.endswith("with_mqa.weight"):
            parts = quantised(x)
            right[name] = dequantised(parts)
            tensors |= {name + end: part for end, part in parts.items()}
    assert sum(x.shape[0] % BLOCK[0] > 0 and x.shape[1] % BLOCK[1] > 0 for x in whole.values() if x.ndim == 2) > 9
    further = f"model.layers.{m.config.num_layers}"
    tensors |= {f"{further}.{name}": np.ones((2, 2), np.float32) for name in ("eh_proj.weight", "mlp.up_proj.weight")}
    (tmp_path / "packed").mkdir()
    settings = json_files.read(tmp_path / "whole" / "config.json")
    settings["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": BLOCK}
    json_files.write(tmp_path / "packed" / "config.json", json.dumps(settings))
    safetensors.write_folder(tmp_path / "packed", tensors, max_shard_bytes=2**30)

    with pytest.warns(UserWarning) as told:
        found = zoo.from_pretrained(tmp_path / "packed", param_dtype="bfloat16")
    words = sorted(str(warning.message).removeprefix(str(tmp_path / "packed")) for warning in told)
    assert len(words) == 2 and words[0] == " holds a layer that predicts a further token, which is not read"
    assert "tensors are stored in eight bits a number (FP8)" in words[1]
    bias = jax.device_get(found.params["blocks"]["experts"]["correction"]["bias"])
    np.testing.assert_array_equal(bias[0], whole["model.layers.1.mlp.gate.e_score_correction_bias"])
    assert bias.dtype == np.float32 and (bias.astype(ml_dtypes.bfloat16) != bias).any()

    with pytest.warns(UserWarning):
        zoo.save_pretrained(tmp_path / "again", zoo.from_pretrained(tmp_path / "packed"))
    written = safetensors.read_folder(tmp_path / "again")
    assert written.keys() == whole.keys()
    for name, x in written.items():
        np.testing.assert_array_equal(np.asarray(x), right[name], err_msg=name)
    assert "quantization_config" not in json_files.read(tmp_path / "again" / "config.json")


def test_one_scale_for_all_numbers(tmp_path: Path):
    """As in Ministral 3's, with a scale of the activations, which are not rounded here."""
    numbers = np.arange(6).reshape(2, 3).astype(ml_dtypes.float8_e4m3fn)
    json_files.write(tmp_path / "config.json", json.dumps({"quantization_config": {"weight_block_size": None}}))
    tensors = {"a.weight": numbers, "a.weight_scale_inv": np.array(0.5, ml_dtypes.bfloat16), "b.weight": np.ones(2)}
    with pytest.warns(UserWarning, match="1 tensors are stored in eight bits"):
        found = fp8.unpacked(tensors | {"a.activation_scale": np.ones(())}, tmp_path)
    assert found.keys() == {"a.weight", "b.weight"} and found["b.weight"] is tensors["b.weight"]
    assert found["a.weight"].shape == (2, 3) and found["a.weight"].dtype == np.float32
    np.testing.assert_array_equal(np.asarray(found["a.weight"]), np.arange(6).reshape(2, 3) / 2)


@pytest.mark.parametrize(
    ("change", "block", "words"),
    [
        ({"v": np.zeros((2, 2), ml_dtypes.float8_e4m3fn)}, [2, 2], "v of float8_e4m3fn and no v_scale_inv"),
        ({}, None, r"no weight_block_size, and so one scale is expected"),
        ({}, [2, 3], r"w \[3, 6\] and w_scale_inv \[2, 3\] of float32 do not go .* 2 x 3, \[2, 2\] are expected"),
        ({"w_scale_inv": np.zeros((2, 3), np.int8)}, [2, 2], "of int8: scales of floating point are expected"),
        ({}, [2], r"weight_block_size is \[2\] .*: rows and columns"),
        ({}, [2, 0], r"weight_block_size is \[2, 0\] .*: rows and columns"),
        ({}, "no", "weight_block_size"),
    ],
)
def test_parts_that_do_not_go_together(tmp_path: Path, change: dict[str, Any], block: Any, words: str):
    tensors = {"w": np.zeros((3, 6), ml_dtypes.float8_e4m3fn), "w_scale_inv": np.zeros((2, 3), np.float32)}
    json_files.write(tmp_path / "config.json", json.dumps({"quantization_config": {"weight_block_size": block}}))
    with pytest.raises(ValueError, match=words):
        fp8.unpacked(tensors | change, tmp_path)


def test_what_has_no_scales_stays(tmp_path: Path):
    tensors = {"w": np.zeros((2, 2), ml_dtypes.float8_e4m3fn), "b": np.zeros(2)}
    assert fp8.unpacked(tensors, tmp_path) is tensors
