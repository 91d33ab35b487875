"""Weights in old formats: good files are read completely and lazily; malicious and broken ones are refused, and nothing
in them is executed. No file here is made by torch: `parity/test_legacy.py` compares with it."""

import copyreg
import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import families
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import serialization

from transformer_zoo import trees
from transformer_zoo.checkpoints import flax_msgpack, formats, pickles, safetensors, torch_bin
from transformer_zoo.pretrained import from_pretrained, save_pretrained

STORAGES = {
    np.dtype(dtype): name.removeprefix("torch.") for name, dtype in torch_bin.STORAGES.items() if "cuda" not in name
}


# ---- files as torch writes them --------------------------------------------------------------------------------------


class Raw(NamedTuple):
    """Opcodes that leave one value on the stack."""

    code: bytes


def name(path: str) -> Raw:
    module, _, last = path.rpartition(".")
    return Raw(f"c{module}\n{last}\n".encode())


def call(function: Raw, *arguments: Any) -> Raw:
    return Raw(function.code + encode(arguments) + b"R")


def persistent(identifier: Any) -> Raw:
    return Raw(encode(identifier) + b"Q")


def encode(value: Any) -> bytes:
    """The opcodes of a value, protocol 2."""
    match value:
        case Raw():
            return value.code
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if abs(value) < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            return b"\x8a\x0c" + value.to_bytes(12, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encode(x) for item in value.items() for x in item) + b"u"
    raise TypeError(value)


def program(value: Any) -> bytes:
    return b"\x80\x02" + encode(value) + b"."


class Part(NamedTuple):
    """A tensor over a storage: an array of one dimension, and a view of it in numbers."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


HOOKS = call(name("collections.OrderedDict"))
STATE = {"little_endian": True, "protocol_version": 1001, "type_sizes": {"long": 8}}


def rebuilt(part: Part, storage: Any, function: str = "_rebuild_tensor_v2") -> Raw:
    return call(name(f"torch._utils.{function}"), storage, part.offset, part.shape, part.strides, False, HOOKS)


def persisted(key: str, storage: np.ndarray, *view: Any) -> Raw:
    kind = name(f"torch.{STORAGES[storage.dtype]}")
    return persistent(("storage", kind, key, "cpu", len(storage), *view))


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for member, content in members.items():
            archive.writestr(zipfile.ZipInfo(str(member)), content, method)
    return stream.getvalue()


def zip_members(state: bytes, storages: list[np.ndarray]) -> dict[str, bytes]:
    data = {f"archive/data/{i}": storage.tobytes() for i, storage in enumerate(storages)}
    return {"archive/data.pkl": state, "archive/byteorder": b"little"} | data | {"archive/version": b"3\n"}


def in_zip(state: bytes, storages: list[np.ndarray]) -> bytes:
    return zipped(zip_members(state, storages))


def in_stream(state: bytes, storages: list[np.ndarray]) -> bytes:
    head = program(torch_bin.MAGIC) + program(1001) + program(STATE) + state
    keys = program([str(i) for i in range(len(storages))])
    return head + keys + b"".join(struct.pack("<q", len(x)) + x.tobytes() for x in storages)


def tarred(members: Mapping[str, bytes], **attributes: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size, info.mtime = len(content), 1.5  # a time with a fraction gets a header of its own
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def tar_members(state: bytes, storages: list[np.ndarray], parts: list[Part], views: list[Any]) -> dict[str, bytes]:
    """Storage i has the number i, and tensor i 100 + i."""
    stored = program(len(storages))
    for i, x in enumerate(storages):
        stored += program((i, "cpu", name(f"torch.{STORAGES[x.dtype]}"))) + struct.pack("<q", len(x)) + x.tobytes()
    tensors = program(len(parts))
    for i, part in enumerate(parts):
        axes = len(part.shape)
        kind = name(f"torch.{STORAGES[storages[part.storage].dtype].replace('Storage', 'Tensor')}")
        tensors += program((100 + i, part.storage, kind)) + struct.pack("<ii", axes, 0)
        tensors += struct.pack(f"<{2 * axes + 1}q", *part.shape, *part.strides, part.offset)
    return {"sys_info": program(STATE), "pickle": state, "tensors": tensors, "storages": stored + program(views)}


def in_tar(state: bytes, storages: list[np.ndarray], parts: list[Part] = [], views: list[Any] = []) -> bytes:  # noqa: B006
    return tarred(tar_members(state, storages, parts, views))


def bin_file(container: str, storages: list[np.ndarray], parts: Mapping[str, Part]) -> bytes:
    if container == "tar":
        state = {key: persistent(str(100 + i)) for i, key in enumerate(parts)}
        return in_tar(program(state), storages, list(parts.values()))
    view = [None] if container == "stream" else []
    state = {key: rebuilt(part, persisted(str(part.storage), storages[part.storage], *view))
             for key, part in parts.items()}  # fmt: skip
    return CONTAINERS[container](program(state), storages)


def simple(container: str, tensors: Mapping[str, np.ndarray]) -> bytes:
    """Each tensor whole in a storage of its own."""
    parts = {}
    for i, (key, x) in enumerate(tensors.items()):
        strides = tuple(stride // x.itemsize for stride in np.ascontiguousarray(x).strides) if x.ndim else ()
        parts[key] = Part(i, 0, x.shape, strides)
    return bin_file(container, [np.ascontiguousarray(x).reshape(-1) for x in tensors.values()], parts)


CONTAINERS: dict[str, Callable[..., bytes]] = {"zip": in_zip, "stream": in_stream, "tar": in_tar}


def read(folder: Path, content: bytes) -> dict[str, Any]:
    (folder / "pytorch_model.bin").write_bytes(content)
    return torch_bin.read_folder(folder)


def assert_equal(found: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for key, x in expected.items():
        y = np.asarray(found[key])
        assert (y.dtype, y.shape) == (found[key].dtype, found[key].shape) == (x.dtype, x.shape), key
        assert y.tobytes() == x.tobytes(), key


# ---- good files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_dtype_and_shape(tmp_path: Path, container: str):
    rng = np.random.default_rng(0)
    tensors = {}
    for dtype in STORAGES:
        for shape in ((), (3,), (2, 5), (0, 4), (1, 2, 3)):
            bits = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
            bits = bytes(byte & 1 for byte in bits) if dtype == np.bool_ else bits
            tensors[f"{dtype}.{shape}"] = np.frombuffer(bits, dtype).reshape(shape)
    found = read(tmp_path, simple(container, tensors))
    assert_equal(found, tensors)
    for key, tensor in found.items():  # also where the file aligns nothing
        y = np.asarray(tensor)
        assert np.array_equal(y.astype(np.complex128), tensors[key].astype(np.complex128), equal_nan=True), key


@pytest.mark.parametrize("container", CONTAINERS)
def test_views_of_shared_storages(tmp_path: Path, container: str):
    storages = [np.arange(100, dtype=np.float32), np.arange(30).astype(ml_dtypes.bfloat16)]
    grid = storages[0].reshape(10, 10)
    parts = {
        "whole": Part(0, 0, (10, 10), (10, 1)),
        "transposed": Part(0, 0, (10, 10), (1, 10)),
        "columns": Part(0, 3, (10, 2), (10, 4)),
        "last": Part(0, 99, (1,), (1,)),
        "scalar": Part(0, 42, (), ()),
        "expanded": Part(0, 7, (3, 4), (0, 1)),
        "nothing": Part(0, 100, (0, 5), (5, 1)),
        "narrow": Part(1, 1, (4, 7), (7, 1)),
        "crooked": Part(1, 1, (7, 4), (1, 7)),
    }
    found = read(tmp_path, bin_file(container, storages, parts))
    narrow = storages[1][1:29].reshape(4, 7)
    expected = {"whole": grid, "transposed": grid.T, "columns": grid[:, 3:8:4], "last": grid[9, 9:],
                "scalar": grid[4, 2],
                "expanded": np.tile(grid[0, 7:].tolist() + [10], (3, 1)).astype(np.float32),
                "nothing": np.zeros((0, 5), np.float32), "narrow": narrow, "crooked": narrow.T}  # fmt: skip
    assert_equal(found, {key: np.asarray(x) for key, x in expected.items()})


def test_parameters_metadata_and_memo(tmp_path: Path):
    """What torch's pickles have beyond tensors: an OrderedDict with an attribute, parameters, a memo."""
    x = np.arange(6, dtype=np.float32)
    tensor = rebuilt(Part(0, 0, (2, 3), (3, 1)), persisted("0", x))
    parameter = call(name("torch._utils._rebuild_parameter"), tensor, True, HOOKS)
    old = call(name("torch._utils._rebuild_tensor"), persisted("0", x), 1, (2,), (1,))
    pairs = b"".join(map(encode, ("a", parameter, "b", old)))
    metadata = encode({"_metadata": {"": {"version": 1}}})
    body = b"\x80\x02" + HOOKS.code + b"q\x01(" + pairs + b"u" + metadata + b"b."
    expected = {"a": x.reshape(2, 3), "b": x[1:3]}
    assert_equal(read(tmp_path, in_zip(body, [x])), expected)
    # The same in protocol 4: frames, names made of strings, a memo that counts by itself.
    short = lambda text: b"\x8c" + bytes([len(text)]) + text.encode() + b"\x94"
    kind = short("torch") + short("FloatStorage") + b"\x93\x94"
    rebuild = short("torch._utils") + short("_rebuild_tensor_v2") + b"\x93\x94"
    storage = b"(" + short("storage") + kind + short("0") + short("cpu") + b"K\x06t\x94Q"
    arguments = b"(" + storage + b"K\x00K\x06\x85K\x01\x85\x89" + HOOKS.code + b"t\x94"
    modern = b"\x80\x04\x95" + bytes(8) + b"}\x94(" + short("a") + rebuild + arguments + b"Ru."
    assert_equal(read(tmp_path, in_zip(modern, [x])), {"a": x})


