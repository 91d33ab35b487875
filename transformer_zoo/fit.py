"""Whether a run, or generation with a model, fits a TPU slice: the real program, compiled by the real TPU compiler with
no TPU attached."""

import dataclasses
import functools
import importlib.util
import math
import os
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from transformer_zoo import installation, registry, sharding, tables, training, trees
from transformer_zoo.config import Mesh, Run
from transformer_zoo.generation import generate, strategies
from transformer_zoo.nn import Compute
from transformer_zoo.nn.checks import check_sizes
from transformer_zoo.nn.quantized import is_quantized

GIB = 2**30
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
# The memory of a device that the compiler leaves to a program, in GiB, and the slices on offer. A device is a chip,
# except for tpu7x, whose chips are two devices each.
GENERATIONS = {"v5e": (15.75, _FLAT), "v6e": (31.24, _FLAT), "v5p": (95.73, _CUBES), "tpu7x": (94.74, _CUBES)}
TOPOLOGIES = tuple(f"{name}:{shape}" for name, (_, shapes) in GENERATIONS.items() for shape in shapes)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# If a run does not fit: seconds for trying other settings, and the number of fitting ones that is enough.
SECONDS, ENOUGH = 120, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """Settings of a call of `generate`.

    Raises:
        ValueError: a size below 1.
    """

    batch_size: int = 8
    """Prompts, or sources."""
    length: int = 512
    """Tokens in the longest prompt or source."""
    max_new_tokens: int = 128
    """New tokens for each."""
    beams: int = 1
    """Beams of the search; 1 is greedy."""
    dtype: str = "bfloat16"
    """Precision of parameters and computation."""
    mesh: Mesh = Mesh(data=1, tensor=-1)
    """Sizes of the mesh."""

    def __post_init__(self) -> None:
        check_sizes(self, "batch_size", "length", "max_new_tokens", "beams")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The memory that a train step or a call of `generate` needs, in bytes of one device."""

    topology: str
    mesh: dict[str, int]
    num_params: int
    arguments: dict[str, int]
    """Bytes by name: parameters and batch; for a run also the optimizer, counters and moving average."""
    total: int
    """Arguments, temporaries, and the output except where it reuses the arguments' memory."""
    limit: int
    seconds: float | None = None
    """Seconds of compilation. None: the arguments alone are too large, and nothing was compiled."""
    temporaries: int | None = None
    output: int | None = None
    collectives: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Kind -> (number in a step, bytes of their results)."""
    largest: tuple[tuple[int, str], ...] = ()
    """(bytes, description) of the largest arrays, if it does not fit."""

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def topology_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, to compile for; the slice need not exist.

    Raises:
        ValueError: an unknown topology.
        ImportError: the TPU compiler, libtpu, is not installed, or is older than the one that jax goes with.
    """
    if topology not in TOPOLOGIES:
        known = "; ".join(f"{name}: {' '.join(shapes)}" for name, (_, shapes) in GENERATIONS.items())
        hint = trees.nearest(topology, TOPOLOGIES)
        raise ValueError(f"the topology {topology!r} is not known.{hint} Known are {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("the TPU compiler is not installed: pip install 'transformer-zoo[tpu]'")
    if fault := installation.outdated_libtpu():  # it would end the process
        raise ImportError(f"the TPU compiler cannot be used for a TPU that is not there: {fault}")
    # Do not look for a TPU, nor log that none was found.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling occupies no chip
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    # The compiler assumes hosts with four chips; a slice of one chip has to declare its own.
    host = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **host).devices


def fit(run: Run, topology: str) -> Report:
    """Compiles the train step of `run` for a TPU slice.

    Raises:
        ValueError: an unknown topology, or settings that contradict each other or the number of devices.
        ImportError: libtpu is not installed or too old.
    """
    program = training.prepare(run, topology_devices(topology))
    state, batch = program.state, program.batch
    rest, params = state.replace(params=None, opt_state=None), (state.params, program.base)
    arguments = {"parameters": params, "optimizer": state.opt_state, "batch and rest": (batch, rest)}
    return _measured(topology, program.mesh, arguments, lambda: program.step.lower(state, batch, program.base))


