"""Kills small runs, and takes their disk and data away, at random moments; in the end they are as if nothing had been.

python tools/torture.py --faults 100 --seed 7       or: make torture
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).parent.parent
    sys.path[:0] = [str(root), str(root / "tests")]
    import conftest  # noqa: F401  before jax: it chooses a quick compiler
    import torture  # of the tests

    torture.main(__doc__)
