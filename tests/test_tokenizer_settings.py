"""Folders of tokenizers as people have them: special and added tokens in text, settings, classes, damaged files.

Expected ids that are not obvious were computed once with transformers 5.23.
"""

import json
import pickle
from pathlib import Path

import families
import numpy as np
import pytest
import tokenizers as library
from test_seq2seq_tokenizers import T5_IDS, marian_table, model_file, written
from test_tokenizers import SENTENCES

from transformer_zoo import evaluate
from transformer_zoo.data.packing import PackedTexts
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.embedding import Embedder
from transformer_zoo.generation import generate
from transformer_zoo.models import gpt2

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "hello",
    "world",
    "Hello",
    "resume",
    "résumé",
    "中",
    "文",
    "中文",
]
SMALL = {"max_length": 16, "width": 8, "num_layers": 1, "num_heads": 1}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train(SENTENCES, 300)


@pytest.fixture(scope="module")
def t5_model():
    return model_file(**T5_IDS)


def old_files(tokenizer, **beside):
    """vocab.json and merges.txt of a byte-level tokenizer."""
    data = json.loads(tokenizer._backend.serialized)
    merges = "".join(f"{left} {right}\n" for left, right in data["model"]["merges"]).encode()
    return {"vocab__json": data["model"]["vocab"], "merges__txt": merges, **beside}


def vocab_txt(*words):
    return "".join(f"{word}\n" for word in words).encode()


def read(encoding, text):
    """The stretch of the text that each token stands for."""
    return [text[start:end] for start, end in encoding.offsets]


# ---- special tokens in text -----------------------------------------------------------------------------------------


def test_special_tokens_in_text_are_read(tmp_path, bpe, t5_model):
    text = "Hello [SEP] World"
    bert = Tokenizer.load(written(tmp_path / "bert", vocab__txt=vocab_txt(*WORDS[:7])))
    encoding = bert.encode(text, template=True)
    assert encoding.ids.tolist() == [2, 5, 3, 6, 3]
    assert read(encoding, text) == ["", "Hello", "[SEP]", "World", ""] and encoding.texts.tolist() == [-1, 0, 0, 0, -1]
    assert bert.encode(text, special=False).ids.tolist() == [5, 1, 1, 1, 6]

    encoding = bpe.encode("Hello<|endoftext|>")
    assert encoding.ids[-1] == bpe.eos_id == 0 and encoding.offsets[-1].tolist() == [5, 18]
    assert bpe.eos_id not in bpe.encode("Hello<|endoftext|>", special=False).ids
    assert bpe.decode(bpe.encode("a<|endoftext|>").ids, special=True) == "a<|endoftext|>"

    t5 = Tokenizer.load(written(tmp_path / "t5", spiece__model=t5_model))
    text = "the <extra_id_0> code</s>"
    encoding = t5.encode(text)
    assert encoding.ids.tolist() == [*t5.encode("the").ids, t5.sentinel_ids[0], *t5.encode(" code").ids, 1]
    assert "<extra_id_0>" in read(encoding, text) and read(encoding, text)[-1] == "</s>"
    assert t5.decode(encoding.ids, special=True) == "the<extra_id_0> code</s>"
    assert t5.decode(encoding.ids) == "the code"


def test_training_reads_special_tokens_in_text(bpe):
    rng = np.random.default_rng(0)
    rows = PackedTexts(tokenizer=bpe, length=16, packing="documents")([{"text": "ab<|endoftext|>cd"}], rng)
    targets = rows["targets_BT"][rows["valid_BT"]]
    assert (targets == bpe.eos_id).sum() == 2 and rows["bytes_B"].tolist() == [17]
    t5 = Tokenizer.train(SENTENCES, 400, kind="t5")
    ids = t5.encode("the <extra_id_0> code").ids
    assert t5.sentinel_ids[0] in ids and len(ids) < len(t5.encode("the <extra_id_0> code", special=False).ids)


