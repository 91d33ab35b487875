"""benchmarks/accelerator.py: tiny models on a CPU, failures of a side, and the FLOPs by hand."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import QUICKLY

from transformer_zoo.models import bert, gpt2, modernbert, t5
from transformer_zoo.nn import Compute

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import accelerator  # noqa: E402
import cases  # noqa: E402
import peak  # noqa: E402
import programs  # noqa: E402

ABSENT = ("grain", "tyro", "tensorflow_datasets", "rouge_score", "torch")
"""What a machine with an accelerator may lack; the last is what the peer needs."""
BLOCKER = f"""
import gc
import sys

gc.disable()  # as conftest.py does

class Blocker:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


# ---- the whole script ---------------------------------------------------------------------------------------------


def program(case):
    """What the script runs for a case: the same for all models with an objective."""
    if case.kind != "train":
        return case.kind
    made = programs.Train(programs.config_of(case), length=8, target=case.target, dtype="float32")
    return type(made._objective(case.ours[0])), case.masked


EXEMPLARS = [case.name for case in {program(case): case for case in reversed(cases.CASES)}.values()][::-1]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of `--small` for a case of each program, with only the required packages."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    written = ("--output", str(folder / "report.json"), "--minutes", "25")  # under a minute of two idle cores
    done = subprocess.run(
        [sys.executable, "benchmarks/accelerator.py", "--small", "--cases", *EXEMPLARS, *written],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "XLA_FLAGS": QUICKLY},
        capture_output=True,
        text=True,
        timeout=1600,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert all(name in done.stdout for name in EXEMPLARS)
    return json.loads((folder / "report.json").read_text())


def test_every_program_has_figures(report):
    assert {row["case"] for row in report["rows"]} == {*EXEMPLARS} and len(report["rows"]) == 7
    assert all("error" not in row for row in report["rows"]), report["rows"]
    attention, *others = report["rows"]
    for row in attention["differences"]:
        assert 0 < row["forward"] < 0.02 and 0 < row["gradients"] < 0.02, row
    for row in others:
        best = row["transformer_zoo"]
        assert all(0 < seconds < math.inf for seconds in best["seconds"])
        assert best["tokens_per_second"] > 0 and best["compiling"] > 0 and best["memory"] > 0


