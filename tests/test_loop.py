"""A run from beginning to end, with interruptions and errors."""

import collections
import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import processes
import pytest
import torture
from conftest import QUICKLY
from rich.console import Console

from transformer_zoo import commands, loop, runs, sharding
from transformer_zoo.checkpoints.orbax import steps
from transformer_zoo.config import (
    Checkpoints,
    Data,
    Evaluation,
    Logging,
    Mesh,
    Optimizer,
    Run,
    Training,
    Vocabulary,
    load_recipe,
)
from transformer_zoo.data import sources
from transformer_zoo.data.pipeline import Pipeline
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.evaluation import evaluate
from transformer_zoo.generation.beam import Beam
from transformer_zoo.models import bert, gpt2
from transformer_zoo.objectives import CausalLM, Pretraining, SequenceClassification
from transformer_zoo.resolve import resolve
from transformer_zoo.training import Program, TrainState

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of forty small files."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "brew"]
    rng = random.Random(0)
    for index in range(40):
        (folder / f"{index:02}.txt").write_text(" ".join(rng.choices(words, k=rng.randrange(5, 120))))
    return folder


def tiny(texts: Path, directory: Path, **changes: object) -> Run:
    settings = dict(
        model=gpt2.Config(vocab_size=300, max_length=32, width=32, num_layers=2, num_heads=2, eos_id=0),
        objective=CausalLM(),
        directory=str(directory),
        data=Data(source=f"text:{texts}/*.txt", length=32),
        vocabulary=Vocabulary(size=300),
        optimizer=Optimizer(peak_lr=1e-2, warmup_steps=2, ema=0.9),
        training=Training(steps=12, batch_size=16, accumulation=2),
        evaluation=Evaluation(every=6, batches=2),
        checkpoints=Checkpoints(every=6, keep=2),
        logging=Logging(every=1, tensorboard=False),
    )
    return Run(**(settings | changes))


def quiet(**options: object) -> Console:
    return Console(file=io.StringIO(), width=200, **options)


def final(directory: Path) -> tuple[dict, dict]:
    """The arrays of the latest checkpoint, and the position in the data."""
    step = max(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdigit())
    state = ocp.PyTreeCheckpointer().restore(directory.absolute() / "checkpoints" / str(step) / "state")
    position = json.loads((directory / "checkpoints" / str(step) / "data" / "metadata").read_text())
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}, position


def assert_same(one: Path, other: Path) -> None:
    (arrays, position), (others, other_position) = final(one), final(other)
    assert position == other_position
    assert arrays.keys() == others.keys() and len(arrays) > 40
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


@contextlib.contextmanager
def openings() -> Iterator[collections.Counter[str]]:
    """The number of times that each split is opened."""
    opened, source = collections.Counter(), sources.source

    def counted(spec: str, split: str, **kwargs: object) -> sources.Source:
        opened[split] += 1
        return source(spec, split, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "source", counted)
        yield opened


