"""Plants the faults of tools/faults.toml, one at a time, and writes docs/faults.md: which test saw each of them.

    python tools/plant_faults.py              (some seconds a fault; needs the extra `test`)
    python tools/plant_faults.py --only rotary

The faults are planted in a copy of the repository. Of each, faults.toml has the kind, a sentence, the file, the text
that is replaced (it must occur there exactly once) and its replacement, and the tests to run, all of them of
`make test`. A fault that no test sees is a missing test, and the script then exits with 1.
"""

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FAULTS = ROOT / "tools" / "faults.toml"
TABLE = ROOT / "docs" / "faults.md"
HEADER = """# Planted faults

Each of these faults was planted alone, and the tests that `tools/faults.toml` names for it, all of them of `make test`,
were run until one failed: the test in the last column. `python tools/plant_faults.py` plants them again and writes this
table. A fault that no test sees is a missing test: add the fault to `tools/faults.toml` first, then the test.

| kind | place | fault | seen by |
|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="plant only faults whose entry has this text, and write no table")
    parser.add_argument("--jobs", type=int, default=2, help="faults planted at a time, each in a copy of its own")
    options = parser.parse_args()
    faults = tomllib.loads(FAULTS.read_text())["fault"]
    faults = [fault for fault in faults if options.only.lower() in str(fault).lower()]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        parts = list(pool.map(plant, [faults[i :: options.jobs] for i in range(options.jobs)]))
    seen = {
        number: test for i, part in enumerate(parts) for number, test in zip(range(i, len(faults), len(parts)), part)
    }
    if not options.only:
        rows = [
            f"| {fault['kind']} | `{fault['file']}` | {fault['fault']} | {f'`{seen[i]}`' if seen[i] else '**none**'} |"
            for i, fault in enumerate(faults)
        ]
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(HEADER + "\n".join(rows) + "\n")
    unseen = [fault["fault"] for i, fault in enumerate(faults) if seen[i] is None]
    print(f"{len(faults) - len(unseen)} of {len(faults)} faults were seen", *unseen, sep="\n  not seen: ")
    return 1 if unseen else 0


def plant(faults: list[dict[str, Any]]) -> list[str | None]:
    """Plants faults one after the other, in one copy. Returns the test that saw each; None: no test did."""
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        for fault in faults:
            seen.append(seen_by(fault, copy))
            print(f"{fault['kind']}: {fault['fault']}: {seen[-1] or 'SEEN BY NO TEST'}", flush=True)
    return seen


def copied(folder: Path) -> Path:
    """A copy of the files that git knows."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def seen_by(fault: dict[str, Any], copy: Path) -> str | None:
    """The first test that fails with the fault; None: all pass.

    Raises:
        ValueError: the text that the fault replaces does not occur exactly once.
    """
    path = copy / fault["file"]
    sound = path.read_text()
    if (count := sound.count(fault["old"])) != 1:
        raise ValueError(f"{fault['file']} has {count} times what {fault['fault']!r} replaces: {fault['old']!r}")
    path.write_text(sound.replace(fault["old"], fault["new"]))
    try:
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *fault["tests"]]
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(sound)
    if run.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if run.returncode != 1 or found is None:
        raise RuntimeError(
            f"pytest could not run the tests of {fault['fault']!r}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        )
    return found[1].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
