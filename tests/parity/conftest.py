"""Reports the largest differences at the end, from all processes."""

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    largest: dict[str, float] = {}
    for report in terminalreporter.stats.get("passed", ()):
        for name, value in report.user_properties:
            largest[name] = max(value, largest.get(name, 0.0))
    if largest:
        terminalreporter.section("largest relative difference from the reference, in float64")
        for name, difference in sorted(largest.items()):
            terminalreporter.write_line(f"{name:<32}{difference:.1e}")
