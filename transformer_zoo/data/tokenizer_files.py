"""The files of a tokenizer in every layout that transformers has: which class reads which, and what the settings beside
them change."""

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from transformer_zoo import json_files
from transformer_zoo.data import spm, utf8
from transformer_zoo.data.spm import Usual
from transformer_zoo.data.tokenizer_library import Library, as_json

END_OF_TEXT = "<|endoftext|>"
"""The special token of a byte-level BPE trained here, as in GPT-2: it stands before and after every document."""

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

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

FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
"""Settings of an added token."""

CUTTING = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "keep_accents", "split_by_punct",
)  # fmt: skip
"""Settings of how text is cut."""


def class_of(settings: dict[str, dict[str, Any]]) -> str | None:
    """The tokenizer's class in transformers, by which files tell how text is cut and ids are numbered."""
    named = [settings[file].get("tokenizer_class") for file in ("tokenizer_config.json", "config.json")]
    kind = next(filter(None, named), None) or MODEL_TYPES.get(settings["config.json"].get("model_type"))
    return kind and kind.removesuffix("Fast")


def added_tokens(settings: dict[str, dict[str, Any]]) -> tuple[dict[int, AddedToken], list[tuple[AddedToken, bool]]]:
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


def _from_tokenizer_json(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
    tokenizer = tokenizers.Tokenizer.from_str(contents[0].decode())
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= spm.LARGEST:
        raise ValueError(f"its largest id is {largest}, and ids below {spm.LARGEST} are read")
    tokenizer.no_truncation()  # published files hold the lengths that someone once used
    tokenizer.no_padding()
    return Library(_with_added(tokenizer, added).to_str()), {}


def _from_vocab_and_merges(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
    """Byte-level BPE; the special tokens of the vocabulary show whether it is RoBERTa's, DeBERTa's or GPT-2's."""
    vocab = spm.table_of(contents[0], "vocab.json")
    if all(token in vocab for token in ("<s>", "</s>", "<mask>")):
        return _from_roberta(contents, config, added)
    return (_from_deberta if all(token in vocab for token in BERT_TOKENS) else _from_gpt2)(contents, config, added)


def _from_gpt2(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
    """GPT-2's, whose only frame is what `add_bos_token` and `add_eos_token` ask for."""
    tokenizer = _byte_level_of(contents, config)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    _with_added(tokenizer, added)
    if config.get("add_bos_token") or config.get("add_eos_token"):
        tokenizer.post_processor = _ends(tokenizer, config)
    return Library(tokenizer.to_str()), {}


def _from_roberta(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
    tokenizer = _byte_level_of(contents, config)
    _demand(tokenizer.get_vocab(), "<s>", "</s>")
    space, trim = config.get("add_prefix_space", False), config.get("trim_offsets", True)
    tokenizer = as_roberta(tokenizer, add_prefix_space=space, trim_offsets=trim)
    return Library(_with_added(tokenizer, added).to_str()), {}


def _from_deberta(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
    """DeBERTa's of the first version."""
    tokenizer = _byte_level_of(contents, config)
    vocab = tokenizer.get_vocab()
    _demand(vocab, "[CLS]", "[SEP]")
    tokenizer.post_processor = _frame("[CLS]", "[SEP]", vocab)
    tokenizer.add_special_tokens([*BERT_TOKENS[:-1], AddedToken("[MASK]", lstrip=True)])
    return Library(_with_added(tokenizer, added).to_str()), {}


def _byte_level_of(contents: list[bytes], config: dict) -> tokenizers.Tokenizer:
    model = models.BPE(*_vocab_and_merges(contents))
    return byte_level(model, add_prefix_space=config.get("add_prefix_space", False), trim_offsets=False)


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


def _from_herbert(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
    """HerBERT's (Mroczkowski et al. 2021): BPE of the characters of BERT's words, whose last piece ends in </w>."""
    vocab, merges = _vocab_and_merges(contents)
    names = {"cls": "<s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    cls, sep, unk, pad, mask = (_content(config.get(f"{role}_token"), token) for role, token in names.items())
    _demand(vocab, cls, sep, unk)
    tokenizer = _word_bpe(models.BPE(vocab, merges, unk_token=unk, end_of_word_suffix="</w>"), lower=False)
    tokenizer.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))
    tokenizer.add_special_tokens([token for token in (cls, pad, sep, unk, mask) if token in vocab])
    return Library(_with_added(tokenizer, added).to_str()), {}


def _from_openai_gpt(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
    """GPT's of the first version (Radford et al. 2018): BPE of BERT's words in small letters, without a frame."""
    vocab, merges = _vocab_and_merges(contents)
    unk = _content(config.get("unk_token"), "<unk>")
    _demand(vocab, unk)
    tokenizer = _word_bpe(models.BPE(vocab, merges, unk_token=unk, end_of_word_suffix="</w>"), lower=True)
    tokenizer.add_special_tokens([unk])
    return Library(_with_added(tokenizer, added).to_str()), {}


def _word_bpe(model: models.BPE, lower: bool) -> tokenizers.Tokenizer:
    """A BPE of the characters of BERT's words."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=None if lower else False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return tokenizer


def _from_clip(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
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
    return Library(_with_added(tokenizer, added).to_str()), {
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


def as_roberta(
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


def from_wordpiece(contents: list[bytes], config: dict, added: spm.Added) -> "tuple[Library, Usual]":
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
    return Library(_with_added(tokenizer, added).to_str()), {}


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


def byte_level(model: models.Model, *, add_prefix_space: bool, trim_offsets: bool) -> tokenizers.Tokenizer:
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
    "vocab.txt": from_wordpiece,
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


_MODEL = tuple(names for names in FORMATS if names[0].endswith(".model"))


_WORDS, _PAIR, _MARIAN = (("vocab.txt",),), (("vocab.json", "merges.txt"),), FORMATS[1:3]

CLASSES = {
    **_classes(_WORDS, from_wordpiece, "Bert", "DistilBert", "Electra", "MPNet", "MobileBert", "SqueezeBert"),
    **_classes(_WORDS, from_wordpiece, "ConvBert", "RetriBert", "LayoutLM", "DPRContextEncoder", "DPRQuestionEncoder"),
    **_classes(_PAIR, _from_gpt2, "GPT2"),
    **_classes(_PAIR, _from_roberta, "Roberta", "Bart", "Longformer", "LED", "Mvp"),
    **_classes(_PAIR, _from_deberta, "Deberta"),
    **_classes(_PAIR, _from_openai_gpt, "OpenAIGPT"),
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
    "openai-gpt": "OpenAIGPTTokenizer",
}
"""The class of the tokenizer where config.json has only the model's type, as in folders of before 2021."""


def followed(text: bytes, kind: str | None, config: Mapping[str, Any]) -> bytes:
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
    return text if json.dumps(data) == before else as_json(data)


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


def _follow_space(data: dict[str, Any], config: Mapping[str, Any], without: str = "never") -> None:
    """Whether a word that no space precedes begins with the mark of one. For T5, mBART, PEGASUS and XLNet it always
    does, whatever their settings say.

    Args:
        without: the scheme of the library for a setting that is off.
    """
    for step in _steps(data.get("pre_tokenizer"), "pretokenizers") + _steps(data.get("decoder"), "decoders"):
        if step.get("type") == "Metaspace" and "add_prefix_space" in config:
            step["prepend_scheme"] = "always" if config["add_prefix_space"] else without
            step.pop("add_prefix_space", None)  # an older name of the scheme


def _follow_albert(data: dict[str, Any], config: Mapping[str, Any]) -> None:
    """ALBERT's: small letters, and accents."""
    _follow_space(data, config)
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
    _follow_space(data, config, without="first")
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
    **dict.fromkeys(("XLMRobertaTokenizer", "CamembertTokenizer"), _follow_space),
    "AlbertTokenizer": _follow_albert,
    "DebertaV2Tokenizer": _follow_deberta,
    "CLIPTokenizer": _follow_clip,
}
"""What follows settings, by class, where they mean something else than BERT's or GPT-2's."""
