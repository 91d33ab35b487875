"""The local folder for a name: an existing folder, or a snapshot of a repository of the Hugging Face hub.

Tokens, cache, mirror and offline mode are those of `huggingface_hub` (`HF_TOKEN`, `HF_HOME`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`), so earlier downloads are found, and a download that breaks off is resumed.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

from transformer_zoo import json_files, trees
from transformer_zoo.checkpoints import formats, torch_bin

TOKENIZERS = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "spm.model",
    "sentencepiece.bpe.model", "tokenizer.model", "source.spm", "target.spm",
)  # fmt: skip
TOKENIZER_FILES = (
    *TOKENIZERS, "target_vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
MODULES = "modules.json"
CHAT_TEMPLATE = "chat_template.jinja"
LONGEST_PATH = 255  # characters, which every file system allows
REST = (
    "config.json", formats.ADAPTER, "adapter_model.*", "generation_config.json", "*token*.json", *TOKENIZERS,
    "target_vocab.json", "chat_template.*", MODULES, "*sentence_*.json",
)  # fmt: skip


def resolve(
    name: str | os.PathLike[str],
    presets: Mapping[str, Any],
    revision: str | None = None,
    *,
    weights: bool = True,
    folders: Sequence[str] = (),
) -> Path:
    """The local folder of a model: the folder itself, or the snapshot of a repository of the hub.

    Args:
        name: a local folder; a preset's name; or a hub id such as "openai-community/gpt2".
        presets: name -> an object with a `hub_id`.
        revision: branch, tag or commit of the repository. None: its main branch.
        weights: False: only the configuration and the tokenizer are downloaded.
        folders: folders of the repository to download besides the files at its top, weights included.

    Raises:
        FileNotFoundError: there is no such folder, repository or revision, or the repository has no weights that can be
            read, or the preset was never published with any.
        PermissionError: the repository is private or gated.
        ConnectionError: it is not in the cache, and the hub cannot be reached or the download broke off.
        ValueError: the name cannot be a hub id; or a revision is given for a local folder.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{folder} is a local folder; only a repository of the hub has a revision {revision!r}")
        return folder
    if not isinstance(name, str) or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise FileNotFoundError(f"{folder} is a file: give its folder" if folder.exists() else f"no folder {folder}")
    repo = presets[name].hub_id if name in presets else name
    if not repo:
        raise FileNotFoundError(f"no weights of {name} were published: make fresh ones with `from_config`")
    try:
        for folder in folders:
            _download(
                repo, revision, (*REST, *(p for format in formats.FORMATS for p in format.patterns)), f"{folder}/"
            )
        if not weights:
            return _download(repo, revision, REST)
        for format in formats.FORMATS:  # only the first that is there: many repositories have all
            snapshot = _download(repo, revision, (*REST, *format.patterns))
            if format.is_in(snapshot):
                return snapshot
        files = huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
    except (OSError, ValueError, errors.HTTPError) as error:
        raise _explained(error, repo, revision, "" if name in presets else trees.nearest(name, presets)) from error
    raise formats.no_weights(f"{repo} on {constants.ENDPOINT}", files)


def modules(folder: Path) -> list[tuple[str, str]]:
    """The modules of a sentence-transformers model in their order, each with its folder within this one and its class.

    Raises:
        ValueError: the file is no list of modules, or a module's folder is outside this one.
    """
    file = folder / MODULES
    found = []
    for i, module in enumerate(json_files.read(file, list)):
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("path", "type")):
            raise ValueError(f"{file}: module {i} is not an object with the texts path and type")
        found.append((module["path"].rstrip("/"), module["type"]))
    for path, _ in found:
        parts = PurePosixPath(path).parts
        if PurePosixPath(path).is_absolute() or ".." in parts or "\0" in path or len(path) > LONGEST_PATH:
            raise ValueError(f"{file} names a folder that cannot be within its own: {json_files.excerpt(repr(path))}")
    return found


