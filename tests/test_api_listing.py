"""Pages of tasks: newest first, from both stores, and never more in one answer than it can hold."""

from __future__ import annotations

from altlas_core.api import listing


def test_a_page_ends_at_the_limit_and_says_where_to_go_on() -> None:
    found = {number: f"task {number}" for number in (3, 9, 5, 7)}
    assert listing._page(found, 3) == (["task 9", "task 7", "task 5"], 5)
    assert listing._page(found, 4) == (["task 9", "task 7", "task 5", "task 3"], None)
    assert listing._page({}, 4) == ([], None)


def test_a_page_of_long_texts_is_shorter_but_never_empty() -> None:
    long = "x" * (listing.PAGE_CHARACTERS // 2 - 1)
    assert listing._page({1: long, 2: long, 3: long}, 10) == ([long, long], 2)
    longer = "x" * (2 * listing.PAGE_CHARACTERS)
    assert listing._page({1: longer, 2: longer}, 10) == ([longer], 2)
