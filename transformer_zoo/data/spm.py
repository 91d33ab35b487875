"""SentencePiece models, and how the families that publish them number their pieces.

A `.model` file holds pieces and their ids. What no file holds is which ids a family's models know them by, and which
tokens stand beside them: each function below that makes a tokenizer says it of one convention.
"""

import dataclasses
import difflib
import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from tokenizers import AddedToken, normalizers, pre_tokenizers

from transformer_zoo import json_files
from transformer_zoo.data.encoding import LANGUAGE, Cutter, Frame, Tokens, joined, one

Config = Mapping[str, Any]
"""The settings of tokenizer_config.json and, where it is silent, of config.json."""

Added = Mapping[int, AddedToken]
"""Tokens besides those of a vocabulary, and those of the vocabulary that are whole, by id."""

Usual = dict[str, tuple[str, ...]]
"""Names by which the special token of a role is known."""

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How a space is written in a piece."""

LARGEST = 2**24
"""More than any id: sixty times the largest vocabularies."""

WHITE_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])
"""bool[code points]: which are white space; none behind them is."""

MBART = (
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX", "kk_KZ",
    "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
)  # fmt: skip
"""The languages of mBART, in the order of their ids (Liu et al. 2020, table 1)."""

MBART_50 = (
    *MBART,
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK", "ml_IN", "mn_MN", "mr_IN",
    "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN", "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES",
    "sl_SI",
)  # fmt: skip
"""Those of mBART-50 (Tang et al. 2020, table 1)."""

PUNCTUATION = pre_tokenizers.Punctuation("isolated")
"""What divides a text at its punctuation marks, for `split_by_punct`."""

CODE = re.compile(r">>([^\s<>]+)<<")
"""How Marian's models with several target languages are told which is wanted, at the beginning of the source."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewriting:
    """How a text is rewritten before a model cuts it, as ALBERT's and DeBERTa's tokenizers do."""

    quotes: bool = False
    """Quotation marks of TeX become plain ones."""
    accents: bool = True
    """Accents are kept; otherwise characters are decomposed (NFKD), and the marks are left out."""
    lower: bool = False
    """Capitals become small letters."""

    def __call__(self, text: str) -> tuple[str, np.ndarray]:
        """The text rewritten, and int32[n, 2]: the span in the text of each of its characters."""
        parts, spans = [], []
        for match in re.finditer("``|''|." if self.quotes else ".", text, re.DOTALL):
            part = '"' if len(match[0]) == 2 else match[0]
            if not self.accents:
                part = "".join(c for c in unicodedata.normalize("NFKD", part) if unicodedata.category(c)[0] != "M")
            parts.append(part.lower() if self.lower else part)
            spans += [match.span()] * len(parts[-1])
        return "".join(parts), np.array(spans, np.int32).reshape(-1, 2)

    @property
    def normalizer(self) -> normalizers.Normalizer:
        """The same for the library that finds whole tokens in a text."""
        steps = [normalizers.Replace(mark, '"') for mark in ("``", "''") if self.quotes]
        steps += [] if self.accents else [normalizers.NFKD(), normalizers.StripAccents()]
        return normalizers.Sequence(steps + [normalizers.Lowercase()] * self.lower)


