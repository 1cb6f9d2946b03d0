"""Which routes of the page are open: tried over HTTP, as every route of gradio, in many spellings."""

import itertools
import json
import re
from pathlib import Path

import gradio as gr
import pytest
from gradio.routes import App
from space import PNG, ROOT, SPACE, Served, form, form_headers, served

from limits import Limits  # isort: skip
from routes import open_routes, table  # isort: skip

METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]
OPEN = {
    ("/", "GET"), ("/", "HEAD"), ("/assets/{path:path}", "GET"), ("/static/{path:path}", "GET"),
    ("/theme.css", "GET"), ("/favicon.ico", "GET"), ("/gradio_api/heartbeat/{session_hash}", "GET"),
    ("/gradio_api/queue/join", "POST"), ("/gradio_api/queue/data", "GET"), ("/gradio_api/upload", "POST"),
    ("/gradio_api/file={path_or_url:path}", "GET"),
}  # fmt: skip
CLOSED = {404, 405}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with served(tmp_path_factory.mktemp("page"), clock=itertools.count(0, 61).__next__) as page:  # a minute each
        yield page


def gradio_routes() -> dict[str, set[str]]:
    """Paths that this version of gradio registers, with everything switched on that can be, and their methods."""
    with gr.Blocks() as blocks:
        gr.Textbox()
    blocks.run_history = blocks.enable_monitoring = True
    found: dict[str, set[str]] = {}
    waiting = list(App.create_app(blocks).routes)
    while waiting:
        route = waiting.pop()
        if hasattr(route, "original_router"):  # of fastapi: a router within the application
            waiting.extend(route.original_router.routes)
        else:
            assert route.path, f"a kind of route that this test does not know: {route!r}"
            found.setdefault(route.path, set()).update(route.methods)
    return found


def spelled_out(path: str, page: Served) -> str:
    """A path with something for its parameters; where there is a thing that is open, that thing."""
    asset = next((Path(gr.__file__).parent / "templates" / "frontend" / "assets").iterdir())
    values = {
        "/assets/{path:path}": f"/assets/{asset.name}",
        "/static/{path:path}": "/static/img/logo.svg",
        "/gradio_api/file={path_or_url:path}": f"/gradio_api/file={next(iter(page.files._kept))}",
        "/gradio_api/queue/data": "/gradio_api/queue/data?session_hash=visitor1",
    }
    return values.get(path) or re.sub(r"\{\w+(:path)?\}", "visitor1", path)


def test_every_route_of_gradio_is_closed_but_those_on_the_list(page):
    routes = gradio_routes()
    assert len(routes) > 60 and {path for path, _ in OPEN} <= set(routes)
    assert {"/gradio_api/run/{api_name}", "/gradio_api/file/{path:path}", "/monitoring"} <= set(routes)
    found = {}
    for path in routes:
        for method in METHODS:
            found[path, method] = page.ask(method, spelled_out(path, page)).status
    assert len(found) > 400
    assert {asked for asked, status in found.items() if status not in CLOSED} == OPEN
    assert {asked: found[asked] for asked in OPEN if found[asked] >= 300} == {
        ("/gradio_api/queue/join", "POST"): 415,  # an empty message
        ("/gradio_api/upload", "POST"): 400,
    }


def test_the_list_of_the_test_is_the_list_of_the_page():
    listed = {(re.sub(r"\{.*", "", path), method) for path, method in OPEN}
    named = {
        (re.sub(r"\.\.\.|KEY|PATH", "", route.name), method)
        for route in open_routes(Limits())
        for method in route.methods
    }
    assert named == listed


def test_a_route_that_gradio_gets_is_closed(page):
    """A later version's, or one that another part of the page adds."""
    application = next(route.app for route in page.server.app.app.routes if isinstance(route.app, App))

    @application.get("/gradio_api/brand_new")
    def brand_new():
        return "reached"

    assert page.ask("GET", "/gradio_api/brand_new").status == 404


INPUTS = {
    "a body that is read without a limit": ("POST", "/gradio_api/run/upload"),
    "an address that is fetched": ("GET", "/gradio_api/file/http://127.0.0.1:9/a.png"),
    "a way round the queue": ("POST", "/gradio_api/run/predict"),
    "another way round the queue": ("POST", "/gradio_api/call/teach"),
    "an address that is fetched by its route of today": ("GET", "/gradio_api/file=http://127.0.0.1:9/a.png"),
}


def spellings(path: str) -> list[str]:
    """Other ways to write a path; servers, proxies and frameworks differ in which of them are the same."""
    _, first, second, rest = path.split("/", 3) if path.count("/") > 2 else [*path.split("/"), ""]
    tail = f"/{rest}" if rest else ""
    return [
        path, path + "/", path + "//", "/" + path, path.replace("/", "//"), path.upper(), path.title(),
        f"/{first}%2F{second}{tail}", f"/{first}%2f{second}{tail}", f"/{first}/%2e/{second}{tail}",
        f"/{first}/./{second}{tail}", f"/x/../{first}/{second}{tail}", f"/x/%2e%2e/{first}/{second}{tail}",
        f"/{first}/x/..%2f{second}{tail}", f"/{first}\\{second}{tail}", f"/{first}%5C{second}{tail}",
        f"/{first};v=1/{second}{tail}", f"{path};v=1", f"{path}%00", f"{path}%20", f"{path}%0a", f"{path}?",
        f"{path}?a=/gradio_api/upload", f"{path}#/gradio_api/upload", f"{path}/upload", f"{path}%2Fupload",
        f"{path}/gradio_api/upload", f"/gradio_api/upload/..{path}", f"/gradio_api/upload/%2e%2e/%2e%2e{path}",
        f"/assets/..{path}", f"/assets/..%2f..{path}", f"/static/../{first}/{second}{tail}", f"/root{path}",
        "/%67radio_api" + path.removeprefix("/gradio_api"), "/gradio%5Fapi" + path.removeprefix("/gradio_api"),
        path.removeprefix("/gradio_api"), path.replace("gradio_api", "ｇradio_api"),
        path.replace("/run/", "/api/"), path.replace("/run/", "/call/v2/"), path.replace("/run/", "/call/"),
        path.replace("http://", "HTTP://"), path.replace("http://", "http:%2F%2F"), path.replace("http", "%68ttp"),
        path.replace("http", "%20http"), path.replace("http", "ftp"), path.replace("http", "file"),
        f"http://127.0.0.1{path}", f"http://127.0.0.1/gradio_api/upload/..{path}",
    ]  # fmt: skip


