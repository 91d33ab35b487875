"""Eight simulated CPU devices in one process, so that meshes are tested without a cluster."""

import ctypes
import gc
import os
import sys

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py, which is too late to simulate eight devices.")

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

# Garbage is collected after each test, of what is new: modules and traces are many objects that live long, and the
# collector would visit them over and over, for a fifth of the time.
gc.disable()

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# Programs that took long to compile are shared by all workers, by the processes that tests start, and by the next run.
# (To write a program costs a tenth of a second, so that less than a second's compilation is not worth it.)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transformer_zoo" / "tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
# No program of a test is looked at: it needs no lines of source beside its operations, and no names of modules.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("FLAX_PROFILE", "false")
# Many errors are wanted: nobody reads their tracebacks, of which jax would compare each frame's file with its own.
os.environ.setdefault("JAX_TRACEBACK_FILTERING", "off")

import jax  # noqa: E402
import jax.experimental  # noqa: E402
import pytest  # noqa: E402

from transformer_zoo import installation  # noqa: E402

# A test that compiles for a TPU that is not there.
_FAULT = installation.outdated_libtpu() if installation.version("libtpu") else "libtpu is not installed"
tpu_compiler = pytest.mark.skipif(_FAULT is not None, reason=f"the TPU compiler: {_FAULT}")

if not hasattr(jax, "enable_x64"):  # before jax 0.8
    jax.enable_x64 = jax.experimental.enable_x64

# Programs of tests run once: most of the compiler's time would go into making them fast.
QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # later ones only have these emitters, which are slow here
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"
# The TPU compiler reads the variable later, and does not know all of these flags.
with mock.patch.dict(os.environ, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {QUICKLY}"):
    jax.devices()


def family_of(item: pytest.Item) -> str:
    """The family that a test is about; empty where it is about none."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("family") or next((value.family for value in params.values() if hasattr(value, "family")), "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A module's tests of one family follow one another, so that mostly one worker compiles that family's programs."""
    modules = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    items.sort(key=lambda item: (modules[item.path], family_of(item)))


def pytest_collection_finish() -> None:
    """What is there now stays: no collection visits it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A worker with much memory forgets its compiled programs with their module and family. So it stays below 3 GB, and
    its memory mappings, of which every program takes some, below the 65,530 of a process. The models' programs are most
    of it; those of single operations are kept if that is enough, since the next family would compile them anew."""
    import families  # which the process that starts the workers does not need

    gc.collect(0)
    group = lambda item: (item.path, family_of(item))
    if nextitem is not None and group(item) != group(nextitem) and memory() > 2.4e9:
        release(families.forget)
        if memory() > 1.9e9:
            release(jax.clear_caches)


def release(forget: Callable[[], None]) -> None:
    """Gives back the memory of what is forgotten."""
    forget()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what was freed
        trim(0)


def memory() -> float:
    """The bytes of memory of this process; infinite where Linux does not tell them."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else float("inf")


@pytest.fixture
def wide_terminal(monkeypatch):
    """No table of a command is cut off."""
    monkeypatch.setenv("COLUMNS", "160")
