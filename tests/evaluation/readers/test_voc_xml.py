import pytest
from builders import write_devkit, xml

from yolo_os.voc import read_devkit

CAT = ("cat", (10, 20, 30, 40))


def test_missing_tags_are_zero_and_counted(tmp_path):
    none = {"pose": None, "truncated": None, "difficult": None}
    objects = [("cat", (1, 1, 5, 5), none), ("cat", (1, 1, 5, 5), {"difficult": ""}), CAT]
    found = read_devkit(write_devkit(tmp_path, {"a": objects}, {"test": "a"}))
    assert found.missing == {"difficult": 2, "truncated": 1, "pose": 1}
    assert not found.difficult.any()
    assert "2 without <difficult>" in str(found)


def test_parts_of_an_object_are_not_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    text = xml([("person", (3, 3, 9, 9))]).replace("<pose>", f"{part}<pose>")
    found = read_devkit(write_devkit(tmp_path, {"a": text}, {"test": "a"}))
    assert found.box.tolist() == [[3, 3, 9, 9]]
    assert found.classes[found.class_index[0]] == "person"


BROKEN = {
    "cut": (xml([CAT])[:-30], 8, "broken XML", True),
    "entity": ('<!DOCTYPE a [<!ENTITY b "c">]>\n' + xml([CAT]), 0, "entities, which are refused", True),
    "other": ("<html></html>", 0, "its root is <html>", True),
    "nameless": (xml([CAT, ("", (1, 1, 2, 2))]), 10, "object without a name: left out", True),
    "text": (xml([("cat", ("one", 1, 2, 2))]), 3, "cat: no readable bndbox", True),
    "nan": (xml([("cat", ("nan", 1, 2, 2))]), 3, "cat: no readable bndbox", True),
    "inverted": (xml([("cat", (30, 40, 10, 20))]), 3, "cat at 30 40 10 20 is inverted: corners swapped", False),
    "empty": (xml([("cat", (30, 20, 29, 40))]), 3, "cat at 30 20 29 40 is empty: left out", True),
    "outside": (xml([("cat", (101, 1, 120, 9))]), 3, "is outside the image (100 x 80): left out", True),
    "above": (xml([("cat", (1, -5, 20, 0))]), 3, "is outside the image (100 x 80): left out", True),
    "partly": (xml([("cat", (0, 1, 50, 9))]), 3, "is partly outside the image (100 x 80): kept", False),
    "sizeless": (xml([("cat", (0, 1, 999, 9))], size=None), 0, "has no image size", False),
    "flag": (xml([("cat", (1, 1, 9, 9), {"difficult": "perhaps"})]), 3, "<difficult> is 'perhaps'", False),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_listed_with_its_line_and_the_rest_goes_on(tmp_path, name):
    text, line, says, lost = BROKEN[name]
    kit = write_devkit(tmp_path, {"fine": [CAT], name: text}, {"test": ["fine", name]}, pictures=False)
    for _ in range(2):  # the second time from the cache
        found = read_devkit(kit)
        (problem,) = found.problems
        assert (problem.file.name, problem.line, problem.lost) == (f"{name}.xml", line, lost)
        assert says in problem.text
        assert found.images[0] == "fine"
        assert found.box[0].tolist() == [10, 20, 30, 40]
    boxes = found.box[found.image == 1].tolist()
    kept = {
        "nameless": CAT[1],
        "inverted": (10, 20, 30, 40),
        "partly": (0, 1, 50, 9),
        "sizeless": (0, 1, 999, 9),
        "flag": (1, 1, 9, 9),
    }
    assert boxes == ([list(kept[name])] if name in kept else [])
    unreadable = name in ("cut", "entity", "other")
    assert found.left_out == (frozenset({name}) if unreadable else frozenset())


def read(tmp_path, content):
    kit = write_devkit(tmp_path, {"fine": [CAT], "a": ""}, {"test": ["fine", "a"]}, pictures=False)
    (kit / "VOC2007/Annotations/a.xml").write_bytes(content)
    return read_devkit(kit)


@pytest.mark.parametrize(
    ("name", "declared", "encoding"),
    [
        ("汽车", "gb2312", "gb2312"),
        ("镕基", "GB2312", "gbk"),  # letters of the superset that Windows writes under that name
        ("汽車", "big5", "big5"),
        ("自動車", "Shift_JIS", "cp932"),
        ("自動車", "EUC-JP", "euc_jp"),
        ("자동차", "euc-kr", "euc_kr"),
        ("voiture à part", "windows-1252", "cp1252"),
        ("汽车", "utf-16", "utf-8"),  # as some write that copy a declaration
        ("汽车", "utf-16", "utf-16"),
        ("汽车", "utf-8", "utf-8-sig"),
    ],
)
def test_encodings_that_the_xml_parser_lacks(tmp_path, name, declared, encoding):
    text = f'<?xml version="1.0" encoding="{declared}"?>\n' + xml([(name, (1, 1, 9, 9))])
    found = read(tmp_path, text.encode(encoding))
    assert found.classes == ("cat", name)
    assert found.problems == ()


def test_bytes_of_another_encoding_than_declared(tmp_path):
    path = "<path>C:\\图像\\a.jpg</path>"
    found = read(tmp_path, xml([CAT]).replace("<annotation>", f"<annotation>{path}").encode("gbk"))
    (problem,) = found.problems
    assert "is not in the encoding that it declares" in problem.text
    assert (problem.lost, len(found.box)) == (False, 2)
    found = read(tmp_path, xml([CAT, ("汽车", (1, 1, 9, 9))]).encode("gbk"))
    (problem,) = found.lost
    assert "the name is not in the encoding" in problem.text
    assert (problem.line, len(found.box)) == (10, 2)


def test_an_unknown_encoding_is_named(tmp_path):
    found = read(tmp_path, b'<?xml version="1.0" encoding="klingon"?><annotation/>')
    assert "unknown encoding: klingon" in found.lost[0].text


def test_several_boxes_in_one_object_are_objects(tmp_path):
    text = xml([("cat", (1, 1, 9, 9), {"difficult": "1"})]).replace(
        "<bndbox>", "<bndbox><xmin>11</xmin><ymin>12</ymin><xmax>13</xmax><ymax>14</ymax></bndbox><bndbox>"
    )
    found = read(tmp_path, text.encode())
    assert found.box[found.image == 1].tolist() == [[11, 12, 13, 14], [1, 1, 9, 9]]
    assert found.difficult[found.image == 1].tolist() == [True, True]
    (problem,) = found.problems
    assert "cat: 2 boxes in one object" in problem.text
    assert problem.line == 3


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<name>cat</name>", "<name>cat</name><name>dog</name>", "object with 2 names (cat, dog): left out"),
        ("<xmin>1<", "<xmin>2</xmin><xmin>1<", "no readable bndbox (one each of"),
        ("bndbox", "robndbox", "no readable bndbox"),
    ],
)
def test_an_object_that_says_two_things_is_left_out(tmp_path, old, new, says):
    found = read(tmp_path, xml([("cat", (1, 1, 9, 9))]).replace(old, new).encode())
    (problem,) = found.lost
    assert says in problem.text
    assert len(found.box) == 1


def test_a_name_said_twice_is_one(tmp_path):
    found = read(tmp_path, xml([CAT]).replace("<name>cat</name>", "<name>cat</name><name> cat </name>").encode())
    assert (found.problems, len(found.box)) == ((), 2)
