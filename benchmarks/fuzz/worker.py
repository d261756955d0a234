"""A process that runs cases of one target: `python -m fuzz.worker TARGET ENGINE SEED CASES FOLDER`.

The folder gets the input of the running case, which is what ended the process if it ends, the inputs of findings, and
counts.json. ENGINE is "drawn" (hypothesis) or "guided" (atheris, whose corpus begins with the target's seeds).
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_AT_ONCE = 10
# What atheris watches: the tool's own readers, and those of Python's library under them.
_WATCHED = ["curator", "tarfile", "tomllib", "PIL"]


def main() -> None:
    name, engine, seed, cases, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
    if engine == "guided":
        import atheris

        with atheris.instrument_imports(include=_WATCHED):
            from fuzz import targets

            target = targets.named(name)
    else:
        from fuzz import targets

        target = targets.named(name)
    from fuzz.judge import Judge
    from fuzz.world import World

    judge = Judge(target, World(Path(tempfile.mkdtemp(dir=folder))), folder)
    seeds = target.seeds()
    for each in seeds[:30]:  # so that what is loaded late does not count as done by a case
        with suppress(Exception):
            target.call(judge.world, each)
    if target.writes:
        judge.world.fresh()
    judge.world.changes()
    judge.bound()
    if engine == "guided":
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, each in enumerate(seeds):
            (corpus / str(number)).write_bytes(each)

        def one(data: bytes) -> None:
            judge.case(data)
            if judge.cases >= cases:
                end(judge)

        options = [f"-runs={cases}", f"-seed={seed % 2**32 or 1}", "-max_len=20000", "-rss_limit_mb=0", "-timeout=3600"]
        options += ["-verbosity=0", f"-artifact_prefix={folder}/", "-len_control=0"]
        atheris.Setup(["fuzz", *options, str(corpus)], one)
        atheris.Fuzz()
    else:
        draw(judge, seed, cases)
    end(judge)


def draw(judge: object, seed: int, cases: int) -> None:
    """Runs cases that hypothesis draws, ten at once: to begin an example takes longer than many a case."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    from fuzz.judge import Judge

    assert isinstance(judge, Judge)

    @hypothesis.seed(seed)
    @settings(
        max_examples=-(-cases // _AT_ONCE),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(judge.target.strategy(), min_size=_AT_ONCE, max_size=_AT_ONCE))
    def run(inputs: list[bytes]) -> None:
        for data in inputs[: cases - judge.cases]:
            judge.case(data)

    run()


def end(judge: object) -> None:
    """Writes the counts, and ends at once."""
    judge.write()  # type: ignore[attr-defined]
    os._exit(0)


if __name__ == "__main__":
    main()
