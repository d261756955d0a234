"""What TAB offers, asked as a shell asks: names of the store and of the tool, quickly, and never a message."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from curator.storage.store import FORMAT

ROOT = Path(__file__).resolve().parent.parent
KEPT = Path(__file__).parent / "fixtures" / f"store-{FORMAT}"
PROGRAM = Path(sys.executable).with_name("curator")
SHIPPED = {
    "plans": {file.stem for file in (ROOT / "models" / "plans").glob("*.toml")},
    "policies": {file.stem for file in (ROOT / "sql" / "policies").glob("*.sql")},
}
# What is typed, the last word being the one at the cursor, and what is offered.
OFFERED = [
    (["show", ""], {"g0", "g1"}),
    (["diff", "g0", "g"], {"g0", "g1"}),
    (["build-manifest", "--generation", ""], {"0", "1"}),
    (["build-manifest", "--policy", ""], SHIPPED["policies"]),
    (["train", "--recipe", "tiny"], {"tiny-student", "tiny-teacher"}),
    (["evolve", "--plan", ""], SHIPPED["plans"]),
    (["evaluate", "--model", ""], {"student", "teacher"}),
    (["quality", "queue", "--class", ""], {"bar", "disc", "square"}),
]


def asked(*words: str, cwd: Path, **environment: str) -> set[str]:
    """What the program offers in the place of the last word, by the protocol of bash."""
    clean = {name: value for name, value in os.environ.items() if name != "CURATOR_STORE"}
    line = {"COMP_WORDS": " ".join(["curator", *words]), "COMP_CWORD": str(len(words))}
    line["_CURATOR_COMPLETE"] = "complete_bash"
    done = subprocess.run([PROGRAM], cwd=cwd, env=clean | line | environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


@pytest.mark.parametrize(("words", "offered"), OFFERED)
def test_names(words: list[str], offered: set[str]) -> None:
    assert asked(*words, cwd=KEPT) == offered


def test_the_store_is_the_one_that_is_named(tmp_path: Path) -> None:
    assert asked("show", "", cwd=tmp_path) == set()
    assert asked("show", "", cwd=tmp_path, CURATOR_STORE=str(KEPT / "store")) == {"g0", "g1"}
    assert asked("show", "--store", str(KEPT / "store"), "", cwd=tmp_path) == {"g0", "g1"}
    assert asked("show", "--store", "s3://no-such-bucket/store", "", cwd=tmp_path) == set()


def test_a_damaged_store_offers_nothing(tmp_path: Path) -> None:
    shutil.copytree(KEPT / "store", tmp_path / "store")
    for file in (tmp_path / "store" / "manifest_table").glob("*.parquet"):
        file.write_bytes(b"no Parquet")
    assert asked("show", "", cwd=tmp_path) == set()
    (tmp_path / "store" / "store.json").write_text("{}")
    assert asked("evaluate", "--model", "t", cwd=tmp_path) == set()


def test_bash_completes() -> None:
    # The script is what --show-completion prints for the shell that runs it; the last lines are what bash does on TAB.
    script = f"""
        PATH="{PROGRAM.parent}:$PATH"
        eval "$(curator --show-completion)"
        COMP_WORDS=(curator show g) COMP_CWORD=2
        $(complete -p curator | sed 's/.*-F \\([^ ]*\\).*/\\1/') curator g show
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", script], cwd=KEPT, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["g0", "g1"], "")


def test_nothing_slow_is_loaded() -> None:
    code = """
import os, sys
os.environ |= {"_CURATOR_COMPLETE": "complete_bash", "COMP_WORDS": "curator show ", "COMP_CWORD": "2"}
from curator.cli import main
try:
    main()
finally:
    print(*{"torch", "pandas", "matplotlib", "cv2"} & sys.modules.keys(), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=KEPT, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr.strip()) == (["g0", "g1"], "")
