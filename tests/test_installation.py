"""The first cell of the notebooks: what it installs and leaves alone, and what it says where versions do not fit."""

import importlib.metadata
import json
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest

from transformer_zoo import installation

ROOT = Path(__file__).parent.parent
VERSIONS = {"jax": "0.7.2", "jaxlib": "0.7.2", "libtpu": "0.0.21.1", "numpy": "2.1.3"}


@pytest.fixture
def versions(monkeypatch):
    """What is installed besides what really is; None: it is not. jax 0.7.2 asks for libtpu 0.0.23."""
    changed = dict(VERSIONS)
    real = importlib.metadata.version

    def version(name):
        if changed.get(name, name) is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return changed.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    requires = ["numpy>=2.0", 'libtpu==0.0.23; extra == "tpu"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    installation.outdated_libtpu.cache_clear()
    yield changed
    installation.outdated_libtpu.cache_clear()


@pytest.fixture
def pip(monkeypatch, versions):
    """Colab, where einops is missing; pip as it is called, with the constraints."""
    calls = []

    def run(command, **_):
        constraints = Path(command[command.index("-c") + 1]).read_text()
        calls.append((command[3:], constraints))
        return subprocess.CompletedProcess(command, *answer)

    answer = [0, "", ""]
    versions["einops"] = None
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", run)
    return types.SimpleNamespace(calls=calls, answer=answer)


def device(monkeypatch, platform, kind="TPU v5 lite"):
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform=platform, device_kind=kind)] * 8)


def test_on_colab_what_is_missing_is_installed_and_pip_may_not_replace_jax(pip, monkeypatch, capsys):
    device(monkeypatch, "tpu")
    installation.prepare()
    ((command, constraints),) = pip.calls
    assert command[0] == "install" and command[-2:] == ["-e", str(ROOT)]
    assert constraints == "jax==0.7.2\njaxlib==0.7.2\nlibtpu==0.0.21.1\nnumpy==2.1.3\n"
    out = capsys.readouterr().out
    assert "8 x TPU v5 lite (jax 0.7.2, jaxlib 0.7.2, libtpu 0.0.21.1)" in out
    assert "without the TPU's kernel: libtpu 0.0.21.1 is older than 0.0.23, which jax 0.7.2 goes with" in out


def test_on_colab_what_cannot_be_installed_is_an_error_with_the_words_of_pip(pip):
    pip.answer[:] = [1, "", "ERROR: ResolutionImpossible"]
    with pytest.raises(
        RuntimeError, match="cannot be installed beside jax 0.7.2, .*numpy 2.1.3. pip says:\nERROR: Res"
    ):
        installation.prepare()


def test_on_colab_an_old_jax_is_an_error_before_anything_is_installed(pip, versions):
    versions["jax"] = "0.4.38"
    with pytest.raises(RuntimeError, match="jax 0.4.38 is installed, and 0.* or newer is needed.* a newer runtime ver"):
        installation.prepare()
    assert not pip.calls


def test_on_colab_a_libtpu_that_starts_no_tpu_is_named(pip, monkeypatch, capsys):
    device(monkeypatch, "cpu", "cpu")
    installation.prepare()
    assert "jax found no TPU" in capsys.readouterr().out

    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu'")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(RuntimeError, match="jax 0.7.2, .* libtpu 0.0.21.1, .* do not fit .*initialize backend 'tpu'"):
        installation.prepare()


def test_elsewhere_it_only_checks(versions, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", None)
    installation.prepare()
    assert re.fullmatch(r"8 x cpu \(jax 0.7.2, .*\)\n", capsys.readouterr().out)
    versions |= {"einops": None, "rich": "13.9"}
    with pytest.raises(RuntimeError, match="einops is not installed; rich 13.9 is installed, and 14 .* pip install -c"):
        installation.prepare()


@pytest.mark.parametrize(
    "installed, outdated",
    [("0.0.21.1", True), ("0.0.23", False), ("0.0.23.1", False), ("0.0.50", False), (None, False)],
)
def test_a_libtpu_older_than_the_one_that_jax_asks_for_is_told(installed, outdated, versions):
    versions["libtpu"] = installed
    assert bool(installation.outdated_libtpu()) is outdated


def test_all_requirements_of_the_project_are_checked():
    """Those with extras too, such as etils[epath]."""
    assert installation._faults() == []


def test_every_notebook_begins_with_the_same_cell():
    first = {
        next("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code")
        for path in (ROOT / "colab").glob("*.ipynb")
    }
    assert len(first) == 1 and "prepare()" in first.pop()