class SentencePiece(Cutter):
    """The `sentencepiece` library, from the bytes of a model, and tokens that the model does not hold.

    The model's control pieces and the one for what is unknown are whole and special.

    Args:
        model: the file.
        outer: the id of each of the model's pieces; -1 where it has none. None: the model's own.
        extra: the tokens besides, and those of the model's pieces that are whole, by id.
        rewriting: how a text is rewritten before it is cut.
        punctuation: each punctuation mark, and each stretch between them, is cut by itself.
        trim: the span of a token does not hold the space before it.
        frame, languages, language: as in `Cutter`.

    Raises:
        ValueError: a token besides has the id of a piece that is spelt otherwise.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        outer: Sequence[int] | None = None,
        extra: Added | None = None,
        *,
        rewriting: Rewriting | None = None,
        punctuation: bool = False,
        trim: bool = True,
        frame: Frame | None = None,
        languages: Mapping[str, int] | None = None,
        language: str | None = None,
    ) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self.processor.get_piece_size()
        outer, extra = list(range(size) if outer is None else outer), dict(extra or {})
        settings = {"rewriting": rewriting, "punctuation": punctuation, "trim": trim}
        settings |= {"frame": frame, "languages": languages, "language": language}
        self._arguments = (model, outer, extra), settings
        self._rewriting, self._punctuation, self._trim = rewriting, punctuation, trim
        self._outer = np.array(outer, np.int32)
        self._inner = {i: place for place, i in enumerate(outer) if i >= 0}
        for i, token in extra.items():
            if i in self._inner and (piece := self.processor.id_to_piece(self._inner[i])) != token.content:
                raise ValueError(f"the added token {token.content!r} cannot have id {i}, which is {piece!r}")
        is_special = lambda k: self.processor.is_control(k) or self.processor.is_unknown(k)
        tokens = {
            i: special_token(self.processor.id_to_piece(k)) for i, k in self._inner.items() if is_special(k)
        } | extra
        super().__init__(tokens, frame, languages, language, rewriting and rewriting.normalizer)
        self.vocab_size = 1 + max(*self._inner, *extra)

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """bool[pieces]: whether a piece begins a word."""
        pieces = self.processor.id_to_piece(list(range(len(self._outer))))
        return np.array([piece.startswith(SPACE) for piece in pieces])

    def cut(self, text: str) -> Tokens:
        if not self._punctuation:
            return self._cut(text)
        parts, words = [self._cut("")], 0
        for _, (start, stop) in PUNCTUATION.pre_tokenize_str(text.rstrip()):
            found = [(start, self._cut(text[start:stop]))]
            if text[stop - 1].isspace():  # a space before a mark is a piece, which the model alone leaves out
                found.append((stop - 1, one(int(self._outer[self.processor.piece_to_id(SPACE)]), 1)))
            for at, (ids, offsets, own) in found:
                parts.append((ids, offsets + at, own + words))
                words += int(own.max(initial=-1)) + 1
        return joined(*parts)

    def _cut(self, text: str) -> Tokens:
        read, spans = (text, None) if self._rewriting is None else self._rewriting(text)
        pieces = self.processor.encode(read, return_type="offset_mapping")
        ids = np.array(pieces["ids"], np.int32)
        offsets = np.array(pieces["offsets"], np.int32).reshape(-1, 2)
        if spans is not None and len(spans):
            starts, ends = offsets.T
            last = np.maximum(ends - 1, 0)
            offsets = np.stack([spans[np.minimum(starts, len(spans) - 1), 0], spans[last, 1]], axis=1)
            offsets[starts == ends, 1] = offsets[starts == ends, 0]
        begins = self._begins[ids]
        if self._trim:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            word = np.append(np.flatnonzero(~WHITE_SPACE[np.minimum(codes, len(WHITE_SPACE) - 1)]), len(text))
            starts = word[np.minimum(np.searchsorted(word, offsets[:, 0]), len(word) - 1)]
            offsets[:, 0] = np.where(begins, starts, offsets[:, 0])
        elif len(ids) and text[0].isspace():
            offsets[0, 0] = 0
        ends = np.clip(offsets[:, 1], offsets[:, 0] + begins, len(text))
        starts = np.minimum.accumulate(offsets[::-1, 0])[::-1]  # where characters were left out
        offsets = np.stack([starts, np.maximum.accumulate(ends)], axis=1)
        words = np.cumsum(begins, dtype=np.int32)
        return self._numbered(ids, pieces["pieces"]), offsets, words - words[:1]

    def _numbered(self, ids: np.ndarray, pieces: Sequence[str]) -> np.ndarray:
        """Our ids of some of the model's; a piece without one is unknown."""
        return np.where(self._outer[ids] < 0, self._outer[self.processor.unk_id()], self._outer[ids])

    def decode(self, ids: list[int], special: bool) -> str:
        parts, run = [], []

        def add_run() -> None:
            text = self.processor.decode(run)
            # The space before the first word is no part of a text, and is one behind another token.
            parts.append(f" {text}" if any(parts) and run and self._begins[run[0]] else text)
            run.clear()

        for i in ids:
            token = self.token(i)
            if token not in self.whole:
                run += [self._inner[i]] if i in self._inner else []
            elif special or token not in self.special:
                add_run()
                parts.append(token)
        add_run()
        return "".join(parts)

    def token(self, i: int) -> str | None:
        if i in self._inner:
            return self.processor.id_to_piece(self._inner[i])
        return self.tokens[i].content if i in self.tokens else None

    def id_of(self, token: str) -> int | None:
        if token in self.whole:
            return self.whole[token]
        i = self.processor.piece_to_id(token)
        return int(self._outer[i]) if self.processor.id_to_piece(i) == token and self._outer[i] >= 0 else None

    def files(self, roles: dict[str, str]) -> dict[str, bytes]:
        return {}

    def __reduce__(self) -> tuple:
        positional, settings = self._arguments
        return functools.partial(SentencePiece, **settings), positional


