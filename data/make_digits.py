"""Make the small detection data set that comes with the project: handwritten digits in the VOC devkit layout.

    python data/make_digits.py              # writes data/digits/VOCdevkit/VOC2007
    python data/make_digits.py --out DIR    # writes DIR/VOCdevkit/VOC2007

Every picture is a made-up textured background with 1 to 6 real scans of handwritten digits (`scans.npz`) drawn onto
it. The result depends on nothing but this file and the scans: annotations and image sets are the same byte for byte
on every machine; JPEG files can differ between builds of OpenCV, though their decoded pixels hardly do.

To keep that promise everything that decides where a box ends is computed with NumPy in float64, and every random
number comes from `Generator.random()`, whose stream NumPy has never changed (unlike `shuffle` or `integers`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HERE = Path(__file__).resolve().parent
SCANS = HERE / "digits" / "scans.npz"
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEED = 20070611
DATABASE = "The yolo-os digits"  # what <source><database> says; also how a folder made by this script is recognised
JPEG_QUALITY = 85
SIZES = ((160, 160), (160, 160), (160, 128), (128, 160), (160, 144))  # (width, height) in pixels, drawn evenly

# Images and pool of scans of each split; a scan is drawn in its split only. The pools are consecutive blocks because in
# the scans' own order neighbours look alike: a nearest-neighbour classifier taught with the training pool is right on
# 0.94 of the test pool, with random pools of the same sizes on 0.98.
SPLITS = {"train": (300, range(500)), "val": (100, range(500, 700)), "test": (300, range(700, 1797))}

INK = 0.5  # a pixel belongs to a digit where the ink covers at least this share of it
# An object is marked difficult if any of these holds: its box's longer side is below SMALL pixels, its colour lies
# less than FAINT (mean over the three channels, 0..255) from what is under it, less than VISIBLE of its ink is seen.
SMALL, FAINT, VISIBLE = 16, 21.0, 0.6


@dataclass(frozen=True)
class Item:
    """One drawn digit. Box in pixels, 1-based and inclusive as VOC writes it."""

    name: str
    box: tuple[int, int, int, int]
    truncated: bool
    difficult: bool
    scan: int


@dataclass
class Split:
    """What a split holds: for each image (by its stem, such as `000007`) the digits drawn onto it."""

    images: dict[str, list[Item]] = field(default_factory=dict)

    @property
    def items(self) -> list[Item]:
        """All digits of the split."""
        return [item for items in self.images.values() for item in items]

    @property
    def scans(self) -> set[int]:
        """Numbers of the scans that were drawn."""
        return {item.scan for item in self.items}


@dataclass
class _Layer:
    """A digit placed in an image: its ink, over the image's whole area and beyond it."""

    scan: int
    cover: Array  # (h, w), share of the pixel under ink, 0..1; only the part inside the image
    ink: NDArray[np.bool_]  # (h, w)
    total: int  # ink pixels, with those outside the image
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 inside the image: 0-based, the end excluded
    contrast: float = 0.0


def save_scans_from_sklearn(path: Path = SCANS) -> None:
    """Write `scans.npz` from scikit-learn's copy of the data; done once, kept as the record of how."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez_compressed(path, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))


def load_scans(path: Path = SCANS) -> tuple[Array, NDArray[np.uint8]]:
    """The scans as (1797, 8, 8) in 0..1, and their labels 0..9."""
    with np.load(path) as data:
        return data["images"] / 16.0, data["labels"]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high)."""
    return low + (high - low) * float(rng.random())


def pick(rng: np.random.Generator, n: int) -> int:
    """An integer in 0..n-1."""
    return int(rng.random() * n)


