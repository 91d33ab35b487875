"""How a mesh divides parameters and activations: two small tables, outside the models.

`PARAM_AXES` names the logical axes of every parameter of every family by its path; `MESH_RULES` maps logical axes to
axes of the mesh. Data parallel, fully sharded (ZeRO-3), tensor, sequence and expert parallel training are settings of
one program: sizes of the mesh axes. Compute under a mesh inside `with jax.set_mesh(mesh):`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer_zoo import arguments, trees

MESH_AXES = ("data", "fsdp", "tensor", "sequence", "expert")

# path -> logical axes of the trailing dimensions; the layers stacked in front are never sharded. "_": replicated.
PARAM_AXES = (
    (r"(token|input)_embed/embedding|head/embedding", "vocab embed"),
    (r"lm_head/bias", "vocab"),
    (r"(\w+_)?(position|segment|relative)_embed/embedding", "_ embed"),
    (r"(\w+_)?relative_bias/embedding", "_ heads"),
    (r"embed_project/kernel", "_ embed"),
    (r"(.*/)?(hidden_project|input_project|input_gate)/kernel", "embed _"),
    (r".*/input_up/kernel", "_ embed"),
    (r"conv/filter/kernel", "_ embed _"),
    (r".*/mix_(scores|weights)/kernel", "_ _"),
    (r"(pooler|lm_head|head)/(dense|scores)/kernel", "embed _"),
    (r".*/((position_)?(query|key|value)|(attention|delta)/gate)/kernel", "embed heads _"),
    (r".*/((position_)?(query|key|value)|(attention|delta)/gate)/bias", "heads _"),
    (r".*/(query|key|value)_conv/kernel", "_ heads _"),
    (r".*/(decay|beta)/kernel", "embed heads"),
    (r".*/(log_rate|decay_shift)", "heads"),
    (r".*/out/kernel", "heads _ embed"),
    (r".*/sinks", "heads"),
    (r".*/mlp_(gate|up)/kernel", "embed mlp"),
    (r".*/mlp_(gate|up)/bias", "mlp"),
    (r".*/mlp_down/kernel", "mlp embed"),
    (r".*/(router|(query_)?latent|rotary)/kernel", "embed _"),
    (r".*/experts/(gate|up)/kernel", "experts embed mlp"),
    (r".*/experts/(gate|up)/bias", "experts mlp"),
    (r".*/experts/down/kernel", "experts mlp embed"),
    (r".*/experts/down/bias", "experts embed"),
    (r".*/lora_(a|b|magnitude)", "_"),
    (r".*/(router|correction|(query_)?latent|rotary)/bias|.*/(output|experts)/scale", "_"),
    (r"embed_project/bias|.*/(filter|out|mlp_down|dense|scores)/bias|(.*/)?\w*norm/(scale|offset|bias)", "_"),
)
# A model may be a part of another: `student/token_embed/embedding`.
PARAM_AXES = tuple((rf"(.*/)?({path})", axes) for path, axes in PARAM_AXES)

# logical axis -> mesh axis. Fully sharded training divides the width of parameters, not that of activations.
MESH_RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp", "expert"),
    "rows": ("data", "expert"),  # of a batch, for an activation whose width is divided over fsdp
    "length": "sequence",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "experts": "expert",
    "vocab": "tensor",
    "_": None,
}


def join_processes() -> None:
    """Joins the processes of a run on several hosts. Each of them must call this before any other use of jax.

    Processes find one another on a TPU slice, under Slurm and under Open MPI. Elsewhere the environment must have the
    address of the first (JAX_COORDINATOR_ADDRESS, host:port), their number (JAX_NUM_PROCESSES) and this one's number
    (JAX_PROCESS_ID).

    Raises:
        ValueError: the other processes are not known.
        RuntimeError: the other processes could not be reached.
    """
    number = lambda name: int(os.environ[name]) if name in os.environ else None
    try:
        jax.distributed.initialize(num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID"))
    except ValueError as error:
        raise ValueError(
            f"the processes cannot be joined: {error} On a TPU slice, under Slurm and Open MPI they find one another; "
            "elsewhere set JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None


def make_mesh(
    *, data: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, expert: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:  # fmt: skip
    """A mesh of all devices, or of `devices`. One size may be -1: the rest.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
        TypeError: an argument of another type.
    """
    arguments.check(make_mesh, locals())
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(zip(MESH_AXES, (data, fsdp, tensor, sequence, expert), strict=True))
    requested = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    if any(size < 1 for size in sizes.values() if size != -1) or len(free) > 1:
        raise ValueError(f"mesh sizes must be positive, and at most one of them -1 (the rest): {requested}")
    for axis in free:
        sizes[axis] = max(1, len(devices) // known)
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"the mesh {requested} does not divide {len(devices)} device(s): "
            f"choose sizes whose product is {len(devices)}, or leave one at -1"
        )
    # Auto: the compiler propagates shardings. jax.make_mesh would make Explicit axes, with which flax's lookups fail.
    types = (AxisType.Auto,) * len(MESH_AXES)
    try:
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # of chips in a torus: no whole sides have these sizes, so that some are split
        grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return Mesh(grid, MESH_AXES, axis_types=types)


def adopt_mesh(mesh: Mesh) -> Mesh:
    """A user's own mesh with axes of type Auto; its axes must bear our names.

    Raises:
        ValueError: an axis has a name that no rule speaks of, so that it would be left unused in silence.
    """
    unknown = [axis for axis in mesh.axis_names if axis not in MESH_AXES]
    if unknown:
        raise ValueError(f"mesh axes {unknown} are not known: name the axes of the mesh from {list(MESH_AXES)}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def spec(axes: str, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The partition of an array whose trailing dimensions bear these logical axes."""
    names = ["_"] * (len(shape) - len(axes.split())) + axes.split()
    return PartitionSpec(*(_present(MESH_RULES[name], mesh) for name in names))