def test_prompts_have_the_frame_of_their_tokenizer(tmp_path, bpe):
    """Also what it puts behind a text. An empty prompt is what stands in front."""
    m = families.made("gpt2", gpt2.Config(vocab_size=400, **SMALL))
    prompt = bpe.encode("Hello").ids.tolist()
    data = json.loads(bpe._backend.serialized)
    say = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    names = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    frame = {"type": "TemplateProcessing", "single": [say, one, say], "pair": [say, one, two], "special_tokens": names}
    folders = {
        "json": written(tmp_path / "json", tokenizer__json=data | {"post_processor": frame}),
        "files": written(tmp_path / "files", **old_files(bpe), tokenizer_config__json={"add_bos_token": True}),
    }
    for name, behind in (("json", [0]), ("files", [])):
        tokenizer = Tokenizer.load(folders[name])
        framed = (("Hello", [0, *prompt, *behind]), ("", [0]), ("Hello<|endoftext|>", [0, *prompt, 0, *behind]))
        for text, row in framed:
            assert [ids.tolist() for ids in generate._encode(m.replace(tokenizer=tokenizer), [text], None)] == [row]
    assert Tokenizer.load(folders["files"]).encode("Hello", template=True).ids.tolist() == [0, *prompt]
    rows = generate._encode(m.replace(tokenizer=bpe), ["Hello<|endoftext|>"], None)
    assert rows[0].tolist() == [*prompt, 0]


# ---- added tokens ---------------------------------------------------------------------------------------------------


def test_added_tokens_of_a_sentencepiece_model(tmp_path, t5_model):
    size = Tokenizer.load(written(tmp_path / "bare", spiece__model=t5_model)).vocab_size
    braces = {str(size + i): {"content": token, "special": False} for i, token in enumerate("{}")}
    tokenizer = Tokenizer.load(
        written(tmp_path / "a", spiece__model=t5_model, tokenizer_config__json={"added_tokens_decoder": braces})
    )
    x = tokenizer.encode("x").ids.tolist()
    encoding = tokenizer.encode("{x}", template=True)
    assert encoding.ids.tolist() == [size, *x, size + 1, 1] and read(encoding, "{x}")[-2] == "}"
    assert tokenizer.encode("{x}", special=False).ids.tolist() == [size, *x, size + 1]
    assert tokenizer.decode(encoding.ids) == "{ x}" and tokenizer.vocab_size == size + 2
    older = written(tmp_path / "b", spiece__model=t5_model, added_tokens__json={"{": size, "}": size + 1})
    np.testing.assert_array_equal(Tokenizer.load(older).encode("{x}").ids, encoding.ids[:-1])
    contradiction = {"5": {"content": "{"}}
    wrong = written(
        tmp_path / "c", spiece__model=t5_model, tokenizer_config__json={"added_tokens_decoder": contradiction}
    )
    with pytest.raises(ValueError, match="spiece.model is not .*: the added token '{' cannot have id 5, which is"):
        Tokenizer.load(wrong)


def test_tokens_that_are_only_named_lie_behind_the_vocabulary(tmp_path, bpe, t5_model):
    config = {"pad_token": "<p>", "additional_special_tokens": ["<a>", {"content": "<b>", "lstrip": True}]}
    for name, files in (
        ("json", {"tokenizer__json": json.loads(bpe._backend.serialized)}),
        ("files", old_files(bpe)),
        ("model", {"spiece__model": t5_model}),
        ("bytes", {}),
    ):
        kind = {"tokenizer_class": "ByT5Tokenizer"} if name == "bytes" else {}
        bare = Tokenizer.load(written(tmp_path / f"{name}-bare", tokenizer_config__json=kind, **files))
        tokenizer = Tokenizer.load(written(tmp_path / name, tokenizer_config__json=kind | config, **files))
        size = bare.vocab_size
        assert (tokenizer.pad_id, tokenizer.vocab_size) == (size, size + 3), name
        assert tokenizer.tokens(range(size, size + 3)) == ["<p>", "<a>", "<b>"]
        encoding = tokenizer.encode("x <b>")
        assert encoding.ids.tolist() == [*bare.encode("x").ids, size + 2] and encoding.offsets[-1].tolist() == [1, 5]
        assert tokenizer.decode(encoding.ids) == "x"
        tokenizer.save(tmp_path / f"{name}-saved")
        for copy in (Tokenizer.load(tmp_path / f"{name}-saved"), pickle.loads(pickle.dumps(tokenizer))):
            assert (copy.fingerprint, copy.pad_id) == (tokenizer.fingerprint, size)
            np.testing.assert_array_equal(copy.encode("x <b>").ids, encoding.ids)


