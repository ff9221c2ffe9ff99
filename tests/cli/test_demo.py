"""`demo`: one self-contained page, and its tables."""

from __future__ import annotations

import html.parser
from pathlib import Path

import pytest

from seqssm.cli.main import main
from seqssm.domain import domains


@pytest.fixture
def two(toy, monkeypatch):
    """Install only the two domains of `tests/toy`."""
    found = {name: domain for name, domain in domains().items() if name in ("toy", "tin")}
    monkeypatch.setattr("seqssm.tools.demo.domains", lambda: found)


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses, self.cells, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything(two, capsys):
    assert main(["demo", "--output", "page"]) == 3
    printed = capsys.readouterr()
    assert "the demo of tin failed: needs the extra 'tin'" in printed.err
    assert "written: page/index.html" in printed.out
    page = Page()
    page.feed(Path("page/index.html").read_text(encoding="utf-8"))
    inside = [address for address in page.addresses if address.startswith("#")]
    embedded = [address for address in page.addresses if address.startswith("data:image/png;base64,")]
    sciences = ["#another-science", "#three-numbers-in-one-out"]
    assert inside == [*sciences, "#what-to-run-next", *sciences]  # the contents list and the cards
    assert "seqssm toy fit --config tiny" in page.text
    assert len(embedded) == len(page.addresses) - len(inside) == 2  # the card and the section
    for words in ("Numbers & sums", "net <1>", "0.1235", "Another one.", "needs the extra 'tin'"):
        assert words in page.text
    assert Path("page/toy/figures.csv").read_text(encoding="utf-8") == "model,mse\nnet <1>,0.123456\n"


def test_an_earlier_demo_is_replaced_and_other_folders_are_not(two, capsys):
    assert main(["demo", "--output", "page"]) == 3
    Path("page/toy/old.csv").write_text("", encoding="utf-8")
    assert main(["demo", "--output", "page"]) == 3
    assert not Path("page/toy/old.csv").exists()
    Path("mine").mkdir()
    Path("mine/toy").write_text("precious", encoding="utf-8")
    assert main(["demo", "--output", "mine"]) == 2
    assert "is not empty and does not contain an earlier demo" in capsys.readouterr().err
    assert main(["demo", "--output", "mine/toy"]) == 2
    assert Path("mine/toy").read_text(encoding="utf-8") == "precious"