@pytest.mark.parametrize("method, path", INPUTS.values(), ids=INPUTS)
def test_what_is_closed_is_closed_in_every_spelling(page, method, path):
    tried = list(dict.fromkeys(spellings(path)))
    assert len(tried) > 35
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "visitor1"}).encode()
    headers = {"Content-Type": "application/json", "X-HTTP-Method-Override": "GET", "X-Original-URL": "/"}
    found = {}
    for spelling in tried:
        for asked in (method, "GET", "POST"):
            found[asked, spelling] = page.ask(asked, spelling, body if asked == "POST" else b"", headers).status
    answered = {asked: status for asked, status in found.items() if status not in {400, 404, 405}}
    assert not answered
    assert 400 not in {found[asked, spelling] for asked, spelling in found if spelling.isascii()}


def test_what_is_open_is_open_in_one_spelling(page):
    """No other spelling of an open path is known, so that each has one entry to count and to bound."""
    allowed = {"/", "/theme.css", "/gradio_api/upload", "/gradio_api/queue/join"}
    for path in sorted(allowed):
        method = "GET" if path in ("/", "/theme.css") else "POST"
        assert page.ask(method, path).status not in CLOSED, path
        others = [
            path + "/",
            "/" + path,
            path.upper(),
            path + ";a",
            path + "%20",
            path + "%00",
            path + "\\",
            "/." + path,
        ]
        for spelling in set(others) - {path}:
            assert page.ask(method, spelling).status == 404, spelling


def test_the_method_is_the_one_of_the_request(page):
    for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        assert page.ask("GET", "/gradio_api/upload", headers={header: "POST"}).status == 405
        assert page.ask("POST", "/theme.css", headers={header: "GET"}).status == 405
    assert page.ask("GET", "/gradio_api/upload?_method=POST").status == 405
    for method in ("TRACE", "CONNECT", "PROPFIND"):
        assert page.ask(method, "/").status in (400, 405)


def test_no_state_of_a_visitor_is_kept_or_shown_by_a_query(page):
    told = page.ask("GET", "/?deep_link=../../a&page=x&__theme=dark", whole=True)
    assert told.status == 200 and b'"deep_link_state":"none"' in told.body.replace(b" ", b"")
    for query in ("", "?session_hash=", "?session_hash=../x", "?session_hash=A1234567", "?session_hash=visitor1&a=b"):
        assert page.ask("GET", f"/gradio_api/queue/data{query}").status == 400, query
    for key in ("short", "x" * 17, "UPPERCASE1", "..%2f..%2fx", "a-b-c-d-e"):
        assert page.ask("GET", f"/gradio_api/heartbeat/{key}").status == 404, key


def test_web_sockets_are_closed(page):
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    for path in ("/gradio_api/queue/join", "/queue/join", "/ws", "/gradio_api/stream/visitor1"):
        assert page.ask("GET", path, headers=headers).status in CLOSED
    assert page.ask("GET", "/", headers=headers).status == 200  # the page, not a socket


def test_other_sites_get_nothing_by_a_visitor_s_browser(page):
    for origin in ("https://elsewhere.example", "null", "http://localhost:1"):
        answer = page.ask("GET", "/", headers={"Origin": origin})
        assert "access-control-allow" not in answer.head.lower()
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert page.ask("OPTIONS", "/gradio_api/queue/join", headers=asked).status == 405
    posted = form_headers(**{"Sec-Fetch-Site": "cross-site"})
    assert page.ask("POST", "/gradio_api/upload", form(PNG), posted).status == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "text/plain; a=application/json"):
        assert page.ask("POST", "/gradio_api/queue/join", b"{}", {"Content-Type": kind}).status == 415


def test_the_browser_is_told_to_load_nothing_from_elsewhere(page):
    for path in ("/", "/theme.css", "/nowhere"):
        head = page.ask("GET", path).head
        policy = re.search(r"(?im)^content-security-policy: (.*)\r$", head)[1]
        sources = {source for rule in policy.split(";") for source in rule.split()[1:]}
        assert policy.startswith("default-src 'self'")
        assert sources <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
        assert "x-content-type-options: nosniff" in head.lower()


def test_the_documentation_shows_the_routes_that_are_open():
    for text in ((ROOT / "docs" / "demo.md").read_text(), (SPACE / "README.md").read_text()):
        assert table(open_routes(Limits())) in text


def test_gradio_is_asked_for_nothing_but_the_page(page):
    """The guard stands around the whole application, not within it: no middleware of gradio sees what is closed."""
    assert type(page.server.app).__name__ == "Guard"
    assert page.page.blocked_paths == ["/"]  # nor would gradio hand out a file by itself
    assert not page.page.api_open  # nor run what is for the queue beside it
