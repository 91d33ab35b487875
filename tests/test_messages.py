"""What commands print on stderr."""

import errno
import re
from pathlib import Path

import processes
import pytest

from transformer_zoo import __main__, commands, folders, messages, runs


def test_errors_of_the_system_are_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError) as caught:
        (tmp_path / "none").read_text()
    assert messages.fail(caught.value) == 1 and messages.fail("a word", code=2) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none: No such file or directory\nerror: a word\n"
    assert messages.words(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert messages.words(OSError("none of these")) == "none of these"


def test_settings_are_spelt_as_options() -> None:
    command = __main__.Generate(name="x")
    for text, expected in (
        ("temperature=-1.0 must be positive", "--temperature -1.0 must be positive"),
        ("num_beams=0 and top_k=3", "--beams 0 and --top-k 3"),
        ("top_k is -1: it must be positive, and seed is 3", "--top-k -1: it must be positive, and seed is 3"),
        ('one of family="t5": give that', 'one of --family "t5": give that'),
        ("a.json: top_k=-1: ask for temperature=0", "a.json: top_k=-1: ask for --temperature 0"),
        ("no_top_k=1, data.seed=1 and seed = 1", "no_top_k=1, data.seed=1 and seed = 1"),
    ):
        assert messages.by_options(ValueError(text), command, __main__.OPTIONS) == expected
    flags = __main__.Convert(source="x", target=Path("y"))
    assert messages.by_options(ValueError("pass overwrite=True to"), flags) == "pass --overwrite to"


def test_warnings_are_lines() -> None:
    code = "import warnings; from transformer_zoo import messages; messages.show_warnings_plainly(); "
    process = processes.Process(processes.run, f"{code}warnings.warn('a is left out', stacklevel=1)")
    assert process.communicate()[0] == "warning: a is left out\n"
    printing = [
        file.name
        for file in Path(messages.__file__).parent.rglob("*.py")
        if re.search(r"print\([^)]*warning", file.read_text(encoding="utf-8"))
    ]
    assert printing == ["messages.py"]  # all others call `warnings.warn`


def test_folders_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For runs, `convert`, `predict`, eval.py and `compare`, before anything is computed."""
    (tmp_path / "file").touch()
    for below, why in (("file", "it is a file"), ("file/a/b", f"{tmp_path}/file is a file"), ("a" * 300, "too long")):
        for make in (folders.make, lambda path: runs.locked(path).__enter__()):
            with pytest.raises(OSError, match=f"the folder {tmp_path}/{below} cannot be made: .*{why}"):
                make(tmp_path / below)
    (tmp_path / "run" / runs.LOCK).mkdir(parents=True)
    with pytest.raises(OSError, match=f"the folder {tmp_path}/run cannot be written: Is a directory"):
        runs.locked(tmp_path / "run").__enter__()
    for below, why in (
        ("run", "is a folder: name a file"),
        ("none/a", f"there is no folder {tmp_path}/none"),
        ("file/a", f"there is no folder {tmp_path}/file"),
        ("a" * 300, "File name too long"),
    ):
        with pytest.raises((OSError, ValueError), match=f"--json {tmp_path}/{below}:? .*{why}"):
            folders.check_file(tmp_path / below, "--json")
    folders.check_file(tmp_path / "new", "--json")
    folders.check_file(tmp_path / "file", "--json")
    assert not (tmp_path / "new").exists()
    assert commands.evaluate_command(["model", "--json", str(tmp_path / "none" / "a")]) == 1
    assert __main__.main(["compare", "a", "b", "--output", str(tmp_path / "none" / "a")]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [error.split()[:2] for error in errors] == [["error:", "--json"], ["error:", "--output"]]
