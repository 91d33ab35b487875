"""The `tokenizers` library behind the interface of a `Cutter`; its bare errors become ours."""

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, normalizers

from transformer_zoo import json_files
from transformer_zoo.data.encoding import Encoding, bytes_by_offsets

LANGUAGE_CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")
"""How the special token of a language is spelt in a tokenizer.json: `fr_XX`, `fra_Latn`."""


@contextlib.contextmanager
def named_errors() -> Iterator[None]:
    """Bare exceptions of the library, and panics, as a ValueError that names it."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not is_panic(error):
            raise
        message = json_files.excerpt(error, 400)
        raise ValueError(f"the tokenizers library failed, as a damaged tokenizer.json makes it: {message}") from error


def is_panic(error: BaseException) -> bool:
    """Whether it is a panic of Rust's, which is no Exception."""
    return type(error).__name__ == "PanicException"


class Library:
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

    @named_errors()
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

    @named_errors()
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

    @named_errors()
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
        return {"tokenizer.json": self.serialized, "tokenizer_config.json": as_json(config)}

    def lower_cased(self) -> "Library":
        tokenizer = tokenizers.Tokenizer.from_str(self.serialized.decode())
        others = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
        return Library(tokenizer.to_str())

    def __reduce__(self) -> tuple:
        return Library, (self.serialized.decode(),)


def _numbers(values: list[int | None]) -> np.ndarray:
    """int32[n], with -1 for None."""
    return np.array([-1 if value is None else value for value in values], np.int32)


def as_json(value: Any) -> bytes:
    """The content of a file."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