def fit_writing(model: Any, writing: Writing, topology: str) -> Report:
    """Compiles `generate` for a TPU slice: prefill of prompts or encoding of sources, then decoding.

    Args:
        model: an instance of a family's `Model`, whose parameters are not needed.

    Raises:
        ValueError: an unknown topology, a model that generates nothing or has too few positions, or a mesh that does
            not divide the model, the batch or the devices.
        ImportError: libtpu is not installed or too old.
    """
    model = model.clone(compute=Compute(dtype=writing.dtype, param_dtype=writing.dtype))
    mesh = sharding.make_mesh(**dataclasses.asdict(writing.mesh), devices=topology_devices(topology))
    rows = (writing.batch_size, writing.length)
    batch = {"tokens_BT": jax.ShapeDtypeStruct(rows, jnp.int32), "valid_BT": jax.ShapeDtypeStruct(rows, jnp.bool_)}
    params = registry.param_shapes(model)
    params, batch = (
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        for shapes, shardings in (
            (params, sharding.param_shardings(params, mesh)),
            (batch, sharding.batch_shardings(batch, mesh)),
        )
    )
    sampling = strategies.build({"num_beams": writing.beams})
    lower = functools.partial(
        generate.lower, model, params, **batch, max_new_tokens=writing.max_new_tokens, sampling=sampling
    )
    return _measured(topology, mesh, {"parameters": params, "batch": batch}, lower)


def _measured(topology: str, mesh: jax.sharding.Mesh, arguments: dict[str, Any], lower: Callable[[], Any]) -> Report:
    """The memory of a program: of its arguments, and by the compiler's account of the rest.

    Args:
        arguments: shapes with their shardings, by name in the report.
        lower: lowers the program; called only if there is room for the arguments.
    """
    sizes = {name: _bytes(part) for name, part in arguments.items()}
    report = Report(
        topology=topology,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        num_params=sum(math.prod(x.shape) for x in jax.tree.leaves(arguments["parameters"], is_leaf=is_quantized)),
        arguments=sizes,
        total=sum(sizes.values()),
        limit=int(GENERATIONS[topology.split(":")[0]][0] * GIB),
    )
    if not report.fits:
        return dataclasses.replace(report, largest=_largest_arguments(arguments))
    start = time.perf_counter()
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        lowered = lower()
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            needed = re.search(
                r"\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of .* hbm", str(error)
            )
            if needed is None:
                raise
            number, unit = (group for group in needed.groups() if group is not None)
            total = int(float(number) * 1024 ** ("KMGT".index(unit) + 1))
            temporaries = total - report.total
            return dataclasses.replace(
                report,
                total=total,
                temporaries=temporaries,
                largest=_largest(Path(folder)),
                seconds=time.perf_counter() - start,
            )
    memory = compiled.memory_analysis()
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return dataclasses.replace(
        report,
        seconds=time.perf_counter() - start,
        temporaries=memory.temp_size_in_bytes,
        output=output,
        total=memory.argument_size_in_bytes + memory.temp_size_in_bytes + output,
        collectives=count_collectives(compiled.as_text()),
    )


def main(run: Run, topology: str) -> int:
    """Prints the report of `fit`. Returns 0 if the run fits and 3 if not; then it also prints the largest arrays and
    the changes of settings, single or together, that make it fit."""
    console = tables.console()
    with console.status(f"compiling for {topology}"):
        report = fit(run, topology)
    _show(report, "a step", console)
    if report.fits:
        return 0
    with console.status("trying other settings"):
        remedies, untried = suggest(run, topology)
    for settings, total in remedies:
        console.print(f"It fits with {settings}: {_size(total)}", markup=False, soft_wrap=True)
    if not remedies:
        console.print("No change of settings that was tried makes it fit: take a larger slice or a smaller model.")
    if untried:
        console.print(f"There was no time to try {len(untried)} more, such as {untried[0]}", soft_wrap=True)
    return 3


def main_writing(model: Any, writing: Writing, topology: str) -> int:
    """Prints the report of `fit_writing`. Returns 0 if it fits and 3 if not."""
    console = tables.console()
    with console.status(f"compiling for {topology}"):
        report = fit_writing(model, writing, topology)
    _show(report, f"{writing.batch_size} x {writing.max_new_tokens} new tokens", console)
    if not report.fits:
        console.print("Take a larger slice, fewer beams, a smaller batch, or fewer tokens.")
    return 0 if report.fits else 3


