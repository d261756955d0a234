"""README and docs are true: every block is run as it stands, and each command, option, file and target named exists.

    page --blocks--> sh, python, sql, files, in their order --run--> exit codes

A page runs in a folder of its own with a small world: photos/{labeled,holdout}/CLASS, photos/pool, classes.txt, and a
store with two generations. What a page says to this test stands in HTML comments before a block, unseen by readers:

    <!-- setup: COMMAND -->     is run, too; a comment may have many lines
    <!-- exit 1 -->             the exit code of the block, which is 0 otherwise
    <!-- file: mine.sql -->     the block is that file
    <!-- not run: REASON -->    the block cannot be run here; such blocks are counted and printed
    <!-- steps: 150 -->         trainings of this page have so many steps

Other trainings have 10 steps, see `smaller`. A `cd` counts for the blocks behind it. `make` lines are looked up in the
Makefile, `pip install` in pyproject.toml. `make test` runs the pages of QUICK; `make test-docs`, and CI, all of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import forked
import pytest
import typer

from curator import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
QUICK = {"selection.md", "sql.md", "store.md"}
# Blocks of one language that another test runs, as they stand.
ELSEWHERE = {
    ("loader.md", "python"): "test_seams.py",
    ("store.md", "python"): "test_readers.py",
    ("store.md", "sql"): "test_readers.py",
}
LANGUAGES = {"sh", "python", "sql", "toml", "csv", "json", "text"}
RUN = {"sh", "python", "sql"}
MOST_NOT_RUN = 20
ONE = "curator sql \"select min(image_id) from images where split = 'unlabeled'\" --format csv | tail -1"
SHORT = " --set schedule.steps=10 --set schedule.warmup_steps=0 --set schedule.labeled_batch=8"
# Words that a check of options would take for a command of curator.
PROSE = {"is", "does", "and", "for", "writes", "was"}


class Block(NamedTuple):
    """A fenced block, with what the comments before it say."""

    page: str
    line: int
    language: str
    text: str
    setup: str
    file: str | None
    exit_code: int
    not_run: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    text, found, before = page.read_text("utf-8"), [], 0
    for fence in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        between = text[before : fence.start()]
        said = dict.fromkeys(("setup", "file", "exit", "not run"), "")
        for kind, rest in re.findall(r"<!-- (setup|file|exit|not run)\b:?(.*?)-->", between, re.DOTALL):
            said[kind] += rest.strip() + "\n" * (kind == "setup")
        name = page.relative_to(ROOT / "docs" if page.parent != ROOT else ROOT).as_posix()
        line = text.count("\n", 0, fence.start()) + 1
        code = int(said["exit"] or 0)
        found.append(
            Block(name, line, fence[1], fence[2], said["setup"], said["file"] or None, code, said["not run"] or None)
        )
        before = fence.end()
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def smaller(text: str, steps: str) -> str:
    """A block whose trainings are over at once: tiny networks, 10 steps, small batches; the image 42 is there.

    A training of zero steps stays, and so do folds that somebody else trained.
    """
    text = re.sub(r"--image-id (42|I)\b", f"--image-id $({ONE})", text)
    text = re.sub(r"(--recipe|recipes) (efficientnet|resnet50|convnext)[\w-]*-(teacher|student)", r"\1 tiny-\3", text)
    lines = []
    for line in text.split("\n"):
        if "schedule.steps" not in line and "--from" not in line:
            line = re.sub(r"\b(curator (?:train|quality folds))\b", rf"\1{steps}", line)
        if "--engine" not in line:  # the fastest one is found by a trial that takes longer than the work
            line = re.sub(r"\bcurator label\b", "curator label --engine torch", line)
        lines.append(line)
    return re.sub(r"nproc-per-node \d+", "nproc-per-node 2", "\n".join(lines))


@pytest.fixture(scope="session")
def started() -> Iterator[Path]:
    """A folder with the program curator, for PATH, see forked.py."""
    with forked.program(environment(Path("/"))) as folder:
        yield folder


def environment(home: Path, *programs: Path) -> dict[str, str]:
    """As of a user who activated the virtual environment: no store named, one thread for each process."""
    path = [*map(str, programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CURATOR_", "PYTEST_"))}
    return kept | {
        "PATH": os.pathsep.join(path),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
    }


def is_left_out(line: str) -> bool:
    """Lines that install or run the whole of something: they are looked up, not run."""
    return bool(re.match(r"(make|pip install|\. )", line.strip()))


class Page:
    """A page being read: its blocks run one after the other, each where the one before it has gone to."""

    def __init__(self, folder: Path, programs: Path, steps: str) -> None:
        self.folder, self.home, self.steps = folder, folder / "home", steps
        self.home.mkdir()
        self.environment = environment(self.home, programs)

    def execute(self, block: Block) -> None:
        """Runs a block, and what is to be set up before it."""
        if block.setup:
            self._shell(block, block.setup, 0)
        if block.file is not None:
            file = self.folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, "utf-8")
        elif block.not_run is not None or (block.page, block.language) in ELSEWHERE:
            return
        elif block.language == "sh":
            lines = [line for line in block.text.split("\n") if not is_left_out(line)]
            self._shell(block, "\n".join(lines), block.exit_code)
        elif block.language == "python":
            # what is closed when it is collected is the libraries' affair
            warnings = ["-W", "error", "-W", "ignore::ResourceWarning"]
            self._run(block, [sys.executable, *warnings, "-c", block.text], block.exit_code)
        elif block.language == "sql":
            self._run(block, ["curator", "sql", block.text], block.exit_code)

    def _shell(self, block: Block, script: str, code: int) -> None:
        script = f"trap 'pwd > $HOME/pwd' EXIT\n{smaller(script, self.steps)}"
        self._run(block, ["bash", "-euo", "pipefail", "-c", script], code)

    def _run(self, block: Block, command: list[str], code: int) -> None:
        place = self.home / "pwd"
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=place.read_text("utf-8").strip() if place.exists() else self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=900,
        )
        print(f"{block.where}: {time.monotonic() - began:.1f} s")
        told = f"{block.where}: exit code {done.returncode}, not {code}\n{command[-1]}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, told
        assert "Traceback" not in done.stderr, told


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that each page gets a copy of, made by the commands of a first day."""
    from pictures import picture, write

    root = tmp_path_factory.mktemp("docs") / "world"
    names = ("cat", "dog", "owl")
    for label, name in enumerate(names):
        for split, count, first in (("labeled", 8, 0), ("holdout", 8, 1000)):
            for i in range(count):
                write(root / "photos" / split / name / f"{i}.png", picture(label, first + i))
        for i in range(20):
            write(root / "photos" / "pool" / f"{3 * i + label:04d}.png", picture(label, 2000 + i))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
    script = """
        curator init --classes classes.txt
        curator add-images photos/labeled --split labeled --labels folder
        curator add-images photos/pool --split unlabeled
        curator add-images photos/holdout --split holdout --labels folder
        curator train --recipe tiny-teacher --name teacher --set schedule.steps=80 --set schedule.labeled_batch=16
        curator label --model teacher
        curator build-manifest g0-300 --per-class 300 --min-confidence 0.1
        curator train --recipe tiny-student --manifest g0-300 --name student --init teacher
        curator label --model student
        curator build-manifest g1-300 --per-class 300 --min-confidence 0.1
    """
    with contextlib.chdir(root):
        for line in smaller(script, SHORT).strip().split("\n"):
            assert cli.run(shlex.split(line)[1:]) == 0, line
    return root


