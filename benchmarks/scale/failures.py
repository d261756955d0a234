"""A labeling by many ranks that die now and then: when it is done, and what was computed twice or waited for.

    rates of measured parts, drawn per rank and part --> work over time --a rank dies--> what is kept, who starts again

Three rules say who starts again:

    together  torchrun --max-restarts: all write what they have and start again; the one that died loses its part
    later     torchrun alone, on several hosts: the host of the one that died stands still, the others finish their
              shares, and then the command is given once more, for what is left
    alone     none of the others notices; the one that died starts again by itself. Not built: what could be gained

A death takes the part that the rank was writing, and the batches that the others had under way. Every start takes the
time to start the processes, to list what is left, and to read which images the parts so far hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PATIENCE = 20  # times the time without failures; who is not done by then is not going to be
_IN_FLIGHT = 2 * 64  # images of a rank: the batch that is computed and the one that is decoded


class Job(NamedTuple):
    """A labeling.

    Attributes:
        images: To label.
        ranks: Processes, each with a GPU.
        host: Ranks of a host.
        rate: Images a second of a rank.
        part: Seconds of work in a part.
        start: Seconds from the command to the first batch, where nothing was labeled before.
        known: Seconds that each part written before adds to that.
        stop: Seconds from a death until the others have ended.
        between: Mean seconds between two deaths of a rank.
    """

    images: float
    ranks: int
    host: int
    rate: float
    part: float
    start: float
    known: float
    stop: float
    between: float


class Outcome(NamedTuple):
    """How a labeling went.

    Attributes:
        seconds: Until it was done; infinite where it was given up.
        deaths: Of ranks.
        twice: Images computed twice, as a share of all.
        waited: Time in which ranks computed nothing, as a share of all ranks' time.
        parts: Parts written.
        slower: `seconds` as a multiple of what the work alone takes.
    """

    seconds: float
    deaths: int
    twice: float
    waited: float
    parts: int
    slower: float


class _Work:
    """What ranks with equal shares do over time, at the speeds of measured parts.

    Attributes:
        finished: Seconds after which each rank has done its share; infinite where that is after `until`.
    """

    def __init__(
        self, job: Job, share: float, ranks: int, speeds: np.ndarray, rng: np.random.Generator, until: float = np.inf
    ) -> None:
        self.share, self._part = share, job.part
        count = int(min(share / (job.rate * job.part * speeds.min()), until / job.part)) + 1
        done = (rng.choice(speeds, (ranks, count)) * job.rate * job.part).cumsum(axis=1)
        self._done = np.concatenate([np.zeros((ranks, 1)), done], axis=1)
        # Where the share ends, within the part in which it does.
        last = np.minimum((self._done < share).sum(axis=1), count) - 1
        each = np.arange(ranks)
        before, after = self._done[each, last], self._done[each, last + 1]
        self.finished = np.where(after < share, np.inf, (last + (share - before) / (after - before)) * job.part)

    def at(self, seconds: np.ndarray, written: bool) -> np.ndarray:
        """Images of each rank after so many seconds of work; of whole parts only, where that is what is asked."""
        place = np.minimum(seconds, self.finished) / self._part
        whole = np.minimum(place.astype(int), self._done.shape[1] - 2)
        each = np.arange(len(place))
        before, after = self._done[each, whole], self._done[each, whole + 1]
        inside = np.minimum(before + (place - whole) * (after - before), self.share)
        return np.where(written & (seconds < self.finished), before, inside)

    def parts(self, seconds: np.ndarray) -> int:
        """Parts that the ranks have written by then, the last of each cut short."""
        return int(np.ceil(np.minimum(seconds, self.finished) / self._part).sum())


def together(job: Job, speeds: np.ndarray, rng: np.random.Generator) -> Outcome:
    """All start again whenever one dies."""
    left, clock, twice, waited, deaths, parts = job.images, 0.0, 0.0, 0.0, 0, 0
    while clock < PATIENCE * job.images / job.ranks / job.rate:
        start = job.start + job.known * parts
        dies = rng.exponential(job.between / job.ranks)
        work = _Work(job, left / job.ranks, job.ranks, speeds, rng, max(dies - start, 0.0))
        if dies >= start + work.finished.max():
            waited += job.ranks * start + (work.finished.max() - work.finished).sum()
            parts += work.parts(work.finished)
            return _outcome(job, clock + start + work.finished.max(), deaths, twice, waited, parts)
        deaths += 1
        clock += dies + job.stop
        waited += job.ranks * (min(dies, start) + job.stop)
        if dies > start:
            worked = np.full(job.ranks, dies - start)
            done, kept = work.at(worked, False), work.at(worked, False)
            dead = rng.integers(job.ranks)
            kept = np.maximum(kept - _IN_FLIGHT * (worked < work.finished), 0)
            kept[dead] = work.at(worked, True)[dead]
            waited += (worked - np.minimum(worked, work.finished)).sum()
            twice += (done - kept).sum()
            left -= kept.sum()
            parts += work.parts(worked) - 1
    return _outcome(job, float("inf"), deaths, twice, waited, parts)


def later(job: Job, speeds: np.ndarray, rng: np.random.Generator) -> Outcome:
    """A host that lost a rank stands still until the others are done, and the command is given again."""
    left, clock, twice, waited, deaths, parts = job.images, 0.0, 0.0, 0.0, 0, 0
    hosts = job.ranks // job.host
    while clock < PATIENCE * job.images / job.ranks / job.rate:
        start = job.start + job.known * parts
        work = _Work(job, left / job.ranks, job.ranks, speeds, rng)
        dies = rng.exponential(job.between, job.ranks) - start
        by_host = np.where(dies < work.finished, dies, np.inf).reshape(hosts, job.host)
        stands = np.repeat(by_host.min(axis=1), job.host)
        worked = np.clip(np.minimum(work.finished, stands), 0, None)
        done, kept = work.at(worked, False), work.at(worked, False)
        stopped = stands < work.finished
        kept = np.maximum(kept - _IN_FLIGHT * stopped, 0)
        first = by_host.argmin(axis=1) + np.arange(hosts) * job.host
        dead = first[np.isfinite(by_host.min(axis=1))]
        kept[dead] = work.at(worked, True)[dead]
        until = worked.max()
        clock += start + until
        waited += job.ranks * start + (until - worked).sum()
        twice += (done - kept).sum()
        left -= kept.sum()
        parts += work.parts(worked) - len(dead)
        deaths += len(dead)
        if not len(dead):
            return _outcome(job, clock, deaths, twice, waited, parts)
        clock += job.stop
        waited += job.ranks * job.stop
    return _outcome(job, float("inf"), deaths, twice, waited, parts)


def alone(job: Job, speeds: np.ndarray, rng: np.random.Generator) -> Outcome:
    """Only the rank that died starts again, and looks at its own parts alone; each keeps its share."""
    share, most = job.images / job.ranks, PATIENCE * job.images / job.ranks / job.rate
    ends, twice, waited, deaths, parts = [], 0.0, 0.0, 0, 0
    for _ in range(job.ranks):
        left, clock, own = share, 0.0, 0
        while left > 0 and clock < most:
            start = job.start + job.known * own
            dies = rng.exponential(job.between)
            work = _Work(job, left, 1, speeds, rng, max(dies - start, 0.0))
            if dies >= start + work.finished[0]:
                clock += start + work.finished[0]
                waited += start
                own += work.parts(work.finished)
                left = 0
                continue
            deaths += 1
            clock += dies + job.stop
            waited += min(dies, start) + job.stop
            if dies > start:
                worked = np.array([dies - start])
                kept = work.at(worked, True)[0]
                twice += work.at(worked, False)[0] - kept
                left -= kept
                own += work.parts(worked) - 1
        ends.append(clock if left <= 0 else np.inf)
        parts += own
    last = max(ends)
    waited += sum(last - end for end in ends) if np.isfinite(last) else 0.0
    return _outcome(job, last, deaths, twice, waited, parts)


def _outcome(job: Job, seconds: float, deaths: int, twice: float, waited: float, parts: int) -> Outcome:
    alone = job.images / job.ranks / job.rate
    return Outcome(
        float(seconds),
        deaths,
        float(twice / job.images),
        float(waited / job.ranks / seconds),
        parts,
        float(seconds / alone),
    )


RULES: dict[str, Callable[[Job, np.ndarray, np.random.Generator], Outcome]] = {
    "together": together,
    "later": later,
    "alone": alone,
}


def simulate(job: Job, rule: str, rates: np.ndarray, seconds: float, runs: int, seed: int = 0) -> list[Outcome]:
    """Runs of a rule, each with deaths of its own.

    Args:
        job: The labeling. Its parts are made of measured ones, drawn at random, as many as last as long.
        rule: One of RULES.
        rates: Of measured parts; only how they differ from their mean counts.
        seconds: How long these took.
        runs: How many.
        seed: Of the first.
    """
    drawn = np.random.default_rng(seed).choice(rates, (1000, max(1, round(job.part / seconds)))).mean(axis=1)
    return [RULES[rule](job, drawn / drawn.mean(), np.random.default_rng([seed, run])) for run in range(runs)]
