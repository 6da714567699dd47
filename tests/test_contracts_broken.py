"""A component that breaks its kind's contract is told which law, and with what values."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch

from esdllm import (
    Block,
    CacheShape,
    CacheWrite,
    Candidates,
    Catalogue,
    KeyValue,
    Moment,
    Preset,
    Scope,
    Site,
    Window,
)
from esdllm.testing import (
    GEOMETRIES,
    check_attention_backend,
    check_block_schedule,
    check_cache_store,
    check_importance_scorer,
    check_model_family,
    check_preset,
    check_refresh_policy,
    check_skip_schedule,
    check_step_observer,
    check_suite,
    check_token_sampler,
    check_unmasking_policy,
)
from esdllm_backends.attention.eager import EagerAttention
from esdllm_backends.cache.dense import DenseCache, DenseStore
from esdllm_models.families.llada import LladaFamily
from esdllm_models.suite import TinySuite
from esdllm_policies.blocks import FixedBlocks
from esdllm_policies.editing import EditingUnmasking
from esdllm_policies.parallel import CreditUnmasking
from esdllm_policies.refreshing import DualCacheRefresh
from esdllm_policies.sampling import GumbelSampler
from esdllm_policies.unmasking import ThresholdUnmasking, TopKUnmasking

pytestmark = pytest.mark.covers

CATALOGUE = Catalogue.load()


@attrs.frozen
class Scorer:
    """A scorer that does as it is told, wrongly."""

    wrong: str
    site: ClassVar[Site] = "hidden"

    @property
    def keeps_history(self) -> bool:
        return False

    def score(self, view: Any) -> Any:
        match self.wrong:
            case "dtype":
                return view.confidence.double()
            case "nan":
                return view.confidence / 0.0 * 0.0
            case "read":
                return view.confidence + float(view.confidence.max())
            case "branch":
                return view.confidence if view.confidence.sum() > 0 else -view.confidence
            case "in place":
                return view.confidence.mul_(2.0)
            case "chance":
                return torch.rand_like(view.confidence)
            case "place":
                return torch.ones_like(view.confidence).cumsum(1)
            case "batch":
                return view.confidence / (1 + view.confidence.max())
            case "history":
                return (view.x - view.last).float().mean(-1)
        raise NotImplementedError


SCORERS = {
    "dtype": r"returned the score of \(3, 9\) torch.float64; it must be \(3, 9\) torch.float32",
    "nan": "scored NaN",
    "read": "reads the device or makes tensors on another: on the meta device it raised",
    "branch": "reads the device",
    "in place": "changes its input 'confidence'; a kernel is a pure function",
    "chance": "is not deterministic",
    "place": "a score does not go with its position",
    "batch": "a row alone is not the row in its batch",
    "history": "reads view.last though keeps_history is False",
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", SCORERS)
def test_a_scorer_that_breaks_a_law_is_told_which(wrong: str) -> None:
    with pytest.raises(AssertionError, match=SCORERS[wrong]):
        check_importance_scorer(Scorer(wrong))


@attrs.frozen
class BadSampler:
    """A sampler that is surer than the model."""

    inner: GumbelSampler = attrs.field(factory=GumbelSampler)

    def sample(self, view: Any) -> Candidates:
        tokens, confidence = self.inner.sample(view)
        return Candidates(tokens, confidence.sqrt())


@pytest.mark.slow
def test_a_sampler_s_confidence_must_be_the_token_s_probability() -> None:
    with pytest.raises(AssertionError, match="is not the tokens' probability under the unperturbed logits"):
        check_token_sampler(BadSampler())


@attrs.frozen
class Greedy(ThresholdUnmasking):
    """Takes what is not eligible too."""

    def select(self, view: Any) -> torch.Tensor:
        return view.confidence > 0


@attrs.frozen
class Idle(ThresholdUnmasking):
    """Takes nothing."""

    def select(self, view: Any) -> torch.Tensor:
        return torch.zeros_like(view.eligible)


@attrs.frozen
class Short(TopKUnmasking):
    """Plans less than there is to do."""

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        return (1,)


@attrs.frozen
class Sparing(ThresholdUnmasking):
    """Commits less than the block is owed."""

    def select(self, view: Any) -> torch.Tensor:
        return super().select(view._replace(quota=torch.ones_like(view.quota)))


@attrs.frozen
class Stingy(ThresholdUnmasking):
    """Owes the block less than it holds."""

    def block_counts(self, length: int, blocks: int) -> tuple[int, ...] | None:
        return (1, 1)


@attrs.frozen
class Pausing(ThresholdUnmasking):
    """Has steps that owe nothing."""

    def block_counts(self, length: int, blocks: int) -> tuple[int, ...] | None:
        return (length, 0)


@attrs.frozen
class Presuming(EditingUnmasking):
    """Replaces what it may not."""

    def edit(self, view: Any) -> torch.Tensor:
        return view.confidence > 0


@attrs.frozen
class Forgetful(CreditUnmasking):
    """Writes into the memory that it was given."""

    def remember(self, view: Any) -> torch.Tensor:
        return view.memory.add_(1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Greedy(), r"selected .*, \(row, index\), which are not eligible"),
        (Idle(), "a step that selects none never ends"),
        (Short(), r"counts\(2, 1\) = \(1,\) do not suffice for 2"),
        (Forgetful(), "remember changes its input 'memory'"),
        (Sparing(threshold=1.0, steps_per_block=2), r"selected .* in each row; planned are .* eligible"),
        (Stingy(), r"block_counts\(7, 1\) = \(1, 1\) do not suffice for 7"),
        (Pausing(), r"block_counts\(1, 1\) = \(1, 0\); give a tuple of whole numbers above 0, or None"),
        (Presuming(), r"replaces .*, \(row, index\), which are not editable"),
    ],
    ids=["greedy", "idle", "short", "forgetful", "sparing", "stingy", "pausing", "presuming"],
)
def test_an_unmasking_policy_that_breaks_a_law_is_told_which(policy: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_unmasking_policy(policy)


@attrs.frozen
class Skip:
    """A schedule that returns what it is told."""

    counts: Any

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> Any:
        return self.counts(n_layers, window, committed)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (lambda n, w, c: [w] * n, "give a tuple of whole numbers"),
        (lambda n, w, c: (w / 1,) * n, "give a tuple of whole numbers"),
        (lambda n, w, c: (w,), "has 1 counts; give one per layer"),
        (lambda n, w, c: (*(1,) * (n - 1), w), "grows, or begins above the window"),
        (lambda n, w, c: (0,) * n, "keeps nothing"),
        (lambda n, w, c: (w,) * n if c == 0 else (max(1, w - 1),) * n, "drops positions at layers"),
    ],
    ids=["list", "float", "few", "growing", "nothing", "elsewhere"],
)
def test_a_skip_schedule_that_breaks_a_law_is_told_which(counts: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_skip_schedule(Skip(counts))


@attrs.frozen
class Stale(DualCacheRefresh):
    """Begins a run with nothing cached."""

    def scope(self, moment: Moment) -> Scope:
        return Scope(Window.BLOCK, refresh=False)


def test_a_refresh_policy_computes_the_canvas_at_the_first_step() -> None:
    with pytest.raises(AssertionError, match="it computes the canvas and is a refresh, for nothing is cached yet"):
        check_refresh_policy(Stale())


@attrs.frozen
class Gappy(FixedBlocks):
    """Leaves a position out."""

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        return Block(min(start + 1, end - 1), end)


def test_blocks_cover_the_canvas() -> None:
    with pytest.raises(AssertionError, match="a block begins at 0, where all before is decided"):
        check_block_schedule(Gappy())


@attrs.frozen
class Unscaled(EagerAttention):
    """Forgets the square root."""

    def attend(self, queries: torch.Tensor, read: KeyValue) -> torch.Tensor:
        return super().attend(queries * 4.0, read)


@attrs.frozen
class Unpadded(EagerAttention):
    """Reads padding."""

    def attend(self, queries: torch.Tensor, read: KeyValue) -> torch.Tensor:
        return super().attend(queries, read._replace(bias=None, padding=None))


@attrs.frozen
class Elsewhere(EagerAttention):
    """Serves nowhere."""

    def problems(self, spec: Any, device: torch.device, dtype: torch.dtype) -> list[str]:
        return ["it needs a quantum computer"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", [Unscaled(), Unpadded()], ids=["unscaled", "unpadded"])
def test_an_attention_backend_that_is_not_the_formula_is_told_how_far_off(backend: Any) -> None:
    with pytest.raises(AssertionError, match=r"is off by .* from softmax\(q k\^T / sqrt\(D\)\) v"):
        check_attention_backend(backend)


def test_a_backend_that_cannot_serve_here_is_skipped_with_its_reasons() -> None:
    with pytest.raises(
        BaseException, match=r"cannot serve on cpu in torch.float32: it needs a quantum computer"
    ) as raised:
        check_attention_backend(Elsewhere())
    assert raised.typename == "SkipTest"


class Broken(DenseCache):
    """A cache with one fault."""

    fault: ClassVar[str] = ""

    def reset(self) -> None:
        if self.fault != "reset":
            super().reset()

    def update(self, write: CacheWrite) -> KeyValue:
        if self.fault == "late" and write.positions.shape[1] < self._shape.length:  # it writes what it holds already
            held = (self.recall(write.layer, site, write.positions).view_as(write.keys) for site in ("key", "value"))
            write = write._replace(**dict(zip(("keys", "values"), held, strict=True)))
        found = super().update(write)
        return found._replace(bias=None) if self.fault == "padding" else found

    def remember(self, layer: int, positions: torch.Tensor, x: torch.Tensor) -> None:
        super().remember(layer, positions, x.half().float() if self.fault == "lossy" else x)


@attrs.frozen
class BrokenStore(DenseStore):
    """Offers it."""

    fault: str

    def allocate(self, shape: CacheShape) -> DenseCache:
        return type("Faulty", (Broken,), {"fault": self.fault})(shape)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("reset", "of a cache that was reset shows what was written before"),
        ("late", "is off by .* from attention over all that was written"),
        ("padding", r"\(0, 5\) columns of its rows are padding, .* pass on write\.bias and write\.padding"),
        ("lossy", "hidden tensors remembered at layer 1 come back off by"),
    ],
)
def test_a_cache_store_that_breaks_a_law_is_told_which(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_cache_store(BrokenStore(fault))


@attrs.frozen
class Boastful(DenseStore):
    """Takes more than it says."""

    def memory(self, shape: CacheShape) -> Any:
        return attrs.evolve(super().memory(shape), device=8)


def test_a_cache_store_takes_no_more_than_it_told() -> None:
    with pytest.raises(AssertionError, match=r"takes .* bytes, and told of 8"):
        check_cache_store(Boastful())


def test_a_family_is_held_to_its_reference() -> None:
    config = GEOMETRIES["llada"]

    def noisy(tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, config["vocab_size"])

    with pytest.raises(AssertionError, match=r"logits are off by .* from the reference's, more than 0.0001"):
        check_model_family(LladaFamily(), config, reference=noisy)


@attrs.frozen
class Meddling:
    """An observer that writes where it should look."""

    def start(self, tokens: torch.Tensor, spec: Any) -> None:
        """Nothing."""

    def step(self, record: Any) -> None:
        record.confidence.zero_()

    def end(self) -> None:
        """Nothing."""


def test_an_observer_changes_nothing() -> None:
    with pytest.raises(AssertionError, match="changes a record's confidence; copy what is to be changed"):
        check_step_observer(Meddling())


VANILLA = CATALOGUE.preset("vanilla").settings


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        (Preset("two\nlines", VANILLA), "give one line on what it is"),
        (Preset("half", {"skip": "none"}), "is no configuration: no blocks is chosen"),
        (Preset("misspelt", {**VANILLA, "skip": "nnone"}), "is no configuration: unknown skip 'nnone'"),
        (Preset("contradictory", {**VANILLA, "refresh": "dual-cache"}), "cannot be planned: "),
    ],
    ids=lambda value: value.summary.split("\n")[0] if isinstance(value, Preset) else "",
)
def test_a_preset_that_cannot_be_used_is_told_why(preset: Preset, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_preset(preset, CATALOGUE)


@attrs.frozen
class Doubting(TinySuite):
    """Calls its own answers wrong."""

    def correct(self, problem: Any, answer: str) -> bool:
        return False


def test_a_suite_s_own_answers_are_right() -> None:
    with pytest.raises(AssertionError, match="says False of its own answer to problem 0"):
        check_suite(Doubting())


KEPT: list[Any] = []


@attrs.frozen
class Keeping(EagerAttention):
    """A backend that keeps the attention weights, somewhere."""

    where: str = "field"
    kept: list[Any] = attrs.field(factory=list)
    shared: ClassVar[dict[str, Any]] = {}

    def attend(self, queries: torch.Tensor, read: KeyValue) -> torch.Tensor:
        keys = read.keys.repeat_interleave(queries.shape[2] // read.keys.shape[2], dim=2)
        weights = torch.einsum("rnhd,rkhd->rhnk", queries, keys).softmax(-1)
        match self.where:
            case "field":
                self.kept.append(weights)
            case "last":
                self.kept[:] = [weights]
            case "class":
                self.shared["last"] = weights.mean(1)
            case "module":
                KEPT.append((weights, "view of it", weights[0]))
        return super().attend(queries, read)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["field", "last", "class", "module"])
def test_a_backend_that_keeps_its_weights_is_no_pure_function(where: str) -> None:
    with pytest.raises(
        AssertionError, match=r"keeps \d+ bytes of tensors that a call made; a kernel is a pure function"
    ):
        check_attention_backend(Keeping(where))
    KEPT.clear()
    Keeping.shared.clear()


@attrs.frozen
class Remembering(GumbelSampler):
    """A sampler that keeps the last confidences."""

    kept: list[Any] = attrs.field(factory=list)

    def sample(self, view: Any) -> Candidates:
        self.kept[:] = [super().sample(view).confidence]
        return super().sample(view)


def test_a_sampler_that_keeps_what_it_made_is_no_pure_function() -> None:
    with pytest.raises(AssertionError, match="keeps 84 bytes of tensors that a call made"):
        check_token_sampler(Remembering())


@attrs.frozen
class LastToken:
    """A sampler of one token."""

    def sample(self, view: Any) -> Candidates:
        last = torch.full_like(view.positions, view.raw.shape[-1] - 1)
        return Candidates(last, view.logits.softmax(-1)[..., -1])


@pytest.mark.slow
def test_a_sampler_that_may_choose_the_mask_is_told() -> None:
    with pytest.raises(
        AssertionError, match=r"chose a token whose logit is -inf; so the mask token's is, in every run"
    ):
        check_token_sampler(LastToken())


@attrs.frozen
class Adapting:
    """A lawful refresh policy that adapts within a few steps: often while drift is above a bar, rarely below it."""

    bar: float

    @property
    def learned(self) -> tuple[float, ...]:
        return (1.0,)

    def scope(self, moment: Moment) -> Scope:
        due = moment.since_refresh is None or moment.since_refresh >= moment.learned[0]
        return Scope(
            Window.CANVAS if due or not moment.step_in_block else Window.BLOCK, due or not moment.step_in_block
        )

    def learn(self, moment: Moment, drift: Any) -> tuple[float, ...]:
        return (1.0 if drift.block > self.bar else 4.0,)


@pytest.mark.slow
@pytest.mark.parametrize("bar", [0.02, 0.05, 0.1])
def test_a_policy_that_learns_from_the_batch_s_largest_drift_is_lawful(bar: float) -> None:
    check_refresh_policy(Adapting(bar))
