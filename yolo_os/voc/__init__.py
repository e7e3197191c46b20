"""PASCAL VOC: annotations, data sets, exact and fast mAP, error bars. Needs neither torch nor Ultralytics."""

from yolo_os.voc.annotations import VOC_CLASSES, Annotations, Problem, read_devkit
from yolo_os.voc.dataset import Dataset, Source, dataset_for, devkit_of, is_devkit, make_dataset
from yolo_os.voc.evaluation import PRCurve, VOCResult, evaluate_voc

__all__ = [
    "VOC_CLASSES",
    "Annotations",
    "Dataset",
    "PRCurve",
    "Problem",
    "Source",
    "VOCResult",
    "dataset_for",
    "devkit_of",
    "evaluate_voc",
    "is_devkit",
    "make_dataset",
    "read_devkit",
]