def test_shares_are_of_what_was_measured(report):
    assert report["peak"]["table"] is None and report["bandwidth"]["table"] is None  # of a CPU
    for row in report["rows"][1:]:
        best = row["transformer_zoo"]
        done, limit = (best["bytes"], "bandwidth") if row["kind"] == "decode" else (best["flops"], "peak")
        seconds = sorted(best["seconds"])[len(best["seconds"]) // 2]
        assert best["share"]["measured"] == pytest.approx(done / seconds / report[limit]["measured"])
        assert best["share"]["table"] is None


def test_an_absent_peer_is_a_reason(report):
    for row in report["rows"][1:]:
        assert "No module named 'torch'" in row["transformers"]["error"] and "times" not in row


def test_small_cases_are_the_same_ones():
    for case in cases.CASES:
        tiny = cases.small(case)
        assert tiny.tiny and (tiny.name, tiny.model, tiny.masked) == (case.name, case.model, case.masked)
        assert case.kind == "attention" or (tiny.ours and tiny.theirs and max(s.batch for s in tiny.ours) <= 4)
        if case.kind == "train":
            work = programs.Worker().begin(tiny)
            assert 0 < work["flops"] <= work["dense_flops"] and work["tokens"] == tiny.length + tiny.target


# ---- what goes wrong ----------------------------------------------------------------------------------------------

FAULTY = """
import os
import time

import peers


class Worker:
    def device(self, small):
        return {"platform": os.environ["PLATFORM"], "kind": "none", "product": 1e9, "copy": 1e9}

    def begin(self, case, config=None):
        return {"tokens": 10, "flops": 100.0, "dense_flops": 200.0, "config": {}}

    def prepare(self, setting):
        if setting.batch == 13:
            os._exit(3)
        if setting.batch == 14:
            time.sleep(100)
        if setting.batch == 15:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")
        time.sleep(0.2)
        return {"compiling": 1.0, "memory": os.getpid()}

    def time(self, setting, seconds):
        return {"seconds": [2.0, 1.0, 3.0]}


def serve(pipe):
    pipe.send(None)
    peers.reply(pipe, Worker())
"""


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measures cases whose settings have these batches, on our side only or on both."""
    (tmp_path / "faulty.py").write_text(textwrap.dedent(FAULTY))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("PLATFORM", "cpu")
    sys.modules.pop("faulty", None)
    import faulty

    monkeypatch.setattr(accelerator, "serve_ours", faulty.serve)
    monkeypatch.setattr(accelerator, "serve_theirs", faulty.serve)

    def run(*batches, seconds=60.0, theirs=None, alone=False):
        made = [
            cases.Case(
                name=f"case {i}", kind="train", length=10, alone=alone,
                ours=tuple(cases.Setting(batch=batch) for batch in some),
                theirs=tuple(cases.PeerSetting(batch=batch) for batch in theirs or ()),
            )
            for i, some in enumerate(batches)
        ]  # fmt: skip
        saved = []
        save = lambda report: saved.append(len(report["rows"]))
        report = accelerator.measure(made, seconds, save, quick=True, peer=theirs is not None)
        assert saved == list(range(1, len(made) + 1))
        return report["rows"]

    return run


def test_a_lost_process_ends_its_case_only(measure):
    lost, kept = measure([1, 13, 1], [2])
    assert lost["error"] == "the process ended with exit code 3"
    assert kept["transformer_zoo"]["tokens_per_second"] == 2 * 10 / 2.0 and kept["transformer_zoo"]["batch"] == 2


def test_a_setting_that_fails_is_named_and_others_go_on(measure):
    (row,) = measure([15, 4, 2])
    assert row["transformer_zoo"]["setting"] == "batch 4"
    failed, *_ = row["tried"]["transformer_zoo"]
    assert failed["setting"] == "batch 15" and failed["error"].startswith("out of memory: RESOURCE_EXHAUSTED")
    (row,) = measure([15])
    assert row["error"].startswith("out of memory") and row["error"] == row["transformer_zoo"]["error"]


def test_a_process_that_hangs(measure):
    hung, kept = measure([14], [1], seconds=4.0)
    assert hung["error"].startswith("no answer after")
    assert "error" not in kept or kept["error"] == accelerator.NO_TIME


def test_time_that_is_not_left(measure):
    first, *_, last = measure([1] * 20, *[[1]] * 20, seconds=2.5)
    skipped = [row for row in first["tried"]["transformer_zoo"] if row.get("error") == accelerator.NO_TIME]
    assert skipped and "error" not in first
    assert last["error"] == accelerator.NO_TIME


def test_the_peer_counts_the_logits_it_computes(measure):
    (row,) = measure([4], theirs=[3])
    assert row["transformer_zoo"]["flops"] == 4 * 100 and row["transformers"]["flops"] == 3 * 200
    assert row["times"] == pytest.approx(4 / 3)
    (row,) = measure([4], theirs=[13])
    assert "exit code 3" in row["transformers"]["error"] and "error" not in row and "times" not in row


@pytest.mark.parametrize("alone", [False, True])
def test_an_accelerator_has_new_processes_for_each_case(measure, monkeypatch, alone):
    """The name of a process stands for the memory."""
    monkeypatch.setenv("PLATFORM", "gpu")
    rows = measure([4, 2], [13], [1], theirs=[3], alone=alone)
    assert ["error" in row for row in rows] == [False, True, False]
    used = [rows[i][side]["memory"] for i in (0, 2) for side in ("transformer_zoo", "transformers")]
    assert len(set(used)) == 4
    assert len({row["memory"] for row in rows[0]["tried"]["transformer_zoo"]}) == 1


def test_results_of_a_device_replace_those_of_its_kind(measure, tmp_path):
    report = {
        "device": "B", "date": "today", "commit": "abc", "versions": {"jax": "1"}, "seconds": 1.0,
        "peak": {"table": None, "measured": 2e12}, "bandwidth": {"table": 3e12, "measured": 2e12},
        "rows": measure([4], [13], theirs=[3]),
    }  # fmt: skip
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\nWords.\n\n## A\n\nold a\n\n## B\n\nold b\n")
    for _ in range(2):
        accelerator.write_results(path, report)
    text = path.read_text()
    assert text.count("## A") == text.count("## B") == 1 and "old a" in text and "old b" not in text
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in table}) == 1
    assert table[2][:3] == ["| case 0", "transformer_zoo", "20"] and table[3][1] == "transformers"
    assert "the process ended with exit code 3" in text and "2 TFLOP/s measured" in text
    accelerator.write_results(tmp_path / "new.md", report)
    assert text.endswith((tmp_path / "new.md").read_text().partition("## B")[2])


def test_an_unknown_case():
    with pytest.raises(SystemExit, match="no case is named like .'trian'"):
        accelerator.main(["--cases", "trian"])
    with pytest.raises(ValueError, match="there is no preset 'brt'"):
        programs.config_of(dataclasses.replace(cases.CASES[1], model="brt"))


# ---- by hand ------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 100, "width": 8, "num_layers": 3, "num_heads": 2}
D, F, L, V = 8, 20, 3, 100


def test_flops_of_a_decoder():
    model = gpt2.Model(gpt2.Config(**SIZES, max_length=16, mlp_dim=F))
    T = 6
    weights = L * (4 * D * D + 2 * D * F) + V * D
    assert peak.forward_flops(model, T) == 2 * weights * T + L * 4 * D * T * T / 2


def test_flops_of_an_encoder():
    model = bert.Model(bert.Config(**SIZES, max_length=16, mlp_dim=F))
    T, P = 6, 2
    blocks = 2 * L * (4 * D * D + 2 * D * F) * T + L * 4 * D * T * T
    head = 2 * (D * D + V * D)
    assert peak.forward_flops(model, T) == blocks + head * T
    assert peak.forward_flops(model, T, predicted=P) == blocks + head * P
    base = bert.Model(model.config, task="base")
    assert peak.forward_flops(base, T) == blocks + 2 * D * D  # the pooler reads a token


@pytest.mark.parametrize("T", [3, 6, 20])
def test_flops_of_windows(T):
    """Layers 0 and 2 see the whole row, layer 1 two tokens on each side."""
    model = modernbert.Model(modernbert.Config(**SIZES, mlp_dim=F, global_every=2, window=4, pad_id=0))
    near = sum(abs(i - j) <= 2 for i in range(T) for j in range(T))
    blocks = 2 * L * (4 * D * D + 3 * D * F) * T + 4 * D * (2 * T * T + near)
    assert peak.forward_flops(model, T) == blocks + 2 * (D * D + V * D) * T


def test_flops_of_an_encoder_decoder():
    """Two heads of size 5; keys and values of the source are computed once."""
    sizes = SIZES | {"num_decoder_layers": 2}
    model = t5.Model(t5.Config(**sizes, head_dim=5, mlp_dim=F))
    S, T, H = 7, 4, 10
    encoder = 2 * L * (4 * D * H + 2 * D * F) * S + L * 4 * H * S * S
    own = 2 * 2 * (4 * D * H + 2 * D * F) * T + 2 * 4 * H * T * T / 2
    cross = 2 * 2 * (2 * D * H * T + 2 * D * H * S) + 2 * 4 * H * T * S
    assert peak.forward_flops(model, S, target=T) == encoder + own + cross + 2 * V * D * T


def test_flops_of_a_training_step_of_masked_tokens():
    """Of 20 tokens, two of which are special, 15 % are predicted: 3."""
    config = bert.Config(**SIZES, max_length=32, mlp_dim=F)
    masked, dense = (programs.Train(config, length=20, masked=masked, dtype="float32") for masked in (True, False))
    assert dense.flops() - masked.flops() == 3 * 2 * (D * D + V * D) * (20 - 3)
    assert masked.flops(masked=False) == dense.flops()


def test_bytes_of_a_step():
    config = gpt2.Config(**SIZES, max_length=16, mlp_dim=F)
    weights = L * (4 * D * D + 2 * D * F) + V * D
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        model = gpt2.Model(config, compute=Compute(dtype=dtype, param_dtype=dtype))
        assert peak.step_bytes(model, 3, 10) == size * (weights + 2 * L * D * 3 * 10)


def test_bytes_of_a_step_of_an_encoder_decoder():
    """Nothing of the encoder; keys and values of the source are read, and their weights are not."""
    model = t5.Model(t5.Config(**SIZES | {"num_decoder_layers": 2}, head_dim=5, mlp_dim=F))
    H = 10
    weights = 2 * (4 * D * H + 2 * D * H + 2 * D * F) + V * D
    assert peak.step_bytes(model, 3, 10, source=7) == 4 * (weights + 2 * 2 * H * 3 * (10 + 7))
