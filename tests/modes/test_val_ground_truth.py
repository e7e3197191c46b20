"""`yolo-os val` with ground truth in each format that is read, through the command line."""

import json
import shutil
import sys
import tempfile

import pytest
import yaml
from builders import comp4, digits_subset, write_picture, xml
from PIL import Image
from processes import finished

from yolo_os.cli import main

SIZE = (100, 80)
# Boxes in continuous pixels (x1, y1, x2, y2) by image; the class goes first.
TRUTH = {
    "a": [("cat", 10, 20, 30, 40), ("dog", 50, 50, 60, 60)],
    "b": [("dog", 0, 0, 100, 80)],
    "c": [],
}
CLASSES = ["dog", "cat"]


def label_lines(objects):
    lines = []
    for name, x1, y1, x2, y2 in objects:
        x, y, w, h = (x1 + x2) / 200, (y1 + y2) / 160, (x2 - x1) / 100, (y2 - y1) / 80
        lines.append(f"{CLASSES.index(name)} {x} {y} {w} {h}\n")
    return "".join(lines)


@pytest.fixture
def yolo(in_tmp):
    """An Ultralytics data set with a relative `path:` in data.yaml; image c has no label file."""
    for stem, objects in TRUTH.items():
        (in_tmp / "ds/images/val").mkdir(parents=True, exist_ok=True)
        (in_tmp / "ds/labels/val").mkdir(parents=True, exist_ok=True)
        write_picture(in_tmp / f"ds/images/val/{stem}.jpg", SIZE)
        if objects:
            (in_tmp / f"ds/labels/val/{stem}.txt").write_text(label_lines(objects))
    described = {"path": "ds", "train": "images/val", "val": "images/val", "names": CLASSES}
    (in_tmp / "my.yaml").write_text(yaml.safe_dump(described))
    return in_tmp


@pytest.fixture
def good(in_tmp):
    """All of TRUTH, found; comp4 has 1-based inclusive pixels."""
    lines = {
        name: [f"{stem} 0.9 {x1 + 1} {y1 + 1} {x2} {y2}" for stem, objects in TRUTH.items()
               for other, x1, y1, x2, y2 in objects if other == name]
        for name in CLASSES
    }  # fmt: skip
    return comp4(in_tmp / "good", comp4_det_val_cat=lines["cat"], comp4_det_val_dog=lines["dog"])


def val(*words):
    return main(["val", *map(str, words), "plots=False", "coco=False"])


def figures(path="out.json"):
    return json.loads(open(path).read())


def test_val_of_an_ultralytics_data_set(yolo, good, capsys):
    assert val("detections=good", "data=my.yaml", "split=val", "json=out.json") == 0
    captured = capsys.readouterr()
    assert "val of ds: 3 images, 3 objects (0 difficult) of 2 classes" in captured.out
    assert "labels of this format know no difficult objects: every object counts" in captured.err
    assert "1 of 3 images without a label file" in captured.err
    found = figures()
    assert list(found["classes"]) == CLASSES
    assert found["classes"] == {
        "dog": {"ap": 1.0, "ap07": 1.0, "npos": 2},
        "cat": {"ap": 1.0, "ap07": 1.0, "npos": 1},
    }


@pytest.mark.parametrize("listed", ["absolute", "beside", "lists", "names as a dictionary", "parent"])
def test_val_finds_images_as_ultralytics_does(yolo, good, listed):
    images = [f"{yolo}/ds/images/val/{stem}.jpg" for stem in "abc"]
    described = {"path": str(yolo / "ds"), "train": "x", "val": "val.txt", "names": CLASSES}
    (yolo / "ds/val.txt").write_text("\n".join(images))
    if listed == "beside":
        (yolo / "ds/val.txt").write_text("".join(f"./images/val/{stem}.jpg\n" for stem in "abc"))
    elif listed == "lists":
        (yolo / "ds/val.txt").write_text("\n".join(images[:1]))
        (yolo / "ds/rest.txt").write_text("\n".join(images[1:]))
        described["val"] = ["val.txt", "rest.txt"]
    elif listed == "names as a dictionary":
        described["names"] = {1: "cat", 0: "dog"}
    elif listed == "parent":  # Roboflow: no path, and ../ that is not meant
        del described["path"]
        described["val"] = "../images/val"
        (yolo / "my.yaml").rename(yolo / "ds/my.yaml")
    file = yolo / ("ds/my.yaml" if listed == "parent" else "my.yaml")
    file.write_text(yaml.safe_dump(described))
    assert val("detections=good", f"data={file}", "split=val", "json=out.json") == 0
    assert figures()["map"] == 1.0
    assert figures()["classes"]["dog"]["npos"] == 2


