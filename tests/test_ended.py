"""How long a run goes on: epochs, the best evaluation and early stopping, runs that are finished, data that changed."""

import contextlib
import dataclasses
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from transformer_zoo import commands, ended, loop, measures, resolve, runs
from transformer_zoo.__main__ import main
from transformer_zoo.checkpoints.orbax import _Kept, steps
from transformer_zoo.config import Checkpoints, Data, Evaluation, Logging, Optimizer, Run, Training, Vocabulary
from transformer_zoo.data import epochs, fingerprints, sources
from transformer_zoo.data.pipeline import Pipeline
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.evaluation.loss import Report
from transformer_zoo.models import gpt2
from transformer_zoo.objectives import CausalLM, SequenceClassification


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts in JSON lines, with a label each."""
    words, rng = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"], random.Random(0)
    file = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    lines = [{"text": " ".join(rng.choices(words, k=rng.randrange(5, 60))), "label": n % 2} for n in range(50)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "CACHE", tmp_path_factory.getbasetemp() / "cache" / "tokenizers")


def tiny(corpus: Path, directory: Path, **changes: Any) -> Run:
    settings = dict(
        model=gpt2.Config(vocab_size=300, max_length=32, width=16, num_layers=1, num_heads=2, eos_id=0),
        objective=CausalLM(),
        directory=str(directory),
        data=Data(source=f"jsonl:{corpus}", length=32),
        vocabulary=Vocabulary(size=300),
        optimizer=Optimizer(peak_lr=1e-2),
        training=Training(steps=12, batch_size=8),
        evaluation=Evaluation(every=2, batches=1, best="loss", patience=2),
        checkpoints=Checkpoints(every=5, keep=1),
        logging=Logging(every=1, tensorboard=False),
    )
    return Run(**(settings | changes))


def console() -> Console:
    return Console(file=io.StringIO(), width=300)


@contextlib.contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, value)
        yield


# ---- the best evaluation, early stopping, finished runs -------------------------------------------------------------


def losses(*values: float) -> Callable[..., dict[str, float]]:
    """Evaluations with these losses."""
    left = iter(values)
    return lambda *_: Report(loss=next(left), tokens=7)


def test_the_best_checkpoint_is_kept_and_a_run_that_gets_no_better_stops(corpus: Path, tmp_path: Path) -> None:
    """Also with an interruption between the evaluations, and without a word from a run that is finished."""
    run, said = tiny(corpus, tmp_path / "run"), console()
    now = loop._Stop.now
    stops = patched(loop._Stop, "now", lambda self, step: step == 7 and self._handle(15, None) or now(self, step))
    with patched(loop, "evaluate", losses(3.0, 2.0, 2.5)), stops, pytest.raises(SystemExit):
        loop.train(run, said)
    assert steps(tmp_path / "run" / "checkpoints") == [4, 7]
    assert "step 4: held out: loss 2, tokens 7 (the best so far)" in said.file.getvalue()
    with patched(loop, "evaluate", losses(2.25)):
        assert loop.train(run, said) == {"loss": 2.25, "tokens": 7}
    text = said.file.getvalue()
    assert "stopped early at step 8, since 2 evaluations after step 4 (loss 2) were not better" in text
    assert "the best checkpoint by loss is that of step 4" in text
    assert steps(tmp_path / "run" / "checkpoints") == [4, 8]

    best, fourth, latest = (
        jax.tree.leaves(runs.load_run(run.directory, step).params) for step in ("best", 4, None)
    )  # fmt: skip
    assert all((x == y).all() for x, y in zip(best, fourth)) and any((x != y).any() for x, y in zip(best, latest))

    said = console()
    with patched(loop, "resolve", None), patched(sources, "source", None):  # neither data nor programs
        assert loop.train(run, said) == {"loss": 2.25, "tokens": 7}
    assert "is finished: stopped early at step 8" in said.file.getvalue()
    assert "to go on, raise evaluation.patience" in said.file.getvalue()
    longer = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, patience=4))
    assert ended.as_given(longer) is None and ended.of(longer, 12) is None


def folder_of_a_run(run: Run, saved: list[int], losses: dict[int, float | None], facts: dict[str, Any]) -> None:
    runs_folder = Path(run.directory)
    for step in saved:
        (runs_folder / "checkpoints" / str(step)).mkdir(parents=True)
    runs.write(run, facts)
    lines = [{"step": step, "validation/loss": loss} for step, loss in losses.items()]
    (runs_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_how_a_run_ended(corpus: Path, tmp_path: Path) -> None:
    run = tiny(corpus, tmp_path / "run", evaluation=Evaluation(every=4, best="loss"))
    assert ended.as_given(run) is None
    folder_of_a_run(run, [8, 12], {4: 2.0, 8: 1.0, 12: 3.0}, {"given": runs.digest(run), "steps": 12})
    assert ended.as_given(run).report == {"loss": 3.0}
    assert "is finished, with step 12 of 12; its last evaluation: loss 3" in ended.as_given(run).message
    moved = dataclasses.replace(run, directory=str(tmp_path / "moved"))
    Path(run.directory).rename(moved.directory)
    assert ended.as_given(moved) is not None
    other = dataclasses.replace(moved, logging=Logging(every=2))
    assert ended.as_given(other) is None and ended.of(other, 12) is not None and ended.of(other, 13) is None
    assert "step 12 of 10" in ended.of(other, 10).message
    # What was measured before a change does not count.
    patient = dataclasses.replace(run, evaluation=Evaluation(every=4, best="loss", patience=1))
    assert "stopped early" in ended.of(dataclasses.replace(patient, directory=other.directory), 16).message
    assert ended.of(dataclasses.replace(patient, directory=other.directory), 16, since=8) is None
    # Without its last evaluation it is not finished, unless it has none.
    folder_of_a_run(run, [12], {4: 2.0}, {})
    assert ended.of(run, 12) is None
    assert ended.of(dataclasses.replace(run, evaluation=Evaluation(every=None)), 12).report == {"loss": 2.0}


def test_steps_of_checkpoints(corpus: Path, tmp_path: Path) -> None:
    run = tiny(corpus, tmp_path / "run", evaluation=Evaluation(every=4, best="loss"))
    folder_of_a_run(run, [4, 8, 12], {4: 2.0, 8: 1.0, 12: None}, {})
    assert [runs.step_of(run.directory, step) for step in (None, "best", 4)] == [12, 8, 4]
    runs.write(run, {"comparable_since": 8})
    with pytest.raises(FileNotFoundError, match="none of the checkpoints .* has an evaluation of loss yet"):
        runs.step_of(run.directory, "best")
    runs.write(run)
    with pytest.raises(ValueError, match="step is 'bst': it must be a number or best"):
        runs.step_of(run.directory, "bst")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 \(there are: 4, 8, 12\)"):
        runs.step_of(run.directory, 5)
    (Path(run.directory) / "checkpoints" / "8").rmdir()
    with pytest.warns(UserWarning, match="best at step 8, of which no checkpoint was kept: step 4"):
        assert runs.step_of(run.directory, "best") == 4
    runs.write(dataclasses.replace(run, evaluation=Evaluation()))
    with pytest.raises(FileNotFoundError, match="trained without evaluation.best: give one of the steps 4, 12"):
        runs.step_of(run.directory, "best")


def test_a_step_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands_of_weights = (["generate", "gpt2"], ["predict", "gpt2", "--text", "a"], ["embed", "gpt2", "a"],
                           ["convert", "gpt2", str(tmp_path / "x")])  # fmt: skip
    for command in commands_of_weights:
        assert main([*command, "--step", "best"]) == 1
        assert "--step best is for the checkpoints of a run, and gpt2 is none" in capsys.readouterr().err
    assert commands.evaluate_command(["gpt2", "--step", "3"]) == 1
    assert "--step 3 is for the checkpoints of a run" in capsys.readouterr().err


def test_checkpoints_that_are_kept() -> None:
    def kept(policy: _Kept, *saved: int) -> list[int]:
        found = policy.should_preserve([SimpleNamespace(step=step) for step in saved], context=None)
        return [step for step, keep in zip(saved, found) if keep]

    policy = _Kept(latest=2, every=10)
    assert kept(policy, 5, 10, 15, 20, 25, 27) == [10, 20, 25, 27]
    policy.best = 5
    assert kept(policy, 5, 10, 15, 20, 25, 27) == [5, 10, 20, 25, 27]
    assert kept(_Kept(latest=None, every=None), 1, 2, 3) == [1, 2, 3]


def test_measures_to_choose_by() -> None:
    measures.check(Evaluation(best="accuracy"), ["loss", "accuracy"])
    measures.check(Evaluation(best="replaced", direction="lowest"), ["loss", "replaced"])
    with pytest.raises(ValueError, match="evaluation.best is 'acuracy', .* loss, accuracy. Did you mean 'accuracy'"):
        measures.check(Evaluation(best="acuracy"), ["loss", "accuracy"])
    with pytest.raises(ValueError, match="set evaluation.direction to lowest or highest"):
        measures.check(Evaluation(best="replaced"), ["loss", "replaced"])
    for settings in ({"patience": 2}, {"direction": "lowest"}, {"every": None, "best": "loss"}):
        with pytest.raises(ValueError, match="is given"):
            Evaluation(**settings)
    evaluation = Evaluation(best="loss", patience=2)
    assert measures.stops_early(evaluation, {2: 1.0, 4: 2.0}) is None
    assert measures.stops_early(evaluation, {2: float("nan"), 4: float("nan")}) is not None


# ---- epochs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over a lazy dog"] * 3, 280)


def test_the_rows_of_packed_epochs_are_those_that_the_run_reads(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, lines = sources.source(f"jsonl:{corpus}"), []
    rows = CausalLM().rows(tokenizer, Data(length=32))
    batches = lambda **settings: Pipeline(source, rows, batch_size=8, seed=3, group=16, **settings)
    total = epochs.steps_of(2, batches(), 8, tmp_path / "cache", "a", lines.append)
    assert total == sum(1 for _ in batches(epochs=2))  # the end of two passes, in batches
    assert lines[0] == "counting the rows of 2 passes over the training split, for training.epochs"
    assert lines[1].startswith(f"training.epochs=2: {total} steps, of 8 rows; the first pass has ")
    (kept,) = (json.loads(file.read_text())["rows"] for file in (tmp_path / "cache").iterdir())
    with patched(Pipeline, "count_rows", None):  # other runs with the same rows need not count
        assert epochs.steps_of(2, batches(), 8, tmp_path / "cache", "a", lines.append) == total
        monkeypatch.setenv("HOME", str(tmp_path))
        assert epochs.steps_of(2, batches(), 8, Path("~/cache"), "a", lines.append) == total
        half = epochs.steps_of(0.5, batches(), 8, tmp_path / "cache", "a", lines.append)
        assert half == -(-kept[0] // 16)
        with pytest.raises(TypeError):
            epochs.steps_of(2, batches(), 8, tmp_path / "cache", "other documents", lines.append)
    (tmp_path / "file").write_text("")
    assert epochs.steps_of(2, batches(), 8, tmp_path / "file", "a", lines.append) == total  # no cache
    with patched(epochs, "SECONDS", -1), pytest.raises(ValueError, match=r"takes more than .* about \d+ are 3 epochs"):
        epochs.steps_of(3, batches(), 8, tmp_path / "cache", "a", lines.append)


def test_the_epochs_of_examples_are_counted_exactly(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, lines = sources.source(f"jsonl:{corpus}", "all"), []
    rows = SequenceClassification(labels=("0", "1")).rows(tokenizer, Data(length=32))
    batches = Pipeline(source, rows, batch_size=10)
    for passes, expected in ((1, 5), (3, 15), (0.1, 1), (1.1, 6), (2.5, 13), (0.001, 1)):
        assert epochs.steps_of(passes, batches, 10, tmp_path, "a", lines.append) == expected
    assert not any("counting" in line for line in lines)


def test_epochs_or_steps(corpus: Path, tmp_path: Path) -> None:
    assert Training().steps == 1000 and Training(epochs=2).steps is None
    with pytest.raises(ValueError, match="steps=3 and epochs=2 are both given: set one of them to None"):
        Training(steps=3, epochs=2)
    recipe = tiny(corpus, tmp_path)
    chosen = commands._of_one_length(recipe, ["--training.epochs", "2"])
    assert chosen.training.steps is None and commands._of_one_length(recipe, ["--training.steps=9"]) == recipe
    assert commands._of_one_length(chosen, ["--training.steps=9"]).training.epochs is None
    assert commands._of_one_length(recipe, ["--training.epochs", "2", "--training.steps", "3"]) == recipe


def test_a_run_of_epochs_is_settled_before_it_begins(corpus: Path, tmp_path: Path) -> None:
    run, lines = tiny(corpus, tmp_path, training=Training(epochs=2, batch_size=8)), []
    resolved = resolve.resolve(run, lines.append)
    assert resolved.run.training.epochs == 2 and resolved.facts["steps"] == resolved.steps
    assert lines[-1].startswith(f"training.epochs=2: {resolved.steps} steps, ")
    with pytest.raises(ValueError, match=f"do not fit into {resolved.steps} steps"):
        resolve.resolve(dataclasses.replace(run, optimizer=Optimizer(warmup_steps=resolved.steps + 1)))


# ---- data that changed ----------------------------------------------------------------------------------------------


def test_changed_documents_are_told_before_anything_is_computed(corpus: Path, tmp_path: Path) -> None:
    file, held_out = tmp_path / "texts.jsonl", tmp_path / "held_out.txt"
    file.write_text(corpus.read_text()), held_out.write_text("a lazy dog " * 40)
    run = tiny(file, tmp_path / "run")
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, validation_source=f"text:{held_out}"))
    first = resolve.resolve(run)
    folder_of_a_run(first.run, [4], {}, first.facts)
    first.tokenizer.save(tmp_path / "run" / "tokenizer")
    assert resolve.resolve(run).notes == []
    train = [document["text"] for document in first.train_source]
    for changed, message in (
        (file.read_text().replace(train[3], train[3] + "!"), "and some have other contents"),
        (file.read_text() + '{"text": "one more"}\n' * 9, f"{len(train)} documents then, "),
    ):
        file.write_text(changed)
        with pytest.raises(ValueError, match=f"have changed since the run in .* began: .*{message}.*--init-from"):
            resolve.resolve(run)
        file.write_text(corpus.read_text())
    more = dataclasses.replace(run, evaluation=dataclasses.replace(run.evaluation, batches=2))
    told = "what is measured: evaluations up to step 4 cannot be compared with later ones, and do not count"
    assert resolve.resolve(run).facts["comparable_since"] == 0
    found = resolve.resolve(more)
    assert found.notes[0] == "evaluation.batches: 1, now 2" and found.notes[1].startswith(told)
    held_out.write_text("another dog " * 40)
    found = resolve.resolve(run)
    assert found.notes[0].startswith("held-out documents: ") and found.notes[1].startswith(told)
    runs.write(found.run, found.facts)
    again = resolve.resolve(run)
    assert again.notes == [] and again.facts["comparable_since"] == 4
    smooth = lambda share: dataclasses.replace(run, objective=SequenceClassification(label_smoothing=share))
    assert not runs.measures_the_same(smooth(0.1), smooth(0.3)) and runs.measures_the_same(smooth(0.1), smooth(0.1))
    assert runs.measures_the_same(run, dataclasses.replace(run, objective=CausalLM(logits_chunks=2)))


def test_a_run_without_evaluation_reads_no_held_out_documents(corpus: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text("a lazy dog " * 50)
    run = tiny(corpus, tmp_path / "run", data=Data(source=f"text:{one}", length=32))
    with pytest.raises(ValueError, match="none can be held out"):
        resolve.resolve(run)
    resolved = resolve.resolve(dataclasses.replace(run, evaluation=Evaluation(every=None)))
    assert resolved.validation_source is None and resolved.facts["data"]["validation"] is None


def test_fingerprints_of_large_splits_are_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "STRETCHES", 3), monkeypatch.setattr(fingerprints, "DOCUMENTS", 2)
    assert fingerprints._read(6) == [0, 1, 2, 3, 4, 5] and fingerprints._read(11) == [0, 1, 4, 5, 9, 10]

    class Numbers(sources.Source):
        def __init__(self, *values: Any) -> None:
            self.values = values

        def __len__(self) -> int:
            return len(self.values)

        def read(self, index: int) -> dict[str, Any]:
            return {"text": self.values[index], "vector": np.arange(3)}

    of = lambda *values: fingerprints.fingerprint(Numbers(*values))
    assert of(*range(11)) == of(*range(11)) != of(*range(10), 11)
    monkeypatch.setattr(fingerprints, "BYTES", 10)
    assert of(1, 2) == of(1, 3) != of(2, 2)
    known = Numbers(*range(11))
    known.fingerprint = "all"
    assert fingerprints.fingerprint(known) == {"documents": 11, "contents": "all"}
    assert fingerprints.difference(of(1), of(1)) is None
    assert fingerprints.difference(of(1), of(1, 2)) == "1 documents then, 2 now"
