"""The folder of a run: its settings, and everything that it writes.

run.json        every setting, what was found out about the data, versions, devices, git revision
tokenizer/      the tokenizer
generation_config.json      how the first weights generate, where they have such a file
checkpoints/    training state by step
base/           the frozen weights of a run with adapters
metrics.jsonl   losses and metrics by step; also in curve.png and tensorboard/
wandb_id        the run's id at Weights & Biases, if it logs there
confusion.png   the confusion matrix of a classifier in its last evaluation; with several classes to an example
                classes.png, precision and recall of each
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from transformer_zoo import arguments, folders, json_files, logs, lora, measures, names, registry, sharding, trees
from transformer_zoo import config as configuration
from transformer_zoo.checkpoints import weight_map
from transformer_zoo.checkpoints.orbax import Checkpoints, steps
from transformer_zoo.config import Run
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation import published
from transformer_zoo.nn import Compute
from transformer_zoo.nn.tasks import TASKS, same_scores
from transformer_zoo.objectives import OBJECTIVES
from transformer_zoo.pretrained import Bundle, choose_compute, completed, from_pretrained, with_generation

PACKAGES = ("transformer-zoo", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")

# Settings that give the training state its shape, or the data its meaning: a run cannot be resumed with others.
FIXED = ("model.", "objective.name", "vocabulary.", "optimizer.name", "optimizer.freeze", "optimizer.ema", "lora.")
# Settings that change what an evaluation measures, and those among them that do not.
MEASURED, NOT_MEASURED = (
    ("objective.", "data.length", "data.packing", "evaluation.batches"),
    ("objective.logits_chunks",),
)
BASE = "base"
REPLACED = ("tokenizer", BASE, published.FILE, "metrics.jsonl")
"""What a run that begins removes or writes anew, if a run that never saved has left it."""
LOCK = ".lock"
"""A file that the process which trains in the folder holds locked."""
RENAMED = {"pieces": "logits_chunks"}
"""Names of objectives' settings in older versions -> their names today."""


def settings(run: Run) -> dict[str, Any]:
    """A run as plain JSON, with the names of the family and of the objective."""
    as_dict = dataclasses.asdict(run)
    as_dict["model"] = registry.as_json(run.model)
    as_dict["objective"] = {"name": run.objective.name, **as_dict["objective"]}
    return json.loads(json.dumps(as_dict))


def write(run: Run, facts: Mapping[str, Any] | None = None) -> None:
    """Writes run.json, atomically.

    Args:
        facts: what was found out about the run, besides its settings.
    """
    record = {
        "settings": settings(run),
        **(facts or {}),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "git": _git_revision(),
    }
    json_files.write(folders.folder(run.directory) / names.RECORD, json.dumps(record, indent=2) + "\n")