@pytest.mark.parametrize(
    ("path", "start"), [(".", "the folder that you are in"), ("nowhere", "Ultralytics' datasets_dir")]
)
def test_val_says_where_a_relative_path_starts_from(yolo, good, capsys, path, start):
    (yolo / "ds/my.yaml").write_text(yaml.safe_dump({"path": path, "val": "images/val", "names": CLASSES}))
    assert val("detections=good", "data=ds/my.yaml", "split=val") == 2
    said = capsys.readouterr().err
    assert "data=ds/my.yaml: " in said
    assert "images/val: no such folder of images" in said
    assert f"(`path: {path}` starts from {start}, as for Ultralytics; without `path:` the folder of the YAML is" in said


def test_val_of_labels_as_polygons_and_with_keypoints(yolo, good):
    (yolo / "ds/labels/val/a.txt").write_text("1 .1 .25 .3 .25 .3 .5 .1 .5\n0 .5 .625 .6 .625 .6 .75 .5 .7\n")
    assert val("detections=good", "data=my.yaml", "split=val", "json=out.json") == 0
    assert figures()["map"] == 1.0
    (yolo / "my.yaml").write_text((yolo / "my.yaml").read_text() + "kpt_shape: [1, 3]\n")
    for stem in "ab":
        lines = label_lines(TRUTH[stem]).splitlines()
        (yolo / f"ds/labels/val/{stem}.txt").write_text("".join(f"{line} .5 .5 2\n" for line in lines))
    assert val("detections=good", "data=my.yaml", "split=val", "json=out.json") == 0
    assert figures()["map"] == 1.0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 .5 .5", "a.txt:1: 3 columns"),
        ("2 .5 .5 .1 .1", "a.txt:1: class 2 is none of the data set's 2 (0 to 1)"),
        ("0 50 50 10 10", "a.txt:1: coordinates are no fractions"),
        ("dog .5 .5 .1 .1", "a.txt:1: 'dog .5 .5 .1 .1' is not of numbers"),
    ],
)
def test_val_leaves_out_an_image_whose_labels_are_none(yolo, good, capsys, line, says):
    (yolo / "ds/labels/val/a.txt").write_text(f"{line}\n")
    assert val("detections=good", "data=my.yaml", "split=val") == 3
    captured = capsys.readouterr()
    assert says in captured.err
    assert "val of ds: 2 images, 1 object (0 difficult)" in captured.out
    assert "2 of images whose annotations could not be read left out" in captured.out


def test_val_counts_a_label_that_stands_twice_once(yolo, good, capsys):
    file = yolo / "ds/labels/val/b.txt"
    file.write_text(file.read_text() * 2)
    assert val("detections=good", "data=my.yaml", "split=val", "json=out.json") == 0
    assert "b.txt:2: is the same label as line 1: counted once" in capsys.readouterr().err
    assert figures()["classes"]["dog"] == {"ap": 1.0, "ap07": 1.0, "npos": 2}


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        ({}, ["split=test"], "split=test: my.yaml has train, val"),
        ({"val": "images/none"}, ["split=val"], "ds/images/none: no such folder of images, or list of them"),
        ({}, ["split=val", "year=2007"], "leave out year="),
        ({"names": []}, ["split=val"], "names no classes"),
        ({"kpt_shape": 7}, ["split=val"], "kpt_shape is 7, and two numbers are meant"),
    ],
)
def test_val_refuses_a_data_set_in_one_line(yolo, good, capsys, change, words, says):
    described = yaml.safe_load((yolo / "my.yaml").read_text()) | change
    (yolo / "my.yaml").write_text(yaml.safe_dump(described))
    assert val("detections=good", "data=my.yaml", *words) == 2
    assert says in capsys.readouterr().err


