"""PDFs of the pages: printed with their figures, never at the cost of the run."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest
from report_pages import write_report

from altlas_core.cli import main
from altlas_core.figures.style import BLUE
from altlas_core.report import pdf
from altlas_core.report.pdf import find_chromium


def streams(path: Path) -> bytes:
    """The drawing commands of a PDF."""
    packed = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", path.read_bytes(), re.DOTALL)
    plain = b""
    for one in packed:
        try:
            plain += zlib.decompress(one)
        except zlib.error:
            continue
    return plain


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_a_page_is_printed_with_its_figures(tmp_path: Path) -> None:
    made = write_report(tmp_path)
    before = {path.name for path in made.iterdir()}
    assert pdf.print_pages([made / "passed.html", made / "index.html"]) == []
    assert {path.name for path in made.iterdir()} - before == {"passed.pdf", "index.pdf"}
    assert (made / "passed.pdf").read_bytes().startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", (made / "passed.pdf").read_bytes()))
    assert 2 <= pages <= 12
    blue = " ".join(f"{int(BLUE[at : at + 2], 16) / 255:.4f}".lstrip("0") for at in (1, 3, 5)).encode()
    assert streams(made / "passed.pdf").count(blue + b" rg") > 4  # bars and curves, not only a page round them
    assert blue not in streams(made / "index.pdf")


def test_without_chromium_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["run", "--pdf", "--backend", "simulated", "--reports-dir", str(tmp_path / "reports")]) == 2
    said = capsys.readouterr().err
    assert "--pdf" in said
    assert "apt-get install chromium" in said
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo 'no display' >&2; exit 7", "index.pdf was not made: Chromium ended with status 7: no display"),
        ("exit 0", "index.pdf was not made: Chromium ended with status 0: no word why"),
    ],
)
def test_a_chromium_that_fails_costs_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    fake = tmp_path / "bin" / "chromium"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    page = tmp_path / "index.html"
    page.write_text("<p>x</p>")
    assert pdf.print_pages([page]) == [said]
    assert not (tmp_path / "index.pdf").exists()


def test_a_chromium_that_hangs_costs_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "chromium"
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setattr(pdf, "find_chromium", lambda: str(fake))
    monkeypatch.setattr(pdf, "_LIMIT_S", 0.2)
    assert pdf.print_pages([tmp_path / "index.html"]) == ["index.pdf was not made: Chromium took more than 0.2 s"]
