"""The embedded corpus."""

import subprocess
import sys

import pytest

from transformer_zoo.data import sources, stdlib


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def splits(data_dir):
    return {split: list(sources.source("python_stdlib", split, data_dir=data_dir)) for split in ("train", "validation")}


def test_is_real_code_and_prose(splits):
    documents = splits["train"] + splits["validation"]
    assert 500 < len(documents) < 1200
    assert 7e6 < sum(len(document["text"]) for document in documents) < 16e6
    assert {document["kind"] for document in documents} == {"code", "prose"}
    by_path = {document["path"]: document for document in documents}
    assert len(by_path) == len(documents)
    assert "class JSONDecoder" in by_path["json/decoder.py"]["text"]
    assert "import" in by_path["pydoc_data/topics/import"]["text"]
    assert by_path["pydoc_data/topics/import"]["kind"] == "prose"


def test_leaves_out_tests_installed_packages_and_tables(splits):
    for document in splits["train"] + splits["validation"]:
        folders = document["path"].split("/")[:-1]
        assert not {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"} & set(folders)
        assert document["text"].strip()


def test_split_goes_by_the_hash_of_the_path(splits):
    assert all(not stdlib.held_out(document["path"]) for document in splits["train"])
    assert all(stdlib.held_out(document["path"]) for document in splits["validation"])
    share = len(splits["validation"]) / (len(splits["train"]) + len(splits["validation"]))
    assert 0.02 < share < 0.09
    # A fixed function of the path: these stay where they are, on every machine and Python.
    paths = ("ast.py", "copyreg.py", "random.py", "secrets.py", "pydoc_data/topics/numbers", "json/decoder.py")
    assert [path for path in paths if stdlib.held_out(path)] == [
        "copyreg.py",
        "secrets.py",
        "pydoc_data/topics/numbers",
    ]


def test_another_python_has_its_own_folder(data_dir, splits):
    assert stdlib.prepare(data_dir).name == f"1.{sys.version_info.minor}.{sys.version_info.micro}"


def test_unknown_split_lists_those_there_are(data_dir, splits):
    with pytest.raises(ValueError, match="has no split 'test': it has train, validation"):
        sources.source("python_stdlib", "test", data_dir=data_dir)


def test_python_without_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Python sources"):
        list(stdlib.documents(tmp_path))


PREPARE = """
import sys
from transformer_zoo.data import sources
print(len(sources.source("python_stdlib", "validation", data_dir=sys.argv[1])))
assert not {"tensorflow", "torch", "transformers"} & set(sys.modules), "heavy imports"
"""


def test_two_processes_may_prepare_at_once_quietly_and_without_tensorflow(tmp_path, splits):
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.strip(), err) == (0, str(len(splits["validation"])), "")
    assert [path.name for path in (tmp_path / "python_stdlib").iterdir()] == [stdlib.prepare(tmp_path).name]
