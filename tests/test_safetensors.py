"""Folders of safetensors: written files are read by the reference library and by us; damaged ones are refused."""

import contextlib
import errno
import itertools
import json
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from transformer_zoo.checkpoints import safetensors

reference = pytest.importorskip("safetensors.numpy")


def example() -> dict[str, np.ndarray]:
    """Every dtype, with shapes of every kind; the bits are random, so that there are NaNs among them."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, dtype in safetensors.DTYPES.items():
        for shape in ((), (3,), (2, 5), (0, 4), (1, 2, 3)):
            bits = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
            bits = bytes(byte & 1 for byte in bits) if name == "BOOL" else bits
            tensors[f"{name}.{len(tensors)}"] = np.frombuffer(bits, dtype).reshape(shape)
    return tensors


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes()
        and a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        for k in a
    )


def write(folder: Path, tensors: dict[str, np.ndarray], **settings: int) -> None:
    with safetensors.staged(folder) as temporary:
        safetensors.write_folder(temporary, tensors, **settings)


def test_round_trip_of_every_dtype(tmp_path: Path):
    write(tmp_path, example())
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert same(safetensors.read_folder(tmp_path), example())


def test_the_reference_library_reads_what_we_write_and_we_what_it_writes(tmp_path: Path):
    # Its numpy front end knows no float8 and has no complex numbers.
    tensors = {k: x for k, x in example().items() if not k.startswith(("F8", "C64"))}
    write(tmp_path, tensors)
    assert same(reference.load_file(tmp_path / "model.safetensors"), tensors)
    reference.save_file(tensors, tmp_path / "theirs.safetensors")
    assert same(safetensors.read_file(tmp_path / "theirs.safetensors"), tensors)


def test_written_tensors_are_aligned(tmp_path: Path):
    write(tmp_path, example())
    for name, tensor in safetensors.read_folder(tmp_path).items():
        assert tensor.offset % tensor.dtype.itemsize == 0, name


def test_shards_and_index(tmp_path: Path):
    tensors = {f"layer.{i}": np.full([100], i, np.float32) for i in range(7)} | {"big": np.ones([1000], np.float32)}
    write(tmp_path, tensors, max_shard_bytes=1000)
    assert same(safetensors.read_folder(tmp_path), tensors)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)]
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    together = {k: x for shard in shards for k, x in reference.load_file(tmp_path / shard).items()}
    assert same(together, tensors)


def test_only_touched_pages_are_read(tmp_path: Path):
    """One row of a sparse file of 64 GB, which fits no memory."""
    shape = [1 << 24, 1 << 10]
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 << 34]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + (4 << 34))
    array = np.asarray(safetensors.read_folder(tmp_path)["x"])
    assert array.shape == tuple(shape) and array[-1, -1] == 0


def test_one_tensor_at_a_time(tmp_path: Path):
    made = []

    class Lazy:
        shape, dtype = (1000,), np.dtype(np.float32)

        def __init__(self, value: int):
            self.value = value

        def __array__(self, dtype=None, copy=None):
            made.append(((tmp_path / "model.safetensors").stat().st_size, self.value))
            return np.full(self.shape, self.value, self.dtype)

    safetensors.write_folder(tmp_path, {str(i): Lazy(i) for i in range(50)})
    sizes = [size for size, _ in made]
    assert [value for _, value in made] == list(range(50))
    assert sizes == sorted(sizes) and len(set(sizes)) > 20  # the file grows while tensors are made
    assert all((np.asarray(x) == int(k)).all() for k, x in safetensors.read_folder(tmp_path).items())


# ---- damage ----------------------------------------------------------------------------------------------------------


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: object = (1,), dtype: object = "F32", **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}  # type: ignore[call-overload]


DAMAGED = {
    "empty": (b"", "truncated"),
    "shorter than a length": (b"\x05\0\0", "truncated"),
    "length beyond the file": (raw({}, length=10**6), "claims 1000000 bytes"),
    "length of exabytes": (raw({}, length=2**64 - 1), "claims 18446744073709551615 bytes"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a pickle": (b"PK\x03\x04" + b"\0" * 100, "truncated, or not safetensors"),
    "not utf-8": (raw(b'{"\xff": 1}'), "UTF-8"),
    "not json": (raw(b'{"a": '), "JSON"),
    "nested without end": (raw(b"[" * 200_000), "its header is nested more than 64 levels deep"),
    "a number of a million digits": (raw(b'{"a": ' + b"9" * 1_000_000 + b"}"), "JSON"),
    "a list": (raw([]), "its header is a list of 0, where an object is expected"),
    "repeated name": (raw(b'{"a": 1, "a": 2}'), "repeated: a"),
    "entry without shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)), "'a' is described by"),
    "unknown dtype": (raw({"a": entry(0, 4, dtype="F31")}, bytes(4)), "'F31'"),
    "dtype of a wrong type": (raw({"a": entry(0, 4, dtype=["F32"])}, bytes(4)), "dtype"),
    "negative size": (raw({"a": entry(0, 4, [-1, -1])}, bytes(4)), "shape"),
    "fractional size": (raw({"a": entry(0, 4, [1.0])}, bytes(4)), "shape"),
    "size of truth": (raw({"a": entry(0, 4, [True])}, bytes(4)), "shape"),
    "negative offset": (raw({"a": entry(-4, 0)}, bytes(4)), "offsets"),
    "offsets reversed": (raw({"a": entry(4, 0)}, bytes(4)), "'a' of F32 [1] needs 4 bytes and its offsets span -4"),
    "shape larger than offsets": (raw({"a": entry(0, 4, [2])}, bytes(4)), "needs 8 bytes and its offsets span 4"),
    "a shape of a million axes": (raw({"a": entry(0, 4, [2**62] * 10**6)}, bytes(4)), "shape"),
    "a name of a megabyte": (raw({"a" * 10**6: entry(0, 4, [2])}, bytes(4)), "needs 8 bytes"),
    "shape that overflows": (raw({"a": entry(0, 4, [2**62, 2**62, 4])}, bytes(4)), "offsets span 4"),
    "beyond the file": (raw({"a": entry(0, 4), "b": entry(4, 8)}, bytes(6)), "truncated"),
    "overlap": (raw({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)), "'b' begins at byte"),
    "the same bytes twice": (raw({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "overlaps"),
    "gap": (raw({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "gap"),
    "gap at the start": (raw({"a": entry(4, 8)}, bytes(8)), "gap"),
    "bytes after the end": (raw({"a": entry(0, 4)}, bytes(5)), "belong to no tensor"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, fault: str):
    content, message = DAMAGED[fault]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        safetensors.read_folder(tmp_path)
    assert str(file) in str(caught.value) and message in str(caught.value)
    assert len(str(caught.value)) < 1300


def test_header_over_the_limit_is_refused_unread(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 10**11))
        stream.truncate(2 * 10**11)  # sparse
    with pytest.raises(ValueError, match="100000000 is the limit"):
        safetensors.read_file(file)


def test_every_truncation_is_noticed(tmp_path: Path):
    write(tmp_path, {"a": np.arange(10.0), "b": np.arange(3, dtype=np.int8)})
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError):
            safetensors.read_folder(tmp_path)


def test_random_changes_of_a_header_never_escape(tmp_path: Path):
    """The result is the same names, dtypes and bytes, or a ValueError."""
    write(tmp_path, {"a": np.arange(10.0), "b": np.arange(3, dtype=np.int8)})
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        changed = bytearray(content)
        changed[rng.integers(0, len(content) - 83)] = rng.integers(0, 256)
        file.write_bytes(changed)
        try:
            found = safetensors.read_folder(tmp_path)
            assert sum(np.asarray(x).nbytes for x in found.values()) == 83
        except ValueError:
            refused += 1
    assert refused > 1000


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write(tmp_path, {name: np.arange(10.0) for name in "abcd"}, max_shard_bytes=160)
    return tmp_path


def change_index(folder: Path, change) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors",
                                   "x\0.safetensors", "passwd", ".."])  # fmt: skip
def test_index_cannot_leave_its_folder(sharded: Path, shard: str):
    (sharded.parent / "x.safetensors").write_bytes((sharded / ONE).read_bytes())
    change_index(sharded, lambda index: index["weight_map"].update(a=shard))
    with pytest.raises(ValueError, match="of the same folder"):
        safetensors.read_folder(sharded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["weight_map"].pop("a"), "a of model-00001-of-00002.safetensors is not in the index"),
        (
            lambda i: i["weight_map"].update(a=TWO),
            "a is in model-00001.*index names model-00002",
        ),
        (lambda i: i.pop("weight_map"), "no weight_map"),
        (lambda i: i.update(weight_map=["a"]), "no weight_map"),
        (lambda i: i["weight_map"].update(a=3), "no weight_map"),
        (lambda i: i["weight_map"].update(a="a" * 5000 + ".safetensors"), "a shard must be"),
    ],
)
def test_index_that_contradicts_its_shards(sharded: Path, change, message: str):
    change_index(sharded, change)
    with pytest.raises(ValueError, match=message):
        safetensors.read_folder(sharded)


def test_a_name_that_no_shard_holds_is_left_out(sharded: Path):
    """It may be that of a tied tensor; a model that needs it will miss it."""
    change_index(sharded, lambda index: index["weight_map"].update(e=ONE))
    assert set(safetensors.read_folder(sharded)) == set("abcd")


def test_tensor_in_two_shards(sharded: Path):
    reference.save_file({name: np.arange(10.0) for name in "bcd"}, sharded / TWO)
    with pytest.raises(ValueError, match="b is in model-00002-of-00002.safetensors, and the index names model-00001"):
        safetensors.read_folder(sharded)


def test_missing_shards_are_named(sharded: Path):
    (sharded / TWO).unlink()
    with pytest.raises(FileNotFoundError, match=TWO):
        safetensors.read_folder(sharded)


# ---- saving is all or nothing ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_disk(free: int):
    """Limits the size of files: a real write then fails with the operating system's own error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("shard_bytes", [10**9, 50_000])
