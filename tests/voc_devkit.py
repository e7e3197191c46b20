"""Small VOCdevkits for the tests."""

import numpy as np


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
        (root / "Annotations" / f"{stem}.xml").write_text(text)
        if pictures:
            write_picture(root / "JPEGImages" / f"{stem}.jpg")
    for name, ids in sets.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in ids))
    return folder


def write_picture(path, size=(100, 80)):
    import cv2

    cv2.imwrite(str(path), np.full((size[1], size[0], 3), 90, np.uint8))