def test_added_tokens_beside_a_tokenizer_json(tmp_path, bpe):
    data, size = json.loads(bpe._backend.serialized), bpe.vocab_size
    flags = dict.fromkeys(FLAGS, False)
    added = {str(size): flags | {"content": "word", "single_word": True}, str(size + 1): flags | {"content": "<n>"}}
    folder = written(
        tmp_path / "a",
        tokenizer__json=data,
        tokenizer_config__json={"added_tokens_decoder": added},
        added_tokens__json={"<old>": size + 2},
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == size + 3
    assert size in tokenizer.encode("a word.").ids and size not in tokenizer.encode("words").ids
    assert {size + 1, size + 2} <= set(tokenizer.encode("<n><old>", special=False).ids)
    assert tokenizer.decode(tokenizer.encode("<n> word").ids) == "<n> word"
    added = {str(size + 5): {"content": "far"}}
    folder = written(tmp_path / "b", tokenizer__json=data, tokenizer_config__json={"added_tokens_decoder": added})
    with pytest.raises(
        ValueError, match=f"'far' cannot have id {size + 5}, given the vocabulary's size: it has {size}"
    ):
        Tokenizer.load(folder)


def test_flags_of_added_tokens_beside_a_model(tmp_path, t5_model):
    size = Tokenizer.load(written(tmp_path / "bare", spiece__model=t5_model)).vocab_size
    flags = dict.fromkeys(FLAGS, False)
    added = [
        flags | {"content": "<l>", "lstrip": True},
        flags | {"content": "<r>", "rstrip": True},
        flags | {"content": "one", "single_word": True},
    ]
    config = {"added_tokens_decoder": {str(size + i): token for i, token in enumerate(added)}}
    tokenizer = Tokenizer.load(written(tmp_path / "a", spiece__model=t5_model, tokenizer_config__json=config))
    text = "a <l> <r> b one onerous"
    spans = {int(i): span for i, span in zip(tokenizer.encode(text).ids, read(tokenizer.encode(text), text))}
    assert (spans[size], spans[size + 1], spans[size + 2]) == (" <l>", "<r> ", "one")
    assert tokenizer.encode(text).ids.tolist().count(size + 2) == 1


def test_byt5_has_the_sentinels_and_tokens_of_its_settings(tmp_path):
    kind = {"tokenizer_class": "ByT5Tokenizer"}
    few = Tokenizer.load(written(tmp_path / "few", tokenizer_config__json=kind | {"extra_ids": 2}))
    assert (few.vocab_size, few.sentinel_ids) == (261, (259, 260))
    none = Tokenizer.load(written(tmp_path / "none", tokenizer_config__json=kind | {"extra_ids": 0}))
    assert (none.vocab_size, none.sentinel_ids) == (259, ())
    added = {"384": {"content": "{", "special": False}, "385": {"content": "<go>", "special": True}}
    tokenizer = Tokenizer.load(written(tmp_path / "a", tokenizer_config__json=kind | {"added_tokens_decoder": added}))
    encoding = tokenizer.encode("é{x<go>")
    assert encoding.ids.tolist() == [198, 172, 384, 123, 385] and encoding.offsets[-1].tolist() == [3, 7]
    assert tokenizer.decode(encoding.ids) == "é{x" and tokenizer.decode(encoding.ids, special=True) == "é{x<go>"
    ((ids, counts),) = tokenizer.encode_bytes(["é{x<go>"])
    assert ids.tolist() == encoding.ids.tolist() and counts.tolist() == [1, 1, 1, 1, 4]
    assert tokenizer.encode("a </s> b").ids.tolist() == [100, 1, 101]


def test_a_token_that_the_model_lacks_is_an_error_where_it_is_met(tmp_path, bpe):
    config = {"additional_special_tokens": ["<new>"]}
    folder = written(tmp_path / "a", tokenizer__json=json.loads(bpe._backend.serialized), tokenizer_config__json=config)
    m = families.made("gpt2", gpt2.Config(vocab_size=bpe.vocab_size, **SMALL)).replace(tokenizer=Tokenizer.load(folder))
    (tmp_path / "a.txt").write_text("the <new> code")
    message = f"is {bpe.vocab_size}, outside of the vocabulary"
    assert len(generate._encode(m, ["the code"], None)[0])
    with pytest.raises(ValueError, match=message):
        m.generate("the <new> code", max_new_tokens=2)
    with pytest.raises(ValueError, match=message):
        Embedder(bundle=m, max_length=8)._tokens(["the code", "<new>"])
    with pytest.raises(ValueError, match=message):
        evaluate(m, source=f"text:{tmp_path}/*.txt", split="all", length=8, batch_size=1)


# ---- the class of a tokenizer ---------------------------------------------------------------------------------------


def test_herbert_is_bpe_of_words(tmp_path):
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *"abko", "a</w>", "o</w>", "ko", "koo</w>", "!</w>", "<mask>"]
    files = {"vocab__json": {token: i for i, token in enumerate(vocab)}, "merges__txt": b"k o\nko o</w>\n"}
    folder = written(tmp_path / "a", **files, config__json={"tokenizer_class": "HerbertTokenizerFast"})
    tokenizer = Tokenizer.load(folder)
    encoding = tokenizer.encode("koo koa!<mask>", template=True)
    assert tokenizer.tokens(encoding.ids) == ["<s>", "koo</w>", "ko", "a</w>", "!</w>", "<mask>", "</s>"]
    assert tokenizer.decode(encoding.ids) == "koo koa !"
    assert [int(i) for i in tokenizer.encode("a", "o", template=True).segments] == [0, 0, 0, 1, 1]
    tokenizer.save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").fingerprint == tokenizer.fingerprint


