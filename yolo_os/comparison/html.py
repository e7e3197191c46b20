"""One page that holds all of a report: tables and pictures inside it, nothing fetched when it is opened."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from yolo_os.comparison import report
from yolo_os.comparison.report import Content
from yolo_os.terminal import counted

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1300px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em } h3 { font-size: 1em }
.verdict { background: #eef4fa; border-left: 5px solid #0072B2; padding: .8em 1em; font-size: 1.05em }
.verdict p { margin: .2em 0 } .warning { background: #fdf3e7; border-left: 5px solid #D55E00; padding: .4em 1em }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: right; white-space: nowrap }
th { background: #f5f5f5; white-space: normal } th:first-child, td:first-child { text-align: left }
img { max-width: 100% } figure { margin: 1em 0 } figcaption { font-size: 13px; color: #555 }
.helps { color: #00694d; font-weight: 600 } .hurts { color: #b34700; font-weight: 600 }
footer { margin-top: 3em; font-size: 12px; color: #777 }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        data: of the file.
        kind: `png` or `jpeg`.
        caption: below it.
    """

    data: bytes
    kind: str
    caption: str

    @classmethod
    def read(cls, path: Path, caption: str) -> Picture:
        """A PNG file."""
        return cls(path.read_bytes(), "png", caption)


def page(content: Content, plots: Sequence[Picture], changed: Sequence[Picture], version: str) -> str:
    """The page.

    Args:
        content: of `results.summarise`.
        plots: of the figures.
        changed: the test images that changed most.
        version: of the package.
    """
    title = escape(report.title(content))
    parts = [f"<h1>{title}</h1>", '<div class="verdict">']
    said = [escape(arm["verdict"]) for arm in content["arms"] if arm["verdict"]] or ["No result yet."]
    parts += [f"<p>{line}</p>" for line in said]
    parts += ["</div>", f"<p>{escape(report.how(content))}</p>"]
    parts += [f'<p class="warning">{escape(warning)}</p>' for warning in content["warnings"]]
    several = len(content["cells"]) > 1
    parts += [f"<h2>{'The mean over all data sets' if several else 'Result'}</h2>"]
    parts += [_table(*report.arm_rows(content["arms"], content))]
    for cell in content["cells"] if several else []:
        parts += [f"<h3>{escape(cell['name'])}: {counted(cell['images'], 'image')}</h3>"]
        parts += [_table(*report.arm_rows(cell["arms"], content))]
    parts += map(_figure, plots)
    parts += ["<h2>What it takes to see more</h2>", _table(*report.power_rows(content))]
    parts += [f"<p>{escape(report.power_note(content))}</p>"]
    parts += ["<h2>Losses and costs</h2>", _table(*report.cost_rows(content["arms"], content))]
    for cell in content["cells"]:
        parts += [f"<h2>Classes: {escape(cell['name'])}</h2>", _table(*report.class_rows(cell, content))]
    if changed:
        parts += ["<h2>The test images that changed most</h2>", *map(_figure, changed)]
    if content["failures"]:
        parts += ["<h2>Failed</h2>", _table(["run", "error"], list(report.failure_rows(content)))]
    parts += [f"<footer>made by yolo-os {escape(version)}</footer>"]
    body = "\n".join(parts)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{title}</title><style>{_STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>\n{lines}\n</table></div>'


def _cell(text: str) -> str:
    kind = f' class="{text}"' if text in ("helps", "hurts") else ""
    return f"<td{kind}>{escape(text)}</td>"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.data).decode("ascii")
    caption = escape(picture.caption)
    return (
        f'<figure><img src="data:image/{picture.kind};base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