def test_parts_of_storages(tmp_path: Path):
    """The oldest versions shared memory by storages that were parts of others."""
    x = np.arange(10, dtype=np.int64)
    part = persisted("0", x, ("7", 4, 5))
    state = program(
        {"a": rebuilt(Part(0, 1, (2, 2), (2, 1)), part), "b": rebuilt(Part(0, 0, (10,), (1,)), persisted("0", x))}
    )
    expected = {"a": x[5:9].reshape(2, 2), "b": x}
    assert_equal(read(tmp_path, in_stream(state, [x])), expected)
    parts = [Part(0, 0, (10,), (1,))]
    members = tar_members(program({"a": persistent("101"), "b": persistent("100")}), [x], parts, [(1, 0, 4, 5)])
    second = program((101, 1, name("torch.LongTensor"))) + struct.pack("<ii5q", 2, 0, 2, 2, 2, 1, 1)
    members["tensors"] = program(2) + members["tensors"].removeprefix(program(1)) + second
    assert_equal(read(tmp_path, tarred(members)), expected)
    members["tensors"] = members["tensors"].removesuffix(struct.pack("<q", 1)) + struct.pack("<q", 2)
    with pytest.raises(ValueError, match="reaches number 5"):
        read(tmp_path, tarred(members))


def test_only_touched_pages_are_read(tmp_path: Path):
    """One row of a sparse file of 64 GB, which fits no memory."""
    shape = (1 << 24, 1 << 10)
    storage = persistent(("storage", name("torch.FloatStorage"), "0", "cpu", 1 << 34))
    state = program({"x": rebuilt(Part(0, 0, shape, (1 << 10, 1)), storage)})
    with (tmp_path / "pytorch_model.bin").open("wb") as stream:
        stream.write(in_stream(state, []).removesuffix(program([])) + program(["0"]) + struct.pack("<q", 1 << 34))
        stream.truncate(stream.tell() + (4 << 34))
    array = np.asarray(torch_bin.read_folder(tmp_path)["x"])
    assert array.shape == shape and array[-1, -1] == 0


# ---- pickles that would do something ---------------------------------------------------------------------------------

TOUCHED: list[str] = []


def touch(*arguments: Any) -> str:
    TOUCHED.append("called")
    return "touched"


class Made:
    def __new__(cls) -> str:
        return touch()


class Setting:
    def __setstate__(self, state: Any) -> None:
        touch()


