"""Error rates of intervals and verdicts on streams without an effect, with a look after every block.

Blocks are of requests whose rows share a cause that no arm sees; keys come back and keep their taste. 10,000 streams
each in the long tests, a few hundred otherwise. The methods are those of `serving.rollout.sums.evidence` (asymptotic
confidence sequences) and `serving.rollout.sums.outcome` (a normal mixture over groups of keys), in the vectorised form that
`test_the_shortcuts_say_what_the_code_says` holds against the code itself.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from streams import share_of_streams

from pipeline.arrays import F64, Mask
from serving.rollout.guards import PastScores
from serving.rollout.reconcile import Context, Observed, reconcile
from serving.rollout.spec import MIN_BLOCKS, Rollout
from serving.rollout.state import Advance, StepBack, apply, begin
from serving.rollout.sums import selection
from serving.rollout.sums.evidence import Verdict, radius
from serving.rollout.sums.outcome import ARMS, GROUPS, MIXTURE_FRACTION, OutcomeSums, mixture_radius
from serving.rollout.sums.scale import UNITS
from serving.rollout.sums.selection import Selection

ERROR = 0.0125
"""Of one side in the first attempt of a rollout: half of (1 - 0.95) / 2."""
LENGTH = 600
REQUESTS, ROWS, CLICK_RATE = 15, 10, 0.2
SEGMENT = 0.1
SPEC = Rollout.parse(
    "{endpoint: ranker, candidate: {bundle: new}, guards: {}, steps: [{weight: 5, bias_below: 0.05}, "
    "{weight: 100, bias_below: 0.02}]}"
)


def stated(error: float, streams: int) -> float:
    """The most wrong streams that an error allows, with three standard errors of their share."""
    return error + 3 * math.sqrt(error / streams)


def block_streams(rng: np.random.Generator, streams: int, length: int, share: float) -> tuple[F64, F64, F64]:
    """(clicks, candidate, LogLoss difference) `[streams, length]` of blocks whose arms are calibrated and equally good.

    `share` of the requests is of the part that is looked at. Counts are drawn per block: given the causes of its requests,
    clicks are a sum of many, and so is the rest.
    """
    shape = (streams, length)
    requests = rng.binomial(REQUESTS, share, shape) if share < 1 else np.full(shape, REQUESTS)
    predicted = CLICK_RATE * ROWS * requests * (1 + 0.1 * rng.standard_normal(shape))
    # A request's cause: gamma with mean 1, so that the sum over requests is gamma too; clicks given it are Poisson.
    cause = rng.gamma(np.maximum(requests, 1e-9) * 4.0) / np.maximum(requests, 1e-9) / 4.0
    clicks = rng.poisson(predicted * cause).astype(np.float64)
    loss_delta = 0.05 * np.sqrt(ROWS * requests) * (rng.gamma(9.0, 1.0, shape) - 9.0) / 3.0
    return clicks, predicted, loss_delta


def ever_beyond(values: F64, error: float) -> Mask:
    """Whether the lower limit of the mean of values `[streams, t]` exceeds 0 at any look from the first allowed one on."""
    t = np.arange(1, values.shape[1] + 1)
    mean = np.cumsum(values, 1) / t
    spread = np.sqrt(np.maximum(np.cumsum(values * values, 1) - t * mean**2, 0.0) / np.maximum(t - 1, 1))
    wide = np.array([radius(int(n), error) for n in t])
    found: Mask = ((mean - wide * spread) > 0)[:, MIN_BLOCKS - 1 :].any(1)
    return found


def wrong_verdicts(streams: int, length: int, share: float, bound: float, seed: int) -> dict[str, float]:
    """Shares of streams with a bias of exactly the bound that are ever shown to lie within or beyond it."""

    def count(rng: np.random.Generator, n: int) -> F64:
        clicks, calibrated, loss = block_streams(rng, n, length, share)
        above = (1 + bound) * calibrated - (1 + bound) * clicks  # Z+ of a candidate whose bias is the bound
        tests = ((-above, ERROR), (above, ERROR), (-loss, 2 * ERROR), (loss, 2 * ERROR))
        return np.array([float(ever_beyond(values, error).sum()) for values, error in tests])

    shares = share_of_streams(count, streams, seed).tolist()
    return dict(zip(("within", "beyond", "loss within", "loss beyond"), shares, strict=True))


def wrong_effects(streams: int, looks: int, users: float, holdout: float, seed: int) -> F64:
    """Shares of streams without an effect in which one is ever shown, below and above; keys keep their taste for good."""

    def count(rng: np.random.Generator, n: int) -> F64:
        keys = np.stack([rng.poisson(users / GROUPS * share, (n, GROUPS)) for share in (holdout, 1 - holdout)], 2)
        taste = rng.gamma(keys + 1e-12)  # of exponential tastes: a few keys do most of the clicking
        sums = np.zeros((n, GROUPS, 2, 2))
        ever = np.zeros((2, n), np.bool_)
        for _ in range(looks):
            sums[..., 0] += keys
            sums[..., 1] += rng.poisson(0.5 * taste)
            total = sums.sum(1)
            rate = total[..., 1] / total[..., 0]
            apart = (sums[..., 1] - rate[:, None] * sums[..., 0]) / total[:, None, :, 0]
            variance = GROUPS / (GROUPS - 1) * ((apart[..., 1] - apart[..., 0]) ** 2).sum(1)
            mixed = (MIXTURE_FRACTION * rate.mean(1)) ** 2 / variance
            wide = np.sqrt((1 + 1 / mixed) * np.log((1 + mixed) / (2 * ERROR) ** 2) * variance)
            effect = rate[:, 1] - rate[:, 0]
            ever |= np.stack([effect + wide < 0, effect - wide > 0])
        shown: F64 = ever.sum(1).astype(np.float64)
        return shown

    return share_of_streams(count, streams, seed, chunk=250)


def score_ratio_alarms(streams: int, rows: int, seed: int) -> int:
    """Step backs and alarms by the score ratio among windows of as few rows as it is judged on, of arms with equal mean scores."""
    rng = np.random.default_rng(seed)
    usual = float((1 / (1 + np.exp(-rng.normal(-1.65, 1.0, 100_000)))).mean())
    past = PastScores(1.0, usual, usual)
    state, alarms = apply(SPEC, begin(SPEC, 1, 0, 0), Advance(), 0, 0), 0
    for _ in range(streams):
        scores = 1 / (1 + np.exp(-rng.normal(-1.65, 1.0, (2, rows))))  # nothing in common: the widest that it can be
        seen = Observed(
            1, scored_rows=rows, predicted_stable=float(scores[0].sum()), predicted_candidate=float(scores[1].sum())
        )
        decision = reconcile(Context(SPEC, state, seen, 10, 0, None, past=lambda: past))
        alarms += isinstance(decision.event, StepBack) or bool(decision.alarm)
    return alarms


@pytest.mark.parametrize("share", [1.0, SEGMENT], ids=["all", "segment"])
def test_verdicts_at_the_bound_are_wrong_as_rarely_as_stated(share: float) -> None:
    for what, wrong in wrong_verdicts(500, 300, share, 0.02, seed=1).items():
        assert wrong <= stated(2 * ERROR if "loss" in what else ERROR, 500), what


def test_effects_are_not_seen_where_there_is_none() -> None:
    assert max(wrong_effects(250, 40, 20_000, 0.01, seed=2)) <= stated(ERROR, 250)


def test_equal_scores_raise_no_alarm() -> None:
    assert score_ratio_alarms(300, 500, seed=3) == 0


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("share", [1.0, SEGMENT], ids=["all", "segment"])
def test_10_000_null_streams_are_promoted_and_rolled_back_as_rarely_as_stated(share: float) -> None:
    for what, wrong in wrong_verdicts(10_000, LENGTH, share, 0.02, seed=4).items():
        assert wrong <= stated(2 * ERROR if "loss" in what else ERROR, 10_000), what


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("users", "holdout"), [(20_000, 0.01), (2_000, 0.1)])
def test_10_000_hand_overs_without_an_effect_show_one_as_rarely_as_stated(users: float, holdout: float) -> None:
    assert max(wrong_effects(10_000, 30, users, holdout, seed=5)) <= stated(ERROR, 10_000)


@pytest.mark.long
def test_10_000_windows_of_equal_scores_raise_no_alarm() -> None:
    assert score_ratio_alarms(10_000, 500, seed=6) == 0


def test_the_shortcuts_say_what_the_code_says() -> None:
    rng = np.random.default_rng(7)
    clicks, candidate, loss = block_streams(rng, 40, 120, 1.0)
    candidate *= np.linspace(1.0, 1.6, 40)[:, None]
    for stream in range(40):
        lines = np.zeros((120, selection.COLUMNS))
        lines[:, selection.CLICKS], lines[:, selection.CANDIDATE] = clicks[stream], candidate[stream]
        lines[:, selection.LOSS_DELTA], lines[:, selection.ROWS] = loss[stream], REQUESTS * ROWS
        breached = False
        for t in range(MIN_BLOCKS, 121):
            above, _ = Selection(lines[:t]).bias_tests(0.02, ERROR, MIN_BLOCKS)
            breached = breached or above.verdict is Verdict.BREACHED
        z = candidate[stream] - 1.02 * clicks[stream]
        assert breached == bool(ever_beyond(z[None], ERROR)[0])
    sums = OutcomeSums()
    for key in range(2000):
        sums.add(key * 7919, ARMS[key % 3 == 0], 4, float(rng.poisson(2)))
    found, rates = sums.difference(ERROR), [sums.outcome(arm) / sums.requests(arm) for arm in ARMS]
    apart = [(sums.sums[:, a, 1] / UNITS - rates[a] * sums.sums[:, a, 0]) / sums.requests(ARMS[a]) for a in (0, 1)]
    variance = GROUPS / (GROUPS - 1) * float(((apart[1] - apart[0]) ** 2).sum())
    assert found.mean == pytest.approx(rates[1] - rates[0])
    wide = mixture_radius(1 / variance, MIXTURE_FRACTION * sum(rates) / 2, ERROR)
    assert (found.low, found.high) == pytest.approx((found.mean - wide, found.mean + wide))
