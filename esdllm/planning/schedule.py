"""All planning: which positions each step computes, how many each layer keeps, how many a row commits.

Host integers only; imports no torch. A run is walked step by step. What the plan of the next step does not need to know is
never asked for: with one token per step, nothing is read back from the device until the answer is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs

from esdllm.errors import PluginError
from esdllm.plan import Block, Facts, Layout, Moment, Phase, Scope, Step, StepPlan, Window
from esdllm.planning.causal import cut_causal
from esdllm.planning.coming import checked_from, joining_layers, returning_layers
from esdllm.planning.keeping import KeepCounts
from esdllm.planning.past import Past
from esdllm.planning.places import WindowPlaces
from esdllm.planning.planners import Planners
from esdllm.planning.quota import Quota, cut

__all__ = ["Planner"]

_FEWEST = 64
"""columns that a block sees at least, where blocks see one of few numbers of columns"""


@attrs.define(eq=False)
class Planner:
    """Plans one run over one canvas."""

    planners: Planners
    layout: Layout
    n_layers: int
    block_length: int
    delay_eos: bool = False
    early_stop: bool = False
    check_every: int = 8
    head_lengths: int = 4
    """in how many lengths the head computes a block as it is decided; each makes plans of its own"""
    few_sights: bool = False
    """whether a block-causal model's blocks see one of few numbers of columns, some of them hidden, so that they share plans"""
    behind: int = 0
    """hidden columns behind the canvas, with which a short block's window may be filled up to be as long as others"""
    _quotas: list[Quota] | None = attrs.field(default=None, init=False, repr=False)
    _keeps: KeepCounts = attrs.field(init=False, repr=False)
    _places: WindowPlaces = attrs.field(init=False, repr=False)

    @_places.default
    def _places_of_windows(self) -> WindowPlaces:
        return WindowPlaces(self.planners, self.layout)

    @_keeps.default
    def _keeps_of_the_run(self) -> KeepCounts:
        return KeepCounts(self.planners.skip, self.n_layers, self.layout, self.returning)

    def walk(self, read: Callable[[], Facts]) -> Iterator[Step]:
        """Yield the steps of the run; each is to be made before the next is asked for.

        `read` returns the facts after the last step made. It is called only between steps, at most once for each, and
        only where what follows depends on its answer.
        """
        quotas, step = self.quotas(), 0
        learning = self.planners.learning
        learned = () if learning is None else learning.learned
        past = Past(read, [len(row) for row in self.layout.masks], learned)
        scored = self.skip_layers()
        for quota in quotas:
            step = -(-step // self.block_length) * self.block_length
            past.begin(step, quota.masked)
            step_in_block, certain, first = 0, True, None
            while not self._decided(quota, step_in_block, certain, past):
                self._check_progress(quota, step_in_block)
                if self._stops(step, step_in_block, past):
                    return
                self._learn(past)
                first = self._first_undecided(quota, step_in_block, past, first)
                moment = past.moment(step, step_in_block, quota.number, first)
                made = self._filled(self._step(moment, quota, past), quota, past)
                self._keeps.check(made.plan, scored)
                narrow = made.plan.narrow and self.n_layers - 1 not in scored
                decided = self._logits(made.plan, quota, step_in_block, certain, past)
                made = made._replace(plan=made.plan._replace(decided=decided, scored=scored, narrow=narrow))
                doubtful = made.plan.hands_on_fewer or self.delay_eos or quota.reach is not None
                certain = certain and (quota.limit <= 1 or not doubtful)
                past.see(quota.block, made.beyond, quota.within, quota.leads)
                past.note(moment, made.scope, quota.block, made.counts, quota.committed(step_in_block, certain))
                yield made
                step, step_in_block = step + (not quota.leads), step_in_block + 1

    def forecast(self) -> list[Step]:
        """Return the steps of the run as far as they can be told without a device.

        Every step is taken to commit what was planned; one position where the logits decide.
        """
        steps: list[Step] = []
        quotas = {quota.number: quota for quota in self.quotas()}

        def read() -> Facts:
            step, moment = steps[-1], steps[-1].moment
            quota, made = quotas[moment.block], moment.step_in_block + 1
            undecided = max(quota.left[made]) if quota.counts else max(0, max(quota.masked) - made)
            committed = max(step.counts) if quota.counts else 1
            left = max(len(row) for row in self.layout.masks) - len(steps)
            return Facts(
                undecided, committed, leftmost=step.block.stop - 1, finished=False, open=max(1, left + committed)
            )

        for step in self.walk(read):
            steps.append(step)  # noqa: PERF402 - read() looks at the last one
        return steps

    def quotas(self) -> list[Quota]:
        """Return the blocks that hold a mask in any row, with what their steps commit."""
        if self._quotas is None:
            attention = self.layout.attention
            self._quotas = (
                cut(self.planners, self.layout, self.block_length)
                if attention is None
                else cut_causal(self.planners, self.layout, attention, self.block_length)
            )
        return self._quotas

    @property
    def returning(self) -> tuple[int, ...]:
        """The layers at which the skip schedule lets positions back in."""
        return returning_layers(self.planners.returning, self.n_layers)

    @property
    def joining(self) -> tuple[int, ...]:
        """The layers from which a refresh may begin."""
        return joining_layers(self.planners.layered, self.n_layers)

    def skip_layers(self) -> tuple[int, ...]:
        """Return the layers that drop positions at any step: where the scored tensor is worth remembering."""
        lengths = {quota.length for quota in self.quotas()}
        return self._keeps.skip_layers(lengths | {self.block_length} if self.behind else lengths, self.behind)

    def _decided(self, quota: Quota, step_in_block: int, certain: bool, past: Past) -> bool:
        """Return whether the block is decided, asking the device only if the plan leaves a doubt."""
        if step_in_block == 0 or (quota.counts is not None and step_in_block < len(quota.counts)):
            return False
        return (quota.counts is not None and certain) or not past.facts().undecided

    def _stops(self, step: int, step_in_block: int, past: Past) -> bool:
        """Return whether every row has ended, looking every `check_every` steps, and where the facts are known anyway."""
        looks = past.known or step_in_block % self.check_every == 0
        if self.planners.revises and step_in_block > 0:
            return False  # what ends the answer may yet be put back or replaced
        return self.early_stop and step > 0 and looks and past.facts().finished

    def _learn(self, past: Past) -> None:
        """Let a refresh policy that learns have what the refresh before found; asks the device for it."""
        learning = self.planners.learning
        if learning is None or (refreshed := past.refreshed) is None or (drift := past.facts().drift) is None:
            return
        past.learned = tuple(learning.learn(refreshed[0], drift))

    def _first_undecided(self, quota: Quota, step_in_block: int, past: Past, before: bool | None) -> bool | None:
        """Return whether the block's first token is undecided in any row, as was said `before`; None where nobody asked."""
        position = self._places.first_token(quota) - self.layout.logit_shift
        if quota.reach is not None:
            return None
        if before is False or position < quota.block.start:
            return False
        if step_in_block == 0:
            return any(position in row for row in self.layout.masks)
        return past.facts().first_undecided if past.known else None

    def _asked(self, moment: Moment, opens: bool, whole: bool) -> Scope:
        """Return what the refresh policy asks for: a refresh in every layer where the step is to be `whole` for another reason.

        So are those that choose keys, those to whose sight something comes, and those that open a block of attention.
        """
        asked = self.planners.refresh.scope(moment)
        first = checked_from(asked, moment, self.joining, whole)
        return Scope(Window.CANVAS if opens else asked.window, asked.refresh or whole, first)

    def _step(self, moment: Moment, quota: Quota, past: Past) -> Step:
        """Return the step but for what the whole run shares."""
        phase = self.planners.store.phase(moment.step_in_block)
        new = () if quota.suffix is None else past.unseen(quota.block, quota.suffix)
        opens = quota.within is not None and past.begun != quota.within
        window, refresh, first = self._asked(moment, opens, phase is Phase.SELECT or bool(new) or opens)
        quota = self._places.narrowed(window, quota, moment)
        placed = self._places.of(window, refresh, quota, phase, past, new)
        keep, keeps = (placed.size,) * self.n_layers, None
        if not refresh:
            keep, keeps = self._keeps.in_rows(placed.start, placed.size, quota.length, past)
        self._places.check_store(window, placed.size, keep, quota)
        plan = StepPlan(
            placed.size,
            quota.length,
            quota.length,
            keep,
            (),
            phase,
            clamped=placed.clamped,
            narrow=placed.shares
            and keeps is None
            and min(keep) == placed.size > quota.length
            and phase is not Phase.SELECT,
            open=window is Window.OPEN,
            visible=self._visible(quota),
            measured=refresh and moment.step > 0 and self.planners.learning is not None and not opens,
            written=self.layout.attention.write_size if self.layout.attention and placed.spans else None,
            leads=quota.leads,
            returning=self.returning,
            joining=self.joining,
            from_layer=first,
            padded=keeps is not None or bool(quota.reach and self.layout.starts and min(keep) < placed.size),
        )
        return Step(
            plan,
            moment,
            placed.start,
            quota.block,
            quota.at(moment.step_in_block),
            Scope(window, refresh, first),
            reach=quota.reach,
            suffix=quota.suffix,
            beyond=placed.beyond,
            keeps=keeps,
            sight=quota.sight,
            begun=past.begun_at if quota.within is not None and any(past.begun_at) else None,
            borders=self._borders(quota),
        )

    def _borders(self, quota: Quota) -> tuple[int, int]:
        """Return what a block-causal model's mask by query needs; see `Step.borders`."""
        attention, first = self.layout.attention, self.quotas()[0].within
        if attention is None or quota.within is None or first is None:
            return 0, 0
        return (first.start if attention.whole_prompt else 0), quota.within.start

    def _visible(self, quota: Quota) -> int | None:
        """Return the first columns that attention reads; None for all."""
        if quota.sight is not None:
            return max(_FEWEST, 1 << quota.sight.bit_length()) if self.few_sights else quota.sight
        if quota.suffix is None:
            return None
        return quota.suffix[-1] + 1 if quota.suffix else quota.block.stop

    def _filled(self, made: Step, quota: Quota, past: Past) -> Step:
        """Return the step with hidden columns behind its block, as many as a whole one has more; as it is if it cannot."""
        short, plan = self.block_length - quota.length, made.plan
        usual = made.scope.window in (Window.BLOCK, Window.TRAIL) and plan.phase is Phase.ALL
        apart = any(told is not None for told in (made.reach, made.suffix, made.keeps, made.sight))
        if not 0 < short <= self.behind or apart or not usual:
            return made
        window, block = plan.window + short, self.block_length
        keep: tuple[int, ...] | None = (window,) * self.n_layers
        if not made.scope.refresh:
            keep = self._keeps.filled(plan.keep, plan.window, window, block, past)
        if keep is None:
            return made
        skips = keep[-1] < window
        filled = plan._replace(window=window, block=block, keep=keep, narrow=not skips and window > block, padded=skips)
        filler = Block(self.layout.length, self.layout.length + short)
        return made._replace(plan=filled, keeps=(plan.keep,) if skips else None, filler=filler)

    def _logits(self, plan: StepPlan, quota: Quota, step_in_block: int, certain: bool, past: Past) -> int:
        """Return of how many positions of a row the logits are computed: as few as are masked, as far as that is known.

        Rounded up to one of a few lengths, so that a block has not a plan for each step.
        """
        handed = plan.keep[-1] if plan.skips or plan.open else plan.block
        if plan.open or quota.reach is not None or self.planners.revises:
            return handed  # where every row has its own block, or what is decided is looked at again
        if step_in_block == 0:
            masked = max(quota.masked)
        elif quota.counts is not None and certain:
            masked = max(quota.left[step_in_block])
        else:
            masked = past.facts().undecided if past.known else quota.length
        part = -(-quota.length // self.head_lengths)
        return min(handed, max(1, -(-masked // part)) * part)

    def _check_progress(self, quota: Quota, step_in_block: int) -> None:
        """Refuse to go on with a block for which its steps should have sufficed long ago, if each decided anything."""
        planners = self.planners
        most = len(quota.counts or ()) + max(quota.masked) * (1 + planners.revisions) + (planners.edits or 0)
        if step_in_block > most:
            raise PluginError(
                f"the block {tuple(quota.block)} is not decided after {most} steps; an unmasking policy selects a position of "
                "each row that has eligible ones at every step"
            )
