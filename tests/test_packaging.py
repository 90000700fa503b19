"""What is handed out: wheel and sdist are built, looked into, and the wheel is installed elsewhere and used.

Without the network: what builds is in the environment of the tests, and so are the dependencies. The new environment
gets links to those that the wheel asks for, and to nothing else: what only an extra brings is not there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement

import rise

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "rise"
NOT_SOURCE = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "tests", "dist", "build", "site", "node_modules")
PLANTED = "nobody else may have this"
SECRETS = (".env", ".rise/secret-key", ".rise-demo/rise.db", "my_bot.py", "tests/test_something.py")
"""What lies in many a working copy."""
IN_SDIST = {"src", "docs", "deploy", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"}
MADE = {"PKG-INFO", "pyproject.toml", ".gitignore"}
PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.req("OPS-5", "EMB-1")


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """From a copy of the tree, with what lies in working copies; the wheel from the sdist, which therefore suffices."""
    if importlib.util.find_spec("build.__main__") is None or importlib.util.find_spec("hatchling") is None:
        pytest.skip("build and hatchling are not installed")
    place = tmp_path_factory.mktemp("built")
    tree = place / "tree"
    shutil.copytree(ROOT, tree, ignore=NOT_SOURCE)
    shutil.copy(ROOT / ".gitignore", tree)
    for name in SECRETS:
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(PLANTED)
    words = ["-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(tree)]
    done = subprocess.run([sys.executable, *words], cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel], [sdist] = place.glob("dist/*.whl"), place.glob("dist/*.tar.gz")
    return Built(wheel, sdist)


def environment(**more: str) -> dict[str, str]:
    """Without this Rise on the path, and without settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RISE_", "PYTHON"))} | more


def files_of(place: Path) -> dict[str, bytes]:
    found = [path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(place.parent).as_posix(): path.read_bytes() for path in found}


# --- what is in it ----------------------------------------------------------------------------------------