def test_full_disk_leaves_the_previous_files(tmp_path: Path, shard_bytes: int):
    write(tmp_path, {"a": np.ones([1000])})
    (tmp_path / "README.md").write_text("mine")
    before = content(tmp_path)
    with full_disk(100_000), pytest.raises(OSError, match="old files are unchanged") as caught:
        write(tmp_path, {"a": np.zeros([2000]), "b": np.zeros([20_000])}, max_shard_bytes=shard_bytes)
    assert caught.value.errno == errno.EFBIG and str(tmp_path) in str(caught.value)
    assert content(tmp_path) == before


def test_full_disk_leaves_no_new_folder(tmp_path: Path):
    with full_disk(1000), pytest.raises(OSError):
        write(tmp_path / "new", {"a": np.ones([1000])})
    assert not list(tmp_path.iterdir())


def test_any_failure_leaves_the_previous_files(tmp_path: Path):
    write(tmp_path, {"a": np.ones([1000])})
    before = content(tmp_path)
    with pytest.raises(KeyboardInterrupt), safetensors.staged(tmp_path) as temporary:
        safetensors.write_folder(temporary, {"a": np.zeros([1000])})
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="safetensors has no complex128"):
        write(tmp_path, {"a": np.ones([3], np.complex128)})
    assert content(tmp_path) == before


