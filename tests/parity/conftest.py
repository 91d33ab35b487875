"""Says at the end how well everything agrees."""

import sys
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    largest = getattr(sys.modules.get("parity.test_models"), "LARGEST", {})
    if largest:
        terminalreporter.section("largest relative difference from the reference, in float64")
        for name, difference in sorted(largest.items()):
            terminalreporter.write_line(f"{name:<32}{difference:.1e}")
