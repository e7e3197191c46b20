"""Calibration images from whatever Ultralytics takes as `data=`, or from a VOCdevkit, through Ultralytics' loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.nn.tasks import guess_model_task
from ultralytics.utils import LOGGER

from yolo_os.conversion.dataset import dataset_for
from yolo_os.distributed import first_process_first, rank, world_size
from yolo_os.errors import UserError
from yolo_os.evaluation.names import match_names, some
from yolo_os.evaluation.readers.data_yaml import path_hint
from yolo_os.evaluation.readers.devkit import class_names, find_roots
from yolo_os.evaluation.readers.devkit import recognises as is_devkit
from yolo_os.files import as_path
from yolo_os.heads import find_head
from yolo_os.integration.guard import forget_arrays, guarded
from yolo_os.integration.runtime import quiet
from yolo_os.integration.users_paths import made_of, users_path
from yolo_os.recipe import ShiftRecipe
from yolo_os.terminal import counted


class Batches:
    """Batches of a fixed list of images, the same at every pass, without augmentation and letterboxed to a square.

    Of several processes, each has its share of the batches.

    Attributes:
        images: how many images it draws on.
        classes: numbers of the classes that their labels have.
        said: what the reader should know of how they were drawn.
        unreadable: files of the split that could not be read, found so far; they are left out.
    """

    def __init__(
        self, dataset: YOLODataset, indices: list[int], batch: int, workers: int, unreadable: Iterable[str]
    ) -> None:
        self.images = len(indices)
        self.classes = {int(number) for index in indices for number in dataset.labels[index]["cls"].ravel()}
        self.said: tuple[str, ...] = ()
        self.unreadable = set(unreadable)
        groups = [list(range(start, min(start + batch, len(indices)))) for start in range(0, len(indices), batch)]
        if groups and len(groups) < world_size():
            raise UserError(f"{len(groups)} batches can't be shared by {world_size()} processes: take a smaller batch=")
        self._loader = DataLoader(
            Subset(_Readable(dataset), indices),
            batch_sampler=groups[rank() :: world_size()],
            num_workers=workers,
            collate_fn=_collate_with(dataset),
        )

    def __len__(self) -> int:
        """How many batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The batches in order."""
        for batch, unreadable in self._loader:
            self.unreadable.update(map(users_path, unreadable))
            if batch is not None:
                yield batch


class _Readable(Dataset[Any]):
    """Images of a data set; one that can't be read comes as its path, so that a pass does not end over it."""

    def __init__(self, dataset: YOLODataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception:  # OpenCV, PIL and Ultralytics each raise their own for a damaged image
            return str(self.dataset.im_files[index])


class _collate_with:
    """Collate as the data set does, the unreadable images set aside; a class, so that workers can pickle it."""

    def __init__(self, dataset: YOLODataset) -> None:
        self.collate = dataset.collate_fn

    def __call__(self, items: list[Any]) -> tuple[dict[str, Any] | None, list[str]]:
        readable = [item for item in items if not isinstance(item, str)]
        return (self.collate(readable) if readable else None), [item for item in items if isinstance(item, str)]


def calibration_batches(
    model: nn.Module,
    data: str | Path,
    recipe: ShiftRecipe,
    *,
    split: str = "train",
    imgsz: int | None = None,
    batch: int = 16,
    workers: int = 0,
) -> tuple[Batches, Batches]:
    """Batches to shift on, and others to check on, drawn at random by the recipe's seed from one split.

    Where the split has fewer images than the recipe asks for, a quarter of it is held out, or what is left over.

    Args:
        model: the bare model, whose task says which labels are read.
        data: a data set's YAML (or its shipped name), a folder that holds one, or a VOCdevkit folder.
        recipe: says how many images and the seed.
        split: train, val or test.
        imgsz: in pixels; that of the model's training if None.
        batch: images per batch.
        workers: loader processes.

    Raises:
        UserError: if there is no such data set or split, or none of its images can be read.
    """
    with first_process_first():  # which writes the caches
        dataset = open_dataset(model, data, split, imgsz, batch)
    total = len(dataset)
    held_out = min(recipe.held_out, max(total // 4, total - recipe.images))
    used = min(recipe.images, total - held_out)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    with guarded(), quiet():
        listed = {str(file) for file in dataset.get_img_files(dataset.img_path)}
    unreadable = [users_path(file) for file in listed - {str(file) for file in dataset.im_files}]  # by the scan
    drawn = Batches(dataset, order[:used], batch, workers, unreadable)
    drawn.said = tuple(_said_of(drawn, held_out, total, split, recipe, class_names_of(model)))
    return drawn, Batches(dataset, order[used : used + held_out], batch, workers, unreadable)


def _said_of(
    drawn: Batches, held_out: int, total: int, split: str, recipe: ShiftRecipe, names: Sequence[str]
) -> Iterator[str]:
    """What a person should know of the images that a shift uses."""
    if drawn.images < recipe.images or held_out < recipe.held_out:
        yield (
            f"images={recipe.images} and held_out={recipe.held_out} are more than the {total} of {split}:"
            f" {drawn.images} shape the shift, {held_out} judge it"
        )
    if not drawn.classes:
        yield f"none of the {counted(drawn.images, 'image')} that shape the shift has a labelled object"
    elif len(drawn.classes) == 1 and len(names) > 1:
        name = names[next(iter(drawn.classes))] if max(drawn.classes) < len(names) else next(iter(drawn.classes))
        yield f"all objects in the images that shape the shift are of one class, {name}; the model has {len(names)}"


def open_dataset(model: nn.Module, data: str | Path, split: str, imgsz: int | None, batch: int) -> YOLODataset:
    """The images and labels of one split, as Ultralytics' validator would open them.

    Raises:
        UserError: if there is no such data set or split, or it holds no readable image.
    """
    untyped: Any = model
    args = args_of(model)
    size = image_size(model, imgsz)
    single = bool(args.get("single_cls"))
    described = describe(data, split, None if single else class_names_of(model))
    known = getattr(untyped.model[-1], "nc", None)
    numbers = None if single else numbers_in_model(described["names"], class_names_of(model))
    if numbers is None and known not in (None, 1 if single else len(described["names"])):
        raise UserError(
            f"data={data} has {len(described['names'])} classes and the model {known}: take the data of its training"
        )
    check_channels(model, data, described)
    overrides = {"task": task_of(model), "imgsz": size, "rect": False}
    labels = {name: args[name] for name in ("classes", "overlap_mask", "mask_ratio") if args.get(name) is not None}
    try:
        cfg = get_cfg(overrides={**overrides, "single_cls": single, **labels})
        with guarded(), quiet():
            if find_head(model).kind == "RTDETRDecoder":
                dataset: YOLODataset = RTDETRDataset(
                    img_path=described[split],
                    imgsz=size,
                    batch_size=batch,
                    augment=False,
                    hyp=cfg,
                    rect=False,
                    data=described,
                )
            else:
                dataset = build_yolo_dataset(
                    cfg, described[split], batch, described, mode="val", rect=False, stride=stride_of(model)
                )
        forget_arrays(dataset)
        if numbers is not None:
            for label in dataset.labels:
                label["cls"] = np.array(numbers, label["cls"].dtype)[label["cls"].astype(int)]
        return dataset
    except Exception as error:  # Ultralytics raises anything from AssertionError to SyntaxError here
        raise UserError(f"data={data}: {' '.join(str(error).split())}") from None


def check_channels(model: nn.Module, data: object, described: Mapping[str, Any]) -> None:
    """Refuse images of another number of channels than the model takes.

    Raises:
        UserError: naming both.
    """
    wanted = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if wanted not in (None, described.get("channels", 3)):
        raise UserError(f"data={data} has images of {described['channels']} channels, and the model takes {wanted}")


def args_of(model: nn.Module) -> dict[str, Any]:
    """The args of its training that a bare model carries; none where it carries none."""
    args: Any = getattr(model, "args", None)
    return dict(args) if isinstance(args, Mapping) else {}


def task_of(model: nn.Module) -> str:
    """The task of a bare model, such as `detect`."""
    return str(getattr(model, "task", None) or guess_model_task(model))


def stride_of(model: nn.Module) -> int:
    """What image sizes are multiples of.

    Raises:
        UserError: if the model has none.
    """
    stride = getattr(model, "stride", None)
    if not isinstance(stride, torch.Tensor) or not stride.numel():
        raise UserError("the model has no strides, which tell the sizes of images that it takes: it is damaged")
    return max(int(stride.max()), 32)


def image_size(model: nn.Module, imgsz: int | None) -> int:
    """The image size given, in pixels, or that of the model's training if None.

    Raises:
        UserError: if it is no multiple of the model's stride.
    """
    trained = args_of(model).get("imgsz") or 640
    size = imgsz if imgsz is not None else int(max(trained) if isinstance(trained, list | tuple) else trained)
    stride = stride_of(model)
    if size < stride or size % stride:
        raise UserError(f"imgsz={size}: takes a multiple of the model's stride {stride}")
    return size


def class_names_of(model: nn.Module) -> list[str]:
    """The names of a model's classes, in its order."""
    names: Any = getattr(model, "names", None) or {}
    if isinstance(names, Mapping):  # by numbers, which some write as text
        names = [names[index] for index in sorted(names, key=int)]
    return [str(name) for name in names]


def numbers_in_model(names: Mapping[int, str], known: Sequence[str]) -> list[int] | None:
    """By which number a model has each class of the data, where it names or numbers them otherwise but has them all.

    Args:
        names: the classes of the data by number.
        known: the model's classes, in its order; COCO's and VOC's names of one class match.

    Returns:
        None where the numbers are the same, or a class of the data is not among the model's.
    """
    if set(names.values()) == set(known):
        return None
    matched = match_names(names, known)
    distinct = len(set(matched.values())) == len(names)
    return [matched[number] for number in sorted(names)] if distinct else None


def class_order(found: Sequence[str], known: Sequence[str], every: bool = False) -> list[str]:
    """The classes of a development kit in the order of a model that knows them all, else in the devkit's own.

    The XML of a devkit names classes and leaves their order open, so labels, tables and models are numbered by this
    rule, wherever a devkit meets a model.

    Args:
        found: the devkit's classes, in its own order (VOC's, or the alphabet's).
        known: the model's classes, in its order.
        every: keep the model's classes that the devkit lacks: the outputs of a trained model stay where they are. A
            training makes its outputs for the classes found, and a table has a line for each of these.
    """
    if not set(found) <= set(known):
        return list(found)
    return [name for name in known if every or name in found]


def devkit_dataset(
    devkit: str | Path | Sequence[str | Path],
    known: Sequence[str],
    *,
    every: bool = False,
    year: str | None = None,
    classes: str | Path | Sequence[str] | None = None,
) -> Path:
    """The `data.yaml` of a development kit with its classes in the `class_order` of a model.

    Args:
        devkit, year, classes: as for `read_devkit`.
        known, every: as for `class_order`.
    """
    found = class_names(find_roots(devkit, year), classes)
    made = dataset_for(devkit, year, class_order(found, known, every))
    made_of(made.parent, devkit)
    return made


def warn_of_problems(data_yaml: Path, data: object) -> None:
    """Say what was left out when the data set of a devkit was made, as the file beside its `data.yaml` lists it."""
    file = data_yaml.parent / "problems.txt"
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        rest = "" if len(lines) == 1 else f"; yolo-os voc devkit={data} out=... lists all {len(lines)}"
        LOGGER.warning(f"data={data}: {counted(len(lines), 'problem')} in its files: {lines[0]}{rest}")


def read_description(source: str | Path, data: object) -> dict[str, Any]:
    """What a data set's YAML says, with absolute paths; nothing is downloaded, unpacked or run.

    Args:
        source: the YAML, its shipped name, or a folder that holds one.
        data: what the user called it.

    Raises:
        UserError: if there is no such data set.
    """
    try:
        with guarded():
            described: dict[str, Any] = check_det_dataset(str(source), autodownload=False)
    except Exception as error:  # FileNotFoundError, SyntaxError, TypeError, YAML errors
        text = " ".join(str(error).split())
        if isinstance(error, FileNotFoundError) and (hint := path_hint(as_path(source))):
            text = text.partition(" Note dataset download")[0] + hint
        raise UserError(f"data={data}: {text} (yolo-os downloads nothing)") from None
    return described


def describe(
    data: str | Path, split: str, names: Sequence[str] | None, called: str | Path | None = None
) -> dict[str, Any]:
    """A data set's description with absolute paths; nothing is downloaded.

    Args:
        data: as Ultralytics takes it, or a VOCdevkit folder, whose XML names classes and leaves their order open.
        split: train, val or test.
        names: the model's class names in its order, in which a VOCdevkit's classes are numbered; None for a model
            of one class, for whatever the data name.
        called: what the user called the data, where they were made of that.

    Raises:
        UserError: if there is no such data set or split, or it numbers the model's classes otherwise.
    """
    source = as_path(data)
    if is_devkit(source):
        source = devkit_dataset(source, names or (), every=True)
        warn_of_problems(source, data)
    data = data if called is None else called
    described = read_description(source, data)
    if not described.get(split):
        raise UserError(f"data={data}: it has no split '{split}'")
    if names is None:
        return described
    order = list(described["names"].values())
    if set(order) == set(names) and order != list(names):
        first = next(index for index, name in enumerate(names) if order[index] != name)
        raise UserError(
            f"data={data} has the model's classes in another order (class {first} is '{order[first]}' there and "
            f"'{names[first]}' in the model), so its labels would mean other classes: reorder its names"
        )
    unknown = [name for name in order if name not in names]
    if unknown and numbers_in_model(described["names"], names) is None:
        LOGGER.warning(f"data={data} names classes that the model does not ({some(unknown)}): are these its labels?")
    return described
