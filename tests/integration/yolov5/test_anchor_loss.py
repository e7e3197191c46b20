"""The anchor-based training loss against the same written out one object, anchor and cell at a time."""

import math

import classic
import pytest
import torch
from builders import labelled_batch

from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.yolov5.loss import AnchorLoss, scaled_gains
from yolo_os.integration.yolov5.model import AnchorDetect
from yolo_os.loss import training_loss

ANCHORS = [[[1.2, 1.6], [2.0, 3.7], [4.1, 2.9]], [[1.9, 3.8], [3.9, 2.8], [3.7, 7.4]]]
CELLS = [(8, 10), (4, 5)]
BALANCE = {2: [4.0, 1.0], 3: [4.0, 1.0, 0.4], 4: [4.0, 1.0, 0.25, 0.06]}


def head(classes=3):
    made = AnchorDetect(classes, 3, [4, 4])
    made.anchors.copy_(torch.tensor(ANCHORS))
    return made


def outputs(classes=3, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(images, 3, rows, columns, classes + 5) for rows, columns in CELLS]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def labels(objects=12, classes=3, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rand = torch.rand(objects, 4, generator=generator)
    return {
        "batch_idx": torch.randint(0, images, (objects,), generator=generator).float(),
        "cls": torch.randint(0, classes, (objects, 1), generator=generator).float(),
        "bboxes": torch.cat([rand[:, :2], rand[:, 2:] * 0.6 + 0.05], 1),
    }


def ciou(a, b):
    """Of two boxes as x, y, w, h; one number after the other."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = a, b
    overlap_x = min(x1 + w1 / 2, x2 + w2 / 2) - max(x1 - w1 / 2, x2 - w2 / 2)
    overlap_y = min(y1 + h1 / 2, y2 + h2 / 2) - max(y1 - h1 / 2, y2 - h2 / 2)
    inside = max(overlap_x, 0) * max(overlap_y, 0)
    iou = inside / (w1 * h1 + w2 * h2 - inside)
    around_x = max(x1 + w1 / 2, x2 + w2 / 2) - min(x1 - w1 / 2, x2 - w2 / 2)
    around_y = max(y1 + h1 / 2, y2 + h2 / 2) - min(y1 - h1 / 2, y2 - h2 / 2)
    v = 4 / math.pi**2 * (math.atan(w2 / h2) - math.atan(w1 / h1)) ** 2
    alpha = v / (v - iou + 1)
    return iou - ((x2 - x1) ** 2 + (y2 - y1) ** 2) / (around_x**2 + around_y**2) - alpha * v


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def bce(z, target, weight=1.0):
    p = sigmoid(z)
    return -(weight * target * math.log(p) + (1 - target) * math.log(1 - p))


def matches(level, batch, anchor_t=4.0):
    """(image, anchor, row, column, box in cells, class), one by one."""
    rows, columns = CELLS[level]
    found = []
    for image, label, (x, y, w, h) in zip(batch["batch_idx"], batch["cls"], batch["bboxes"].tolist()):
        x, y, w, h = x * columns, y * rows, w * columns, h * rows
        for anchor, (aw, ah) in enumerate(ANCHORS[level]):
            if max(w / aw, aw / w, h / ah, ah / h) >= anchor_t:
                continue
            near = [(0, 0)]
            near += [(-0.5, 0)] if x % 1 < 0.5 and x > 1 else []
            near += [(0, -0.5)] if y % 1 < 0.5 and y > 1 else []
            near += [(0.5, 0)] if (columns - x) % 1 < 0.5 and columns - x > 1 else []
            near += [(0, 0.5)] if (rows - y) % 1 < 0.5 and rows - y > 1 else []
            for right, down in near:
                column, row = min(int(x + right), columns - 1), min(int(y + down), rows - 1)
                found.append((int(image), anchor, row, column, (x - column, y - row, w, h), int(label)))
    return found


def slowly(raw, batch, args, classes=3):
    """Box, obj and cls, with their gains."""
    box = obj = cls = 0.0
    smooth = args["label_smoothing"]
    for level, out in enumerate(raw):
        wanted, ious, losses = {}, [], []
        for image, anchor, row, column, truth, label in matches(level, batch, args["anchor_t"]):
            z = out[image, anchor, row, column].tolist()
            aw, ah = ANCHORS[level][anchor]
            found = (2 * sigmoid(z[0]) - 0.5, 2 * sigmoid(z[1]) - 0.5,
                     (2 * sigmoid(z[2])) ** 2 * aw, (2 * sigmoid(z[3])) ** 2 * ah)  # fmt: skip
            ious.append(ciou(found, truth))
            place = image, anchor, row, column
            wanted[place] = max(wanted.get(place, 0.0), ious[-1])
            for index in range(classes):
                target = 1 - smooth / 2 if index == label else smooth / 2
                losses.append(bce(z[5 + index], target, args["cls_pw"]))
        if ious:
            box += sum(1 - iou for iou in ious) / len(ious)
            cls += sum(losses) / len(losses) if classes > 1 else 0.0
        images, anchors, rows, columns, _ = out.shape
        every = [
            bce(float(out[b, a, i, j, 4]), wanted.get((b, a, i, j), 0.0), args["obj_pw"])
            for b in range(images) for a in range(anchors) for i in range(rows) for j in range(columns)
        ]  # fmt: skip
        obj += BALANCE[len(raw)][level] * sum(every) / len(every)
    return {"box_loss": args["box"] * box, "obj_loss": args["obj"] * obj, "cls_loss": args["cls"] * cls}


SETTINGS = {
    "plain": {},
    "weighted": {"cls_pw": 0.6, "obj_pw": 1.4, "label_smoothing": 0.1, "anchor_t": 2.9, "box": 0.2},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("classes", [3, 1])
def test_it_is_the_loss_taken_slowly(settings, classes):
    args = {**classic.HYP, **SETTINGS[settings]}
    loss = AnchorLoss(head(classes), args)
    loss.anchors = loss.anchors.double()
    for seed in range(3):
        raw, batch = outputs(classes, seed=seed), labels(classes=classes, seed=seed)
        total, terms = loss(raw, batch)
        expected = slowly(raw, batch, args, classes)
        assert {name: float(each) for name, each in terms.items()} == pytest.approx(expected, rel=1e-6)
        assert float(total.sum()) == pytest.approx(2 * sum(expected.values()), rel=1e-6)


def test_every_match_is_found():
    loss = AnchorLoss(head(), classic.HYP)
    loss.anchors = loss.anchors.double()
    batch = labels(objects=40, seed=5)
    batch["bboxes"][:4, :2] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.999, 0.001], [0.05, 0.5]])  # at the border
    for level, cells in enumerate(CELLS):
        found = loss.match(level, cells, batch)
        places = zip(*(each.tolist() for each in (found.image, found.anchor, found.row, found.column, found.label)))
        expected = sorted((*each[:4], each[5]) for each in matches(level, batch))
        assert sorted(places) == expected
        assert len(set(expected)) > 40


def test_without_objects_only_objectness_counts():
    total, terms = AnchorLoss(head(), classic.HYP)([each.float() for each in outputs()], labels(objects=0))
    assert terms["box_loss"] == terms["cls_loss"] == 0
    assert float(total.sum()) == pytest.approx(2 * float(terms["obj_loss"]))
    assert float(terms["obj_loss"]) > 0


def test_gains_are_scaled_as_a_training_does():
    gains = {"box": 0.05, "cls": 0.5, "obj": 1.0}
    assert scaled_gains(gains, 80, 3, 640) == pytest.approx(gains)
    assert scaled_gains(gains, 20, 4, 1280) == pytest.approx({"box": 0.0375, "cls": 0.09375, "obj": 3.0})


def test_the_models_own_loss_is_the_same_in_both_modes_and_leaves_it_as_it_was(tmp_path):
    classic.classic(tmp_path / "a.pt")
    model = load_checkpoint(tmp_path / "a.pt").model
    batch = labelled_batch(model)
    before = set(vars(model)), model.args
    with torch.no_grad(), training_loss(model) as loss:
        assert loss.missing is None
        decoded, raw = model(batch["img"])
        found = {name: float(each) for name, each in loss(batch, (decoded, raw)).items()}
        assert list(found) == ["total", "box", "obj", "cls"]
        assert {name: float(each) for name, each in loss(batch, raw).items()} == found
    assert found["total"] == pytest.approx(found["box"] + found["obj"] + found["cls"])
    assert min(found.values()) > 0
    assert (set(vars(model)), model.args) == before


def test_its_gradient_teaches(tmp_path):
    classic.classic(tmp_path / "a.pt")
    model = load_checkpoint(tmp_path / "a.pt").model
    batch = labelled_batch(model)
    optimizer = torch.optim.SGD(model.model[-1].parameters(), lr=0.5)
    with training_loss(model) as loss:
        losses = []
        for _ in range(15):
            total = loss(batch, model(batch["img"]))["total"]
            losses.append(float(total.detach()))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
