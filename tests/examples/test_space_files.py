"""Which files the page takes and hands out, and how often and how much at once one address may ask."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from space import (
    BOUNDARY,
    CHUNKED,
    JOIN,
    JSON,
    PNG,
    UPLOAD,
    Clock,
    Measured,
    Served,
    chunked,
    form,
    form_headers,
    served,
)  # fmt: skip

from files import kept_name  # isort: skip
from limits import Limits  # isort: skip
from rates import Rates, Visitors, address_of  # isort: skip
from routes import NotTaken, open_routes  # isort: skip

PROMISED_SECONDS, PROMISED_BYTES = 2.0, 200 * 2**20


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with served(tmp_path_factory.mktemp("page"), clock=Clock()) as page:
        yield page


@pytest.fixture
def small(tmp_path):
    limits = replace(
        Limits(), image_bytes=4000, most_images=3, address_bytes=15_000, upload_bytes=20_000, address_visits=2
    )
    with served(tmp_path, limits, Clock()) as page:
        yield page


def test_only_images_that_were_sent_are_kept_and_each_where_nobody_finds_it(small):
    before = set(small.files._kept)
    for contents, options, status in (
        ([b"text"], {}, 415), ([b"<svg onload=alert(1)>"], {}, 415), ([b""], {}, 415), ([b"PK" + PNG], {}, 415),
        ([PNG, b"text"], {}, 415), ([PNG + bytes(4000)], {}, 413), ([PNG] * 4, {}, 413), ([], {}, 400),
    ):  # fmt: skip
        assert small.send(*contents, **options).status == status, contents
    assert set(small.files._kept) == before
    kept = {path for path in small.files.folder.rglob("*") if path.is_file()}
    assert kept == {Path(path) for path in before}, "part of a refused upload stayed"
    (path,) = small.send(PNG, name="../../../Katze \u202egnp.exe").json()
    assert re.fullmatch(r"[0-9a-f]{32}/[A-Za-z0-9._-]+", str(Path(path).relative_to(small.files.folder)))
    assert (other := small.send(PNG).json()[0]) != path and Path(other).parent != Path(path).parent


def test_names_of_files():
    for name, kept in {
        "a.png": "a.png", "/etc/passwd": "passwd", "..": "file", "C:\\x\\a.png": "a.png", "": "file", ".rc": "rc",
        "a b\n<c>.png": "a_b__c_.png", "x" * 300 + ".png": "x" * 76 + ".png", "a\u202egnp": "a_gnp", "a\x00b": "a_b",
    }.items():  # fmt: skip
        assert kept_name(name) == kept


@pytest.mark.parametrize("body, headers", [
    (form(PNG, field="other"), form_headers()),
    (form(PNG).replace(b"--a-boundary--\r\n", b""), form_headers()),  # without its end
    (form(PNG)[:-40], form_headers()),
    (form(PNG), {"Content-Type": "multipart/form-data"}),
    (form(PNG), {"Content-Type": f"multipart/form-data; boundary={'x' * 3000}"}),
    (form(PNG), {"Content-Type": f"multipart/mixed; boundary={BOUNDARY}"}),
    (form(PNG), JSON),
    (b"x" * 100_000, form_headers()),
    (form(PNG, name="x" * 5000), form_headers()),
    (form(PNG).replace(b"\r\n\r\n", b"\r\n" + b"A: b\r\n" * 100 + b"\r\n", 1), form_headers()),
    (form(PNG).replace(b'; filename="a.png"', b""), form_headers()),
    (form(*[PNG] * 5000), form_headers()),
    (b"--a-boundary\r\n" * 5000, form_headers()),
], ids=range(13))  # fmt: skip
def test_what_is_no_upload_leaves_nothing(page, body, headers):
    before = {path for path in page.files.folder.rglob("*")}
    with Measured() as measured:
        assert page.ask("POST", UPLOAD, body, headers).status in (400, 413)
    assert measured.seconds <= PROMISED_SECONDS and measured.bytes <= PROMISED_BYTES, vars(measured)
    assert {path for path in page.files.folder.rglob("*")} == before


def test_uploads_are_bounded_for_an_address_and_for_all(small):
    image = PNG + bytes(3000)
    found = [small.send(image).status for _ in range(6)]
    assert found == [200] * 4 + [413] * 2
    small.files.limits = replace(small.files.limits, address_bytes=10**9)
    assert [small.send(image).status for _ in range(3)] == [200, 200, 503]
    assert b"Too many files are here" in small.send(image).body
    assert (
        small.ask("POST", UPLOAD, chunked([form(PNG), b""]), form_headers(**CHUNKED)).status == 411
    )  # of no stated length


def test_a_visitor_who_leaves_in_an_upload_leaves_nothing(small):
    before = {path for path in small.files.folder.rglob("*")}
    with small.connect() as connection:
        head = f"POST {UPLOAD} HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in form_headers().items())
        connection.sendall(head.encode() + b"\r\n" + form(PNG + bytes(2000))[:2000])
        for _ in range(100):
            if {path for path in small.files.folder.rglob("*")} != before:
                break
            time.sleep(0.02)
    for _ in range(100):
        if not small.files._expected:
            break
        time.sleep(0.02)
    assert {path for path in small.files.folder.rglob("*")} == before and not small.files._expected


def test_only_files_on_the_list_are_handed_out(page, tmp_path):
    (path,) = page.send(PNG).json()
    answer = page.ask("GET", f"/gradio_api/file={path}", whole=True)
    assert answer.status == 200 and answer.body == PNG and "content-type: image/png" in answer.head
    visit = page.desk.visits.of("visitor1")
    (visit.folder / "state.json").write_text("secret")
    beside = page.files.folder / "b.png"
    beside.write_bytes(PNG)
    folder, name = path.rsplit("/", 1)
    for other in (
        visit.folder / "state.json", beside, "/etc/passwd", "/proc/self/environ", __file__, f"{folder}/../b.png",
        f"{folder}//{name}", f"{folder}/./{name}", f"{path}/", f"/{path}", path[1:], folder, page.files.folder,
        f"{folder}/x/../{name}", f"{path}%00", path.upper(), f"{path};a", f"file://{path}", f"{folder}/%2e%2e/b.png",
        "http://127.0.0.1:9/a", "https://example.com/a.png", f"%20{path}", f"{path}%20", f"{folder}%5C{name}",
    ):  # fmt: skip
        assert page.ask("GET", f"/gradio_api/file={other}").status == 404, other


def test_a_download_is_handed_out_as_one_and_goes_with_its_visit(page):
    visit = page.desk.visits.of("downloader")
    archive = visit.folder / "taught-model.zip"
    archive.write_bytes(b"PK")
    page.files.add_made(archive, "application/zip", "downloader")
    answer = page.ask("GET", f"/gradio_api/file={archive}", whole=True)
    assert answer.body == b"PK" and 'attachment; filename="taught-model.zip"' in answer.head
    page.desk.visits.end("downloader")
    assert page.ask("GET", f"/gradio_api/file={archive}").status == 404 and not archive.exists()


def test_a_visit_does_not_use_the_files_of_another(page):
    (path,) = page.send(PNG).json()
    page.desk.visits.take(page.desk.visits.of("first001"), path)
    with pytest.raises(ValueError, match="was not uploaded here"):
        page.desk.visits.take(page.desk.visits.of("second02"), path)
    page.desk.visits.end("first001")
    assert not Path(path).exists() and not Path(path).parent.exists()


# ---------------------------------------------------------------------- rates


def test_rates_are_of_an_address_and_of_all():
    route = next(route for route in open_routes(Limits()) if route.name == JOIN)
    now = [0.0]
    rates = Rates(lambda: now[0])
    for _ in range(route.each):
        rates.check(route, "1.2.3.4")
    with pytest.raises(NotTaken, match="Try again in 60 seconds") as refused:
        rates.check(route, "1.2.3.4")
    assert refused.value.status == 429 and refused.value.wait == 60
    rates.check(route, "1.2.3.5")
    now[0] = 60.0
    rates.check(route, "1.2.3.4")
    with pytest.raises(NotTaken):
        for number in range(route.all + 1):
            rates.check(route, f"10.0.{number // 100}.{number % 100}")


def test_many_addresses_take_no_memory():
    route = next(route for route in open_routes(Limits()) if route.name == "/assets/...")
    rates = Rates(lambda: 0.0)
    with pytest.raises(NotTaken):
        for number in range(200_000):
            rates.check(route, f"address {number}")
    assert len(rates._counts) < 10_100


def test_an_address_is_the_network_of_a_visitor():
    def address(host):
        return address_of({"client": (host, 1)})

    assert address("1.2.3.4") == "1.2.3.4" and address("2001:db8:1:2:3::4") == address("2001:db8:1:2::9")
    assert address("2001:db8:1:3::1") != address("2001:db8:1:2::1") and address_of({}) == ""


def test_rates_hold_over_http(tmp_path):
    with served(tmp_path, clock=lambda: 30.0) as page:
        found = [page.ask("HEAD", "/").status for _ in range(130)]
        assert found == [200] * 120 + [429] * 10
        answer = page.ask("GET", "/", headers={"X-Forwarded-For": "9.9.9.9"})  # of this machine: it is a proxy's word
        assert answer.status == 200
        assert page.ask("GET", "/").status == 429 and "retry-after: 30" in page.ask("GET", "/").head.lower()
        assert page.ask("GET", "/theme.css").status == 200


def test_visits_of_one_address_are_bounded(small):
    for number, status in enumerate([200, 200, 429, 429]):
        assert small.join("choose", ["digits"], f"visitor{number}").status == status
    assert small.join("choose", ["digits"], "visitor0").status == 200
    now = [0.0]
    visitors = Visitors(replace(Limits(), address_visits=1, idle_seconds=10), lambda: now[0])
    visitors.check("a", "1")
    with pytest.raises(NotTaken, match="Too many pages are open from your address"):
        visitors.check("b", "1")
    now[0] = 11.0
    visitors.check("b", "1")


def test_what_is_being_answered_at_once_is_bounded():
    rates = Rates()
    with rates.running("a"):
        assert rates._running["a"] == 1
    assert not rates._running


def test_a_served_page_ends(tmp_path):
    with served(tmp_path) as page:
        assert isinstance(page, Served) and page.ask("GET", "/").status == 200
    with pytest.raises(OSError):
        page.ask("GET", "/")