HERE = f"{__name__}."
TOUCH = name(HERE + "touch")
# Each of these runs code when Python's own pickle opens it.
EXECUTES = {
    "os.system": (lambda file: call(name("os.system"), f"touch {file}"), "'os.system'"),
    "posix.system": (lambda file: call(name("posix.system"), f"touch {file}"), "'posix.system'"),
    "eval": (lambda file: call(name("builtins.eval"), f"open({str(file)!r}, 'w')"), "'builtins.eval'"),
    "eval of python 2": (
        lambda file: call(name("__builtin__.eval"), f"open({str(file)!r}, 'w')"), "'__builtin__.eval'"),
    "a global outside the list": (lambda file: call(TOUCH), f"'{HERE}touch'"),
    "a name made of strings": (
        lambda file: Raw(encode("os") + encode("system") + b"\x93" + encode((f"touch {file}",)) + b"R"), "'os.system'"),
    "a name with dots": (
        lambda file: call(Raw(b"\x80\x04" + encode("shutil") + encode("os.system") + b"\x93"), f"touch {file}"),
        "'shutil.os.system'"),
    "INST": (lambda file: Raw(b"(" + encode(f"touch {file}") + b"ios\nsystem\n"), "INST of 'os.system'"),
    "OBJ": (lambda file: Raw(b"(" + name("subprocess.Popen").code + encode(["touch", str(file)]) + b"o"),
            "'subprocess.Popen'"),
    "NEWOBJ": (lambda file: Raw(name(HERE + "Made").code + b")\x81"), f"'{HERE}Made'"),
    "BUILD with __setstate__": (lambda file: Raw(name(HERE + "Setting").code + b")\x81N" + b"b"), f"'{HERE}Setting'"),
    "an extension": (lambda file: Raw(b"\x82\xf0" + encode((f"touch {file}",)) + b"R"), "EXT1"),
    "a pickle inside": (
        lambda file: Raw(name("pickle.loads").code + b"C" + bytes([len(inner := program(call(TOUCH)))]) + inner
                         + b"\x85R"), "'pickle.loads'"),
    "within a persistent id": (lambda file: persistent(("storage", call(TOUCH), "0", "cpu", 4)), f"'{HERE}touch'"),
    "as the hooks of a tensor": (
        lambda file: call(name("collections.OrderedDict"), call(TOUCH)), f"'{HERE}touch'"),
    "among the keys": (lambda file: {"a": call(TOUCH), "b": 1}, f"'{HERE}touch'"),
    "after the dict, popped": (lambda file: Raw(call(TOUCH).code + b"0" + b"}"), f"'{HERE}touch'"),
    "getattr": (lambda file: call(call(name("builtins.getattr"), TOUCH, "__call__")), "'builtins.getattr'"),
}  # fmt: skip


class Loose(pickle.Unpickler):
    def persistent_load(self, identifier: Any) -> Any:
        return identifier


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Path]:
    TOUCHED.clear()
    copyreg.add_extension("posix", "system", 0xF0)
    yield tmp_path / "sentinel"
    copyreg.remove_extension("posix", "system", 0xF0)


def was_executed(file: Path) -> bool:
    return bool(TOUCHED) or file.exists()


@pytest.mark.parametrize("case", EXECUTES)
def test_what_executes_is_refused_by_name(tmp_path: Path, sentinel: Path, case: str):
    make, message = EXECUTES[case]
    payload = program(make(sentinel))
    x = np.zeros(4, np.float32)
    for container, pack in CONTAINERS.items():
        with pytest.raises(ValueError) as caught:
            read(tmp_path, pack(payload, [x]))
        assert message in str(caught.value) and "Nothing in it was executed" in str(caught.value), container
        assert str(tmp_path / "pytorch_model.bin") in str(caught.value)
    # The stream has four more pickles, and the tar others, that are read before it or after.
    keys = in_stream(program({}), []).removesuffix(program([])) + payload
    machine = program(torch_bin.MAGIC) + program(1001) + payload
    tars = [
        tarred(tar_members(program({}), [x], [], []) | {member: payload})
        for member in ("sys_info", "storages", "tensors")
    ]
    for content in (payload, machine, keys, *tars):
        with pytest.raises(ValueError, match="Nothing in it was executed"):
            read(tmp_path, content)
    assert not was_executed(sentinel)


@pytest.mark.parametrize("case", EXECUTES)
def test_these_pickles_are_really_malicious(sentinel: Path, case: str):
    payload = program(EXECUTES[case][0](sentinel))
    try:
        value = Loose(io.BytesIO(payload)).load()
        if hasattr(value, "wait"):
            value.wait()
    except (TypeError, ValueError):
        pass  # it ran before Python noticed what it had made
    assert was_executed(sentinel)


# ---- pickles that are broken, or made to exhaust us ------------------------------------------------------------------


def tensor(part: Part = Part(0, 0, (4,), (1,)), storage: Any = persisted("0", np.zeros(4, np.float32))) -> Raw:  # noqa: B008
    return rebuilt(part, storage)


def float_storage(size: Any, key: Any = "0", *view: Any, kind: str = "torch.FloatStorage") -> Raw:
    return persistent(("storage", name(kind), key, "cpu", size, *view))