class Marian(SentencePiece):
    """The two models of OPUS-MT (Tiedemann and Thottingal 2020), for source and target, over one table of ids or two.

    A piece has the id that the table gives its spelling, and so has a stretch that the model does not know. Where the
    table has languages, a source begins with its target's, `>>fra<<`: that is the format of the text, and is read with
    or without `special`. Punctuation is not normalised.

    Args:
        source: the file of the model that cuts sources.
        target: that of targets; None: this is the half that cuts them.
        table: the id of each spelling.
        target_table: that of targets; None: the same.
        extra: tokens besides those of the table, and those of it that are whole.
    """

    def __init__(
        self,
        source: bytes,
        target: bytes | None,
        table: Mapping[str, int],
        target_table: Mapping[str, int] | None = None,
        extra: Added | None = None,
    ) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=source)
        pieces = processor.id_to_piece(list(range(processor.get_piece_size())))
        # A target is in the language, and two tables have no tokens of languages.
        found = {} if target is None or target_table else {CODE.fullmatch(token): i for token, i in table.items()}
        codes = {match[1]: i for match, i in found.items() if match}
        tokens = {table[token]: special_token(token) for token in ("</s>", "<unk>", "<pad>") if token in table}
        outer = [table.get(piece, -1) for piece in pieces]
        frame = Frame(first=(LANGUAGE,), last=(table["</s>"],))
        super().__init__(source, outer, tokens | dict(extra or {}), frame=frame, languages=codes)
        self._table = dict(table) | {token.content: i for i, token in (extra or {}).items()}
        self._spelling = {i: token for token, i in self._table.items()}
        self.targets = None if target is None else Marian(target, None, target_table or table, extra=extra)
        self._separate = target_table is not None
        self._arguments = source, target, table, target_table, extra
        self.vocab_size = max(1 + max(self._spelling), self.targets.vocab_size if self.targets else 0)

    def cut(self, text: str) -> Tokens:
        code = CODE.match(text) if self.languages else None
        if code is None:
            return super().cut(text)
        ids, offsets, words = super().cut(text[code.end() :])
        head = one(language_id(self.languages, code[1]), code.end())
        return joined(head, (ids, offsets + code.end(), words + 1))

    def _numbered(self, ids: np.ndarray, pieces: Sequence[str]) -> np.ndarray:
        ids, unknown = self._outer[ids], self._table["<unk>"]
        for place in np.flatnonzero((ids < 0) | (ids == unknown)):
            ids[place] = self._table.get(pieces[place], unknown)
        return ids

    def decode(self, ids: list[int], special: bool) -> str:
        if self._separate:
            return self.targets.decode(ids, special)
        processor = (self.targets or self).processor
        # Pieces of sources alone are spelt out as they are, with the mark of a space in them.
        text = lambda pieces: processor.decode(pieces).replace(SPACE, " ").strip()
        parts, run = [], []
        for token in map(self.token, ids):
            if token not in self.special and not CODE.fullmatch(token or ""):
                run.append(token or "")
            elif special:
                parts += [text(run), token]
                run = []
        return "".join([*parts, text(run)])

    def token(self, i: int) -> str | None:
        return self._spelling.get(i)

    def id_of(self, token: str) -> int | None:
        return self._table.get(token)

    def __reduce__(self) -> tuple:
        return Marian, self._arguments