def suggest(run: Run, topology: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Settings that make a run fit, each with the bytes that it then needs; and the settings left untried in the time.

    Single changes are tried first; if none is enough, the first two together, the first three, and so on.
    """
    start, found, untried = time.perf_counter(), [], []
    changes = _changes(run, len(topology_devices(topology)))
    together = [changes[:count] for count in range(2, len(changes) + 1)]
    for enough, group in ((ENOUGH, [[change] for change in changes]), (1, together)):
        for chosen in group:
            flags = " ".join(
                f"--{path.replace('_', '-')} {value}" for change in chosen for path, value in change.items()
            )
            if len(found) == enough:
                break
            if time.perf_counter() - start > SECONDS:
                untried.append(flags)
                continue
            try:
                report = fit(_changed(run, chosen), topology)
            except ValueError:  # batch, mesh and parameters do not divide that way
                continue
            if report.fits:
                found.append((flags, report.total))
        if found:
            break
    return found, untried


def _changes(run: Run, devices: int) -> list[dict[str, Any]]:
    """Changes of settings that save memory, the least harmful first."""
    mesh = {"mesh.fsdp": devices} | {f"mesh.{axis}": 1 for axis in sharding.MESH_AXES if axis != "fsdp"}
    changes = [
        {"compute.remat": "full"},
        {"compute.dtype": "bfloat16"},
        {"objective.logits_chunks": 4},
        {"training.accumulation": 2 * run.training.accumulation},
        {} if run.mesh.fsdp in (-1, devices) else mesh,
        {"training.batch_size": run.training.batch_size // 2},
        {"compute.param_dtype": "bfloat16"},
    ]

    def new(path: str, value: Any) -> bool:
        part, field = path.split(".")
        return getattr(getattr(run, part), field, value) != value

    return [change for change in changes if any(new(*item) for item in change.items())]


def _changed(run: Run, changes: list[dict[str, Any]]) -> Run:
    for change in changes:
        for path, value in change.items():
            part, field = path.split(".")
            run = dataclasses.replace(run, **{part: dataclasses.replace(getattr(run, part), **{field: value})})
    return run


def count_collectives(text: str) -> dict[str, tuple[int, int]]:
    """Collective operations of one device in a step, and the bytes of their results, by kind.

    An operation in a loop counts once for each iteration. The parts of an asynchronous operation, which share a
    channel, count as one.

    Args:
        text: the optimised program.
    """
    computations = _computations(text)
    calls: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        calls[name] += count
        for line in computations[name].values():
            for role, callee in re.findall(r"\b(calls|body|to_apply)=%([\w.\-]+)", line):
                visit(callee, count * (_iterations(line, computations) if role == "body" else 1))

    visit(next(name for name in computations if f"ENTRY %{name} " in text), 1)
    operation = re.compile(rf"(.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
    found: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    for name, count in calls.items():
        for label, line in computations[name].items():
            if match := operation.match(line):
                shapes, kind, start = match.groups()
                sizes = [_shape_bytes(shape) for shape in re.findall(r"\w+\[[\d,]*\]", shapes)]
                channel = re.search(r"channel_id=(\d+)", line)
                found[kind][channel[1] if channel else label] = (count, max(sizes) if start else sum(sizes))
    return {
        kind: (sum(n for n, _ in found[kind].values()), sum(n * size for n, size in found[kind].values()))
        for kind in COLLECTIVES
        if kind in found
    }


def _computations(text: str) -> dict[str, dict[str, str]]:
    """Computation -> operation -> its definition; ROOT is also the name of the last operation."""
    computations: dict[str, dict[str, str]] = {}
    operations: dict[str, str] = {}
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line):
            operations = computations[head[1]] = {}
        elif definition := re.match(r"\s+(ROOT )?%([\w.\-]+) = (.*)", line):
            operations[definition[2]] = definition[3]
            if definition[1]:
                operations["ROOT"] = definition[3]
    return computations


def _iterations(loop: str, computations: dict[str, dict[str, str]]) -> int:
    """The iterations of a loop. Scans, and the compiler's own loops, count from 0 up to a constant in constant steps;
    any other loop counts as one iteration."""
    condition, body = (computations[re.search(rf"{role}=%([\w.\-]+)", loop)[1]] for role in ("condition", "body"))
    compare = re.search(r" compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", condition["ROOT"])
    index = compare and re.search(r"index=(\d+)", condition[compare[1]])
    counters = re.findall(r"%([\w.\-]+)", body["ROOT"].partition(" tuple(")[2].partition(")")[0])
    add = index and re.search(r" add\(%[\w.\-]+, %([\w.\-]+)\)", body[counters[int(index[1])]])
    if not add:
        return 1
    limit, step = (re.search(r"constant\((\d+)\)", line) for line in (condition[compare[2]], body[add[1]]))
    return -(-int(limit[1]) // int(step[1])) if limit and step else 1


def _shape_bytes(shape: str) -> int:
    """The bytes of an array such as `bf16[24,2048]`."""
    dtype, dims = re.fullmatch(r"(\w+)\[([\d,]*)\]", shape).groups()
    bits = re.search(r"\d+", dtype)
    return math.prod(int(size) for size in dims.split(",") if size) * (int(bits[0]) if bits else 8) // 8


def _bytes(arrays: Any) -> int:
    """The bytes of arrays, or of shapes with shardings, on one device."""
    leaves = jax.tree.leaves(arrays)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _largest_arguments(arguments: Any, count: int = 5) -> tuple[tuple[int, str], ...]:
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    sizes = ((_bytes([x]), f"{x.dtype}{list(x.shape)}  {jax.tree_util.keystr(path)}") for path, x in leaves)
    return tuple(sorted(sizes, reverse=True)[:count])


def _largest(folder: Path, count: int = 5) -> tuple[tuple[int, str], ...]:
    """The largest arrays of a program that does not fit, from the compiler's report."""
    report = next(folder.rglob("*memory-usage-report.txt"), None)
    if report is None:
        return ()
    program = next(folder.rglob("*after_optimizations.txt")).read_text()
    main_memory = report.read_text().split("\n\n")[0]
    blocks: Counter[str] = Counter()
    for line in main_memory.splitlines():
        if re.match(r"\s*[\d.]+\w+\(", line):  # cumulative size; size; offset; values; shapes that share the memory
            shapes = re.findall(r"\w+\[[\d,]+\]", line.rsplit(";", 1)[1])
            blocks[max(shapes, key=_shape_bytes)] += 1
    ranked = sorted(blocks, key=lambda shape: -blocks[shape] * _shape_bytes(shape))[:count]
    return tuple((n * _shape_bytes(x), f"{n} x {x}  {_origin(x, program)}") for x in ranked if (n := blocks[x]))


def _origin(shape: str, program: str) -> str:
    """The operation in the model that makes an array of this shape, or one layer's slice of it, by its longest name."""
    layer = re.sub(r"\[\d+,", "[", shape) if shape.count(",") > 1 else shape
    names = re.findall(rf"= (?:{re.escape(shape)}|{re.escape(layer)})\{{\S* [\w\-]+\(.*?op_name=\"([^\"]*)\"", program)
    specific = [name for name in names if not re.search(r"dynamic_|broadcast_in_dim|squeeze|transpose$", name)]
    parts = max(specific or names, key=len, default="").split("/")
    return "/".join([part for part in parts if part not in _SCAFFOLD][-5:])


_SCAFFOLD = ("jit(train_step)", "while", "body", "closed_call", "checkpoint", "rematted_computation")


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def _show(report: Report, program: str, console: Console) -> None:
    """Prints the table, whether it fits, and the largest arrays if not."""
    tables.show(console, _table(report, program))
    if report.fits:
        console.print(f"It fits: {_size(report.limit - report.total)} of a device are left.")
        return
    over = _size(report.total - report.limit)
    console.print(f"It does not fit: {_size(report.total)} of {_size(report.limit)}, {over} too much. Largest arrays:")
    for size, description in report.largest:
        console.print(f"  {_size(size):>10}  {description}", markup=False, soft_wrap=True)


def _table(report: Report, program: str) -> Table:
    generation, slice_ = report.topology.split(":")
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items()) or "one device"
    table = Table(title=f"{generation} {slice_}, {mesh}: {program} on one device")
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("bytes", justify="right")
    for i, (name, size) in enumerate(report.arguments.items()):
        count = f"{report.num_params:,}" if name == "parameters" else ""
        table.add_row(f"{'           ' if i else 'arguments: '}{name}", count, _size(size))
    if report.temporaries is not None:
        table.add_row("temporaries", "", _size(report.temporaries))
    if report.output is not None:
        table.add_row("output, beyond the arguments", "", _size(report.output))
    share = report.total / report.limit
    table.add_row(f"total, of {_size(report.limit)}", f"{share:.0%}", _size(report.total), end_section=True)
    for kind, (count, size) in report.collectives.items():
        table.add_row(f"{kind} a step", f"{count:,}", _size(size))
    if report.seconds is not None:
        table.add_row("seconds to compile", f"{report.seconds:.0f}", "")
    return table
