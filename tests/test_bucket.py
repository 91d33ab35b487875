"""Runs in a bucket, gs://: trained, resumed, read and loaded like those of a local folder."""

import dataclasses

import chex
import numpy as np
import pytest
from bucket import bucket
from etils import epath

from transformer_zoo import folders, logs, loop, names, runs
from transformer_zoo.config import Checkpoints, Data, Evaluation, Logging, Optimizer, Run, Training, Vocabulary
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.models import gpt2
from transformer_zoo.objectives import CausalLM
from transformer_zoo.pretrained import load_tokenizer


def test_a_run_in_a_bucket(tmp_path):
    """Stopped after two steps of four and resumed; compared with a run of four steps in a folder."""
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"the {number} quick brown foxes jump over {number * number} lazy dogs")
    run = Run(
        model=gpt2.Config(vocab_size=300, max_length=16, width=8, num_layers=1, num_heads=2, eos_id=0),
        objective=CausalLM(),
        directory=str(tmp_path / "run"),
        data=Data(source=f"text:{tmp_path}/*.txt", length=16),
        vocabulary=Vocabulary(size=300),
        optimizer=Optimizer(schedule="constant"),
        training=Training(steps=4, batch_size=8),
        evaluation=Evaluation(every=2, batches=1),
        checkpoints=Checkpoints(every=2),
        logging=Logging(every=1),
    )
    report = loop.train(run)
    with bucket() as root:
        there = dataclasses.replace(run, directory=f"{root}/runs/mine")
        with pytest.warns(match="is in a bucket, which has no locks"):
            loop.train(dataclasses.replace(there, training=Training(steps=2, batch_size=8)))
        assert loop.train(there) == report
        chex.assert_trees_all_equal(runs.load_run(there.directory).params, runs.load_run(run.directory).params)
        chex.assert_trees_all_equal(runs.load_run(there.directory, 2).params, runs.load_run(run.directory, 2).params)

        assert names.is_run(there.directory) and not names.is_run(f"{root}/runs")
        assert runs.read(there.directory) == there
        assert str(names.describe(there.directory).source) == f"{root}/runs/mine/run.json"
        assert isinstance(load_tokenizer(there.directory), Tokenizer)
        files = {path.name for path in epath.Path(there.directory).iterdir()}
        assert files | {runs.LOCK} == {path.name for path in (tmp_path / "run").iterdir()}
        events = epath.Path(there.directory) / "tensorboard"
        assert all(path.stat().length > 500 for path in events.iterdir()) and len(list(events.iterdir())) == 2
        losses = [
            [(line["step"], line.get("loss"), line.get("validation/loss")) for line in logs.read_json_lines(path)]
            for path in (folders.folder(there.directory) / "metrics.jsonl", epath.Path(run.directory) / "metrics.jsonl")
        ]
        np.testing.assert_equal(*losses)
        with pytest.raises(FileNotFoundError, match=f"{root}/runs/other holds no run"):
            runs.load_run(f"{root}/runs/other")


def test_a_bucket_that_no_package_reads(monkeypatch):
    def fail(path):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(epath.Path("gs://bucket").__class__, "exists", fail)
    with pytest.raises(ImportError, match=r"gs://bucket/run is in a bucket: pip install 'transformer-zoo\[gcs\]'"):
        folders.folder("gs://bucket/run")
