"""The tests' machine: one process that sees eight CPU devices, so that meshes are tested without a cluster."""

import os
import sys

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py, which is too late to simulate eight devices.")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Programs that no other module runs: a process may hold only so many, each in memory mappings of its own."""
    yield
    jax.clear_caches()
