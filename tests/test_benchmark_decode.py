"""benchmarks/decode.py prints its table; beside the reference library where that is installed."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import transformer_zoo as zoo
from transformer_zoo.models import gpt2, t5

ROOT = Path(__file__).parent.parent
HAS_PEER = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("transformers") is not None
NEEDS_PEER = pytest.mark.skipif(not HAS_PEER, reason="torch")


CONFIGS = {
    "gpt2": gpt2.Config(vocab_size=130, max_length=32, width=32, num_layers=2, num_heads=4),
    "t5": t5.Config(
        vocab_size=130, width=32, num_layers=2, num_decoder_layers=2, num_heads=4, head_dim=8, mlp_dim=48, tied=False
    ),
}


def folder(tmp_path: Path, family: str) -> str:
    zoo.save_pretrained(tmp_path / "model", zoo.from_config(family, CONFIGS[family]))
    return str(tmp_path / "model")


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "benchmarks/decode.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "family, beams, peer",
    [
        ("gpt2", 1, None),
        pytest.param("gpt2", 1, "torch", marks=NEEDS_PEER),
        pytest.param("t5", 3, "torch", marks=NEEDS_PEER),
    ],
)
def test_the_table(tmp_path, family, beams, peer):
    size = ("--batch", "2", "--prompt", "5", "--new", "4", "--repeats", "2", "--beams", str(beams))
    done = run("--model", folder(tmp_path, family), *size, *(["--peer", peer] if peer else []))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    how = "greedy" if beams == 1 else f"{beams} beams"
    assert f"{how}, float32, 2 x (5 + 4) tokens" in done.stdout and "jax" in done.stdout
    assert re.search(r"first call, which compiles, took \d+\.\d s", done.stdout)
    if peer:
        ratio = float(re.search(rf"times faster than {peer}\W+(\d+\.\d+)", done.stdout)[1])
        assert ratio > 0
        assert f"100% of the tokens of {peer} equal ours." in done.stdout


def test_a_row_that_ends_early(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    decode = importlib.import_module("decode")
    calls = {"ours": lambda new: (1.0, [[0] * new]), "theirs": lambda new: (1.0, [[0] * min(new, 3)])}
    with pytest.raises(SystemExit, match="a row of theirs lacks some of the 4 new tokens"):
        decode.measure(calls, decode.Settings(new=4))


def test_an_unknown_model():
    done = run("--model", "gtp2")
    assert done.returncode == 1 and "'gtp2' is no folder and no preset" in done.stderr
