"""The source archive makes the wheel, which holds one package with its queries and recipes and works elsewhere."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curator

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ["ant", "bee", "cat", "dog"]
PIP = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "-qq"]


def must(*command: str | Path, cwd: Path) -> str:
    """Run a command that has to succeed; its standard output."""
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=240
    )
    assert done.returncode == 0, f"exit {done.returncode}: {command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source archive of a copy of the sources, so that the checkout gets no build folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    # safe.directory: the checkout may belong to another user than the one who runs the tests.
    git = ["git", "-c", "safe.directory=*"]
    for name in must(*git, "ls-files", "-zco", "--exclude-standard", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    must(sys.executable, "-c", code, out, cwd=source)
    (built,) = out.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the source archive."""
    out = tmp_path_factory.mktemp("wheel")
    must(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, sdist, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and an empty folder to work in."""

    prefix: Path
    work: Path

    @property
    def bin(self) -> Path:
        """The folder of the environment's programs."""
        return self.prefix / ("Scripts" if os.name == "nt" else "bin")

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment with no variables but these."""
        environment = {"PATH": os.defpath, "HOME": str(self.work), "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    def answer(self, *arguments: str) -> dict:
        """The JSON document that a curator command prints, which has to exit 0."""
        done = self.run("curator", *arguments, "--store", "s", "--json")
        assert done.returncode == 0, f"exit {done.returncode}: {arguments}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a fresh environment that sees the third-party packages of the running interpreter.

    They are seen through a .pth file with their folder. Python does not run the .pth files of a folder
    added in that way, so the editable install of curator beside them stays unseen.
    """
    prefix = tmp_path_factory.mktemp("environment")
    venv.create(prefix, with_pip=False, symlinks=os.name != "nt")
    inside = Installed(prefix, tmp_path_factory.mktemp("empty"))
    pip = [*PIP, "--python", inside.bin / "python"]
    must(*pip, "install", "--no-deps", "--no-index", wheel, cwd=inside.work)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(must(inside.bin / "python", "-c", code, cwd=inside.work).strip())
    outer = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "outer.pth").write_text("\n".join(outer) + "\n", encoding="utf-8")
    return inside


