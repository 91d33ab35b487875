"""Names to folders: folders, presets, and a small hub on this machine that fails in the ways the real one does."""

import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import numpy as np
import processes
import pytest
from conftest import QUICKLY

from transformer_zoo.checkpoints import hub, safetensors
from transformer_zoo.pretrained import save_pretrained

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
PRESETS = {"tiny": SimpleNamespace(hub_id="zoo/tiny"), "tiny-large": SimpleNamespace(hub_id="zoo/large")}


class Hub(http.server.ThreadingHTTPServer):
    """Repositories as dictionaries from path to content, served at the few addresses that a client requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: dict[str, str] = {}  # repository -> the token that opens it
        self.hidden: set[str] = set()
        self.broken: dict[str, int] = {}  # path -> how many more times its download breaks off in the middle
        self.log: list[tuple[str, str, str | None]] = []  # method, path, range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.log.append((self.command, path, self.headers.get("Range")))
        found = re.fullmatch(r"/(?:api/models/)?([\w-]+(?:/[\w-]+)?)/(revision|tree|resolve)/([\w-]+)(?:/(.*))?", path)
        repo, what, revision, file = found.groups() if found else (path, "", "", None)
        if repo in hub.hidden:
            return self.fail(
                401, None
            )  # what the hub tells strangers about repositories that are private, or do not exist
        if repo not in hub.repos:
            return self.fail(404, "RepoNotFound")
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            return self.fail(404, "RevisionNotFound")
        files = hub.repos[repo]
        if what == "revision":
            return self.send({"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        if what == "tree":
            entries = [{"type": "file", "path": k, "size": len(x), "oid": f"{hash(x):x}"} for k, x in files.items()]
            return self.send(entries)
        if repo in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.gated[repo]}":
            return self.fail(403, "GatedRepo")
        if file not in files:
            return self.fail(404, "EntryNotFound")
        self.content(file, files[file], commit)

    def content(self, file: str, content: bytes, commit: str) -> None:
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-")).group(1))
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hash(content):x}"')
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            if self.server.broken.get(file, 0) > 0:
                self.server.broken[file] -= 1
                content = content[: (start + len(content)) // 2]
                self.close_connection = True
            self.wfile.write(content[start:])

    def fail(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    safetensors.write_folder(tmp_path, {"x": np.arange(200_000.0)})
    weights = (tmp_path / "model.safetensors").read_bytes()
    hub = Hub()
    hub.repos = {
        "zoo/tiny": {
            "config.json": b"{}",
            "model.safetensors": weights,
            "vocab.json": b"{}",
            "merges.txt": b"",
            "tokenizer_config.json": b"{}",
            "README.md": b"# tiny",
            "pytorch_model.bin": b"\x80",
            "onnx/model.safetensors": weights,
            "flax_model.msgpack": b"",
        },
        "zoo/pickled": {
            "config.json": b"{}",
            "pytorch_model-00001-of-00001.bin": b"\x80",
            "pytorch_model.bin.index.json": b"{ }",
            "training_args.bin": b"\x80",
            "adapter_model.safetensors": weights,
            "flax_model.msgpack": b"",
        },
        "zoo/flax": {
            "config.json": b"{}",
            "flax_model.msgpack": b"\x80",
            "tf_model.h5": b"",
            "x/pytorch_model.bin": b"",
        },
        "zoo/tensorflow": {"config.json": b"{}", "tf_model.h5": b"", "optimizer.pt": b""},
        "zoo/gated": {"config.json": b"{}", "model.safetensors": weights},
        "zoo/sentences": {
            "modules.json": b"[]",
            "config_sentence_transformers.json": b"{}",
            "0_Transformer/config.json": b"{}",
            "0_Transformer/sentence_bert_config.json": b"{}",
            "0_Transformer/pytorch_model.bin": b"\x80",
            "0_Transformer/onnx/model.safetensors": weights,
            "1_Pooling/config.json": b"{}",
            "chat_template.jinja": b"",
            "additional_chat_templates/tool_use.jinja": b"",
            "onnx/model.safetensors": weights,
        },
    }
    hub.gated = {"zoo/gated": "hf_secret"}
    hub.hidden = {"zoo/private"}
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


# The client reads its environment when it is imported, so each process imports it anew.
ANEW = """
import json, os, sys, types
for name in [name for name in sys.modules if name.partition(".")[0] in ("huggingface_hub", "transformer_zoo")]:
    del sys.modules[name]
