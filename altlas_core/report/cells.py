"""The cells of an executed notebook as blocks that the page template draws, in order and with nothing hidden away."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape, unescape
from itertools import count
from typing import Any, Final, Literal

from altlas_core.report.outcome import RESULT_MIME
from altlas_core.report.sanitize import clean_html

FIGURE_MIME: Final = "application/vnd.plotly.v1+json"
WIDGET_MIME: Final = "application/vnd.jupyter.widget-view+json"
LEFT_OUT_TAG: Final = "no-report"  # a cell that only makes sense in the notebook
_PAPERMILL_MARKER: Final = "papermill-error-cell-tag"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HEADING = re.compile(r"<h([1-6])>(.*?)</h\1>", re.DOTALL)
_PART: Final = 2  # the level of a part in a notebook
_TAG = re.compile(r"<[^>]*>")
DEFAULT_FIGURE_HEIGHT_PX: Final = 380

Kind = Literal["markdown", "code", "html", "figure", "text", "image", "error", "note"]


@dataclass(slots=True, frozen=True)
class Block:
    """`html` is ready to be put into a page. `title` is a summary line; `data` the JSON of a figure, `anchor` its
    id.
    """

    kind: Kind
    html: str = ""
    title: str = ""
    data: str = ""
    height: int = 0
    label: str = ""
    anchor: str = ""


@dataclass(slots=True, frozen=True)
class Link:
    """A place on the page: the id there and what it says."""

    anchor: str
    text: str


@dataclass(slots=True, frozen=True)
class Story:
    """A notebook as a page tells it: its first heading, the paragraph under it, and everything after.

    `parts` are its later headings.
    """

    title: str
    lead: str
    blocks: tuple[Block, ...]
    parts: tuple[Link, ...] = ()

    @property
    def findings(self) -> list[Link]:
        """What the figures found: their titles."""
        return [Link(block.anchor, unescape(block.label)) for block in self.blocks if block.kind == "figure"]

    @property
    def figure_count(self) -> int:
        return sum(block.kind == "figure" for block in self.blocks)

    @property
    def error(self) -> Block | None:
        return next((block for block in self.blocks if block.kind == "error"), None)


def read_story(notebook: Mapping[str, Any], fallback_title: str) -> Story:
    """All blocks of a notebook. The first heading and the paragraph under it become title and lead."""
    title, lead = fallback_title, ""
    blocks: list[Block] = []
    for position, cell in enumerate(filter(_is_told, notebook.get("cells", []))):
        source = "".join(cell.get("source", ""))
        if position == 0 and cell["cell_type"] == "markdown":
            title, lead, source = _split_heading(source, fallback_title)
        blocks.extend(_cell_blocks(cell, source))
    named, parts = _named(blocks)
    return Story(title, markdown(lead), named, parts)


def _named(blocks: Sequence[Block]) -> tuple[tuple[Block, ...], tuple[Link, ...]]:
    """The blocks with an id at every figure and every heading of a part, and the headings.

    The page has a heading over the whole notebook, so that those in it stand a level lower.
    """
    found: list[Block] = []
    parts: list[Link] = []
    figures = count(1)

    def name(heading: re.Match[str]) -> str:
        level = max(_PART, int(heading[1]))
        tag = f"h{min(level + 1, 6)}"
        if level > _PART:
            return f"<{tag}>{heading[2]}</{tag}>"
        parts.append(Link(f"part-{len(parts) + 1}", unescape(_TAG.sub("", heading[2])).strip()))
        return f'<{tag} id="{parts[-1].anchor}">{heading[2]}</{tag}>'

    for block in blocks:
        if block.kind == "markdown":
            found.append(replace(block, html=_HEADING.sub(name, block.html)))
        elif block.kind == "figure":
            found.append(replace(block, anchor=f"figure-{next(figures)}"))
        else:
            found.append(block)
    return tuple(found), tuple(parts)


def markdown(source: str) -> str:
    """Markdown as HTML; raw HTML in it is shown, not obeyed, and pictures from elsewhere become links."""
    import mistune

    class Renderer(mistune.HTMLRenderer):
        def image(self, text: str, url: str, title: str | None = None) -> str:
            if url.startswith("data:image/"):
                return super().image(text, url, title)
            return super().link(text or url, url, title)

    render = mistune.create_markdown(escape=True, renderer=Renderer(escape=True), plugins=["table", "strikethrough"])
    return clean_html(str(render(source))) if source.strip() else ""


def highlight(source: str) -> str:
    """Python source as HTML with Pygments' class names."""
    from pygments import highlight as highlighted
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return str(highlighted(source, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)))