def test_the_first_gpt_is_bpe_of_words_in_small_letters(tmp_path):
    """Its published folder names no class; unknown characters are one token each."""
    vocab = ["<unk>", *"akoe", "a</w>", "o</w>", "e</w>", "ko", "koo</w>", "!</w>"]
    files = {
        "vocab__json": {token: i for i, token in enumerate(vocab)},
        "merges__txt": b"#version: 0.2\nk o\nko o</w>\n",
    }
    tokenizer = Tokenizer.load(written(tmp_path / "a", **files, config__json={"model_type": "openai-gpt"}))
    encoding = tokenizer.encode("KOO koé! ωa", template=True)
    assert tokenizer.tokens(encoding.ids) == ["koo</w>", "ko", "e</w>", "!</w>", "<unk>", "a</w>"]
    assert tokenizer.decode(encoding.ids[:4]) == "koo koe !"
    tokenizer.save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").fingerprint == tokenizer.fingerprint


def test_clip_is_bytes_of_small_letters(tmp_path):
    vocab = [*"abc", "a</w>", "b</w>", "c</w>", "!</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    files = {"vocab__json": {token: i for i, token in enumerate(vocab)}, "merges__txt": b"#version: 0.2\na b</w>\n"}
    tokenizer = Tokenizer.load(
        written(tmp_path / "a", **files, tokenizer_config__json={"tokenizer_class": "CLIPTokenizer"})
    )
    encoding = tokenizer.encode("AB  c!", template=True)
    assert encoding.ids.tolist() == [8, 7, 5, 6, 9] and read(encoding, "AB  c!") == ["", "AB", "c", "!", ""]
    assert tokenizer.decode(encoding.ids) == "ab c !"


@pytest.mark.parametrize("kind", ["BertJapaneseTokenizer", "SomeTokenizerFast"])
def test_an_unknown_class_is_refused_by_name(kind, tmp_path, bpe):
    folder = written(tmp_path / "a", vocab__txt=vocab_txt(*WORDS), tokenizer_config__json={"tokenizer_class": kind})
    with pytest.raises(
        ValueError, match=f"names the class {kind.removesuffix('Fast')} for its tokenizer, which is not"
    ):
        Tokenizer.load(folder)
    (folder / "tokenizer.json").write_bytes(bpe._backend.serialized)  # which says all that the class would
    assert Tokenizer.load(folder).fingerprint == bpe.fingerprint


def test_a_class_has_its_files(tmp_path, t5_model):
    config = {"tokenizer_class": "T5Tokenizer"}
    folder = written(tmp_path / "a", vocab__txt=vocab_txt(*WORDS), tokenizer_config__json=config)
    with pytest.raises(
        FileNotFoundError, match="is no tokenizer of the class T5Tokenizer: .* one of tokenizer.json, spi"
    ):
        Tokenizer.load(folder)
    (folder / "spm.model").write_bytes(t5_model)  # under another name than usual
    assert Tokenizer.load(folder).sentinel_ids


def test_a_class_decides_what_a_model_file_means(tmp_path):
    """A model with [CLS] is not ALBERT's where the settings say T5's, as of Japanese GPT-2."""
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3, "control_symbols": ["[CLS]", "[SEP]"]}
    model, config = model_file(**ids), {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "bos_token": "<s>"}
    tokenizer = Tokenizer.load(written(tmp_path / "a", spiece__model=model, tokenizer_config__json=config))
    assert tokenizer.encode("The code", template=True).ids[-1] == tokenizer.eos_id == 2
    assert "T" in "".join(tokenizer.tokens(tokenizer.encode("The").ids))
    config = {"tokenizer_class": "CamembertTokenizer"}
    plain = model_file()
    camembert = Tokenizer.load(written(tmp_path / "b", sentencepiece__bpe__model=plain, tokenizer_config__json=config))
    assert (camembert.bos_id, camembert.eos_id, camembert.unk_id, camembert.pad_id) == (5, 6, 3, 1)
    assert camembert.mask_id == camembert.vocab_size - 1
    assert camembert.encode("the", template=True).ids[[0, -1]].tolist() == [5, 6]