answers, output = [], sys.argv[2]
os.chdir(os.path.dirname(output))
"""
CLIENT = """
from transformer_zoo.checkpoints import hub
presets = {"tiny": types.SimpleNamespace(hub_id="zoo/tiny"), "tiny-large": types.SimpleNamespace(hub_id="zoo/large")}
for name, revision in json.loads(sys.argv[1]):
    name, *folders = name.split("|")
    try:
        folder = hub.resolve(name, presets, revision, weights=not folders, folders=folders)
        answers.append(["", str(folder)])
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
json.dump(answers, open(output, "w"))
"""


def ask(cache: Path, endpoint: str, *names: str, revision: str | None = None, **env: str) -> list[tuple[str, str]]:
    """The results of `resolve`, or its errors: type and message."""
    return run(CLIENT, [[name, revision] for name in names], cache, endpoint, **env)


def run(code: str, cases: list[Any], cache: Path, endpoint: str, **env: str) -> list[tuple[str, str]]:
    """The pairs that a new process answers with."""
    unset = {name: None for name in os.environ if name.startswith("HF_") or "proxy" in name.lower()}
    env = unset | {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint} | env
    output = cache.parent / "answers.json"
    process = processes.Process(processes.run, ANEW + code, json.dumps(cases), str(output), **env)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    return [tuple(answer) for answer in json.loads(output.read_text())]


def test_download_then_offline(server: Hub, tmp_path: Path):
    cache = tmp_path / "cache"
    ((error, first), (_, second)) = ask(cache, server.url, "tiny", "zoo/tiny")
    assert not error, first
    assert first == second and Path(first).is_relative_to(cache)
    # What is not needed is not fetched: other formats, other folders.
    assert sorted(file.name for file in Path(first).iterdir()) == [
        "config.json", "merges.txt", "model.safetensors", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    assert np.asarray(safetensors.read_folder(first)["x"]).sum() == np.arange(200_000.0).sum()
    assert sum(method == "GET" and path.endswith("/model.safetensors") for method, path, _ in server.log) == 1

    asked = len(server.log)
    here, absent = ask(cache, server.url, "tiny", "tiny-larg", HF_HUB_OFFLINE="1")
    assert here == ("", first)
    assert absent[0] == "ConnectionError" and "HF_HUB_OFFLINE is set" in absent[1] and "'tiny-large'" in absent[1]
    assert len(server.log) == asked


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        (
            "zoo/pickled",
            ["adapter_model.safetensors", "config.json", "pytorch_model-00001-of-00001.bin",
             "pytorch_model.bin.index.json"],
        ),
        ("zoo/flax", ["config.json", "flax_model.msgpack"]),
    ],
)  # fmt: skip
def test_older_formats_where_there_is_no_safetensors(server: Hub, tmp_path: Path, repo: str, expected: list[str]):
    """The first format only, not those after it; offline, the same folder."""
    cache = tmp_path / "cache"
    ((error, first),) = ask(cache, server.url, repo)
    assert not error, first
    assert sorted(file.name for file in Path(first).iterdir()) == expected
    asked = [path for method, path, _ in server.log if method == "GET" and "/resolve/" in path]
    assert len(asked) == len(set(asked)) == len(expected)
    assert ask(cache, server.url, repo, HF_HUB_OFFLINE="1") == [("", first)]


def test_folders_of_a_repository(server: Hub, tmp_path: Path):
    """The requested folders, with weights of any format, and no others."""
    ((error, folder),) = ask(tmp_path / "cache", server.url, "zoo/sentences|0_Transformer|1_Pooling")
    assert error == ""
    wanted = {name for name in server.repos["zoo/sentences"] if "onnx" not in name}
    assert {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()} == wanted


def test_offline_without_weights(server: Hub, tmp_path: Path):
    cache = tmp_path / "cache"
    server.repos["zoo/bare"] = {"config.json": b"{}"}
    ((kind, message),) = ask(cache, server.url, "zoo/bare")
    assert kind == "FileNotFoundError" and "zoo/bare" in message and "It holds" not in message
    ((kind, message),) = ask(cache, server.url, "zoo/bare", HF_HUB_OFFLINE="1")
    assert kind == "ConnectionError" and "HF_HUB_OFFLINE is set" in message


def test_a_broken_download_is_resumed(server: Hub, tmp_path: Path):
    # Larger than the ten megabytes in which the client takes what arrives: less than one is not kept.
    server.repos["zoo/tiny"]["model.safetensors"] = np.arange(5_000_000.0).tobytes()
    server.broken = {"model.safetensors": 2}
    ((error, folder),) = ask(tmp_path / "cache", server.url, "tiny")
    assert not error, folder
    starts = [wanted for method, path, wanted in server.log if method == "GET" and path.endswith("/model.safetensors")]
    assert len(starts) == 3 and starts[0] is None
    first, second = (int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) for wanted in starts[1:])
    assert 0 < first < second  # each goes on from where the one before broke off
    assert (Path(folder) / "model.safetensors").read_bytes() == server.repos["zoo/tiny"]["model.safetensors"]


def test_revision(server: Hub, tmp_path: Path):
    (good,) = ask(tmp_path / "cache", server.url, "tiny", revision="v1")
    assert good[0] == "" and good[1].endswith(COMMITS["v1"])
    (bad,) = ask(tmp_path / "cache", server.url, "tiny", revision="v7")
    assert bad[0] == "FileNotFoundError" and "'zoo/tiny'" in bad[1] and "no revision 'v7'" in bad[1]


def test_token_opens_a_gated_repository(server: Hub, tmp_path: Path):
    (good,) = ask(tmp_path / "cache", server.url, "zoo/gated", HF_TOKEN="hf_secret")
    assert good[0] == ""


ERRORS = {
    "zoo/absent": ("FileNotFoundError", "no folder, no preset and no repository 'zoo/absent'", "(404)"),
    "tinny": ("FileNotFoundError", "no repository 'tinny'", "Did you mean 'tiny'?"),
    "zoo/private": ("PermissionError", "'zoo/private'", "(401)", "HF_TOKEN"),
    "zoo/gated": ("PermissionError", "'zoo/gated'", "gated (403)", "accept its terms", "HF_TOKEN"),
    "zoo/tensorflow": (
        "FileNotFoundError",
        "zoo/tensorflow on http",
        "model.safetensors",
        "It holds optimizer.pt, tf_",
    ),
    "zoo/tiny--x..y": ("ValueError", "'zoo/tiny--x..y'", "no valid hub id"),
    "a b": ("ValueError", "'a b'", "no valid hub id"),
    "./nowhere": ("FileNotFoundError", "no folder nowhere"),
    "/nowhere": ("FileNotFoundError", "no folder /nowhere"),
    "a/b/c": ("FileNotFoundError", "no folder a/b/c"),
}


def test_each_failure_is_one_clear_error(server: Hub, tmp_path: Path):
    answers = ask(tmp_path / "cache", server.url, *ERRORS)
    for (name, expected), (kind, message) in zip(ERRORS.items(), answers, strict=True):
        assert kind == expected[0], (name, kind, message)
        for part in expected[1:]:
            assert part in message, (name, message)
        assert len(message.splitlines()) == 1, message
    assert server.url in answers[0][1]


def test_no_connection(tmp_path: Path):
    ((kind, message),) = ask(tmp_path / "cache", "http://127.0.0.1:9", "zoo/tiny")
    assert kind == "ConnectionError" and "'zoo/tiny' on http://127.0.0.1:9" in message and "connection" in message


LOADER = """
import transformer_zoo as zoo
from transformer_zoo import registry, runs
for arguments in json.loads(sys.argv[1]):
    try:
        if "model" in arguments:
            found = runs.model(arguments["model"])
        elif "embedder" in arguments:
            found = zoo.load_embedder(arguments.pop("embedder"), **arguments).bundle.model
        else:
            if "compute" in arguments:
                arguments["compute"] = zoo.Compute(**arguments["compute"])
            if "mesh" in arguments:
                arguments["mesh"] = zoo.make_mesh(**arguments["mesh"])
            found = zoo.from_pretrained(arguments.pop("name"), **arguments).model
        family, tied = registry.family_of(found.config), getattr(found.config, "tied", None)
        answers.append(["", f"{family} {found.task} {tied}"])
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
json.dump(answers, open(output, "w"))
"""


def test_weights_are_fetched_last(server: Hub, tmp_path: Path):
    """A request that config.json rules out is refused before any download of weights."""
    t5 = {"vocab_size": 90, "d_model": 16, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 2}
    untied = families.made("t5", t5 | {"tie_word_embeddings": False}, task="seq2seq-lm")
    bert = {"vocab_size": 90, "max_position_embeddings": 24, "hidden_size": 16, "num_hidden_layers": 1}
    bert = families.made("bert", bert | {"num_attention_heads": 2, "intermediate_size": 24}, task="masked-lm")
    for repo, bundle in {"zoo/t5": untied, "zoo/bert": bert}.items():
        save_pretrained(tmp_path / "made" / repo, bundle)
        server.repos[repo] = {file.name: file.read_bytes() for file in (tmp_path / "made" / repo).iterdir()}
    # transformers 5 writes that every T5 is tied; the tensors show that this one is not.
    settings = json.loads(server.repos["zoo/t5"]["config.json"]) | {"tie_word_embeddings": True}
    server.repos["zoo/t5"]["config.json"] = json.dumps(settings).encode()
    # A table of sinusoids of this size is no tensor, and is not made before the tensors are there to compare it with.
    sizes = {"vocab_size": 90, "d_model": 16, "max_position_embeddings": 24, "pad_token_id": 0}
    sizes |= {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "decoder_start_token_id": 0}
    save_pretrained(tmp_path / "made" / "vast", families.made("marian", sizes, task="seq2seq-lm"))
    server.repos["zoo/vast"] = {file.name: file.read_bytes() for file in (tmp_path / "made" / "vast").iterdir()}
    settings = json.loads(server.repos["zoo/vast"]["config.json"]) | {"max_position_embeddings": 10**8}
    server.repos["zoo/vast"]["config.json"] = json.dumps(settings).encode()
    server.repos["zoo/odd"] = server.repos["zoo/bert"] | {"config.json": b'{"model_type": "brt"}'}

    refused = [
        ({"name": "zoo/t5", "task": "causal_lm"}, "ValueError", "t5 has no task 'causal_lm': it offers base, seq"),
        ({"name": "zoo/bert", "task": "masked_lm"}, "ValueError", "Did you mean 'masked-lm'?"),
        ({"name": "zoo/bert", "dtype": "bf16"}, "ValueError", "dtype is 'bf16'"),
        ({"name": "zoo/bert", "param_dtype": "float64"}, "ValueError", "JAX_ENABLE_X64=1"),
        ({"name": "zoo/bert", "dtype": "float16", "compute": {}}, "ValueError", "'float32' in compute: give one"),
        ({"name": "zoo/bert", "labels": ["a", "a"]}, "ValueError", "none twice"),
        ({"name": "zoo/bert", "labels": "good"}, "TypeError", "labels is 'good' (str): expected a whole"),
        ({"name": "zoo/t5", "labels": 3, "task": "causal-lm"}, "ValueError", "t5 has no task 'causal-lm'"),
        ({"name": "zoo/t5", "task": "base", "torch_dtype": "float16"}, "TypeError", "is dtype and param_dtype here"),
        ({"name": "zoo/bert", "mesh": {"tensor": 4}}, "ValueError", "does not divide"),
        ({"name": "zoo/odd"}, "ValueError", "model_type 'brt' is not read"),
        ({"name": "zoo/vast", "mesh": {"tensor": -1}}, "ValueError", "its weights: max_position_embeddings is"),
        ({"embedder": "zoo/bert", "dtype": "bf16"}, "ValueError", "dtype is 'bf16'"),
    ]  # fmt: skip
    described = [({"model": "zoo/t5"}, "", "t5 seq2seq-lm True"), ({"model": "zoo/bert"}, "", "bert masked-lm None")]
    loaded = [
        ({"name": "zoo/t5-too"}, "", "t5 seq2seq-lm False"),
        ({"name": "zoo/bert-too"}, "", "bert masked-lm None"),
    ]
    server.repos |= {f"{repo}-too": server.repos[repo] for repo in ("zoo/t5", "zoo/bert")}
    cases = [*refused, *described, *loaded]
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {QUICKLY}", "JAX_PLATFORMS": "cpu"}
    answers = run(LOADER, [arguments for arguments, *_ in cases], tmp_path / "cache", server.url, **env)
    for (arguments, kind, message), (error, answer) in zip(cases, answers, strict=True):
        assert error == kind and message in answer, (arguments, error, answer)

    asked = [path[1:].partition("/resolve/") for _, path, _ in server.log if "/resolve/" in path]
    requests = {(repo, file.rpartition("/")[2]) for repo, _, file in asked}
    # All files of one load are of one commit, though the branch may move meanwhile: it is looked up once.
    assert sum(path.endswith("/zoo/t5-too/revision/main") for _, path, _ in server.log) == 1
    assert requests == {
        *(
            (repo, "config.json")
            for repo in ("zoo/t5", "zoo/bert", "zoo/odd", "zoo/vast", "zoo/t5-too", "zoo/bert-too")
        ),
        *((repo, "generation_config.json") for repo in ("zoo/t5", "zoo/vast", "zoo/t5-too")),
        *((repo, "model.safetensors") for repo in ("zoo/vast", "zoo/t5-too", "zoo/bert-too")),
    }


# ---- folders, without any hub ----------------------------------------------------------------------------------------


def test_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert hub.resolve(tmp_path, PRESETS) == hub.resolve(str(tmp_path), PRESETS) == tmp_path
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("tiny", PRESETS) == Path("tiny")  # a folder here comes before a name elsewhere
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/tiny", PRESETS) == tmp_path / "tiny"


def test_folder_has_no_revision(tmp_path: Path):
    with pytest.raises(ValueError, match="revision 'v1'"):
        hub.resolve(tmp_path, PRESETS, "v1")


def test_path_that_is_no_folder(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="is a file: give its folder"):
        hub.resolve(str(tmp_path / "model.safetensors"), PRESETS)
    with pytest.raises(FileNotFoundError, match="no folder"):
        hub.resolve(tmp_path / "absent", PRESETS)
