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