def test_a_new_save_replaces_the_layout_of_the_old_one(tmp_path: Path):
    few, many = {"a": np.ones([10])}, {name: np.arange(10.0) for name in "abcd"}
    (tmp_path / "README.md").write_text("mine")
    for tensors, limit, expected in ((many, 160, 3), (few, 10**9, 1), (many, 80, 5), (many, 160, 3)):
        write(tmp_path, tensors, max_shard_bytes=limit)
        assert same(safetensors.read_folder(tmp_path), tensors)
        assert len(list(tmp_path.iterdir())) == expected + 1
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("limits", [*itertools.product((80, 10**9), repeat=2)])
def test_a_save_that_is_killed_mixes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]):
    """While the files move: what is read is all old or all new, or it is an error, and the new files are all there."""
    old, new = ({name: np.full(10, value) for name in "abc"} for value in (1.0, 2.0))
    moves, replace = [], Path.replace

    def killed(file: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) > count:
            raise KeyboardInterrupt
        return replace(file, target)

    for count in range(5):
        folder = tmp_path / str(count)
        write(folder, old, max_shard_bytes=limits[0])
        moves.clear()
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", killed)
            write(folder, new, max_shard_bytes=limits[1])
        with contextlib.suppress(FileNotFoundError):
            read = safetensors.read_folder(folder)
            assert same(read, old) or same(read, new)
        left = {file.name for file in folder.rglob("*.saf*")}
        assert {target.name for target in moves} <= left


def test_files_have_the_permissions_of_new_files(tmp_path: Path):
    write(tmp_path, {"a": np.ones([10])})
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_in_the_place_of_the_folder(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="it is a file"):
        write(tmp_path / "out", {"a": np.ones([10])})


def test_shard_size_must_be_positive(tmp_path: Path):
    with pytest.raises(ValueError, match="max_shard_bytes"):
        write(tmp_path, {"a": np.ones([10])}, max_shard_bytes=0)
