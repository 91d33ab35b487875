"""Text to token ids and back, with the place of every token in the text.

One class over two libraries: `tokenizers` for byte-level BPE and WordPiece in every file layout, and `sentencepiece`
for its own models, whose segmentation no other library reproduces exactly.

Text is text: where a document happens to contain `<|endoftext|>`, those are thirteen ordinary characters, and only
`special=True` reads them as the special token.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
"""The special token of tokenizers trained here, as in GPT-2: it stands before and after every document."""

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

Usual = dict[str, tuple[str, ...]]

CONVENTIONS: Usual = {
    "bos": ("<s>", END_OF_TEXT),
    "eos": ("</s>", END_OF_TEXT),
    "unk": ("<unk>", "[UNK]"),
    "sep": ("[SEP]",),
    "pad": ("<pad>", "[PAD]"),
    "cls": ("[CLS]",),
    "mask": ("<mask>", "[MASK]"),
}
"""Names by which a special token is known where no file says which it is (GPT-2's and RoBERTa's own files do not)."""

FORMATS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",), ("tokenizer.model",))
"""What is read, the first that a folder has."""

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """A text as tokens."""

    ids: np.ndarray
    """int32[n]: the tokens."""
    offsets: np.ndarray
    """int32[n, 2]: the characters of the text, first and one past the last, that each token stands for. Tokens that
    share a character, as the bytes of an emoji do, all have its span; what a template adds has an empty one."""

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer:
    """A tokenizer and the ids of its special tokens, `bos_id`, `eos_id`, ..., each None where it has no such token.

    Made by `Tokenizer.load` and `Tokenizer.train`.
    """

    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    sep_id: int | None
    pad_id: int | None
    cls_id: int | None
    mask_id: int | None

    def __init__(
        self, backend: "_Library | _SentencePiece", roles: Mapping[str, str], files: Mapping[str, bytes]
    ) -> None:
        self._backend, self._roles, self._files = backend, dict(roles), dict(files)
        for role in ROLES:
            setattr(self, f"{role}_id", backend.id_of(roles[role]) if role in roles else None)

    @property
    def kind(self) -> str:
        """How it cuts text: `byte-level bpe`, `bpe`, `wordpiece`, `unigram`, `sentencepiece`, ..."""
        return self._backend.kind

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._backend.vocab_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of all that decides what it does."""
        return hashlib.sha256(self._backend.serialized).hexdigest()[:16]

    def encode(self, text: str, *, special: bool = False, template: bool = False) -> Encoding:
        """The tokens of one text. See `encode_batch`."""
        return self.encode_batch([text], special=special, template=template)[0]

    def encode_batch(self, texts: Sequence[str], *, special: bool = False, template: bool = False) -> list[Encoding]:
        """The tokens of some texts, cut on all cores.

        Args:
            special: read special tokens where the text spells them out; otherwise they are ordinary characters.
            template: add what the tokenizer adds to a sequence, such as [CLS] and [SEP].

        Raises:
            ValueError: a text with a lone surrogate, which is no Unicode text; a template of a bare sentencepiece
                model, whose file does not hold one.
        """
        return self._backend.encode(_checked(texts), special, template)

    def encode_bytes(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """What training needs of some texts: ids, int32[n], and by how many UTF-8 bytes of the text each token goes on.

        The counts of a text add up to its bytes, save for what the tokenizer drops at the end.
        """
        return self._backend.encode_bytes(_checked(texts))

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of some tokens; for byte-level tokenizers exactly the text that was encoded.

        Args:
            special: write special tokens out rather than leave them out.

        Raises:
            ValueError: an id that is not in the vocabulary.
        """
        ids = [int(i) for i in ids]
        for place, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} at place {place} is not one of the {self.vocab_size} of the vocabulary")
        return self._backend.decode(ids, special)

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The vocabulary's own spelling of some tokens, as for labels of a picture."""
        return [self._backend.token(int(i)) for i in ids]

    def id_of(self, token: str) -> int | None:
        """The id of a token in the vocabulary's own spelling, or None."""
        return self._backend.id_of(token)

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files: those that it was loaded from, and what other libraries need besides."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in (self._backend.files(self._roles) | self._files).items():
            partial = directory / f".{name}.{os.getpid()}"
            try:
                partial.write_bytes(content)
                partial.replace(directory / name)
            finally:
                partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer from a folder, or from one of its files with what lies beside it.

        Which tokens are special is taken from tokenizer_config.json, special_tokens_map.json, config.json and, where
        these are silent, from the usual names.

        Raises:
            FileNotFoundError: no such path, or a folder with no tokenizer in a format that is read.
            ValueError: a file that is damaged or that contradicts the others.
        """
        path = Path(path).expanduser()
        folder = path.parent if path.is_file() else path
        names = [names for names in FORMATS if all((folder / name).is_file() for name in names)]
        if path.is_file():
            names = [chosen for chosen in names if path.name in chosen]
        if not names:
            formats = ", ".join(" with ".join(names) for names in FORMATS)
            raise FileNotFoundError(f"{path} is no tokenizer: it must be, or be a folder that holds, one of {formats}")
        files = {name: (folder / name).read_bytes() for name in names[0]}
        files |= {name: (folder / name).read_bytes() for name in SETTINGS if (folder / name).is_file()}
        try:
            settings = {name: json.loads(files.get(name, b"{}")) for name in SETTINGS}
            model_config = folder / "config.json"
            settings["config.json"] = json.loads(model_config.read_bytes()) if model_config.is_file() else {}
        except ValueError as error:
            raise ValueError(f"the settings of the tokenizer in {folder} are not JSON: {error}") from None
        try:
            return _build(names[0], files, settings)
        except Exception as error:  # the libraries raise bare Exceptions
            raise ValueError(f"{folder / names[0][0]} is not a tokenizer that can be read: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, cache_dir: str | Path | None = None) -> "Tokenizer":
        """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2) with GPT-2's way to split words.

        Every text can be written in it, since all 256 bytes are tokens. The same texts give the same tokenizer.

        Args:
            texts: what to learn from; they are held in memory.
            vocab_size: tokens wanted, the special one and the 256 bytes among them; short texts yield fewer.
            cache_dir: where trained tokenizers are kept, by a hash of the texts and the size; None: it is not kept.

        Raises:
            ValueError: no text, or a size below 257.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if vocab_size < 257:
            raise ValueError(f"vocab_size={vocab_size}: it must be at least 257, the 256 bytes and {END_OF_TEXT}")
        if not any(texts):
            raise ValueError("there is no text to train a tokenizer on")
        if cache_dir is None:
            return cls._train(_checked(texts), vocab_size)
        folder = Path(cache_dir).expanduser() / f"bpe-{vocab_size}-{_hash(texts)}"
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
            try:
                cls._train(_checked(texts), vocab_size).save(partial)
                partial.chmod(0o755)
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process has just put the same tokenizer there
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return cls.load(folder)

    @classmethod
    def _train(cls, texts: list[str], vocab_size: int) -> "Tokenizer":
        tokenizer = _byte_level(models.BPE(), add_prefix_space=False, trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        return cls(_Library(tokenizer.to_str()), {"bos": END_OF_TEXT, "eos": END_OF_TEXT}, {})


# Files


def _build(names: tuple[str, ...], files: dict[str, bytes], settings: dict[str, dict[str, Any]]) -> Tokenizer:
    """A tokenizer from the contents of its files and of the settings beside them."""
    read = {
        "tokenizer.json": _from_tokenizer_json,
        "vocab.json": _from_vocab_and_merges,
        "vocab.txt": _from_wordpiece,
        "spiece.model": _from_sentencepiece,
        "tokenizer.model": _from_sentencepiece,
    }[names[0]]
    config = settings["tokenizer_config.json"]
    added = {int(i): dict(token) for i, token in config.get("added_tokens_decoder", {}).items()}
    added |= {i: {"content": token} for token, i in settings["added_tokens.json"].items() if i not in added}
    backend, usual = read([files[name] for name in names], config, added)
    return Tokenizer(backend, _roles(settings, backend, usual), files)


def _roles(settings: dict[str, dict[str, Any]], backend: Any, usual: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The special tokens by role. A file that says null means that there is none."""
    roles: dict[str, str] = {}
    for role in ROLES:
        named = [s for s in ("tokenizer_config.json", "special_tokens_map.json") if f"{role}_token" in settings[s]]
        i = settings["config.json"].get(f"{role}_token_id")
        if named:
            token = settings[named[0]][f"{role}_token"]
            token = token["content"] if isinstance(token, dict) else token
            if token is not None and backend.id_of(token) is None:
                raise ValueError(f"{named[0]} names {token!r} as {role}_token, and the vocabulary has no such token")
        elif i is not None:
            token = backend.token(i[0] if isinstance(i, list) else i)
        else:
            token = next((token for token in usual[role] if backend.id_of(token) is not None), None)
        if token is not None:
            roles[role] = token
    return roles


def _from_tokenizer_json(contents: list[bytes], config: dict, added: dict) -> "tuple[_Library, Usual]":
    tokenizer = tokenizers.Tokenizer.from_str(contents[0].decode())
    tokenizer.no_truncation()  # published files hold the lengths that someone once used
    tokenizer.no_padding()
    return _Library(tokenizer.to_str()), CONVENTIONS


def _from_vocab_and_merges(contents: list[bytes], config: dict, added: dict) -> "tuple[_Library, Usual]":
    """Byte-level BPE as GPT-2's files have it, or RoBERTa's, which frame a sequence with <s> and </s>."""
    vocab = json.loads(contents[0])
    lines = contents[1].decode().split("\n")
    lines = lines[1:] if lines[0].startswith("#version") else lines
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip()]
    space = config.get("add_prefix_space", False)
    tokenizer = _byte_level(models.BPE(vocab, merges), add_prefix_space=space, trim_offsets=False)
    special = [END_OF_TEXT]
    if all(token in vocab for token in ("<s>", "</s>", "<mask>")):
        special = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
        ends = ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"])
        tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=space)
    tokenizer.add_special_tokens([token for token in special if str(getattr(token, "content", token)) in vocab])
    return _Library(_with_added(tokenizer, added).to_str()), CONVENTIONS


def _from_wordpiece(contents: list[bytes], config: dict, added: dict) -> "tuple[_Library, Usual]":
    """WordPiece as BERT's files have it (Devlin et al. 2019)."""
    lines = contents[0].decode().split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    vocab = {token.rstrip("\r"): i for i, token in enumerate(lines)}
    words = [token for token in vocab if not (token.startswith("[") and token.endswith("]"))]
    unk, cls, sep = (_content(config.get(f"{role}_token"), f"[{role.upper()}]") for role in ("unk", "cls", "sep"))
    for token in (unk, cls, sep):
        if token not in vocab:
            raise ValueError(f"the vocabulary has no {token}, which every WordPiece vocabulary has")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        # Where nothing says so, the vocabulary tells: one with capitals was made of cased text.
        lowercase=config.get("do_lower_case", not any(word != word.lower() for word in words)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    pad, mask = (_content(config.get(f"{role}_token"), f"[{role.upper()}]") for role in ("pad", "mask"))
    tokenizer.add_special_tokens([token for token in (pad, unk, cls, sep, mask) if token in vocab])
    return _Library(_with_added(tokenizer, added).to_str()), CONVENTIONS


def _from_sentencepiece(contents: list[bytes], config: dict, added: dict) -> "tuple[_SentencePiece, Usual]":
    processor = sentencepiece.SentencePieceProcessor(model_proto=contents[0])
    size = processor.get_piece_size()
    # T5's sentinels lie behind the model's own pieces, the last one first.
    extra = {size + i: f"<extra_id_{config['extra_ids'] - 1 - i}>" for i in range(config.get("extra_ids") or 0)}
    extra |= {i: token["content"] for i, token in added.items() if i >= size}
    ids = {role: getattr(processor, f"{role}_id")() for role in ("bos", "eos", "unk", "pad")}
    usual = {role: (processor.id_to_piece(i),) if i >= 0 else () for role, i in ids.items()}
    return _SentencePiece(contents[0], extra), CONVENTIONS | usual


def _byte_level(model: models.Model, *, add_prefix_space: bool, trim_offsets: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=add_prefix_space, trim_offsets=trim_offsets)
    return tokenizer


def _with_added(tokenizer: tokenizers.Tokenizer, added: dict[int, dict]) -> tokenizers.Tokenizer:
    """Adds the tokens that a vocabulary file lacks, at the ids that they must have."""
    for i, settings in sorted(added.items()):
        flags = {flag: settings[flag] for flag in ("lstrip", "rstrip", "single_word", "normalized") if flag in settings}
        token = AddedToken(settings["content"], special=settings.get("special", True), **flags)
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != i:
            raise ValueError(f"the added token {token.content!r} cannot have id {i}, given the vocabulary's size")
    return tokenizer


def _content(token: Any, default: str) -> str:
    """A special token in tokenizer_config.json is a string, or an object with its text under `content`."""
    return (token.get("content") if isinstance(token, dict) else token) or default


# The two libraries


class _Library:
    """The `tokenizers` library, from the text of a tokenizer.json."""

    def __init__(self, text: str) -> None:
        self.serialized = text.encode()
        self._special = tokenizers.Tokenizer.from_str(text)
        self._plain = tokenizers.Tokenizer.from_str(text)
        self._plain.encode_special_tokens = True  # the library's name for: as ordinary text
        self.vocab_size = 1 + max(self._special.get_vocab(with_added_tokens=True).values())
        byte_level = isinstance(self._special.decoder, decoders.ByteLevel)
        self.kind = ("byte-level " if byte_level else "") + type(self._special.model).__name__.lower()
        self._widths = self._byte_widths() if byte_level else None

    def _byte_widths(self) -> np.ndarray:
        """int32[vocabulary]: the bytes of each token. A byte-level vocabulary spells every byte as one character."""
        widths = np.zeros(self.vocab_size, np.int32)
        for token, i in self._special.get_vocab(with_added_tokens=True).items():
            widths[i] = len(token)
        return widths

    def encode(self, texts: list[str], special: bool, template: bool) -> list[Encoding]:
        tokenizer = self._special if special else self._plain
        encodings = tokenizer.encode_batch(texts, add_special_tokens=template)
        return [
            Encoding(ids=np.array(e.ids, np.int32), offsets=np.array(e.offsets, np.int32).reshape(-1, 2))
            for e in encodings
        ]

    def encode_bytes(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        if self._widths is None:
            return [(e.ids, _bytes_by_offsets(text, e)) for text, e in zip(texts, self.encode(texts, False, False))]
        pairs = []
        for text, encoding in zip(texts, self._plain.encode_batch_fast(texts, add_special_tokens=False)):
            ids = np.array(encoding.ids, np.int32)
            counts = self._widths[ids]
            if counts.sum() != len(
                text.encode()
            ):  # something was added, dropped or rewritten, such as a space in front
                counts = _bytes_by_offsets(text, self.encode([text], False, False)[0])
            pairs.append((ids, counts))
        return pairs

    def decode(self, ids: list[int], special: bool) -> str:
        return self._special.decode(ids, skip_special_tokens=not special)

    def token(self, i: int) -> str | None:
        return self._special.id_to_token(i)

    def id_of(self, token: str) -> int | None:
        return self._special.token_to_id(token)

    def files(self, roles: dict[str, str]) -> dict[str, bytes]:
        """By name, what makes other libraries read this tokenizer."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= {f"{role}_token": token for role, token in roles.items()}
        return {"tokenizer.json": self.serialized, "tokenizer_config.json": _json(config)}

    def __reduce__(self) -> tuple:
        return _Library, (self.serialized.decode(),)


class _SentencePiece:
    """The `sentencepiece` library, from the bytes of a model, and tokens with ids behind the model's."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, extra: Mapping[int, str]) -> None:
        self._model, self._extra = model, dict(extra)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._size = self._processor.get_piece_size()
        self.vocab_size = max(self._size, *(i + 1 for i in extra)) if extra else self._size
        self.serialized = model + _json(sorted(self._extra.items()))
        control = {i: self._processor.id_to_piece(i) for i in range(self._size) if self._processor.is_control(i)}
        self._special = {token: i for i, token in (control | self._extra).items()}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, texts: list[str], special: bool, template: bool) -> list[Encoding]:
        if template:
            raise ValueError(
                "a sentencepiece model does not say what frames a sequence: add bos_id and eos_id yourself"
            )
        if special and self._special:
            return [self._encode_special(text) for text in texts]
        pieces = self._processor.encode(texts, return_type="offset_mapping")
        return [
            Encoding(ids=np.array(p["ids"], np.int32), offsets=np.array(p["offsets"], np.int32).reshape(-1, 2))
            for p in pieces
        ]

    def _encode_special(self, text: str) -> Encoding:
        """Special tokens where they are spelt out, and between them each stretch of text by itself."""
        ids, offsets, start = [np.empty(0, np.int32)], [np.empty((0, 2), np.int32)], 0
        for part in self._pattern.split(text):
            if part in self._special:
                ids.append(np.array([self._special[part]], np.int32))
                offsets.append(np.array([[start, start + len(part)]], np.int32))
            elif part:
                encoding = self.encode([part], False, False)[0]
                ids.append(encoding.ids)
                offsets.append(encoding.offsets + start)
            start += len(part)
        return Encoding(ids=np.concatenate(ids), offsets=np.concatenate(offsets).astype(np.int32))

    def encode_bytes(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(e.ids, _bytes_by_offsets(text, e)) for text, e in zip(texts, self.encode(texts, False, False))]

    def decode(self, ids: list[int], special: bool) -> str:
        parts, run = [], []
        for i in ids:
            if i < self._size and not (special and self._processor.is_control(i)):
                run.append(i)
            elif special:
                parts += [self._processor.decode(run), self.token(i)]
                run = []
        return "".join([*parts, self._processor.decode(run)])

    def token(self, i: int) -> str | None:
        return self._processor.id_to_piece(i) if i < self._size else self._extra.get(i)

    def id_of(self, token: str) -> int | None:
        if token in self._special:
            return self._special[token]
        i = self._processor.piece_to_id(token)
        return i if self._processor.id_to_piece(i) == token else None

    def files(self, roles: dict[str, str]) -> dict[str, bytes]:
        return {}

    def __reduce__(self) -> tuple:
        return _SentencePiece, (self._model, self._extra)


# Small things


def _checked(texts: Sequence[str]) -> list[str]:
    for place, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {place} has a lone surrogate at character {error.start}: not Unicode text"
            ) from None
    return list(texts)


def _bytes_by_offsets(text: str, encoding: Encoding) -> np.ndarray:
    """int32[n]: UTF-8 bytes of the text up to each token's last character that no earlier token has reached."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int32) + (codes >= 0x800) + (codes >= 0x10000)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    return np.diff(bytes_before[encoding.offsets[:, 1]], prepend=0).astype(np.int32)


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"byte-level bpe 1, {len(texts)} texts".encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:16]


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
