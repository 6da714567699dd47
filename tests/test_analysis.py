"""The analysis' laws: its tensors are the engine's, its counts add up, a row is the same in any batch, memory does not grow."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import esdllm
from esdllm import Catalogue, Engine, Model
from esdllm.cli import main
from esdllm.measure.analysis import Analysis, AnalysisInterrupted, analyze
from esdllm.measure.analysis.measures import midranks, pearson, spearman, top_share
from esdllm.measure.analysis.plots import PLOTS, draw
from esdllm.measure.analysis.replay import AGES, confidences, exact_layers, pad, replay
from esdllm.measure.analysis.running import Averages, Histogram, Moments
from esdllm.measure.analysis.tables import markdown, tables
from esdllm.measure.analysis.tally import DISTANCES, GROUPS, Tally, layer_groups
from esdllm.measure.analysis.trajectory import GIVEN, KINDS, Trajectory, decode
from esdllm.plan import Block
from esdllm.runtime.plain import full_logits, hidden_states
from esdllm.runtime.variation import relative_variation

pytestmark = pytest.mark.covers

PROMPTS = [[11, 7, 3, 9, 2], [5], [8, 8, 1]]
ROOM, BLOCK = 12, 8


def engine(model: Model, preset: str = "vanilla", **settings: Any) -> Engine:
    settings = {"gen_length": ROOM, "block_length": BLOCK, "early_stop": False, **settings}
    catalogue = Catalogue.load()
    return Engine.build(model, catalogue.configure(preset, settings=settings), catalogue)


@pytest.fixture(params=["llada", "dream"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


class Deaf:
    """An adapter that reads every token as the same one: nothing ever changes."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self._adapter.embed(torch.zeros_like(tokens))
        return embedded


@pytest.fixture(scope="module")
def still(llada: Model) -> Analysis:
    return analyze(engine(Model(Deaf(llada.adapter))), [[1, 2, 3]])  # type: ignore[arg-type]


# the tensors


def passes(model: Model, rows: list[Trajectory], state: int) -> tuple[list[Any], Any]:
    padded = pad(rows, model.adapter)
    tokens = torch.stack(
        [torch.from_numpy(np.pad(row.canvas(state), (room, 0))) for row, room in zip(rows, padded.padding, strict=True)]
    )
    return list(exact_layers(model.adapter, tokens, padded.positions, padded.bias)), padded


@pytest.mark.parametrize("delay_eos", [False, True])
def test_the_exact_logits_decide_every_token_that_the_engine_committed(model: Model, delay_eos: bool) -> None:
    rows, shift = decode(engine(model, delay_eos=delay_eos), PROMPTS, chat=False), model.spec.logit_shift
    assert [row.states for row in rows] == [ROOM] * len(PROMPTS)
    for state in range(ROOM):
        layers, padded = passes(model, rows, state)
        best = model.adapter.logits(layers[-1].hidden).argmax(-1)
        confidence = confidences(model.adapter, layers[-1].hidden)
        for i, (row, room) in enumerate(zip(rows, padded.padding, strict=True)):
            [column] = np.flatnonzero(row.committed_at == state)
            assert best[i, room + column - shift] == row.tokens[column]
            if not delay_eos:  # then the most confident goes first
                kinds = row.kinds(state)
                masked = np.flatnonzero((kinds == KINDS.index("masked, in block")) | (np.arange(len(kinds)) == column))
                rival = confidence[i, room + torch.from_numpy(masked) - shift].max()
                assert confidence[i, room + column - shift] >= rival - 1e-6


def test_the_exact_layers_are_the_plain_pass(model: Model) -> None:
    [row] = decode(engine(model), PROMPTS[:1], chat=False)
    layers, padded = passes(model, [row], 4)
    tokens = torch.from_numpy(row.canvas(4))[None]
    _, *expected = hidden_states(model.adapter, tokens, padded.positions)
    assert all(sites.hidden.equal(hidden) for sites, hidden in zip(layers, expected, strict=True))
    probability = full_logits(model.adapter, tokens).softmax(-1).amax(-1)
    torch.testing.assert_close(confidences(model.adapter, layers[-1].hidden), probability)