def _present(axes: str | tuple[str, ...] | None, mesh: Any) -> str | tuple[str, ...] | None:
    """The axes that this mesh has, without those of size 1."""
    axes = axes if isinstance(axes, tuple) else (axes,)
    found = tuple(axis for axis in axes if axis is not None and mesh.shape.get(axis, 1) > 1)
    return found if len(found) > 1 else (found[0] if found else None)


def ways(axes: str | tuple[str, ...] | None, mesh: Any) -> int:
    """The number of parts into which an entry of a partition divides its dimension."""
    return math.prod(mesh.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)) if axis is not None)


def param_shardings(shapes: Mapping[str, Any], mesh: Mesh) -> trees.Tree:
    """The sharding of every parameter in a tree of arrays or `jax.ShapeDtypeStruct`s. Where a parameter has several
    parts, codes and scales, each lies like the whole, except that a dimension that the mesh does not divide is whole.

    Raises:
        ValueError: a parameter matches no row of `PARAM_AXES` or several, or a mesh axis does not divide its dimension.
    """
    flat = trees.flatten(shapes)
    axes = trees.match(PARAM_AXES, flat)

    def of(path: str, leaf: Any) -> Any:
        whole = _sharding(path, axes[path], leaf.shape, mesh)
        part = lambda x: NamedSharding(mesh, fitting(axes[path], x.shape, mesh))
        return jax.tree.map(lambda x: whole if x.shape == leaf.shape else part(x), leaf)

    return trees.unflatten({path: of(path, leaf) for path, leaf in flat.items()})


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of every array of a batch. Its name ends with the letters of its dimensions: `tokens_BT`.

    Raises:
        ValueError: the mesh does not divide the rows or the length.
    """
    axes = {"B": "batch", "T": "length", "S": "length"}
    return {
        name: _sharding(name, " ".join(axes.get(letter, "_") for letter in name.rpartition("_")[2]), x.shape, mesh)
        for name, x in batch.items()
    }


def _sharding(name: str, axes: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    partition = spec(axes, shape, mesh)
    for size, entry in zip(shape, partition, strict=True):
        if size % ways(entry, mesh):
            raise ValueError(
                f"{name} has shape {tuple(shape)}, and the mesh axis {entry!r} of size {ways(entry, mesh)} "
                f"does not divide its dimension of {size}: choose a size of {entry!r} that does"
            )
    return NamedSharding(mesh, partition)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def fitting(axes: str, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """`spec`, except that a dimension that the mesh does not divide stays whole."""
    partition = spec(axes, shape, mesh)
    return PartitionSpec(
        *(entry if size % ways(entry, mesh) == 0 else None for size, entry in zip(shape, partition, strict=True))
    )


def platform() -> str:
    """The platform that a program is compiled for: cpu, gpu or tpu. It may differ from the one that traces it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    kind = device.device_kind  # such as cpu, TPU v5 lite or NVIDIA H200: jax 0.7 tells no more
    return "cpu" if kind == "cpu" else "tpu" if kind.startswith("TPU") else "gpu"


def constrain(x: jax.Array, axes: str) -> jax.Array:
    """Shards an activation over the current mesh, if there is one. A dimension that the mesh does not divide stays
    whole: one prompt can be decoded on eight devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, fitting(axes, x.shape, mesh))
