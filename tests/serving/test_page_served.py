"""The page over the server that it is the page of: what a person sees is what the engine says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import ENTER, ESCAPE, Browser, needs_driver, wait

from esdllm import Engine
from esdllm.serving.requests import FinishReason
from esdllm.serving.session import Session

pytestmark = [pytest.mark.slow, needs_driver]
QUESTION = "Who are you?"


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session.open(engine, slots=2, length=512) as found:
        yield found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    found = Browser(tmp_path)
    yield found
    found.close()


def test_the_page_says_what_the_engine_says(
    serve: Any, session: Session, engine: Engine, browser: Browser, log: list[Any]
) -> None:
    address = serve(session=session, keys=("sesame",))
    browser.open(f"{address}/")
    browser.until("document.querySelector('#notice button')?.textContent === 'Enter the key'")
    browser.click("#notice button")
    browser.press("sesame", ENTER)
    browser.until("document.getElementById('model-name').textContent === 'small'")
    browser.click("#prompt")
    browser.run(
        """window.states = new Set();
        const note = () => document.querySelectorAll(".cell").forEach((one) => states.add(one.classList[1]));
        new MutationObserver(note).observe(document.body, { childList: true, subtree: true });"""
    )
    browser.press(QUESTION, ENTER)
    browser.until("document.documentElement.dataset.state === 'idle'", 30)
    expected = engine.generate([QUESTION], chat=True)
    assert expected.text is not None
    assert browser.run("return document.querySelector('.answer > .text').textContent") == expected.text[0]
    assert {"masked", "new"} <= set(browser.run("return [...window.states]"))
    facts = browser.run("return document.querySelector('.answer .facts').textContent")
    assert f"{expected.answer_tokens} token" in facts
    assert f"{expected.forwards} forward" in facts
    assert [entry["status"] for entry in log if "chat" in entry.get("path", "")] == [200]
    assert [one for one in browser.complaints() if "401" not in one] == []


def test_stopping_on_the_page_frees_the_slot(serve: Any, session: Session, browser: Browser) -> None:
    browser.open(f"{serve(session=session)}/")
    browser.until("document.documentElement.dataset.ready")
    browser.click("#open-settings")
    browser.run("document.getElementById('settings-form').elements.max_tokens.value = '400'")
    browser.click("#settings-form [type=submit]")
    browser.click("#prompt")
    browser.press(QUESTION, ENTER)
    browser.until("document.querySelector('.canvas .cell')", 30)
    browser.press(ESCAPE)
    wait(lambda: session.state().finished.get(FinishReason.CANCELLED) == 1, "the row is cancelled")
    assert session.state().running == 0
