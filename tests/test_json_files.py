"""JSON files of strangers: one error that names the file, and nothing else."""

import pytest

from transformer_zoo import json_files


def test_what_is_read(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, true, "\xc3\xa9"]}')
    assert json_files.read(file) == {"a": [1, 2.5, None, True, "é"]}
    file.write_text("[1]")
    assert json_files.read(file, list) == [1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON: Expecting value"),
        (b'{"a": 1,}', "is not JSON: .* line 1"),
        (b'{"a": "\xff"}', "is not text in UTF-8: byte 7 is 0xff"),
        (b"[" * 100_000, "is nested more than 64 levels deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "is nested more than 64 levels deep"),
        (b"1" * 10_000, "is not JSON that can be read: Exceeds the limit"),
        (b"[1, 2]", "is a list of 2, where an object is expected"),
        (b"null", "is null, where an object is expected"),
        (b'"' + b"x" * 10_000 + b'"', "is a text .'xxx.*characters.*, where an object is expected"),
    ],
    ids=str,
)
def test_what_is_refused(tmp_path, content: bytes, words: str):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        json_files.read(file)
    assert str(caught.value).startswith(str(file)) and len(str(caught.value)) < len(str(file)) + 200


def test_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "LARGEST", 10)
    (tmp_path / "config.json").write_text('{"a": 12345}')
    with pytest.raises(ValueError, match="config.json has 12 bytes, and at most 10 are read"):
        json_files.read(tmp_path / "config.json")


def test_types_of_settings():
    kinds = {"size": int, "rate": float, "name": str, "on": bool, "ids": (int, list)}
    json_files.check({"size": 1, "rate": 1, "name": None, "on": True, "ids": [1], "other": {}}, kinds, "config.json")
    with pytest.raises(ValueError) as caught:
        json_files.check({"size": True, "rate": "1", "name": 3, "on": 1, "ids": {}}, kinds, "config.json")
    assert str(caught.value) == (
        "config.json: size is true, where a whole number is expected; rate is a text ('1'), where a number is "
        "expected; name is a whole number (3), where a text is expected; on is a whole number (1), where true or false "
        "is expected; ids is an object of 0, where a whole number or a list is expected"
    )
