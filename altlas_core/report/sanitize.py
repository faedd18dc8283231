"""HTML that a notebook cell produced, reduced to what is safe and at home in a report page.

Tables, text and pictures stay; scripts, styles, forms, event handlers and anything that would be fetched go.
"""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser

_TAGS = frozenset(
    "a abbr b blockquote br caption cite code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4 "
    "h5 h6 hr i img ins kbd li mark meter ol p pre progress q s samp small span strong sub summary sup table tbody td "
    "tfoot th thead time tr u ul var wbr".split()
)
_VOID = frozenset({"br", "hr", "img", "col", "wbr"})
_DROPPED_WHOLE = frozenset({"script", "style", "template", "iframe", "object", "noscript", "svg", "math", "textarea"})
_ATTRIBUTES = frozenset(
    "align alt class colspan dir headers height high id lang low max min open optimum rowspan scope span start title "
    "value width".split()
)
_TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
_ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
_CELL = re.compile(r"<(t[hd]\b[^>]*)>")
_UNSCOPED = re.compile(r"<th\b(?![^>]*\bscope=)")
_FRAME = '<div class="scroll" role="group" aria-label="Table" tabindex="0">'
_NUMBER_CELL = re.compile(r"<td>(\s*(?:[-+−]?[\d.,]+(?:e[-+]?\d+)?\s*[%×]?|NaN|None|N/A|–|—)?\s*)</td>", re.IGNORECASE)


def clean_html(source: str) -> str:
    """The safe part of `source`; wide tables get a frame that scrolls, cells with numbers the class `num`."""
    cleaner = _Cleaner()
    cleaner.feed(source)
    cleaner.close()
    text = "".join(cleaner.out) + "".join(f"</{tag}>" for tag in reversed(cleaner.open_tags))
    text = _NUMBER_CELL.sub(r'<td class="num">\1</td>', text)
    text = _TABLE.sub(lambda match: _scoped(_align_heads(match[0])), text)
    return text.replace("<table", f"{_FRAME}<table").replace("</table>", "</table></div>")


def _scoped(table: str) -> str:
    """Every head says whether it is of a column or of a row, for those who hear the table."""
    head, divider, body = table.partition("</thead>")
    if not divider:
        return table
    return _UNSCOPED.sub('<th scope="col"', head) + divider + _UNSCOPED.sub('<th scope="row"', body)


def _align_heads(table: str) -> str:
    """Give the head of every column whose cells are all numbers the class `num`, as its cells have it."""
    head, divider, body = table.partition("</thead>")
    rows = [_CELL.findall(row) for row in _ROW.findall(body)]
    if not rows or "colspan" in table or "rowspan" in table or len({len(row) for row in rows}) != 1:
        return table
    numeric = [all(cell == 'td class="num"' for cell in column) for column in zip(*rows, strict=True)]

    def align(row: re.Match[str]) -> str:
        flags = iter(numeric)
        return re.sub(r"<th\b", lambda cell: '<th class="num"' if next(flags, False) else cell[0], row[0])

    return _ROW.sub(align, head) + divider + body


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.open_tags: list[str] = []
        self.dropping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED_WHOLE:
            self.dropping += 1
        elif not self.dropping and tag in _TAGS:
            self.out.append(f"<{tag}{_kept(tag, attrs)}>")
            if tag not in _VOID:
                self.open_tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _DROPPED_WHOLE:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in _DROPPED_WHOLE:
            self.dropping = max(0, self.dropping - 1)
        elif not self.dropping and tag in self.open_tags:
            while self.open_tags:  # close what was left open inside, so that nothing leaks out
                last = self.open_tags.pop()
                self.out.append(f"</{last}>")
                if last == tag:
                    break

    def handle_data(self, data: str) -> None:
        if not self.dropping:
            self.out.append(escape(data, quote=False))


def _kept(tag: str, attrs: list[tuple[str, str | None]]) -> str:
    kept = "".join(f' {name}="{escape(value or "")}"' for name, value in attrs if name in _ATTRIBUTES)
    target = dict(attrs).get("href" if tag == "a" else "src") or ""
    if tag == "a" and re.match(r"https?://|#|mailto:", target):  # a link is followed by a click, never by itself
        kept += f' href="{escape(target)}" rel="noreferrer"'
    if tag == "img" and re.match(r"data:image/(png|jpeg|gif|webp|svg\+xml)[;,]", target):
        kept += f' src="{escape(target)}"'
    return kept
