"""Text to token ids and back, with the place of every token in the text.

One class over two libraries: `tokenizers` for byte-level BPE and WordPiece in every file layout, and `sentencepiece`
(`spm`) for its own models, whose segmentation no other library reproduces exactly; and over bytes (`utf8`), which need
neither.

Where a text spells out a special or an added token, such as `<|endoftext|>`, it is read as that token, as transformers
reads it. `special=False` reads special tokens as ordinary characters, for the text of strangers.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from transformer_zoo import json_files
from transformer_zoo.data import spm, utf8
from transformer_zoo.data.encoding import Cutter, Encoding, bytes_by_offsets
from transformer_zoo.data.spm import Usual

END_OF_TEXT = "<|endoftext|>"
"""The special token of a byte-level BPE trained here, as in GPT-2: it stands before and after every document."""

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

SENTINELS = 100
"""Of a tokenizer trained here for T5, as many as T5 has."""

Kind = Literal["bpe", "roberta", "wordpiece", "t5"]

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

CONVENTIONS: Usual = {
    "bos": ("<s>", END_OF_TEXT),
    "eos": ("</s>", END_OF_TEXT),
    "unk": ("<unk>", "[UNK]"),
    "sep": ("[SEP]",),
    "pad": ("<pad>", "[PAD]"),
    "cls": ("[CLS]",),
    "mask": ("<mask>", "[MASK]", "<mask_2>"),
}
"""Names by which a special token is known where no file says which it is (GPT-2's and RoBERTa's own files do not)."""

FORMATS = (
    ("tokenizer.json",),
    ("source.spm", "target.spm", "vocab.json", "target_vocab.json"),
    ("source.spm", "target.spm", "vocab.json"),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("spm.model",),
    ("sentencepiece.bpe.model",),
    ("tokenizer.model",),
)
"""What is read, the first that a folder has."""

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""Files of a tokenizer that are not read here, and are saved again."""

FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
"""Settings of an added token."""

CUTTING = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "keep_accents", "split_by_punct",
)  # fmt: skip
"""Settings of how text is cut."""

KINDS = {
    **dict.fromkeys(("tokenizer_class", "model_type", "src_lang", "tgt_lang"), str),
    **dict.fromkeys((f"{role}_token" for role in ROLES), (str, dict)),
    **dict.fromkeys((f"{role}_token_id" for role in ROLES), (int, list)),
    **dict.fromkeys(("extra_ids", "offset"), int),
    **dict.fromkeys(("add_bos_token", "add_eos_token", "separate_vocabs", "trim_offsets", *CUTTING), bool),
    "added_tokens_decoder": dict,
    "additional_special_tokens": list,
    "extra_special_tokens": (list, dict),
}
"""What is read of the settings, and the types it must have."""

MOST_EXTRA = 10_000
"""Tokens that a setting may ask for without naming them."""

