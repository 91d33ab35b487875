"""Plants the faults of tools/faults.toml, one at a time, and writes docs/faults.md: which test saw each of them.

    python tools/plant_faults.py              (about ten seconds a fault; needs the extra `test`)
    python tools/plant_faults.py --only rotary

The faults are planted in a copy of the repository. Of each, faults.toml has the kind, a sentence, the file, the text
that is replaced (it must occur there exactly once) and its replacement, and the tests to run, all of them of
`make test`. A fault that no test sees is a missing test, and the script then exits with 1.
"""

import argparse
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

Each of these faults was planted alone, and the tests of `make test` were run until one failed: the test in the last
column. `python tools/plant_faults.py` plants them again and writes this table. A fault that no test sees is a missing
test: add the fault to `tools/faults.toml` first, then the test.

| kind | place | fault | seen by |
|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="plant only the faults whose entry contains this text; no table is written"
    )
    only = parser.parse_args().only.lower()
    faults = [fault for fault in tomllib.loads(FAULTS.read_text())["fault"] if only in str(fault).lower()]
    rows, unseen = [], []
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        for number, fault in enumerate(faults, start=1):
            test = seen_by(fault, copy)
            unseen += [fault["fault"]] if test is None else []
            print(f"{number}/{len(faults)}  {fault['fault']}: {test or 'SEEN BY NO TEST'}", flush=True)
            rows.append(
                f"| {fault['kind']} | `{fault['file']}` | {fault['fault']} | {f'`{test}`' if test else '**none**'} |"
            )
    if not only:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(HEADER + "\n".join(rows) + "\n")
    print(f"{len(faults) - len(unseen)} of {len(faults)} faults were seen")
    return 1 if unseen else 0


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
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if run.returncode != 1 or found is None:
        raise RuntimeError(
            f"pytest could not run the tests of {fault['fault']!r}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
        )
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
