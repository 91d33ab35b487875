"""The commands of README.md as they stand, and a way to run them in this process."""

import re
import shlex
from pathlib import Path

from transformer_zoo import __main__, commands

ROOT = Path(__file__).parent.parent


def commands_of(title: str) -> list[str]:
    """The commands in a section's indented code."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^#+ {re.escape(title)}$(.*?)(?=^#+ |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^    (python .+)$", section.replace("\\\n", ""), flags=re.MULTILINE)


def run(command: str, *settings: str) -> int:
    """Runs a command with further settings, and returns its exit code."""
    python, *words = shlex.split(command)
    assert python == "python", command
    if words[:2] == ["-m", "transformer_zoo"]:
        return __main__.main([*words[2:], *settings])
    return {"train.py": commands.train, "eval.py": commands.evaluate_command}[words[0]]([*words[1:], *settings])
