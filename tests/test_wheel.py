"""What is handed out: a source distribution, and a wheel that is built from it and works outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")

ROOT = Path(__file__).parents[1]
DATA = {".pyi", ".json", ".yaml", ".xml", ".html", ".css", ".safetensors", ".typed"}


def tracked(*places: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *places], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\n")) - {""}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Source distribution and wheel, of a copy of what is tracked, so that nothing is left in the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: which files belong to the project is not known")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("out")
    for name in tracked(
        "torchrl_pwm", "tests/test_wheel.py", "pyproject.toml", "README.md", "LICENSE", "SECURITY.md", "MANIFEST.in"
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == tracked("torchrl_pwm")
    assert {Path(name).suffix for name in package} >= DATA - {".typed"} and "torchrl_pwm/py.typed" in package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    assert b"torchrl-pwm = torchrl_pwm.runs:main" in zipfile.ZipFile(built[0]).read(entry)


def test_the_source_distribution_holds_all_that_a_wheel_is_built_from(built):
    with tarfile.open(built[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names >= {"LICENSE", "README.md", "SECURITY.md", "pyproject.toml", *tracked("torchrl_pwm")}


def test_the_wheel_works_outside_of_the_repository(built, tmp_path):
    pytest.importorskip("hydra")
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(place), str(built[0])], check=True)
    code = "import torchrl_pwm; from torchrl_pwm.modules import QUICKSTART_FILE; print(QUICKSTART_FILE)"
    env = {**os.environ, "PYTHONPATH": str(place)}
    for command in ([sys.executable, "-c", code], [sys.executable, str(place / "bin" / "torchrl-pwm"), "--help"]):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert str(place) in done.stdout or "pretrain" in done.stdout
