"""Text to token ids and back, with the place of every token in the text.

One class over two libraries: `tokenizers` for byte-level BPE and WordPiece in every file layout, and `sentencepiece`
(`spm`) for its own models, whose segmentation no other library reproduces exactly; and over bytes (`utf8`), which need
neither.

Text is text: where a document happens to contain `<|endoftext|>`, those are thirteen ordinary characters, and only
`special=True` reads them as the special token.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

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
        special: bool = False,
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
        special: bool = False,
        template: bool = False,
        target: bool = False,
        language: str | None = None,
    ) -> list[Encoding]:
        """The tokens of some texts, cut on all cores.

        Args:
            texts: the texts, or the first of each pair.
            pairs: the second text of each pair; its tokens follow those of the first.
            special: read special tokens where the text spells them out; otherwise they are ordinary characters.
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
        files = {name: (folder / name).read_bytes() for name in SETTINGS if (folder / name).is_file()}
        try:
            settings = {name: json.loads(files.get(name, b"{}")) for name in SETTINGS}
            model_config = folder / "config.json"
            settings["config.json"] = json.loads(model_config.read_bytes()) if model_config.is_file() else {}
        except ValueError as error:
            raise ValueError(f"the settings of the tokenizer in {folder} are not JSON: {error}") from None
        if _class(settings) in WITHOUT_FILES:
            names = names or [()]
        if not names:
            formats = ", ".join(" with ".join(names) for names in FORMATS)
            alone = (folder / "vocab.json").is_file() and not (folder / "merges.txt").is_file()
            raise FileNotFoundError(
                f"{path} is no tokenizer: it must be, or be a folder that holds, one of {formats}"
                + (". There is a vocab.json, and without its merges.txt no text can be cut by it" if alone else "")
            )
        contents = {name: (folder / name).read_bytes() for name in names[0]}
        try:
            return _build(contents, files, settings)
        except Exception as error:  # the libraries raise bare Exceptions
            file = folder / (names[0] or ("tokenizer_config.json",))[0]
            raise ValueError(f"{file} is not a tokenizer that can be read: {error}") from error

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
    added = {int(i): dict(token) for i, token in config.get("added_tokens_decoder", {}).items()}
    added |= {i: {"content": token} for token, i in settings["added_tokens.json"].items() if i not in added}
    name, kind = next(iter(contents), ""), _class(settings)
    if kind in CLASSES and (not name or name.endswith(".model")):
        read = CLASSES[kind]
        if "tokenizer_class" not in settings["tokenizer_config.json"]:  # what is saved has to say it
            files["tokenizer_config.json"] = _json(settings["tokenizer_config.json"] | {"tokenizer_class": kind})
    else:
        read = READERS[name]
    backend, usual = read(list(contents.values()), config, added)
    source, target = (config.get(side) if backend.languages else None for side in ("src_lang", "tgt_lang"))
    for code in filter(None, (source, target)):
        spm.language_id(backend.languages, code)
    roles = _roles(settings, backend, CONVENTIONS | usual)
    return Tokenizer(backend, roles, contents | files, (source, target or source))


def _class(settings: dict[str, dict[str, Any]]) -> str | None:
    """The tokenizer's class in transformers, by which files tell how its ids are numbered."""
    named = [settings[file].get("tokenizer_class") for file in ("tokenizer_config.json", "config.json")]
    kind = next(filter(None, named), None) or MODEL_TYPES.get(settings["config.json"].get("model_type"))
    return kind and kind.removesuffix("Fast")


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
    more = [config.get(f"{how}_special_tokens") or () for how in ("additional", "extra")]
    more = [_content(token, "") for tokens in more if not isinstance(tokens, dict) for token in tokens]
    tokenizer.add_special_tokens([token for token in more if tokenizer.token_to_id(token) is not None])
    tokenizer.no_truncation()  # published files hold the lengths that someone once used
    tokenizer.no_padding()
    return _Library(tokenizer.to_str()), {}


def _from_vocab_and_merges(contents: list[bytes], config: dict, added: dict) -> "tuple[_Library, Usual]":
    """Byte-level BPE as GPT-2's files have it, or RoBERTa's or DeBERTa's, which frame a sequence."""
    vocab = json.loads(contents[0])
    lines = contents[1].decode().split("\n")
    lines = lines[1:] if lines[0].startswith("#version") else lines
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip()]
    space = config.get("add_prefix_space", False)
    tokenizer = _byte_level(models.BPE(vocab, merges), add_prefix_space=space, trim_offsets=False)
    if all(token in vocab for token in ("<s>", "</s>", "<mask>")):
        tokenizer = _as_roberta(tokenizer, add_prefix_space=space)
    elif all(token in vocab for token in BERT_TOKENS):  # DeBERTa's
        tokenizer.post_processor = _frame("[CLS]", "[SEP]", vocab)
        tokenizer.add_special_tokens([*BERT_TOKENS[:-1], AddedToken("[MASK]", lstrip=True)])
    elif END_OF_TEXT in vocab:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return _Library(_with_added(tokenizer, added).to_str()), {}


