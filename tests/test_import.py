"""`import transformer_zoo` is cheap, and imports only what it needs."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNWANTED = (
    "tensorflow",
    "torch",
    "transformers",
    "orbax",
    "grain",
    "tensorflow_datasets",
    "matplotlib",
    "huggingface_hub",
)


def run(code: str) -> tuple[str, float]:
    """The output of a fresh Python, and the seconds it took from its start to its end."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), time.perf_counter() - start


def test_import_is_fast():
    bare = min(run("pass")[1] for _ in range(3))
    seconds = min(run("import transformer_zoo")[1] for _ in range(3)) - bare
    assert seconds < 1.5, f"import transformer_zoo takes {seconds:.2f} s"


def test_import_loads_nothing_heavy():
    loaded, _ = run(f"import sys, transformer_zoo; print([m for m in {UNWANTED} if m in sys.modules])")
    assert loaded == "[]"


def test_every_public_name_is_there():
    missing, _ = run(
        "import transformer_zoo as zoo; print([name for name in zoo.__all__ if not hasattr(zoo, name)]);"
        "assert set(zoo.__all__) <= set(dir(zoo))"
    )
    assert missing == "[]"


def test_an_unknown_name_is_an_attribute_error():
    answer, _ = run(
        "import transformer_zoo as zoo\ntry: zoo.from_pretraind\nexcept AttributeError as error: print(error)"
    )
    assert "from_pretraind" in answer