def test_source_archive(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    patterns = ("curator/**/*.py", "curator/_jpeg.c", "app/*.py", "sql/**/*.sql", "models/**/*.toml", "tests/*.py")
    assert names >= {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    assert names >= {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "constraints-oldest.txt"}
    assert "tests/fixtures/store-2/store/store.json" in names
    # tests of the docs and of benchmarks run from the archive, too, and its pages link to nothing that it lacks
    known = must(
        "git", "-c", "safe.directory=*", "ls-files", "-zco", "--exclude-standard", "docs", "benchmarks", cwd=ROOT
    )
    assert names >= {name for name in known.split("\0") if name and (ROOT / name).is_file()}
    for page in (name for name in names if re.fullmatch(r"[A-Z]+\.md|docs/.*\.md", name)):
        for target in re.findall(r"\]\((?!#)([^)\s#]+)", (ROOT / page).read_text("utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert os.path.normpath(Path(page).parent / target) in names, f"{page}: {target}"
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        about = email.message_from_bytes(archive.read(name))
        assert name.replace("METADATA", "licenses/LICENSE") in archive.namelist()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (about["License-Expression"], about["License-File"]) == ("MIT", "LICENSE")
    assert (about["Version"], about["Author"]) == (curator.__version__, "The curator developers")
    assert set(about.get_all("Provides-Extra", [])) == {*project["optional-dependencies"]}
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {curator.__version__}\n" in citation


def test_the_oldest_releases_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(one for extra in extras.keys() - {"demo", "dev", "test"} for one in extras[extra]),
    ]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)(?:,<.*)?", one).groups() for one in asked if "curator[" not in one)
    oldest, newest = (
        dict(
            line.split("==")
            for line in (ROOT / name).read_text("utf-8").splitlines()
            if "==" in line and ";" not in line
        )
        for name in ("constraints-oldest.txt", "constraints.txt")
    )
    # 5.0 begins with 5.0.0.93
    assert {name: oldest[name] for name in bounds if not f"{oldest[name]}.".startswith(f"{bounds[name]}.")} == {}
    tools = oldest.keys() - bounds.keys() - {"pandas", "pyparsing"}
    assert {name: oldest[name] for name in tools} == {name: newest[name] for name in tools}


def test_wheel_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"curator"}
    assert sum(name.endswith(".dist-info") for name in top) == 1
    assert "curator/py.typed" in names
    tracked = {
        "curator/" + path.relative_to(ROOT).as_posix()
        for pattern in ("sql/**/*.sql", "models/**/*.toml", "app/*.py")
        for path in ROOT.glob(pattern)
    }
    assert {Path(name).suffix for name in tracked} == {".sql", ".toml", ".py"}
    assert tracked <= set(names)


def test_curator_is_the_installed_one(installed: Installed) -> None:
    code = "import curator, numpy; print(curator.__file__); print(numpy.__file__)"
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    curator, numpy = (Path(line).resolve() for line in done.stdout.splitlines())
    assert curator.is_relative_to(installed.prefix.resolve())
    assert numpy == Path(np.__file__).resolve()


def test_queries_and_recipes_are_installed(installed: Installed) -> None:
    code = (
        "from importlib.resources import files\n"
        "for folder, end in (('sql', '.sql'), ('models', '.toml')):\n"
        "    print(sum(entry.name.endswith(end) for entry in files('curator').joinpath(folder).iterdir()))\n"
    )
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    want = [len(list(ROOT.glob(pattern))) for pattern in ("sql/*.sql", "models/*.toml")]
    assert [int(line) for line in done.stdout.split()] == want


def test_the_app_is_installed(installed: Installed) -> None:
    code = (
        "from importlib.resources import files\n"
        "from streamlit.testing.v1 import AppTest\n"
        "from curator.storage.store import Store\n"
        "Store.create('store', ['ant'])\n"
        "page = AppTest.from_file(str(files('curator.app').joinpath('main.py')), default_timeout=30).run()\n"
        "print(files('curator.app'), page.title[0].value, len(page.exception), sep='|')\n"
    )
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    place, title, exceptions = done.stdout.strip().split("|")
    assert Path(place).resolve().is_relative_to(installed.prefix.resolve())
    assert (title, exceptions) == ("Overview", "0")


def test_help(installed: Installed) -> None:
    done = installed.run("curator", "--help")
    assert done.returncode == 0, done.stderr
    for command in ("init", "add-images", "import-labels", "build-manifest"):
        assert command in done.stdout
    assert done.stderr == ""


# What is not there without the extras, and commands that need it.
WITHOUT = """
import json, sys
class Absent:
    gone = {"torch", "torchvision", "timm", "safetensors", "onnx", "onnxruntime", "streamlit", "fsspec", "obstore",
            "tenacity", "pyspark", "sqlglot", "usearch", "tqdm", "mlxtend", "tensorboard"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from curator.cli import run
for command in json.load(sys.stdin):
    print("CODE", run([*command, "--quiet"]), file=sys.stderr)
"""
NEEDS_TORCH = [
    ["train", "--recipe", "tiny-teacher"],
    ["train", "--recipe", "tiny-teacher", "--dry-run"],
    ["label", "--model", "outside"],
    ["evaluate", "--model", "outside"],
    ["quality", "folds", "--recipe", "tiny-teacher"],
    ["evolve", "--plan", "digits"],
]


@pytest.mark.long
def test_without_the_extras(installed: Installed, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "fixtures" / "store-2" / "pool", tmp_path / "pool")
    shutil.copytree(ROOT / "tests" / "fixtures" / "store-2" / "holdout", tmp_path / "holdout")
    uris = [f"pool/{i:04d}.png" for i in range(6)]
    column = pa.array([[0.7, 0.2, 0.1]] * 6, pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris, "probs": column}), tmp_path / "p.parquet")
    data = [
        ["init"],
        ["add-images", "holdout", "--split", "holdout", "--labels", "folder"],
        ["add-images", "pool", "--split", "unlabeled"],
        ["import-labels", "p.parquet", "--generation", "0", "--model", "outside"],
        ["quality", "duplicates"],
        ["build-manifest", "a", "--per-class", "4"],
        ["sql", "select count(*) from a"],
        ["check"],
        ["recipes"],
    ]
    done = subprocess.run(
        [installed.bin / "python", "-c", WITHOUT],
        input=json.dumps([*data, *NEEDS_TORCH, ["manifests", "--store", "s3://bucket/store"]]),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
    )
    codes = [line for line in done.stderr.splitlines() if line.startswith("CODE")]
    assert codes == ["CODE 0"] * len(data) + ["CODE 2"] * (len(NEEDS_TORCH) + 1), done.stderr
    assert done.stderr.count("mend: pip install 'curator[train]'") == len(NEEDS_TORCH)
    assert done.stderr.count("mend: pip install 'curator[s3]'") == 1


@pytest.mark.long
def test_from_listing_to_manifest(installed: Installed) -> None:
    # Four classes: ant has more candidates than the quota, bee is short, cat has only images under the
    # threshold and dog never wins.
    won = [0] * 8 + [1] * 2 + [2] * 3
    top = np.array([0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.7, 0.5, 0.29, 0.28, 0.27])
    probs = np.repeat(((1 - top) / 3)[:, None], 4, axis=1)
    probs[np.arange(13), won] = top
    uris = [f"pool/{i:02d}.jpg" for i in range(13)]
    work = installed.work
    (work / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    pq.write_table(pa.table({"uri": uris, "split": ["unlabeled"] * 13}), work / "list.parquet")
    column = pa.array(list(probs.astype("float32")), pa.list_(pa.float32()))
    pq.write_table(pa.table({"uri": uris, "probs": column}), work / "p.parquet")

    assert "store" in installed.answer("init", "--classes", "classes.txt")
    added = installed.answer("add-images", "list.parquet", "--split", "unlabeled", "--no-scan")
    assert (added["added"], added["already_present"], added["total"]) == (13, 0, 13)
    taken = installed.answer("import-labels", "p.parquet", "--generation", "0", "--model", "outside")
    assert (taken["generation"], taken["images"], taken["rejected"]) == (0, 13, 0)
    built = installed.answer("build-manifest", "a", "--per-class", "5")
    assert built["name"] == "a"
    assert built["unique_images"] == 7
    assert built.keys() >= {"rows", "classes", "short_classes", "empty_classes", "sha256"}

    rows = pq.read_table(work / built["path"]).to_pylist()
    assert [(row["class_name"], row["uri"], row["copies"]) for row in rows] == [
        *(("ant", uri, 1) for uri in uris[:5]),
        ("bee", uris[8], 3),
        ("bee", uris[9], 2),
    ]
    again = installed.answer("build-manifest", "b", "--per-class", "5")
    assert again["sha256"] == built["sha256"]
