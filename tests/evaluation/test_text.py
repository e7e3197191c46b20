import codecs

import pytest

from yolo_os.errors import UserError
from yolo_os.evaluation.text import find_id, read_text

NAMES = "图像一\n图像二\n"


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("gb2312", b""),
    ],
)
def test_reads_the_encodings_of_other_tools(tmp_path, encoding, mark):
    (tmp_path / "a.txt").write_bytes(mark + NAMES.encode(encoding))
    assert read_text(tmp_path / "a.txt", lambda text: text == NAMES) == NAMES


@pytest.mark.parametrize(
    ("text", "encoding"), [("車両", "shift_jis"), ("車両", "euc_jp"), ("자동차", "euc_kr"), ("車輛", "big5")]
)
def test_what_is_plausible_decides_among_encodings(tmp_path, text, encoding):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read_text(tmp_path / "a.txt", lambda read: read == text) == text


def test_what_can_not_be_told_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes("车".encode("gbk"))
    with pytest.raises(UserError, match=r"it is not UTF-8, and names nothing known .* save it as UTF-8"):
        read_text(tmp_path / "a.txt", lambda text: False)
    with pytest.raises(UserError, match="cannot read"):
        read_text(tmp_path / "none.txt", lambda text: True)


def test_two_forms_of_one_letter_are_one(tmp_path):
    (tmp_path / "a.txt").write_text("u\N{COMBINING DIAERESIS}", encoding="utf-8")
    assert read_text(tmp_path / "a.txt", bool) == "\N{LATIN SMALL LETTER U WITH DIAERESIS}"


def test_ids_are_found_in_what_is_written_for_them():
    known = {"a", "cam1/f 1", "b.2"}
    for text in ("a", "a.jpg", "JPEGImages/a.JPEG", "./Annotations/a.xml", "data\\JPEGImages\\a.png", '"a"'):
        assert find_id(text, known) == "a"
    assert find_id('"cam1/f 1"', known) == find_id("VOC/JPEGImages/cam1/f 1.jpg", known) == "cam1/f 1"
    assert find_id("b.2", known) == find_id("b.2.jpg", known) == "b.2"
    assert find_id("f 1", known) is None
