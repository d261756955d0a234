"""What a target is: bytes to begin with, a strategy that makes others, and the call that reads them.

seeds ----------mutated by atheris, guided by coverage---+
seeds ---mutated by hypothesis, or made from its parts---+--> bytes --call--> accepted, refused, or a finding
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from .world import World

_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


class Target(NamedTuple):
    """One kind of input.

    Attributes:
        name: Of the input.
        seeds: Sound inputs.
        strategy: Makes inputs.
        call: Reads one as the tool does; raises what the tool raises.
        drawn: Cases of hypothesis in a whole run.
        guided: Cases of atheris in a whole run; 0 where the readers are not written in Python.
        writes: Whether accepted inputs change the store.
        every: Cases between two looks at what lies outside.
        own_process: Whether the tool gives such an input to a process of its own, whose end is told as a message.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    strategy: Callable[[], st.SearchStrategy[bytes]]
    call: Callable[[World, bytes], object]
    drawn: int
    guided: int = 0
    writes: bool = False
    every: int = 100
    own_process: bool = False


def mutated(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Sound inputs with a few bytes changed, taken out, put in, repeated or cut off; some as they are."""
    return st.integers(0, 2**64 - 1).map(lambda seed: mutate(random.Random(seed), seeds))


def often(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """The same, in three of four cases where it is put beside another strategy, which takes longer."""
    return st.one_of(*(mutated(seeds) for _ in range(3)))


def mutate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One mutation of one of the inputs."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 5, 9])):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice([1, 2, 4, 8, 16, 64, 512]), len(data) - at)
        match rng.randrange(9):
            case 0 if length:
                data[at] ^= 1 << rng.randrange(8)
            case 1 if length:
                data[at] = rng.randrange(256)
            case 2 | 3:
                size = rng.choice([1, 2, 4, 8])
                number = (rng.choice(_NUMBERS) + rng.choice([-1, 0, 0, 1])) % (1 << 8 * size)
                data[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = rng.randbytes(rng.choice([1, 2, 4, 16]))
            case 6:
                data[at:at] = data[at : at + length] * rng.choice([1, 1, 2, 50])
            case 7:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[at : at + length] = other[start : start + rng.choice([1, 4, 32, 256])]
            case 8 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


ODD_TEXTS = [
    *("", " ", ".", "..", "/", "//", "../../x", "/etc/hostname", "~", "a/b", "-", "--help", "-1", "0", "1e999", "nan"),
    *(
        "null",
        "None",
        "true",
        "'",
        '"',
        "\\",
        ";",
        "`",
        "$x",
        "${HOME}",
        "%s",
        "%00",
        "{0}",
        "*",
        "?",
        "[",
        "a\0b",
        "\0",
    ),
    *("\n", "a\r\nb", "\t", "\x1b[31m", "\x7f", "\u202egpj", "\u200b", "\ufeff", "\ufffd", "\U0001f600", "\u0130"),
    *("\u00df", "e\u0301", "\ud800", "CON", "nul.txt", "store.json", "images", "stored_images", "s3://a/b"),
    *("file:///etc/hostname", "http://127.0.0.1:9/x", "x" * 255, "x" * 256, "x" * 10_000, "\u00fc" * 5_000),
    *("a" + "/a" * 3_000, "cat", "dog", "pool/a.jpg", "first", "outside"),
]


def odd_text() -> st.SearchStrategy[str]:
    """Names and values of all kinds, lone surrogates among them."""
    some = st.text(st.characters(exclude_categories=()), max_size=12)
    return st.one_of(st.sampled_from(ODD_TEXTS), some, st.lists(st.sampled_from(ODD_TEXTS), max_size=3).map("/".join))