# How the ids are numbered, and what stands beside the pieces


def published(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """The model shows whose it is: with [CLS] and [SEP] it is DeBERTa's, with <pad> and </s> in front T5's, and
    otherwise LLaMA's. The ids are the model's own."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=contents[0])
    if _holds(processor, "[CLS]") and _holds(processor, "[SEP]"):
        return deberta(contents, config, added)
    read = t5 if processor.pad_id() == 0 and processor.eos_id() == 1 else llama
    return read(contents, config, added)


def spiece(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """`spiece.model`: as `published`, but one with [CLS] is ALBERT's."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=contents[0])
    return (albert if _holds(processor, "[CLS]") else published)(contents, config, added)


def t5(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """T5's and mT5's: </s> ends a sequence, and the sentinels lie behind the model's own pieces, the last one first
    (Raffel et al. 2020, section 3.1.4), unless the model holds them: it reads them in any text then.

    Raises:
        ValueError: the model has no </s>.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=contents[0])
    size, end = processor.get_piece_size(), processor.piece_to_id("</s>")
    if not _holds(processor, "</s>"):
        raise ValueError("it has no </s>, which ends every sequence of T5's")
    known = {token.content for token in added.values()}
    inside = any(_holds(processor, name) or name in known for name in sentinel_names(0))
    count = config.get("extra_ids")
    count = (0 if inside else 100) if count is None else count
    sentinels = {size + i: special_token(f"<extra_id_{count - 1 - i}>") for i in range(count)}
    backend = SentencePiece(contents[0], extra=sentinels | dict(added), frame=Frame(between=(end,), last=(end,)))
    return backend, _usual(processor)


def llama(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """LLaMA's: the frame is what `add_bos_token` and `add_eos_token` ask for, and unknown if neither is said."""
    processor, frame = sentencepiece.SentencePieceProcessor(model_proto=contents[0]), None
    if "add_bos_token" in config or "add_eos_token" in config:
        first = (processor.bos_id(),) if config.get("add_bos_token") else ()
        last = (processor.eos_id(),) if config.get("add_eos_token") else ()
        frame = Frame(first=first, between=last + first, last=last)
    return SentencePiece(contents[0], extra=added, trim=False, frame=frame), _usual(processor)


def deberta(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """DeBERTa's of the second version on: [CLS] a [SEP] b [SEP]; small letters if `do_lower_case` asks for them, and
    punctuation marks by themselves if `split_by_punct` does."""
    rewriting = Rewriting(lower=True) if config.get("do_lower_case") else None
    return _with_cls(contents[0], added, rewriting, punctuation=bool(config.get("split_by_punct")), trim=False)


def albert(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """ALBERT's (Lan et al. 2020): [CLS] a [SEP] b [SEP]; small letters without accents, where `do_lower_case` and
    `keep_accents` do not say otherwise, and plain quotation marks."""
    keep, lower = config.get("keep_accents", False), config.get("do_lower_case", True)
    return _with_cls(contents[0], added, Rewriting(quotes=True, accents=bool(keep), lower=bool(lower)))


def xlnet(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """XLNet's (Yang et al. 2019): a <sep> b <sep> <cls>, without accents and with plain quotation marks; small letters
    if `do_lower_case` asks for them."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=contents[0])
    for token in ("<cls>", "<sep>"):
        if not _holds(processor, token):
            raise ValueError(f"it has no {token}, which is in every sequence of its class")
    cls, sep = map(processor.piece_to_id, ("<cls>", "<sep>"))
    frame = Frame(between=(sep,), last=(sep,), closing=(cls,), segments=True)
    rewriting = Rewriting(quotes=True, accents=False, lower=bool(config.get("do_lower_case")))
    roles = {"cls": ("<cls>",), "sep": ("<sep>",), "pad": ("<pad>",), "mask": ("<mask>",)}
    backend = SentencePiece(contents[0], extra=added, rewriting=rewriting, frame=frame)
    return backend, _usual(processor) | roles


def _with_cls(model: bytes, added: Added, rewriting: Rewriting | None, **settings: bool) -> tuple[SentencePiece, Usual]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for token in ("[CLS]", "[SEP]"):
        if not _holds(processor, token):
            raise ValueError(f"it has no {token}, which is in every sequence of its class")
    cls, sep = map(processor.piece_to_id, ("[CLS]", "[SEP]"))
    extra = dict(added)
    if not _holds(processor, "[MASK]") and "[MASK]" not in {token.content for token in extra.values()}:
        extra[processor.get_piece_size()] = special_token("[MASK]")  # DeBERTa-v3's has none, and no file says so
    frame = Frame(first=(cls,), between=(sep,), last=(sep,), segments=True)
    return SentencePiece(model, extra=extra, rewriting=rewriting, frame=frame, **settings), _usual(processor)


def _holds(processor: sentencepiece.SentencePieceProcessor, piece: str) -> bool:
    return processor.id_to_piece(processor.piece_to_id(piece)) == piece


def _usual(processor: sentencepiece.SentencePieceProcessor) -> Usual:
    ids = {role: getattr(processor, f"{role}_id")() for role in ("bos", "eos", "unk", "pad")}
    return {role: (processor.id_to_piece(i),) if i >= 0 else () for role, i in ids.items()}


def pegasus(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """PEGASUS (Zhang et al. 2020): behind <pad> and </s> lie 103 tokens of pretraining, and then the pieces.

    Of these <mask_1> stands for a sentence and <mask_2> for a token; the rest, <unk_2> and on, were never used.
    """
    size = sentencepiece.SentencePieceProcessor(model_proto=contents[0]).get_piece_size()
    offset = config.get("offset", 103)
    outer = [i if i < 2 else i + offset for i in range(size)]
    names = ["<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, offset))] if offset else []
    extra = {i: special_token(name) for i, name in enumerate(names, 2)} | dict(added)
    usual = {"bos": (), "eos": ("</s>",), "unk": ("<unk>",), "pad": ("<pad>",), "mask": ("<mask_2>", "[MASK]")}
    return SentencePiece(contents[0], outer, extra, trim=False, frame=Frame(last=(1,))), usual


def fairseq(
    contents: Sequence[bytes],
    config: Config,
    added: Added,
    languages: Sequence[str] = (),
    frame: Frame | None = None,
    trim: bool = True,
) -> tuple[SentencePiece, Usual]:
    """XLM-R's: the ids are fairseq's, <s> <pad> </s> <unk>, then the model's own from its fourth on, and last <mask>.

    Args:
        languages: those whose tokens lie before the mask.
        frame: what a template adds; None: <s> a </s></s> b </s>.
        trim: as of `SentencePiece`.

    Raises:
        ValueError: the model or the files beside it say otherwise, as CamemBERT's do; it needs its tokenizer.json then.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=contents[0])
    size = processor.get_piece_size()
    first = tuple(processor.id_to_piece(i) for i in range(3))
    if first != ("<unk>", "<s>", "</s>") or config.get("bos_token_id", 0) != 0:
        raise ValueError("its ids are not numbered like XLM-R's, which begin with <s>, and it has no tokenizer.json")
    outer = [3, 0, 2, *range(4, size + 1)]
    codes = {code: size + 1 + i for i, code in enumerate(languages)}
    mask = AddedToken("<mask>", special=True, normalized=False, lstrip=True)  # takes the space before it, as words do
    extra = {1: special_token("<pad>"), size + 1 + len(codes): mask}
    extra |= {i: special_token(code) for code, i in codes.items()} | dict(added)
    frame = frame or Frame(first=(0,), between=(2, 2), last=(2,))
    return SentencePiece(
        contents[0], outer, extra, trim=trim, frame=frame, languages=codes, language="en_XX" if codes else None
    ), {}


mbart = functools.partial(fairseq, languages=MBART, frame=Frame(last=(2, LANGUAGE)))
"""mBART's, and the frame a </s> en_XX (Liu et al. 2020, section 2.2)."""

mbart_50 = functools.partial(fairseq, languages=MBART_50, frame=Frame(first=(LANGUAGE,), last=(2,)), trim=False)
"""mBART-50's, and the frame en_XX a </s> (Tang et al. 2020, section 3)."""


def camembert(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """CamemBERT's (Martin et al. 2020): <pad>, <unk> and three unused names before the pieces, <mask> behind them."""
    size = sentencepiece.SentencePieceProcessor(model_proto=contents[0]).get_piece_size()
    mask = AddedToken("<mask>", special=True, normalized=False, lstrip=True)
    extra = {1: special_token("<pad>"), size + 4: mask} | dict(added)
    outer, frame = [3, *range(5, size + 4)], Frame(first=(5,), between=(6, 6), last=(6,))
    return SentencePiece(contents[0], outer, extra, frame=frame), {}


def bartpho(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """BARTpho's (Tran et al. 2022): of a model's pieces, those that dict.txt has, behind <s> <pad> </s> <unk>, and last
    <mask>. Any other piece is unknown."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=contents[0])
    names = [line.split()[0] for line in contents[1].decode().splitlines() if line.strip()]
    table = {name: i for i, name in enumerate(dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *names, "<mask>"]))}
    outer = [table.get(piece, -1) for piece in processor.id_to_piece(list(range(processor.get_piece_size())))]
    mask = AddedToken("<mask>", special=True, normalized=False, lstrip=True)
    extra = {1: special_token("<pad>"), table["<mask>"]: mask} | dict(added)
    return SentencePiece(contents[0], outer, extra, frame=Frame(first=(0,), between=(2, 2), last=(2,))), {}


def marian(contents: Sequence[bytes], config: Config, added: Added) -> tuple[Marian, Usual]:
    """source.spm, target.spm and vocab.json; where source and target have tables of their own, target_vocab.json too.

    Raises:
        ValueError: a table without </s> or <unk>; settings that ask for two tables, and there is one.
    """
    source, target, *tables = contents
    names = ("vocab.json", "target_vocab.json")
    tables = [table_of(table, name) for table, name in zip(tables, names)]
    if config.get("separate_vocabs") and len(tables) == 1:
        raise ValueError("separate_vocabs is set, and there is no target_vocab.json")
    for table, name in zip(tables, names):
        for token in ("</s>", "<unk>"):
            if token not in table:
                raise ValueError(f"{name} has no {token}, which every table of Marian's has")
    return Marian(source, target, tables[0], tables[1] if config.get("separate_vocabs") else None, added), {}


def sentinel_names(number: int) -> tuple[str, ...]:
    """How a sentinel may be spelt: mT5's model holds them, some with the mark that begins a word."""
    return f"<extra_id_{number}>", f"{SPACE}<extra_id_{number}>"


def language_id(languages: Mapping[str, int], code: str) -> int:
    """The id of a language's token.

    Raises:
        ValueError: there is no such language.
    """
    if code in languages:
        return languages[code]
    if not languages:
        raise ValueError(
            f"language {code!r}: the tokenizer has no tokens for languages, so what is wanted has to be said in the "
            "text, such as 'translate English to French: '"
        )
    near = difflib.get_close_matches(code, languages, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown language {code!r}: {hint}It is one of {', '.join(languages)}")


def table_of(text: bytes, name: str) -> dict[str, int]:
    """The ids of a vocabulary in JSON.

    Raises:
        ValueError: it is not an object of ids from 0 on; it has an id twice.
    """
    table = json_files.parse(text, name)
    for token, i in table.items():
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < LARGEST:
            raise ValueError(f"{name}: {json_files.excerpt(token)!r} has {json_files.describe(i)} for an id")
    if len(set(table.values())) < len(table):
        seen: dict[int, str] = {}
        first, second = next((seen[i], token) for token, i in table.items() if seen.setdefault(i, token) != token)
        raise ValueError(f"{name}: {first!r} and {second!r} have one id, {table[first]}")
    return table


def special_token(content: str) -> AddedToken:
    """A token that is whole wherever it is spelt, and stands for no text."""
    return AddedToken(content, special=True, normalized=False)