def test_val_refuses_data_of_no_format_that_is_read(yolo, good, capsys):
    (yolo / "t.csv").write_text("a,b\n")
    assert val("detections=good", "data=t.csv") == 2
    assert "data=t.csv: is none that is read; a data.yaml, a VOCdevkit, COCO's JSON" in capsys.readouterr().err
    assert val("detections=good", "data=ds") == 2
    assert "the folder holds neither a data.yaml nor VOC XML files" in capsys.readouterr().err


def coco(**changes):
    """TRUTH as COCO's annotation file, with a crowd of dogs in c; ids are of no order."""
    annotations = [
        {"id": 1, "image_id": 30 + "abc".index(stem), "category_id": 4 + CLASSES.index(name),
         "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1.0, "iscrowd": 0}
        for stem, objects in TRUTH.items() for name, x1, y1, x2, y2 in objects
    ]  # fmt: skip
    annotations.append({"image_id": 32, "category_id": 4, "bbox": [5, 5, 50, 50], "area": 2500, "iscrowd": 1})
    images = [{"id": 30 + "abc".index(stem), "file_name": f"{stem}.jpg", "width": 100, "height": 80} for stem in TRUTH]
    categories = [{"id": 5, "name": "cat"}, {"id": 4, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


def test_val_of_coco_annotations(in_tmp, good, capsys):
    (in_tmp / "gt.json").write_text(json.dumps(coco()))
    entries = [
        {"image_id": 30, "category_id": 5, "bbox": [10, 20, 20, 20], "score": 0.9},
        {"image_id": 30, "category_id": 4, "bbox": [50, 50, 10, 10], "score": 0.9},
        {"image_id": 31, "category_id": 4, "bbox": [0, 0, 100, 80], "score": 0.8},
        {"image_id": 32, "category_id": 4, "bbox": [5, 5, 50, 50], "score": 0.95},  # a crowd: counts neither way
    ]
    (in_tmp / "r.json").write_text(json.dumps(entries))
    for detections in ("r.json", "good"):
        assert val(f"detections={detections}", "data=gt.json", "split=val", "json=out.json") == 0
        assert figures()["classes"]["dog"] == {"ap": 1.0, "ap07": 1.0, "npos": 2}
        assert list(figures()["classes"]) == ["dog", "cat"]  # by category id
    captured = capsys.readouterr()
    assert "gt of" in captured.out
    assert "3 images, 4 objects (0 difficult, 1 crowd) of 2 classes" in captured.out
    assert "every object counts, but for crowds" in captured.err


def test_val_of_chosen_categories(in_tmp, good, capsys):
    (in_tmp / "gt.json").write_text(json.dumps(coco()))
    shutil.copytree("good", "cats")
    (in_tmp / "cats/comp4_det_val_dog.txt").unlink()
    assert val("detections=cats", "data=gt.json", "classes=cat", "split=val", "json=out.json") == 0
    assert figures()["map"] == 1.0
    assert "3 objects are left out, of classes that are not named: 3 of dog" in capsys.readouterr().err
    assert val("detections=cats", "data=gt.json", "classes=bird") == 2
    assert "bird is no category of gt.json, which has cat, dog" in capsys.readouterr().err


def test_val_goes_on_without_broken_entries_of_coco_annotations(in_tmp, good, capsys):
    content = coco()
    content["annotations"] += [
        {"image_id": 99, "category_id": 4, "bbox": [5, 5, 50, 50]},
        {"image_id": 30, "category_id": 9, "bbox": [5, 5, 50, 50]},
        {"image_id": 30, "category_id": 4, "bbox": [5, 5, 0, 50]},
        {"image_id": 30, "category_id": 4},
    ]
    (in_tmp / "gt.json").write_text(json.dumps(content))
    assert val("detections=good", "data=gt.json", "split=val", "json=out.json") == 3
    said = capsys.readouterr().err
    assert "annotation 4 has image_id 99, which the file does not list" in said
    assert "annotation 5 has category_id 9, which the file does not list" in said
    assert "annotation 6 is not as it should be (its box is empty: 0 x 50): left out" in said
    assert "annotation 7 lacks 'bbox': left out" in said
    assert figures()["classes"]["dog"]["npos"] == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "is a list of detections, no COCO annotation file"),
        ({"shapes": []}, "is something else, no COCO annotation file"),
        (coco(categories=[{"id": 1}]), "its images and categories are not as they should be"),
        (coco(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "two categories are named a"),
    ],
)
def test_val_refuses_json_that_is_no_ground_truth(in_tmp, good, capsys, content, says):
    (in_tmp / "gt.json").write_text(json.dumps(content))
    assert val("detections=good", "data=gt.json") == 2
    assert says in capsys.readouterr().err


def voc_xml(objects):
    return xml([(name, (x1 + 1, y1 + 1, x2, y2)) for name, x1, y1, x2, y2 in objects], SIZE)


@pytest.mark.parametrize("layout", ["beside", "two folders", "splits", "no images"])
def test_val_of_xml_beside_images_in_any_layout(in_tmp, good, capsys, layout):
    """As LabelImg (beside, two folders) and Roboflow (splits) leave them."""
    at = {
        "beside": ("", ""),
        "two folders": ("images/", "annotations/"),
        "splits": ("valid/", "valid/"),
        "no images": (None, ""),
    }[layout]
    folder = in_tmp / "mine"
    for place in at:
        (folder / (place or "")).mkdir(parents=True, exist_ok=True)
    for stem, objects in TRUTH.items():
        (folder / at[1] / f"{stem}.xml").write_text(voc_xml(objects))
        if at[0] is not None:
            write_picture(folder / at[0] / f"{stem}.jpg", SIZE)
    if layout == "splits":
        (folder / "train").mkdir()
        (folder / "train/d.xml").write_text(voc_xml([("bird", 1, 1, 9, 9)]))
    if layout == "beside":
        write_picture(folder / "bare.jpg", SIZE)
    assert val("detections=good", "data=mine", "classes=dog,cat", "split=val", "json=out.json") == 0
    captured = capsys.readouterr()
    assert figures()["map"] == 1.0
    assert figures()["classes"]["dog"]["npos"] == 2
    assert f"{'val' if layout == 'splits' else 'all'} of mine: 3 images" in captured.out
    assert ("all XML files (3) are taken as val" in captured.err) == (layout != "splits")
    assert ("1 image without an XML file: left out" in captured.err) == (layout == "beside")
    if layout == "splits":
        assert val("detections=good", "data=mine", "split=test") == 2
        assert "has train, val" in capsys.readouterr().err


def test_files_in_new_formats_are_evaluated_without_torch(yolo, good):
    program = (
        "import sys; from yolo_os.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'ultralytics', 'matplotlib', 'cv2'} & set(sys.modules); sys.exit(code or len(heavy))"
    )
    (yolo / "gt.json").write_text(json.dumps(coco()))
    for data in ("my.yaml", "gt.json"):
        words = ["val", "detections=good", f"data={data}", "split=val", "plots=False", "coco=False"]
        done = finished([sys.executable, "-c", program, *words])
        assert done.returncode == 0, done.stderr


@pytest.fixture
def own(in_tmp, digits):
    """A data set of the user's own, of six images of the embedded one; and a second detector."""
    import torch

    digits_subset(in_tmp / "own", digits, train=1, val=6)
    for name in ("a", "b"):
        shutil.copy(digits.parent / "detector.pt", f"{name}.pt")
    contents = torch.load("b.pt", weights_only=False)
    with torch.no_grad():
        contents["model"].model[-1].cv3[0][-1].weight *= 0.9
    torch.save(contents, "b.pt")
    return in_tmp / "own"


def as_coco(own):
    """The labels of a data set as COCO's annotations, without sizes, in a folder beside that of the images."""
    names = yaml.safe_load((own / "data.yaml").read_text())["names"]
    images, annotations = [], []
    for number, image in enumerate(sorted((own / "images/val").iterdir())):
        width, height = Image.open(image).size
        images.append({"id": number, "file_name": image.name})
        for line in (own / f"labels/val/{image.stem}.txt").read_text().splitlines():
            label, x, y, w, h = map(float, line.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append({"image_id": number, "category_id": int(label) + 1, "bbox": box})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
    (own / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": categories}
    (own / "annotations/instances_val.json").write_text(json.dumps(content))
    return own / "annotations/instances_val.json"


def test_val_of_two_models_on_an_own_data_set_and_on_the_same_as_coco_json(own, capsys):
    words = ["model=a.pt,b.pt", "split=val", "bootstrap=40"]
    assert val(*words, f"data={own}/data.yaml", "json=y.json") == 0
    by_yaml = figures("y.json")
    assert set(by_yaml["detectors"]) == {"a", "b"}
    assert len(by_yaml["detectors"]["a"]["classes"]) == 10
    gain = by_yaml["gains"]["b"]
    assert gain["map"]["low"] <= gain["map"]["value"] <= gain["map"]["high"]
    assert "yolo_val_map50" in by_yaml["detectors"]["a"]
    file = as_coco(own)
    before = sorted(own.rglob("*"))
    assert val(*words, f"data={file}", "json=c.json") == 0
    assert "6 images without a size in the file: it is read from them" in capsys.readouterr().err
    assert sorted(own.rglob("*")) == before  # nothing is left in the user's folder
    for name in ("a", "b"):
        assert figures("c.json")["detectors"][name]["map"] == pytest.approx(by_yaml["detectors"][name]["map"], 1e-6)
    shutil.move(own / "images", own.parent / "elsewhere")
    assert val(*words, f"data={file}") == 2
    assert "say where they are with images=" in capsys.readouterr().err
    assert val(*words, f"data={file}", f"images={own.parent}/elsewhere/val") == 0


def test_val_of_a_model_on_xml_beside_images(own, digits, capsys):
    for image in (own / "images/val").iterdir():
        shutil.copy(digits / f"VOC2007/Annotations/{image.stem}.xml", image.parent)
    assert val("model=a.pt", f"data={own}/images", "split=val", "json=x.json") == 0
    assert "val of images: 6 images" in capsys.readouterr().out
    assert list(figures("x.json")["classes"])[:3] == ["zero", "one", "two"]  # the model's order
    assert figures("x.json")["map"] > 0.5


@pytest.mark.parametrize("data", ["devkit", "COCO", "XML"])
def test_val_of_a_model_on_an_image_set_of_any_name(own, digits, data):
    """As CVAT calls its one set `default`, and VOC has trainval."""
    images = sorted((own / "images/val").iterdir())
    kit = own / "kit/VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (kit / folder).mkdir(parents=True)
    for image in images:
        shutil.copy(digits / f"VOC2007/Annotations/{image.stem}.xml", kit / "Annotations")
        shutil.copy(image, kit / "JPEGImages")
    (kit / "ImageSets/Main/default.txt").write_text("".join(f"{image.stem}\n" for image in images))
    if data == "XML":
        shutil.rmtree(kit / "ImageSets")
    source = as_coco(own) if data == "COCO" else kit
    assert val("model=a.pt", f"data={source}", "split=default", "json=d.json") == 0
    assert figures("d.json")["map"] > 0.5


@pytest.mark.parametrize("kind", ["data.yaml", "classes in another order", "COCO", "XML", "devkit"])
def test_val_names_the_users_images_where_a_model_can_read_none(own, digits, capsys, kind, monkeypatch):
    (own.parent / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own.parent / "temporary"))
    images = sorted((own / "images/val").iterdir())
    data = own / "data.yaml"
    if kind == "classes in another order":
        described = yaml.safe_load(data.read_text())
        data.write_text(yaml.safe_dump(described | {"names": described["names"][::-1]}))
    elif kind == "COCO":
        data = as_coco(own)
    elif kind == "XML":
        data = own / "images"
        for image in images:
            shutil.copy(digits / f"VOC2007/Annotations/{image.stem}.xml", image.parent)
    elif kind == "devkit":
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (own / "kit/VOC2007" / folder).mkdir(parents=True)
        (own / "kit/VOC2007/ImageSets/Main/val.txt").write_text("".join(f"{image.stem}\n" for image in images))
        for image in images:
            shutil.copy(digits / f"VOC2007/Annotations/{image.stem}.xml", own / "kit/VOC2007/Annotations")
        images = [image.rename(own / "kit/VOC2007/JPEGImages" / image.name) for image in images]
        data = own / "kit"
    for image in images:
        image.write_bytes(image.read_bytes()[:900])  # whose header can be read
    assert val("model=a.pt", f"data={data}", "split=val") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"yolo-os: error: data={data}: " in error
    assert str(images[0]) in error
    assert "temporary" not in error
    assert ".yolo_os.cache" not in error


def test_val_of_a_model_over_an_xml_file_without_its_image(own, digits, capsys):
    for image in sorted((own / "images/val").iterdir()):
        shutil.copy(digits / f"VOC2007/Annotations/{image.stem}.xml", image.parent)
    image.unlink()
    assert val("model=a.pt", f"data={own}/images", "split=val") == 3
    assert f"{image.stem}.xml: the image is missing: left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("batch=0", "batch=0: takes a whole number from 1"),
        ("max_det=0", "max_det=0: takes a whole number from 1"),
        ("imgsz=0", "imgsz=0: takes"),
        ("device=cuda:99", "error: device=cuda:99: "),
    ],
)
def test_val_names_the_key_of_a_model_that_is_wrong(own, capsys, word, says):
    assert val("model=a.pt", f"data={own}/data.yaml", "split=val", word) == 2
    assert says in capsys.readouterr().err


