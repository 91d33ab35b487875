"""The tests' machine: one process that sees eight CPU devices, so that meshes are tested without a cluster."""

import os
import sys

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py, which is too late to simulate eight devices.")

from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

# Programs of tests run once: most of the time of the compiler goes into making them fast.
QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # later ones have nothing but these emitters, which are slow here
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"
# The compiler for a TPU reads the variable too, later, and does not know all of these.
with mock.patch.dict(os.environ, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {QUICKLY}"):
    jax.devices()

MAPPINGS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def forget_programs():
    """A process may hold 65,530 memory mappings, and every compiled program takes some, for good."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
