"""`yolo-os val detections=` in each format that is read, and what it says of those that are not."""

import json

import pytest
from builders import comp4, write_devkit

from yolo_os.cli import main


@pytest.fixture
def kit(in_tmp):
    """Images of 100 x 80 pixels."""
    images = {
        "a": [("cat", (11, 21, 30, 40)), ("dog", (51, 51, 60, 60))],
        "b": [("dog", (1, 1, 100, 80))],
        "c": [],
    }
    return write_devkit(in_tmp / "kit", images, {"test": "abc"})


# All objects, as `predict save_txt=True save_conf=True` writes them; classes in the order of the ground truth.
YOLO = {
    "a": ["0 0.2 0.375 0.2 0.25 0.9", "1 0.55 0.6875 0.1 0.125 0.8"],
    "b": ["1 0.5 0.5 1 1 0.7"],
}


def folder_of(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def val(detections, *words):
    fixed = ["devkit=kit", "classes=cat,dog", "plots=False", "coco=False"]
    return main(["val", f"detections={detections}", *fixed, *words])


def figures(name="out.json"):
    return json.loads(open(name).read())


@pytest.mark.parametrize("inner", ["", "labels"])
def test_val_of_yolo_text_files(kit, in_tmp, capsys, inner):
    folder_of(in_tmp / "run" / inner, {f"{stem}.txt": lines for stem, lines in YOLO.items()})
    assert val("run", "json=out.json") == 0
    assert figures()["map"] == 1.0
    captured = capsys.readouterr()
    assert "3 detections on 2 of 3 images" in captured.out
    assert "class numbers of run are taken in the order of the ground truth's classes: 0 is cat" in captured.err
    assert "run has no detections for 1 of 3 images" in captured.err
    written = in_tmp / "runs/val/exp/comp4/comp4_det_test_dog.txt"
    assert written.read_text().splitlines()[1].split() == ["b", "0.7", "1.0", "1.0", "100.0", "80.0"]


def test_val_of_yolo_text_files_with_names_beside_them(kit, in_tmp, capsys):
    lines = {f"{stem}.txt": [f"{1 - int(line[0])}{line[1:]}" for line in lines] for stem, lines in YOLO.items()}
    folder_of(in_tmp / "run", {**lines, "classes.txt": ["Dog", "cat"]})
    assert val("run", "json=out.json") == 0
    assert figures()["map"] == 1.0
    assert "names of classes are written otherwise: Dog is dog" in capsys.readouterr().err


def unordered(detections, devkit="kit"):
    """Of annotations whose classes nobody gave an order."""
    return main(["val", f"detections={detections}", f"devkit={devkit}", "plots=False", "coco=False", "json=out.json"])


@pytest.mark.parametrize("form", ["text", "json"])
def test_val_warns_where_class_numbers_have_no_order(in_tmp, capsys, form):
    write_devkit(in_tmp / "kit", {"a": [("nut", (11, 21, 30, 40)), ("bolt", (51, 51, 60, 60))]}, {"test": "a"})
    folder_of(in_tmp / "run", {"a.txt": [f"{1 - int(line[0])}{line[1:]}" for line in YOLO["a"]]})
    found = [{"image_id": "a", "category_id": number, "bbox": [1, 1, 9, 9], "score": 0.5} for number in (1, 2)]
    (in_tmp / "run.json").write_text(json.dumps(found))
    source, first = ("run", 0) if form == "text" else ("run.json", 1)
    assert unordered(source) == 0
    said = capsys.readouterr().err
    assert f"warning: {source} has classes by number, and XML files name theirs without" in said
    assert f"({first} is bolt, {first + 1} is nut); where that is wrong" in said
    assert "classes=NAME,NAME,..." in said
    assert form == "json" or figures()["map"] == 1.0
    if form == "text":
        (in_tmp / "run/classes.txt").write_text("bolt\nnut\n")
        assert unordered(source) == 0
        assert "classes by number" not in capsys.readouterr().err


def test_val_refuses_class_numbers_that_would_all_be_of_classes_without_an_object(in_tmp, capsys):
    objects = [("person", (11, 21, 30, 40)), ("car", (51, 51, 60, 60))]  # of VOC's 20 classes
    write_devkit(in_tmp / "kit", {"a": objects}, {"test": "a"})
    folder_of(in_tmp / "run", {"a.txt": YOLO["a"]})
    assert unordered("run") == 2
    said = capsys.readouterr().err
    assert "run: what its class numbers mean can't be told" in said
    assert "0 is aeroplane, 1 is bicycle, of which there is no object: say the detector's order with classes=" in said
    words = ["val", "detections=run", "devkit=kit", "classes=person,car", "plots=False", "coco=False", "json=out.json"]
    assert main(words) == 0
    assert figures()["map"] == 1.0


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.txt": ["0 0.2 0.375 0.2 0.25"]}, "a.txt:1: no confidence: write the files with save_conf=True"),
        ({"a.txt": ["0 .1 .1 .2 .2 .1 .3 .9"]}, "polygons, keypoints and rotated boxes are not read"),
        ({"a.txt": ["0 0.2 0.375 0.2 0.25 0.9 7"]}, "7 columns, as of a tracker"),
        ({"a.txt": [*YOLO["a"], "0 10 20 20 20 0.9"]}, "a.txt:3: '0 10 20 20 20 0.9' is not of the form"),
        ({"a.txt": ["2 0.2 0.375 0.2 0.25 0.9"]}, "a.txt:1: class 2 is none of 2 classes"),
        ({"z.txt": ["1 0.2 0.375 0.2 0.25 0.9"]}, "image 'z' is not in the image set"),
        ({"a.txt": YOLO["a"], "classes.txt": ["x", "y"]}, "none of x, y is among cat, dog"),
        ({"a.txt": ["cat 0.9 11 21 30 40"]}, "its files are named after images (a.txt), and comp4's after classes"),
        ({"a.xml": ["<a/>"]}, "is a folder of .xml files, which are not read"),
        ({"a.json": ["{}"], "b.json": ["{}"]}, "is a folder of JSON files"),
        ({}, "holds no file like comp4_det_test_CLASS.txt"),
    ],
)
def test_val_names_what_a_folder_is(kit, in_tmp, capsys, files, says):
    folder_of(in_tmp / "run", files)
    assert val("run") == 2
    assert says in capsys.readouterr().err
    assert not list(in_tmp.glob("runs/val/*"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("d.csv", "is a CSV table"),
        ("d.npy", "is an array (in Python: as_detections)"),
        ("d.pkl", "is a pickle, which may run code"),
        ("d.txt", "is a single text file (give its folder)"),
        ("d.pt", "a checkpoint is given as model="),
        ("d.odd", "is no such thing"),
        ("nowhere", "is not there"),
    ],
)
def test_val_names_what_a_file_is(kit, in_tmp, capsys, name, says):
    if name != "nowhere":
        (in_tmp / name).write_text("a,b")
    assert val(name) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "a folder of comp4_det_test_CLASS.txt files, a COCO result file (.json) or a folder of YOLO text" in said