X = encode("x")
BROKEN = {
    "nested tuples": (b")" + b"\x85" * 1_000_000 + b".", "nests tuples"),
    "nested lists": (b"]" * 100_000 + b"a" * 99_999 + b".", "nests lists"),
    "nested dicts": (b"}" + (b"}" + X) * 100_000 + b"s" * 100_000 + b".", "takes a value|as a key|as a"),
    "laughs of tuples": (
        b")" + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(60)) + b".", "nests tuples"),
    "laughs of lists": (b"]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b".", "nests lists"),
    "laughs of dicts": (
        b"}q\0" + b"".join(b"}(" + X + b"h%c" % i + encode("y") + b"h%cuq%c" % (i, i + 1) for i in range(60)) + b".",
        "leaves values behind"),
    "a list that holds itself": (b"]q\0h\0a.", "nests lists"),
    "a dict that holds itself": (b"}q\0" + X + b"h\0s.", "'x' is a dict and not a tensor"),
    "a key that hashes for years": (b"}))\x86" + X + b"s.", "a tuple as a key"),
    "a key that is a tensor": (b"}" + tensor().code + X + b"s.", "a View as a key"),
    "a key that is there twice": (b"}(" + X + tensor().code + X + tensor().code + b"u.", "the key 'x' twice"),
    "a wide tuple": (b"(" + b"N" * 65 + b"t.", "tuple of 65"),
    "a number of 2 GB": (b"\x8b\xff\xff\xff\x7f.", "opcode LONG4"),
    "bytes of exabytes": (b"\x8e" + b"\xff" * 7 + b"\x3f.", "opcode BINBYTES8"),
    "text of exabytes": (b"\x8d" + b"\xff" * 7 + b"\x3f.", "expected 4611686018427387903 bytes"),
    "more text than a size": (b"\x8d" + b"\xff" * 8 + b".", "byte count > sys.maxsize"),
    "text of 4 GB": (b"X\xff\xff\xff\xff.", "expected 4294967295 bytes"),
    "text that is none": (b"X\x01\0\0\0\xff.", "codec can't decode"),
    "a line without end": (b"cos", "breaks off in a name|has no opcode|codec"),
    "a number of a thousand digits": (b"I" + b"9" * 5000 + b"\n.", "opcode INT"),
    "an unknown opcode": (b"\xff.", r"no opcode b'\\xff'"),
    "only an end": (b".", "empty stack"),
    "values left": (b"}}.", "leaves values behind"),
    "an open mark": (b"(}.", "leaves values behind"),
    "no mark": (b"}t.", "never set"),
    "below a mark": (b"}(\x85.", "empty stack"),
    "an empty memo": (b"h\x05.", "number 5 from its memo"),
    "a key without a value": (b"}(" + X + b"u.", "key without a value"),
    "items of a string": (X + X + X + b"s.", "treats a str as a dict"),
    "a call of a string": (X + b")R.", "calls a str"),
    "a call of a type": (name("torch.FloatStorage").code + b")R.", "calls a"),
    "a call with a list": (name("collections.OrderedDict").code + b"]R.", "treats a list as a tuple"),
    "an OrderedDict of something": (call(name("collections.OrderedDict"), ["a"]).code + b".", "OrderedDict"),
    "attributes": (HOOKS.code + encode({"__class__": "x"}) + b"b.", "sets attributes"),
    "a name of numbers": (b"NN\x93.", "treats a NoneType as a str"),
    "a list as the whole": (program([]), "it holds a list"),
    "a string among the tensors": (program({"version": "1"}), "'version' is a str and not a tensor"),
    "a storage among the tensors": (program({"a": float_storage(4)}), "'a' is a Storage and not a tensor"),
    "sparse tensors": (program({"a": name("torch._utils._rebuild_sparse_tensor")}), "_rebuild_sparse_tensor"),
    "a whole model": (program({"a": name("transformers.models.bert.BertModel")}), "transformers.models.bert.BertModel"),
    "a numpy array": (program({"a": name("numpy.core.multiarray._reconstruct")}), "numpy.core.multiarray._reconstruct"),
    "a reference to nothing": (program({"a": persistent("x")}), "refers to an object outside of it"),
    "a reference to a module": (program({"a": persistent(("module", None, ""))}), "refers to an object outside of it"),
    "a parameter of a string": (program(call(name("torch._utils._rebuild_parameter"), "x")), "rebuilds a parameter"),
    "a tensor of a string": (program({"a": tensor(storage="x")}), "rebuilds a tensor"),
    "a tensor of nothing": (program({"a": call(name("torch._utils._rebuild_tensor_v2"))}), "rebuilds a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("container", CONTAINERS)
def test_broken_pickles_are_refused(tmp_path: Path, case: str, container: str):
    payload, message = BROKEN[case]
    payload = payload if payload.startswith(b"\x80") else b"\x80\x02" + payload
    refers = b"FloatStorage" in payload
    with pytest.raises(ValueError) as caught:
        read(tmp_path, CONTAINERS[container](payload, [FOUR] if refers else []))
    if not (refers and container == "tar"):  # there, storages are not what the pickle refers to
        caught.match(message)
    assert len(str(caught.value)) < 1000


BAD_VIEWS = {
    "beyond the storage": (tensor(Part(0, 0, (5,), (1,))), "reaches number 4"),
    "beyond it by its offset": (tensor(Part(0, 1, (4,), (1,))), "reaches number 4"),
    "beyond it by its strides": (tensor(Part(0, 0, (2, 2), (3, 1))), "reaches number 4"),
    "beyond it by an axis": (tensor(Part(0, 4, (), ())), "reaches number 4"),
    "a negative offset": (tensor(Part(0, -1, (4,), (1,))), "no sizes"),
    "a negative stride": (tensor(Part(0, 3, (4,), (-1,))), "no sizes"),
    "a negative size": (tensor(Part(0, 0, (-1,), (1,))), "no sizes"),
    "a truth as a size": (tensor(Part(0, 0, (True,), (1,))), "no sizes"),
    "a string as a size": (tensor(Part(0, 0, ("4",), (1,))), "no sizes"),
    "a list as a shape": (tensor(Part(0, 0, [4], (1,))), "rebuilds a tensor from something other"),
    "fewer strides than axes": (tensor(Part(0, 0, (2, 2), (1,))), "the strides"),
    "more numbers than there can be": (tensor(Part(0, 0, (2**31 - 1,) * 4, (0,) * 4)), "has the shape"),
    "an offset beyond all files": (tensor(Part(0, 2**62, (1,), (1,))), "reaches number 4611686018427387904"),
    "a number of 95 bits": (tensor(Part(0, 2**94, (1,), (1,))), "no sizes"),
    "a storage that is smaller": (tensor(storage=float_storage(3)), "3 .* 12|has 4 numbers|reaches number 3"),
    "a storage that is larger": (tensor(storage=float_storage(5)), "has 16 bytes, and 5 float32 need 20|has 4 numbers"),
    "a storage of no size": (tensor(storage=float_storage(-4)), "not a storage"),
    "a storage of another type": (
        tensor(storage=float_storage(4, kind="torch.DoubleStorage")), "4 float64 need 32|truncated"),
    "a storage of no type": (tensor(storage=float_storage(4, kind="collections.OrderedDict")), "not a storage"),
    "a storage of an unknown type": (tensor(storage=float_storage(4, kind="torch.QInt8Storage")), "torch.QInt8Storage"),
    "a storage that is absent": (tensor(storage=float_storage(4, "7")), "no member data/7|not those that its pickle"),
    "a storage elsewhere": (tensor(storage=float_storage(4, "../../x")), "no member data/../../x|not those that"),
    "a storage whose name is a number": (tensor(storage=float_storage(4, 0)), "not a storage"),
    "a part beyond the storage": (tensor(storage=float_storage(4, "0", ("1", 2, 3))), "a part of the storage '0'"),
    "a part that is none": (tensor(storage=float_storage(4, "0", ("1", 2))), "a part of the storage '0'"),
    "a part before the storage": (tensor(storage=float_storage(4, "0", ("1", -1, 2))), "a part of the storage '0'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_VIEWS)
@pytest.mark.parametrize("pack", [in_zip, in_stream])
def test_tensors_outside_of_their_storage_are_refused(tmp_path: Path, case: str, pack: Callable[..., bytes]):
    view, message = BAD_VIEWS[case]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, pack(program({"good": tensor(), "bad": view} if "0" in case else {"bad": view}),
                            [np.zeros(4, np.float32)]))  # fmt: skip


def test_a_storage_described_in_two_ways(tmp_path: Path):
    state = program({"a": tensor(), "b": tensor(storage=float_storage(4, kind="torch.IntStorage"))})
    with pytest.raises(ValueError, match="'0' in two ways"):
        read(tmp_path, in_zip(state, [np.zeros(4, np.float32)]))


def test_pickles_over_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = in_zip(program({"a": tensor()}), [np.zeros(4, np.float32)])
    assert_equal(read(tmp_path, content), {"a": np.zeros(4, np.float32)})
    monkeypatch.setattr(pickles, "MAX_OPCODES", 20)
    with pytest.raises(ValueError, match="more than 20 opcodes"):
        read(tmp_path, content)
    monkeypatch.undo()
    monkeypatch.setattr(pickles, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="but only|not enough data|no newline|breaks off"):
        read(tmp_path, content)


# ---- containers that are broken --------------------------------------------------------------------------------------

FOUR = np.arange(4, dtype=np.float32)
GOOD = zip_members(program({"a": tensor()}), [FOUR])


def renamed(content: bytes, old: bytes, new: bytes, which: int) -> bytes:
    """Renames a member only in its own header, or only in the directory."""
    start = content.index(old) if which == 0 else content.rindex(old)
    return content[:start] + new + content[start + len(old) :]


def swapped(old: str, new: str) -> bytes:
    return zipped({new if key == old else key: content for key, content in GOOD.items()})


def overlapping() -> bytes:
    """The second storage is moved into the first."""
    inner = zipped({"archive/data/1": FOUR.tobytes()})
    first = inner[: inner.index(b"PK\1\2")]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member, content in (GOOD | {"archive/data/0": first, "archive/data/1": FOUR.tobytes()}).items():
            archive.writestr(zipfile.ZipInfo(member), content)
        infos = {info.filename: info for info in archive.filelist}
        infos["archive/data/1"].header_offset = infos["archive/data/0"].header_offset + 30 + len("archive/data/0")
    return stream.getvalue()


def patched(content: bytes, at: int, value: bytes) -> bytes:
    """The directory's entry of data/0, changed at a byte."""
    start = content.rindex(b"archive/data/0") - 46 + at
    return content[:start] + value + content[start + len(value) :]


def lengthened(content: bytes, extra: int) -> bytes:
    """The header of data/0 claims that more bytes of its own follow, which shifts the numbers."""
    at = content.index(b"archive/data/0") - 2
    return content[:at] + struct.pack("<H", extra) + content[at + 2 :]


ZIP = zipped(GOOD)
BROKEN_ZIPS = {
    "no pickle": (swapped("archive/data.pkl", "archive/other.pkl"), "no member data.pkl"),
    "no storage": (swapped("archive/data/0", "archive/data/1"), "no member data/0"),
    "nothing": (zipped({}), "no member data.pkl"),
    "not a zip": (b"PK\3\4" + bytes(600), "not a zip file"),
    "a member renamed in its header": (renamed(ZIP, b"data/0", b"data/1", 0), "another name in its directory"),
    "a member renamed in the directory": (renamed(ZIP, b"data/0", b"data/1", 1), "another name in its directory"),
    "a path upwards": (zipped(GOOD | {"archive/../../etc/passwd": b"x"}), "outside of the archive's folder"),
    "another path upwards": (swapped("archive/data/0", "../archive/data/0"), "outside of the archive's folder"),
    "a path from the root": (zipped(GOOD | {"/etc/passwd": b"x"}), "outside of the archive's folder"),
    "a path of Windows": (zipped(GOOD | {"archive/..\\x": b"x"}), "outside of the archive's folder"),
    "a member without a folder": (zipped(GOOD | {"x": b"x"}), "outside of the archive's folder"),
    "two folders": (zipped(GOOD | {"other/x": b"x"}), "several folders: 'archive', 'other'"),
    "a member twice": (
        zipped(GOOD | {"archive/data/1": b"x"}).replace(b"data/1", b"data/0"), "is there twice"),
    "compressed": (zipped(GOOD, zipfile.ZIP_DEFLATED), "is compressed"),
    "a bomb": (zipped(GOOD | {"archive/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED), "is compressed"),
    "encrypted": (patched(ZIP, 8, b"\x01"), "is compressed or encrypted"),
    "compressed, the directory says": (patched(ZIP, 10, b"\x08"), "is compressed"),
    "larger than the file": (patched(ZIP, 20, b"\xff\xff\xff\x0f" * 2), "overlaps the directory"),
    "larger than it is": (patched(ZIP, 20, struct.pack("<II", 40, 40)), "overlaps the one before it"),
    "smaller than it is": (patched(ZIP, 20, struct.pack("<II", 8, 8)), "does not follow the one before it"),
    "a header that is longer": (lengthened(ZIP, 4), "overlaps"),
    "bytes before it": (b"PK\3\4" + ZIP, "does not follow"),
    "two sizes": (patched(ZIP, 20, struct.pack("<II", 8, 16)), "is compressed"),
    "elsewhere": (patched(ZIP, 42, struct.pack("<I", ZIP.rindex(b"PK\1\2") - 40)), "does not follow the one before it"),
    "members that overlap": (overlapping(), "overlaps the one before"),
    "another byte order": (zipped(GOOD | {"archive/byteorder": b"big"}), "byteorder is b'big'"),
    "a long byte order": (zipped(GOOD | {"archive/byteorder": b"little" * 1000}), "byteorder is b'little"),
    "bytes after the pickle": (zipped(GOOD | {"archive/data.pkl": GOOD["archive/data.pkl"] + b"x"}), "bytes follow"),
    "a pickle cut off": (zipped(GOOD | {"archive/data.pkl": GOOD["archive/data.pkl"][:-1]}), "breaks off"),
    "an empty pickle": (zipped(GOOD | {"archive/data.pkl": b""}), "does not begin with its protocol"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_ZIPS)
def test_broken_zips_are_refused(tmp_path: Path, case: str):
    content, message = BROKEN_ZIPS[case]
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, content)
    assert "pytorch_model.bin cannot be read" in str(caught.value) and len(str(caught.value)) < 1000


STREAM = in_stream(program({"a": tensor()}), [FOUR])
HEAD = [torch_bin.MAGIC, 1001, STATE, {"a": tensor()}, ["0"]]
DATA = struct.pack("<q", 4) + FOUR.tobytes()


def stream_of(*values: Any, data: bytes = DATA) -> bytes:
    return b"".join(map(program, [*values, *HEAD[len(values) :]])) + data


BROKEN_STREAMS = {
    "nothing": (b"", "none of the formats"),
    "text": (b"hello, world", "none of the formats"),
    "a pointer of git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "another magic number": (stream_of(1), "not one of those that torch.save writes"),
    "another version": (stream_of(torch_bin.MAGIC, 1002), "not one of those that torch.save writes"),
    "another byte order": (stream_of(*HEAD[:2], {"little_endian": False}), "not written on a little-endian machine"),
    "no machine": (stream_of(*HEAD[:2], []), "not written on a little-endian machine"),
    "a storage that nobody wants": (stream_of(*HEAD[:4], ["0", "1"]), "not those that its pickle refers to"),
    "a storage twice": (stream_of(*HEAD[:4], ["0", "0"]), "not those that its pickle refers to"),
    "a storage less": (stream_of(*HEAD[:4], []), "not those that its pickle refers to"),
    "keys of no kind": (stream_of(*HEAD[:4], [0]), "not those that its pickle refers to"),
    "another size": (stream_of(data=struct.pack("<q", 3) + DATA[8:]), "has 3 numbers, and its pickle gives 4"),
    "a negative size": (stream_of(data=struct.pack("<q", -4) + DATA[8:]), "has -4 numbers, and its pickle gives 4"),
    "bytes after the end": (stream_of(data=DATA + b"x"), "its storages end at byte"),
}


@pytest.mark.parametrize("case", BROKEN_STREAMS)
def test_broken_streams_are_refused(tmp_path: Path, case: str):
    content, message = BROKEN_STREAMS[case]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


TAR = tar_members(program({"a": persistent("100")}), [FOUR], [Part(0, 0, (4,), (1,))], [])


def tar_of(**members: bytes) -> bytes:
    return tarred(TAR | members)


def stored(*first: Any, data: bytes = DATA, parts: Any = ()) -> bytes:
    return program(1) + program(first or (0, "cpu", name("torch.FloatStorage"))) + data + program(list(parts))


def laid_out(*first: Any, axes: int = 1, numbers: tuple[int, ...] = (4, 1, 0)) -> bytes:
    head = program(1) + program(first or (100, 0, name("torch.FloatTensor")))
    return head + struct.pack("<ii", axes, 0) + struct.pack(f"<{len(numbers)}q", *numbers)


TWICE = tarred({"pickle": program({})}).rstrip(b"\0")
BROKEN_TARS = {
    "no tensors": (tarred({key: x for key, x in TAR.items() if key != "tensors"}), "no member tensors"),
    "a renamed member": (tarred({key.replace("pickle", "pickles"): x for key, x in TAR.items()}), "no member pickle"),
    "a member twice": (TWICE + bytes(-len(TWICE) % 512) + tar_of(), "'pickle' is there twice"),
    "a link": (tarred(TAR, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a plain file"),
    "a size that is none": (tar_of().replace(b"%011o\0" % len(TAR["pickle"]), b"-0000000001\0", 1), "has no size"),
    "a size beyond the file": (tar_of().replace(b"%011o\0" % len(TAR["pickle"]), b"77777777777\0", 1), "truncated"),
    "a storage of another size": (tar_of(storages=stored(data=struct.pack("<q", 50) + DATA[8:])), "truncated"),
    "a storage of a negative size": (tar_of(storages=stored(data=struct.pack("<q", -1))), "-1 numbers"),
    "a storage of exabytes": (tar_of(storages=stored(data=struct.pack("<q", 2**62))), "truncated"),
    "a storage of no type": (tar_of(storages=stored(0, "cpu", "x")), "no number of its own, no device or no type"),
    "a storage of no device": (tar_of(storages=stored(0, 0, name("torch.FloatStorage"))), "no device"),
    "exabytes of storages": (tar_of(storages=program(2**62)), "does not begin with its protocol"),
    "no number of storages": (tar_of(storages=program("x")), "has no valid count"),
    "a part of nothing": (tar_of(storages=stored(parts=[(1, 7, 0, 1)])), "a part of another that it does not have"),
    "a part of itself": (tar_of(storages=stored(parts=[(1, 1, 0, 1)])), "a part of another that it does not have"),
    "a part that reaches beyond": (tar_of(storages=stored(parts=[(1, 0, 3, 2)])), "a part of another"),
    "a part that is a string": (tar_of(storages=stored(parts=["x"])), "no list of the storages"),
    "a tensor of no storage": (tar_of(tensors=laid_out(100, 7, name("torch.FloatTensor"))), "a storage of its type"),
    "a tensor of another type": (tar_of(tensors=laid_out(100, 0, name("torch.IntTensor"))), "a storage of its type"),
    "a tensor beyond its storage": (tar_of(tensors=laid_out(numbers=(5, 1, 0))), "reaches number 4"),
    "a tensor before its storage": (tar_of(tensors=laid_out(numbers=(4, 1, -1))), "no sizes"),
    "a tensor of too many axes": (tar_of(tensors=laid_out(axes=2**31 - 1)), "2147483647 axes"),
    "a tensor of fewer than no axes": (tar_of(tensors=laid_out(axes=-1)), "-1 axes"),
    "a tensor cut off": (tar_of(tensors=laid_out(numbers=(4, 1))), "truncated"),
    "a tensor that is absent": (tar_of(pickle=program({"a": persistent("7")})), "not one of its tensors"),
    "a tensor of no number": (tar_of(pickle=program({"a": persistent(("100",))})), "not one of its tensors"),
    "another byte order": (tar_of(sys_info=program({"little_endian": 0})), "little-endian"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_TARS)
def test_broken_tars_are_refused(tmp_path: Path, case: str):
    content, message = BROKEN_TARS[case]
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


def test_the_good_ones_of_these(tmp_path: Path):
    for content in (ZIP, STREAM, stream_of(), tar_of(), tar_of(storages=stored(), tensors=laid_out())):
        assert_equal(read(tmp_path, content), {"a": FOUR})


@pytest.mark.parametrize("content", [ZIP, STREAM, tar_of()], ids=CONTAINERS)
def test_every_truncation_is_noticed(tmp_path: Path, content: bytes):
    if content == tar_of():
        content = content.rstrip(b"\0")  # a tar ends with blocks of zeros, which nobody misses
    for length in range(0, len(content), 1 if len(content) < 1000 else 7):
        with pytest.raises(ValueError):
            read(tmp_path, content[:length])


class Unseekable(io.BytesIO):
    """A stream for which each member's checksum and sizes follow it, as in the files of torch."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError


def streamed(members: Mapping[str, bytes]) -> bytes:
    stream = Unseekable()
    with zipfile.ZipFile(stream, "w") as archive:
        for member, content in members.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return stream.getvalue()


@pytest.mark.parametrize("content", [ZIP, streamed(GOOD)], ids=["sizes before", "sizes behind"])
def test_no_flipped_bit_of_a_header_shifts_the_numbers(tmp_path: Path, content: bytes):
    assert_equal(read(tmp_path, content), {"a": FOUR})
    for changed in flipped_headers(content):
        try:
            found = read(tmp_path, changed)
        except ValueError:
            continue
        assert_equal(found, {"a": FOUR})


def flipped_headers(content: bytes) -> Iterator[bytes]:
    """A zip with each bit of the fixed part of each member's own header flipped."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
    for start in starts:
        for bit in range(8 * 30):
            changed = bytearray(content)
            changed[start + bit // 8] ^= 1 << bit % 8
            yield bytes(changed)


@pytest.mark.parametrize("content", [ZIP, STREAM, tar_of().rstrip(b"\0")], ids=CONTAINERS)
def test_random_changes_never_escape(tmp_path: Path, content: bytes):
    """The result is tensors within the file, or a ValueError."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1000):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(0, len(content))] = rng.integers(0, 256)
        try:
            for x in read(tmp_path, bytes(changed)).values():
                assert np.asarray(x).nbytes <= len(content)
        except ValueError:
            refused += 1
    assert refused > 100


# ---- shards ----------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, where: Mapping[str, str]) -> None:
    for i in (1, 2):
        (folder / f"pytorch_model-{i:05}-of-00002.bin").write_bytes(simple("zip", {f"x{i}": np.full(3, i, np.float32)}))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


ONE, TWO = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"


def test_shards(tmp_path: Path):
    write_shards(tmp_path, {"x1": ONE, "x2": TWO})
    assert_equal(formats.read_folder(tmp_path), {"x1": np.full(3, 1, np.float32), "x2": np.full(3, 2, np.float32)})
    (tmp_path / TWO).unlink()
    with pytest.raises(FileNotFoundError, match=TWO):
        formats.read_folder(tmp_path)


@pytest.mark.parametrize(
    ("where", "message"),
    [({"x1": ONE, "x2": shard}, "a shard must be a .bin file of the same folder")
     for shard in ("../x.bin", "/etc/x.bin", "a/x.bin", "..\\x.bin", "passwd", "model.safetensors")]
    + [({"x1": ONE, "x3": TWO}, "x2 of .* is not in the index")],
)  # fmt: skip
def test_index_that_is_wrong(tmp_path: Path, where: Mapping[str, str], message: str):
    write_shards(tmp_path, where)
    with pytest.raises(ValueError, match=message):
        formats.read_folder(tmp_path)


# ---- msgpack of Flax -------------------------------------------------------------------------------------------------


def read_flax(folder: Path, content: bytes) -> dict[str, Any]:
    (folder / "flax_model.msgpack").write_bytes(content)
    return flax_msgpack.read_folder(folder)


def test_flax_arrays_and_names(tmp_path: Path):
    rng = np.random.default_rng(0)
    of = lambda *shape, dtype=np.float32: rng.normal(size=shape).astype(dtype)
    tree = {
        "bert": {
            "embeddings": {"word_embeddings": {"embedding": of(9, 4)}, "LayerNorm": {"scale": of(4), "bias": of(4)}},
            "encoder": {"layer": {"0": {"dense": {"kernel": of(4, 12, dtype=np.float16), "bias": of(12)}}}},
        },
        "scalar": np.asarray(3.5), "empty": of(0, 4), "narrow": of(300, dtype=ml_dtypes.bfloat16), "none": {},
        "device": jnp.arange(5), "weight": of(2, 3, 4),
    }  # fmt: skip
    layer = tree["bert"]["encoder"]["layer"]["0"]["dense"]
    expected = {
        "bert.embeddings.word_embeddings.weight": tree["bert"]["embeddings"]["word_embeddings"]["embedding"],
        "bert.embeddings.LayerNorm.weight": tree["bert"]["embeddings"]["LayerNorm"]["scale"],
        "bert.embeddings.LayerNorm.bias": tree["bert"]["embeddings"]["LayerNorm"]["bias"],
        "bert.encoder.layer.0.dense.weight": layer["kernel"].T,
        "bert.encoder.layer.0.dense.bias": layer["bias"],
    } | {key: np.asarray(tree[key]) for key in ("scalar", "empty", "narrow", "device", "weight")}
    found = read_flax(tmp_path, serialization.msgpack_serialize(tree))
    assert_equal({key: found[key] for key in sorted(found)}, {key: expected[key] for key in sorted(expected)})


def test_flax_arrays_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    kernel, bias = np.arange(60.0).reshape(6, 10), np.arange(300, dtype=np.int16)
    content = serialization.msgpack_serialize({"a": {"bias": bias, "kernel": kernel}})
    assert b"__msgpack_chunked_array__" in content
    assert_equal(read_flax(tmp_path, content), {"a.bias": bias, "a.weight": kernel.T})


def test_only_touched_pages_of_flax_are_read(tmp_path: Path):
    size = 4 * 65_000 * 16_000
    description = b"\x93\x92" + struct.pack(">BHBH", 0xCD, 65_000, 0xCD, 16_000) + b"\xa7float32"
    values = struct.pack(">BI", 0xC6, size)
    array = struct.pack(">BIB", 0xC9, len(description) + len(values) + size, 1) + description + values
    with (tmp_path / "flax_model.msgpack").open("wb") as stream:
        stream.write(b"\x81\xa1a\x81\xa6kernel" + array)
        stream.truncate(stream.tell() + size)
    found = np.asarray(flax_msgpack.read_folder(tmp_path)["a.weight"])
    assert found.shape == (16_000, 65_000) and found[-1, -1] == 0


ARRAY = serialization.msgpack_serialize(np.zeros(2, np.float32))  # an extension
PAIR = b"\x93\x91\x02\xa7float32\xc4\x08" + bytes(8)


def extension(payload: bytes, code: int = 1) -> bytes:
    return b"\x81\xa1a\xc7" + bytes([len(payload), code]) + payload


def chunked(**changes: Any) -> bytes:
    tree = {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"0": np.zeros(2, np.float32)}}
    return serialization.msgpack_serialize({"a": tree | changes})


BROKEN_FLAX = {
    "nothing": (b"", "1 bytes are missing"),
    "an array": (ARRAY, "not a dict of arrays"),
    "a list": (b"\x91\x01", "a list where a dict of arrays has none"),
    "a pickle": (program({}), "not a dict of arrays|ends at byte"),
    "a number among the arrays": (b"\x81\xa1a\x05", "'a' is a int and not an array"),
    "text among the arrays": (b"\x81\xa1a\xa1b", "a text where"),
    "bytes among the arrays": (b"\x81\xa1a\xc4\x01b", "a bytes where"),
    "nil among the arrays": (b"\x81\xa1a\xc0", "of the type 0xc0"),
    "a float among the arrays": (b"\x81\xa1a\xcb" + bytes(8), "of the type 0xcb"),
    "a list among the arrays": (b"\x81\xa1a\x90", "a list where"),
    "a name that is a number": (b"\x81\x01" + ARRAY, "an integer where a name|a integer where a name"),
    "a name that is no text": (b"\x81\xa1\xff" + ARRAY, "codec can't decode"),
    "a name twice": (b"\x82\xa1a" + ARRAY + b"\xa1a" + ARRAY, "the name 'a' twice"),
    "a name twice after translation": (b"\x82\xa5scale" + ARRAY + b"\xa6weight" + ARRAY, "both called 'weight'"),
    "a name twice after joining": (b"\x82\xa3a.b" + ARRAY + b"\xa1a\x81\xa1b" + ARRAY, "both called 'a.b'"),
    "a name of 4 GB": (b"\x81\xdb\xff\xff\xff\xff", "a name of 4294967295 bytes"),
    "4 billion names": (b"\xdf\xff\xff\xff\xff\xa1a" + ARRAY, "missing"),
    "dicts without end": (b"\x81\xa1a" * 100_000, "64 levels"),
    "an array of 4 GB": (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + PAIR, "4294967295 bytes are missing"),
    "values of 4 GB": (extension(b"\x93\x91\x02\xa7float32\xc6\xff\xff\xff\xff"), "4294967295 bytes for an array"),
    "an unknown extension": (extension(PAIR, code=9), "an extension of type 9"),
    "a number of numpy": (extension(PAIR, code=3), "an extension of type 3"),
    "a complex number": (serialization.msgpack_serialize({"a": 1j}), "an extension of type 2"),
    "a time": (b"\x81\xa1a\xd6\xff" + bytes(4), "an extension of type 255"),
    "objects": (extension(PAIR.replace(b"\xa7float32", b"\xa6object")), "dtype 'object'"),
    "a dtype of fields": (extension(PAIR.replace(b"\xa7float32", b"\xa5f4,f4")), "dtype 'f4,f4'"),
    "too few values": (extension(PAIR.replace(b"\x91\x02", b"\x91\x03")), "8 bytes for an array"),
    "a shape that overflows": (
        extension(PAIR.replace(b"\x91\x02", b"\x92" + b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff" * 2)), "8 bytes for"),
    "a negative size": (extension(PAIR.replace(b"\x91\x02", b"\x91\xff")), "of the type 0xff"),
    "a shape of 4 billion axes": (
        extension(PAIR.replace(b"\x91\x02", b"\xdd\xff\xff\xff\xff\x02")), "4294967295 axes"),
    "a shape that is none": (extension(PAIR.replace(b"\x91\x02", b"\x02")), "a integer where a shape"),
    "an array of two things": (extension(b"\x92" + PAIR[1:]), "not described by shape, dtype and values"),
    "an extension that is longer": (extension(PAIR + b"x"), "8 bytes for an array"),
    "an extension that is shorter": (
        b"\x81\xa1a\xc7" + bytes([len(PAIR) - 1, 1]) + PAIR, "8 bytes for an array"),
    "bytes after the end": (b"\x81\xa1a" + ARRAY + b"x", "ends at byte"),
    "a kernel of one axis": (b"\x81\xa6kernel" + ARRAY, "a kernel of shape [2]"),
    "chunks of another size": (chunked(shape={"0": 3}), "do not fit together"),
    "chunks that are none": (chunked(chunks={"0": 1}), "do not fit together"),
    "no chunks": (chunked(chunks={}), "do not fit together"),
    "chunks out of order": (chunked(chunks={"1": np.zeros(2, np.float32)}), "not in order"),
    "chunks of two types": (chunked(chunks={"0": np.zeros(1), "1": np.zeros(1, np.float32)}), "do not fit together"),
    "chunks without a shape": (chunked(shape=5), "not in order"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_FLAX)
def test_broken_msgpack_is_refused(tmp_path: Path, case: str):
    content, message = BROKEN_FLAX[case]
    with pytest.raises(ValueError) as caught:
        read_flax(tmp_path, content)
    assert any(part in str(caught.value) for part in message.split("|")), caught.value
    assert "flax_model.msgpack cannot be read" in str(caught.value) and len(str(caught.value)) < 1000


def test_every_truncation_of_msgpack_is_noticed(tmp_path: Path):
    content = serialization.msgpack_serialize({"a": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3, np.int8)}})
    assert set(read_flax(tmp_path, content)) == {"a.weight", "a.bias"}
    for length in range(len(content)):
        with pytest.raises(ValueError):
            read_flax(tmp_path, content[:length])


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_the_best_format_is_read(tmp_path: Path):
    read_flax(tmp_path, b"\x81\xa1a" + ARRAY)
    assert_equal(formats.read_folder(tmp_path), {"a": np.zeros(2, np.float32)})
    read(tmp_path, ZIP)
    assert_equal(formats.read_folder(tmp_path), {"a": FOUR})
    safetensors.write_folder(tmp_path, {"a": FOUR + 1})
    assert_equal(formats.read_folder(str(tmp_path)), {"a": FOUR + 1})


def test_a_folder_without_weights(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no weights that can be read.*model\.safetensors.*model\.gguf\.$"):
        formats.read_folder(tmp_path)
    for file in ("tf_model.h5", "model.onnx", "notes.txt"):
        (tmp_path / file).touch()
    with pytest.raises(FileNotFoundError, match=r"It holds model\.onnx, tf_model\.h5\. Look for.*or convert it once"):
        formats.read_folder(tmp_path)


def as_flax(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """GPT-2's tensors as transformers' Flax models had them."""
    tree: dict[str, Any] = {}
    for key, x in tensors.items():
        *above, last = key.split(".")
        if last == "weight":
            last = "scale" if "ln_" in key else "embedding" if above[-1] in ("wte", "wpe") else "kernel"
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = np.ascontiguousarray(x.T) if last == "kernel" else x
    return tree


@pytest.mark.parametrize("format", [*CONTAINERS, "flax"])
def test_a_model_in_each_format(tmp_path: Path, format: str):
    sizes = {"vocab_size": 90, "n_positions": 24, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 40}
    fresh = families.made("gpt2", sizes)
    save_pretrained(tmp_path, fresh)
    tensors = {key: np.asarray(x).copy() for key, x in safetensors.read_folder(tmp_path).items()}
    (tmp_path / "model.safetensors").unlink()
    if format == "flax":
        (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(as_flax(tensors)))
    else:
        (tmp_path / "pytorch_model.bin").write_bytes(simple(format, tensors))
    loaded = from_pretrained(tmp_path)
    ours, theirs = trees.flatten(fresh.params), trees.flatten(loaded.params)
    assert ours.keys() == theirs.keys() and loaded.model == fresh.model
    for path, x in ours.items():
        assert np.asarray(x).tobytes() == np.asarray(theirs[path]).tobytes(), path
