"""The page's laws: one file that fetches nothing and shows what the trace says; its script alone, and in a browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import attrs
import numpy as np
import pytest
from runs import Build, prompts

import esdllm
from esdllm import InputError
from esdllm.cli import main
from esdllm.measure.tracing import Trace, page, trace
from esdllm.measure.tracing.pack import LEAST, packed

PROMPT = prompts()[0].tolist()
SCRIPTS = Path(esdllm.__file__).parent / "measure" / "tracing" / "page"
NODE = shutil.which("node")
BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
SHORT = ["--gen-length", "16", "--block-length", "8"]


@pytest.fixture(scope="module")
def build(catalogue, llada, dream) -> Build:
    return Build({"llada-0": llada, "dream-0": dream}, catalogue)


@pytest.fixture(scope="module", params=["llada-0", "dream-0"])
def name(request) -> str:
    return request.param


# the page


def data_of(html: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def two(build) -> list[Trace]:
    """An LLaDA traced twice, with times."""
    return [
        attrs.evolve(trace(build("llada-0", preset), PROMPT, model="random"), name=preset)
        for preset in ("es-dllm", "dual-cache-parallel")
    ]


def test_the_page_fetches_nothing(two):
    html = page(two)
    assert "default-src 'none'" in html
    shell = html.replace(json.dumps(data_of(html)), "")
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:,)""", shell)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|EventSource|import\s*\(|sendBeacon", shell)
    assert {address.rstrip('"') for address in re.findall(r'https?://\S+?"', shell)} <= {"http://www.w3.org/2000/svg"}


def test_no_text_ends_the_element_that_holds_the_data(two):
    evil = "</script><script>alert(1)</script><!--"
    html = page([attrs.evolve(two[0], name=evil, model=evil, prompt=evil, text=evil)])
    assert html.count("</script>") == 2
    assert "<script>alert" not in html
    assert "&lt;/script&gt;" in html  # the title
    assert data_of(html)[0]["prompt"] == evil


def test_a_page_holds_one_trace_or_two(two):
    with pytest.raises(InputError, match="0 traces on a page; give one, or two to compare"):
        page([])
    with pytest.raises(InputError, match="3 traces on a page"):
        page([*two, two[0]])
    with pytest.raises(InputError, match="a run without a step"):
        page([attrs.evolve(two[0], steps=())])


def test_the_page_can_be_read_without_eyes_or_mouse(two):
    html = page(two)
    assert '<html lang="en">' in html
    assert 'name="viewport"' in html
    for control in re.findall(r"<(?:button|input|select)[^>]*>", html.split("<script")[0]):
        assert "aria-label" in control, control
    assert "prefers-color-scheme: dark" in html


def test_the_page_of_a_long_run_is_small(build):
    """256 steps of 32 layers over 400 positions, all of them computed, their variations as uneven as can be."""
    base = trace(build("llada-0", "vanilla"), PROMPT, timed=False)
    made, noise = [], np.random.default_rng(0)
    for i in range(256):
        change = np.exp(noise.normal(-2, 1.2, size=(32, 400))).astype(np.float32)
        step = attrs.evolve(base.steps[i % len(base.steps)], depth=np.full(400, 32), change=change, committed={})
        made.append(step)
    long = attrs.evolve(base, steps=tuple(made), n_layers=32, tokens=np.arange(400))
    assert len(page([long]).encode()) < 5e6


# the page's script, without a browser


def node(script: str, *files: Path) -> Any:
    assert NODE
    names = "".join(
        f"const {{ Trace, stops, ranges, flat, label }} = require({json.dumps(str(file))});" for file in files
    )
    done = subprocess.run([NODE, "-e", names + script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("preset", ["es-dllm", "dual-cache-parallel"])
def test_the_script_reads_what_was_packed(build, name, preset, tmp_path):
    found = trace(build(name, preset), PROMPT, timed=False)
    (tmp_path / "data.json").write_text(json.dumps(packed(found)), encoding="utf-8")
    told = node(
        f"""
        Trace.read(JSON.parse(require("fs").readFileSync({json.dumps(str(tmp_path / "data.json"))}))).then((t) => {{
          const all = (n) => Array.from({{ length: n }}, (_, i) => i);
          console.log(JSON.stringify({{
            canvases: all(t.count + 1).map((n) => [...t.after(n).tokens]),
            guesses: [...t.after(t.count).guesses],
            depth: all(t.count).map((s) => all(t.length).map((p) => t.depth(s, p))),
            states: all(t.count).map((s) => all(t.layers).map((l) => all(t.length).map((p) => t.state(s, p, l)))),
            change: all(t.count).map((s) => all(t.layers).map((l) => all(t.length).map((p) => t.change(s, l, p)))),
            score: all(t.count).map((s) => all(t.layers).map((l) => all(t.length).map((p) => t.score(s, l, p)))),
            candidates: all(t.count).map((s) => t.candidates(s)),
            story: t.story({found.start}),
          }}));
        }});
        """,
        SCRIPTS / "trace.js",
    )
    assert told["canvases"] == [found.canvas(n).tolist() for n in range(len(found.steps) + 1)]
    last = {one.column: one.token for step in found.steps for one in step.candidates}
    assert told["guesses"] == [last.get(column, -1) for column in range(len(found.tokens))]
    _check_numbers(told, found)
    _check_story(told["story"], found)


def _check_numbers(told: Any, found: Trace) -> None:
    for i, step in enumerate(found.steps):
        assert told["depth"][i] == step.depth.tolist()
        for layer in range(found.n_layers):
            fresh = "refreshed" if step.kind == "refresh" else "computed"
            expected = [fresh if d > layer else "skipped" if d else "cached" for d in step.depth]
            assert told["states"][i][layer] == expected
        read = np.array(told["change"][i], dtype=np.float64)
        assert (np.isnan(read) == np.isnan(step.change)).all()
        known = ~np.isnan(read)
        np.testing.assert_allclose(read[known], np.clip(step.change[known], LEAST, 10), rtol=0.11)
        scores = {one.layer: one.importance for one in step.scored}
        for layer in range(found.n_layers):
            row = np.array(told["score"][i][layer], dtype=np.float64)
            expected_row = scores.get(layer, np.full(len(row), np.nan))
            np.testing.assert_allclose(row, expected_row, atol=1e-3)
        for one, expected_one in zip(told["candidates"][i], step.candidates, strict=True):
            assert (one["column"], one["token"]) == (expected_one.column, expected_one.token)
            assert one["confidence"] == pytest.approx(expected_one.confidence, abs=1e-4)


def _check_story(told: Any, found: Trace) -> None:
    column = found.start
    assert told["full"] == [i for i, step in enumerate(found.steps) if step.depth[column] == found.n_layers]
    assert told["committedAt"] == [i for i, step in enumerate(found.steps) if column in step.committed]
    assert told["token"] == found.canvas(len(found.steps))[column]


@needs_node
def test_two_traces_go_by_forwards_or_by_time():
    script = """
      const a = { count: 2, times: [0, 10, 20] }, b = { count: 3, times: [0, 5, 10, 12] };
      console.log(JSON.stringify([stops([a, b], "forwards"), stops([a, b], "time")]));
    """
    forwards, time = node(script, SCRIPTS / "trace.js")
    assert forwards == [[0, 0], [1, 1], [2, 2], [2, 3]]
    assert time == [[0, 0], [0, 1], [1, 2], [1, 3], [2, 3]]


@needs_node
def test_numbers_settings_and_tokens_are_told_in_short():
    script = """
      console.log(JSON.stringify([ranges([1, 2, 3, 7]), ranges([1, 3, 5], 2), flat({a: {b: 1, c: [2]}, d: {}}),
        ["<|endoftext|>", "<|im_start|>", "\\n", "  ", "", " word"].map(label)]));
    """
    few, many, settings, labels = node(script, SCRIPTS / "trace.js")
    assert few == "1-3, 7"
    assert many == "1, 3, and 1 more"
    assert settings == [["a.b", "1"], ["a.c", "[2]"], ["d", "{}"]]
    assert labels == ["∎", "⟨im_start⟩", "↵", "␣␣", "∅", " word"]


# the page in a browser


@pytest.fixture
def browse(tmp_path):
    """Open a page, run a script in it once it is ready, and give what the script returns."""

    def run(html: str, script: str, width: int = 1200, dark: bool = False) -> Any:
        assert BROWSER
        made = f"""<script>
          const errors = [];
          addEventListener("error", (event) => errors.push(event.message));
          (function wait() {{
            if (document.documentElement.dataset.ready === undefined) return setTimeout(wait, 20);
            let said;
            try {{ said = (() => {{ {script} }})(); }} catch (error) {{ errors.push(error.stack); }}
            top.document.body.dataset.said = btoa(encodeURIComponent(JSON.stringify({{ said, errors }})));
          }})();
        </script></body>"""
        inner = html.replace("</body>", made).replace("&", "&amp;").replace('"', "&quot;")
        frame = tmp_path / "frame.html"  # a browser's own window is 500 pixels wide at least
        style = f"width:{width}px;height:900px;border:0"
        frame.write_text(f'<body><iframe srcdoc="{inner}" style="{style}"></iframe>', encoding="utf-8")
        theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [BROWSER, *flags, *theme, "--virtual-time-budget=20000", "--dump-dom", frame.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        found = re.search(r'data-said="([^"]*)"', done.stdout)
        assert found, done.stdout[-2000:] + done.stderr[-2000:]
        told = json.loads(unquote(b64decode(found[1]).decode()))
        assert told["errors"] == []
        return told["said"]

    return run


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


@needs_browser
@pytest.mark.parametrize("width", [340, 390, 768, 1200])
@pytest.mark.parametrize("traces", [1, 2])
def test_the_page_never_scrolls_sideways(two, browse, width, traces):
    long = "a_prompt_without_a_space_" * 30
    html = page([attrs.evolve(one, prompt=long, name=f"{one.name} {long}") for one in two[:traces]])
    script = """
      go(9); select(panels[0].trace.start); document.querySelector("details").open = true;
      return [document.documentElement.scrollWidth, innerWidth];
    """
    scrolled, inner = browse(html, script, width)
    assert scrolled <= inner == width


@needs_browser
def test_the_canvas_shows_the_tokens_of_the_chosen_step(two, browse):
    script = """
      return places.map((_, stop) => { go(stop); return panels[0].chips.map((chip) =>
        [chip.textContent, chip.classList.contains("masked"), chip.classList.contains("committed")]); });
    """
    shown = browse(page(two[:1]), script)
    assert len(shown) == len(two[0].steps) + 1
    for n, chips in enumerate(shown):
        canvas = two[0].canvas(n).tolist()
        assert [masked for _, masked, _ in chips] == [token == two[0].mask for token in canvas]
        assert [text for text, masked, _ in chips if not masked] == [
            two[0].pieces[token] for token in canvas if token != two[0].mask
        ]
        committed = [column for column, (_, _, now) in enumerate(chips) if now]
        assert committed == (sorted(two[0].steps[n - 1].committed) if n else [])


@needs_browser
def test_the_picture_of_the_run_has_a_colour_for_what_was_done(two, browse):
    script = """
      go(3);
      const { run, layers, trace } = panels[0], colours = palette();
      const said = ["computed", "refreshed", "committed", "cached"];
      const names = Object.fromEntries(said.map((one) => [colours[one].join(), one]));
      const read = (cells) => { const x = cells.canvas.getContext("2d").getImageData(0, 0, cells.columns, cells.rows).data;
        return Array.from({ length: cells.rows }, (_, y) => Array.from({ length: cells.columns }, (_, i) =>
          names[[...x.slice(4 * (y * cells.columns + i), 4 * (y * cells.columns + i) + 3)].join()] ?? "skipped")); };
      return { run: read(run), layers: read(layers) };
    """
    found, shown = two[0], browse(page(two[:1]), script)
    for step, row in zip(found.steps, shown["run"], strict=True):
        fresh = "refreshed" if step.kind == "refresh" else "computed"
        expected = ["skipped" if 0 < d < found.n_layers else fresh if d else "cached" for d in step.depth]
        for column in step.committed:
            expected[column] = "committed"
        assert row == expected
    third = found.steps[2]
    for layer, row in enumerate(shown["layers"]):
        assert row == ["computed" if d > layer else "skipped" if d else "cached" for d in third.depth]


@needs_browser
def test_keys_move_steps_and_tokens_and_play(two, browse):
    script = """
      const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      const told = [at.stop];
      for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home"]) { press(key); told.push(at.stop); }
      press("ArrowDown"); press("ArrowDown"); press("ArrowUp");
      const [chosen, focusable] = [".chosen", ".token[tabindex='0']"].map((which) => document.querySelectorAll(which).length);
      press(" ");
      const playing = [named("play").getAttribute("aria-label"), Boolean(at.timer)];
      press(" ");
      return { told, last: places.length - 1, column: at.column, chosen, focusable, playing, stopped: at.timer === null,
        story: panels[0].story.textContent, said: named("slider").getAttribute("aria-valuetext") };
    """
    shown = browse(page(two[:1]), script)
    assert shown["told"] == [1, 2, 3, 2, shown["last"], 0]
    assert shown["last"] == len(two[0].steps)
    assert (shown["column"], shown["chosen"], shown["focusable"]) == (two[0].start, 1, 1)
    assert shown["playing"] == ["Pause", True]
    assert shown["stopped"]
    assert shown["said"] == f"forward 0 of {len(two[0].steps)}"
    when = next(i for i, step in enumerate(two[0].steps) if two[0].start in step.committed) + 1
    assert "Decided as" in shown["story"]
    assert f"at forward {when}." in shown["story"]


@needs_browser
def test_two_traces_stand_side_by_side_under_one_slider(two, browse):
    script = """
      const tops = () => panels.map((panel) => panel.canvas.getBoundingClientRect()).map((box) => [box.left, box.top]);
      go(2);
      const made = panels.map((panel) => panel.made);
      go(places.length - 1);
      const sliders = document.querySelectorAll("[type=range]").length;
      return { tops: tops(), made, last: panels.map((panel) => panel.made), sliders };
    """
    wide, narrow = (browse(page(two), script, width) for width in (1200, 390))
    assert wide["made"] == [2, 2]
    assert wide["last"] == [len(one.steps) for one in two]
    assert wide["sliders"] == 1
    assert wide["tops"][0][1] == wide["tops"][1][1]
    assert wide["tops"][0][0] < wide["tops"][1][0]
    assert narrow["tops"][0][0] == narrow["tops"][1][0]
    assert narrow["tops"][0][1] < narrow["tops"][1][1]


@needs_browser
def test_light_and_dark_are_the_readers_choice_and_legible(two, browse):
    script = """
      const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
      const light = (c) => { const [r, g, b] = c.map((x) => linear(x / 255)); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const paper = rgb(getComputedStyle(document.body).backgroundColor);
      const behind = (element) => { const c = getComputedStyle(element).backgroundColor;
        return /, 0\\)$/.test(c) ? (element.parentElement ? behind(element.parentElement) : paper) : rgb(c); };
      go(3); select(panels[0].trace.start);
      const least = {};
      for (const element of document.querySelectorAll("p, h1, h2, small, td, th, span, button, select, .token")) {
        if (!element.textContent.trim()) continue;
        const [a, b] = [light(rgb(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
        const name = element.tagName + "." + element.className;
        least[name] = Math.min(least[name] ?? 99, (a + 0.05) / (b + 0.05));
      }
      return { paper, low: Object.entries(least).filter(([, ratio]) => ratio < 4.5) };
    """
    light, dark = (browse(page(two[:1]), script, dark=dark) for dark in (False, True))
    assert light["paper"] == [255, 255, 255]
    assert sum(dark["paper"]) < 120
    assert (light["low"], dark["low"]) == ([], [])


# the command


@pytest.mark.slow
def test_the_command_writes_a_page_and_its_numbers(tmp_path, capsys):
    html, numbers = tmp_path / "made" / "out.html", tmp_path / "out.json"
    words = [
        "trace",
        "Sort 3 1 2.",
        *SHORT,
        "--against",
        "dual-cache skip=none",
        "--html",
        str(html),
        "--json",
        str(numbers),
    ]
    assert main(words) == 0
    out, err = capsys.readouterr()
    told, shown = json.loads(numbers.read_text()), data_of(html.read_text())
    assert [one["name"] for one in told] == [one["name"] for one in shown] == ["es-dllm", "dual-cache skip=none"]
    assert out.splitlines() == [f"{one['name']}: {one['text']}" for one in told]
    assert all(one["config"]["gen_length"] == 16 and one["seconds"] > 0 for one in told)
    assert str(html) in err.replace("\n", "")


def test_one_answer_is_alone_on_standard_output(tmp_path, capsys):
    words = [
        "trace",
        "Sort 3 1 2.",
        *SHORT,
        "--no-times",
        "-s",
        "importance.alpha=1.0",
        "--html",
        str(tmp_path / "a.html"),
    ]
    assert main(words) == 0
    out, _ = capsys.readouterr()
    [shown] = data_of((tmp_path / "a.html").read_text())
    assert out == shown["answer"] + "\n"
    assert shown["name"] == "es-dllm importance.alpha=1.0"
    assert shown["seconds"] is None


@pytest.mark.slow
def test_dash_traces_standard_input(tmp_path, monkeypatch, capsys):
    words = [*SHORT, "--no-times", "--html", str(tmp_path / "a.html")]
    assert main(["trace", "Sort 3 1 2.", *words]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("Sort 3 1 2.\n"))
    assert main(["trace", "-", *words]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a trace with nowhere to go; give --html FILE, --json FILE or both"),
        (["--html", "."], ". is a folder; name a file"),
        (["--html", "a.html", "--against", "es-dllm"], "two contenders are named 'es-dllm'"),
        (["--html", "a.html", "--against", "es-dlm"], "es-dlm"),
        (
            ["--html", "a.html", "--device", "meta"],
            "the device 'meta' computes no values, so there is nothing to trace; use cpu or cuda",
        ),
    ],
)
def test_what_cannot_be_traced_is_said_before_the_work(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["trace", "Sort 3 1 2.", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()
