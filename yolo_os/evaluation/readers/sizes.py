"""The size of an image where its XML file and the image itself disagree.

An image that was resized after it was annotated, or is turned by its EXIF orientation, has boxes that are pixels of
another image than the detector sees; an annotation tool that exchanges width and height has not. The image's own
header is the truth about the image, and the boxes show which of the two it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yolo_os.evaluation.images import Header, read_header
from yolo_os.evaluation.readers.voc_xml import Complaint, XMLFile, left_out, within

_OVER = 1.05  # boxes reach beyond their image by a pixel or two where they are drawn by hand; not by more than this


def settle_sizes(files: Mapping[str, XMLFile], images: Mapping[str, str]) -> dict[str, XMLFile]:
    """The files with the sizes of their images, where there are images.

    Where a file disagrees with its image, the boxes are taken as the image's pixels, and that is said. Where that can't
    be so, since boxes of such files reach beyond their images, all files of the folder that disagree are left out.

    Args:
        files: the XML files by stem.
        images: paths of the image files by stem.
    """
    headers = {stem: read_header(Path(images[stem])) for stem in files if stem in images}
    differing = {
        stem: header for stem, header in headers.items() if header and files[stem].size not in ((0.0, 0.0), header.size)
    }
    beyond = any(_reaches_beyond(files[stem], header) for stem, header in differing.items())
    settled = {}
    for stem, file in files.items():
        header = headers.get(stem)
        if header is None:
            file = within(file, file.size) if file.readable else file
        elif file.readable:
            file = _settle(file, header, stem in differing, beyond)
        settled[stem] = file._replace(image=images.get(stem, ""), image_readable=header is not None)
    return settled


def _settle(file: XMLFile, header: Header, differs: bool, beyond: bool) -> XMLFile:
    shown = f"{header.size[0]:g} x {header.size[1]:g}"
    says = f"<size> says {file.size[0]:g} x {file.size[1]:g}, and the image is {shown}"
    if differs and file.size == header.stored:
        return left_out(file, f"{says} once its EXIF orientation {header.orientation} has turned it")
    if differs and beyond:
        return left_out(file, f"{says}; boxes of such files reach beyond their images, so they are of other images")
    note = ""
    if differs:
        note = f"{says}: boxes are taken as pixels of the image"
    elif header.orientation > 1 and header.size == header.stored:
        note = f"EXIF orientation {header.orientation} turns the image: boxes are taken as pixels of the turned image"
    if note:
        file = file._replace(complaints=[*file.complaints, Complaint(0, note, False)])
    return within(file, header.size)


def _reaches_beyond(file: XMLFile, header: Header) -> bool:
    width, height = header.size
    return any(row.box[2] > _OVER * width or row.box[3] > _OVER * height for row in file.rows)
