"""What several tests build: small VOCdevkits, untrained models of each head family, batches with labels for them."""

from __future__ import annotations

import zipfile

import numpy as np

FAMILIES = (
    "yolov5n",
    "yolov8n",
    "yolov9t",
    "yolov10n",
    "yolo11n",
    "yolo12n",
    "yolo26n",
    "yolo11n-seg",
    "yolo26n-seg",
    "yolo11n-pose",
    "yolo26n-pose",
    "yolo11n-obb",
    "yolo26n-obb",
    "rtdetr-l",
    "yolov8n-worldv2",
    "yoloe-11n-seg",
)


def small_model(name="yolov8n", seed=0):
    """An untrained model with the args that training would have left on it."""
    import torch
    from ultralytics.nn.tasks import guess_model_task
    from ultralytics.utils import DEFAULT_CFG_DICT

    from yolo_os.heads import prediction_layers
    from yolo_os.integration.architecture import build

    torch.manual_seed(seed)
    model = build(f"{name}.yaml")
    model.task = guess_model_task(model)
    model.args = dict(DEFAULT_CFG_DICT)
    for layer in prediction_layers(model):  # RT-DETR starts with zeros, which a shift has nothing to do with
        if not layer.module.weight.any():
            torch.nn.init.normal_(layer.module.weight, std=0.1)
    return model


def labelled_batch(model, images=4, size=None, seed=0):
    """Random images and labels as Ultralytics' loaders would give them for the model's task."""
    import torch

    size = size or (128 if type(model.model[-1]).__name__ == "RTDETRDecoder" else 64)  # room for 300 queries
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    head, objects = model.model[-1], 3 * images
    batch = {
        "img": rand(images, 3, size, size),
        "batch_idx": torch.arange(images).repeat_interleave(3).float(),
        "cls": torch.randint(0, head.nc, (objects, 1), generator=generator).float(),
        "bboxes": torch.cat([rand(objects, 2) * 0.4 + 0.3, rand(objects, 2) * 0.3 + 0.2], 1),
    }
    if model.task == "obb":
        batch["bboxes"] = torch.cat([batch["bboxes"], rand(objects, 1)], 1)
    if model.task == "pose":
        points = head.kpt_shape[0]
        batch["keypoints"] = torch.cat([rand(objects, points, 2), torch.full((objects, points, 1), 2.0)], 2)
    if model.task == "segment":
        batch["masks"] = torch.randint(0, 4, (images, size // 4, size // 4), generator=generator).float()
        batch["sem_masks"] = torch.zeros(images, size // 4, size // 4, dtype=torch.long)
    return batch


def xml(objects, size=(100, 80)):
    """XML text of an annotation; objects are (name, (x1, y1, x2, y2), {tag: text}), `difficult` 0 where not given."""
    parts = ["<annotation>"]
    if size:
        parts.append(f"  <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>")
    for name, box, *rest in objects:
        tags = {"pose": "Left", "truncated": "0", "difficult": "0", **(rest[0] if rest else {})}
        parts.append("  <object>")
        parts.append(f"    <name>{name}</name>")
        parts += [f"    <{tag}>{text}</{tag}>" for tag, text in tags.items() if text is not None]
        corners = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
        parts.append(f"    <bndbox>{corners}</bndbox>")
        parts.append("  </object>")
    return "\n".join([*parts, "</annotation>", ""])


def write_devkit(folder, images, sets, year="2007", pictures=True):
    """Write `folder/VOC2007`: images by id (XML text, or objects for `xml`), sets by name (ids). Returns the folder."""
    root = folder / f"VOC{year}"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for stem, content in images.items():
        text = content if isinstance(content, str) else xml(content)
        for name in ("Annotations", "JPEGImages"):
            (root / name / stem).parent.mkdir(exist_ok=True)  # an id may hold folders
        (root / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
        if pictures:
            write_picture(root / "JPEGImages" / f"{stem}.jpg")
    for name, ids in sets.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in ids), encoding="utf-8")
    return folder


def write_picture(path, size=(100, 80), orientation=None):
    """An image file of one colour; `orientation` is what its EXIF says of how it is turned."""
    import cv2

    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 90, np.uint8))
    if orientation:
        from PIL import Image

        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x0112] = orientation
            image.save(path, exif=exif)


def comp4(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def layer_of(role="cls", m=6, n=3, name="cv3.0", group="0", seed=0, shift=-3.0, bias=True):
    """A prediction layer; `shift` is added to its biases, which for classes says how much it sees of objects."""
    import torch
    from torch import nn

    from yolo_os.heads import PredictionLayer

    torch.manual_seed(seed)
    module = nn.Conv2d(m, n, 1, bias=bias)
    if bias:
        module.bias.data += shift
    bins = n // 4 if role == "box" and n > 4 else 0
    return PredictionLayer(name, role, module, int(group[-1]), 8.0, group, bins)


def joint_layer(m=6, classes=3, sizes=((1.5, 2.0), (4.0, 3.0)), balance=4.0, seed=0, shift=-3.0):
    """A prediction layer of an anchor-based head; `shift` is added to the biases of objectness."""
    from dataclasses import replace

    from yolo_os.heads import AnchorLayout

    layer = layer_of("joint", m, len(sizes) * (classes + 5), "m.0", seed=seed, shift=0.0)
    layer.module.bias.data.view(len(sizes), -1)[:, 4] += shift
    return replace(layer, layout=AnchorLayout(sizes, classes, balance))


def batch_of(layer, images=2, points=40, seed=0, scorer=None):
    """Features, outputs and anchor points of one batch, numbered by its seed; the scores are those of a scorer."""
    import torch

    from yolo_os.statistics import Anchors

    generator = torch.Generator().manual_seed(seed + 100)
    features = torch.randn(images, layer.in_features, points, generator=generator) + 1

    def outputs_of(module):
        return module(features[..., None]).detach()[..., 0]

    return features, outputs_of(layer.module), Anchors(outputs_of((scorer or layer).module), batch=seed)


def digits_subset(folder, digits, **counts):
    """A data.yaml of its own with the first images of splits of the embedded devkit; returns its path."""
    import shutil

    import yaml

    from yolo_os.conversion.dataset import dataset_for

    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    source = dataset_for(digits, classes=names).parent
    for split, count in counts.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for image in sorted((source / "images" / f"{split}2007").iterdir())[:count]:
            label = source / "labels" / f"{split}2007" / f"{image.stem}.txt"
            shutil.copy(image.resolve(), folder / "images" / split / image.name)
            if label.exists():
                shutil.copy(label, folder / "labels" / split / label.name)
    described = {"path": str(folder), **{split: f"images/{split}" for split in counts}, "names": list(names)}
    (folder / "data.yaml").write_text(yaml.safe_dump({"val": described.get("train"), **described}))
    return folder / "data.yaml"


def repacked(source, target, change):
    """Copy an archive of torch.save, each record through `change(name, bytes)`; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = change(entry.filename.split("/", 1)[1], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
    return target


def listed_dataset(made, file, splits):
    """A data.yaml that lists images of a data set made of the embedded devkit: by split, (its split there, a slice)."""
    import yaml

    content = {"path": str(file.parent), "names": yaml.safe_load(made.read_text())["names"]}
    for split, (source, wanted) in splits.items():
        images = sorted((made.parent / "images" / f"{source}2007").iterdir())[wanted]
        content[split] = f"{file.stem}-{split}.txt"
        (file.parent / content[split]).write_text("".join(f"{image}\n" for image in images))
    file.write_text(yaml.safe_dump(content))
    return file