def marked(page: Path) -> Any:
    """A page as a parameter of the test, named by its path."""
    marks = () if page.name in QUICK else (pytest.mark.long,)
    return pytest.param(page, marks=marks, id=page.relative_to(ROOT).as_posix())


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", [marked(page) for page in PAGES])
def test_page(page: Path, world: Path, started: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "page", symlinks=True)
    told = re.search(r"<!-- steps: (\d+) -->", page.read_text("utf-8"))
    steps = f" --set schedule.steps={told[1]} --set schedule.warmup_steps=10" if told else SHORT
    reader = Page(tmp_path / "page", started, steps)
    for block in blocks(page):
        reader.execute(block)


def test_blocks_are_of_a_known_kind() -> None:
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block.where}: say the language, one of {', '.join(sorted(LANGUAGES))}"
    for page in PAGES:
        text = page.read_text("utf-8")
        assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(blocks(page)), page
        outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        indented = re.search(r"\n\n(    \S.*)", re.sub(r"<!--.*?-->", "", outside, flags=re.DOTALL))
        assert indented is None, f"{page.name}: a block without a fence, {indented and indented[1]}"


def test_few_blocks_are_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    kept = [block for block in BLOCKS if block.not_run is not None]
    ran = sum(block.language in RUN for block in BLOCKS) - len(kept)
    with capsys.disabled():
        print(f"\ndocs: {ran} blocks are run, {len(kept)} are not:")
        print("\n".join(f"  {block.where}: {block.not_run}" for block in kept))
    assert len(kept) <= MOST_NOT_RUN