def test_padding_changes_no_tensor(model: Model) -> None:
    rows = decode(engine(model), PROMPTS, chat=False)
    together, padded = passes(model, rows, 3)
    for i, (row, room) in enumerate(zip(rows, padded.padding, strict=True)):
        alone, _ = passes(model, [row], 3)
        for sites, expected in zip(together, alone, strict=True):
            for x, y in zip(sites, expected, strict=True):
                torch.testing.assert_close(x[i, room:], y[0], rtol=1e-4, atol=1e-4)


def test_the_last_canvas_is_what_the_engine_returns(model: Model) -> None:
    one = engine(model, "es-dllm")
    result = one.generate(PROMPTS)
    for i, row in enumerate(decode(one, PROMPTS, chat=False)):
        assert row.canvas(row.states).tolist() == result.tokens[i, -len(row.tokens) :].tolist()
        assert (row.canvas(0) == model.spec.mask_id).sum() == ROOM


# what is counted


def test_every_pair_of_steps_and_position_is_counted_once(model: Model) -> None:
    found = analyze(engine(model), PROMPTS)
    pairs, lengths = len(PROMPTS) * (ROOM - 1), [len(prompt) + ROOM for prompt in PROMPTS]
    assert (found.prompts, found.steps, found.pairs) == (len(PROMPTS), len(PROMPTS) * ROOM, pairs)
    masked = len(PROMPTS) * ROOM * (ROOM - 1) // 2  # after t steps, ROOM - t are left
    assert found.confidence["masked"].distribution.count == masked
    assert found.confidence["answer"].distribution.count == pairs * ROOM
    for change in found.confidence.values():
        assert sum(change.histogram) == change.distribution.count
    for distributions in found.variation.values():
        assert [distribution.count for distribution in distributions] == [pairs * ROOM] * model.spec.n_layers
    positions = sum(lengths) * (ROOM - 1)
    assert sum(means.count for means in found.kinds.values()) == positions
    assert sum(means.count for means in found.distances.values()) == positions
    assert found.kinds["just committed"].count == found.distances["0"].count == pairs
    assert found.kinds["prompt"].count == (ROOM - 1) * sum(map(len, PROMPTS))
    assert found.kinds["masked, in block"].count == found.confidence["block"].distribution.count
    assert found.kinds["masked, in block"].count + found.kinds["masked, later"].count == masked
    layers = sum(layer_groups(model.spec.n_layers) == 0)
    for age in (1, 2, 4, 8):  # one older step, the first
        aged = [e.distribution.count for e in found.drift if (e.site, e.layers, e.age) == ("key", "first", age)]
        assert sum(aged) == layers * sum(lengths)


def test_drift_of_age_one_is_the_variation_between_two_steps(llada: Model) -> None:
    rows = decode(engine(llada), PROMPTS[:1], chat=False)
    _, [first], *_ = replay(llada.adapter, rows)
    for aged, site in enumerate((0, 2, 3)):
        assert np.array_equal(first.stale[1][aged], first.variation[site])


def test_drift_is_measured_at_every_age(llada: Model) -> None:
    rows = decode(engine(llada, gen_length=40), PROMPTS[:1], chat=False)
    ages = [sorted(change.stale) for changes in replay(llada.adapter, rows) for change in changes]
    expected = [[age for age in AGES if age <= t and (t - age) % 16 == 0] for t in range(1, 40)]
    assert ages == expected
    assert sorted({age for found in ages for age in found}) == list(AGES)


