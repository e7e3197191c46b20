"""Images that are in more than one split: what a detector has trained on says little when it is tested on it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from yolo_os.evaluation.annotations import Annotations
from yolo_os.evaluation.names import some


def same_images(splits: Mapping[str, Annotations]) -> list[str]:
    """A warning for each pair of splits that share images, by the content of the files whatever their names are."""
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, read in splits.items():
        for file in read.image_files:
            by_size[file.stat().st_size].append((split, file))
    files: dict[str, dict[bytes, Path]] = {split: {} for split in splits}
    for alike in by_size.values():
        if len({split for split, _ in alike}) > 1:  # only files of one size can be the same
            for split, file in alike:
                files[split][hashlib.sha256(file.read_bytes()).digest()] = file
    warnings = []
    for one, other in combinations(splits, 2):
        both = sorted(files[one].keys() & files[other].keys())
        if both:
            shown = some(_pair(files[one][key], files[other][key]) for key in both)
            warnings.append(f"{len(both)} of the images of {other} are in {one} too ({shown}): figures on them flatter")
    return warnings


def _pair(one: Path, other: Path) -> str:
    return one.name if one == other else f"{one.name} = {other.name}"
