"""The size of an image where its XML file and the image itself disagree.

The image's own header is the truth about the image; of which image the boxes are, size and boxes show together:

- the size before EXIF turns the image (tools that don't look at EXIF): the boxes are turned as it is, unless they
  fit the turned image only;
- another size, as of tools that exchange width and height or write the size of the screen: the boxes are pixels of the
  image, if all boxes of such files fit their images;
- else the image was resized after it was annotated, and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yolo_os.evaluation.images import Header, read_header
from yolo_os.evaluation.readers.voc_xml import Complaint, XMLFile, left_out, within

_OVER = 1.05  # boxes reach beyond their image by a pixel or two where they are drawn by hand; not by more than this


def settle_sizes(files: Mapping[str, XMLFile], images: Mapping[str, str]) -> dict[str, XMLFile]:
    """The files with the sizes of their images, where there are images.

    Args:
        files: the XML files by stem.
        images: paths of the image files by stem.
    """
    headers = {stem: read_header(Path(images[stem])) for stem in files if stem in images}
    differing = {
        stem: header for stem, header in headers.items() if header and files[stem].size not in ((0.0, 0.0), header.size)
    }
    resized = any(
        not _fits(files[stem], header.size) for stem, header in differing.items() if files[stem].size != header.stored
    )
    settled = {}
    for stem, file in files.items():
        header = headers.get(stem)
        if header is None:
            file = within(file, file.size) if file.readable else file
        elif file.readable:
            file = _settle(file, header, stem in differing, resized)
        settled[stem] = file._replace(image=images.get(stem, ""), image_readable=header is not None)
    return settled


def _settle(file: XMLFile, header: Header, differs: bool, resized: bool) -> XMLFile:
    says = f"<size> says {file.size[0]:g} x {file.size[1]:g}, and the image is {header.size[0]:g} x {header.size[1]:g}"
    exif = f"EXIF orientation {header.orientation} turns the image"
    note = ""
    if differs and file.size == header.stored and (_fits(file, header.stored) or not _fits(file, header.size)):
        file, note = _turned(file, header), f"{exif}, and <size> is that before: boxes are turned as well"
    elif differs and resized:
        return left_out(file, f"{says}; boxes of such files reach beyond their images, so they are of other images")
    elif differs:
        note = f"{says}: boxes are taken as pixels of the image"
    elif header.orientation > 1 and header.size == header.stored:
        note = f"{exif}: boxes are taken as pixels of the turned image"
    if note:
        file = file._replace(complaints=[*file.complaints, Complaint(0, note, False)])
    return within(file, header.size)


def _fits(file: XMLFile, size: tuple[float, float]) -> bool:
    """Whether all boxes lie within an image of that size, but for a little."""
    return all(row.box[2] <= _OVER * size[0] and row.box[3] <= _OVER * size[1] for row in file.rows)


def _turned(file: XMLFile, header: Header) -> XMLFile:
    """The file with its boxes turned as an EXIF orientation from 5 to 8 turns the image, which exchanges the sides."""
    width, height = header.stored
    mirrored_x, mirrored_y = header.orientation in (7, 8), header.orientation in (6, 7)
    rows = []
    for row in file.rows:
        x1, y1, x2, y2 = row.box
        if mirrored_x:
            x1, x2 = width + 1 - x2, width + 1 - x1
        if mirrored_y:
            y1, y2 = height + 1 - y2, height + 1 - y1
        rows.append(row._replace(box=(y1, x1, y2, x2)))
    return file._replace(rows=rows)