LANGUAGE_CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")
"""How the special token of a language is spelt in a tokenizer.json: `fr_XX`, `fra_Latn`."""


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
        self,
        backend: "_Library | Cutter",
        roles: Mapping[str, str],
        files: Mapping[str, bytes],
        languages: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self._backend, self._roles, self._files = backend, dict(roles), dict(files)
        self._languages = languages  # of sources and of targets, where none is said
        for role in ROLES:
            setattr(self, f"{role}_id", backend.id_of(roles[role]) if role in roles else None)

    @property
    def kind(self) -> str:
        """How it cuts text: `byte-level bpe`, `bpe`, `wordpiece`, `unigram`, `sentencepiece`, `bytes`, ..."""
        return self._backend.kind

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._backend.vocab_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short hash of all that decides what it does."""
        languages = repr(self._languages).encode() if any(self._languages) else b""
        return hashlib.sha256(self._backend.serialized + languages).hexdigest()[:16]

    @functools.cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """The tokens that stand for what was cut out of a text, <extra_id_0> and on, in the order of their use."""
        ids: list[int] = []
        while found := [i for name in spm.sentinel_names(len(ids)) if (i := self.id_of(name)) is not None]:
            ids.append(found[0])
        return tuple(ids)

    @functools.cached_property
    def before_text(self) -> np.ndarray:
        """int32[n]: the tokens that a template puts in front of a text; none where no template is known."""
        if not self._backend.has_template:
            return np.zeros(0, np.int32)
        encoding = self.encode("a", template=True)
        return encoding.ids[: int(np.argmax(encoding.texts >= 0))]

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages that have a token, such as mBART's `fr_XX` and Marian's `fra`."""
        return tuple(self._backend.languages)

    def language_id(self, code: str) -> int:
        """The id of a language's token.

        Raises:
            ValueError: there is no such language; the message has those that are spelt alike.
        """
        return spm.language_id(self._backend.languages, code)

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        special: bool = True,
        template: bool = False,
        target: bool = False,
        language: str | None = None,
    ) -> Encoding:
        """The tokens of one text, or of a text and its pair. See `encode_batch`."""
        pairs = None if pair is None else [pair]
        how = {"special": special, "template": template, "target": target, "language": language}
        return self.encode_batch([text], pairs, **how)[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        special: bool = True,
        template: bool = False,
        target: bool = False,
        language: str | None = None,
    ) -> list[Encoding]:
        """The tokens of some texts, cut on all cores.

        Args:
            texts: the texts, or the first of each pair.
            pairs: the second text of each pair; its tokens follow those of the first.
            special: read special tokens where the text spells them out; otherwise they are ordinary characters. Added
                tokens that are not special are read in either case.
            template: add what the tokenizer adds to a sequence or a pair, such as [CLS] a [SEP] b [SEP].
            target: the texts are what a model is to write, not what it reads. Marian cuts these by another model, and
                mBART's template has another language in them.
            language: the one that the template says: mBART's of the text itself, Marian's of what is wanted of a
                source. None: what tokenizer_config.json says, or the family's own.

        Raises:
            ValueError: a text with a lone surrogate, which is no Unicode text; as many texts as pairs are not given; a
                template of a bare sentencepiece model, whose file does not hold one; an unknown language, or one
                without a template.
        """
        if language is not None:
            self.language_id(language)
            if not template:
                raise ValueError(f"language={language!r} is said by the template: ask for template=True too")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} texts to pair them with: there must be as many")
        pairs = None if pairs is None else _checked(pairs)
        language = language or self._languages[target]
        return self._backend.encode(_checked(texts), pairs, special, template, target, language)

    def encode_bytes(self, texts: Sequence[str], *, special: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
        """What training needs of some texts: ids, int32[n], and by how many UTF-8 bytes of the text each token goes on.

        The counts of a text add up to its bytes, save for what the tokenizer drops at the end. special: as of
        `encode_batch`.
        """
        return self._backend.encode_bytes(_checked(texts), special)

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

    def lower_cased(self) -> "Tokenizer":
        """The same tokenizer with texts put in lower case first, save for the special tokens that they spell out.

        Raises:
            ValueError: a tokenizer that is not one of the `tokenizers` library.
        """
        if not isinstance(self._backend, _Library):
            raise ValueError(f"texts are put in lower case for a tokenizer.json or a vocab.txt, not for {self.kind}")
        return Tokenizer(self._backend.lower_cased(), self._roles, {}, self._languages)

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

        How text is cut and ids are numbered follows from the class that tokenizer_config.json or config.json names, and
        without one from the files that are there. A tokenizer.json comes first; settings of tokenizer_config.json such
        as `do_lower_case` win over it. Which tokens are special is taken from tokenizer_config.json,
        special_tokens_map.json, config.json and, where these are silent, from the usual names; tokens that are named or
        added and that no vocabulary holds lie behind it.

        Raises:
            FileNotFoundError: no such path, or a folder with no tokenizer in a format that is read.
            ValueError: a class that is not read, without a tokenizer.json; a file that is damaged or that contradicts
                the others. The message names the file.
        """
        path = Path(path).expanduser()
        folder = path.parent if path.is_file() else path
        settings = {
            name: json_files.read(folder / name) if (folder / name).is_file() else {}
            for name in (*SETTINGS, "config.json")
        }
        for name, values in settings.items():
            json_files.check(values, KINDS, str(folder / name))
        kind = _class(settings)
        formats = (FORMATS[0], *CLASSES[kind].formats) if kind in CLASSES else FORMATS
        there = [names for names in formats if all((folder / name).is_file() for name in names)]
        if path.is_file():
            there = [names for names in there if path.name in names]
        if not there:
            expected = ", ".join(" with ".join(names) for names in formats)
            of = f" of the class {kind}" if kind in CLASSES else ""
            alone = (folder / "vocab.json").is_file() and not (folder / "merges.txt").is_file()
            raise FileNotFoundError(
                f"{path} is no tokenizer{of}: it must be, or be a folder that holds, one of {expected}"
                + (". There is a vocab.json, and without its merges.txt no text can be cut by it" if alone else "")
            )
        if kind is not None and kind not in (*CLASSES, *GENERIC) and there[0] != FORMATS[0]:
            raise ValueError(
                f"{folder} names the class {kind} for its tokenizer, which is not read: a class tells how text is cut, "
                f"and those that are read are {', '.join(CLASSES)}. It needs a tokenizer.json"
            )
        contents = {name: (folder / name).read_bytes() for name in there[0]}
        beside = [*SETTINGS, *TEMPLATES]
        if not path.is_file():
            beside += [name for names in there[1:] for name in names]
        files = {name: (folder / name).read_bytes() for name in beside if (folder / name).is_file()} | contents
        try:
            return _build(contents, files, settings)
        except BaseException as error:
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            file = folder / (there[0] or ("tokenizer_config.json",))[0]
            message = json_files.excerpt(error, 400)
            raise ValueError(f"{file} is not a tokenizer that can be read: {message}") from error

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        cache_dir: str | Path | None = None,
        *,
        kind: Kind = "bpe",
        lower_case: bool = False,
    ) -> "Tokenizer":
        """Learns a vocabulary from texts. The same texts give the same tokenizer.

        - `bpe`: a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019, section 2.2) with GPT-2's way to split
          words. Every text can be written in it, since all 256 bytes are tokens.
        - `roberta`: the same with the special tokens and the frame of a masked language model, <s> a </s></s> b </s>
          (Liu et al. 2019, section 4.4).
        - `wordpiece`: BERT's words and special tokens (Devlin et al. 2019, section 3), [CLS] a [SEP] b [SEP]. The
          longest piece first, as BERT reads it; which pieces there are is found by merging the most frequent pairs.
        - `t5`: as `bpe`, with the special tokens of T5, <pad>, </s> and <unk>, its frame a </s> b </s>, and its hundred
          sentinels behind all else, the last one first (Raffel et al. 2020, section 3.1.4).

        Args:
            texts: what to learn from; they are held in memory.
            vocab_size: tokens wanted, special ones and bytes or characters among them; short texts yield fewer.
            cache_dir: where trained tokenizers are kept, by a hash of the texts and the size; None: it is not kept.
            lower_case: of `wordpiece`: capitals become small letters, and accents are left out.

        Raises:
            ValueError: no text, an unknown kind, lower case of a byte-level one, or too small a size.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        least = {"bpe": 256 + 1, "roberta": 256 + 5, "wordpiece": 64, "t5": 256 + 3 + SENTINELS}
        if kind not in least:
            raise ValueError(f"kind={kind!r}: a tokenizer that is trained is one of {', '.join(least)}")
        if lower_case and kind != "wordpiece":
            raise ValueError(f"lower_case is a choice of kind=wordpiece; {kind} writes every byte of a text")
        if vocab_size < least[kind]:
            raise ValueError(f"vocab_size={vocab_size}: for kind={kind} it must be at least {least[kind]}")
        if not any(texts):
            raise ValueError("there is no text to train a tokenizer on")
        learn = {
            "bpe": _train_bpe,
            "roberta": _train_roberta,
            "wordpiece": functools.partial(_train_wordpiece, lower_case),
            "t5": _train_t5,
        }
        if cache_dir is None:
            return learn[kind](_checked(texts), vocab_size)
        name = f"{kind}{'-lower' if lower_case else ''}-{vocab_size}-{_hash(texts)}"
        folder = Path(cache_dir).expanduser() / name
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
            try:
                learn[kind](_checked(texts), vocab_size).save(partial)
                partial.chmod(0o755)
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process has just put the same tokenizer there
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return cls.load(folder)


