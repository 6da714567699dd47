"""The page's laws: one file that fetches nothing from elsewhere and shows text as text, by key, on a phone, in the dark."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from browser import ENTER, ESCAPE, SHIFT, TAB, UP, Browser, needs_driver, wait

from esdllm.serving import page

HTML = page.html().decode()
STYLE, SCRIPT = (re.findall(f"<{name}>(.*?)</{name}>", HTML, re.DOTALL) for name in ("style", "script"))
VOID = {"meta", "link", "input", "br"}


class Reader(HTMLParser):
    """Notes the elements, and what stays open or is closed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(HTML)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


# without a browser


def test_every_element_is_closed_and_no_id_is_given_twice():
    found = Reader()
    assert found.open == []
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"html", "main", "dialog", "textarea"} <= {tag for tag, _ in found.elements}


def test_the_script_asks_for_elements_and_fields_that_there_are():
    ids = {attributes.get("id") for _, attributes in Reader().elements}
    assert set(re.findall(r'named\("([^"]*)"\)', SCRIPT[0])) <= ids
    fields = {attributes["name"] for tag, attributes in Reader().elements if tag != "meta" and "name" in attributes}
    assert fields == set(json.loads(re.findall(r"FIELDS = (\[.*?\])", SCRIPT[0])[0]))


def test_the_page_names_no_other_address():
    assert re.findall(r"https?:|//[a-z]+\.|@import|url\(|WebSocket|EventSource|sendBeacon|import\s*\(", HTML) == []
    addresses = [
        attributes[name]
        for _, attributes in Reader().elements
        for name in ("src", "href", "action")
        if name in attributes
    ]
    assert addresses == ["data:,"]
    assert set(re.findall(r'\bcall\("([^"]*)"', SCRIPT[0])) == {"v1/models", "v1/chat/completions"}


def test_nothing_is_put_into_the_page_as_html():
    assert (
        re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\(|srcdoc", SCRIPT[0]
        )
        == []
    )


