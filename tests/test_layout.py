"""Allowed imports: a module imports lower levels only; modules of one level do not import one another."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from transformer_zoo import registry
from transformer_zoo.nn import Attention

PACKAGE = Path(__file__).parent.parent / "transformer_zoo"

LEVELS = (
    ("trees", "pages", "interrupts", "messages", "json_files", "arguments", "folders", "installation", "tables"),
    ("sharding", "hugging_face", "vectors", "options"),
    ("nn",),
    ("published",),
    ("models",),
    ("registry", "heads"),
    ("checkpoints", "generation", "data", "config", "quantization"),
    ("names", "prediction", "lora"),
    ("objectives", "optim", "pretrained", "diagnosis", "logs", "plots"),
    ("measures",),
    ("training", "runs", "embedding", "evaluation"),
    ("resolve", "fit", "ended", "comparison"),
    ("loop",),
    ("commands",),
    ("__init__",),
    ("__main__",),
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
# The rest of the world is not ours to lean on everywhere: data is prepared in processes that must not start jax,
# and the reference implementations belong to the tests.
FORBIDDEN = {
    "": {"tensorflow", "torch", "tensorboardX", "transformers", "safetensors"},
    "data": {"jax", "jaxlib", "flax", "optax", "orbax"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The entry of `LEVELS` that a file belongs to: a package counts as one module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The dotted names that a file of `package` imports, wherever it does so, as tuples of their parts.

    `from a import b` may mean the module a.b or a name in a: both read as ("a", "b").
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, alias.name) for alias in node.names)


def offences(path: Path, source: str) -> list[str]:
    """The forbidden imports of a file."""
    module = module_of(path)
    package = (PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1])
    found = []
    for name in imports(ast.parse(source), package):
        if name[0] == PACKAGE.name:
            other = name[1] if name[1:] and name[1] in LEVEL else "__init__"
            inside = other == module and (module != "models" or name[2:3] == (path.stem,))
            allowed = inside or LEVEL[other] < LEVEL[module]
            if module == "models":
                allowed = inside or other in ("nn", "published")
        else:
            allowed = name[0] not in FORBIDDEN[""] | FORBIDDEN.get(module, set())
        if not allowed:
            found.append(".".join(name))
    return found


def test_every_module_has_a_level():
    unknown = sorted({module_of(path) for path in FILES} - set(LEVEL))
    assert not unknown, f"modules without a level in tests/test_layout.py: {unknown}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_lower_levels_only(path: Path):
    found = offences(path, path.read_text(encoding="utf-8"))
    assert not found, f"{path.relative_to(PACKAGE.parent)} may not import {found}"


@pytest.mark.parametrize(
    ("file", "source", "allowed"),
    [
        ("nn/attention.py", "from transformer_zoo.sharding import constrain", True),
        ("nn/attention.py", "from transformer_zoo import sharding", True),
        ("nn/attention.py", "from .masks import Mask", True),
        ("nn/attention.py", "from ..models import gpt2", False),
        ("nn/attention.py", "def f():\n    import transformer_zoo.training", False),
        ("models/gpt2.py", "from transformer_zoo.nn.attention import Attention", True),
        ("models/gpt2.py", "from transformer_zoo import sharding", False),
        ("models/gpt2.py", "from transformer_zoo.models import bert", False),
        ("models/gpt2.py", "from . import bert", False),
        ("trees.py", "from transformer_zoo import sharding", False),
        ("training.py", "from transformer_zoo import loop", False),
        ("config.py", "from transformer_zoo.data import sources", False),
        ("data/packing.py", "from transformer_zoo.data import sources", True),
        ("data/packing.py", "import jax.numpy as jnp", False),
        ("training.py", "import transformer_zoo as zoo", False),
        ("training.py", "from transformer_zoo import from_pretrained", False),
        ("__main__.py", "import transformer_zoo.training", True),
        ("logs.py", "from torch.utils.tensorboard import SummaryWriter", False),
    ],
)
def test_the_rule_itself(file: str, source: str, allowed: bool):
    assert (not offences(PACKAGE / file, source)) is allowed


def published_names() -> set[str]:
    """Model types, classes, keys of config.json and tensors of all families, unless a field of ours or an argument of
    `Attention` has that name."""
    theirs, ours = set(), {field.name for field in dataclasses.fields(Attention)}
    for module in map(registry.family, registry.families()):
        spec = module.PUBLISHED
        theirs |= {*spec.model_types, *spec.key_defaults, *spec.fixed, *(key.name for key in spec.config.values())}
        theirs |= {name for model_type in spec.model_types for name in spec.class_names(model_type).values()}
        theirs |= {name for table in (spec.rows(module.Config()), *spec.heads.values()) for name, *_ in table}
        ours |= {field.name for field in dataclasses.fields(module.Config)}
    return theirs - ours


def published_strings(source: str, names: set[str]) -> list[str]:
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [x for x in strings if isinstance(x, str) and (x in names or re.search(r"\.(weight|bias)$", x))]


def test_nn_holds_no_published_name():
    names = published_names()
    found = {path.name: published_strings(path.read_text(encoding="utf-8"), names) for path in PACKAGE.glob("nn/*.py")}
    assert not {file: strings for file, strings in found.items() if strings}


def test_the_rule_of_published_names():
    source = 'CONFIG = {"width": "d_model"}\nROWS = (("fc1.weight", "mlp_up/kernel"), (f"{side}.wi.bias", "x"))\n'
    source += 'NAMES = ("BartModel", "mbart", "d_model of a file")\n'
    found = published_strings(source, published_names())
    assert sorted(found) == [".wi.bias", "BartModel", "d_model", "fc1.weight", "mbart"]