def test_xlnet_and_bartpho(tmp_path):
    model = model_file(unk_id=0, bos_id=1, eos_id=2, control_symbols=["<cls>", "<sep>", "<pad>", "<mask>"])
    config = {"tokenizer_class": "XLNetTokenizer"}
    xlnet = Tokenizer.load(written(tmp_path / "a", spiece__model=model, tokenizer_config__json=config))
    encoding = xlnet.encode("the", "code", template=True)
    a, b = len(xlnet.encode("the")), len(xlnet.encode("code"))
    assert encoding.segments.tolist() == [0] * (a + 1) + [1] * (b + 1) + [2]
    assert xlnet.tokens(encoding.ids[[a, -2, -1]]) == ["<sep>", "<sep>", "<cls>"]
    config, model = {"tokenizer_class": "BartphoTokenizer"}, model_file()
    files = {"sentencepiece__bpe__model": model, "dict__txt": "▁t 9\nh 5\n▁the 4\n".encode()}
    bartpho = Tokenizer.load(written(tmp_path / "b", **files, tokenizer_config__json=config))
    assert bartpho.vocab_size == 8 and bartpho.mask_id == 7
    assert set(bartpho.encode("the code", template=True).ids.tolist()) <= {0, 2, 3, 4, 5, 6}
    bartpho.save(tmp_path / "c")
    assert Tokenizer.load(tmp_path / "c").fingerprint == bartpho.fingerprint


def test_marian_with_two_tables(tmp_path):
    source, target = model_file(), model_file(["le renard brun saute par le chien"] * 9, 40)
    tables = marian_table(source), marian_table(target)
    folder = written(
        *(tmp_path / "a",), source__spm=source, target__spm=target, vocab__json=tables[0], target_vocab__json=tables[1],
        tokenizer_config__json={"separate_vocabs": True},
    )  # fmt: skip
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("le renard", template=True, target=True).ids
    assert ids[-1] == 0 and tokenizer.decode(ids) == "le renard"
    assert tokenizer.vocab_size == max(map(len, tables)) and tokenizer.languages == ()
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode("le renard", target=True).ids, ids[:-1])
    assert "".join(tokenizer.tokens(tokenizer.encode("the").ids)) == "▁the"


# ---- settings win over a tokenizer.json -----------------------------------------------------------------------------


