"""The tree that escapes itself."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from alula.report.markup import clean, element, render


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: list[tuple[str, object]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.seen.append(("/" + tag, None))

    def handle_data(self, data):
        if self.seen and self.seen[-1][0] == "text":
            data = str(self.seen.pop()[1]) + data
        self.seen.append(("text", data))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(
    ['"><script>', "'", "</p>", "&amp;", "<!--", "]]>", "&#0;"]
)


@given(texts, texts)
def test_a_parser_reads_back_what_was_put_in(text, attribute):
    reader = Reader()
    # A parser takes a carriage return for a new line, as the standard asks.
    text, attribute = text.replace("\r", "\n"), attribute.replace("\r", "\n")
    reader.feed(render(element("p", {"title": attribute}, text)))
    reader.close()
    expected = [("p", {"title": clean(attribute)}), ("text", clean(text)), ("/p", None)]
    assert reader.seen == [one for one in expected if one != ("text", "")]


def test_elements_without_content_have_no_end_tag():
    assert render(element("meta", {"charset": "utf-8"})) == '<meta charset="utf-8">'


def test_style_sheets_are_not_escaped():
    assert render(element("style", {}, "a>b{}")) == "<style>a>b{}</style>"