def test_the_version_is_said_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/rise/__init__.py"
    assert re.search(rf"^## {re.escape(rise.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_the_wheel_holds_the_package_as_it_is_here_and_nothing_else(built: Built):
    with zipfile.ZipFile(built.wheel) as wheel:
        held = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert held == files_of(PACKAGE)
    assert {"rise/py.typed", "rise/queue/lua/enqueue.lua", "rise/console/pages/layout.html"} <= held.keys()
    assert f"\nVersion: {rise.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


@pytest.mark.slow
@pytest.mark.req("SEC-2")
def test_the_sdist_holds_what_is_named_and_nothing_that_lies_beside_it(built: Built):
    with tarfile.open(built.sdist) as sdist:
        held = {}
        for member in sdist.getmembers():
            file = sdist.extractfile(member)
            held[member.name.partition("/")[2]] = b"" if file is None else file.read()
    assert {name.partition("/")[0] for name in held} == IN_SDIST | MADE
    assert {name: content for name, content in held.items() if name.startswith("src/")} == {
        f"src/{name}": content for name, content in files_of(PACKAGE).items()
    }
    assert {name for name in held if name.startswith("deploy/")} == files_of(ROOT / "deploy").keys()
    assert not [name for name, content in held.items() if PLANTED.encode() in content]


# --- used elsewhere ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """In an environment of its own, used from a directory that is not the repository."""

    bin: Path
    directory: Path

    def run(self, *words: str, **setting: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / words[0], *words[1:]],
            cwd=self.directory,
            env=environment(**setting),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    venv.create(place / "venv", symlinks=True)
    bin = place / "venv" / "bin"
    words = ["--python", str(bin / "python"), "install", "--quiet", "--no-deps", "--no-index", str(built.wheel)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(pip, cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [packages] = place.glob("venv/lib/python*/site-packages")
    asked_for = metadata.Distribution.at(next(packages.glob("rise_gateway-*.dist-info")))
    for distribution in needed(asked_for).values():
        for name in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / name).exists():
                (packages / name).symlink_to(str(distribution.locate_file(name)))
    (place / "elsewhere").mkdir()
    return Installed(bin, place / "elsewhere")


def needed(distribution: metadata.Distribution, extras: Iterable[str] = ()) -> dict[str, metadata.Distribution]:
    """What it needs to run, and what those need, by name."""
    found: dict[str, metadata.Distribution] = {}
    for requirement in map(Requirement, distribution.requires or ()):
        asked = [{"extra": extra} for extra in ("", *extras)]
        applies = requirement.marker is None or any(map(requirement.marker.evaluate, asked))
        if applies and requirement.name not in found:
            another = found[requirement.name] = metadata.distribution(requirement.name)
            found |= needed(another, requirement.extras)
    return found


def quickstart() -> str:
    """The bot of the README."""
    [bot] = re.findall(r"```python\n# my_bot\.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return bot


@contextmanager
def serving(installed: Installed) -> Iterator[str]:
    """`rise serve` as the README says it; its address. It is stopped as a service manager does it."""
    settings = environment(RISE_APP="my_bot.py", RISE_PORT="0", RISE_LOG_LEVEL="error")
    words = [installed.bin / "rise", "serve"]
    with subprocess.Popen(words, cwd=installed.directory, env=settings, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://\S+", said)
            assert found is not None, said
            yield found[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.req("OPS-2", "ENV-5", "CHN-1")
def test_the_wheel_runs_the_quickstart_in_a_directory_that_is_not_the_repository(installed: Installed):
    where = installed.run("python", "-c", "import rise; print(rise.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(installed.bin.parent), where.stdout + where.stderr
    assert installed.run("rise", "--version").stdout == f"rise {rise.__version__}\n"
    for absent in ("redis", "pamqp", "pymongo", "temporalio", "openai", "pytest"):
        assert installed.run("python", "-c", f"import {absent}").returncode == 1, "it comes with an extra"
    (installed.directory / "my_bot.py").write_text(quickstart())
    with serving(installed) as address:
        token = (installed.directory / ".rise" / "admin-token").read_text().strip()
        answer = httpx.post(
            f"{address}/api/workflows/apply",
            json={"userText": "good morning", "metadata": {"chat_id": "42"}, "waitForResult": True},
            headers={"Authorization": f"Bearer {token}"},
            timeout=PATIENCE_SECONDS,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"]["result"]["text"].endswith(", you said: good morning")
        for page in ("/webchat", "/console", "/healthz"):  # what is sent as it is has come with the wheel
            assert httpx.get(f"{address}{page}", follow_redirects=True, trust_env=False).status_code in (200, 401), page
        assert "sign in" in httpx.get(f"{address}/console", follow_redirects=True, trust_env=False).text.lower()
    audit: dict[str, Any] = json.loads(installed.run("rise", "audit", "--json").stdout)
    assert (audit["clean"], audit["accepted"], audit["done"]) == (True, 1, 1)


@pytest.mark.slow
@pytest.mark.req("TST-2", "TST-4")
@pytest.mark.parametrize(
    "words",
    [
        ("rise", "simulate", "--seeds", "1"),
        ("rise", "simulate", "--profile", "full", "--seeds", "1"),
        (
            "python",
            "-c",
            "import rise.testing.faults.drill, rise.testing.telegram.command, rise.testing.bench.run",
        ),
    ],
    ids=["simulate", "simulate full", "imports"],
)
def test_what_is_shipped_for_trying_it_runs_without_the_extras(installed: Installed, words: tuple[str, ...]):
    done = installed.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "setting", "extra"),
    [
        (("rise", "drill", "--profile", "full"), {}, "redis,rabbitmq"),
        (("rise", "bench", "--profile", "full"), {}, "redis,rabbitmq"),
        (("rise", "serve"), {"RISE_REDIS_URL": "redis://127.0.0.1:1"}, "redis"),
        (("rise", "serve"), {"RISE_TEMPORAL_ADDRESS": "127.0.0.1:1"}, "temporal"),
    ],
    ids=["drill", "bench", "redis", "temporal"],
)
def test_what_needs_an_extra_says_which(
    installed: Installed, words: tuple[str, ...], setting: dict[str, str], extra: str
):
    done = installed.run(*words, **setting)
    assert done.returncode == 2
    assert f"pip install 'rise-gateway[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