def cubic(scan: Array, x: Array, y: Array) -> Array:
    """Values of an 8x8 scan at points given in its pixels (0 is the first pixel's centre), zero outside.

    Keys' cubic convolution with a = -1/2.
    """
    padded = np.zeros((14, 14))
    padded[3:11, 3:11] = scan

    def weights(t: Array) -> tuple[Array, ...]:
        return (
            ((-0.5 * t + 1.0) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1.0,
            ((-1.5 * t + 2.0) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        )

    x, y = np.clip(x, -1.999, 8.999), np.clip(y, -1.999, 8.999)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    across, down = weights(x - column), weights(y - row)
    value, at, flat = np.zeros(x.shape), (row + 2) * 14 + column + 2, padded.ravel()
    for j in range(4):
        for i in range(4):
            value += down[j] * across[i] * flat[at + (14 * j + i)]
    return value


def noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Array:
    """Smooth noise in -1..1 of shape (height, width) with about `cells` bumps along the longer side."""
    step = max(height, width) / cells
    rows, columns = int(height / step) + 2, int(width / step) + 2
    grid = rng.random((rows, columns)) * 2 - 1

    def between(values: Array, n: int) -> Array:  # linear interpolation along the first axis at n pixels
        at = np.arange(n) / step
        knot = at.astype(int)
        share = (at - knot)[:, None]
        result: Array = values[knot] * (1 - share) + values[knot + 1] * share
        return result

    return between(between(grid, height).T, width).T


def scribble(rng: np.random.Generator, canvas: Array, size: float) -> None:
    """Draw one stroke that is no digit (a line or an arc about `size` pixels long) onto `canvas`, shape (h, w, 3)."""
    height, width = canvas.shape[:2]
    turn, squash, half = uniform(rng, 0, 2 * np.pi), uniform(rng, 0.5, 1.0), size * uniform(rng, 0.03, 0.1) + 0.5
    colour = canvas[::4, ::4].mean(axis=(0, 1)) + uniform(rng, -1, 1) * 110 + (rng.random(3) - 0.5) * 60
    x0, y0, reach = uniform(rng, 0, width), uniform(rng, 0, height), size + half + 1
    left, top = max(int(x0 - reach), 0), max(int(y0 - reach), 0)
    area = canvas[top : int(y0 + reach) + 1, left : int(x0 + reach) + 1]  # the stroke lies in it
    across = np.arange(left, left + area.shape[1])[None, :] - x0
    down = np.arange(top, top + area.shape[0])[:, None] - y0
    across, down = across * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - across * np.sin(turn)
    if rng.random() < 0.4:  # straight: how far a pixel is outside of a thin rectangle
        outside = np.maximum(np.abs(across) - size, np.abs(down) - half)
    else:  # an arc: how far it is outside of a part of an elliptic ring
        radius, sweep = size * uniform(rng, 0.4, 1.0), uniform(rng, 0.5, 2.8)
        outside = np.abs(np.hypot(across, down / squash) - radius) - half
        outside = np.maximum(outside, (np.abs(np.arctan2(down, across)) - sweep) * radius)
    opacity = np.clip(0.5 - outside, 0, 1) * uniform(rng, 0.4, 0.95)
    area += opacity[..., None] * (np.clip(colour, 0, 255) - area)


def background(rng: np.random.Generator, height: int, width: int) -> Array:
    """A background of shape (height, width, 3), 0..255: gradient, noise at several scales, patches, strokes."""
    base = 30 + 195 * rng.random() + (rng.random(3) - 0.5) * 90
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    slope = (rng.random((2, 3)) - 0.5) * 90
    canvas: Array = base + (x / width - 0.5)[..., None] * slope[0] + (y / height - 0.5)[..., None] * slope[1]
    strength = uniform(rng, 8, 34)
    for cells, share in ((3, 1.0), (7, 0.8), (15, 0.65), (34, 0.45)):
        for_all, tint = noise(rng, height, width, cells), (rng.random(3) - 0.5) * 1.2
        canvas += (share * strength * for_all)[..., None] * (1 + tint)
    for _ in range(pick(rng, 4)):  # patches, like sheets lying about
        w, h = int(uniform(rng, 20, 0.7 * width)), int(uniform(rng, 20, 0.7 * height))
        left, top = pick(rng, width) - w // 2, pick(rng, height) - h // 2
        area = canvas[max(top, 0) : max(top + h, 0), max(left, 0) : max(left + w, 0)]
        area += uniform(rng, 0.3, 0.9) * (30 + 195 * rng.random(3) - area)
    for _ in range(2 + pick(rng, 7)):
        scribble(rng, canvas, uniform(rng, 12, 60))
    return np.clip(canvas, 0, 255)


def render(rng: np.random.Generator, scan: Array) -> Array:
    """A scan enlarged, turned and thresholded at random: the ink's cover 0..1 within the ink's tight box."""
    side = float(np.exp(uniform(rng, np.log(18), np.log(100))))  # of the scan's square, pixels
    turn = uniform(rng, -0.3, 0.3)  # radians
    stretch = uniform(rng, 0.85, 1.15)  # width over height
    shear = uniform(rng, -0.15, 0.15)
    bold = uniform(rng, 0.22, 0.42)  # the scan's grey above which there is ink
    soft = uniform(rng, 0.12, 0.4)
    reach = np.arange(-int(0.85 * side), int(0.85 * side) + 1.0)
    x, y = reach[None, :], reach[:, None]
    across, down = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    across = (across + shear * down) / stretch
    grey = cubic(scan, across * 8 / side + 3.5, down * 8 / side + 3.5)
    cover = np.clip((grey - bold) / soft, 0, 1)
    x0, y0, x1, y1 = tight(cover >= INK)
    cover[cover < 0.1] = 0
    return cover[y0:y1, x0:x1]


def tight(ink: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Box around the set pixels as x0, y0, x1, y1: 0-based, the end excluded."""
    columns, rows = np.flatnonzero(ink.any(axis=0)), np.flatnonzero(ink.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def place(rng: np.random.Generator, cover: Array, number: int, height: int, width: int) -> _Layer:
    """Put a rendered scan somewhere into an image of the given size in pixels."""
    h, w = cover.shape
    x0, y0 = pick(rng, width - w + 1), pick(rng, height - h + 1)
    if rng.random() < 0.07:  # let a part of it lie outside
        out, edge = uniform(rng, 0.12, 0.5), pick(rng, 4)
        if edge < 2:
            x0 = -int(out * w) if edge == 0 else width - w + int(out * w)
        else:
            y0 = -int(out * h) if edge == 2 else height - h + int(out * h)
    whole = np.zeros((height, width))
    inside = cover[max(-y0, 0) : height - y0, max(-x0, 0) : width - x0]
    whole[max(y0, 0) : max(y0, 0) + inside.shape[0], max(x0, 0) : max(x0, 0) + inside.shape[1]] = inside
    ink = whole >= INK
    return _Layer(number, whole, ink, int((cover >= INK).sum()), tight(ink))


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection of two boxes over the area of the smaller one."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(w, 0) * max(h, 0) / smaller


def paint(rng: np.random.Generator, canvas: Array, layer: _Layer) -> None:
    """Draw a placed digit onto `canvas` in a random colour, and note its contrast."""
    under = canvas[layer.ink].mean(axis=0)  # the mean colour where the ink will lie
    contrast = uniform(rng, 18, 60) if rng.random() < 0.45 else uniform(rng, 60, 130)
    up = rng.random() < 0.5
    if under.mean() + contrast > 245:
        up = False
    elif under.mean() - contrast < 10:
        up = True
    colour = np.clip(under + (contrast if up else -contrast) * (0.6 + 0.8 * rng.random(3)), 0, 255)
    layer.contrast = float(np.abs(colour - under).mean())
    x0, y0, x1, y1 = layer.box
    area = canvas[y0:y1, x0:x1]
    area += layer.cover[y0:y1, x0:x1, None] * uniform(rng, 0.85, 1.0) * (colour - area)


def draw(
    rng: np.random.Generator, scans: Array, labels: NDArray[np.uint8], queue: list[int]
) -> tuple[Array, list[Item]]:
    """One image (h, w, 3) in 0..255 and what is on it. Scans drawn move from the front of `queue` to its end."""
    width, height = SIZES[pick(rng, len(SIZES))]
    canvas = background(rng, height, width)
    layers: list[_Layer] = []
    allowed = 0.45 if rng.random() < 0.3 else 0.12  # how far boxes may overlap
    for _ in range(1 + pick(rng, 6)):
        cover = render(rng, scans[queue[0]])
        if max(cover.shape) < 14 or cover.shape[0] > 0.95 * height or cover.shape[1] > 0.95 * width:
            continue
        for _attempt in range(25):
            layer = place(rng, cover, queue[0], height, width)
            if all(overlap(layer.box, other.box) <= allowed for other in layers):
                paint(rng, canvas, layer)
                layers.append(layer)
                queue.append(queue.pop(0))
                break
    canvas += (rng.random(canvas.shape) - 0.5) * uniform(rng, 2, 16)  # grain
    items = []
    for index, layer in enumerate(layers):
        seen = layer.ink.copy()
        for later in layers[index + 1 :]:
            seen &= ~later.ink
        visible = float(seen.sum()) / layer.total
        x0, y0, x1, y1 = layer.box
        items.append(
            Item(
                name=CLASSES[int(labels[layer.scan])],
                box=(x0 + 1, y0 + 1, x1, y1),
                truncated=int(layer.ink.sum()) < layer.total,
                difficult=max(x1 - x0, y1 - y0) < SMALL or layer.contrast < FAINT or visible < VISIBLE,
                scan=layer.scan,
            )
        )
    return np.clip(canvas, 0, 255), items


def annotation(stem: str, height: int, width: int, items: list[Item]) -> str:
    """The image's annotation as the VOC devkit writes it. `source/image` names the scans, in the objects' order."""
    lines = [
        "<annotation>",
        "\t<folder>VOC2007</folder>",
        f"\t<filename>{stem}.jpg</filename>",
        "\t<source>",
        f"\t\t<database>{DATABASE}</database>",
        "\t\t<annotation>data/make_digits.py</annotation>",
        f"\t\t<image>scans.npz {' '.join(str(item.scan) for item in items)}</image>",
        "\t</source>",
        "\t<size>",
        f"\t\t<width>{width}</width>",
        f"\t\t<height>{height}</height>",
        "\t\t<depth>3</depth>",
        "\t</size>",
        "\t<segmented>0</segmented>",
    ]
    for item in items:
        lines += [
            "\t<object>",
            f"\t\t<name>{item.name}</name>",
            "\t\t<pose>Unspecified</pose>",
            f"\t\t<truncated>{int(item.truncated)}</truncated>",
            f"\t\t<difficult>{int(item.difficult)}</difficult>",
            "\t\t<bndbox>",
            *(f"\t\t\t<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), item.box)),
            "\t\t</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def image_sets(made: dict[str, Split]) -> dict[str, str]:
    """Text of every file of `ImageSets/Main` by its name: the splits, and 1/0/-1 per class as the devkit has it."""
    groups = {**made, "trainval": Split({**made["train"].images, **made["val"].images})}
    files = {}
    for group, split in groups.items():
        files[f"{group}.txt"] = "".join(f"{stem}\n" for stem in split.images)
        for name in CLASSES:
            lines = []
            for stem, items in split.images.items():
                flags = [item.difficult for item in items if item.name == name]
                # -1: absent, 0: only difficult ones, 1: present
                lines.append(f"{stem} {-1 if not flags else 0 if all(flags) else 1:2d}\n")
            files[f"{name}_{group}.txt"] = "".join(lines)
    return files


def make(out: Path) -> dict[str, Split]:
    """Write `out/VOCdevkit/VOC2007`, replacing what an earlier run left there; returns what each split holds.

    Raises:
        FileExistsError: if a data set lies there that this script did not make.
    """
    target = out / "VOCdevkit" / "VOC2007"
    if target.exists():
        first = next((target / "Annotations").glob("*.xml"), None)
        if first is None or f"<database>{DATABASE}</database>" not in first.read_text(encoding="utf-8"):
            raise FileExistsError(f"{target} was not made by this script: move it away or give another --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as temporary:
        new = Path(temporary) / "new"
        made = _write(new)
        if target.exists():
            target.rename(Path(temporary) / "old")
        new.rename(target)
    return made


def _write(folder: Path) -> dict[str, Split]:
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    scans, labels = load_scans()
    rng = np.random.default_rng(SEED)
    made: dict[str, Split] = {}
    number = 0
    for name, (count, pool) in SPLITS.items():
        split = made[name] = Split()
        queue = [pool[i] for i in np.argsort(rng.random(len(pool)), kind="stable")]
        for _ in range(count):
            number += 1
            stem = f"{number:06d}"
            canvas, items = draw(rng, scans, labels, queue)
            ok, jpeg = cv2.imencode(".jpg", np.rint(canvas).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            if not ok:
                raise OSError(f"OpenCV could not encode image {stem} as JPEG")
            (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(jpeg.tobytes())
            text = annotation(stem, canvas.shape[0], canvas.shape[1], items)
            (folder / "Annotations" / f"{stem}.xml").write_bytes(text.encode())  # bytes: no CRLF on Windows
            split.images[stem] = items
    for file, text in image_sets(made).items():
        (folder / "ImageSets" / "Main" / file).write_bytes(text.encode())
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the script; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the digits data set in the VOC devkit layout.")
    parser.add_argument("--out", type=Path, default=HERE / "digits", help="folder that gets VOCdevkit/VOC2007")
    parser.add_argument("--from-sklearn", action="store_true", help="first write scans.npz anew from scikit-learn")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    if args.from_sklearn:
        save_scans_from_sklearn()
    try:
        made = make(args.out)
    except OSError as error:
        print(f"make_digits: {error}", file=sys.stderr)
        return 1
    for name, split in made.items():
        difficult, truncated = (sum(getattr(item, flag) for item in split.items) for flag in ("difficult", "truncated"))
        print(
            f"{name:5s} {len(split.images):4d} images {len(split.items):5d} objects "
            f"({difficult} difficult, {truncated} truncated) of {len(split.scans)} scans"
        )
    size = sum(file.stat().st_size for file in (args.out / "VOCdevkit" / "VOC2007").rglob("*") if file.is_file())
    print(f"{args.out / 'VOCdevkit' / 'VOC2007'}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