def facts(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What run.json records besides the settings.

    given       hash of the settings as given, before data and first weights completed them
    steps       of the whole run, also where the settings count epochs
    data        fingerprints of the splits by their names
    comparable_since        the step at which the run last went on with a change of what its evaluations measure
    """
    path = folders.folder(directory) / names.RECORD
    return json_files.parse(path.read_bytes(), str(path))


def comparable_since(facts: Mapping[str, Any]) -> int:
    """The step after which a run's evaluations can be compared with one another; 0: all can."""
    return facts.get("comparable_since", 0)


def digest(run: Run) -> str:
    """A hash of the settings, wherever the folder is."""
    return hashlib.sha256(json.dumps({**settings(run), "directory": None}, sort_keys=True).encode()).hexdigest()[:32]


def step_of(directory: str | os.PathLike[str], step: int | Literal["best"] | None) -> int:
    """The step of a run's checkpoint: the latest, or the best by `evaluation.best`, or the one that is given.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: another word.
    """
    saved = steps(folders.folder(directory) / "checkpoints")
    known = ", ".join(map(str, saved))
    if not saved:
        raise FileNotFoundError(f"{directory} holds a run without a checkpoint: train it first")
    if step is None:
        return saved[-1]
    if step == "best":
        run = read(directory)
        if run.evaluation.best is None:
            raise FileNotFoundError(
                f"{directory} keeps no best checkpoint, since it is trained without evaluation.best: give one of the "
                f"steps {known}"
            )
        values = measures.history(run.evaluation, lines(directory), comparable_since(facts(directory)))
        best = measures.best_of(run.evaluation, {step: value for step, value in values.items() if step in saved})
        if best is None:
            raise FileNotFoundError(
                f"none of the checkpoints of {directory}, {known}, has an evaluation of {run.evaluation.best} yet"
            )
        if (absolute := measures.best_of(run.evaluation, values)) != best and absolute.step not in saved:
            warnings.warn(
                f"{directory} was best at step {absolute.step}, of which no checkpoint was kept: step {best.step} is "
                "the best of the others",
                stacklevel=3,
            )
        return best.step
    if isinstance(step, str):
        raise ValueError(f"step is {step!r}: it must be a number or best")
    if step not in saved:
        raise FileNotFoundError(f"{directory} holds no checkpoint of step {step} (there are: {known})")
    return step


def lines(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Of metrics.jsonl, as `logs.read_json_lines`."""
    return logs.read_json_lines(folders.folder(directory) / "metrics.jsonl")


def write_base(directory: epath.Path, base: trees.Tree) -> None:
    """Writes the frozen weights of a run with adapters, once: its checkpoints are without them."""
    saved = Checkpoints(directory / BASE, write=True)
    saved.save(0, base, {})
    saved.wait()
    saved.close()


def read_base(directory: epath.Path, shapes: trees.Tree) -> trees.Tree:
    """The frozen weights of a run with adapters.

    Args:
        shapes: with shardings.

    Raises:
        ValueError: they are missing or damaged.
    """
    saved = Checkpoints(directory / BASE)
    base, _ = saved.restore(0, shapes)
    saved.close()
    return base


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps a second process from training in a run's folder, which is made. The system frees the lock when this
    process ends, however it ends. On a file system without locks, a warning says so.

    Raises:
        ValueError: another process trains there.
        OSError: the folder cannot be written.
    """
    if not folders.is_local(folders.folder(directory)):
        warnings.warn(f"{directory} is in a bucket, which has no locks: do not start a second run in it", stacklevel=2)
        yield
        return
    path = Path(folders.folder(directory), LOCK)
    folders.make(path.parent)
    while True:
        try:
            file = path.open("a+")
        except OSError as error:
            raise OSError(error.errno, f"the folder {path.parent} cannot be written: {error.strerror}") from error
        try:
            import fcntl  # which Windows lacks

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise ValueError(
                    f"another process trains in {directory} ({file.read(200) or 'unknown'}): wait for it, stop it, or "
                    "give this run another --directory"
                ) from None
        except (OSError, ImportError) as error:
            warnings.warn(
                f"{directory} is on a file system without locks ({error}): do not start a second run in it",
                stacklevel=2,
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # and not the file of a process that has just removed it
        file.close()
    with file:
        with contextlib.suppress(OSError):  # a full disk
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        try:
            yield
        finally:
            if not names.is_run(directory):  # nothing was written
                path.unlink()
                with contextlib.suppress(OSError):  # others' files are there
                    path.parent.rmdir()


def read(directory: str | os.PathLike[str]) -> Run:
    """The settings of the run in a folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its run.json cannot be read by this version.
    """
    found = names.run_settings(directory)
    try:
        architecture, objective = found.pop("model"), found.pop("objective")
        if "data" in found:  # of an older version, which had no other way
            found["data"] = {"held_out_by": "rows", **found["data"]}
        objective = {RENAMED.get(name, name): value for name, value in objective.items()}
        parts: dict[str, Any] = {
            "model": registry.from_json(architecture),
            "objective": OBJECTIVES[objective.pop("name")](**_tuples(objective)),
        }
        for field in dataclasses.fields(Run):
            if field.name in found:
                value = found[field.name]
                part = field.type if dataclasses.is_dataclass(field.type) else None
                parts[field.name] = part(**_tuples(value)) if part else value
        return Run(**parts)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise names.not_a_run(folders.folder(directory) / names.RECORD, error) from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    as_tuple = lambda value: tuple(map(as_tuple, value)) if isinstance(value, list) else value
    return {name: as_tuple(value) for name, value in values.items()}


def differences(old: Run, new: Run) -> dict[str, tuple[Any, Any]]:
    """The settings in which two runs differ, by their dotted names: (old, new)."""
    before, after = (_flat(run) for run in (old, new))
    names = sorted(before.keys() | after.keys())
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def measures_the_same(old: Run, new: Run) -> bool:
    """Whether evaluations of two runs on the same documents can be compared."""
    return not any(name.startswith(MEASURED) and name not in NOT_MEASURED for name in differences(old, new))


def check_same(old: Run, new: Run) -> list[str]:
    """The settings that changed since the run began, a line each; those that cannot change are an error.

    Raises:
        ValueError: the run in the folder has another architecture, tokenizer or optimizer.
    """
    changed = {name: pair for name, pair in differences(old, new).items() if name != "directory"}
    names = FIXED + tuple(f"objective.{name}" for name in new.objective.fixed)
    fixed = [f"  {name}: {a!r} there, {b!r} now" for name, (a, b) in changed.items() if name.startswith(names)]
    if fixed:
        raise ValueError(
            f"{new.directory} holds a run with other settings, which cannot be resumed with these:\n"
            + "\n".join(fixed)
            + "\nGive this run another --directory, or the settings of that one."
        )
    return [f"{name}: {a!r}, now {b!r}" for name, (a, b) in changed.items()]


def model(name: str | os.PathLike[str], family: str | None = None) -> Any:
    """The model that a name stands for, without its parameters; of a run, the model that it results in.

    Args:
        name: a run's folder, a published model's folder, a preset or a hub id.
        family: as in `from_pretrained`.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError, ValueError: as `names.describe`.
    """
    if not names.is_run(name):
        return names.describe(name, family=family).model()
    run = read(name)
    names.check_family(name, run.model, family)
    trained = run.objective.model(run.model, run.compute)
    return run.objective.result(trained, registry.param_shapes(trained))[0]


def load(
    name: str | os.PathLike[str],
    *,
    task: str | None = None,
    labels: int | Sequence[str] | None = None,
    dtype: str | None = None,
    param_dtype: str | None = None,
    compute: Compute | None = None,
    mesh: jax.sharding.Mesh | None = None,
    seed: int = 0,
    family: str | None = None,
    step: int | Literal["best"] | None = None,
    quantize: str | None = None,
) -> Bundle:
    """A model by name: one that a run has trained, by the run's folder, or a published one (`from_pretrained`).

    Args:
        name: a run's folder, a published model's folder, a preset or a hub id.
        task: what the model is for. For another task than the one it was trained for, the parameters of the new head
            are fresh: a warning names them, and `Bundle.fresh` lists them.
        labels: the names of the classes, or their number, for a task with labels.
        dtype, param_dtype, compute: as in `from_pretrained`. None: the run's.
        seed: seed of the fresh parameters.
        family: as in `from_pretrained`.
        step: as in `load_run`, for a run.
        quantize: as in `from_pretrained`; a run's model is quantised once it is loaded.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError, ValueError: as `from_pretrained` and `load_run`.
    """
    if not names.is_run(name):
        if step is not None:
            raise ValueError(f"step={step} is for the checkpoints of a run, and {name} is none: leave it out")
        return from_pretrained(
            name, task=task, labels=labels, dtype=dtype, param_dtype=param_dtype, compute=compute, mesh=mesh, seed=seed,
            family=family, quantize=quantize,
        )  # fmt: skip
    quantized = lambda m: m if quantize is None else m.quantize(quantize)
    names.check_family(name, read(name).model, family)
    compute = choose_compute(compute, dtype, param_dtype, default=read(name).compute)
    bundle = load_run(name, step, mesh=mesh, compute=compute)
    config = names.labelled(bundle.config, labels)
    if task in (None, bundle.model.task) and config == bundle.config:
        return quantized(bundle)
    model = names.build(config, task or bundle.model.task, compute)
    before, after = _heads(bundle.model), _heads(model)
    known, wanted = trees.flatten(bundle.params), trees.flatten(registry.param_shapes(model))
    kept = {
        path: known[path]
        for path, x in wanted.items()
        if path in known and known[path].shape == x.shape and before.get(path) == after.get(path)
    }
    same, order = same_scores(bundle.model.task, model.task), None
    why = f"was not trained for {model.task}"
    if same and TASKS[model.task].scores == "labels" and config.labels != bundle.config.labels:
        order = names.order_of(config.labels, bundle.config.labels)
        if not (same := order is not None):
            why = f"has other labels, {json_files.excerpt(', '.join(bundle.config.labels), 200)}"
    for path in [path for path in kept if re.fullmatch(weight_map.SCORES, path)]:
        if not same:
            del kept[path]
        elif order is not None:
            kept[path] = kept[path][..., np.array(order)]
    params, fresh = completed(model, trees.unflatten(kept), mesh, seed)
    if fresh:
        warnings.warn(f"{name} {why}: fresh parameters are {', '.join(fresh)}", stacklevel=2)
    return quantized(dataclasses.replace(bundle, model=model, params=params, config=config, fresh=fresh, adapter=None))


def _heads(model: Any) -> dict[str, str]:
    """Parameters of the task's head -> their published names, which differ where their meaning does."""
    rows = registry.module_of(model.config).PUBLISHED.heads.get(model.task, ())
    return {ours: theirs for theirs, ours, *_ in rows}


def load_run(
    directory: str | os.PathLike[str],
    step: int | Literal["best"] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    *,
    compute: Compute | None = None,
    whole: bool = False,
) -> Bundle:
    """The model that a run has trained, as of its latest checkpoint or of another one.

    Where the run keeps a moving average of the parameters, the average is loaded.

    Args:
        step: of the checkpoint; "best": the one with the best value of the run's `evaluation.best`. None: the latest.
        compute: precision, memory and speed. None: the run's.
        whole: everything that was trained (such as a student with its teacher), as the run's objective needs it.
            False: only the result.

    Raises:
        FileNotFoundError: no run, or no checkpoint (of that step).
        TypeError: an argument of another type.
    """
    arguments.check(load_run, locals())
    directory, run = folders.folder(directory), read(directory)
    step = step_of(directory, step)
    model, adapter = lora.adapted(run.objective.model(run.model, compute or run.compute), run.lora), None
    shapes = registry.param_shapes(model)
    mesh = sharding.make_mesh(devices=jax.devices()[:1]) if mesh is None else sharding.adopt_mesh(mesh)
    shardings = sharding.param_shardings(shapes, mesh)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    trained, base = lora.divided(model, shapes)
    checkpoints = Checkpoints(directory / "checkpoints")
    params = checkpoints.restore_parameters(step, trained)
    checkpoints.close()
    if base is not None:
        adapter = lora.Adapter(model, params, run.init_from)
        params = model.merged(lora.joined(read_base(directory, base), params))
        model = model.model
    if not whole:
        model, params = run.objective.result(model, params)
    with folders.local(directory / "tokenizer") as folder:
        bundle = Bundle(model, params, model.config, Tokenizer.load(folder), run=run, adapter=adapter)
    if not (directory / published.FILE).is_file():
        return bundle
    with folders.local(directory / published.FILE) as file:
        return with_generation(bundle, file.parent, {})


def _flat(run: Run) -> dict[str, Any]:
    """The settings by their dotted names, as on the command line."""
    return {path.replace("/", "."): value for path, value in trees.flatten(settings(run)).items()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The commit of the source, with a + where files have changed since; None outside a repository."""
    command = [
        "git",
        "-C",
        str(Path(configuration.__file__).parent),
        "describe",
        "--always",
        "--dirty=+",
        "--abbrev=40",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