def commands() -> dict[str, set[str]]:
    """The options of each command, by its words behind "curator"."""
    found: dict[str, set[str]] = {}

    def visit(command: Any, words: str) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            visit(inner, f"{words} {name}".strip())
        if words:
            options = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
            found[words] = options | {"--help", "-h"}

    visit(typer.main.get_command(cli.app), "")
    return found


COMMANDS = commands()


def mentions() -> Iterator[tuple[str, str]]:
    """Every command line of curator, in blocks and in the text: (where, words behind "curator")."""
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        inline = [" ".join(each.split()) for each in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text)]
        lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.split("\n")]
        for line in [*inline, *(line.split(" #")[0] for line in lines)]:
            for said in re.findall(r"(?:^|[;|&] *|\$\(|-m )curator ([a-z].*?)(?=$|[;|&)])", line):
                yield page.name, said


def test_commands_and_options_exist() -> None:
    seen = 0
    for page, said in mentions():
        words = said.split()
        name = " ".join(words[:2]) if words[0] == "quality" else words[0]
        assert name in COMMANDS or words == ["quality"], f"{page}: there is no command '{name}' (curator {said})"
        options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"\"[^\"]*\"|'[^']*'", "", said)))
        unknown = options - COMMANDS.get(name, set())
        assert not unknown, f"{page}: curator {name} has no option {', '.join(unknown)}"
        seen += 1
    assert seen > 200


def test_every_command_is_in_the_docs() -> None:
    told = {" ".join(said.split()[:2]) if said.startswith("quality") else said.split()[0] for _, said in mentions()}
    assert not set(COMMANDS) - told - {"quality"}


def test_targets_and_extras_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    made = installed = 0
    for page in PAGES:
        text = page.read_text("utf-8")
        for target in re.findall(r"(?:^|`)make ([a-z][\w-]*)(?=`|$| +#)", text, re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"
            made += 1
        for names in re.findall(r"pip install '?curator\[([\w,]+)\]", text):
            assert set(names.split(",")) <= set(extras), f"{page.name}: curator[{names}]"
            installed += 1
    assert made > 20
    assert installed > 3


def test_the_table_of_targets() -> None:
    made = re.findall(r"^([a-z][\w-]*):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    rows = re.findall(r"^\| (`make .+?) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(re.findall(r"`make ([\w-]+)`", " ".join(rows))) == sorted(made)


def test_files_and_links_exist() -> None:
    looked, gone = 0, []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:", target):
                path, _, anchor = target.partition("#")
                file = page.parent / path if path else page
                if not file.exists() or (anchor and anchor not in anchors(file)):
                    gone.append(f"{page.name}: {target}")
                looked += 1
        for path in re.findall(r"`((?:docs|benchmarks|curator|sql|app|models|tests)/[\w./-]*)`", text):
            if not (ROOT / path).exists() and "NAME" not in path:
                gone.append(f"{page.name}: {path}")
            looked += 1
    assert not gone, "\n".join(gone)
    assert looked > 100


def anchors(file: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_quoted_commands_can_be_read_by_a_shell() -> None:
    for block in BLOCKS:
        if block.language == "sh":
            shlex.split(block.text, comments=True)
