"""The tokenizers of encoder-decoders beside those of transformers, on the same files and on the files that we save."""

import json
import shutil
import unicodedata

import pytest

transformers = pytest.importorskip("transformers")
from test_seq2seq_tokenizers import FRENCH, SENTENCES, TRICKY, folders, random_texts  # noqa: E402, F401

from parity import assets  # noqa: E402
from transformer_zoo.data.tokenizers import Tokenizer  # noqa: E402

TEXTS = [*SENTENCES[:5], *FRENCH[:3], "", " ", "a", "  leading and trailing  ", "e\u0301 é ﬁ", "文"]

# PegasusTokenizer and MBart50Tokenizer of today make a token of a space at the end, and MBartTokenizer leaves out how
# the model itself normalises. What sentencepiece does of these is held in tests/test_seq2seq_tokenizers.py.
PLAIN = [text for text in TEXTS if text == unicodedata.normalize("NFKC", text).strip()]

CLASSES = {
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "byt5": "ByT5Tokenizer",
    "pegasus": "PegasusTokenizer",
    "mbart": "MBartTokenizer",
    "mbart-50": "MBart50Tokenizer",
    "marian": "MarianTokenizer",
    "opus": "MarianTokenizer",
}


@pytest.fixture(params=CLASSES)
def both(request, folders, tmp_path):  # noqa: F811
    """Our tokenizer from the bare files, theirs from those files as we save them, and texts that both must tokenize
    alike."""
    ours = Tokenizer.load(folders[request.param])
    ours.save(tmp_path)
    theirs = getattr(transformers, CLASSES[request.param]).from_pretrained(tmp_path)
    return ours, theirs, PLAIN if request.param in ("pegasus", "mbart", "mbart-50") else TEXTS


def test_ids_in_their_frame(both):
    ours, theirs, texts = both
    for text in texts:
        assert ours.encode(text, template=True).ids.tolist() == theirs(text)["input_ids"], text
    for text, pair in zip(texts, filter(None, texts[1:])):  # an empty second text is none to them
        assert ours.encode(text, pair, template=True).ids.tolist() == theirs(text, pair)["input_ids"]


def test_targets(both):
    ours, theirs, texts = both
    for text in texts:
        assert ours.encode(text, template=True, target=True).ids.tolist() == theirs(text_target=text)["input_ids"]


def test_special_tokens(both):
    ours, theirs, _ = both
    for role in ("eos", "pad", "unk", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role
    sentinels = theirs.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(len(ours.sentinel_ids))])
    assert list(ours.sentinel_ids) == sentinels
    assert ours.vocab_size == len(theirs)


def test_text_comes_back(both):
    ours, theirs, _ = both
    for text in [*SENTENCES[:1], *SENTENCES[4:5]]:
        ids = ours.encode(text, template=True).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", CLASSES)
def test_what_they_save_is_read(folders, name, tmp_path):  # noqa: F811
    """For most tokenizers a tokenizer.json, which later publications have too."""
    languages = {"src_lang": "ro_RO", "tgt_lang": "fr_XX"} if name.startswith("mbart") else {}
    theirs = getattr(transformers, CLASSES[name]).from_pretrained(folders[name], **languages)
    theirs.save_pretrained(tmp_path)
    ours, bare = Tokenizer.load(tmp_path), Tokenizer.load(folders[name])
    assert (ours.sentinel_ids, ours.vocab_size) == (bare.sentinel_ids, bare.vocab_size)
    assert set(ours.languages) == set(bare.languages)
    assert [ours.language_id(code) for code in bare.languages] == [bare.language_id(code) for code in bare.languages]
    for role in ("eos", "pad", "unk", "mask"):
        assert getattr(ours, f"{role}_id") == getattr(bare, f"{role}_id"), role
    for text in TEXTS:
        ids = ours.encode(text, template=True).ids
        assert ids.tolist() == theirs(text)["input_ids"]
        assert ours.encode(text, template=True, target=True).ids.tolist() == theirs(text_target=text)["input_ids"]
    ids = ours.encode(SENTENCES[0], template=True).ids
    assert ours.decode(ids) == bare.decode(bare.encode(SENTENCES[0]).ids)


@pytest.mark.parametrize("name", ["mbart", "mbart-50"])
def test_languages(folders, name):  # noqa: F811
    ours = Tokenizer.load(folders[name])
    kind = getattr(transformers, CLASSES[name])
    theirs = kind.from_pretrained(folders[name], src_lang="ro_RO", tgt_lang="fr_XX")
    assert [ours.language_id(code) for code in ours.languages] == theirs.convert_tokens_to_ids(list(ours.languages))
    for text in PLAIN:
        source = ours.encode(text, template=True, language="ro_RO").ids
        target = ours.encode(text, template=True, target=True, language="fr_XX").ids
        assert source.tolist() == theirs(text)["input_ids"]
        assert target.tolist() == theirs(text_target=text)["input_ids"]


def test_what_is_wanted_of_a_source(folders):  # noqa: F811
    ours, theirs = Tokenizer.load(folders["marian"]), transformers.MarianTokenizer.from_pretrained(folders["marian"])
    for text in TEXTS[:8]:
        ids = theirs(f">>fra<< {text}")["input_ids"]
        assert ours.encode(text, template=True, language="fra").ids.tolist() == ids
        assert ours.encode(f">>fra<< {text}", template=True).ids.tolist() == ids


@pytest.mark.parametrize("kind", ["t5", "roberta"])
def test_those_that_are_trained(kind, tmp_path):
    ours = Tokenizer.train(SENTENCES, 500, kind=kind)
    ours.save(tmp_path)
    for model_type in (None, {"t5": "t5", "roberta": "bart"}[kind]):
        if model_type:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in [*TEXTS, *random_texts(50)]:
            ids = ours.encode(text, template=True).ids
            assert ids.tolist() == theirs(text)["input_ids"]
            assert theirs.decode(ids, skip_special_tokens=True) == text
        for n, i in enumerate(ours.sentinel_ids):
            assert theirs.convert_tokens_to_ids(f"<extra_id_{n}>") == i
        for role in ("eos", "pad", "unk"):
            assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id")


def test_a_published_model_with_bytes(tmp_path):
    """32,000 pieces, one for every byte among them: every text is restored."""
    shutil.copy(
        assets.unpacked("mistral_common") / "mistral_common/data/tokenizer.model.v1", tmp_path / "tokenizer.model"
    )
    ours, theirs = Tokenizer.load(tmp_path), transformers.LlamaTokenizer.from_pretrained(tmp_path)
    assert (ours.vocab_size, ours.unk_id, ours.bos_id, ours.eos_id, ours.sentinel_ids) == (32000, 0, 1, 2, ())
    for text in [*SENTENCES[:5], *FRENCH[:3], *TRICKY, *random_texts(200)]:
        ids = ours.encode(text, special=False).ids
        assert ours.decode(ids) == text
        if "  " not in text and text.strip() == text:  # their pieces of several spaces are others than sentencepiece's
            assert ids.tolist() == theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
