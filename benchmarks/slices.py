"""Memory that training takes on TPU slices that need not be there: one line of a table for each case.

Command:   PYTHONPATH=. python benchmarks/slices.py > slices.md
           PYTHONPATH=. python benchmarks/slices.py "Llama 3 8B" "Mixtral 8x7B"

Each step is compiled by the real TPU compiler (`transformer_zoo.fit`): bfloat16 over float32 parameters, AdamW, every
layer computed again in the backward pass, a row of the batch for each chip. A case takes two to four minutes of one CPU
core.
"""

import math
import sys
from typing import Any

import transformer_zoo as zoo
from transformer_zoo import fit
from transformer_zoo.config import Data, Mesh, Run, Training
from transformer_zoo.nn import Compute
from transformer_zoo.objectives import CausalLM

CASES: dict[str, tuple[str, str, int, dict[str, int]]] = {
    "Qwen3 0.6B": ("qwen3-0.6b-base", "v5e:2x4", 4096, {"fsdp": 8}),
    "Gemma 3 1B": ("gemma-3-1b", "v5e:2x4", 4096, {"fsdp": 8}),
    "Llama 3 8B": ("llama-3-8b", "v5p:2x2x4", 8192, {"fsdp": 16}),
    "Llama 3 70B": ("llama-3-70b", "v5p:8x8x8", 8192, {"fsdp": 512}),
    "Mixtral 8x7B": ("mixtral-8x7b", "v5p:2x4x4", 4096, {"fsdp": 4, "expert": 8}),
    "gpt-oss 20B": ("gpt-oss-20b", "v5p:2x2x4", 4096, {"fsdp": 2, "expert": 8}),
    "Qwen3 30B-A3B": ("qwen3-30b-a3b-base", "v5p:2x2x4", 4096, {"fsdp": 2, "expert": 8}),
}
"""Name -> preset, slice, tokens in a row, and mesh."""


def run_of(preset: str, length: int, mesh: dict[str, int]) -> Run:
    """A run with one row of the batch for each device of the mesh."""
    return Run(
        model=zoo.presets()[preset].config,
        objective=CausalLM(logits_chunks=8),
        compute=Compute(dtype="bfloat16", remat="full"),
        data=Data(length=length),
        mesh=Mesh(**{"data": 1, **mesh}),
        training=Training(batch_size=math.prod(mesh.values())),
    )


def line(name: str, report: Any, length: int) -> str:
    """The cells of a case."""
    gib = lambda size: "" if size is None else f"{size / fit.GIB:.2f}"
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    cells = (
        name, report.topology, mesh, f"{report.num_params:,}", f"{length:,}", gib(report.arguments["parameters"]),
        gib(report.arguments["optimizer"]), gib(report.temporaries), gib(report.total), gib(report.limit),
        "yes" if report.fits else "no",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    if unknown := [name for name in names if name not in CASES]:
        sys.exit(f"error: there is no case {unknown[0]!r}: choose of {', '.join(CASES)}")
    columns = (
        "model", "slice", "mesh", "parameters", "tokens a chip", "parameters, GiB", "optimizer", "temporaries", "total",
        "of a chip", "fits",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name in names or CASES:
        preset, topology, length, mesh = CASES[name]
        print(line(name, fit.fit(run_of(preset, length, mesh), topology), length), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
