import base64
from html.parser import HTMLParser

import hybridtron
from hybridtron.reporting.page import environment
from hybridtron.reporting.pictures import new_figure, png

WHOLE = """
{% extends "page.html.j2" %}
{% from "blocks.html.j2" import paragraph, section %}
{% block title %}{{ title }}{% endblock %}
{% block content %}
{% call section(heading, note) %}{{ paragraph("x") }}{{ picture | figure("a line") }}{% endcall %}
{% call section("Empty", "a note") %} {{ paragraph("") }}{% endcall %}
{% endblock %}
{% block beside %}{{ beside }}{% endblock %}
"""


def page(title="t", heading="Plots", note="", beside="numbers beside"):
    template = environment("hybridtron.reporting").from_string(WHOLE)
    return template.render(title=title, heading=heading, note=note, beside=beside, picture=a_picture())


class Reader(HTMLParser):
    """What a page asks for from elsewhere, its anchors and its text."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.anchors, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "href")]
        self.anchors += [value for name, value in attributes if name == "id"]

    def handle_data(self, data):
        self.text += data


def a_picture():
    drawn = new_figure(1, 1)
    drawn.subplots().plot([0, 1])
    return png(drawn)


def test_a_page_holds_its_pictures_and_fetches_nothing():
    assert Reader(page()).fetched == ["data:image/png;base64," + base64.b64encode(a_picture()).decode()]


def test_titles_and_words_are_text_whatever_they_hold():
    text = Reader(page("<b>", "1 < 2", "a & b", "c > d")).text
    assert all(words in text for words in ("<b>", "1 < 2", "a & b", "c > d", hybridtron.__version__))


def test_a_section_is_found_by_its_heading_and_is_left_out_when_empty():
    found = Reader(page(heading="Step 2: 8 layers"))
    assert found.anchors == ["step-2-8-layers"]
    assert "Empty" not in found.text


def test_the_same_figure_is_the_same_bytes():
    assert a_picture() == a_picture()
