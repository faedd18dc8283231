"""README.md and README.tr.md say the same: headings, code, links and pictures; what they point at is in the tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import mistune
import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
LANGUAGES: Final = {"README.md": "English", "README.tr.md": "Türkçe"}
PAGES: Final = tuple(LANGUAGES)
MAX_PICTURE_BYTES: Final = 200_000
PNG: Final = b"\x89PNG\r\n\x1a\n"
COMMENT: Final = re.compile(r"(?:^|[ \t]+)#.*$", re.MULTILINE)

Node = dict[str, Any]


def parse(page: Path) -> list[Node]:
    nodes = mistune.create_markdown(renderer="ast", plugins=["table"])(page.read_text(encoding="utf-8"))
    assert isinstance(nodes, list)
    return nodes


def walk(nodes: list[Node], kind: str) -> Iterator[Node]:
    """All nodes of a kind, in the order of the page."""
    for node in nodes:
        if node["type"] == kind:
            yield node
        yield from walk(node.get("children", []), kind)


def text(node: Node) -> str:
    return str(node.get("raw", "")) + "".join(text(child) for child in node.get("children", []))


def targets(nodes: list[Node], kind: str) -> list[str]:
    """What the links, or the images, of a page point at; not the other language, which each page names itself."""
    return [node["attrs"]["url"] for node in walk(nodes, kind) if node["attrs"]["url"] not in LANGUAGES]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    return {re.sub(r"[^\w\- ]", "", text(node).lower()).replace(" ", "-") for node in walk(parse(page), "heading")}


def code(nodes: list[Node]) -> list[tuple[str, str]]:
    """The language and the text of every block of code; of a comment only that there is one."""
    return [
        (node.get("attrs", {}).get("info", ""), COMMENT.sub(" #", node["raw"])) for node in walk(nodes, "block_code")
    ]


@pytest.fixture(scope="module")
def english() -> list[Node]:
    return parse(ROOT / "README.md")


@pytest.fixture(scope="module")
def turkish() -> list[Node]:
    return parse(ROOT / "README.tr.md")


def test_each_page_begins_with_a_link_to_the_other() -> None:
    for page, other in (PAGES, PAGES[::-1]):
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        assert lines[:3] == ["# ALT_LAS GPU Test", "", f"[{LANGUAGES[other]}]({other})"], page


def test_both_have_the_same_headings(english: list[Node], turkish: list[Node]) -> None:
    levels = [[node["attrs"]["level"] for node in walk(nodes, "heading")] for nodes in (english, turkish)]
    assert levels[0] == levels[1]
    assert len(levels[0]) > 1


def test_both_have_the_same_blocks_in_the_same_order(english: list[Node], turkish: list[Node]) -> None:
    """Paragraph for paragraph, row for row: neither says something that the other leaves out."""

    def shape(nodes: list[Node]) -> list[tuple[str, int]]:
        items = {"list": "list_item", "table": "table_row"}
        return [(node["type"], sum(1 for _ in walk([node], items.get(node["type"], "")))) for node in nodes]

    assert shape(english) == shape(turkish)


def test_both_have_the_same_code_except_for_comments(english: list[Node], turkish: list[Node]) -> None:
    assert code(english) == code(turkish)
    assert code(english)


def test_both_name_the_same_commands_and_files(english: list[Node], turkish: list[Node]) -> None:
    spans = [{node["raw"] for node in walk(nodes, "codespan")} for nodes in (english, turkish)]
    assert spans[0] == spans[1]


def test_both_link_to_the_same_targets(english: list[Node], turkish: list[Node]) -> None:
    assert sorted(targets(english, "link")) == sorted(targets(turkish, "link"))  # the order of words differs
    assert targets(english, "image") == targets(turkish, "image")
    assert targets(english, "image")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page: str) -> None:
    nodes = parse(ROOT / page)
    for target in targets(nodes, "link") + targets(nodes, "image"):
        if re.match(r"[a-z]+:", target):
            continue  # another site
        name, _, anchor = target.partition("#")
        assert (ROOT / name).is_file(), target
        assert not anchor or anchor in anchors(ROOT / name), target


@pytest.mark.parametrize("page", PAGES)
def test_a_picture_is_a_small_png_with_a_text_beside_it(page: str) -> None:
    for node in walk(parse(ROOT / page), "image"):
        picture = ROOT / node["attrs"]["url"]
        assert picture.read_bytes().startswith(PNG), picture
        assert picture.stat().st_size <= MAX_PICTURE_BYTES, picture
        assert text(node), picture
