"""PASCAL VOC average precision as plain loops, written from the rules; the tests hold the evaluator against it."""

import math

THRESHOLDS = {
    "numpy": [k * 0.1 for k in range(11)],
    "matlab": [0.0, 0.1, 0.2, 0.1 * 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
}


def iou(a, b, offset):
    """Intersection over union of two boxes x1, y1, x2, y2 whose width is x2 - x1 + offset."""
    w = min(a[2], b[2]) - max(a[0], b[0]) + offset
    h = min(a[3], b[3]) - max(a[1], b[1]) + offset
    if w <= 0 or h <= 0:
        return 0.0
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return w * h / (area_a + area_b - w * h)


def loop_voc(gt, det, num_classes, threshold=0.5, offset=1.0, points="numpy"):
    """AP and AP07 lists and the box counts.

    gt: list of (image, class, box, difficult); det: list of (image, class, box, score).
    """
    ap, ap07, npos = [], [], []
    for c in range(num_classes):
        boxes = {}
        for image, label, box, difficult in gt:
            if label == c:
                boxes.setdefault(image, []).append({"box": box, "difficult": difficult, "taken": False})
        n = sum(not g["difficult"] for objects in boxes.values() for g in objects)
        npos.append(n)
        precision, recall, tp, fp = [], [], 0, 0
        for image, _, box, _ in sorted((d for d in det if d[1] == c), key=lambda d: -d[3]):
            best, best_iou = None, 0.0
            for g in boxes.get(image, []):
                value = iou(box, g["box"], offset)
                if value > best_iou:
                    best, best_iou = g, value
            if best is not None and best_iou >= threshold:
                if best["difficult"]:
                    continue
                if best["taken"]:
                    fp += 1
                else:
                    best["taken"] = True
                    tp += 1
            else:
                fp += 1
            precision.append(tp / (tp + fp))
            recall.append(tp / n if n else math.nan)
        if n == 0:
            ap.append(math.nan)
            ap07.append(math.nan)
            continue
        # VOC 2007: the best precision at or beyond each of the eleven recalls
        best_from = precision[:]
        for i in range(len(best_from) - 2, -1, -1):
            best_from[i] = max(best_from[i], best_from[i + 1])
        total = 0.0
        for t in THRESHOLDS[points]:
            total += max((p for p, r in zip(precision, recall) if r >= t), default=0.0)
        ap07.append(total / 11)
        # VOC 2010: area under the monotone precision
        area, last = 0.0, 0.0
        for p, r in zip(best_from, recall):
            area += (r - last) * p
            last = r
        ap.append(area)
    return ap, ap07, npos