def test_where_nothing_changes_all_changes_are_zero(still: Analysis) -> None:
    for change in still.confidence.values():
        assert (change.distribution.mean, change.distribution.q95, change.share_below) == (0.0, 0.0, 1.0)
    distributions = [distribution for distributions in still.variation.values() for distribution in distributions]
    distributions += [entry.distribution for entry in still.drift if entry.distribution.count]
    assert all(
        distribution.mean == distribution.q05 == distribution.median == distribution.q95 == 0.0
        for distribution in distributions
    )
    for means in (*still.kinds.values(), *still.distances.values()):
        assert means.confidence in (0.0, None)
        assert {x for layers in means.variation.values() for x in layers} <= {0.0, None}


def test_what_never_varied_has_no_correlation_and_no_top(still: Analysis) -> None:
    correlations = [one for layers in still.correlation.values() for one in layers]
    assert {one.pearson for one in correlations} == {one.spearman for one in correlations} == {None}
    tops = [one for layers in still.concentration.values() for one in layers]
    assert {one.top_10 for one in tops} == {one.top_25 for one in tops} == {None}


# rows and batches


def compare(found: Any, expected: Any, path: str = "") -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            compare(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            compare(a, b, f"{path}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-3), path
    else:
        assert found == expected, path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "settings"),
    [("vanilla", {}), ("vanilla", {"early_stop": True}), ("vanilla-parallel", {"early_stop": True})],
    ids=["all", "early-stop", "parallel"],
)
def test_a_batch_is_its_rows_pooled(model: Model, preset: str, settings: dict[str, Any]) -> None:
    one = engine(model, preset, **settings)
    together, alone = analyze(one, PROMPTS, batch=3).to_dict(), analyze(one, PROMPTS, batch=1).to_dict()
    for found in (together, alone):  # rounding may move a change into the next bin
        for change in found["confidence"].values():
            change["histogram"] = np.cumsum(change["histogram"])[::10].astype(float).tolist()
    compare(together, alone)


@pytest.mark.parametrize(("stage", "batch", "kept"), [("decoding", 2, 2), ("comparing", 1, 1)])
def test_ctrl_c_keeps_the_batches_that_are_done_and_nothing_of_the_next(
    llada: Model, stage: str, batch: int, kept: int
) -> None:
    def stop(what: str, share: float) -> None:
        if what == stage and share >= 2 / 3:
            raise KeyboardInterrupt

    with pytest.raises(AnalysisInterrupted) as stopped:
        analyze(engine(llada), PROMPTS, batch=batch, watch=stop)
    assert stopped.value.analysis == analyze(engine(llada), PROMPTS[:kept], batch=batch)


def test_ctrl_c_in_the_first_batch_has_nothing_to_keep(llada: Model) -> None:
    def stop(what: str, _: float) -> None:
        if what == "comparing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        analyze(engine(llada), PROMPTS[:2], batch=2, watch=stop)
    assert not isinstance(stopped.value, AnalysisInterrupted)


def test_a_row_ends_with_its_answer(llada: Model) -> None:
    tokens, when = np.array([1, 2, 50, 253, 60, 70]), np.array([GIVEN, GIVEN, 0, 1, 2, 3])
    row = Trajectory(tokens, when, tokens == 253, (Block(2, 6),) * 4, llada.spec.mask_id)
    assert [row.finished(state) for state in range(5)] == [False, False, True, True, True]


def test_kinds_and_distances_of_a_hand_made_run() -> None:
    tokens, when = np.array([1, 2, 50, 253, 60, 70, 80, 90]), np.array([GIVEN, GIVEN, 0, 1, 2, 5, 3, 4])
    row = Trajectory(tokens, when, tokens == 253, (Block(2, 6),) * 6, 254)
    assert row.canvas(2).tolist() == [1, 2, 50, 253, 254, 254, 254, 254]
    names = [KINDS[kind] for kind in row.kinds(3)]
    assert (
        names
        == ["prompt"] * 2 + ["committed", "end of text", "just committed", "masked, in block"] + ["masked, later"] * 2
    )
    assert row.distances(3).tolist() == [4, 3, 2, 1, 0, 1, 2, 3]


# memory


