"""Settings of a run: those that cannot be are refused by name, and unknown ones get the nearest known name."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from transformer_zoo import commands, hugging_face, options
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
from transformer_zoo.models import gpt2
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import CausalLM, Distillation, SpanCorruption

MODEL = gpt2.Config(vocab_size=300, max_length=32, width=32, num_layers=2, num_heads=2)
POSITIVE, NOT_NEGATIVE, SIZE, SHARE = (0, -1.0), (-1,), (0, -1), (-0.1, 1.0)
WORD, EMPTY = ("?",), ("",)

# The settings of each part -> values that cannot be. NaN and infinity are tried for all numbers.
IMPOSSIBLE: dict[Any, dict[str, tuple[Any, ...]]] = {
    Data: {
        "length": (1, 0, -1), "workers": NOT_NEGATIVE, "packing": WORD, "held_out_by": WORD,
        "validation_share": (0.0, 1.0),
    },
    Vocabulary: {"size": SIZE, "kind": WORD},
    Optimizer: {
        "name": WORD, "schedule": WORD, "peak_lr": POSITIVE, "warmup_steps": NOT_NEGATIVE, "decay_steps": SIZE,
        "final_lr": (-0.1, 1.1), "b1": SHARE, "b2": SHARE, "eps": POSITIVE, "weight_decay": NOT_NEGATIVE,
        "clip_norm": POSITIVE, "balance_rate": NOT_NEGATIVE, "ema": SHARE,
    },
    Mesh: dict.fromkeys(("data", "fsdp", "tensor", "sequence", "expert"), (0, -2)),
    Training: {
        "steps": SIZE, "epochs": POSITIVE, "batch_size": SIZE, "accumulation": SIZE, "seed": (-1, 2**32),
        "patience": SIZE,
    },
    Evaluation: {"every": SIZE, "batches": SIZE, "patience": SIZE, "direction": WORD},
    Checkpoints: {"every": SIZE, "keep": SIZE, "keep_every": SIZE},
    Logging: {"every": SIZE},
    Compute: {"dtype": WORD, "param_dtype": WORD, "remat": WORD, "unroll": SIZE},
    Run: {"directory": EMPTY, "init_from": EMPTY},
}  # fmt: skip
# Settings that can be anything of their type, or are checked where their names are known: by sources, by optim, ...
FREE = {
    "source",
    "validation_source",
    "train_split",
    "validation_split",
    "path",
    "chat_template",
    "freeze",
    "wandb",
    "attention",
    "model",
    "objective",
    "best",
}


@pytest.mark.parametrize("part", IMPOSSIBLE, ids=lambda part: part.__name__)
def test_what_cannot_be_is_refused_by_name(part: Any) -> None:
    needed = {"model": MODEL, "objective": CausalLM()} if part is Run else {}
    part(**needed)
    for field in dataclasses.fields(part):
        if dataclasses.is_dataclass(field.type) or field.name in FREE or field.type is bool:
            continue
        numbers = (math.nan, math.inf, -math.inf) if "float" in str(field.type) else ()
        if field.type in (int, int | None):
            numbers = (10**12, 10**400)
        for value in (*IMPOSSIBLE[part][field.name], *numbers):
            with pytest.raises(ValueError, match=rf"{field.name}\b.* (must|choose|give|at least)"):
                part(**needed, **{field.name: value})


def test_a_schedule_is_no_longer_than_the_run() -> None:
    for settings, remedy in (
        ({"warmup_steps": 21}, "lower optimizer.warmup-steps to at most 20, or train for 21 steps or more"),
        ({"warmup_steps": 10, "decay_steps": 11}, "lower optimizer.warmup-steps to at most 9, or"),
        ({"decay_steps": 21}, "lower optimizer.decay-steps to at most 20 and optimizer.warmup-steps to at most 0, or"),
    ):
        with pytest.raises(ValueError, match=f"warmup_steps=.* do not fit into 20 steps of training: {remedy}"):
            Run(model=MODEL, objective=CausalLM(), optimizer=Optimizer(**settings), training=Training(steps=20))
    for settings in ({"warmup_steps": 20}, {"warmup_steps": 9, "decay_steps": 11}):
        Run(model=MODEL, objective=CausalLM(), optimizer=Optimizer(**settings), training=Training(steps=20))


def test_numbers_of_models_and_objectives_are_finite() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="norm_epsilon is (nan|inf)"):
            gpt2.Config(norm_epsilon=value)
        for objective, name in (
            (lambda x: Distillation(teacher="gpt2", soft_weight=x), "soft_weight"),
            (lambda x: SpanCorruption(mean_span_length=x), "mean_span_length"),
        ):
            with pytest.raises(ValueError, match=f"{name}.*(nan|inf)"):
                Run(model=MODEL, objective=objective(value))


# ---- names of options -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> list[str]:
    return commands._options(commands._Train(run=Run(model=MODEL, objective=SpanCorruption())))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--training.lr", "--optimizer.peak-lr"),
        ("--optimizer.learning-rate=1", "--optimizer.peak-lr"),
        ("--per_device_train_batch_size", "--training.batch-size"),
        ("--num_train_epochs", "--training.epochs"),
        ("--epochs", "--training.epochs"),
        ("--warmup_ratio", "--optimizer.warmup-steps"),
        ("--bf16", "--compute.dtype bfloat16"),
        ("--seed", "--training.seed"),
        ("--max_length", "--data.length or --model.max-length"),
        ("--every", "--evaluation.every, --checkpoints.every or --logging.every"),
        ("--optimizer.weight-decai", "--optimizer.weight-decay"),
        ("--weigth_decay", "--optimizer.weight-decay"),
        ("--Data.Length", "--data.length"),
    ],
)
def test_an_unknown_setting_gets_the_nearest_one(known: list[str], given: str, meant: str) -> None:
    name = given.partition("=")[0]
    wrong = options.unknown(["--optimizer.peak_lr", "3e-4", given, "3"], known, hugging_face.TRAIN)
    assert wrong == f"there is no option {name}. Did you mean {meant}?"


def test_known_settings_and_words_that_are_like_nothing(known: list[str]) -> None:
    assert options.unknown(["--optimizer.peak_lr", "1", "--mesh.data=-1", "--help", "--aot", "x"], known) is None
    assert options.unknown(["--qqqq"], known) == "there is no option --qqqq."


def test_names_of_other_libraries_are_options_here(known: list[str]) -> None:
    of_objectives = {"objective.rate"}  # of MaskedLM
    assert {ours.split()[0] for ours in hugging_face.TRAIN.values()} <= {*known, *of_objectives}


def test_an_unknown_setting_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "tiny.py"
    recipe.write_text(
        "from transformer_zoo.config import Run\nfrom transformer_zoo.models import gpt2\n"
        "from transformer_zoo.objectives import CausalLM\n"
        "config = Run(model=gpt2.Config(), objective=CausalLM())\n"
    )
    assert commands.train([str(recipe), "--training.lr", "3"]) == 2
    assert commands.evaluate_command(["x", "--sorce", "y"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: there is no option --training.lr. Did you mean --optimizer.peak-lr? All are listed by train.py "
        f"{recipe} --help",
        "error: there is no option --sorce. Did you mean --source?",
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Optimizer(learning_rate=1e-3)", "Did you mean optimizer.peak_lr?"),
        ("Optimizer(weight_decai=0.1)", "Did you mean 'weight_decay'?"),
        ("Training(num_train_epochs=3)", "Did you mean training.epochs?"),
        ("Data(3)", "takes 1 positional argument"),
    ],
)
def test_an_unknown_setting_of_a_recipe_gets_the_nearest_one(tmp_path: Path, written: str, meant: str) -> None:
    (tmp_path / "recipe.py").write_text(f"from transformer_zoo.config import *\n{written}\n")
    with pytest.raises(TypeError, match=re.escape(meant)) as error:
        load_recipe(tmp_path / "recipe.py")
    assert str(error.value).startswith(f"{tmp_path / 'recipe.py'}: ")