# Training


def _train_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = _merged_bytes(texts, vocab_size, [END_OF_TEXT])
    return Tokenizer(_Library(tokenizer.to_str()), {"bos": END_OF_TEXT, "eos": END_OF_TEXT}, {})


def _train_roberta(texts: list[str], vocab_size: int) -> Tokenizer:
    """The special tokens are where RoBERTa has them: all in front but the mask, which is the last of all."""
    tokenizer = _as_roberta(_merged_bytes(texts, vocab_size - 1, ["<s>", "<pad>", "</s>", "<unk>"]))
    backend = _Library(tokenizer.to_str())
    return Tokenizer(backend, _roles({}, backend, CONVENTIONS), {})


def _train_t5(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = _merged_bytes(texts, vocab_size - SENTINELS, ["<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([f"<extra_id_{n}>" for n in reversed(range(SENTINELS))])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:0 </s>:0", special_tokens=[("</s>", 1)]
    )
    backend = _Library(tokenizer.to_str())
    return Tokenizer(backend, _roles({}, backend, CONVENTIONS), {})


def _merged_bytes(texts: list[str], vocab_size: int, special: list[str]) -> tokenizers.Tokenizer:
    tokenizer = _byte_level(models.BPE(), add_prefix_space=False, trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def _train_wordpiece(lower_case: bool, texts: list[str], vocab_size: int) -> Tokenizer:
    """The library's own trainer of WordPiece gives other pieces in every process; its trainer of BPE does not.

    So pairs are merged in words that begin with a mark: what begins with it begins a word, and all else goes on in one.
    """
    mark = "\N{LOWER ONE EIGHTH BLOCK}"
    normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    counts = Counter("".join(normalizer.normalize_str(text) for text in texts))
    usual = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(usual[: min(1000, vocab_size // 4)])  # as many characters as BERT's vocabularies have

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    begin = pre_tokenizers.Metaspace(replacement=mark, prepend_scheme="always", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), begin])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=[mark, *alphabet],
        limit_alphabet=1 + len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    merged = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    pieces = [token[1:] if token.startswith(mark) else f"##{token}" for token, _ in merged if token != mark]
    pieces = dict.fromkeys([*BERT_TOKENS, *alphabet, *(f"##{c}" for c in alphabet), *pieces])
    vocab = "".join(f"{piece}\n" for piece in list(pieces)[:vocab_size]).encode()
    backend, usual = _from_wordpiece([vocab], {"do_lower_case": lower_case}, {})
    return Tokenizer(backend, _roles({}, backend, CONVENTIONS | usual), {})


# Files


def _build(contents: dict[str, bytes], files: dict[str, bytes], settings: dict[str, dict[str, Any]]) -> Tokenizer:
    """A tokenizer from its own files, if it has any, and from those of the settings beside them and what they say."""
    config = settings["config.json"] | settings["special_tokens_map.json"] | settings["tokenizer_config.json"]
    for setting in ("extra_ids", "offset"):
        if not 0 <= (count := config.get(setting) or 0) <= MOST_EXTRA:
            raise ValueError(f"{setting} is {count}, where 0 to {MOST_EXTRA} is expected")
    kind, (name, *_) = _class(settings), contents or ("",)
    if kind not in CLASSES or name == "tokenizer.json":
        read = READERS[name]
    else:
        read = CLASSES[kind].read
        if "tokenizer_class" not in settings["tokenizer_config.json"]:  # what is saved has to say it
            files["tokenizer_config.json"] = _json(settings["tokenizer_config.json"] | {"tokenizer_class": kind})
    if name == "tokenizer.json":
        contents = contents | {name: _followed(contents[name], kind, settings["tokenizer_config.json"])}
    added, named = _added(settings)
    backend, usual = read(list(contents.values()), config, added)
    more, size = {}, backend.vocab_size
    for token, has_flags in named:
        i = backend.id_of(token.content)
        if i is None:  # those that no vocabulary holds lie behind it
            i, size = size, size + 1
        known = backend.tokens.get(i)
        if known is None or has_flags and name != "tokenizer.json" and repr(known) != repr(token):
            more[i] = token
    if more:
        backend, usual = read(list(contents.values()), config, added | more)
    source, target = (config.get(side) if backend.languages else None for side in ("src_lang", "tgt_lang"))
    for code in filter(None, (source, target)):
        spm.language_id(backend.languages, code)
    tokenizer = Tokenizer(backend, _roles(settings, backend, CONVENTIONS | usual), files, (source, target or source))
    if name == "tokenizer.json":
        _warn_of_ends(tokenizer, settings["tokenizer_config.json"])
    return tokenizer


def _warn_of_ends(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """`add_bos_token` and `add_eos_token` are not followed beside a tokenizer.json, whose template decides, as in
    transformers 5: a warning says so where the two disagree."""
    for role, place in (("bos", 0), ("eos", -1)):
        asked, i = config.get(f"add_{role}_token"), getattr(tokenizer, f"{role}_id")
        if asked is None or i is None:
            continue
        frame = tokenizer.encode("a", template=True)
        added = bool(len(frame)) and frame.texts[place] < 0 and frame.ids[place] == i
        if asked != added:
            what = "adds it" if added else "does not add it"
            warnings.warn(
                f"tokenizer_config.json sets add_{role}_token to {json.dumps(asked)}, and the template of "
                f"tokenizer.json {what}: the template is followed, as by transformers",
                stacklevel=4,
            )


def _class(settings: dict[str, dict[str, Any]]) -> str | None:
    """The tokenizer's class in transformers, by which files tell how text is cut and ids are numbered."""
    named = [settings[file].get("tokenizer_class") for file in ("tokenizer_config.json", "config.json")]
    kind = next(filter(None, named), None) or MODEL_TYPES.get(settings["config.json"].get("model_type"))
    return kind and kind.removesuffix("Fast")


def _added(settings: dict[str, dict[str, Any]]) -> tuple[dict[int, AddedToken], list[tuple[AddedToken, bool]]]:
    """The tokens that files add at an id; and the special ones that they name, and whether they give their flags."""
    named: dict[str, tuple[AddedToken, bool]] = {}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        config = settings[file]
        lists = [config.get(f"{how}_special_tokens") or () for how in ("additional", "extra")]
        values = [value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)]
        for value in (
            *values,
            *(token for some in lists for token in (some.values() if isinstance(some, dict) else some)),
        ):
            token = _token(value, True, file)
            named.setdefault(token.content, (token, isinstance(value, dict) and len(value) > 1))
    added: dict[int, AddedToken] = {}
    for i, value in (settings["tokenizer_config.json"].get("added_tokens_decoder") or {}).items():
        token = _token(value, False, "tokenizer_config.json")
        token.special |= token.content in named
        added[_id(i, token.content, "tokenizer_config.json")] = token
    for content, i in settings["added_tokens.json"].items():
        i = _id(i, content, "added_tokens.json")
        added.setdefault(i, AddedToken(content, special=content in named, normalized=content not in named))
    known = {token.content for token in added.values()}
    return added, [one for content, one in named.items() if content not in known]


def _token(value: Any, special: bool, file: str) -> AddedToken:
    """A token as a file has it: a text, or an object with the text under `content`."""
    value = {"content": value} if isinstance(value, str) else value
    if not isinstance(value, dict) or not isinstance(value.get("content"), str) or not value["content"]:
        raise ValueError(f"{file} has {json_files.describe(value)} for a token, where a text is expected")
    json_files.check(value, dict.fromkeys(FLAGS, bool), file)
    flags = {flag: value[flag] for flag in FLAGS if value.get(flag) is not None}
    return AddedToken(value["content"], **{"special": special} | flags | ({"special": True} if special else {}))


def _id(i: Any, content: str, file: str) -> int:
    number = int(i) if isinstance(i, str) and i.isdecimal() and len(i) < 9 else i
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < spm.LARGEST:
        raise ValueError(f"{file}: the id of {json_files.excerpt(content)!r} is {json_files.describe(i)}")
    return number


def _roles(settings: dict[str, dict[str, Any]], backend: Any, usual: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The special tokens by role. A file that says null means that there is none."""
    roles: dict[str, str] = {}
    if backend.id_of("<mask>") is not None:  # RoBERTa and its kin: what frames a sequence is its begin and end
        usual = {**usual, "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>")}
    for role in ROLES:
        files = ("tokenizer_config.json", "special_tokens_map.json")
        named = [file for file in files if f"{role}_token" in settings.get(file, {})]
        i = settings.get("config.json", {}).get(f"{role}_token_id")
        if named:
            token = settings[named[0]][f"{role}_token"]
            token = token["content"] if isinstance(token, dict) else token
        elif i is not None:
            i = i[0] if isinstance(i, list) and i else i
            token = backend.token(i) if isinstance(i, int) and i >= 0 else None
        else:
            token = next((token for token in usual[role] if backend.id_of(token) is not None), None)
        if token is not None:
            roles[role] = token
    return roles


def _from_tokenizer_json(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[_Library, Usual]":
    tokenizer = tokenizers.Tokenizer.from_str(contents[0].decode())
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= spm.LARGEST:
        raise ValueError(f"its largest id is {largest}, and ids below {spm.LARGEST} are read")
    tokenizer.no_truncation()  # published files hold the lengths that someone once used
    tokenizer.no_padding()
    return _Library(_with_added(tokenizer, added).to_str()), {}


def _from_vocab_and_merges(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[_Library, Usual]":
    """Byte-level BPE; the special tokens of the vocabulary show whether it is RoBERTa's, DeBERTa's or GPT-2's."""
    vocab = spm.table_of(contents[0], "vocab.json")
    if all(token in vocab for token in ("<s>", "</s>", "<mask>")):
        return _from_roberta(contents, config, added)
    return (_from_deberta if all(token in vocab for token in BERT_TOKENS) else _from_gpt2)(contents, config, added)


def _from_gpt2(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[_Library, Usual]":
    """GPT-2's, whose only frame is what `add_bos_token` and `add_eos_token` ask for."""
    tokenizer = _byte_level_of(contents, config)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    _with_added(tokenizer, added)
    if config.get("add_bos_token") or config.get("add_eos_token"):
        tokenizer.post_processor = _ends(tokenizer, config)
    return _Library(tokenizer.to_str()), {}


def _from_roberta(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[_Library, Usual]":
    tokenizer = _byte_level_of(contents, config)
    _demand(tokenizer.get_vocab(), "<s>", "</s>")
    space, trim = config.get("add_prefix_space", False), config.get("trim_offsets", True)
    tokenizer = _as_roberta(tokenizer, add_prefix_space=space, trim_offsets=trim)
    return _Library(_with_added(tokenizer, added).to_str()), {}


def _from_deberta(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[_Library, Usual]":
    """DeBERTa's of the first version."""
    tokenizer = _byte_level_of(contents, config)
    vocab = tokenizer.get_vocab()
    _demand(vocab, "[CLS]", "[SEP]")
    tokenizer.post_processor = _frame("[CLS]", "[SEP]", vocab)
    tokenizer.add_special_tokens([*BERT_TOKENS[:-1], AddedToken("[MASK]", lstrip=True)])
    return _Library(_with_added(tokenizer, added).to_str()), {}


def _byte_level_of(contents: list[bytes], config: dict) -> tokenizers.Tokenizer:
    model = models.BPE(*_vocab_and_merges(contents))
    return _byte_level(model, add_prefix_space=config.get("add_prefix_space", False), trim_offsets=False)


def _ends(tokenizer: tokenizers.Tokenizer, config: dict) -> processors.TemplateProcessing:
    """The frame that `add_bos_token` and `add_eos_token` ask for."""
    names = {role: _content(config.get(f"{role}_token"), END_OF_TEXT) for role in ("bos", "eos")}
    first, last = (names[role] if config.get(f"add_{role}_token") else "" for role in ("bos", "eos"))
    around = lambda text, n: " ".join(filter(None, [first and f"{first}:{n}", f"{text}:{n}", last and f"{last}:{n}"]))
    ids = {token: tokenizer.token_to_id(token) for token in (first, last) if token}
    for token, i in ids.items():
        if i is None:
            raise ValueError(f"add_bos_token or add_eos_token asks for {token!r}, and the vocabulary has no such token")
    single, second = around("$A", 0), around("$B", 1)
    return processors.TemplateProcessing(single=single, pair=f"{single} {second}", special_tokens=list(ids.items()))


def _from_herbert(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[_Library, Usual]":
    """HerBERT's (Mroczkowski et al. 2021): BPE of the characters of BERT's words, whose last piece ends in </w>."""
    vocab, merges = _vocab_and_merges(contents)
    names = {"cls": "<s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    cls, sep, unk, pad, mask = (_content(config.get(f"{role}_token"), token) for role, token in names.items())
    _demand(vocab, cls, sep, unk)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=unk, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    tokenizer.add_special_tokens([token for token in (cls, pad, sep, unk, mask) if token in vocab])
    return _Library(_with_added(tokenizer, added).to_str()), {}


def _from_clip(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[_Library, Usual]":
    """CLIP's (Radford et al. 2021): byte-level BPE of small letters, whose words end in </w>."""
    vocab, merges = _vocab_and_merges(contents)
    names = {"bos": "<|startoftext|>", "eos": END_OF_TEXT, "unk": END_OF_TEXT, "pad": END_OF_TEXT}
    bos, eos, unk, pad = (_content(config.get(f"{role}_token"), token) for role, token in names.items())
    _demand(vocab, bos, eos, unk)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=unk, end_of_word_suffix="</w>"))
    space = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), space, normalizers.Lowercase()])
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    words = rf"<\|startoftext\|>|<\|endoftext\|>|{words}"
    split = pre_tokenizers.Split(tokenizers.Regex(words), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), *END_OF_WORD])
    tokenizer.post_processor = processors.RobertaProcessing(
        (eos, vocab[eos]), (bos, vocab[bos]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([token for token in dict.fromkeys((bos, eos, unk, pad)) if token in vocab])
    return _Library(_with_added(tokenizer, added).to_str()), {
        "bos": (bos,),
        "eos": (eos,),
        "unk": (unk,),
        "pad": (pad,),
    }


def _vocab_and_merges(contents: list[bytes]) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    lines = contents[1].decode().split("\n")
    lines = lines[1:] if lines[0].startswith("#version") else lines
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip()]
    return spm.table_of(contents[0], "vocab.json"), merges


def _demand(vocab: Mapping[str, int], *names: str) -> None:
    for token in names:
        if token not in vocab:
            raise ValueError(f"the vocabulary has no {token}, which every vocabulary of its class has")


def _as_roberta(
    tokenizer: tokenizers.Tokenizer, add_prefix_space: bool = False, trim_offsets: bool = False
) -> tokenizers.Tokenizer:
    """The special tokens and the frame of RoBERTa; a mask takes the space before it, and is added if there is none."""
    ids = tokenizer.get_vocab()
    tokenizer.add_special_tokens([token for token in ("<s>", "<pad>", "</s>", "<unk>") if token in ids])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=trim_offsets, add_prefix_space=add_prefix_space
    )
    return tokenizer


def _frame(cls: str, sep: str, vocab: Mapping[str, int]) -> processors.TemplateProcessing:
    """[CLS] a [SEP] b [SEP] in two segments, as in BERT; where it is </s> that separates, as in RoBERTa, it is
    <s> a </s></s> b </s> in one."""
    middle, second = (f"{sep}:0 {sep}:0", 0) if sep == "</s>" else (f"{sep}:0", 1)
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {middle} $B:{second} {sep}:{second}",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )


def _from_wordpiece(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[_Library, Usual]":
    """WordPiece as BERT's files have it (Devlin et al. 2019), or MPNet's, with the special tokens of RoBERTa."""
    vocab = _lines(contents[0])
    usual = {role: f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")}
    if "[CLS]" not in vocab and "<s>" in vocab:
        usual |= {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>"}
    unk, cls, sep, pad, mask = (_content(config.get(f"{role}_token"), token) for role, token in usual.items())
    for token in (unk, cls, sep):
        if token not in vocab:
            raise ValueError(f"the vocabulary has no {token}, which every WordPiece vocabulary has")
    lower = config.get("do_lower_case")
    if lower is None:
        lower, capital = True, next((word for word in vocab if word[:1] not in "[<" and word != word.lower()), None)
        if capital is not None:
            warnings.warn(
                f"vocab.txt has capitals, such as {capital!r}, and nothing sets do_lower_case: text is read as small "
                "letters, as by transformers. Set it to false in tokenizer_config.json if the model is cased.",
                stacklevel=2,
            )
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=lower,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = _frame(cls, sep, vocab)
    special = [token for token in (pad, unk, cls, sep) if token in vocab]
    special += [AddedToken(mask, lstrip=mask == "<mask>")] if mask in vocab else []
    tokenizer.add_special_tokens(special)
    return _Library(_with_added(tokenizer, added).to_str()), {}


def _lines(text: bytes) -> dict[str, int]:
    """The ids of a vocabulary with a token in each line: the number of the last line that has it, from 0.

    A line too many shifts all later ids, and one that is blank or there twice is a sign of that: a warning names it.
    """
    tokens = [line.rstrip("\r") for line in text.decode().split("\n")]
    while tokens and not tokens[-1]:
        tokens.pop()
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens) or "" in vocab:
        seen: dict[str, int] = {"": -1}
        number, first = next((i, seen[t]) for i, t in enumerate(tokens) if seen.setdefault(t, i) != i)
        what = "is blank" if first < 0 else f"repeats line {first + 1}, {json_files.excerpt(tokens[number])!r}"
        warnings.warn(
            f"vocab.txt: line {number + 1} {what}. An id is the number of a line: if this one does not belong there, "
            "all ids behind it are wrong by one",
            stacklevel=2,
        )
    return vocab


def _byte_level(model: models.Model, *, add_prefix_space: bool, trim_offsets: bool) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=add_prefix_space, trim_offsets=trim_offsets)
    return tokenizer


def _with_added(tokenizer: tokenizers.Tokenizer, added: spm.Added) -> tokenizers.Tokenizer:
    """Adds tokens, those that the vocabulary lacks at the ids that they must have.

    Raises:
        ValueError: one would have another id.
    """
    tokens = dict(sorted(added.items()))
    tokenizer.add_tokens(list(tokens.values()))
    for i, token in tokens.items():
        if (actual := tokenizer.token_to_id(token.content)) != i:
            raise ValueError(
                f"the added token {token.content!r} cannot have id {i}, given the vocabulary's size: it has {actual}"
            )
    return tokenizer


def _content(token: Any, default: str) -> str:
    """A special token in tokenizer_config.json is a string, or an object with its text under `content`."""
    return (token.get("content") if isinstance(token, dict) else token) or default


READERS = {
    "tokenizer.json": _from_tokenizer_json,
    "source.spm": spm.marian,
    "vocab.json": _from_vocab_and_merges,
    "vocab.txt": _from_wordpiece,
    "spiece.model": spm.spiece,
    "spm.model": spm.published,
    "sentencepiece.bpe.model": spm.fairseq,
    "tokenizer.model": spm.published,
}
"""What makes a tokenizer of the contents of a file and those that belong to it, the settings and the added tokens."""


class _Class(NamedTuple):
    formats: tuple[tuple[str, ...], ...]
    read: Callable[..., tuple[Any, Usual]]


def _classes(formats: tuple[tuple[str, ...], ...], read: Callable[..., Any], *names: str) -> dict[str, _Class]:
    return {f"{name}Tokenizer": _Class(formats, read) for name in names}


_WORDS, _PAIR, _MARIAN = (("vocab.txt",),), (("vocab.json", "merges.txt"),), FORMATS[1:3]
_MODEL = tuple(names for names in FORMATS if names[0].endswith(".model"))

CLASSES = {
    **_classes(_WORDS, _from_wordpiece, "Bert", "DistilBert", "Electra", "MPNet", "MobileBert", "SqueezeBert"),
    **_classes(_WORDS, _from_wordpiece, "ConvBert", "RetriBert", "LayoutLM", "DPRContextEncoder", "DPRQuestionEncoder"),
    **_classes(_PAIR, _from_gpt2, "GPT2"),
    **_classes(_PAIR, _from_roberta, "Roberta", "Bart", "Longformer", "LED", "Mvp"),
    **_classes(_PAIR, _from_deberta, "Deberta"),
    **_classes(_PAIR, _from_herbert, "Herbert"),
    **_classes(_PAIR, _from_clip, "CLIP"),
    **_classes(_MODEL, spm.t5, "T5", "MT5"),
    **_classes(_MODEL, spm.albert, "Albert"),
    **_classes(_MODEL, spm.deberta, "DebertaV2"),
    **_classes(_MODEL, spm.xlnet, "XLNet"),
    **_classes(_MODEL, spm.llama, "Llama"),
    **_classes(_MODEL, spm.fairseq, "XLMRoberta"),
    **_classes(_MODEL, spm.camembert, "Camembert"),
    **_classes((("sentencepiece.bpe.model", "dict.txt"),), spm.bartpho, "Bartpho"),
    **_classes(_MODEL, spm.pegasus, "Pegasus"),
    **_classes(_MODEL, spm.mbart, "MBart"),
    **_classes(_MODEL, spm.mbart_50, "MBart50"),
    **_classes(_MARIAN, spm.marian, "Marian"),
    **_classes(((),), utf8.byt5, "ByT5"),
}
"""How text is cut and ids are numbered, by the class that settings name: the files it is read from, and what reads
them. A tokenizer.json says itself how it cuts, whatever its class."""

END_OF_WORD = (decoders.Replace(tokenizers.Regex("</w>$"), ""), decoders.Replace("</w>", " "))
"""How CLIP's pieces become text: </w> ends a word."""

GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes that say nothing of how text is cut: the files do, and no setting wins over them."""

MODEL_TYPES = {
    "pegasus": "PegasusTokenizer",
    "pegasus_x": "PegasusTokenizer",
    "bigbird_pegasus": "PegasusTokenizer",
    "mbart": "MBartTokenizer",
    "byt5": "ByT5Tokenizer",
    "camembert": "CamembertTokenizer",
}
"""The class of the tokenizer where config.json has only the model's type, as in folders of before 2021."""


# Settings that win over a tokenizer.json


def _followed(text: bytes, kind: str | None, config: Mapping[str, Any]) -> bytes:
    """The tokenizer.json with the settings of tokenizer_config.json that say how text is cut, which win over it."""
    wanted = {name: config[name] for name in CUTTING if config.get(name) is not None}
    follow = FOLLOWED.get(kind, _follow_words if kind in CLASSES and CLASSES[kind].formats is _WORDS else None)
    if follow is None and wanted and (kind is None or kind in CLASSES):
        follow = _follow_files
    if follow is None:
        return text
    data = json_files.parse(text, "tokenizer.json")
    before = json.dumps(data)
    follow(data, wanted)
    return text if json.dumps(data) == before else _json(data)


def _follow_files(data: dict[str, Any], config: Mapping[str, Any]) -> None:
    """BERT's settings of how words are normalised, and that a byte-level text begins with a space."""
    names = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
    for step in _steps(data.get("normalizer"), "normalizers"):
        if step.get("type") == "BertNormalizer":
            step |= {names.get(name, name): config[name] for name in (*names, "strip_accents") if name in config}
    if "add_prefix_space" in config:
        steps = _steps(data.get("pre_tokenizer"), "pretokenizers") + _steps(data.get("post_processor"), "processors")
        for step in steps:
            if step.get("type") in ("ByteLevel", "RobertaProcessing"):
                step["add_prefix_space"] = config["add_prefix_space"]


def _follow_words(data: dict[str, Any], config: Mapping[str, Any]) -> None:
    """BERT's settings with the defaults of its class, which win over the file too. A warning says where they do."""
    defaults = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    said, before = {**defaults, **config}, json.dumps(data.get("normalizer"))
    _follow_files(data, config)
    followed = json.dumps(data.get("normalizer"))
    _follow_files(data, said)
    if json.dumps(data.get("normalizer")) != followed:
        silent = ", ".join(name for name in defaults if name not in config)
        warnings.warn(
            f"tokenizer.json has the normalizer {json_files.excerpt(before, 200)}, and tokenizer_config.json sets no "
            f"{silent}: the defaults of its class are followed, as by transformers. Set them to what the model was "
            "trained with",
            stacklevel=5,
        )


def _follow_albert(data: dict[str, Any], config: Mapping[str, Any]) -> None:
    """ALBERT's: small letters, and accents."""
    steps = _steps(data.get("normalizer"), "normalizers")
    types = [step.get("type") for step in steps]
    lower = config.get("do_lower_case", "Lowercase" in types)
    keep = config.get("keep_accents", "StripAccents" not in types)
    rest = [step for step in steps if step.get("type") not in ("NFKD", "StripAccents", "Lowercase")]
    at = next((i for i, step in enumerate(rest) if step.get("type") != "Replace"), len(rest))
    middle = [{"type": name} for name in (() if keep else ("NFKD", "StripAccents"))] + [{"type": "Lowercase"}] * lower
    data["normalizer"] = {"type": "Sequence", "normalizers": [*rest[:at], *middle, *rest[at:]]}


def _follow_deberta(data: dict[str, Any], config: Mapping[str, Any]) -> None:
    """DeBERTa's from the second version on: small letters, and punctuation marks by themselves."""
    for name, part, inside, step in (
        ("do_lower_case", "normalizer", "normalizers", {"type": "Lowercase"}),
        ("split_by_punct", "pre_tokenizer", "pretokenizers", {"type": "Punctuation", "behavior": "Isolated"}),
    ):
        if name in config:
            rest = [other for other in _steps(data.get(part), inside) if other.get("type") != step["type"]]
            data[part] = {"type": "Sequence", inside: [step] * config[name] + rest}


def _follow_clip(data: dict[str, Any], config: Mapping[str, Any]) -> None:
    """CLIP's: its published decoder leaves the </w> that ends a word in the text."""
    steps = _steps(data.get("decoder"), "decoders")
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        data["decoder"] = {
            "type": "Sequence",
            "decoders": steps + [json.loads(step.__getstate__()) for step in END_OF_WORD],
        }


def _steps(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer.json, which is one step or a sequence of them."""
    return part[inside] if part and part.get("type") == "Sequence" else [part] if part else []


FOLLOWED = {
    "AlbertTokenizer": _follow_albert,
    "DebertaV2Tokenizer": _follow_deberta,
    "CLIPTokenizer": _follow_clip,
}
"""What follows settings, by class, where they mean something else than BERT's or GPT-2's."""

# The library


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """Bare exceptions of the library, and panics, as a ValueError that names it."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not _is_panic(error):
            raise
        message = json_files.excerpt(error, 400)
        raise ValueError(f"the tokenizers library failed, as a damaged tokenizer.json makes it: {message}") from error


def _is_panic(error: BaseException) -> bool:
    """Whether it is a panic of Rust's, which is no Exception."""
    return type(error).__name__ == "PanicException"


class _Library:
    """The `tokenizers` library, from the text of a tokenizer.json."""

    has_template = True

    def __init__(self, text: str) -> None:
        self.serialized = text.encode()
        self._special = tokenizers.Tokenizer.from_str(text)
        self._plain = tokenizers.Tokenizer.from_str(text)
        self._plain.encode_special_tokens = True  # the library's name for: as ordinary text
        self.vocab_size = 1 + max(self._special.get_vocab(with_added_tokens=True).values())
        self.tokens = self._special.get_added_tokens_decoder()
        special = {i: token.content for i, token in self.tokens.items() if token.special}
        self.languages = {token: i for i, token in special.items() if LANGUAGE_CODE.fullmatch(token)}
        with contextlib.suppress(Exception):  # a panic, which is none, shows a damaged file here and not in use
            self._special.encode("a", "é")
        byte_level = isinstance(self._special.decoder, decoders.ByteLevel)
        self.kind = ("byte-level " if byte_level else "") + type(self._special.model).__name__.lower()
        self._widths = self._byte_widths() if byte_level else None

    def _byte_widths(self) -> np.ndarray:
        """int32[vocabulary]: the bytes of each token. A byte-level vocabulary spells every byte as one character."""
        widths = np.zeros(self.vocab_size, np.int32)
        for token, i in self._special.get_vocab(with_added_tokens=True).items():
            widths[i] = len(token.encode()) if i in self.tokens else len(token)
        return widths

    @_named_errors()
    def encode(
        self,
        texts: list[str],
        pairs: list[str] | None,
        special: bool,
        template: bool,
        target: bool,
        language: str | None,
    ) -> list[Encoding]:
        tokenizer = self._special if special else self._plain
        batch = texts if pairs is None else list(zip(texts, pairs))
        encodings = [
            Encoding(
                ids=np.array(e.ids, np.int32),
                offsets=np.array(e.offsets, np.int32).reshape(-1, 2),
                texts=_numbers(e.sequence_ids),
                segments=np.array(e.type_ids if template else [0] * len(e), np.int32),
                words=_numbers(e.word_ids),
            )
            for e in tokenizer.encode_batch(batch, add_special_tokens=template)
        ]
        if template and language is not None:  # in the place of the one that the file's template says
            for e in encodings:
                said = (e.texts < 0) & np.isin(e.ids, list(self.languages.values()))
                e.ids[said] = self.languages[language]
        return encodings

    @_named_errors()
    def encode_bytes(self, texts: list[str], special: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        alone = functools.partial(self.encode, pairs=None, special=special, template=False, target=False, language=None)
        if self._widths is None:
            return [(e.ids, bytes_by_offsets(text, e)) for text, e in zip(texts, alone(texts))]
        pairs, tokenizer = [], self._special if special else self._plain
        for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False)):
            ids = np.array(encoding.ids, np.int32)
            counts = self._widths[ids]
            if counts.sum() != len(
                text.encode()
            ):  # something was added, dropped or rewritten, such as a space in front
                counts = bytes_by_offsets(text, alone([text])[0])
            pairs.append((ids, counts))
        return pairs

    @_named_errors()
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

    def lower_cased(self) -> "_Library":
        tokenizer = tokenizers.Tokenizer.from_str(self.serialized.decode())
        others = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
        return _Library(tokenizer.to_str())

    def __reduce__(self) -> tuple:
        return _Library, (self.serialized.decode(),)


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


def _numbers(values: list[int | None]) -> np.ndarray:
    """int32[n], with -1 for None."""
    return np.array([-1 if value is None else value for value in values], np.int32)


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"tokenizers 1, {len(texts)} texts".encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:16]


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