def _as_roberta(tokenizer: tokenizers.Tokenizer, add_prefix_space: bool = False) -> tokenizers.Tokenizer:
    """The special tokens and the frame of RoBERTa; a mask takes the space before it, and is added if there is none."""
    ids = tokenizer.get_vocab()
    tokenizer.add_special_tokens([token for token in ("<s>", "<pad>", "</s>", "<unk>") if token in ids])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=False, add_prefix_space=add_prefix_space
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


def _from_wordpiece(contents: list[bytes], config: dict, added: dict) -> "tuple[_Library, Usual]":
    """WordPiece as BERT's files have it (Devlin et al. 2019), or MPNet's, with the special tokens of RoBERTa."""
    lines = contents[0].decode().split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    vocab = {token.rstrip("\r"): i for i, token in enumerate(lines)}
    usual = {role: f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")}
    if "[CLS]" not in vocab and "<s>" in vocab:
        usual |= {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>"}
    unk, cls, sep, pad, mask = (_content(config.get(f"{role}_token"), token) for role, token in usual.items())
    for token in (unk, cls, sep):
        if token not in vocab:
            raise ValueError(f"the vocabulary has no {token}, which every WordPiece vocabulary has")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),  # by default also for a vocabulary with capitals, as its library
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = _frame(cls, sep, vocab)
    special = [token for token in (pad, unk, cls, sep) if token in vocab]
    special += [AddedToken(mask, lstrip=mask == "<mask>")] if mask in vocab else []
    tokenizer.add_special_tokens(special)
    return _Library(_with_added(tokenizer, added).to_str()), {}


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

CLASSES = {
    "PegasusTokenizer": spm.pegasus,
    "MBartTokenizer": spm.mbart,
    "MBart50Tokenizer": spm.mbart_50,
    "ByT5Tokenizer": utf8.byt5,
}
"""The same for classes whose ids follow from no file."""

WITHOUT_FILES = ("ByT5Tokenizer",)

MODEL_TYPES = {
    "pegasus": "PegasusTokenizer",
    "pegasus_x": "PegasusTokenizer",
    "bigbird_pegasus": "PegasusTokenizer",
    "mbart": "MBartTokenizer",
    "byt5": "ByT5Tokenizer",
}
"""The class of the tokenizer where config.json has only the model's type, as in folders of before 2021."""


# The library


class _Library:
    """The `tokenizers` library, from the text of a tokenizer.json."""

    def __init__(self, text: str) -> None:
        self.serialized = text.encode()
        self._special = tokenizers.Tokenizer.from_str(text)
        self._plain = tokenizers.Tokenizer.from_str(text)
        self._plain.encode_special_tokens = True  # the library's name for: as ordinary text
        self.vocab_size = 1 + max(self._special.get_vocab(with_added_tokens=True).values())
        special = {i: token.content for i, token in self._special.get_added_tokens_decoder().items() if token.special}
        self.languages = {token: i for i, token in special.items() if LANGUAGE_CODE.fullmatch(token)}
        byte_level = isinstance(self._special.decoder, decoders.ByteLevel)
        self.kind = ("byte-level " if byte_level else "") + type(self._special.model).__name__.lower()
        self._widths = self._byte_widths() if byte_level else None

    def _byte_widths(self) -> np.ndarray:
        """int32[vocabulary]: the bytes of each token. A byte-level vocabulary spells every byte as one character."""
        widths = np.zeros(self.vocab_size, np.int32)
        for token, i in self._special.get_vocab(with_added_tokens=True).items():
            widths[i] = len(token)
        return widths

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

    def encode_bytes(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        if self._widths is None:
            return [(e.ids, bytes_by_offsets(text, e)) for text, e in zip(texts, self._encode_plain(texts))]
        pairs = []
        for text, encoding in zip(texts, self._plain.encode_batch_fast(texts, add_special_tokens=False)):
            ids = np.array(encoding.ids, np.int32)
            counts = self._widths[ids]
            if counts.sum() != len(
                text.encode()
            ):  # something was added, dropped or rewritten, such as a space in front
                counts = bytes_by_offsets(text, self._encode_plain([text])[0])
            pairs.append((ids, counts))
        return pairs

    def _encode_plain(self, texts: list[str]) -> list[Encoding]:
        return self.encode(texts, None, special=False, template=False, target=False, language=None)

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