def verify(folder: Path) -> None:
    """Compares the weights of a folder with the hashes of the hub, for files that its client has downloaded, and with
    the checksums in a `pytorch_model.bin`. A warning names the files for which there is neither.

    Raises:
        ValueError: a file is damaged, or another one than the hub has.
    """
    unknown, patterns = [], [pattern for format in formats.FORMATS for pattern in format.patterns]
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        checked = file.suffix == ".bin" and torch_bin.verify(file)
        if (expected := _hash_of(file)) is None:
            unknown += [] if checked else [file.name]
            continue
        digest = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
        if digest.hexdigest() != expected:
            raise ValueError(
                f"{file} is damaged or was changed: its hash is {digest.hexdigest()}, and on the hub it is {expected}. "
                "Delete it and download it again."
            )
    if unknown:
        listed = json_files.excerpt(", ".join(unknown), 500)
        warnings.warn(f"{folder} has no hashes of the hub for {listed}: they are not verified", stacklevel=3)


def _hash_of(file: Path) -> str | None:
    """The hash of a downloaded file on the hub: sha256 of large files, git's sha1 of small ones. The cache calls the
    file by it; a download to a folder of one's own notes it in the second line of a file. None: it is not known."""
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    found = file.resolve().name if file.is_symlink() else ""
    if note.is_file() and note.stat().st_size < 10_000:
        found = "".join(note.read_text(errors="replace").splitlines()[1:2]).strip()
    return found if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", found) else None


def _download(repo: str, revision: str | None, patterns: Sequence[str], within: str = "") -> Path:
    """Fetches the files at the top of a repository, or in one of its folders, that match and are not in the cache."""
    snapshot = Path(
        huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[within + pattern for pattern in patterns],
            ignore_patterns=[within + "*/*"],
        )
    )
    if not within and (snapshot / CHAT_TEMPLATE).is_file():  # there are others only beside this one
        _download(repo, snapshot.name, ("*.jinja",), "additional_chat_templates/")
    return snapshot


def _explained(error: Exception, repo: str, revision: str | None, hint: str) -> Exception:
    """An error of the hub's client as an error for the user, with the remedy."""
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the hub refused, and the cache lacks it
    status = getattr(getattr(error, "response", None), "status_code", None)
    at = f"{repo!r} on {constants.ENDPOINT}"
    not_here = f"there is no folder and no preset {repo!r}.{hint} " if hint else ""
    cache = f"{not_here}{at} is not completely in the cache {constants.HF_HUB_CACHE}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case errors.GatedRepoError():
            return PermissionError(f"{at} is gated ({status}): accept its terms there with your account, then {login}")
        case errors.RevisionNotFoundError():
            return FileNotFoundError(f"{at} has no revision {revision!r} ({status})")
        case errors.RepositoryNotFoundError() if status == 404:
            return FileNotFoundError(f"there is no folder, no preset and no repository {at} (404).{hint}")
        case errors.HfHubHTTPError() if status in (401, 403):
            return PermissionError(
                f"{at} does not exist or is private ({status}): check the name, or {login} with access to it.{hint}"
            )
        case errors.HfHubHTTPError():
            return ConnectionError(f"the hub does not serve {at} ({status}): try again later. {error}")
        case errors.HFValidationError():
            return ValueError(f"{repo!r} is no folder, no preset and no valid hub id.{hint}")
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() if constants.HF_HUB_OFFLINE:
            return ConnectionError(f"{cache}, and HF_HUB_OFFLINE is set: unset it")
        case errors.LocalEntryNotFoundError() | errors.HTTPError():
            return ConnectionError(
                f"{cache} and cannot be fetched: check the name and the connection, try again; files that are complete "
                f"are kept ({error.__cause__ or error})"
            )
        case _:
            return OSError(f"{at} cannot be put into the cache {constants.HF_HUB_CACHE}: {error}")