def test_settings_of_words(tmp_path):
    tokens = lambda tokenizer, text: tokenizer.tokens(tokenizer.encode(text).ids)
    text = "Hello Résumé 中文"
    for name, config, expected in (
        ("lower", {"do_lower_case": True}, ["hello", "resume", "中", "文"]),
        ("cased", {"do_lower_case": False}, ["Hello", "[UNK]", "中", "文"]),
        ("accents", {"do_lower_case": True, "strip_accents": False}, ["hello", "résumé", "中", "文"]),
        ("chinese", {"do_lower_case": True, "tokenize_chinese_chars": False}, ["hello", "resume", "中文"]),
    ):
        folder = written(tmp_path / name, vocab__txt=vocab_txt(*WORDS), tokenizer_config__json=config)
        plain = Tokenizer.load(folder)
        assert tokens(plain, text) == expected
        other = written(
            *(tmp_path / f"{name}-other",),
            vocab__txt=vocab_txt(*WORDS),
            tokenizer_config__json={"do_lower_case": False},
        )
        Tokenizer.load(other).save(other)  # with a tokenizer.json, which says something else
        for kind in ({}, {"tokenizer_class": "BertTokenizer"}):
            (other / "tokenizer_config.json").write_text(json.dumps(config | kind))
            assert tokens(Tokenizer.load(other), text) == expected
        (other / "tokenizer_config.json").write_text(
            json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
        )
        assert tokens(Tokenizer.load(other), text) == ["Hello", "[UNK]", "中", "文"]


def test_defaults_of_berts_class_win_over_a_cased_file(tmp_path):
    """The reference gives these ids: hello, hello."""
    bare = library.Tokenizer(library.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    bare.normalizer = library.normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    bare.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    files = {
        "tokenizer__json": json.loads(bare.to_str()),
        "tokenizer_config__json": {"tokenizer_class": "BertTokenizer"},
    }
    with pytest.warns(UserWarning, match="sets no do_lower_case, strip_accents, tokenize_chinese_chars: the defaults"):
        tokenizer = Tokenizer.load(written(tmp_path / "a", **files))
    assert tokenizer.encode("Hello Résumé").ids.tolist() == [5, 8]


def test_a_space_in_front_of_bytes(tmp_path, bpe):
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    folder = written(tmp_path / "a", tokenizer__json=json.loads(bpe._backend.serialized), tokenizer_config__json=config)
    np.testing.assert_array_equal(Tokenizer.load(folder).encode("the").ids, bpe.encode(" the").ids)


def test_settings_of_albert_and_deberta(tmp_path):
    unigram = library.Tokenizer(library.models.Unigram([("<unk>", 0.0), ("▁", -3.0)], 0))
    unigram.normalizer = library.normalizers.Sequence(
        [library.normalizers.Replace("``", '"'), library.normalizers.NFKD(), library.normalizers.StripAccents()]
    )
    unigram.pre_tokenizer = library.pre_tokenizers.Metaspace()
    data = json.loads(unigram.to_str())
    normalized = {}
    for name, config in (
        ("Albert", {"do_lower_case": True, "keep_accents": True}),
        ("Albert", {"do_lower_case": True}),
        ("Albert", {"keep_accents": False}),
        ("DebertaV2", {"do_lower_case": True}),
    ):
        config = config | {"tokenizer_class": f"{name}Tokenizer"}
        folder = written(tmp_path / str(len(normalized)), tokenizer__json=data, tokenizer_config__json=config)
        read = Tokenizer.load(folder)._backend._special
        normalized[folder.name] = read.normalizer.normalize_str("``É")
    assert normalized == {"0": '"é', "1": '"e', "2": '"E', "3": '"e'}
    config = {"tokenizer_class": "DebertaV2Tokenizer", "split_by_punct": True}
    folder = written(tmp_path / "p", tokenizer__json=data, tokenizer_config__json=config)
    read = Tokenizer.load(folder)._backend._special
    assert [part for part, _ in read.pre_tokenizer.pre_tokenize_str("a,b")] == ["▁a", "▁,", "▁b"]


def test_settings_of_albert_and_deberta_beside_their_models(tmp_path):
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    model = model_file([*SENTENCES, "Ééé éé É ``"], 140, normalization_rule_name="identity", **ids)
    rewritten = {}
    for name, kind, config in (
        ("albert", "Albert", {}),
        ("accents", "Albert", {"keep_accents": True}),
        ("cased", "Albert", {"do_lower_case": False}),
        ("deberta", "DebertaV2", {"do_lower_case": True}),
        ("plain", "DebertaV2", {}),
    ):
        config = config | {"tokenizer_class": f"{kind}Tokenizer"}
        tokenizer = Tokenizer.load(written(tmp_path / name, spm__model=model, tokenizer_config__json=config))
        rewriting = tokenizer._backend._rewriting
        rewritten[name] = rewriting("É``")[0] if rewriting else None
        assert read(tokenizer.encode("É [SEP]"), "É [SEP]")[-1] == "[SEP]"
    assert rewritten == {"albert": 'e"', "accents": 'é"', "cased": 'E"', "deberta": "é``", "plain": None}
    config = {"tokenizer_class": "DebertaV2Tokenizer", "add_prefix_space": False}
    with pytest.warns(UserWarning, match="add_prefix_space is false .* spm.model reads a text with a space in front"):
        Tokenizer.load(written(tmp_path / "s", spm__model=model, tokenizer_config__json=config))


def test_deberta_divides_at_punctuation_beside_its_model(tmp_path):
    """The pieces of transformers 5.23, and the same as from a tokenizer.json."""
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
    config = {"tokenizer_class": "DebertaV2Tokenizer", "split_by_punct": True}
    model = model_file([*SENTENCES, "a, b , c", "x ( y ) z ? !"], 140, **ids)
    tokenizer = Tokenizer.load(written(tmp_path / "p", spm__model=model, tokenizer_config__json=config))
    text = "a, b , [MASK] (c) ! "
    encoding = tokenizer.encode(text, template=True)
    expected = "[CLS] ▁a ▁ , ▁b ▁ ▁ , [MASK] ▁ ▁ ( ▁c ▁ ) ▁ ▁ ! [SEP]"
    assert tokenizer.tokens(encoding.ids) == expected.split()
    assert read(encoding, text)[1:8] == ["a", ",", ",", " b", " ", ",", ","]
    words = [-1, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 7, 8, 9, 9, 10, 11, 11, -1]
    assert encoding.words.tolist() == words
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text).ids.tolist() == encoding.ids[1:-1].tolist()
    assert not len(tokenizer.encode("").ids) and not len(tokenizer.encode("  ").ids)


