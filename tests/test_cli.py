"""`python -m transformer_zoo`: each command does its work, and each mistake is one line and an exit code."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import families
import numpy as np
import pytest
from rich.console import Console

import transformer_zoo as zoo
from transformer_zoo import loop, registry, runs, trees
from transformer_zoo.__main__ import COMMANDS, main
from transformer_zoo.checkpoints import config_map
from transformer_zoo.config import Data, Evaluation, Logging, Mesh, Run, Training, Vocabulary
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.models import gpt2
from transformer_zoo.objectives import CausalLM

pytestmark = pytest.mark.usefixtures("wide_terminal")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A small published model with its tokenizer."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    tokenizer = Tokenizer.train(["def read(path):\n    return open(path).read()\n"] * 3, 280)
    config = gpt2.Config(
        vocab_size=tokenizer.vocab_size, max_length=64, width=32, num_layers=2, num_heads=4, eos_id=tokenizer.eos_id
    )
    m = families.made("gpt2", config)
    zoo.save_pretrained(folder, dataclasses.replace(m, tokenizer=tokenizer))
    return str(folder)


def out_of(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def fault(capsys, code: int, *arguments: str) -> str:
    """The one line of the error."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1, captured
    return captured.err


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_is_quick(arguments):
    """It does not start jax, and explains every option."""
    code = (
        "import sys; from transformer_zoo.__main__ import main\n"
        f"try: main({[*arguments, '--help']})\n"
        "except SystemExit as done: assert done.code == 0\n"
        "assert 'jax' not in sys.modules"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 2 + 3 * os.getloadavg()[0]  # two seconds on a machine that is ours
    command = COMMANDS[arguments[0]] if arguments else None
    names = [field.name for field in dataclasses.fields(command)] if command else list(COMMANDS)
    for name in names:
        positional = name in ("name", "source", "target", "recipe", "runs")
        assert name in COMMANDS or name.replace("_", "-") in done.stdout or positional


def test_as_a_module(folder):
    done = subprocess.run(
        [sys.executable, "-m", "transformer_zoo", "generate", folder, "--max-new-tokens", "0"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "error: --max-new-tokens 0: ask for at least 1"


def test_list(capsys, monkeypatch):
    """The first presets of some families stand for all: to count the parameters of one takes a trace."""
    every = registry.presets()
    first = {preset.family: name for name, preset in reversed(every.items())}
    assert set(first) == set(registry.families())
    monkeypatch.setattr(registry, "presets", lambda: {first[family]: every[first[family]] for family in families.USUAL})
    text = out_of(capsys, "list")
    for name, preset in registry.presets().items():
        assert name in text and preset.hub_id in text and f"{preset.params:,}" in text
    assert all(task in text for task in gpt2.PUBLISHED.tasks)


def test_published_counts():
    assert registry.presets()["gpt2"].params == 124_439_808
    assert registry.presets()["gpt2-xl"].params == 1_557_611_200
    assert registry.presets()["bloom-560m"].params == 559_214_592
    assert registry.presets()["bloom"].params == 176_247_271_424
    assert registry.presets()["gpt-neo-125m"].params == 125_198_592
    assert registry.presets()["gpt-neo-2.7b"].params == 2_651_307_520
    assert registry.presets()["deepseek-v3"].params == 671_026_419_200
    assert registry.presets()["moonlight-16b-a3b"].params == 15_960_110_208
    assert registry.presets()["openai-gpt"].params == 116_534_784
    assert registry.presets()["opt-125m"].params == 125_239_296
    assert registry.presets()["opt-350m"].params == 331_196_416
    assert registry.presets()["gemma-2b"].params == 2_506_172_416
    assert registry.presets()["gemma-7b"].params == 8_537_680_896
    assert registry.presets()["gemma-2-2b"].params == 2_614_341_888
    assert registry.presets()["gemma-3-270m"].params == 268_098_176
    assert registry.presets()["qwen3.5-0.8b"].params == 752_393_024
    assert registry.presets()["gemma-3-1b"].params == 999_885_952
    assert registry.presets()["gemma-4-26b-a4b"].params == 25_233_141_790
    assert registry.presets()["command-r7b"].params == 8_028_033_024
    assert registry.presets()["granite-3.3-2b"].params == 2_533_525_504
    assert registry.presets()["deepseek-coder-1.3b"].params == 1_346_471_936
    assert registry.presets()["yi-6b"].params == 6_061_035_520
    assert registry.presets()["olmo-2-1b"].params == 1_484_916_736
    assert registry.presets()["olmo-3-7b"].params == 7_298_011_136
    assert registry.presets()["phi-3-mini-4k"].params == 3_821_079_552
    assert registry.presets()["phi-4"].params == 14_659_507_200
    assert registry.presets()["phi-4-mini"].params == 3_836_021_760
    assert registry.presets()["smollm3-3b"].params == 3_075_098_624
    assert registry.presets()["pythia-70m"].params == 70_426_624
    assert registry.presets()["pythia-12b"].params == 11_846_072_320
    assert registry.presets()["gpt-neox-20b"].params == 20_554_567_680
    assert registry.presets()["phi-2"].params == 2_779_683_840
    assert registry.presets()["gpt-j-6b"].params == 6_050_882_784
    assert registry.presets()["stablelm-3b-4e1t"].params == 2_795_443_200
    assert registry.presets()["starcoder2-15b"].params == 15_957_889_024
    assert registry.presets()["falcon-40b"].params == 41_303_293_952
    assert registry.presets()["palm-540b"].params == 540_356_474_880  # 540.35 billion, and the norms


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_info_of_a_preset(capsys, name):
    text = out_of(capsys, "info", name)
    for path in trees.flatten(registry.param_shapes(gpt2.Model(gpt2.Config()))):
        assert path in text
    assert "124,439,808" in text and "124,475,904" in text and "0.46 GiB" in text
    assert "norm_epsilon" in text and "1e-05" in text


def test_info_of_a_folder_reads_no_weights(capsys, folder, tmp_path):
    (tmp_path / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    text = " ".join(out_of(capsys, "info", str(tmp_path)).split())  # however long the folder's name is
    assert "gpt2, causal-lm" in text and "2 x 32 x 4 x 8" in text


def test_generate(capsys, folder, monkeypatch, tmp_path):
    m = zoo.from_pretrained(folder)
    options = ["--prompt", "def", "--max-new-tokens", "9"]
    assert out_of(capsys, "generate", folder, *options) == "def" + zoo.generate(m, "def", max_new_tokens=9) + "\n"
    sampling = zoo.Sample(temperature=0.7, top_k=50, top_p=0.9)
    expected = zoo.generate(m, "def", max_new_tokens=9, sampling=sampling, seed=3)
    options += ["--temperature", "0.7", "--top-k", "50", "--top-p", "0.9", "--seed", "3"]
    assert out_of(capsys, "generate", folder, *options) == "def" + expected + "\n"
    beam = zoo.Beam(num_beams=3, num_return_sequences=2, no_repeat_ngram_size=2)
    texts = zoo.generate(m, "def", max_new_tokens=9, sampling=beam)
    options = ["--prompt", "def", "--max-new-tokens", "9", "--beams", "3", "--answers", "2"]
    found = out_of(capsys, "generate", folder, *options, "--no-repeat-ngram-size", "2")
    assert found == "".join(f"def{text}\n" for text in texts)
    assert out_of(capsys, "generate", folder, "--max-new-tokens=4") == zoo.generate(m, "", max_new_tokens=4) + "\n"
    given = {}
    monkeypatch.setattr(zoo, "generate", lambda m, prompt, **arguments: given.update(arguments) or " b")
    (tmp_path / "schema.json").write_text('{"type": "null"}')
    options = ["--prompt=def", "--draft", folder, "--draft-tokens=2", "--choices", " a", " b", "--prefill-chunk=8"]
    assert out_of(capsys, "generate", folder, *options) == "def b\n"
    assert (given["draft"].config, given["draft_tokens"], given["choices"]) == (m.config, 2, (" a", " b"))
    schema = ["--schema", str(tmp_path / "schema.json")]
    assert out_of(capsys, "generate", folder, "--prompt=def", "--prefill-chunk=8", *schema) == "def b\n"
    assert (given["pattern"], given["prefill_chunk"], given["schema"]) == (None, 8, {"type": "null"})
    for constraint, words in (
        (["--pattern", "(a"], "is no regular expression"), ([*options[4:7], *schema], "choices and schema: give one"),
        (["--schema", "absent.json"], "absent.json"),
    ):  # fmt: skip
        for command in ("generate", "chat"):  # before any weights are looked for, of which that folder has none
            assert words in fault(capsys, 1, command, str(tmp_path), *constraint)
    words = "--min-new-tokens 2 and schema may contradict one another"
    assert words in fault(capsys, 1, "generate", str(tmp_path), "--min-new-tokens=2", *schema)


def test_convert(capsys, folder, tmp_path):
    text = out_of(capsys, "convert", folder, str(tmp_path / "copy"))
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert text == f"{tmp_path / 'copy'} holds {folder}: {', '.join(files)}\n"
    (tmp_path / "copy" / "notes.txt").write_text("mine")
    assert out_of(capsys, "convert", folder, str(tmp_path / "copy")) == text  # what was written, and no other files
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (Path(folder) / name).read_bytes()
    # Another model is not replaced unasked: that is said before weights are looked for, of which that folder has none.
    (tmp_path / "bare").mkdir()
    settings = config_map.write(registry.family("bert"), families.small("bert"), "masked-lm")
    (tmp_path / "bare" / "config.json").write_text(json.dumps(settings))
    said = fault(capsys, 1, "convert", str(tmp_path / "bare"), str(tmp_path / "copy"))
    assert 'with architectures ["GPT2LMHeadModel"], model_type "gpt2": name another folder, or pass --overwrite' in said
    assert "no weights" in fault(capsys, 1, "convert", str(tmp_path / "bare"), str(tmp_path / "copy"), "--overwrite")
    assert "causal-lm, and this one is of masked-lm" in fault(capsys, 1, "convert", str(tmp_path / "bare"), "a.gguf")
    out_of(capsys, "convert", folder, str(tmp_path / "half"), "--dtype", "bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    half, whole = (
        trees.flatten(zoo.from_pretrained(path, param_dtype="float32").params) for path in (tmp_path / "half", folder)
    )
    for path, x in whole.items():
        np.testing.assert_array_equal(half[path], np.asarray(x).astype("bfloat16").astype(np.float32))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("cli-run")
    for i in range(20):
        (folder / f"{i}.txt").write_text(f"{i}: the quick brown fox jumps over the lazy dog " * 3)
    run = Run(
        model=gpt2.Config(vocab_size=280, max_length=32, width=16, num_layers=1, num_heads=2, eos_id=0),
        objective=CausalLM(),
        directory=str(folder / "run"),
        data=Data(source=f"text:{folder}/*.txt", length=16),
        vocabulary=Vocabulary(size=280),
        mesh=Mesh(data=8),
        training=Training(steps=2, batch_size=8),
        evaluation=Evaluation(every=2, batches=1),
        logging=Logging(tensorboard=False),
    )
    loop.train(run, Console(file=io.StringIO()))
    return run.directory


def test_a_run_is_a_model_too(capsys, run, tmp_path):
    m = runs.load_run(run)
    assert "gpt2, causal-lm" in out_of(capsys, "info", run)
    expected = "the" + zoo.generate(m, "the", max_new_tokens=7) + "\n"
    assert out_of(capsys, "generate", run, "--prompt", "the", "--max-new-tokens", "7") == expected
    out_of(capsys, "convert", run, str(tmp_path / "copy"))
    assert out_of(capsys, "generate", str(tmp_path / "copy"), "--prompt", "the", "--max-new-tokens", "7") == expected
    out_of(capsys, "convert", run, str(tmp_path / "half"), "--dtype", "bfloat16")
    before = sorted(Path(run).iterdir())
    assert f"{run} holds another run, and files of two" in fault(capsys, 1, "convert", str(tmp_path / "copy"), run)
    assert sorted(Path(run).iterdir()) == before
    half, whole = (trees.flatten(zoo.from_pretrained(tmp_path / name).params) for name in ("half", "copy"))
    for path, x in whole.items():
        np.testing.assert_array_equal(half[path], np.asarray(x).astype("bfloat16").astype(np.float32))
    assert out_of(capsys, "generate", run, "--max-new-tokens", "3", "--dtype", "bfloat16")


def test_a_family_for_a_config_without_one(capsys, folder, run, tmp_path, monkeypatch):
    from transformer_zoo import fit

    shutil.copytree(folder, tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["model_type"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    old, expected = str(tmp_path / "old"), zoo.from_pretrained(folder)
    assert "names no model_type: give the family" in fault(capsys, 1, "info", old)
    assert "gpt2, causal-lm" in " ".join(out_of(capsys, "info", old, "--family", "gpt2").split())
    text = zoo.generate(expected, "def", max_new_tokens=3)
    options = ["--family", "gpt2", "--prompt", "def", "--max-new-tokens", "3"]
    assert out_of(capsys, "generate", old, *options) == f"def{text}\n"
    out_of(capsys, "convert", old, str(tmp_path / "new"), "--family", "gpt2")
    assert zoo.from_pretrained(tmp_path / "new").config == expected.config
    seen = []
    monkeypatch.setattr(fit, "main_writing", lambda model, writing, topology: seen.append(model) or 0)
    assert main(["fit", old, "--topology", "v5e:2x2", "--family", "gpt2"]) == 0 and seen == [expected.model]
    for command in (["info", run], ["generate", run], ["embed", run, "a"], ["info", "gpt2"]):
        message = fault(capsys, 1, *command, "--family", "bert")
        assert f"{command[1]} is of the family gpt2, and not of 'bert': leave it out" in message
    fit_recipe = ["fit", "configs/x.py", "--topology", "v5e:4x4", "--family", "bert"]
    assert "--family is for a model's name, and configs/x.py is a recipe" in fault(capsys, 1, *fit_recipe)


def test_fit_is_the_train_step_s(monkeypatch):
    from transformer_zoo import commands

    seen = []
    monkeypatch.setattr(commands, "train", lambda arguments: seen.append(arguments) or 3)
    assert main(["fit", "configs/x.py", "--topology", "v5e:4x4", "--", "--mesh.fsdp", "16"]) == 3
    assert seen == [["configs/x.py", "--aot", "v5e:4x4", "--mesh.fsdp", "16"]]


def test_fit_and_info_take_every_kind_of_name(monkeypatch, folder, run):
    from transformer_zoo import fit

    seen = []
    monkeypatch.setattr(fit, "main_writing", lambda model, writing, topology: seen.append((model, topology)) or 0)
    for name in ("gpt2", "openai-community/gpt2", folder, run):
        assert main(["fit", name, "--topology", "v5e:2x2"]) == 0
    models = [gpt2.Model(gpt2.Config())] * 2 + [zoo.from_pretrained(folder).model, runs.load_run(run).model]
    assert seen == [(model, "v5e:2x2") for model in models]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generat", "x"], "error: there is no command 'generat'. Did you mean 'generate'?"),
        (["zzz"], "error: there is no command 'zzz'. Try python -m transformer_zoo --help"),
        (["generate", "x", "--promt", "a"], "error: generate: there is no option --promt. Did you mean --prompt?"),
        (["generate", "x", "--max_new_token=3"], "no option --max_new_token. Did you mean --max-new-tokens?"),
        (["fit", "x", "--topologie", "v5e:4x4"], "Did you mean --topology?"),
    ],
    ids=str,
)
def test_a_misspelt_name(capsys, arguments, message):
    assert message in fault(capsys, 2, *arguments)


@pytest.mark.parametrize(
    "arguments", [["generate"], ["generate", "x", "--max-new-tokens", "many"], ["convert", "x"]], ids=str
)
def test_arguments_that_cannot_be(arguments):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2


def test_what_cannot_be_done(capsys, folder, tmp_path):
    assert "no preset 'gtp2'. Did you mean 'gpt2'?" in fault(capsys, 1, "info", "gtp2")
    assert "has no config.json" in fault(capsys, 1, "info", str(tmp_path))
    assert "no folder" in fault(capsys, 1, "generate", str(tmp_path / "nothing"))
    assert "has no config.json" in fault(capsys, 1, "convert", str(tmp_path), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()
    assert "the model has 64 positions" in fault(capsys, 1, "generate", folder, "--max-new-tokens", "99")
    needs = "--top-k is a setting of Sample: give --temperature as well, such as 0.8"
    assert needs in fault(capsys, 1, "generate", folder, "--top-k", "3")
    needs = "--answers is a setting of Beam and Sample: give --beams as well, such as 4, or --temperature as well"
    assert needs in fault(capsys, 1, "generate", folder, "--answers", "3")
    both = "--beams is a setting of Beam, and --temperature of Sample: give the settings of one of them"
    assert both in fault(capsys, 1, "generate", folder, "--beams", "3", "--temperature", "0.9")
    assert "--temperature -1.0 must be positive" in fault(capsys, 1, "generate", folder, "--temperature=-1")
