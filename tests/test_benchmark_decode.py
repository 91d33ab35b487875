"""benchmarks/decode.py prints its table, with the reference library where that is installed."""

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import families
import pytest
import tyro

import transformer_zoo as zoo
from transformer_zoo.models import gpt2, llama, t5

ROOT = Path(__file__).parent.parent


def needs(*packages: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not all(map(importlib.util.find_spec, packages)), reason=", ".join(packages))


TORCH = needs("torch", "transformers")
CTRANSLATE2 = needs("ctranslate2", "torch", "transformers")
LLAMA_CPP = needs("xllamacpp", "gguf")


CONFIGS = {
    "gpt2": gpt2.Config(vocab_size=130, max_length=32, width=32, num_layers=2, num_heads=4),
    "llama": llama.Config(
        vocab_size=130, max_length=32, width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48
    ),
    "t5": t5.Config(
        vocab_size=130, width=32, num_layers=2, num_decoder_layers=2, num_heads=4, head_dim=8, mlp_dim=48, tied=False
    ),
}


def folder(tmp_path: Path, family: str) -> str:
    zoo.save_pretrained(tmp_path / "model", families.made(family, CONFIGS[family]))
    return str(tmp_path / "model")


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module, whose peers end with the test."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the peers
    module, ends = importlib.import_module("decode"), []
    at_exit = SimpleNamespace(register=ends.append, unregister=lambda end: None)
    monkeypatch.setattr(module.peers, "atexit", at_exit)
    monkeypatch.setattr(module, "PAUSE", 0.0)  # between calls, for figures that nobody compares here
    yield module
    for end in ends:
        end()


@pytest.mark.parametrize(
    "family, beams, peer",
    [
        ("gpt2", 1, None),
        pytest.param("gpt2", 1, "torch", marks=TORCH),
        pytest.param("t5", 3, "torch", marks=TORCH),
        pytest.param("gpt2", 1, "ctranslate2", marks=CTRANSLATE2),
        pytest.param("t5", 3, "ctranslate2", marks=CTRANSLATE2),
        pytest.param("llama", 1, "llama.cpp", marks=LLAMA_CPP),
    ],
)
def test_the_table(decode, capfd, wide_terminal, tmp_path, family, beams, peer):
    size = ("--batch", "2", "--prompt", "5", "--new", "4", "--repeats", "2", "--beams", str(beams))
    arguments = ["--model", folder(tmp_path, family), *size, *(["--peer", peer] if peer else [])]
    decode.main(tyro.cli(decode.Settings, args=arguments))
    said, errors = capfd.readouterr()
    assert "Traceback" not in errors
    how = "greedy" if beams == 1 else f"{beams} beams"
    assert f"{how}, float32, 2 x (5 + 4) tokens" in said and "jax" in said
    assert re.search(r"memory is read at \d+\.\d GB/s .*:\s+a step takes at least \d+\.\d ms", said)
    assert re.search(r"first call, which compiles, took \d+\.\d s", said)
    if peer:
        ratio = float(re.search(rf"times faster than {peer}\W+(\d+\.\d+)", said)[1])
        assert ratio > 0
        assert f"100% of the tokens of {peer} equal ours." in said


def test_the_best_of_several_peers(decode):
    """Steps of 2 s, 1 s and 5 s, all of which are bound to take 0.5 s."""
    seconds = {"ours": (1.0, 2.0), "b": (3.0, 1.0), "c": (4.0, 5.0)}
    results = {name: decode.Result(first=[first], whole=[first + 2 * step]) for name, (first, step) in seconds.items()}
    table = decode.table(results, ["b", "c"], decode.Settings(new=3), bound=0.5)
    rows = {name: cells for name, *cells in zip(*(column.cells for column in table.columns))}
    assert [rows[name][-1] for name in seconds] == ["25%", "50%", "10%"]
    assert rows["times faster than b"][:3] == ["1.00", "3.00", "0.50"]
    assert rows["times faster than c"][:3] == ["2.80", "4.00", "2.50"]
    assert rows["times faster than the best peer"][:3] == ["1.00", "3.00", "0.50"]


def test_a_family_that_gguf_files_cannot_hold(decode, tmp_path):
    m = families.made("opt", families.main("opt").config)
    with pytest.raises(ValueError, match="GGUF files of opt are not written"):
        decode.write_gguf(tmp_path, m, decode.Settings())
    with pytest.raises(ValueError, match="no beam search"):
        decode.write_gguf(tmp_path, m, decode.Settings(beams=2))


def test_a_row_that_ends_early(decode):
    calls = {"ours": lambda new: (1.0, [[0] * new]), "theirs": lambda new: (1.0, [[0] * min(new, 3)])}
    with pytest.raises(SystemExit, match="a row of theirs lacks some of the 4 new tokens"):
        decode.measure(calls, decode.Settings(new=4), bandwidth=lambda: 1.0)


def test_an_unknown_model():
    command = [sys.executable, "benchmarks/decode.py", "--model", "gtp2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "'gtp2' is no folder and no preset" in done.stderr