@pytest.mark.parametrize(
    ("kind", "without"),
    [("Albert", "never"), ("XLMRoberta", "never"), ("Camembert", "never"), ("DebertaV2", "first"), ("T5", "always")],
)
def test_a_space_in_front_of_pieces(kind, without, tmp_path):
    unigram = library.Tokenizer(library.models.Unigram([("<unk>", 0.0), ("▁", -3.0)], 0))
    unigram.pre_tokenizer = library.pre_tokenizers.Metaspace()
    unigram.decoder = library.decoders.Metaspace()
    for wanted, scheme in ((True, "always"), (False, without)):
        config = {"tokenizer_class": f"{kind}Tokenizer", "add_prefix_space": wanted}
        folder = written(
            tmp_path / str(wanted), tokenizer__json=json.loads(unigram.to_str()), tokenizer_config__json=config
        )
        read = Tokenizer.load(folder)._backend._special
        assert read.pre_tokenizer.prepend_scheme == read.decoder.prepend_scheme == scheme


# ---- what is saved, and what is damaged -----------------------------------------------------------------------------


def test_all_files_of_a_tokenizer_survive(tmp_path, bpe):
    beside = {"chat_template__jinja": b"{{ messages }}", "special_tokens_map__json": {"eos_token": "<|endoftext|>"}}
    beside["tokenizer_config__json"] = {"chat_template": [{"name": "default", "template": "{{ messages }}"}]}
    folder = written(tmp_path / "a", tokenizer__json=json.loads(bpe._backend.serialized), **old_files(bpe), **beside)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    Tokenizer.load(folder).save(tmp_path / "b")
    m = families.made("gpt2", gpt2.Config(vocab_size=400, **SMALL)).replace(tokenizer=Tokenizer.load(folder))
    for _ in range(2):  # over the files of before, too
        m.save_pretrained(tmp_path / "c")
    for file in filter(Path.is_file, folder.rglob("*")):
        for saved in ("b", "c"):
            name = file.relative_to(folder)
            assert (tmp_path / saved / name).read_bytes() == file.read_bytes(), name
    assert Tokenizer.load(tmp_path / "b").fingerprint == Tokenizer.load(folder).fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", b"[1]", "tokenizer_config.json is a list of 1, where an object"),
        (
            "tokenizer_config.json",
            b'{"do_lower_case": "no", "extra_ids": []}',
            "json: .*extra_ids is a list of 0.*do_lower_case is a text",
        ),
        ("tokenizer_config.json", b'{"tokenizer_class": ["a"]}', "tokenizer_class is a list of 1, where a text"),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"x": {"content": "a"}}}',
            "tokenizer_config.json: the id of 'a'",
        ),
        (
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {"5": 7}}',
            "tokenizer_config.json has a whole number .7. for a tok",
        ),
        (
            "tokenizer_config.json",
            b'{"pad_token": {"lstrip": true}}',
            "tokenizer_config.json has an object of 1 for a token",
        ),
        ("special_tokens_map.json", b"[" * 9999, "special_tokens_map.json is nested"),
        ("added_tokens.json", b'{"a": -1}', "added_tokens.json: the id of 'a' is a whole number .-1."),
        ("added_tokens.json", b'{"a": 99999999999}', "added_tokens.json: the id of 'a' is"),
        (
            "tokenizer_config.json",
            b'{"extra_ids": 1000000000}',
            "extra_ids is 1000000000, where 0 to 10000 is expected",
        ),
        ("config.json", b'{"eos_token_id": "</s>"}', "config.json: eos_token_id is a text"),
    ],
)
def test_damaged_settings(name, content, message, tmp_path, bpe):
    bpe.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert len(str(error.value)) < 1000 and str(tmp_path) in str(error.value)