def test_the_policy_admits_the_page_s_own_style_and_script_alone():
    policy = dict(part.split(" ", 1) for part in page.headers()["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in str(policy)
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy[name])
    inline = [
        name for _, attributes in Reader().elements for name in attributes if name == "style" or name.startswith("on")
    ]
    assert inline == []  # the policy would refuse them


def test_the_page_is_small():
    assert len(HTML.encode()) < 40_000


def test_every_control_has_a_name():
    labelled = re.sub(r"<label.*?</label>", "", HTML.split("<script>")[0], flags=re.DOTALL)
    for control in re.findall(r"<(?:input|select|textarea)[^>]*>", labelled):
        assert "aria-label" in control, control
    assert all(re.sub("<[^>]*>", "", text).strip() for text in re.findall(r"<button[^>]*>(.*?)</button>", HTML))


# a server that says what a test wants


def cells(text: str) -> list[dict[str, str]]:
    """Return cells as told in short: a word a cell; +new, ?provisional, _ for masked."""
    states = {"+": "new", "?": "provisional", "_": "masked"}
    words = text.split(" ")
    return [
        {"text": "" if word == "_" else " " + word.lstrip("+?"), "state": states.get(word[:1], "committed")}
        for word in words
    ]


def chunk(
    new: str = "", canvas: str | None = None, forwards: int = 1, finish: str | None = None, **fields: Any
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "choices": [{"index": 0, "delta": {"content": new} if new else {}, "finish_reason": finish}]
    }
    if canvas is not None:
        told["esdllm"] = {"draft": "", "forwards": forwards, "block": [0, 4], "cells": cells(canvas)}
    return {**told, **fields}


def drafted(told: dict[str, Any], draft: str) -> dict[str, Any]:
    return {**told, "esdllm": {**told["esdllm"], "draft": draft}}


def whole(text: str) -> list[Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": len(text.split()), "total_tokens": 9}
    words = " ".join(f"+{word}" for word in text.split())
    return [chunk(text, words, 2), chunk(finish="stop"), {"choices": [], "usage": usage}]


class Fake(ThreadingHTTPServer):
    """The page, its models, and answers as scripted: chunks, gates to wait at, bytes as they are, or a refusal."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()

    def reset(self) -> None:
        self.script: list[Any] = whole("Hello there.")
        self.refusal: tuple[int, dict[str, str], Any] | None = None
        self.key = ""
        self.asked: list[dict[str, Any]] = []
        self.left = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: Any) -> None:
        pass

    def _say(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _refused(self) -> bool:
        refusal = self.server.refusal
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            refusal = 401, {}, {"error": {"message": "a key is missing", "type": "authentication_error"}}
        if refusal:
            status, headers, said = refusal
            self._say(status, headers, said if isinstance(said, bytes) else json.dumps(said).encode())
        return bool(refusal)

    def do_GET(self) -> None:
        if self.path == "/":
            self._say(200, page.headers(), page.html())
        elif self.path == "/v1/models":
            if self.server.key and self._refused():
                return
            self._say(200, {}, json.dumps({"data": [{"id": "tiny-llada"}, {"id": "tiny-dream"}]}).encode())
        else:
            self._say(404, {}, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        self.server.asked.append(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for one in [*self.server.script, b"data: [DONE]\n\n"]:
                while isinstance(one, threading.Event) and not one.wait(0.02):
                    self.wfile.write(b": waiting\n\n")  # fails once nobody listens
                if not isinstance(one, threading.Event):
                    self.wfile.write(one if isinstance(one, bytes) else f"data: {json.dumps(one)}\n\n".encode())
        except OSError:
            self.server.left.set()
        self.close_connection = True


@pytest.fixture(scope="module")
def _server() -> Iterator[Fake]:
    with Fake() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def server(_server: Fake) -> Fake:
    _server.reset()
    return _server


@pytest.fixture
def browser(_browser: Browser, server: Fake) -> Iterator[Browser]:
    """The page, freshly opened, in a tab that remembers nothing."""
    _browser.resize(1000)
    _browser.prefer(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    _browser.open(server.address)
    _browser.run("sessionStorage.clear(); turns = []; live = null;")
    _browser.open(server.address)
    _browser.until("document.documentElement.dataset.ready")
    _browser.complaints()
    yield _browser
    assert _browser.complaints() == []


def say(browser: Browser, text: str) -> None:
    browser.press(text, ENTER)


def finished(browser: Browser) -> None:
    browser.until("document.documentElement.dataset.state === 'idle'")


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)


ANSWERS = ".answer > .text"
FOCUS = "return document.activeElement.id || document.activeElement.textContent"


# in a browser


@needs_driver
def test_the_canvas_is_shown_as_it_is_denoised(browser, server):
    gates = [threading.Event() for _ in range(3)]
    server.script = [
        *(chunk("", "_ _ _ _ _ _"), gates[0], chunk("", "?A +B _ _ _ _", 2), gates[1]),
        *(chunk(" A B", "+A B ?C _ _ _", 3), gates[2], *whole(" C")),
    ]
    say(browser, "Go")
    shown = "return [...document.querySelectorAll('.canvas .cell')].map((one) => [one.textContent, one.className])"
    masked = ["", "cell masked"]
    wait(lambda: browser.run(shown) == [masked] * 6, "six masks")
    gates[0].set()
    wait(
        lambda: browser.run(shown) == [[" A", "cell provisional"], [" B", "cell new"], *[masked] * 4], "the second step"
    )
    assert browser.run("return [...document.querySelector('.canvas .block').children].length") == 4
    assert texts(browser, "#settled") == [""]  # nothing is settled
    gates[1].set()
    expected = [[" A", "cell new"], [" B", "cell committed"], [" C", "cell provisional"], *[masked] * 3]
    wait(lambda: browser.run(shown) == expected, "the third step")
    assert texts(browser, ".answer .facts")[0].startswith("3 forwards · 2 of 6 decided")
    gates[2].set()
    finished(browser)
    assert texts(browser, ANSWERS) == [" A B C"]
    assert texts(browser, ".canvas") == []


@needs_driver
def test_ends_and_line_breaks_are_seen_in_the_canvas(browser, server):
    gate, said = (
        threading.Event(),
        [("a\nb", "committed"), ("<|endoftext|>", "new"), ("<|eot_id|>", "provisional"), ("", "new")],
    )
    shown = [
        {"text": text, "state": state}
        for text, state in [*said, ("</s>", "committed"), ("<|", "committed"), ("", "masked")]
    ]
    server.script = [
        {**chunk(), "esdllm": {"draft": "", "forwards": 1, "block": [0, 7], "cells": shown}},
        gate,
        *whole("a"),
    ]
    say(browser, "Go")
    browser.until("document.querySelectorAll('.canvas .cell').length === 7")
    assert texts(browser, ".canvas .cell") == ["a↵\nb", "∎", "∎", "∎", "∎", "<|", ""]
    assert len(texts(browser, ".canvas .ending")) == 4
    gate.set()
    finished(browser)


@needs_driver
@pytest.mark.parametrize(
    ("block", "inside"), [([0, 4], "ABCD"), ([1, 3], "BC"), ([-2, 2], "AB"), ([2, 9], "CD"), ([4, 8], ""), ([0, 0], "")]
)
def test_the_block_s_border_is_around_its_cells(browser, server, block, inside):
    gate = threading.Event()
    canvas = [{"text": letter, "state": "committed"} for letter in "ABCD"]
    server.script = [
        {**chunk(), "esdllm": {"draft": "", "forwards": 1, "block": block, "cells": canvas}},
        gate,
        *whole("a"),
    ]
    say(browser, "Go")
    browser.until("document.querySelectorAll('.canvas .cell').length === 4")
    assert texts(browser, ".canvas .block") == [inside]
    assert texts(browser, ".canvas") == ["ABCD"]
    assert browser.run("return document.querySelector('.canvas .block').checkVisibility()") == bool(inside)
    gate.set()
    finished(browser)


@needs_driver
def test_the_page_follows_its_end_unless_the_reader_looks_elsewhere(browser, server):
    browser.resize(400, 400)
    gates = [threading.Event(), threading.Event()]
    long = " ".join(["word"] * 400)
    server.script = [chunk("", "_ _"), gates[0], chunk("", long, 2), gates[1], *whole(f"{long} end")]
    say(browser, "Go")
    browser.until("document.querySelectorAll('.canvas .cell').length === 2")
    gates[0].set()
    browser.until("document.querySelectorAll('.canvas .cell').length === 400")
    browser.until("scrollY > 100 && document.documentElement.scrollHeight - scrollY - innerHeight < 2")
    browser.run("scrollTo(0, 30)")
    gates[1].set()
    finished(browser)
    assert browser.run("return scrollY") == 30


@needs_driver
def test_the_live_region_reads_settled_sentences_only(browser, server):
    gates = [threading.Event(), threading.Event()]
    server.script = [
        *(drafted(chunk("One. Tw", "One. +Tw ?maybe _"), "o maybe."), gates[0]),
        *(drafted(chunk("o. Thr", "One. Two. Thr ?never"), " never."), gates[1], chunk("ee"), chunk(finish="stop")),
    ]
    say(browser, "Go")
    browser.until("document.getElementById('settled').textContent === 'One.'")
    gates[0].set()
    browser.until("document.getElementById('settled').textContent === 'One. Two.'")
    assert browser.run("return document.querySelector('.canvas').getAttribute('aria-hidden')") == "true"
    gates[1].set()
    finished(browser)
    assert texts(browser, "#settled") == ["One. Two. Three"]
    assert browser.run("return document.getElementById('settled').getAttribute('aria-live')") == "polite"


@needs_driver
@pytest.mark.parametrize(
    "evil",
    [
        "<img src=x onerror=alert(1)>",
        "</div><script>alert(1)</script>",
        "<b>x</b>&lt;",
        "<style>*{display:none}</style>",
    ],
)
def test_text_stays_text(browser, server, evil):
    gate = threading.Event()
    told = {"draft": evil, "forwards": 1, "block": [0, 1], "cells": [{"text": evil, "state": "provisional"}]}
    server.script = [{**chunk(evil), "esdllm": told}, gate, chunk(finish="stop")]
    say(browser, evil)
    browser.until("document.querySelector('.canvas .cell')")
    assert texts(browser, ".canvas .cell") == [evil]
    gate.set()
    finished(browser)
    assert texts(browser, ".turn, .user .text, .answer > .text") == [evil, evil]
    assert (
        browser.run(
            "return document.querySelectorAll('#turns img, #turns script, #turns b:not(.error b), #turns style').length"
        )
        == 0
    )


@needs_driver
def test_the_browser_refuses_html_scripts_and_other_servers(browser, server):
    refused = """
      const tries = {
        html: () => { document.body.innerHTML = "<p>x</p>"; },
        script: () => {
          const made = document.createElement("script");
          made.text = "window.ran = 1";
          document.body.append(made);
        },
        evaluated: () => setTimeout("window.ran = 1"),
      };
      return Object.entries(tries).map(([name, attempt]) => {
        try { attempt(); return name + (window.ran ?? ""); } catch { return "refused"; }
      });
    """
    assert browser.run(refused) == ["refused"] * 3
    assert browser.run("return fetch('http://127.0.0.1:9/').then(() => 'fetched', () => 'refused')") == "refused"
    style = (
        "const made = document.createElement('p'); made.setAttribute('style', 'color: red'); return made.style.color"
    )
    assert browser.run(style) == ""
    assert browser.complaints() != []  # the policy told of each


@needs_driver
def test_enter_sends_and_shift_enter_begins_a_line(browser, server):
    browser.press("one")
    browser.press(ENTER, holding=SHIFT)
    browser.press("two", ENTER)
    finished(browser)
    assert server.asked[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    assert browser.run("return document.getElementById('prompt').value") == ""
    say(browser, "   ")
    assert len(server.asked) == 1


@needs_driver
def test_what_is_asked_for_is_what_the_settings_say(browser, server):
    browser.click("#open-settings")
    browser.run(
        """const fields = document.getElementById("settings-form").elements;
        Object.entries(arguments[0]).forEach(([name, value]) => { fields[name].value = value; });""",
        {
            "model": "tiny-dream",
            "system": "Be brief.",
            "max_tokens": "32",
            "temperature": "0.7",
            "top_p": "0.9",
            "seed": "11",
        },
    )
    browser.click("#settings-form [type=submit]")
    browser.until("!document.getElementById('settings').open")
    browser.click("#prompt")
    say(browser, "Hi")
    finished(browser)
    assert server.asked == [
        {
            "model": "tiny-dream",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "diffusing": True,
            "max_tokens": 32,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 11,
        }
    ]
    assert texts(browser, "#model-name") == ["tiny-dream"]


@needs_driver
def test_what_is_not_set_is_left_to_the_server_but_the_seed_differs(browser, server):
    for _ in range(2):
        say(browser, "Hi")
        finished(browser)
    assert all({"max_tokens", "temperature", "top_p"}.isdisjoint(body) for body in server.asked)
    assert server.asked[0]["model"] == "tiny-llada"
    seeds = [body["seed"] for body in server.asked]
    assert len(set(seeds)) == 2
    assert all(0 <= seed < 2**31 for seed in seeds)


@needs_driver
@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", "0"), ("temperature", "-1"), ("top_p", "1.5"), ("seed", "1.5"), ("max_tokens", "2.5")],
)
def test_a_setting_that_cannot_be_is_not_taken(browser, server, name, value):
    browser.click("#open-settings")
    browser.run("document.getElementById('settings-form').elements[arguments[0]].value = arguments[1]", name, value)
    browser.click("#settings-form [type=submit]")
    assert browser.run("return document.getElementById('settings').open")
    assert browser.run("return document.activeElement.name") == name
    browser.press(ESCAPE)
    browser.until("!document.getElementById('settings').open")
    browser.click("#prompt")
    say(browser, "Hi")
    finished(browser)
    assert name == "seed" or name not in server.asked[0]


@needs_driver
@pytest.mark.parametrize("way", ["key", "button"])
def test_stopping_keeps_what_is_settled_and_leaves_the_server(browser, server, way):
    server.script = [chunk("Half an", "Half an ?answer _"), threading.Event()]
    say(browser, "Go")
    browser.until("document.querySelectorAll('.canvas .cell').length === 4")
    browser.press(ESCAPE) if way == "key" else browser.click("#stop")
    finished(browser)
    assert texts(browser, ANSWERS) == ["Half an"]
    assert texts(browser, ".answer .note") == ["Stopped."]
    assert server.left.wait(5)
    assert browser.run(FOCUS) == "prompt"


@needs_driver
def test_an_answer_can_be_had_anew_and_a_question_changed(browser, server):
    say(browser, "First")
    finished(browser)
    say(browser, "Second")
    finished(browser)
    server.script = whole("Another one.")
    browser.click(".answer:last-child button:last-child")
    browser.until("document.querySelectorAll('.answer > .text')[1]?.textContent === 'Another one.'")
    assert [one["content"] for one in server.asked[2]["messages"]] == ["First", "Hello there.", "Second"]
    browser.press(UP)
    assert browser.run("return document.getElementById('prompt').value") == "Second"
    browser.press(ESCAPE)
    assert browser.run("return document.getElementById('prompt').value") == ""
    browser.press(UP)
    browser.press("!", ENTER)
    browser.until("document.querySelectorAll('.user .text')[1]?.textContent === 'Second!'")
    finished(browser)
    assert [one["content"] for one in server.asked[3]["messages"]] == ["First", "Hello there.", "Second!"]
    assert len(texts(browser, ".user")) == 2
    assert len(texts(browser, ".user button")) == 1  # the last one's only


@needs_driver
def test_latency_is_told_in_the_usual_measures(browser, server):
    say(browser, "Hi")
    finished(browser)
    (facts,) = texts(browser, ".answer .facts")
    seed = server.asked[0]["seed"]
    times, counts = r"first text after ([\d.]+) s · ([\d.]+) s in all", "2 forwards · 1.0 tokens per forward"
    found = re.fullmatch(rf"{times} · 2 tokens · ([\d.]+) tokens/s · {counts} · seed {seed}", facts)
    assert found, facts
    first, took, rate = (float(one) for one in found.groups())
    assert first <= took
    assert 2 / (took + 0.006) <= 1.06 * rate  # of what is told, two digits are right
    assert took < 0.02 or 0.94 * rate <= 2 / (took - 0.006)


REFUSALS = [
    (429, {"Retry-After": "30"}, "full", "The server is busy: its queue is full. Please come back in 30 s."),
    (429, {}, "full", "The server is busy: its queue is full. Please come back in a moment."),
    (
        503,
        {"Retry-After": "5"},
        "draining",
        "The server is shutting down, or is not ready yet. Please come back in 5 s.",
    ),
    (400, {}, "temperature is -1", "The server refuses this: temperature is -1"),
    (404, {}, "no model x", "The server refuses this: no model x"),
    (413, {}, "1 MB at most", "That is more than the server takes. It says: 1 MB at most"),
    (422, {}, "max_tokens is 9999", "The server refuses this: max_tokens is 9999"),
    (500, {}, "a step failed", "Something went wrong in the server. It says: a step failed"),
]


@needs_driver
@pytest.mark.parametrize(("status", "headers", "told", "words"), REFUSALS)
def test_a_refusal_is_told_in_words(browser, server, status, headers, told, words):
    server.refusal = status, headers, {"error": {"message": told, "type": "x", "param": None, "code": None}}
    say(browser, "Hi")
    finished(browser)
    assert words in texts(browser, ".error")[0]
    (again,) = texts(browser, ".error button")
    assert again.startswith("Try again in ") == bool(headers)
    assert browser.run("return document.querySelector('.error button').disabled") == bool(headers)
    assert texts(browser, "#settled") == [words]
    if not headers:
        server.refusal = None
        browser.click(".error button")
        browser.until("document.querySelector('.answer > .text')?.textContent === 'Hello there.'")


@needs_driver
def test_a_busy_server_can_be_asked_again_once_its_time_has_come(browser, server):
    server.refusal = 429, {"Retry-After": "1"}, {}
    say(browser, "Hi")
    finished(browser)
    assert texts(browser, ".error button") == ["Try again in 1 s"]
    server.refusal = None
    browser.until("!document.querySelector('.error button').disabled")
    browser.click(".error button")
    browser.until("document.querySelector('.answer > .text')?.textContent === 'Hello there.'")


@needs_driver
@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("3", 3, 3), ("0.2", 1, 1), ("-4", 0, 0), ("soon", 0, 0), ("", 0, 0), (None, 0, 0), ("{date}", 58, 61)],
)
def test_when_to_come_back_is_read_as_seconds_or_a_date(browser, server, header, least, most):
    given = "new Date(Date.now() + 60000).toUTCString()" if header == "{date}" else json.dumps(header)
    assert least <= browser.run(f"return secondsUntil({given})") <= most


@needs_driver
@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"{}", b'{"error": "text"}', b"null"])
def test_a_refusal_of_another_form_is_told_by_its_status(browser, server, body):
    server.refusal = 418, {}, body
    say(browser, "Hi")
    finished(browser)
    assert "The server refuses this (status 418)." in texts(browser, ".error")[0]


@needs_driver
def test_an_answer_that_breaks_off_says_so_and_keeps_its_text(browser, server):
    error = {"error": {"message": "the row gave NaN", "type": "server_error"}}
    endings = {
        "Something went wrong in the server. It says: the row gave NaN": [error],
        "The connection ended before the answer did.": [],
        "The server's answer is not understood": [b"data: {broken\n\n"],
    }
    for words, ending in endings.items():
        server.script = [chunk("Half", "Half _"), *ending]
        say(browser, "Hi")
        finished(browser)
        assert words in texts(browser, ".answer:last-child .error")[0]
        assert texts(browser, ANSWERS)[-1] == "Half"


@needs_driver
def test_a_question_without_an_answer_is_not_sent_again(browser, server):
    server.refusal = 500, {}, {}
    say(browser, "lost")
    finished(browser)
    server.refusal = None
    say(browser, "found")
    finished(browser)
    assert server.asked[0]["messages"] == [{"role": "user", "content": "found"}]


@needs_driver
def test_a_server_with_keys_asks_for_one_and_takes_it(browser, server):
    server.key = "opensesame"
    say(browser, "Hi")
    finished(browser)
    assert "The server asks for an API key." in texts(browser, ".error")[0]
    browser.click(".error button")
    assert browser.run("return document.activeElement.name") == "key"
    browser.press("wrong", ENTER)
    browser.until("document.querySelector('.answer .error')?.textContent.includes('does not accept this key')")
    finished(browser)
    browser.click(".answer .error button")
    browser.run("document.activeElement.select()")
    browser.press("opensesame", ENTER)
    browser.until("document.querySelector('.answer > .text')?.textContent === 'Hello there.'")
    assert texts(browser, "#notice") == [""]
    assert browser.run("return Object.keys(localStorage).length + document.cookie.length") == 0


@needs_driver
def test_a_conversation_survives_a_reload(browser, server):
    say(browser, "First")
    finished(browser)
    server.script = [chunk("Half an", "Half an ?answer _"), threading.Event()]
    say(browser, "Second")
    browser.until("document.querySelectorAll('.canvas .cell').length === 4")
    browser.reload()
    browser.until("document.documentElement.dataset.ready")
    assert texts(browser, ".user .text") == ["First", "Second"]
    assert texts(browser, ANSWERS) == ["Hello there.", "Half an"]
    assert texts(browser, ".answer .note") == ["The page was left before the answer was whole."]
    browser.click("#new")
    assert texts(browser, "#turns > li") == []
    browser.click("#notice button")
    assert texts(browser, ".user .text") == ["First", "Second"]


@needs_driver
@pytest.mark.parametrize("kept", ["{", "null", "[1]", '[{"role": "user"}]', '{"role": "user", "text": "x"}', '"text"'])
def test_a_memory_that_is_broken_is_an_empty_one(browser, server, kept):
    browser.run(
        "turns = []; addEventListener('pagehide', () => sessionStorage.setItem('esdllm.turns', arguments[0]));", kept
    )
    browser.reload()
    browser.until("document.documentElement.dataset.ready")
    assert texts(browser, "#turns > li") == []
    say(browser, "Hi")
    finished(browser)
    assert texts(browser, ANSWERS) == ["Hello there."]


@needs_driver
def test_the_answer_is_copied_as_it_is(browser, server):
    server.script = whole("a  <b>\n c")
    say(browser, "Hi")
    finished(browser)
    browser.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.click(".answer button")
    browser.until("document.querySelector('.answer button').textContent === 'Copied'")
    assert browser.run("return navigator.clipboard.readText()") == "a  <b>\n c"


@needs_driver
def test_the_answer_is_copied_where_there_is_no_clipboard(browser, server):
    """As over plain HTTP from another machine."""
    say(browser, "Hi")
    finished(browser)
    browser.run(
        """Object.defineProperty(navigator, "clipboard", { value: undefined });
        document.execCommand = (what) => { window.done = [what, document.activeElement.value]; return true; };"""
    )
    browser.click(".answer button")
    browser.until("document.querySelector('.answer button').textContent === 'Copied'")
    assert browser.run("return window.done") == ["copy", "Hello there."]
    assert browser.run(FOCUS) == "Copied"
    assert browser.run("return document.querySelectorAll('textarea').length") == 2


@needs_driver
def test_why_an_answer_ends_is_told_in_words(browser, server):
    late = {"index": 0, "delta": {}, "finish_reason": "length", "esdllm": {"finish_reason": "deadline"}}
    endings = {
        "Its time was over.": {"choices": [late]},
        "It ends here because it may have no more tokens.": chunk(finish="length"),
    }
    for words, ending in endings.items():
        server.script = [chunk("Half", "Half _"), ending]
        say(browser, "Hi")
        finished(browser)
        assert texts(browser, ".answer .note")[-1] == words
    server.script = whole("Whole.")
    say(browser, "Hi")
    finished(browser)
    assert len(texts(browser, ".answer .note")) == 2


@needs_driver
def test_a_chunk_without_the_canvas_leaves_it_as_it_is(browser, server):
    gate = threading.Event()
    bare = {**chunk("A"), "esdllm": {"draft": "x"}}
    server.script = [chunk("", "+A _ _"), bare, chunk(" B"), gate, chunk(finish="stop")]
    say(browser, "Hi")
    browser.until("document.querySelectorAll('.canvas .cell').length === 3")
    browser.until("live.turn.text === 'A B'")
    browser.run("live.paint()")
    assert len(texts(browser, ".canvas .cell")) == 3
    assert browser.run("return document.querySelector('.canvas').checkVisibility()")
    gate.set()
    finished(browser)
    assert texts(browser, ANSWERS) == ["A B"]


@needs_driver
def test_text_that_runs_from_right_to_left_does(browser, server):
    server.script = whole("שלום עולם")
    say(browser, "מי אתה?")
    finished(browser)
    direction = "return [...document.querySelectorAll('#turns .text')].map((one) => getComputedStyle(one).direction)"
    assert browser.run(direction) == ["rtl", "rtl"]


@needs_driver
def test_all_of_it_is_reached_by_tab_and_the_focus_is_seen(browser, server):
    say(browser, "Hi")
    finished(browser)
    browser.run("document.activeElement.blur()")
    reached = []
    for _ in range(8):  # from the last of them, by the browser's own controls, to the last
        browser.press(TAB)
        if browser.run("return document.activeElement !== document.body"):
            reached.append(browser.run(FOCUS))
            assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert set(reached) == {"new", "open-settings", "Edit", "Copy", "Regenerate", "prompt", "send"}


@needs_driver
@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_the_page_never_scrolls_sideways(browser, server, width):
    browser.resize(width, 640)
    long = "a_word_without_a_space_" * 6
    gate = threading.Event()
    server.script = [chunk("", f"{long} +{long} ?{long} _"), gate, *whole(long)]
    say(browser, long)
    browser.until("document.querySelectorAll('.canvas .cell').length === 4")
    inside = "document.documentElement.scrollWidth <= innerWidth"
    assert browser.run(f"return {inside}")
    gate.set()
    finished(browser)
    browser.click("#open-settings")
    assert browser.run(
        f"return {inside} && document.getElementById('settings').scrollWidth <= document.getElementById('settings').clientWidth"
    )
    seen = "return document.getElementById('send').getBoundingClientRect().bottom <= innerHeight"
    assert browser.run(seen)


CONTRAST = """
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const light = (c) => { const [r, g, b] = c.map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (one) => { const c = getComputedStyle(one).backgroundColor;
    return /, 0\\)$/.test(c) ? behind(one.parentElement) : rgb(c); };
  const low = [];
  for (const one of document.querySelectorAll("h1, small, p, b, label, button, .text, .cell, .error, textarea")) {
    if (!one.textContent.trim() || !one.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(one.className + one.tagName);
  }
  return { low, paper: rgb(getComputedStyle(document.body).backgroundColor) };
"""


@needs_driver
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_light_and_dark_are_the_reader_s_choice_and_legible(browser, server, theme):
    browser.prefer(prefers_color_scheme=theme, prefers_reduced_motion="reduce")
    server.refusal = 400, {}, {}
    say(browser, "Hi")
    finished(browser)
    server.refusal, gate = None, threading.Event()
    server.script = [chunk("", "A +B ?C _"), gate, *whole("A B C")]
    say(browser, "Hi")
    browser.until("document.querySelectorAll('.canvas .cell').length === 4")
    decoding = browser.run(CONTRAST)
    gate.set()
    finished(browser)
    assert (decoding["low"], browser.run(CONTRAST)["low"]) == ([], [])
    assert sum(decoding["paper"]) == 765 if theme == "light" else sum(decoding["paper"]) < 120


@needs_driver
@pytest.mark.parametrize(("motion", "most"), [("reduce", 4), ("no-preference", 400)])
def test_who_wants_little_motion_gets_few_pictures(browser, server, motion, most):
    browser.prefer(prefers_color_scheme="light", prefers_reduced_motion=motion)
    browser.run(
        """window.pictures = 0; const paint = Answer.prototype.paint;
        Answer.prototype.paint = function () { window.pictures += 1; return paint.call(this); };"""
    )
    waits = [threading.Event() for _ in range(40)]
    server.script = [one for i, gate in enumerate(waits) for one in (chunk("", f"?{i} _", i + 1), gate)] + whole("x")
    say(browser, "Hi")
    for gate in waits:
        threading.Event().wait(0.02)
        gate.set()
    finished(browser)
    pictures = browser.run("return window.pictures")
    assert 1 <= pictures <= most
    assert motion == "reduce" or pictures > 4
    duration = "return getComputedStyle(document.querySelector('.cell') ?? document.body).transitionDuration"
    assert browser.run(duration) == "0s"


@needs_driver
def test_the_page_works_without_the_canvas(browser, server):
    gate = threading.Event()
    server.script = [chunk("Plain "), gate, chunk("text."), chunk(finish="length")]
    say(browser, "Hi")
    browser.until("document.querySelector('.answer .text')?.textContent === 'Plain '")
    gate.set()
    finished(browser)
    assert texts(browser, ANSWERS) == ["Plain text."]
    assert texts(browser, ".answer .note") == ["It ends here because it may have no more tokens."]


@needs_driver
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_stream_is_read_wherever_it_is_cut(browser, server, newline, size):
    events = [{"text": "Grüße 👋🏽 "}, {"text": 'a "quoted" \n line: data'}, {"text": "data: "}]
    lines = "".join(f"data: {json.dumps(one, ensure_ascii=False)}\n\n" for one in events)
    sent = f": a comment\n\nevent: x\nid: 3\n{lines}data: [DONE]\n\n".replace("\n", newline)
    read = """
      const [sent, size] = arguments, bytes = new TextEncoder().encode(sent), found = [];
      const body = new ReadableStream({ start(to) {
        for (let i = 0; i < bytes.length; i += size) to.enqueue(bytes.slice(i, i + size));
        to.close();
      } });
      return (async () => { for await (const one of chunks(new Response(body))) found.push(one); return found; })();
    """
    assert browser.run(read, sent, size) == events


@needs_driver
def test_enter_that_chooses_a_character_sends_nothing(browser, server):
    browser.run(
        """const field = document.getElementById("prompt");
        field.value = "に";
        field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true }));"""
    )
    assert browser.run("return document.getElementById('prompt').value") == "に"
    assert texts(browser, "#turns > li") == []


@needs_driver
def test_a_tab_that_keeps_nothing_still_talks(browser, server):
    browser.run("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); };")
    say(browser, "Hi")
    finished(browser)
    assert texts(browser, ANSWERS) == ["Hello there."]
    assert "a reload will lose it" in texts(browser, "#notice")[0]


@needs_driver
def test_a_server_that_is_gone_is_told_in_words(browser, server):
    browser.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'));")
    say(browser, "Hi")
    finished(browser)
    assert "The server cannot be reached." in texts(browser, ".error")[0]


@needs_driver
def test_an_answer_is_one_at_a_time(browser, server):
    gate = threading.Event()
    server.script = [chunk("A", "A _"), gate, chunk(finish="stop")]
    say(browser, "one")
    browser.until("document.querySelector('.canvas .cell')")
    say(browser, "two")
    assert browser.run("return document.getElementById('prompt').value") == "two"
    assert texts(browser, ".user button") == []  # nothing is changed meanwhile
    gate.set()
    finished(browser)
    assert len(server.asked) == 1