def held(thing: object) -> int:
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, (tuple, list)):
        return sum(8 + held(one) for one in thing)
    return sum(held(one) for one in vars(thing).values()) if isinstance(thing, (Averages, Histogram, Moments)) else 0


@pytest.fixture
def frozen() -> Iterator[None]:
    """What there is already is not looked through again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.usefixtures("frozen")
def test_memory_does_not_grow_with_the_steps(llada: Model) -> None:
    rows = decode(engine(llada, gen_length=66), PROMPTS, chat=False)
    tally, tensors, statistics = Tally(llada.spec), [], []
    for changes in replay(llada.adapter, rows):
        for change in changes:
            tally.add(change)
        del changes
        gc.collect(0)
        tensors.append(sum(x.nbytes for x in gc.get_objects() if type(x) is Tensor))
        statistics.append(sum(map(held, vars(tally).values())))
    assert len(set(statistics)) == 1
    assert statistics[0] > 0
    full = max(tensors[33:48])  # the step before, and two older ones
    assert full > tensors[0]
    assert max(tensors[48:]) <= full


# the arithmetic


def test_correlations_of_small_arrays() -> None:
    x, y = (
        np.array([[1.0, 2.0, 3.0, 4.0]]),
        np.array([[1.0, 3.0, 2.0, 10.0], [4.0, 3.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0]]),
    )
    # by hand: deviations -1.5 -.5 .5 1.5 and -3 -1 -2 6; 4.5 + .5 - 1 + 9 = 13; sqrt(5 * 50)
    np.testing.assert_allclose(pearson(x, y), [[13 / 250**0.5, -1.0, np.nan]])
    np.testing.assert_allclose(spearman(x, y), [[0.8, -1.0, np.nan]])
    np.testing.assert_array_equal(
        midranks(np.array([[7.0, 1.0, 7.0, 0.0], [2.0, 2.0, 2.0, 2.0]])), [[2.5, 1, 2.5, 0], [1.5] * 4]
    )
    np.testing.assert_allclose(spearman(np.array([[7.0, 1.0, 7.0, 0.0]]), x), [[-3 / 22.5**0.5]])


def test_variation_of_a_small_tensor() -> None:
    last, x = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[4.0, 2.0], [0.0, 1e-6]])
    # mean(1, 2) / sqrt(12.5), and 5e-7 / 1e-6 where the last value is 0
    torch.testing.assert_close(relative_variation(x, last), torch.tensor([1.5 / 12.5**0.5, 0.5]), rtol=1e-5, atol=1e-6)


def test_top_share_of_small_arrays() -> None:
    values = np.array([[0.0, 0.0, 8.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [2.0] * 10, [0.0] * 10])
    np.testing.assert_allclose(top_share(values, 0.1), [0.8, 0.1, np.nan])
    np.testing.assert_allclose(top_share(values, 0.25), [1.0, 0.3, np.nan])  # 3 of 10


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**31))
def test_correlation_in_parts_is_that_of_the_whole(parts: list[int], seed: int) -> None:
    random, moments = np.random.default_rng(seed), Moments(2, 3)
    x, y = random.normal(5, 1, (2, 2 + sum(parts))), random.normal(-2, 3, (3, 2 + sum(parts)))
    y[0] += x[1]
    for columns in np.split(np.arange(x.shape[1]), np.cumsum(parts)):
        moments.add(x[:, columns], y[:, columns])
    np.testing.assert_allclose(moments.pearson(), pearson(x, y), atol=1e-9)


def test_a_series_that_never_varied_has_no_correlation() -> None:
    moments = Moments(1, 1)
    for part in (np.full((1, 7), 0.1), np.full((1, 5), 0.1)):
        moments.add(part, np.arange(part.shape[1])[None] * 1.0)
    assert np.isnan(moments.pearson()).all()


def test_quantiles_are_right_to_a_bin() -> None:
    values = np.exp(np.random.default_rng(0).normal(-4, 2, (2, 5000)))
    values[1, :3000] = 0.0
    histogram = Histogram(2)
    for part in np.split(values, 10, axis=1):
        histogram.add(part)
    assert histogram.counts.sum(axis=1).tolist() == [5000, 5000]
    for q, name in ((0.05, "q05"), (0.25, "q25"), (0.5, "median"), (0.75, "q75"), (0.95, "q95")):
        assert getattr(histogram.distribution(0), name) == pytest.approx(np.quantile(values[0], q), rel=0.05)
    assert histogram.distribution(1).median == 0.0
    assert histogram.distribution(1).mean == pytest.approx(values[1].mean())


def test_layers_fall_into_quarters() -> None:
    assert [GROUPS[i] for i in layer_groups(8)] == ["first"] * 2 + ["middle"] * 4 + ["last"] * 2
    assert layer_groups(1).tolist() == [0]
    assert layer_groups(2).tolist() == [0, 2]


# what cannot be analyzed


@pytest.mark.parametrize(
    ("prompts", "settings", "options", "message"),
    [
        ([], {}, {}, "there is no prompt to analyze; give at least one"),
        ([[1]], {}, {"batch": 0}, "batch = 0: give at least 1 prompt at a time"),
        ([[1]], {"cfg_scale": 1.0}, {}, "cfg_scale = 1.0: the analysis recomputes without guidance; set cfg_scale = 0"),
        (
            [[1]],
            {"gen_length": 1},
            {},
            "nothing to compare: every answer took a single step with gen_length = 1; raise it",
        ),
    ],
)
def test_what_cannot_be_analyzed_is_refused(
    llada: Model, prompts: Any, settings: Any, options: Any, message: str
) -> None:
    with pytest.raises(esdllm.EsdllmError, match=message):
        analyze(engine(llada, **settings), prompts, **options)


# what is shown


@pytest.mark.slow
def test_pictures_and_tables_are_made_even_where_nothing_changed(still: Analysis, tmp_path: Any) -> None:
    files = draw(still, tmp_path / "new", "svg", prefix="still-")
    assert [file.name for file in files] == [f"still-{name}.svg" for name in PLOTS]
    assert all(file.read_text().startswith("<?xml") for file in files)
    grids = tables(still)
    assert all(len(row) == len(grid.head) for grid in grids for row in grid.rows)
    layers = [grid for grid in grids if grid.head[0] == "layer"]
    assert [len(grid.rows) for grid in layers] == [still.n_layers] * 2
    assert markdown(grids[1]).splitlines()[2:5] == [
        "| layer | hidden | query | key | value |",
        "| --- | --- | --- | --- | --- |",
        "| 0 | 0 | 0 | 0 | 0 |",
    ]


SHORT = ["--model", "tiny-llada", "--gen-length", "8", "--block-length", "8"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*words: str) -> tuple[int, str, str]:
        code = main(["analyze", *words])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return command


@pytest.mark.slow
def test_the_command_writes_pictures_and_says_what_the_function_says(run: Any, tmp_path: Any) -> None:
    out = tmp_path / "found"
    code, printed, told = run("Sort 3 1 2.", "Who are you?", *SHORT, "--json", "--out", str(out))
    assert code == 0
    assert {file.name for file in out.iterdir()} == {f"{name}.png" for name in PLOTS} | {"analysis.json"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in out.glob("*.png"))
    found = json.loads(printed, parse_constant=pytest.fail)
    assert json.loads((out / "analysis.json").read_text()) == found
    assert (found["model"], found["preset"], found["prompts"]) == ("tiny-llada", "vanilla", 2)
    config = esdllm.DecodeConfig.from_dict(found["config"])
    expected = analyze(
        Engine.build(esdllm.load_model("tiny-llada", "cpu"), config), ["Sort 3 1 2.", "Who are you?"], chat=True
    )
    compare({key: found[key] for key in expected.to_dict()}, expected.to_dict())
    assert f"tiny-llada, preset vanilla: 2 prompts, {expected.pairs} pairs of steps" in told


def test_the_command_prints_a_table_for_people(run: Any) -> None:
    code, printed, _ = run("Sort 3 1 2.", *SHORT)
    assert code == 0
    assert "Change of confidence between steps" in printed
    assert all(kind in printed for kind in ("prompt", "just committed", "masked, in block"))
    assert "…" not in printed


@pytest.mark.slow
def test_prompts_come_from_files_too(run: Any, tmp_path: Any) -> None:
    lines, objects = tmp_path / "prompts.txt", tmp_path / "problems.jsonl"
    lines.write_bytes(b"\xef\xbb\xbfSort 3 1 2.\r\n\r\nWho are you?\n")
    objects.write_text('{"prompt": "Sort 3 1 2.", "answer": "1 2 3"}\n{"prompt": "Who are you?"}\n')
    found = [json.loads(run("--prompts", str(file), *SHORT, "--json")[1]) for file in (lines, objects)]
    assert found[0]["prompts"] == 2
    assert found[0] == found[1] == json.loads(run("Sort 3 1 2.", "Who are you?", *SHORT, "--json")[1])


@pytest.mark.slow
def test_ctrl_c_shows_what_was_found_by_then(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from rich.progress import Progress

    update = Progress.update

    def interrupting(bar: Progress, *words: Any, **facts: Any) -> None:
        update(bar, *words, **facts)
        if facts["completed"] == 50 and facts["description"] == "decoding, %":
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", interrupting)
    words = ("Sort 3 1 2.", "Who are you?", *SHORT, "--batch", "1", "--json", "--out", str(tmp_path))
    code, printed, told = run(*words)
    monkeypatch.undo()
    assert code == 130
    assert "interrupted: this is of 1 of the 2 prompts" in told
    assert json.loads(printed) == json.loads(run("Sort 3 1 2.", *SHORT, "--json")[1])
    assert json.loads((tmp_path / "analysis.json").read_text()) == json.loads(printed)


def test_wrong_words_are_told(run: Any, tmp_path: Any) -> None:
    broken, wrong, empty = (tmp_path / name for name in ("broken.jsonl", "wrong.jsonl", "empty.txt"))
    broken.write_text('{"prompt": "a"}\nnonsense\n')
    wrong.write_text('{"question": "a"}\n')
    empty.write_text("\n")
    cases = {
        (): "there is no prompt; give some in quotes, such as",
        ("--prompts", str(tmp_path / "none.txt")): "none.txt: No such file or directory",
        ("--prompts", str(broken)): "broken.jsonl, line 2: it is not JSON",
        ("--prompts", str(wrong)): 'wrong.jsonl, line 1: it holds no prompt: write {"prompt":',
        ("--prompts", str(empty)): "empty.txt holds no prompt; write one per line",
        ("a", "--format", "gif"): "--format gif: known: pdf, png, svg",
        ("a", "--out", str(empty)): "empty.txt is a file; name a folder",
        ("a", "--out", "/dev/null/found"): "cannot write /dev/null/found/analysis.json: Not a directory; name another",
        ("a", "--preset", "vanila"): "did you mean 'vanilla'?",
        ("a", "--set", "cfg_scale=1.0"): "cfg_scale = 1.0: the analysis recomputes without guidance",
    }
    for words, message in cases.items():
        code, printed, told = run(*words)
        assert (code, printed) == (2, "")
        assert message in told
        assert len(told.splitlines()) == 1 or "cfg" in message


def test_without_matplotlib_the_command_says_what_to_install_before_it_works(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, printed, told = run("a", "--out", str(tmp_path / "found"))
    assert (code, printed, told) == (2, "", 'error: plots need matplotlib: pip install "esdllm[plot]"\n')
    assert not (tmp_path / "found").exists()


def test_distances_cover_any_canvas() -> None:
    lows = [int(name.split("-")[0].rstrip("+")) for name in DISTANCES]
    highs = [int(name.split("-")[-1]) for name in DISTANCES[:-1]]
    assert lows[0] == 0
    assert lows[1:] == [high + 1 for high in highs]