def test_damaged_vocabularies(tmp_path, bpe):
    data = json.loads(bpe._backend.serialized)
    for name, content in (
        ("tokenizer.json", json.dumps(data | {"pre_tokenizer": {"type": "X" * 10**5}}).encode()),
        ("tokenizer.json", json.dumps(data | {"model": data["model"] | {"vocab": {"a": 2**30}}}).encode()),
        (
            "tokenizer.json",
            json.dumps(data | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}).encode(),
        ),
        ("tokenizer.json", b"\xff" * 100),
        ("vocab.json", b'{"a": "b"}'),
        ("vocab.json", b'{"a": 0, "b": 0}'),
        ("spiece.model", b"nothing" * 10**4),
        ("vocab.txt", b"\xff"),
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        (folder / "merges.txt").write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name} is not a tokenizer that can be read") as error:
            Tokenizer.load(folder)
        assert len(str(error.value)) < 1000


def test_errors_of_the_library_are_named(tmp_path):
    model = {"type": "WordPiece", "unk_token": "[X]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    bare = library.Tokenizer(library.models.WordPiece({"a": 0}, unk_token="a"))
    data = json.loads(bare.to_str()) | {"model": model | {"vocab": {"a": 0}}}
    tokenizer = Tokenizer.load(written(tmp_path / "a", tokenizer__json=data))
    assert tokenizer.encode("a").ids.tolist() == [0]
    for read in (tokenizer.encode, lambda text: tokenizer.encode_bytes([text])):
        with pytest.raises(ValueError, match=r"the tokenizers library failed, .* Missing \[X?U?N?K?\] token"):
            read("b")


def test_a_template_that_settings_contradict_is_followed_and_said(tmp_path, bpe):
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "add_bos_token": True}
    folder = written(tmp_path / "a", tokenizer__json=json.loads(bpe._backend.serialized), tokenizer_config__json=config)
    with pytest.warns(
        UserWarning, match="sets add_bos_token to true, and the template of tokenizer.json does not add it"
    ):
        tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("a", template=True).ids.tolist() == tokenizer.encode("a").ids.tolist()


def test_a_line_too_many_is_named(tmp_path):
    for name, lines, message in (
        ("blank", [*WORDS[:5], "", "hello"], "vocab.txt: line 6 is blank. An id is the number of a line"),
        ("twice", [*WORDS[:5], "hello", "the", "hello"], "vocab.txt: line 8 repeats line 6, 'hello'"),
    ):
        config = {"do_lower_case": True}
        folder = written(tmp_path / name, vocab__txt=vocab_txt(*lines), tokenizer_config__json=config)
        with pytest.warns(UserWarning, match=message):
            tokenizer = Tokenizer.load(folder)
        assert tokenizer.encode("hello").ids.tolist() == [len(lines) - 1]
