"""SentencePiece models, and how the families that publish them number their pieces.

A `.model` file holds pieces and their ids. What no file holds is which ids a family's models know them by, and which
tokens stand beside them: each function below that makes a tokenizer says it of one convention.
"""

import difflib
import functools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece

from transformer_zoo.data.encoding import LANGUAGE, Cutter, Frame, Tokens, joined, one

Config = Mapping[str, Any]
"""The settings of tokenizer_config.json and, where it is silent, of config.json."""

Added = Mapping[int, Mapping[str, Any]]
"""Tokens that stand beside the model, by id: their text under `content`."""

Usual = dict[str, tuple[str, ...]]
"""Names by which the special token of a role is known."""

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How a space is written in a piece."""

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

CODE = re.compile(r">>([^\s<>]+)<<")
"""How Marian's models with several target languages are told which is wanted, at the beginning of the source."""


class SentencePiece(Cutter):
    """The `sentencepiece` library, from the bytes of a model, and tokens that the model does not hold.

    Args:
        model: the file.
        outer: the id of each of the model's pieces; -1 where it has none. None: the model's own.
        extra: the tokens besides, by id.
        lower_case: text is prepared as for ALBERT: no capitals, no accents, plain quotation marks.
        frame, languages, language: as in `Cutter`.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        model: bytes,
        outer: Sequence[int] | None = None,
        extra: Mapping[int, str] | None = None,
        *,
        lower_case: bool = False,
        frame: Frame | None = None,
        languages: Mapping[str, int] | None = None,
        language: str | None = None,
    ) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self.processor.get_piece_size()
        outer, extra = list(range(size) if outer is None else outer), dict(extra or {})
        settings = {"lower_case": lower_case, "frame": frame, "languages": languages, "language": language}
        self._arguments = (model, outer, extra), settings
        self._lower_case, self._extra, self._outer = lower_case, extra, np.array(outer, np.int32)
        self._inner = {i: place for place, i in enumerate(outer) if i >= 0}
        control = {self.processor.id_to_piece(k): i for i, k in self._inner.items() if self.processor.is_control(k)}
        super().__init__(control | {token: i for i, token in extra.items()}, frame, languages, language)
        self.vocab_size = 1 + max(*self._inner, *extra)
        self.serialized = model + self._outer.tobytes() + repr((sorted(extra.items()), settings)).encode()

    @functools.cached_property
    def _begins(self) -> np.ndarray:
        """bool[pieces]: whether a piece begins a word."""
        pieces = self.processor.id_to_piece(list(range(len(self._outer))))
        return np.array([piece.startswith(SPACE) for piece in pieces])

    def cut(self, text: str) -> Tokens:
        spans = None
        if self._lower_case:
            text, spans = _albert_text(text)
        pieces = self.processor.encode(text, return_type="offset_mapping")
        ids = np.array(pieces["ids"], np.int32)
        offsets = np.array(pieces["offsets"], np.int32).reshape(-1, 2)
        if spans is not None and len(spans):
            starts, ends = offsets.T
            last = np.maximum(ends - 1, 0)
            offsets = np.stack([spans[np.minimum(starts, len(spans) - 1), 0], spans[last, 1]], axis=1)
            offsets[starts == ends, 1] = offsets[starts == ends, 0]
        words = np.cumsum(self._begins[ids], dtype=np.int32)
        return self._numbered(ids, pieces["pieces"]), offsets, words - words[:1]

    def _numbered(self, ids: np.ndarray, pieces: Sequence[str]) -> np.ndarray:
        """Our ids of some of the model's."""
        return self._outer[ids]

    def decode(self, ids: list[int], special: bool) -> str:
        parts, run = [], []
        for i in ids:
            inner = self._inner.get(i)
            if inner is not None and not (special and self.processor.is_control(inner)):
                run.append(inner)
            elif special:
                parts += [self.processor.decode(run), self.token(i) or ""]
                run = []
        return "".join([*parts, self.processor.decode(run)])

    def token(self, i: int) -> str | None:
        if i in self._extra:
            return self._extra[i]
        return self.processor.id_to_piece(self._inner[i]) if i in self._inner else None

    def id_of(self, token: str) -> int | None:
        if token in self.special:
            return self.special[token]
        i = self.processor.piece_to_id(token)
        return int(self._outer[i]) if self.processor.id_to_piece(i) == token and self._outer[i] >= 0 else None

    def files(self, roles: dict[str, str]) -> dict[str, bytes]:
        return {}

    def __reduce__(self) -> tuple:
        positional, settings = self._arguments
        return functools.partial(SentencePiece, **settings), positional


