"""Untrained models of each head family and batches with labels that fit their task."""

from __future__ import annotations

import torch
from ultralytics.nn.tasks import guess_model_task
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_os.heads import prediction_layers
from yolo_os.integration.architecture import build

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
