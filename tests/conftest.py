"""The tests' machine: one process that sees eight CPU devices, so that meshes are tested without a cluster."""

import os
import sys

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py, which is too late to simulate eight devices.")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

MAPPINGS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def forget_programs():
    """A process may hold 65,530 memory mappings, and every compiled program takes some, for good."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
