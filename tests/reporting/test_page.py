import base64
from html.parser import HTMLParser

from markupsafe import Markup

import hybridtron
from hybridtron.reporting.page import blocks, figure, page, section
from hybridtron.reporting.pictures import new_figure, png

HEADER = Markup("<header></header>")


class Reader(HTMLParser):
    """What a page asks for from elsewhere, its anchors and its text."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.anchors, self.said = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        self.anchors += [value for name, value in attributes if name == "id"]

    def handle_data(self, data):
        self.said += data


def a_picture():
    drawn = new_figure(1, 1)
    drawn.subplots().plot([0, 1])
    return png(drawn)


def test_a_page_holds_its_pictures_and_fetches_nothing():
    text = page("t", HEADER, [section("Plots", figure(a_picture(), "a line"))], "numbers beside")
    assert Reader(text).fetched == ["data:image/png;base64," + base64.b64encode(a_picture()).decode()]


def test_titles_and_words_are_text_whatever_they_hold():
    text = page("<b>", HEADER, [section("1 < 2", blocks.paragraph("x"), note="a & b")], "c > d")
    said = Reader(text).said
    assert all(words in said for words in ("<b>", "1 < 2", "a & b", "c > d", hybridtron.__version__))


def test_a_section_is_found_by_its_heading_and_is_left_out_when_empty():
    assert Reader(section("Step 2: 8 layers", blocks.paragraph("x"))).anchors == ["step-2-8-layers"]
    assert section("Empty", Markup(), note="a note") == ""


def test_the_same_figure_is_the_same_bytes():
    assert a_picture() == a_picture()