def test_val_of_a_model_where_the_data_are_named_from_the_folder_one_is_in(own, digits):
    file = as_coco(own).relative_to(own.parent)
    assert val("model=a.pt", f"data={file}", "images=own/images/val", "json=c.json") == 0
    for image in (own / "images/val").iterdir():
        shutil.copy(digits / f"VOC2007/Annotations/{image.stem}.xml", image.parent)
    assert val("model=a.pt", "data=own/images", "split=val", "json=x.json") == 0
    assert figures("x.json")["map"] > 0.5
    assert figures("c.json")["map"] > 0.5


def test_val_without_any_object_says_so_in_dashes(yolo, good, capsys):
    for label in (yolo / "ds/labels/val").iterdir():
        label.write_text("")
    words = ["val", "detections=good", "data=my.yaml", "split=val", "bootstrap=20", "plots=False"]
    assert main([*words, "json=out.json"]) == 0
    printed = capsys.readouterr().out
    assert "  AP    -\n" in printed
    assert "nan" not in printed
    assert figures()["bootstrap"]["coco"]["AP"]["low"] is None


def test_val_of_a_model_with_the_classes_of_a_data_yaml_in_another_order(own, capsys):
    import torch

    contents = torch.load("a.pt", weights_only=False)
    model = contents["model"]
    turned = list(range(9, -1, -1))
    with torch.no_grad():
        for tower in model.model[-1].cv3:
            tower[-1].weight.copy_(tower[-1].weight[turned])
            tower[-1].bias.copy_(tower[-1].bias[turned])
    model.names = {number: model.names[old] for number, old in enumerate(turned)}
    torch.save(contents, "b.pt")
    assert val("model=a.pt,b.pt", "data=own/data.yaml", "split=val", "bootstrap=20", "json=o.json") == 0
    assert "nan" not in capsys.readouterr().out  # of the 0 classes of 10 boxes or more
    found = figures("o.json")["detectors"]
    assert found["a"]["map"] > 0.5
    assert found["b"]["map"] == pytest.approx(found["a"]["map"], 1e-6)
    assert found["b"]["yolo_val_map50"] == pytest.approx(found["a"]["yolo_val_map50"], 1e-6)