def figure_json(figure: Any) -> str:
    """JSON that can stand inside a <script>: nothing in it can end the element."""
    text = json.dumps(figure, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plain_text(text: str) -> str:
    """Terminal output without its colour codes, escaped."""
    return escape(_ANSI.sub("", text), quote=False)


def _is_told(cell: Mapping[str, Any]) -> bool:
    tags = cell.get("metadata", {}).get("tags", [])
    return LEFT_OUT_TAG not in tags and _PAPERMILL_MARKER not in tags


def _split_heading(source: str, fallback: str) -> tuple[str, str, str]:
    match = re.match(r"\s*#\s+(?P<title>[^\n]+)\n*(?P<lead>(?:(?![#|>*-]|```|\d+\.)[^\n]+\n?)*)", source)
    if not match:
        return fallback, "", source
    return match["title"].strip(), match["lead"].strip(), source[match.end() :]


def _cell_blocks(cell: Mapping[str, Any], source: str) -> Iterator[Block]:
    if cell["cell_type"] == "markdown":
        if source.strip():
            yield Block("markdown", markdown(source))
    elif cell["cell_type"] == "code":
        if source.strip():
            yield Block("code", highlight(source), title=_code_title(cell, source))
        for output in cell.get("outputs", []):
            yield from _output_blocks(output)


def _code_title(cell: Mapping[str, Any], source: str) -> str:
    tags = cell.get("metadata", {}).get("tags", [])
    if "injected-parameters" in tags:
        return "Parameters of this run"
    if "parameters" in tags:
        return "Parameters and their defaults"
    first = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return first.lstrip("# ") if first.startswith("#") else ""


def _output_blocks(output: Mapping[str, Any]) -> Iterator[Block]:
    kind = output["output_type"]
    if kind == "stream":
        text = "".join(output["text"])
        if text.strip():
            yield Block("text", plain_text(text), title="Messages" if output["name"] == "stderr" else "Printed")
    elif kind == "error":
        trace = "\n".join(output.get("traceback", []))
        yield Block("error", plain_text(trace), title=plain_text(f"{output['ename']}: {output['evalue']}"))
    else:
        block = _data_block(output["data"])
        if block is not None:
            yield block


def _data_block(data: Mapping[str, Any]) -> Block | None:
    """The richest form of an output that a page can show by itself."""
    if RESULT_MIME in data:
        return None  # the verdict, checks and metrics above the story are made of it
    if FIGURE_MIME in data:
        return _figure(data[FIGURE_MIME])
    for mime in ("image/svg+xml", "image/png", "image/jpeg"):
        if mime in data:
            return Block("image", _image(mime, data[mime], _joined(data.get("text/plain", "picture"))))
    if WIDGET_MIME in data:
        shown = data.get("text/html")
        still = clean_html(_joined(shown)) if shown else f"<pre>{plain_text(_joined(data.get('text/plain', '')))}</pre>"
        return Block("note", still, title="Interactive in JupyterLab; this is its still form.")
    if "text/html" in data:
        return Block("html", clean_html(_joined(data["text/html"])))
    if "text/markdown" in data:
        return Block("markdown", markdown(_joined(data["text/markdown"])))
    if "text/plain" in data:
        return Block("text", plain_text(_joined(data["text/plain"])))
    return Block("note", "", title=f"An output of type {escape(', '.join(data))} that only a notebook can show.")


def _joined(text: Any) -> str:
    return text if isinstance(text, str) else "".join(text)


def _image(mime: str, content: Any, alternative: str) -> str:
    text = _joined(content)
    encoded = base64.b64encode(text.encode()).decode() if mime == "image/svg+xml" else "".join(text.split())
    return f'<img src="data:{mime};base64,{encoded}" alt="{escape(alternative)}">'


def _figure(figure: Mapping[str, Any]) -> Block:
    """The title leaves the drawing and becomes the caption, where it can wrap and be read aloud."""
    layout = dict(figure.get("layout", {}))
    title = layout.pop("title", None) or {}
    title = {"text": title} if isinstance(title, str) else dict(title)
    subtitle = (title.get("subtitle") or {}).get("text") or ""
    text = str(title.get("text") or "").replace("<br>", " ")  # the page breaks lines where they are too long for it
    height = layout.get("height")
    layout.pop("width", None)
    caption = clean_html(text)
    if subtitle:
        caption += f' <span class="subtitle">{clean_html(str(subtitle))}</span>'
    return Block(
        "figure",
        title=caption,
        data=figure_json({"data": figure.get("data", []), "layout": layout}),
        height=int(height) if isinstance(height, int | float) else DEFAULT_FIGURE_HEIGHT_PX,
        label=escape(" ".join(_TAG.sub(" ", text).split()) or "Figure"),
    )
