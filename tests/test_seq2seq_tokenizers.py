"""The tokenizers of encoder-decoders: ids, special tokens around a text, sentinels and languages."""

import io
import json
import pickle

import numpy as np
import pytest
import sentencepiece
from test_tokenizers import SENTENCES, TRICKY, random_texts

from transformer_zoo import pretrained
from transformer_zoo.data import spm
from transformer_zoo.data.tokenizers import Tokenizer

FRENCH = [
    "Le vif renard brun saute par-dessus le chien paresseux.",
    "encoder, décoder : l'œuvre du codeur",
    "Où est la forêt ? Là-bas, près de l'hôtel.",
] * 8

T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def model_file(sentences=SENTENCES, size=120, **how):
    """The bytes of a small SentencePiece model."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=proto,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"model_type": "unigram", **how},
    )
    return proto.getvalue()


def written(folder, **files):
    """The folder with these files; __ in a keyword stands for a dot in the name."""
    folder.mkdir()
    for name, content in files.items():
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def marian_table(*models, languages=()):
    """Ids for the pieces of models, as in Marian's vocabularies: </s> and <unk> first, <pad> last."""
    pieces = {}
    for model in models:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        found = processor.id_to_piece(list(range(3, processor.get_piece_size())))
        pieces |= dict.fromkeys(reversed(found))
    codes = [f">>{language}<<" for language in languages]
    return {token: i for i, token in enumerate(["</s>", "<unk>", *codes, *pieces, "<pad>"])}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each family, with only the files of its oldest publications."""
    root = tmp_path_factory.mktemp("seq2seq")
    t5, fairseq = model_file(**T5_IDS), model_file()
    inside = model_file(size=140, **T5_IDS, user_defined_symbols=[f"<extra_id_{n}>" for n in reversed(range(20))])
    source, target = model_file(), model_file(FRENCH, 100)
    return {
        "t5": written(root / "t5", spiece__model=t5, config__json={"model_type": "t5"}),
        "mt5": written(root / "mt5", spiece__model=inside, tokenizer_config__json={"extra_ids": 0}),
        "byt5": written(root / "byt5", tokenizer_config__json={"tokenizer_class": "ByT5Tokenizer"}),
        "pegasus": written(root / "pegasus", spiece__model=t5, config__json={"model_type": "pegasus"}),
        "mbart": written(root / "mbart", sentencepiece__bpe__model=fairseq, config__json={"model_type": "mbart"}),
        "mbart-50": written(
            *(root / "mbart-50",),
            sentencepiece__bpe__model=fairseq,
            config__json={"model_type": "mbart", "tokenizer_class": "MBart50Tokenizer"},
        ),
        "marian": written(
            *(root / "marian",),
            source__spm=source,
            target__spm=target,
            vocab__json=marian_table(source, target, languages=("fra", "frm", "deu")),
        ),
        "opus": written(
            root / "opus", source__spm=source, target__spm=target, vocab__json=marian_table(source, target)
        ),
    }


NAMES = ("t5", "mt5", "byt5", "pegasus", "mbart", "mbart-50", "marian", "opus")


@pytest.fixture(scope="module")
def trained():
    return Tokenizer.train(SENTENCES, 500, kind="t5")


def spelt(tokenizer, *texts, **how):
    """The tokens of texts with their special tokens."""
    encoding = tokenizer.encode(*texts, template=True, **how)
    return [token if text < 0 else int(text) for text, token in zip(encoding.texts, tokenizer.tokens(encoding.ids))]


# ---- where the special tokens are -----------------------------------------------------------------------------------


def test_sentinels_of_t5_are_the_last_ids_in_reverse(folders, tmp_path):
    tokenizer = Tokenizer.load(folders["t5"])
    assert tokenizer.sentinel_ids == tuple(range(tokenizer.vocab_size - 1, tokenizer.vocab_size - 101, -1))
    assert tokenizer.tokens(tokenizer.sentinel_ids[:2]) == ["<extra_id_0>", "<extra_id_1>"]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.bos_id) == (0, 1, 2, None)
    text = "The <extra_id_0> fox jumps <extra_id_1> the dog."
    ids = tokenizer.encode(text).ids.tolist()
    assert [i for i in ids if i in tokenizer.sentinel_ids] == list(tokenizer.sentinel_ids[:2])
    assert not set(tokenizer.sentinel_ids) & set(tokenizer.encode(text, special=False).ids.tolist())
    # Newer folders list them one by one, and some say how many there are.
    model = (folders["t5"] / "spiece.model").read_bytes()
    size = tokenizer.vocab_size - 100
    listed = {str(size + i): {"content": f"<extra_id_{29 - i}>", "special": True} for i in range(30)}
    for name, config in (("listed", {"added_tokens_decoder": listed}), ("counted", {"extra_ids": 30})):
        folder = written(tmp_path / name, spiece__model=model, tokenizer_config__json=config)
        assert Tokenizer.load(folder).sentinel_ids == tuple(range(size + 29, size - 1, -1))


def test_sentinels_that_a_model_holds(folders):
    tokenizer = Tokenizer.load(folders["mt5"])
    assert len(tokenizer.sentinel_ids) == 20 and max(tokenizer.sentinel_ids) < tokenizer.vocab_size
    assert tokenizer.tokens(tokenizer.sentinel_ids) == [f"<extra_id_{n}>" for n in range(20)]


@pytest.mark.parametrize("name", ["pegasus", "mbart", "marian"])
def test_others_have_no_sentinels(folders, name):
    assert Tokenizer.load(folders[name]).sentinel_ids == ()


def test_pegasus_begins_behind_its_tokens_of_pretraining(folders, tmp_path):
    tokenizer = Tokenizer.load(folders["pegasus"])
    model = sentencepiece.SentencePieceProcessor(model_file=str(folders["pegasus"] / "spiece.model"))
    assert tokenizer.vocab_size == model.get_piece_size() + 103
    assert tokenizer.tokens([0, 1, 2, 3, 4, 104, 105]) == [
        *("<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk_102>", "<unk>")
    ]
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id) == (0, 1, 105, 3)
    for text in SENTENCES[:5]:
        assert tokenizer.encode(text).ids.tolist() == [i + 103 for i in model.encode(text)]
        assert tokenizer.decode([*tokenizer.encode(text).ids, 1]) == model.decode(model.encode(text))
    config = {"tokenizer_class": "PegasusTokenizerFast", "offset": 0}  # BigBird's
    bare = written(tmp_path / "b", spiece__model=model.serialized_model_proto(), tokenizer_config__json=config)
    assert Tokenizer.load(bare).encode("the code").ids.tolist() == model.encode("the code")


@pytest.mark.parametrize(("name", "codes"), [("mbart", spm.MBART), ("mbart-50", spm.MBART_50)])
def test_languages_of_mbart_lie_between_the_pieces_and_the_mask(folders, name, codes):
    tokenizer = Tokenizer.load(folders[name])
    model = sentencepiece.SentencePieceProcessor(model_file=str(folders[name] / "sentencepiece.bpe.model"))
    size = model.get_piece_size()
    assert tokenizer.languages == codes and len(codes) in (25, 52)
    assert [tokenizer.language_id(code) for code in codes] == list(range(size + 1, size + 1 + len(codes)))
    assert tokenizer.mask_id == size + 1 + len(codes) == tokenizer.vocab_size - 1
    assert tokenizer.tokens(range(4)) == ["<s>", "<pad>", "</s>", "<unk>"]
    for text in SENTENCES[:5]:
        assert tokenizer.encode(text).ids.tolist() == [i + 1 if i else 3 for i in model.encode(text)]


@pytest.mark.parametrize("name", [*NAMES, "with bytes"])
def test_bytes_of_tokens(folders, name, tmp_path):
    """Together they are the text of the tokens, at its beginning and behind others; no special token has any."""
    if name == "with bytes":
        model = model_file(size=420, byte_fallback=True, **T5_IDS)
        folders = {name: written(tmp_path / "bytes", spiece__model=model, config__json={"model_type": "t5"})}
    tokenizer = Tokenizer.load(folders[name])
    first, later = tokenizer.token_bytes
    for text in (*SENTENCES[:3], *(("\U0001f600 \u6587",) if name in ("byt5", "with bytes") else ())):
        ids = tokenizer.encode(text, target=True).ids.tolist()
        whole = b"".join([first[ids[0]], *(later[i] for i in ids[1:])]).decode()
        assert whole == tokenizer.decode(ids) != ""
    assert {first[tokenizer.eos_id], later[tokenizer.eos_id], later[tokenizer.pad_id]} == {b""}


def test_byt5_is_bytes(folders):
    tokenizer = Tokenizer.load(folders["byt5"])
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == ("bytes", 384, 0, 1)
    assert tokenizer.sentinel_ids == tuple(range(259, 384))
    for text in [*SENTENCES, *TRICKY, *random_texts(100)]:
        encoding = tokenizer.encode(text, special=False)
        assert encoding.ids.tolist() == [byte + 3 for byte in text.encode()]
        assert tokenizer.decode([*encoding.ids, 1, 0]) == text
        assert "".join(dict.fromkeys(text[i:j] for i, j in encoding.offsets)) == "".join(dict.fromkeys(text))
        ((ids, counts),) = tokenizer.encode_bytes([text], special=False)
        assert ids.tolist() == encoding.ids.tolist() and counts.tolist() == [1] * len(text.encode())
    encoding = tokenizer.encode("naïve, 文")
    words = [encoding.offsets[encoding.words == word] for word in range(encoding.words.max() + 1)]
    assert ["naïve, 文"[span[0, 0] : span[-1, 1]] for span in words] == ["naïve", ",", " 文"]
    encoding = tokenizer.encode("a <extra_id_3> b</s>")
    assert encoding.ids.tolist() == [100, 35, 262, 35, 101, 1] and encoding.offsets[2].tolist() == [2, 14]
    assert tokenizer.decode(encoding.ids, special=True) == "a <extra_id_3> b</s>"
    assert tokenizer.decode([3 + 0xE6, 3 + 0x96, 100]) == "a"  # a character that was never finished
    assert tokenizer.tokens([0, 100, 262]) == ["<pad>", "a", "<extra_id_3>"]
    assert [tokenizer.id_of(token) for token in ("<pad>", "a", "é", "文")] == [0, 100, 0xE9 + 3, None]


# ---- what frames a text ---------------------------------------------------------------------------------------------

FRAMES = {
    "t5": ([0, "</s>"], [0, "</s>", 1, "</s>"]),
    "mt5": ([0, "</s>"], [0, "</s>", 1, "</s>"]),
    "byt5": ([0, "</s>"], [0, "</s>", 1, "</s>"]),
    "pegasus": ([0, "</s>"], [0, 1, "</s>"]),
    "mbart": ([0, "</s>", "en_XX"], [0, 1, "</s>", "en_XX"]),
    "mbart-50": (["en_XX", 0, "</s>"], ["en_XX", 0, 1, "</s>"]),
    "marian": ([0, "</s>"], [0, 1, "</s>"]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_texts_are_framed(folders, name):
    tokenizer = Tokenizer.load(folders[name])
    assert list(dict.fromkeys(map(str, spelt(tokenizer, "the code")))) == list(map(str, FRAMES[name][0]))
    pair = spelt(tokenizer, "the code", "the")
    assert [x for i, x in enumerate(pair) if not i or isinstance(x, str) or x != pair[i - 1]] == FRAMES[name][1]
    encoding = tokenizer.encode("", "", template=True)
    assert (encoding.texts == -1).all() and not encoding.segments.any()


def test_a_frame_says_the_language_that_is_asked_for(folders, tmp_path):
    mbart, mbart_50 = (Tokenizer.load(folders[name]) for name in ("mbart", "mbart-50"))
    assert spelt(mbart, "a", language="fr_XX")[-2:] == ["</s>", "fr_XX"]
    assert spelt(mbart_50, "a", language="fr_XX")[0] == "fr_XX"
    model = (folders["mbart"] / "sentencepiece.bpe.model").read_bytes()
    for config, source, target in (
        ({"src_lang": "ro_RO"}, "ro_RO", "ro_RO"),
        ({"src_lang": "ro_RO", "tgt_lang": "de_DE"}, "ro_RO", "de_DE"),
        ({"src_lang": None, "tgt_lang": "de_DE"}, "en_XX", "de_DE"),
    ):
        config = {"tokenizer_class": "MBartTokenizer", **config}
        folder = written(
            tmp_path / f"{source}-{target}", sentencepiece__bpe__model=model, tokenizer_config__json=config
        )
        tokenizer = Tokenizer.load(folder)
        assert [spelt(tokenizer, "a", target=side)[-1] for side in (False, True)] == [source, target]
        assert spelt(tokenizer, "a", target=True, language="it_IT")[-1] == "it_IT"
        assert tokenizer.fingerprint != mbart.fingerprint


def test_settings_that_name_no_language(folders, tmp_path):
    model = (folders["mbart"] / "sentencepiece.bpe.model").read_bytes()
    config = {"tokenizer_class": "MBartTokenizer", "src_lang": "en"}
    folder = written(tmp_path / "a", sentencepiece__bpe__model=model, tokenizer_config__json=config)
    with pytest.raises(
        ValueError, match="bpe.model is not a tokenizer that can be read: unknown language 'en': did you"
    ):
        Tokenizer.load(folder)


def test_marian_says_what_is_wanted_of_a_source(folders):
    tokenizer = Tokenizer.load(folders["marian"])
    assert tokenizer.languages == ("fra", "frm", "deu")
    code = tokenizer.language_id("fra")
    plain = tokenizer.encode("the code").ids.tolist()
    assert tokenizer.encode("the code", template=True, language="fra").ids.tolist() == [code, *plain, tokenizer.eos_id]
    encoding = tokenizer.encode(">>fra<< the code")
    assert encoding.ids.tolist() == [code, *plain] and encoding.offsets[0].tolist() == [0, 7]
    assert ">>fra<< the code"[encoding.offsets[-1, 0] : encoding.offsets[-1, 1]].endswith("e")
    assert encoding.words[0] == 0 and encoding.words[1] == 1
    assert tokenizer.encode("the >>fra<<").ids.tolist().count(code) == 0
    target = tokenizer.encode("le renard", template=True, target=True, language="fra")
    assert code not in target.ids  # a target is in the language
    with pytest.raises(ValueError, match=r"unknown language 'fre': did you mean 'frm' or 'fra'\? It is one of fra,"):
        tokenizer.encode(">>fre<< the code")
    assert code not in Tokenizer.load(folders["opus"]).encode(">>fra<< the code").ids  # one that has no languages


def test_unknown_languages(folders):
    with pytest.raises(ValueError, match=r"unknown language 'fr': did you mean 'fr_XX'.*\? It is one of ar_AR, cs_CZ"):
        Tokenizer.load(folders["mbart"]).language_id("fr")
    with pytest.raises(ValueError, match="unknown language 'french'"):
        Tokenizer.load(folders["mbart"]).encode("a", template=True, language="french")
    with pytest.raises(ValueError, match="'fr_XX' is said by the template: ask for template=True too"):
        Tokenizer.load(folders["mbart"]).encode("a", language="fr_XX")
    with pytest.raises(
        ValueError, match="has no tokens for languages, .* said in the text, such as 'translate English"
    ):
        Tokenizer.load(folders["t5"]).language_id("fr")


# ---- two models, one table ------------------------------------------------------------------------------------------


def test_marian_cuts_sources_and_targets_by_their_own_models(folders):
    tokenizer = Tokenizer.load(folders["opus"])
    table = json.loads((folders["opus"] / "vocab.json").read_text())
    for side, texts in (("source", SENTENCES), ("target", FRENCH)):
        model = sentencepiece.SentencePieceProcessor(model_file=str(folders["opus"] / f"{side}.spm"))
        for text in [*texts[:5], *SENTENCES[:5], *FRENCH[:3], *TRICKY[:7]]:
            encoding = tokenizer.encode(text, target=side == "target")
            pieces = model.encode(text, out_type=str)
            assert encoding.ids.tolist() == [table.get(piece, table["<unk>"]) for piece in pieces]
            if side == "target":
                known = model.decode([piece for piece in pieces if piece in table])
                assert tokenizer.decode([*encoding.ids, tokenizer.eos_id]) == known.strip()
    assert tokenizer.decode(tokenizer.encode(FRENCH[0], target=True).ids) == FRENCH[0]
    assert (tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (0, 1, tokenizer.vocab_size - 1)
    # A character that only the other model holds is in the table all the same.
    assert tokenizer.unk_id not in tokenizer.encode("œ").ids


def test_marian_tables_that_are_not_read(folders, tmp_path):
    files = {f"{side}__spm": (folders["opus"] / f"{side}.spm").read_bytes() for side in ("source", "target")}
    folder = written(tmp_path / "a", **files, vocab__json={"</s>": 0, "a": 1})
    with pytest.raises(ValueError, match="vocab.json has no <unk>"):
        Tokenizer.load(folder)
    config = {"separate_vocabs": True}
    folder = written(tmp_path / "b", **files, vocab__json={"</s>": 0, "<unk>": 1}, tokenizer_config__json=config)
    with pytest.raises(ValueError, match="separate_vocabs is set, and there is no target_vocab.json"):
        Tokenizer.load(folder)


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_pickled_are_the_same(folders, name, tmp_path):
    """Settings that only config.json had are written into the saved files, which are read without it."""
    tokenizer = Tokenizer.load(folders[name])
    tokenizer.save(tmp_path)
    assert not (tmp_path / "config.json").exists()
    for copy in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint
        assert (copy.sentinel_ids, copy.languages, copy.mask_id) == (
            *(tokenizer.sentinel_ids, tokenizer.languages, tokenizer.mask_id),
        )
        for text in [*SENTENCES[:5], *TRICKY]:
            for how in ({}, {"template": True}, {"target": True, "template": True}):
                for field in ("ids", "offsets", "texts", "words"):
                    ours, theirs = (getattr(t.encode(text, **how), field) for t in (tokenizer, copy))
                    np.testing.assert_array_equal(ours, theirs)


def test_files_of_one_family_are_not_those_of_another(folders):
    assert len({Tokenizer.load(folder).fingerprint for folder in folders.values()}) == len(folders)


def test_a_model_comes_with_the_tokenizer_that_needs_no_file(folders, tmp_path):
    for name, kind in (("byt5", "bytes"), ("opus", "sentencepiece")):
        found, cause = pretrained._tokenizer(folders[name])
        assert found.kind == pretrained.load_tokenizer(folders[name]).kind == kind and not cause
    # The settings of a tokenizer whose files are not there are none.
    settings = written(tmp_path / "a", tokenizer_config__json={"do_lower_case": True})
    with pytest.warns(UserWarning, match="the tokenizer cannot be read"):
        found, cause = pretrained._tokenizer(settings)
    assert found is None and "only its tokenizer_config.json is there" in cause


@pytest.mark.parametrize("name", NAMES)
def test_offsets_and_bytes(folders, name):
    tokenizer = Tokenizer.load(folders[name])
    for text in [*SENTENCES[:5], *TRICKY, *random_texts(30, seed=1)]:
        encoding = tokenizer.encode(text)
        starts, ends = encoding.offsets.T
        assert (starts >= 0).all() and (starts <= ends).all() and (ends <= len(text)).all()
        ((ids, counts),) = tokenizer.encode_bytes([text])
        np.testing.assert_array_equal(ids, encoding.ids)
        assert counts.sum() == len(text[: ends.max(initial=0)].encode())


def test_languages_of_a_tokenizer_json(trained, tmp_path):
    """mBART's own tokenizer.json has its languages as special tokens, and one of them in its template."""
    trained.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    first, flags = trained.vocab_size, ("single_word", "lstrip", "rstrip", "normalized")
    for i, code in enumerate(("en_XX", "fr_XX"), first):
        token = {"id": i, "content": code, "special": True} | dict.fromkeys(flags, False)
        content["added_tokens"].append(token)
    say = {"SpecialToken": {"id": "en_XX", "type_id": 0}}
    for frame in ("single", "pair"):
        content["post_processor"][frame].append(say)
    content["post_processor"]["special_tokens"]["en_XX"] = {"id": "en_XX", "ids": [first], "tokens": ["en_XX"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tgt_lang": "fr_XX"}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.languages == ("en_XX", "fr_XX") and tokenizer.language_id("fr_XX") == first + 1
    assert spelt(tokenizer, "a", "b")[-2:] == ["</s>", "en_XX"]
    assert spelt(tokenizer, "a", language="fr_XX")[-2:] == spelt(tokenizer, "a", target=True)[-2:] == ["</s>", "fr_XX"]


# ---- trained here ---------------------------------------------------------------------------------------------------


def test_trained_for_t5(trained, tmp_path):
    assert trained.tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert (trained.pad_id, trained.eos_id, trained.unk_id, trained.bos_id, trained.mask_id) == (0, 1, 2, None, None)
    assert trained.vocab_size == 500 and trained.sentinel_ids == tuple(range(499, 399, -1))
    assert spelt(trained, "the", "code")[-1] == "</s>" and spelt(trained, "a", "b") == [0, "</s>", 1, "</s>"]
    trained.save(tmp_path)
    for tokenizer in (trained, Tokenizer.load(tmp_path)):
        assert tokenizer.fingerprint == trained.fingerprint and tokenizer.sentinel_ids == trained.sentinel_ids
        for text in [*SENTENCES, *TRICKY, *random_texts(300)]:
            ids = tokenizer.encode(text, template=True, special=False).ids
            assert ids[-1] == 1 and tokenizer.decode(ids) == text and 2 not in ids
    mixed = [*trained.encode("the ").ids, trained.sentinel_ids[0], *trained.encode(" code").ids]
    assert trained.decode(mixed, special=True) == "the <extra_id_0> code"
    assert trained.encode("the <extra_id_0> code").ids.tolist() == mixed
    assert trained.sentinel_ids[0] not in trained.encode("the <extra_id_0> code", special=False).ids
    with pytest.raises(ValueError, match="for kind=t5 it must be at least 359"):
        Tokenizer.train(SENTENCES, 358, kind="t5")
    again = Tokenizer.train(SENTENCES, 500, tmp_path / "kept", kind="t5")
    assert again.fingerprint == trained.fingerprint


def test_the_one_for_bart_has_its_mask():
    tokenizer = Tokenizer.train(SENTENCES, 400, kind="roberta")
    assert tokenizer.tokens([0, 1, 2, 3, tokenizer.mask_id]) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert spelt(tokenizer, "a") == ["<s>", 0, "</s>"]