class Marian(SentencePiece):
    """The two models of OPUS-MT (Tiedemann and Thottingal 2020), for source and target, over one table of ids.

    A piece has the id that the table gives its spelling, and so has a stretch that the model does not know. Where the
    table has languages, a source begins with its target's, `>>fra<<`: that is the format of the text, and is read with
    or without `special`. Punctuation is not normalised.

    Args:
        source: the file of the model that cuts sources.
        target: that of targets; None: this is the half that cuts them.
        table: the id of each spelling.
    """

    def __init__(self, source: bytes, target: bytes | None, table: Mapping[str, int]) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=source)
        pieces = processor.id_to_piece(list(range(processor.get_piece_size())))
        codes = {match[1]: i for token, i in table.items() if (match := CODE.fullmatch(token))} if target else {}
        special = {
            i: token for token, i in table.items() if token in ("</s>", "<unk>", "<pad>") or CODE.fullmatch(token)
        }
        outer = [table.get(piece, -1) for piece in pieces]
        frame = Frame(first=(LANGUAGE,), last=(table["</s>"],))
        super().__init__(source, outer, special, frame=frame, languages=codes)
        self._table, self._spelling = table, {i: token for token, i in table.items()}
        self.targets = None if target is None else Marian(target, None, table)
        self._arguments = source, target, table
        self.vocab_size = 1 + max(self._spelling)
        self.serialized = source + (target or b"") + json.dumps(table).encode()

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
        processor = (self.targets or self).processor
        # Pieces of sources alone are spelt out as they are, with the mark of a space in them.
        text = lambda pieces: processor.decode(pieces).replace(SPACE, " ").strip()
        parts, run = [], []
        for token in map(self.token, ids):
            if token not in self.special or (token == "<unk>" and not special):
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
    """The ids are the model's own: T5's, ALBERT's, DeBERTa's and LLaMA's.

    ALBERT's and DeBERTa's have [CLS] and [SEP], which frame a sequence; ALBERT's alone was made for lower case. T5's
    and mT5's begin with <pad> and </s>; </s> ends a sequence, and the sentinels lie behind the model's own pieces, the
    last one first (Raffel et al. 2020, section 3.1.4), unless the model holds them: it reads them in any text then.
    LLaMA's has no frame.
    """
    model = contents[0]
    bare = SentencePiece(model)
    size, processor = bare.vocab_size, bare.processor
    of_t5 = processor.pad_id() == 0 and processor.eos_id() == 1
    known = {token["content"] for token in added.values()}
    inside = any(bare.id_of(token) is not None or token in known for token in sentinel_names(0))
    sentinels = config.get("extra_ids")
    if sentinels is None:
        sentinels = 100 if of_t5 and not inside and bare.id_of("[CLS]") is None else 0
    extra = {size + i: f"<extra_id_{sentinels - 1 - i}>" for i in range(sentinels)}
    extra |= {i: token["content"] for i, token in added.items() if i >= size}
    ids = {role: getattr(processor, f"{role}_id")() for role in ("bos", "eos", "unk", "pad")}
    usual = {role: (processor.id_to_piece(i),) if i >= 0 else () for role, i in ids.items()}
    backend = SentencePiece(model, extra=extra)
    cls, sep = backend.id_of("[CLS]"), backend.id_of("[SEP]")
    if cls is not None and sep is not None:
        if backend.id_of("[MASK]") is None:
            extra.setdefault(size, "[MASK]")  # DeBERTa-v3's model has none, and nothing beside it says so
        frame = Frame(first=(cls,), between=(sep,), last=(sep,), segments=True)
        backend = SentencePiece(model, extra=extra, frame=frame, lower_case=config.get("do_lower_case", False))
    elif of_t5:
        backend = SentencePiece(model, extra=extra, frame=Frame(between=(1,), last=(1,)))
    return backend, usual


