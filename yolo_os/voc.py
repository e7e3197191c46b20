"""PASCAL VOC: annotations, data sets, exact and fast mAP, error bars. Needs neither torch nor Ultralytics."""

from yolo_os.evaluation.annotations import VOC_CLASSES, Annotations, Problem, read_devkit
from yolo_os.evaluation.bootstrap import Bootstrap, Difference, Interval, bootstrap
from yolo_os.evaluation.dataset import Dataset, Source, dataset_for, devkit_of, is_devkit, make_dataset
from yolo_os.evaluation.detections import (
    Detections,
    evaluate_detections,
    read_detections,
    write_coco_json,
    write_comp4,
)
from yolo_os.evaluation.voc import PRCurve, VOCResult, evaluate_voc

__all__ = [
    "VOC_CLASSES",
    "Annotations",
    "Bootstrap",
    "Dataset",
    "Detections",
    "Difference",
    "Interval",
    "PRCurve",
    "Problem",
    "Source",
    "VOCResult",
    "bootstrap",
    "dataset_for",
    "devkit_of",
    "evaluate_detections",
    "evaluate_voc",
    "is_devkit",
    "make_dataset",
    "read_detections",
    "read_devkit",
    "write_coco_json",
    "write_comp4",
]
