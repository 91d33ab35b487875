"""Text to token ids and back, with the place of every token in the text.

One class over two libraries: `tokenizers` for byte-level BPE and WordPiece in every file layout, and `sentencepiece`
(`spm`) for its own models, whose segmentation no other library reproduces exactly; and over bytes (`utf8`), which need
neither.

Where a text spells out a special or an added token, such as `<|endoftext|>`, it is read as that token, as transformers
reads it. `special=False` reads special tokens as ordinary characters, for the text of strangers.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from etils import epath
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from transformer_zoo import arguments, json_files
from transformer_zoo.data import chat_templates, spm, token_bytes
from transformer_zoo.data.chat_templates import Rendered
from transformer_zoo.data.documents import pieces_of
from transformer_zoo.data.encoding import Cutter, Encoding
from transformer_zoo.data.spm import Usual
from transformer_zoo.data.tokenizer_files import (
    BERT_TOKENS,
    CLASSES,
    CUTTING,
    END_OF_TEXT,
    FOLLOWED,
    FORMATS,
    GENERIC,
    READERS,
    added_tokens,
    as_roberta,
    byte_level,
    class_of,
    followed,
    from_wordpiece,
)
from transformer_zoo.data.tokenizer_library import Library, as_json, is_panic

SENTINELS = 100
"""Of a tokenizer trained here for T5, as many as T5 has."""

LONG = 1 << 20
"""Characters of the longest text that the libraries cut in one go for training."""

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

CONFIG = "tokenizer_config.json"
SETTINGS = (CONFIG, "special_tokens_map.json", "added_tokens.json")

TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
"""Files of the chat templates."""

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

PROBE = (
    "The quick Brown fox, doesn't  jump over 1,234.5 lazy dogs! na\u00efve cafe\u0301 Gr\u00f6\u00dfe \ufb01n \u2167 "
    "\u0130\n\tdef f(x_1): return x**2 == y[0] # ``quoted''  [MASK]<mask></s>[SEP] <extra_id_0> \u6587\u5b57 \ud55c "
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d \u0939\u093f\u0928\u094d \U0001f600\u3000\xa0\u200b\x07end "
)
"""A text of many kinds of characters, by which tokenizers are told apart."""

FINGERPRINT = "does-"
"""The beginning of each fingerprint; those of older versions hashed how a tokenizer was stored, and had none."""

MOST_EXTRA = 10_000
"""Tokens that a setting may ask for without naming them."""


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
        backend: "Library | Cutter",
        roles: Mapping[str, str],
        files: Mapping[str, bytes],
        languages: tuple[str | None, str | None] = (None, None),
        source: str = "the tokenizer",
    ) -> None:
        self._backend, self._roles, self._files = backend, dict(roles), dict(files)
        self._source = source  # the folder or the file of its chat templates, for errors
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
        """A short hash of what it does, in any layout of files and by any version of the libraries: how each id is
        spelt, which tokens are whole, and the tokens of a text of many kinds of characters, alone and in its frame."""
        backend, (source, target) = self._backend, self._languages
        spelt = [[i, token] for i in range(self.vocab_size) if (token := backend.token(i)) is not None]
        whole = [[i, token.content, token.special] for i, token in sorted(backend.tokens.items())]
        does: list[Any] = [spelt, whole, self._roles, source, target, self.languages]
        for template in (False, True)[: 1 + backend.has_template]:
            for pair in (None, PROBE[::-1]):
                for how in ({"special": False}, {"special": True}, {"target": True}):
                    encoding = self.encode(PROBE, pair, template=template, **how)
                    does += [values.tolist() for values in dataclasses.astuple(encoding)]
        return FINGERPRINT + hashlib.sha256(json.dumps(does).encode()).hexdigest()[:16]

    @functools.cached_property
    def sentinel_ids(self) -> tuple[int, ...]:
        """The tokens that stand for what was cut out of a text, <extra_id_0> and on, in the order of their use."""
        ids: list[int] = []
        while found := [i for name in spm.sentinel_names(len(ids)) if (i := self.id_of(name)) is not None]:
            ids.append(found[0])
        return tuple(ids)

    @property
    def has_template(self) -> bool:
        """Whether it is known what it adds to a text: nothing says so beside a bare sentencepiece model."""
        return self._backend.has_template

    @functools.cached_property
    def before_text(self) -> np.ndarray:
        """int32[n]: the tokens that a template puts in front of a text; none where no template is known."""
        if not self.has_template:
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
        arguments.check(Tokenizer.encode, locals())
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
            TypeError: an argument of another type, such as a text in place of a list.
        """
        arguments.check(Tokenizer.encode_batch, locals())
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
        `encode_batch`. Texts of more than `LONG` characters are cut into pieces at white space, because the library
        takes a hundred times their size; byte-level BPE gives them the same tokens as to the whole.
        """
        texts = _checked(texts)
        short = [text for text in texts if len(text) <= LONG]
        found = iter(self._backend.encode_bytes(short, special))
        return [next(found) if len(text) <= LONG else self._encode_long(text, special) for text in texts]

    def _encode_long(self, text: str, special: bool) -> tuple[np.ndarray, np.ndarray]:
        """The same of a long text, in pieces, a few at a time."""
        ids, counts, dropped, pieces = [], [], 0, list(pieces_of(text))
        for first in range(0, len(pieces), 16):
            some = pieces[first : first + 16]
            for piece, (part, widths) in zip(some, self._backend.encode_bytes(some, special)):
                left = len(piece.encode()) - int(widths.sum())
                if len(part):  # what was dropped before it belongs to its first token
                    widths, dropped = np.append(widths[:1] + dropped, widths[1:]), 0
                dropped += left
                ids.append(part)
                counts.append(widths)
        return np.concatenate(ids), np.concatenate(counts)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of some tokens; for byte-level tokenizers exactly the text that was encoded.

        Args:
            special: write special tokens out rather than leave them out.

        Raises:
            ValueError: an id that is not in the vocabulary.
            TypeError: an argument of another type.
        """
        arguments.check(Tokenizer.decode, locals())
        ids = [int(i) for i in ids]
        for place, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} at place {place} is not one of the {self.vocab_size} of the vocabulary")
        return self._backend.decode(ids, special)

    @functools.cached_property
    def token_bytes(self) -> tuple[list[bytes], list[bytes]]:
        """The bytes in UTF-8 that each token adds to a text: at its beginning, and behind other tokens, since some
        tokenizers write a space there alone. None are those of special tokens and of what no text has."""
        spellings, added = self.tokens(range(self.vocab_size)), self._backend.tokens
        if self.kind == "bytes":
            found = [b"" if i in added else (spelling or "").encode("latin-1") for i, spelling in enumerate(spellings)]
            return found, found
        if self.kind.startswith("byte-level"):
            return token_bytes.of_bytes(spellings, added)
        return token_bytes.of_pieces(spellings, added, lambda ids: self._backend.decode(ids, False))

    @functools.cached_property
    def chat_templates(self) -> Mapping[str, str]:
        """The folder's chat templates in Jinja, by name; the usual one is `default`. Empty: it has none.

        Raises:
            ValueError: a template that is no text.
        """
        return chat_templates.read(self._files, CONFIG)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation as the model was trained to read it, by the chat template of its folder.

        The template runs in a sandbox, within limits of work and size. Special tokens that a message spells out stand
        in the text as the template's own do; `encode_chat` tells them apart.

        Args:
            messages: the conversation, such as [{"role": "user", "content": "Hello"}]. Further keys, such as
                `tool_calls`, are the template's. A key whose value is None is left out.
            tools: the functions that the model may call, as JSON schemas.
            generation_prompt: end with the beginning of the assistant's next message.
            template: the name of one of `chat_templates`. None: `tool_use` if there is one and tools are given, else
                `default`.
            **variables: further variables of the template, such as enable_thinking=False.

        Raises:
            ValueError: the tokenizer has no chat template, or none of this name; no messages, or one without role or
                content; what the template refuses, with its own words; a template that is damaged or goes beyond the
                limits; values that JSON does not have.
            TypeError: an argument of another type.
        """
        arguments.check(Tokenizer.chat, locals())
        return self._chat(messages, tools, generation_prompt, template, variables, guarded=False).text

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> np.ndarray:
        """The tokens of a conversation, int32[n], without the frame of `encode_batch`: the template writes its own.

        Special tokens that messages, tools or variables spell out are ordinary characters; only the template's own are
        read. While it is rendered, each of these stands as one private-use character, so that a template that looks
        for special tokens in a content does not find them. Text next to such a spelling, up to the template's nearest
        special tokens, is cut by itself: a tokenizer that puts a space in front of a text puts one there too.

        Args and errors: as of `chat`.
        """
        arguments.check(Tokenizer.encode_chat, locals())
        rendered = self._chat(messages, tools, generation_prompt, template, variables, guarded=True)
        return self._encode_rendered(rendered)[0]

    def encode_answers(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        last: bool = False,
        **variables: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a conversation as of `encode_chat`, int32[n], and which of them the assistant writes, bool[n].

        These are what the template marks by `{% generation %}`. Of a template without such marks, an answer is the text
        behind the beginning of the assistant's message (`generation_prompt`), to the special token that ends it. A
        token of both a prompt and an answer is the answer's.

        Args:
            messages, tools, template, variables: as of `chat`.
            last: of the last answer alone. Messages behind it are left out.

        Raises:
            ValueError: as `chat`; an answer in front of all other messages; without marks also a template by which a
                conversation does not begin as the same one without its last messages: there an answer has no one place.
        """
        arguments.check(Tokenizer.encode_answers, locals())
        chat_templates.check_messages(messages)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if last and answers:
            answers, messages = answers[-1:], messages[: answers[-1] + 1]
        render = functools.partial(self._chat, tools=tools, template=template, variables=variables, guarded=True)
        whole = render(messages, generation_prompt=False)
        if chat_templates.marks_answers(self.chat_templates[self._template_name(tools, template)]):
            spans = whole.generated[-1:] if last else whole.generated
        else:
            spans = self._spans(messages, answers, whole.text, render)
        ids, offsets = self._encode_rendered(whole)
        written = np.zeros(len(ids), bool)
        for start, end in spans:
            inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
            written[inside.min(initial=len(ids)) : inside.max(initial=-1) + 1] = True
        return ids, written

    def _spans(
        self, messages: Sequence[Mapping[str, Any]], answers: list[int], text: str, render: Callable[..., Rendered]
    ) -> list[tuple[int, int]]:
        """Where these messages, which are answers, begin and end in the text of a conversation."""
        end_of_turn = "" if self.end_of_turn_id is None else self._backend.token(self.end_of_turn_id)
        spans = []
        for i in answers:
            if not i:
                raise ValueError("message 0 is the assistant's: an answer needs a message in front of it")
            prompt = render(messages[:i], generation_prompt=True).text
            until = render(messages[: i + 1], generation_prompt=False).text
            for shorter, longer, what in ((prompt, until, "with that answer"), (until, text, "with later messages")):
                if not longer.startswith(shorter):
                    at = next(k for k, pair in enumerate(zip_longest(shorter, longer)) if pair[0] != pair[1])
                    raise ValueError(
                        f"the chat template of {self._source} writes what is in front of "
                        f"{'the end of ' if longer is text else ''}message {i}, an answer, otherwise {what}: "
                        f"{json_files.excerpt(repr(shorter[at:]))} becomes {json_files.excerpt(repr(longer[at:]))}. So "
                        "it must mark what the assistant writes, by {% generation %} and {% endgeneration %}; or train "
                        "on last answers alone"
                    )
            end = until.rstrip() if end_of_turn and until.rstrip().endswith(end_of_turn) else until
            spans.append((len(prompt), len(end)))
        return spans

    def _encode_rendered(self, chat: Rendered) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a conversation and their places in its text, int32[n] and int32[n, 2]."""
        encoding = self.encode(chat.text)
        if not chat.hidden:
            return encoding.ids, encoding.offsets
        own = [  # the template's own special tokens
            (int(start), int(end), int(i))
            for (start, end), i in zip(encoding.offsets, encoding.ids)
            if i in self._backend.tokens
            and self._backend.tokens[i].special
            and not any(start < last and first < end for first, last in chat.hidden)
        ]
        ids, offsets, at = [], [], 0
        for start, end, i in [*own, (len(chat.text), len(chat.text), None)]:
            if at < start:
                between = self.encode(chat.text[at:start], special=False)
                ids.append(between.ids)
                offsets.append(between.offsets + at)
            if i is not None:
                ids.append([i])
                offsets.append([(start, end)])
            at = end
        return np.concatenate(ids).astype(np.int32), np.concatenate(offsets).astype(np.int32)

    def _template_name(self, tools: Any, template: str | None) -> str:
        """The name of the chat template to use.

        Raises:
            ValueError: there is none.
        """
        known = self.chat_templates
        if not known:
            raise ValueError(
                f"{self._source} has no chat template: load a model that was tuned on conversations (often named "
                "-Instruct or -chat), or put a chat_template.jinja into its folder; a run names one by "
                "vocabulary.chat_template"
            )
        name = template or ("tool_use" if tools is not None and "tool_use" in known else "default")
        if name not in known:
            raise ValueError(
                f"{self._source} has no chat template {name!r}: name one by template=, of {', '.join(known)}"
            )
        return name

    def _chat(
        self, messages: Any, tools: Any, generation_prompt: bool, template: str | None, variables: Any, guarded: bool
    ) -> Rendered:
        """A conversation as text. Special tokens that it spells out are hidden from the template if it is guarded."""
        source = self.chat_templates[self._template_name(tools, template)]
        chat_templates.check_messages(messages)
        if tools and "tools" not in source:
            raise ValueError(f"the chat template of {self._source} does not write tools: leave them out")
        messages = [{key: x for key, x in message.items() if x is not None} for message in messages]
        given = {"messages": messages, "tools": None if tools is None else [*tools], "variables": variables}
        given = {key: chat_templates.plain(value, key) for key, value in given.items()}
        special = [token.content for token in self._backend.tokens.values() if token.special]
        guard = chat_templates.Guard.of(special if guarded else [], given, source)
        given = guard.hide(given)
        text = chat_templates.render(
            source,
            {f"{role}_token": token for role, token in self._roles.items()}
            | self._extra_special_tokens
            | {"documents": None}
            | given.pop("variables")
            | given
            | {"add_generation_prompt": generation_prompt},
            f"the chat template of {self._source}",
            guard.brackets,
        )
        return guard.reveal(text)

    @functools.cached_property
    def _extra_special_tokens(self) -> dict[str, Any]:
        """Variables of chat templates that tokenizer_config.json adds."""
        extra = json_files.parse(self._files.get(CONFIG, b"{}"), CONFIG).get("extra_special_tokens")
        return extra if isinstance(extra, dict) else {}

    @functools.cached_property
    def end_of_turn_id(self) -> int | None:
        """The special token by which the chat template ends the assistant's message; None if it has none or that cannot
        be told."""
        turn = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            text = self.chat(turn, generation_prompt=False)
        except ValueError:
            return None
        encoding, end = self.encode(text), text.rfind("answer") + len("answer")
        for (start, _), i in zip(encoding.offsets, encoding.ids):
            if start >= end and i in self._backend.tokens and self._backend.tokens[i].special:
                return None if text[end:start].strip() else int(i)
        return None

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The vocabulary's own spelling of some tokens, as for labels of a picture."""
        return [self._backend.token(int(i)) for i in ids]

    @property
    def whole_tokens(self) -> Mapping[int, tokenizers.AddedToken]:
        """The tokens, by id, that are found in a text before it is cut: special ones, and others that were added."""
        return self._backend.tokens

    def id_of(self, token: str) -> int | None:
        """The id of a token in the vocabulary's own spelling, or None."""
        return self._backend.id_of(token)

    def lower_cased(self) -> "Tokenizer":
        """The same tokenizer with texts put in lower case first, save for the special tokens that they spell out.

        Raises:
            ValueError: a tokenizer that is not one of the `tokenizers` library.
        """
        if not isinstance(self._backend, Library):
            raise ValueError(f"texts are put in lower case for a tokenizer.json or a vocab.txt, not for {self.kind}")
        return Tokenizer(self._backend.lower_cased(), self._roles, {}, self._languages, self._source)

    def with_chat_template(self, template: str, source: str) -> "Tokenizer":
        """The same tokenizer with this chat template, in Jinja, in place of its own; source: the file that errors
        name."""
        files = {name: content for name, content in self._files.items() if not name.endswith(".jinja")}
        files |= {"chat_template.jinja": template.encode()}
        return Tokenizer(self._backend, self._roles, files, self._languages, source)

    def save(self, directory: str | os.PathLike[str], settings: Mapping[str, Any] | None = None) -> None:
        """Writes the tokenizer's files: those that it was loaded from, and what other libraries need besides.

        Args:
            settings: what tokenizer_config.json says about a model, such as `model_max_length`, where it names a class
                that says nothing of one. What a file says that it was loaded from stays as it is.
        """
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = self._backend.files(self._roles) | self._files
        config = json_files.parse(files.get(CONFIG, b"{}"), CONFIG)
        missing = {name: value for name, value in (settings or {}).items() if name not in config}
        if missing and (config.get("tokenizer_class") or "").removesuffix("Fast") in GENERIC:
            files[CONFIG] = as_json(config | missing)
        for name, content in files.items():
            file = directory / name
            file.parent.mkdir(exist_ok=True)
            partial = file.with_name(f".{file.name}.{os.getpid()}")
            try:
                partial.write_bytes(content)
                partial.replace(file)
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
        kind = class_of(settings)
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
        templates = sorted(file for pattern in TEMPLATES for file in folder.glob(pattern))
        beside = [*SETTINGS, *(str(file.relative_to(folder)) for file in templates)]
        if not path.is_file():
            beside += [name for names in there[1:] for name in names]
        files = {name: (folder / name).read_bytes() for name in beside if (folder / name).is_file()} | contents
        try:
            return _build(contents, files, settings, str(folder))
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
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
                Where that cannot be written, a warning says so.
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
        learned = functools.cache(lambda: learn[kind](_checked(texts), vocab_size))
        if cache_dir is None:
            return learned()
        name = f"{kind}{'-lower' if lower_case else ''}-{vocab_size}-{_hash(texts)}"
        try:
            folder = Path(cache_dir).expanduser() / name
            if not os.path.isdir(folder):
                learned()._keep(folder)
            return cls.load(folder)
        except (OSError, RuntimeError) as error:  # no room, no permission; no home
            warnings.warn(f"the tokenizer is not kept in {cache_dir} for other runs: {error}", stacklevel=2)
            return learned()

    def _keep(self, folder: Path) -> None:
        """Puts the tokenizer's files into a folder, whole, unless another process has just put them there."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        try:
            self.save(partial)
            partial.chmod(0o755)
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


# Training


def _train_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = _merged_bytes(texts, vocab_size, [END_OF_TEXT])
    return Tokenizer(Library(tokenizer.to_str()), {"bos": END_OF_TEXT, "eos": END_OF_TEXT}, {})


def _train_roberta(texts: list[str], vocab_size: int) -> Tokenizer:
    """The special tokens are where RoBERTa has them: all in front but the mask, which is the last of all."""
    tokenizer = as_roberta(_merged_bytes(texts, vocab_size - 1, ["<s>", "<pad>", "</s>", "<unk>"]))
    backend = Library(tokenizer.to_str())
    return Tokenizer(backend, _roles({}, backend, CONVENTIONS), {})


def _train_t5(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = _merged_bytes(texts, vocab_size - SENTINELS, ["<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([f"<extra_id_{n}>" for n in reversed(range(SENTINELS))])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:0 </s>:0", special_tokens=[("</s>", 1)]
    )
    backend = Library(tokenizer.to_str())
    return Tokenizer(backend, _roles({}, backend, CONVENTIONS), {})


def _merged_bytes(texts: list[str], vocab_size: int, special: list[str]) -> tokenizers.Tokenizer:
    tokenizer = byte_level(models.BPE(), add_prefix_space=False, trim_offsets=False)
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
    backend, usual = from_wordpiece([vocab], {"do_lower_case": lower_case}, {})
    return Tokenizer(backend, _roles({}, backend, CONVENTIONS | usual), {})


# Files


def _build(
    contents: dict[str, bytes], files: dict[str, bytes], settings: dict[str, dict[str, Any]], source: str
) -> Tokenizer:
    """A tokenizer from its own files, if it has any, and from those of the settings beside them and what they say."""
    config = settings["config.json"] | settings["special_tokens_map.json"] | settings["tokenizer_config.json"]
    for setting in ("extra_ids", "offset"):
        if not 0 <= (count := config.get(setting) or 0) <= MOST_EXTRA:
            raise ValueError(f"{setting} is {count}, where 0 to {MOST_EXTRA} is expected")
    kind, (name, *_) = class_of(settings), contents or ("",)
    if kind not in CLASSES or name == "tokenizer.json":
        read = READERS[name]
    else:
        read = CLASSES[kind].read
        if "tokenizer_class" not in settings["tokenizer_config.json"]:  # what is saved has to say it
            files["tokenizer_config.json"] = as_json(settings["tokenizer_config.json"] | {"tokenizer_class": kind})
    if name == "tokenizer.json":
        contents = contents | {name: followed(contents[name], kind, settings["tokenizer_config.json"])}
    elif name.endswith(".model") and kind in FOLLOWED and config.get("add_prefix_space") is False:
        warnings.warn(
            "add_prefix_space is false in tokenizer_config.json, which is followed beside a tokenizer.json only: "
            f"{name} reads a text with a space in front",
            stacklevel=3,
        )
    added, named = added_tokens(settings)
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
    language, target = (config.get(side) if backend.languages else None for side in ("src_lang", "tgt_lang"))
    for code in filter(None, (language, target)):
        spm.language_id(backend.languages, code)
    roles = _roles(settings, backend, CONVENTIONS | usual)
    tokenizer = Tokenizer(backend, roles, files, (language, target or language), source)
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


# Settings that win over a tokenizer.json


# The library


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


def is_old_fingerprint(fingerprint: Any) -> bool:
    """Whether a fingerprint is by an older version, so that it cannot be compared with one of today."""
    return isinstance(fingerprint, str) and not fingerprint.startswith(FINGERPRINT)


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"tokenizers 1, {len(texts)} texts".encode())
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:16]