def spiece(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """`spiece.model`: as `published`, and where nothing says otherwise a model with [CLS] is for lower case."""
    return published(contents, {"do_lower_case": True, **config}, added)


def pegasus(contents: Sequence[bytes], config: Config, added: Added) -> tuple[SentencePiece, Usual]:
    """PEGASUS (Zhang et al. 2020): behind <pad> and </s> lie 103 tokens of pretraining, and then the pieces.

    Of these <mask_1> stands for a sentence and <mask_2> for a token; the rest, <unk_2> and on, were never used.
    """
    size = sentencepiece.SentencePieceProcessor(model_proto=contents[0]).get_piece_size()
    offset = config.get("offset", 103)
    outer = [i if i < 2 else i + offset for i in range(size)]
    extra = dict(enumerate(["<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, offset))], 2)) if offset else {}
    extra |= {i: token["content"] for i, token in added.items() if i >= size + offset}
    usual = {"bos": (), "eos": ("</s>",), "unk": ("<unk>",), "pad": ("<pad>",), "mask": ("<mask_2>", "[MASK]")}
    return SentencePiece(contents[0], outer, extra, frame=Frame(last=(1,))), usual


def fairseq(
    contents: Sequence[bytes], config: Config, added: Added, languages: Sequence[str] = (), frame: Frame | None = None
) -> tuple[SentencePiece, Usual]:
    """XLM-R's: the ids are fairseq's, <s> <pad> </s> <unk>, then the model's own from its fourth on, and last <mask>.

    Args:
        languages: those whose tokens lie before the mask.
        frame: what a template adds; None: <s> a </s></s> b </s>.

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
    extra = {i: token["content"] for i, token in added.items() if i > size}
    extra |= {1: "<pad>", **{i: code for code, i in codes.items()}, size + 1 + len(codes): "<mask>"}
    frame = frame or Frame(first=(0,), between=(2, 2), last=(2,))
    return SentencePiece(
        contents[0], outer, extra, frame=frame, languages=codes, language="en_XX" if codes else None
    ), {}


mbart = functools.partial(fairseq, languages=MBART, frame=Frame(last=(2, LANGUAGE)))
"""mBART's, and the frame a </s> en_XX (Liu et al. 2020, section 2.2)."""

mbart_50 = functools.partial(fairseq, languages=MBART_50, frame=Frame(first=(LANGUAGE,), last=(2,)))
"""mBART-50's, and the frame en_XX a </s> (Tang et al. 2020, section 3)."""


def marian(contents: Sequence[bytes], config: Config, added: Added) -> tuple[Marian, Usual]:
    """source.spm, target.spm and vocab.json.

    Raises:
        ValueError: a table without </s> or <unk>, or one table each for source and target.
    """
    source, target, table = contents[0], contents[1], json.loads(contents[2])
    if config.get("separate_vocabs"):
        raise ValueError("its source and target have tables of their own (separate_vocabs), which are not read")
    for token in ("</s>", "<unk>"):
        if token not in table:
            raise ValueError(f"vocab.json has no {token}, which every table of Marian's has")
    return Marian(source, target, table | {token["content"]: i for i, token in added.items()}), {}


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


def _albert_text(text: str) -> tuple[str, np.ndarray]:
    """A text as ALBERT's uncased models read it, and int32[n, 2]: the span in the text of each of its characters."""
    parts, spans = [], []
    for match in re.finditer("``|''|.", text, re.DOTALL):
        plain = '"' if len(match[0]) == 2 else unicodedata.normalize("NFKD", match[0]).lower()
        kept = "".join(c for c in plain if unicodedata.category(c)[0] != "M")
        parts.append(kept)
        spans += [match.span()] * len(kept)
    return "".join(parts), np.array(spans, np.int32).reshape(-1, 2)