BOXES = [[10, 20, 20, 20], [50, 50, 10, 10], [0, 0, 100, 80]] * 4


def entries(boxes=BOXES, **more):
    return [
        {"image_id": "b" if box[2] == 100 else "a", "category_id": index % 2 + 1, "bbox": box, "score": 0.5, **more}
        for index, box in enumerate(boxes)
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (entries([[x / 100, y / 80, w / 100, h / 80] for x, y, w, h in BOXES]), "its boxes are fractions of the image"),
        (
            entries([[60, 50, 95, 79]] * 12),
            "12 of 12 boxes reach beyond their images, and none would if bbox were x1, y1, x2, y2",
        ),
        ([{"boxes": [[1, 1, 2, 2]], "scores": [1], "labels": [0]}], "which as_detections takes in Python"),
        ([{"image_id": "a", "category_id": 1, "score": 1, "rbox": [1, 2, 3, 4, 5]}], "it holds rotated boxes"),
        ([{"image_id": "a", "category_id": 1, "score": 1, "segmentation": []}], "it holds masks"),
        ([{"image_id": "a", "category_id": 2, "bbox": [1, 1, 2, 2]}], "it has no score: are these annotations"),
        ({"shapes": [], "version": 5}, "holds no list of detections, but 'shapes', 'version'"),
    ],
)
def test_val_names_what_json_is(kit, in_tmp, capsys, content, says):
    (in_tmp / "d.json").write_text(json.dumps(content))
    assert val("d.json") == 2
    assert says in capsys.readouterr().err


def test_val_takes_boxes_that_reach_a_little_over_the_border(kit, in_tmp):
    (in_tmp / "d.json").write_text(json.dumps(entries([[60, 60, 43, 21]] * 8 + [[0, 0, 100, 80]] * 8)))
    assert val("d.json") == 0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a 0.9 51 51 10 10", "detections=d: 2 of 2 boxes would end before the beginning: x1, y1, x2, y2 are read"),
        (
            "a 0.9 0.51 0.51 0.6 0.6",
            "detections=d: its boxes are fractions of the image, and those of the ground truth",
        ),
    ],
)
def test_val_refuses_text_files_with_boxes_of_another_form(kit, in_tmp, capsys, line, says):
    comp4(in_tmp / "d", comp4_det_test_cat=[line], comp4_det_test_dog=[line])
    assert val("d") == 2
    assert says in capsys.readouterr().err


def test_val_takes_files_named_after_classes_for_comp4_even_if_ids_are_numbers(in_tmp, capsys):
    """A line `0 0.9 x1 y1 x2 y2` of fractions has the form of YOLO's."""
    write_devkit(in_tmp / "kit", {"0": [("cat", (11, 21, 30, 40))]}, {"test": "0"})
    comp4(in_tmp / "d", comp4_det_test_cat=["0 0.9 0.1 0.25 0.3 0.5"])
    assert main(["val", "detections=d", "devkit=kit", "classes=cat", "plots=False", "coco=False"]) == 2
    assert "its boxes are fractions of the image" in capsys.readouterr().err


def test_val_of_no_detections_at_all_says_so(kit, in_tmp, capsys):
    (in_tmp / "d.json").write_text("[]")
    assert val("d.json", "first_category=1", "json=out.json") == 0
    assert "warning: no detections of d.json are left: every AP is 0" in capsys.readouterr().err
    assert figures()["map"] == 0.0


def test_val_scores_nothing_where_no_detection_is_of_the_ground_truth(kit, in_tmp, capsys):
    comp4(in_tmp / "d", cat=["z 0.9 1 1 9 9"])
    assert val("d", "strict=False") == 2
    assert "none belongs to the ground truth (1 of unknown images)" in capsys.readouterr().err
