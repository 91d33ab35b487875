"""Files that torch itself wrote, in each of its formats, are read to the same bytes as torch reads them."""

import collections
import json
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import serialization

from transformer_zoo import trees
from transformer_zoo.checkpoints import safetensors, torch_bin
from transformer_zoo.pretrained import from_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
reference = pytest.importorskip("safetensors.torch")
import test_legacy as by_hand  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool, torch.complex64]  # fmt: skip


def state_dict() -> dict[str, Any]:
    torch.manual_seed(0)
    big = torch.randn(20, 30)
    tensors = {
        "plain": torch.randn(3, 4), "parameter": torch.nn.Parameter(torch.randn(5)), "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4), "transposed": torch.randn(4, 6).t(), "shared": big, "rows": big[3:7],
        "columns": big[:, 5:25:3], "permuted": torch.randn(2, 3, 4).permute(2, 0, 1), "last": big[-1, -1],
        "expanded": torch.arange(7).expand(3, 7), "position_ids": torch.arange(512).expand((1, -1)),
    }  # fmt: skip
    tensors |= {str(dtype): (torch.randn(2, 9) * 10).to(dtype) for dtype in DTYPES}
    state = collections.OrderedDict(tensors)
    state._metadata = collections.OrderedDict({"": {"version": 1}, "layer": {"version": 2}})
    return state


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_writes(tmp_path: Path, zipped: bool, protocol: int):
    state = state_dict()
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = torch_bin.read_folder(tmp_path)
    # The same tensors, by the format whose reader is checked elsewhere.
    reference.save_file({key: x.detach().contiguous().clone() for key, x in state.items()}, tmp_path / "x.safetensors")
    expected = safetensors.read_file(tmp_path / "x.safetensors")
    assert list(found) == list(state)
    for key in state:
        assert (found[key].dtype, found[key].shape) == (expected[key].dtype, expected[key].shape), key
        assert np.asarray(found[key]).tobytes() == np.asarray(expected[key]).tobytes(), key


def test_no_flipped_bit_of_a_header_shifts_the_numbers(tmp_path: Path):
    """In the files of torch, each member is followed by its checksum and sizes."""
    file, x = tmp_path / "pytorch_model.bin", torch.arange(40.0)
    torch.save({"a": x, "b": x[:3].clone()}, file)
    assert torch_bin.verify(file)
    refused = 0
    for changed in by_hand.flipped_headers(file.read_bytes()):
        file.write_bytes(changed)
        try:
            found = torch_bin.read_file(file)
        except ValueError:
            refused += 1
            continue
        assert np.array_equal(found["a"], x.numpy()) and np.array_equal(found["b"], x[:3].numpy())
    assert refused > 100


@pytest.mark.parametrize("container", by_hand.CONTAINERS)
def test_torch_reads_what_the_tests_write(tmp_path: Path, container: str):
    """So the files of the default tests, the oldest format among them, are valid for torch."""
    storages = [np.arange(100, dtype=np.float32), np.arange(30, dtype=np.int64)]
    parts = {"a": by_hand.Part(0, 3, (10, 2), (10, 4)), "b": by_hand.Part(1, 1, (7, 4), (1, 7)),
             "c": by_hand.Part(0, 42, (), ()), "d": by_hand.Part(0, 0, (100,), (1,))}  # fmt: skip
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(by_hand.bin_file(container, storages, parts))
    assert tarfile.is_tarfile(file) == (container == "tar")
    state = torch.load(file, weights_only=container != "tar")
    found = torch_bin.read_file(file)
    assert list(found) == list(state)
    for key, x in state.items():
        assert np.asarray(found[key]).tobytes() == x.numpy().tobytes() and found[key].shape == tuple(x.shape), key


@pytest.mark.parametrize("format", ["zip", "stream", "shards", "flax"])
def test_a_model_of_the_reference(tmp_path: Path, format: str):
    config = transformers.GPT2Config(vocab_size=90, n_positions=24, n_embd=16, n_layer=3, n_head=2)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    expected = from_pretrained(tmp_path)
    tensors = {key: np.array(x) for key, x in safetensors.read_folder(tmp_path).items()}
    (tmp_path / "model.safetensors").unlink()
    if format == "flax":
        content = serialization.msgpack_serialize(by_hand.as_flax(tensors))
        (tmp_path / "flax_model.msgpack").write_bytes(content)
    elif format == "shards":
        index = {}
        for i, key in enumerate(model.state_dict()):
            file = f"pytorch_model-{i + 1:05}-of-00099.bin"
            torch.save({key: model.state_dict()[key]}, tmp_path / file)
            index[key] = file
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=format == "zip")
    loaded = from_pretrained(tmp_path)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded.params, expected.params))
    assert trees.flatten(loaded.params).keys() == trees.flatten(expected.params).keys()