def test_a_run_learns_and_leaves_everything_behind(texts: Path, tmp_path: Path) -> None:
    run = tiny(
        texts, tmp_path / "run", training=Training(steps=60, batch_size=8), evaluation=Evaluation(every=20, batches=2),
        checkpoints=Checkpoints(every=20, keep=2), logging=Logging(every=5),
        optimizer=Optimizer(peak_lr=5e-3, warmup_steps=2, ema=0.9),
    )  # fmt: skip
    with openings() as opened:
        report = loop.train(run, quiet())
    assert opened == {"train": 1, "validation": 1}
    directory = tmp_path / "run"
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    assert report["bits_per_byte"] < 2 and report["loss"] == lines[-1]["validation/loss"]
    assert (directory / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert list((directory / "tensorboard").glob("events*"))
    record = json.loads((directory / "run.json").read_text())
    assert record["settings"]["model"]["width"] == 32 and record["versions"]["jax"] == jax.__version__
    assert runs.read(directory) == run
    (directory / "run.json").write_text(json.dumps(record).replace("logits_chunks", "pieces"))
    assert runs.read(directory) == run  # as older versions wrote it
    bundle = runs.load_run(directory)
    assert bundle.tokenizer.decode(bundle.tokenizer.encode("a lazy dog").ids) == "a lazy dog"
    assert bundle.config == run.model
    # Evaluation and the result are both of the moving average.
    rows = run.objective.rows(bundle.tokenizer, run.data)
    held_out = Pipeline(sources.source(run.data.source, "validation"), rows, batch_size=8, shuffle=False, epochs=1)
    again = evaluate(bundle.model, run.objective, bundle.params, itertools.islice(held_out, run.evaluation.batches))
    assert again == pytest.approx(report, rel=1e-5)


@pytest.mark.parametrize("count", [2, None])
def test_every_evaluation_is_on_the_same_rows(texts: Path, count: int | None) -> None:
    """A few batches, or a whole split."""
    tokenizer, source = Tokenizer.train(["a lazy dog"], 260), sources.source(f"text:{texts}/*.txt")
    rows = CausalLM().rows(tokenizer, Data(length=32))
    batches = Pipeline(source, rows, batch_size=8, shuffle=False, epochs=1)
    held_out = loop._HeldOut(batches, count)
    first, second = list(held_out), list(held_out)
    assert len(first) == len(second) > 1 and (count is None or len(first) == count)
    for one, other in zip(first, second):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_labelled_source_is_opened_once(tmp_path: Path) -> None:
    """Its classes, its texts for the tokenizer and its rows all come from one opening of each split."""
    lines = [{"text": f"number {n} of many", "label": n % 2} for n in range(60)]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = tiny(
        tmp_path, tmp_path / "run", objective=SequenceClassification(labels=("even", "odd")),
        model=bert.Config(vocab_size=200, max_length=32, width=32, num_layers=2, num_heads=2, mlp_dim=64),
        data=Data(source=f"jsonl:{tmp_path}/*.jsonl", length=32), vocabulary=Vocabulary(kind="wordpiece", size=200),
    )  # fmt: skip
    with openings() as opened:
        resolved = resolve(run)
    assert opened == {"train": 1, "validation": 1}
    assert resolved.run.model.labels == resolved.run.objective.labels == ("even", "odd")
    assert resolved.program.batch["targets_B"].shape == (16,) and resolved.bundle is None and resolved.notes == []
    assert not (tmp_path / "run").exists()  # nothing is written


def test_a_run_that_is_stopped_and_goes_on_is_the_same_run(
    texts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """First an error of the evaluation stops it, which costs no step, and then the end of its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it, which a run respects
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    loop.train(tiny(texts, tmp_path / "whole"), quiet())
    part, console = tiny(texts, tmp_path / "part"), quiet()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="unknown label"):
        patch.setattr(loop, "evaluate", raiser(ValueError("unknown label")))
        loop.train(part, console)
    assert saved(tmp_path / "part") == [6]
    assert "the checkpoint of step 6 is good: the same command goes on from it" in console.file.getvalue()
    now = loop._Stop.now
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(loop._Stop, "now", lambda self, n: n == 8 and signal.raise_signal(signal.SIGHUP) or now(self, n))
        loop.train(part, console)
    assert stopped.value.code == 129 and saved(tmp_path / "part") == [6, 8]
    assert "stopped by SIGHUP at step 8; the same command resumes it" in console.file.getvalue()
    loop.train(part, quiet())
    assert_same(tmp_path / "whole", tmp_path / "part")
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "part")]
    losses = [[(line["step"], line.get("loss")) for line in map(json.loads, lines)] for lines in metrics]
    assert losses[0] == losses[1] and losses[0].count((6, None)) == 1  # the evaluation that failed, too


def raiser(error: Exception) -> Callable[..., None]:
    """A function that raises this error."""

    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_a_finished_run_is_not_trained_again(texts: Path, tmp_path: Path) -> None:
    """And pictures and logs that cannot be written do not end it."""
    run = tiny(texts, tmp_path / "run", training=Training(steps=3, batch_size=8), logging=Logging(every=1))
    (tmp_path / "run" / "curve.png").mkdir(parents=True)
    (tmp_path / "run" / "tensorboard").touch()
    handlers, on_device = [], loop._on_device
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_on_device", lambda *x: handlers.append(signal.getsignal(signal.SIGTERM)) or on_device(*x))
        with pytest.warns(UserWarning) as warned:
            loop.train(run, console := quiet())
    # Until the first step is compiled and done, there is nothing to save: signals end the program at once.
    assert handlers[0] == signal.getsignal(signal.SIGTERM) and handlers[-1].__func__ is loop._Stop._handle
    said = console.file.getvalue()
    assert said.startswith("38,784 parameters, ")
    assert re.search(r"step 1/3  loss \S+\nstep 2/3  loss \S+  \S+ tokens/s  0:00 left\n", said)
    assert [str(warning.message).removeprefix(f"{tmp_path}/run/") for warning in warned] == [
        "tensorboard: File exists: this log is not written", "curve.png: Is a directory",
    ]  # fmt: skip
    before = final(tmp_path / "run")[0]
    loop.train(run, quiet())
    assert all(np.array_equal(array, before[name]) for name, array in final(tmp_path / "run")[0].items())


def test_other_settings_in_the_same_folder_are_refused(texts: Path, tmp_path: Path) -> None:
    loop.train(tiny(texts, tmp_path, training=Training(steps=3, batch_size=8)), quiet())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"(?s)model\.num_layers: 2 there, 3 now.*--directory"):
        deeper = gpt2.Config(vocab_size=300, max_length=32, width=32, num_layers=3, num_heads=2)
        loop.train(tiny(texts, tmp_path, model=deeper), quiet())
    with pytest.raises(ValueError, match=r"optimizer\.name"):
        loop.train(tiny(texts, tmp_path, optimizer=Optimizer(name="lion", ema=0.9)), quiet())
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="holds checkpoints but no run.json"):
        loop.train(tiny(texts, tmp_path, training=Training(steps=3, batch_size=8)), quiet())


def test_settings_of_a_run_that_never_saved_may_be_corrected(texts: Path, tmp_path: Path) -> None:
    """And its tokenizer, which may be of other data, is trained anew."""
    directory = tmp_path / "run"
    wrong = tiny(texts, directory, vocabulary=Vocabulary(kind="roberta", size=270))
    (directory / "checkpoints").mkdir(parents=True)
    loop._describe(resolve(wrong))
    (directory / "generation_config.json").write_text("{}")
    assert runs.read(directory) == wrong and Tokenizer.load(directory / "tokenizer").vocab_size == 270
    deeper = gpt2.Config(vocab_size=300, max_length=32, width=32, num_layers=3, num_heads=2, eos_id=0)
    resolved = resolve(tiny(texts, directory, model=deeper))
    assert resolved.step is None and resolved.notes == []
    loop._describe(resolved)
    assert runs.read(directory) == resolved.run and not (directory / "generation_config.json").exists()
    assert Tokenizer.load(directory / "tokenizer").fingerprint == resolved.tokenizer.fingerprint
    assert resolved.tokenizer.vocab_size == 300
    for name in ("run.json", "tokenizer/tokenizer.json"):  # of a folder that is not a run's, nothing is replaced
        (directory / name).unlink()
        with pytest.raises(ValueError, match="is no folder of a run, and holds tokenizer, which must not mix"):
            loop.train(wrong, quiet())
    assert (directory / "tokenizer" / "tokenizer_config.json").exists() and not (directory / ".lock").exists()


def test_a_folder_has_one_run_at_a_time(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    with runs.locked(directory):
        with pytest.raises(ValueError, match=f"another process trains in {directory} .process {os.getpid()} on "):
            loop.train(tiny(texts, directory), quiet())
        (directory / "run.json").touch()
    (directory / "run.json").unlink()
    with runs.locked(directory):
        pass
    assert not directory.exists()  # nothing was written there
    monkeypatch.setattr("fcntl.flock", raiser(OSError(errno.ENOLCK, "No locks available")))
    with pytest.warns(UserWarning, match="is on a file system without locks"), runs.locked(directory):
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": Training(steps=3, batch_size=6, accumulation=1)}, "batch_size=6 does not divide"),
        ({"vocabulary": Vocabulary(size=301)}, "tokenizer has 301 tokens and the model 300"),
        ({"data": 64}, "64 tokens, and the model has 32 positions"),
        ({"optimizer": Optimizer(freeze=("nothing",))}, "'nothing' matches no parameter"),
        ({"optimizer": Optimizer(warmup_steps=50)}, "do not fit into 12 steps"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    texts: Path, tmp_path: Path, changes: dict, words: str
) -> None:
    directory = tmp_path / "run"
    if "data" in changes:
        changes = {"data": Data(source=f"text:{texts}/*.txt", length=changes["data"])}
    with pytest.raises(ValueError, match=words):
        loop.train(tiny(texts, directory, **changes), quiet())
    assert not (directory / "checkpoints").exists()


def test_a_loss_that_is_not_finite_is_named_and_ends_the_run(texts: Path, tmp_path: Path) -> None:
    console = quiet(record=True)
    training = Training(steps=40, batch_size=8, patience=3)
    run = tiny(texts, tmp_path, optimizer=Optimizer(peak_lr=1e30, clip_norm=None), training=training)
    with pytest.raises(loop.NotFinite, match="3 updates in a row"):
        loop.train(run, console)
    said = console.export_text()
    assert "is not finite (the output of" in said and "no checkpoint has been written" in said


def test_a_diagnosis_that_fails_is_a_line() -> None:
    run, state = Run(model=None, objective=None), TrainState(*[jax.random.key_data(jax.random.key(0))] * 6)
    program, console = Program(*[None] * 6), quiet()
    loop._watch(run, program, state, None, 5, {}, {"skipped_in_a_row": 1}, console)
    assert "step 5: the loss or its gradient is not finite (where, could not be found out: " in console.file.getvalue()


def test_a_run_begins_with_the_weights_of_another(texts: Path, tmp_path: Path) -> None:
    """For the same task all of them; for another all except its head, which a warning names. And how they generate."""
    first = tiny(texts, tmp_path / "first", training=Training(steps=3, batch_size=8))
    loop.train(first, quiet())
    trained = runs.load_run(tmp_path / "first")
    assert trained.generation is None
    trained.save_pretrained(tmp_path / "published")
    settings = {"eos_token_id": [0, 5], "num_beams": 2, "top_k": 7, "max_length": 20}
    (tmp_path / "published" / "generation_config.json").write_text(json.dumps(settings))
    still = Optimizer(peak_lr=1e-30, weight_decay=0.0)
    second = tiny(texts, tmp_path / "second", init_from=str(tmp_path / "published"), optimizer=still)
    loop.train(dataclasses.replace(second, training=Training(steps=1, batch_size=8)), quiet())
    again = runs.load_run(tmp_path / "second")
    assert again.config == trained.config and again.tokenizer.fingerprint == trained.tokenizer.fingerprint
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, trained.params))
    assert again.sampling == Beam(num_beams=2, max_length=20) and again.token_ids.eos == (0, 5)
    runs.load(tmp_path / "second").save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == settings


@pytest.fixture(scope="module")
def encoder(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an encoder on masked tokens and pairs of sentences."""
    directory = tmp_path_factory.mktemp("encoder") / "run"
    config = bert.Config(vocab_size=128, max_length=32, width=32, num_layers=2, num_heads=2, mlp_dim=64)
    run = tiny(
        texts, directory, model=config, objective=Pretraining(), vocabulary=Vocabulary(kind="wordpiece", size=128),
        training=Training(steps=40, batch_size=16), evaluation=Evaluation(every=40, batches=2),
        checkpoints=Checkpoints(every=40, keep=2),
    )  # fmt: skip
    report = loop.train(run, quiet())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([line["masked_loss"] for line in lines[-6:-1]]) < 0.8 * lines[0]["masked_loss"]
    assert {"masked_loss", "perplexity", "accuracy", "next_accuracy", "tokens", "masked", "pairs"} <= report.keys()
    assert runs.read(directory) == run
    return directory


def test_a_head_that_another_run_has_not_is_fresh(encoder: Path) -> None:
    whole = runs.load_run(encoder)
    same = runs.load(encoder)
    assert not same.fresh and same.model.task == "pretraining"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked = runs.load(encoder, task="masked-lm")  # has no head of its own that is missing
    assert not masked.fresh and "head" not in masked.params
    with pytest.warns(
        UserWarning, match="was not trained for sequence-classification: fresh parameters are head/scores/bias"
    ):
        other = runs.load(encoder, task="sequence-classification", labels=("yes", "no"), seed=3)
    # Two scores for two labels: the judgement on pairs is no classifier, though it has its shape.
    assert other.fresh == ("head/scores/bias", "head/scores/kernel") and other.config.labels == ("yes", "no")
    assert not np.array_equal(other.params["head"]["scores"]["kernel"], whole.params["head"]["scores"]["kernel"])
    for name in ("token_embed", "blocks", "pooler"):
        assert jax.tree.all(jax.tree.map(np.array_equal, other.params[name], whole.params[name]))


def test_eval_of_a_run_that_masks(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On its own objective, and on another one that fits its result."""
    assert commands.evaluate_command([str(encoder), "--batches", "2", "--json", str(tmp_path / "out.json")]) == 0
    assert "next accuracy" in capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert 0 <= report["next_accuracy"] <= 1 and report["pairs"] >= 4
    assert commands.evaluate_command([str(encoder), "--objective", "masked-lm"]) == 0
    said = capsys.readouterr().out
    assert "perplexity" in said and "next" not in said


RECIPE = """
from transformer_zoo.config import *
from transformer_zoo.models import gpt2
from transformer_zoo.objectives import CausalLM

config = Run(
    model=gpt2.Config(vocab_size=300, max_length=32, width=32, num_layers=2, num_heads=2, eos_id=0),
    objective=CausalLM(),
    data=Data(source="text:{texts}/*.txt", length=32, packing="documents"),
    vocabulary=Vocabulary(size=300),
    optimizer=Optimizer(peak_lr=1e-2, warmup_steps=5),
    training=Training(steps=100_000, batch_size=8, accumulation=2),
    evaluation=Evaluation(every=20, batches=1, best="loss"),
    checkpoints=Checkpoints(every=99_999, keep=2),
    logging=Logging(every=1, tensorboard=False),
)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs that the processes have compiled."""
    return tmp_path_factory.mktemp("cache")


def write_recipe(folder: Path, texts: Path) -> Path:
    """A recipe for a run that by itself neither ends nor saves."""
    recipe = folder / "recipe.py"
    recipe.write_text(RECIPE.format(texts=texts))
    return recipe


def environment(cache: Path) -> dict[str, str]:
    """Of a process: it has one device, and compiles as quickly as this one does."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": QUICKLY,
    }  # fmt: skip


def start(recipe: Path, directory: Path, cache: Path, *arguments: str, **changes: str) -> processes.Process:
    """Starts a run in a process of its own."""
    command = [str(recipe), "--directory", str(directory), *arguments]
    return processes.Process(processes.train, command, **environment(cache) | changes)


def wait_for_step(process: processes.Process, directory: Path, step: int) -> None:
    """Waits until the run has logged the step, or has ended."""
    log = directory / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.005)


def test_faults_at_random_moments_and_the_same_in_the_end(tmp_path: Path, cache: Path) -> None:
    """A kill, SIGTERM, Ctrl-C, a full disk, lost data, and a kill again; `make torture` has a hundred, of all kinds."""
    rng = random.Random(seed := random.randrange(1000))
    print(f"seed {seed}")
    faults = [*torture.FAULTS, "SIGKILL"]
    rng.shuffle(faults)
    torture.torture("causal", tmp_path / "run", faults, rng, cache)


def test_ctrl_c_while_the_program_starts_ends_it_quietly(texts: Path, tmp_path: Path, cache: Path) -> None:
    recipe = write_recipe(tmp_path, texts)
    # A shell's background processes ignore Ctrl-C: this one does not.
    heeds = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    command = [sys.executable, "train.py", str(recipe), "--directory", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", heeds, *command], cwd=ROOT, env=os.environ | environment(cache), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
    )  # fmt: skip
    while process.poll() is None and "jaxlib" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    time.sleep(random.random())
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "" and process.returncode == -signal.SIGINT


def saved(directory: Path) -> list[int]:
    return steps(directory / "checkpoints")


def test_a_log_that_can_no_longer_be_written_ends_alone() -> None:
    written = []

    @contextlib.contextmanager
    def log() -> Iterator[Callable[..., None]]:
        yield lambda step, values: written.append(step) if step < 2 else raiser(OSError(errno.ENOSPC, "full", "a"))()

    with pytest.warns(UserWarning, match="^a: full: this log ends here$") as warned, loop._expendable(log()) as write:
        for step in range(4):
            write(step, {})
    assert written == [0, 1] and len(warned) == 1


def test_a_second_ctrl_c_does_not_wait(request: pytest.FixtureRequest) -> None:
    console = quiet()
    stop = loop._Stop(console)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), stop:
        assert not stop.now(0)
        signal.raise_signal(signal.SIGINT)
        assert stop.now(1) and "Ctrl-C once more" in console.file.getvalue()
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_two_processes_train_as_one(texts: Path, tmp_path: Path, cache: Path) -> None:
    """Each has two of four devices and half of the rows; a SIGTERM to one of them makes both save."""
    recipe = write_recipe(tmp_path, texts)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    joined = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2",
              "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {QUICKLY}"}  # fmt: skip
    pair = [
        start(recipe, tmp_path / "two", cache, "--distributed", "True", "--mesh.data", "2",
              "--mesh.fsdp", "2", JAX_PROCESS_ID=str(index), **joined)
        for index in range(2)
    ]  # fmt: skip
    try:
        wait_for_step(pair[0], tmp_path / "two", 5)
        pair[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=200)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [143, 143], said
    assert "the same command resumes it" in said[0] and "step 5" in said[0] and "step 5" not in said[1]

    (step,) = saved(tmp_path / "two")
    alone = dataclasses.replace(load_recipe(str(recipe)), directory=str(tmp_path / "one"), mesh=Mesh(data=4, tensor=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Stop, "now", lambda self, at: at == step)
        loop.train(alone, quiet())
    one, two = (tmp_path / name / "checkpoints" / str(step) / "data" / "metadata" for name in ("one", "two"))
    assert one.read_text() == two.read_text()
    assert runs.load_run(tmp_path / "two").params.keys() == runs.load_run(tmp_path / "one").params.keys()
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    one, two = (
        [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line] for lines in metrics
    )
    assert len(one) == step
    np.testing.assert_allclose(one, two, rtol=1e-4)


def test_processes_that_were_not_joined_or_share_no_folder(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="one of 2 processes that have not been joined.*--distributed True"):
            loop.train(tiny(texts, tmp_path / "run"), quiet())
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    alone = processes.Process(sharding.join_processes)
    assert "set JAX_COORDINATOR_ADDRESS" in alone.communicate(timeout=120)[0] and alone.returncode == 1
    monkeypatch.setattr(
        loop.multihost_utils, "process_allgather", lambda x, tiled=False: x if tiled else np.array([x, False])
    )
    with pytest.raises(ValueError, match="not one folder for all processes"):
        loop.train(tiny(texts, tmp_path / "run"), quiet())
