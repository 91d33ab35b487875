"""benchmarks/decode.py prints its table; beside the reference library where that is installed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import transformer_zoo as zoo
from transformer_zoo.models import gpt2

ROOT = Path(__file__).parent.parent
HAS_PEER = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("transformers") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("benchmark") / "model"
    config = gpt2.Config(vocab_size=130, max_length=32, width=32, num_layers=2, num_heads=4)
    zoo.save_pretrained(folder, zoo.from_config("gpt2", config))
    return str(folder)


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
    "peer", ["none", pytest.param("torch", marks=pytest.mark.skipif(not HAS_PEER, reason="torch"))]
)
def test_the_table(folder, peer):
    done = run("--model", folder, "--batch", "2", "--prompt", "5", "--new", "4", "--repeats", "2", "--peer", peer)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "2 x (5 + 4) tokens" in done.stdout and "jax" in done.stdout
    assert re.search(r"first call, which compiles, took \d+\.\d s", done.stdout)
    if peer == "torch":
        ratio = float(re.search(r"faster than the peer\W+(\d+\.\d+)", done.stdout)[1])
        assert ratio > 0
        assert "Of the peer's tokens 100% are ours." in done.stdout


def test_an_unknown_model():
    done = run("--model", "gtp2")
    assert done.returncode == 1 and "'gtp2' is no folder and no preset" in done.stderr
