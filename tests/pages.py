"""Reading an HTML report, as a browser would."""

import base64
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

URL_ATTRIBUTES = {"src", "srcset", "href", "data", "action", "poster", "background", "formaction", "ping"}


VOID = {"meta", "link", "img", "source", "br"}


class Page(HTMLParser):
    """A report taken apart; tags that are not closed in order are an error."""

    def __init__(self, path):
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.ids, self.links, self.urls, self.tags, self.open, self.text = [], [], [], [], [], []
        self.images: list[dict] = []
        self.feed(self.raw)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.urls += [value for name, value in attributes if name in URL_ATTRIBUTES and not value.startswith("#")]
        self.links += [value[1:] for name, value in attributes if name == "href" and value.startswith("#")]
        assert not any(name.startswith("on") for name in given)
        if tag in ("img", "source"):
            self.images.append(given)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def section(self, name: str) -> str:
        """The source of one section."""
        return self.raw.partition(f'<section id="{name}">')[2].partition("</section>")[0]

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def check_self_contained(page: Page):
    assert page.urls and all(url.startswith("data:") for url in page.urls)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    style = page.raw.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "default-src 'none'" in page.raw
    assert len(page.ids) == len(set(page.ids)) and set(page.links) <= set(page.ids)
    for image in page.images:
        svg = ElementTree.fromstring(base64.b64decode((image.get("src") or image["srcset"]).split(",", 1)[1]))
        for element in svg.iter():
            links = [value for name, value in element.attrib.items() if name.endswith("href")]
            assert all(link.startswith(("#", "data:")) for link in links)
    assert all(image.get("alt") for image in page.images if "src" in image)
    assert "max-width" in style and "prefers-color-scheme: dark" in style
