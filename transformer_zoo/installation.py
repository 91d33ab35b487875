"""Whether the installed jax, TPU compiler and other requirements fit the project and one another. It needs the standard
library alone, so that a copy of the repository can be asked before anything is installed."""

import functools
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# What Colab's runtime brings stays as it is: jax and libtpu are made for its TPU, and numpy is loaded by the notebook.
KEPT = ("jax", "jaxlib", "libtpu", "numpy")


def prepare() -> None:
    """The first cell of a notebook: checks what is installed, prints the devices, and on Colab first installs this copy
    of the repository, with what it lacks, beside the jax, jaxlib, libtpu and numpy of the runtime.

    Raises:
        RuntimeError: a requirement is missing or too old, cannot be installed, or does not start the devices.
    """
    colab = "google.colab" in sys.modules
    if faults := _faults(KEPT if colab else ()):
        remedy = (
            "choose a newer runtime version: Runtime > Change runtime type"
            if colab
            else f"pip install -c {ROOT / 'constraints.txt'} -e {ROOT}"
        )
        raise RuntimeError(f"transformer_zoo does not fit this environment: {'; '.join(faults)}. Remedy: {remedy}")
    if colab and _faults():
        _install()
    devices = _devices()
    versions = _versions("jax", "jaxlib", "libtpu")
    print(f"{len(devices)} x {devices[0].device_kind} ({versions})")
    if devices[0].platform == "tpu" and (fault := outdated_libtpu()):
        print(f"Attention runs without the TPU's kernel: {fault}.")
    elif devices[0].platform != "tpu" and colab and version("libtpu"):
        print("jax found no TPU. If this runtime has one: Runtime > Disconnect and delete runtime, and begin anew.")


def _faults(names: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the project's requirements, or with those of these names."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = [x for x in importlib.metadata.requires("transformer-zoo") if "extra ==" not in x]
    faults = []
    for name, bound in (re.match(r"([\w.-]+)(?:\[.*?\])? *(?:>= *([\w.]+))?", line).groups() for line in lines):
        if not names or name in names:
            installed = version(name)
            if installed is None:
                faults.append(f"{name} is not installed")
            elif bound and _numbers(installed) < _numbers(bound):
                faults.append(f"{name} {installed} is installed, and {bound} or newer is needed")
    return faults


def _install() -> None:
    """Installs this copy of the repository; pip may not replace what is `KEPT`."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={installed}\n" for name in KEPT if (installed := version(name))))
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(constraints), "-e", str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        fault = done.stderr.strip()[-2000:]
        raise RuntimeError(f"transformer_zoo cannot be installed beside {_versions(*KEPT)}. pip says:\n{fault}")
    importlib.invalidate_caches()


def _devices() -> list[Any]:
    """The devices of jax.

    Raises:
        RuntimeError: jax does not start.
    """
    try:
        import jax

        return jax.devices()
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"jax does not start: {_versions(*KEPT)} do not fit one another, or this machine. On Colab choose "
            f"Runtime > Disconnect and delete runtime, and begin anew. jax says: {error}"
        ) from error


@functools.cache
def outdated_libtpu() -> str | None:
    """Says that the installed libtpu is older than the one that the installed jax goes with, and what to do; None if it
    is not, or if there is none. A TPU is used all the same, but its Pallas kernels do not compile, and to compile for
    a TPU that is not there crashes (jax 0.7.2, which goes with libtpu 0.0.23, and Colab's libtpu 0.0.21.1)."""
    asked = (re.match(r"libtpu *==([\d.]+\d)", line) for line in importlib.metadata.requires("jax") or ())
    wanted = next((match[1] for match in asked if match), None)
    installed = version("libtpu")
    if None in (wanted, installed) or _numbers(installed) >= _numbers(wanted):
        return None
    return (
        f"libtpu {installed} is older than {wanted}, which jax {version('jax')} goes with: "
        f"pip install libtpu=={wanted}, and restart"
    )


def version(name: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions(*names: str) -> str:
    return ", ".join(f"{name} {installed}" for name in names if (installed := version(name)))


def _numbers(version: str) -> tuple[int, ...]:
    """0.10.2rc1 -> (0, 10, 2, 1)"""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0]))
