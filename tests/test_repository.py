"""The repository's requirements, documents and recipes agree with its code."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from transformer_zoo.config import Run, load_recipe

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
DOCUMENTS = sorted(ROOT.glob("*.md"))
RECIPES = sorted((ROOT / "configs").glob("[!_]*.py"))


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def pins(name: str, python: str) -> dict[str, str]:
    """The versions that a file of constraints names for a version of Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    versions = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(environment):
                assert canonicalize_name(pin.name) not in versions, f"{pin.name} has two rows for Python {python}"
                assert re.fullmatch(r"==[^=*,]+", str(pin.specifier)), f"{pin} does not name one version"
                versions[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return versions


@pytest.mark.parametrize(
    "name, python, extras",
    [
        *[("constraints.txt", python, ("test", "parity", "wandb")) for python in ("3.11", "3.12", "3.13")],
        ("constraints-colab.txt", "3.13", ("test",)),
    ],
)
def test_every_requirement_has_one_tested_version(name: str, python: str, extras: tuple[str, ...]):
    versions = pins(name, python)
    for requirement in [*RUNTIME, *(x for extra in extras for x in EXTRAS[extra])]:
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{name} lacks {requirement.name}"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} against {version}"


def test_jax_and_flax_are_asked_for_from_colabs_versions_on():
    versions = pins("constraints-colab.txt", "3.13")
    bounds = {requirement.name: str(requirement.specifier) for requirement in RUNTIME}
    assert {name: bounds[name] for name in ("jax", "flax")} == {name: f">={versions[name]}" for name in ("jax", "flax")}


def test_the_tests_of_make_colab_exist():
    for line in (ROOT / "tests" / "colab.txt").read_text(encoding="utf-8").splitlines():
        file, _, test = line.partition("::")
        name = test.partition("[")[0]
        assert not name or f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), line


def test_requirements_are_what_is_imported():
    distributions = packages_distributions()
    imported = set()
    for path in [*(ROOT / "transformer_zoo").rglob("*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= set(sys.stdlib_module_names) | {"transformer_zoo"}
    # Several distributions may share a name space; one of them declared will do. What is not installed is an extra's.
    found = {name: {canonicalize_name(dist) for dist in distributions.get(name, [name])} for name in sorted(imported)}
    declared = names(RUNTIME) | names(EXTRAS["wandb"]) | names(EXTRAS["gguf"])
    undeclared = [name for name, dists in found.items() if not dists & declared]
    assert not undeclared, f"imported, but not among the dependencies of pyproject.toml: {undeclared}"
    unused = names(RUNTIME) - set().union(*found.values())
    assert not unused, f"declared in pyproject.toml, but never imported: {sorted(unused)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_what_exists(document: Path):
    text = document.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"demo", "test", "parity", "lint"} <= targets
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets
    files = set(re.findall(r"(?:configs|colab|benchmarks|tools|tests)/[\w/]+\.(?:py|ipynb)", code))
    files |= set(re.findall(r"\bpython ([\w/]+\.py)", code))
    files |= {link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    missing = sorted(name for name in files if not (ROOT / name).exists())
    assert not missing, f"{document.name} names {missing}"


def test_the_demo_begins_with_how_long_it_takes():
    told = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    minutes = re.search(r'echo "This takes about (\w+) minutes on two CPU cores', told)[1]
    assert f"`make demo` takes about {minutes} minutes on two CPU cores" in (ROOT / "README.md").read_text()


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipe_is_read_and_says_how_to_run_it(recipe: Path):
    assert isinstance(load_recipe(recipe), Run)
    docstring = ast.get_docstring(ast.parse(recipe.read_text(encoding="utf-8")))
    assert f"python train.py configs/{recipe.name}" in (docstring or "")


def test_a_recipe_builds_on_one_that_stands_alone():
    """At most two files define a run."""
    built = {recipe.name: set(re.findall(r'load_recipe\("(.+?)"', recipe.read_text())) for recipe in RECIPES}
    bases = set().union(*built.values())
    assert {"bert_base.py", "bert_stdlib.py"} <= bases
    assert not {name: built[name] for name in bases if built[name]}


def test_a_recipe_finds_the_other_from_any_working_directory(tmp_path, monkeypatch):
    expected = load_recipe(ROOT / "configs" / "bert_large.py")
    for recipe in ("bert_base.py", "bert_large.py"):
        shutil.copy(ROOT / "configs" / recipe, tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert load_recipe(f"{tmp_path.name}/bert_large.py") == expected
    monkeypatch.chdir(tmp_path)
    assert load_recipe("bert_large.py") == expected


def test_a_recipe_that_was_copied_without_the_other_names_both(tmp_path):
    copied = shutil.copy(ROOT / "configs" / "bert_large.py", tmp_path)
    message = f"there is no recipe {tmp_path / 'bert_base.py'}, on which {copied} builds"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load_recipe(copied)
