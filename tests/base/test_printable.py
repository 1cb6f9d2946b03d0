"""Foreign text made fit to be shown: nothing invisible is left, ordinary text of all scripts is left alone."""

import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smope_hf.base.printable import LEAST_LIMIT, MARKS_IN_A_ROW, is_blank, printable, printable_json, printable_lines

INTERNATIONAL = (
    "cat", "Café au lait", "Großmutter", "naïve", "cafe\u0301", "Tiếng Việt", "Tiê\u0301ng Viê\u0323t", "北京烤鸭",
    "日本語のクラス", "葛\U000e0100城市",
    "한국어", "\u1112\u1161\u11ab", "שלום", "שָׁל֣וֹם", "قطة", "القِطَّةُ",
    "می\u200cخواهم", "हिन्दी", "क्\u200dष", "ශ්\u200dරී",
    "தமிழ்", "ภาษาไทย", "ที่นี่", "བོད་སྐད", "မြန်မာ",
    "Ελληνικά", "кошка", "🐱", "👩\u200d👩\u200d👧\u200d👦", "👩🏽\u200d🔬", "❤\ufe0f",
    "🏳\ufe0f\u200d🌈", "1\ufe0f\u20e3", "🇺🇦", "a\u00a0b", "全角\u3000空白", "ﷺ", "\u0600١٢", "x² + y³ ≤ z",
    "[red]x[/red]", r"$\frac{1}{2}$", "a|b", r"back\slash",
)  # fmt: skip
HOSTILE = {
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x1b[2J": r"\x1b[2J",
    "\x9b2J": r"\x9b2J",
    "a\x7f\x08\x08b": r"a\x7f\x08\x08b",
    "one\r\ntwo\tthree": r"one\r\ntwo\tthree",
    "\u2028\u2029\x85": r"\u2028\u2029\x85",
    "evil\u202egnp.exe": r"evil\u202egnp.exe",
    "\u2066a\u2069\u200e\u200f\u061c": r"\u2066a\u2069\u200e\u200f\u061c",
    "c\u200bat\ufeff\u2060": r"c\u200bat\ufeff\u2060",
    "so\u00adft": r"so\xadft",
    "c\u200dat": r"c\u200dat",
    "cat\u200c": r"cat\u200c",
    "می\u200c\u200cخ": "می\\u200c\\u200cخ",
    "cat\ufe0f": r"cat\ufe0f",
    "1\ufe0f": r"1\ufe0f",
    "🐱\ufe0f\ufe0e": "🐱\ufe0f\\ufe0e",
    "\U000e0063at": r"\U000e0063at",
    "\udcff.png": r"\udcff.png",
    "\ue000\U0010ffff": r"\ue000\U0010ffff",
    "\u3164\uffa0\u115f\u2800": r"\u3164\uffa0\u115f\u2800",
    "\u0301a": r"\u0301a",
    "a \u0301": r"a \u0301",
    "a" + "\u0301" * 6: "a" + "\u0301" * 4 + r"\u0301\u0301",
}
CHARACTERS = st.one_of(
    st.characters(),
    st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Mn", "Me"]),
    st.sampled_from("\u200c\u200d\ufe0f\ufe0e\u20e3\U000e0100\u180b\u094d\u0301\u202e\u2800\u3164 aب🐱☠🏽1क葛\x1b\n"),
)
TEXTS = st.lists(CHARACTERS, max_size=40).map("".join)
FORBIDDEN = ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")
DIRECTIONS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@pytest.mark.parametrize("text", INTERNATIONAL)
def test_ordinary_text_stays_as_it_is(text):
    assert printable(text) == text and json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text
    assert not is_blank(text)


@pytest.mark.parametrize("text", HOSTILE, ids=HOSTILE.values())
def test_what_is_not_seen_is_escaped(text):
    assert printable(text) == HOSTILE[text] == printable(printable(text))


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.one_of(st.none(), st.integers(LEAST_LIMIT, 90)))
def test_nothing_hidden_is_left_and_doing_it_twice_changes_nothing(text, limit):
    shown = printable(text, limit)
    assert not [c for c in shown if unicodedata.category(c) in FORBIDDEN or c in DIRECTIONS]
    assert printable(shown) == shown and (limit is None or printable(shown, limit) == shown)
    marks = longest = 0
    for character in shown:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        longest = max(longest, marks)
    assert longest <= MARKS_IN_A_ROW
    assert not shown or unicodedata.category(shown[0]) not in ("Mn", "Me")  # it would sit on what stands before


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_escapes_hide_no_character(text):
    """Every character is there as it is or as its escape, in order."""
    shown, place = printable(text), 0
    for character in text:
        escape = character.encode("unicode_escape").decode()
        part = character if shown.startswith(character, place) else escape
        assert shown.startswith(part, place)
        place += len(part)
    assert place == len(shown)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_json_keeps_its_values(text):
    shown = printable_json(json.dumps({text: [text]}, indent=2, ensure_ascii=False))
    assert json.loads(shown) == {text: [text]}
    assert printable_lines(shown) == shown


@settings(max_examples=100, deadline=None)
@given(TEXTS.map(lambda text: text * 4), st.integers(LEAST_LIMIT, 200))
def test_what_is_cut_is_counted(text, limit):
    shown = printable(text, limit)
    assert len(shown) <= limit
    if shown != printable(text):
        head, note, tail = shown.partition("... (")
        count = int(tail.partition(" characters left out) ...")[0].replace(",", ""))
        assert note and 0 < count < len(text)


def test_a_long_text_keeps_both_ends_and_costs_no_more_than_what_is_shown():
    text = "begin" + "x" * 20_000_000 + "end.png"
    start = time.process_time()
    shown = printable(text, 100)
    assert time.process_time() - start < 0.05
    assert shown.startswith("beginxxx") and shown.endswith("xend.png") and len(shown) <= 100
    assert f"... ({len(text) - shown.count('x') - len('beginend.png'):,} characters left out) ..." in shown


def test_a_limit_below_what_its_note_needs_is_refused():
    with pytest.raises(ValueError, match="limit = 10 is not allowed"):
        printable("x", 10)


@pytest.mark.parametrize(
    "text",
    ["", " ", "\t\n", "\x00\x1b", "\u200b", "\u3000\xa0", "\u202e\u2066", "\u3164", "\u0301", "\ufe0f", "\u200d"],
)
def test_nothing_to_see_is_blank(text):
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "\u200ba", "\x1b[2J", "-", "\ue000", "\u06dd", "🐱", "\U0001faff"])
def test_something_to_see_is_not_blank(text):
    assert not is_blank(text)
