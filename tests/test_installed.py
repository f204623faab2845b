"""What is installed: exact versions of the dependencies, complete packages, one version, and no host of a registry."""

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import jaxgen

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "jaxgen").rglob("*.py"))


@cache
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def locked():
    return [Requirement(line) for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_lock_has_one_exact_allowed_version_of_every_dependency(version):
    environment = {"python_version": version, "python_full_version": version + ".0"}
    pins = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(environment):
            (exact,) = pin.specifier
            assert exact.operator == "==" and pin.name.lower() not in pins
            pins[pin.name.lower()] = exact.version
    for line in [*project()["dependencies"], *project()["optional-dependencies"]["test"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), line
    assert "tensorflow" not in " ".join(pins).replace("tensorflow-datasets", "").replace("tensorflow-metadata", "")


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_registry_is_named(name):
    text = (ROOT / name).read_text("utf-8")
    assert not re.search(r"https?://|index-url|--index|find-links|--hash|\bpypi\b", text, re.IGNORECASE)


def test_no_file_names_a_registry_host():
    hosts = re.compile("py" + r"pi\.org|python" + r"hosted\.org|conda\." + r"anaconda\.org|index" + "-url", re.IGNORECASE)
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    texts = [name for name in names if not name.endswith(".png") and name != "tests/test_installed.py"]
    assert len(texts) > 80
    assert not [name for name in texts if hosts.search((ROOT / name).read_text("utf-8", errors="replace"))]


def test_a_folder_named_jaxgen_does_not_hide_the_installed_package(tmp_path):
    """As beside a clone: Python looks into the current folder first, and a folder without __init__.py must not count."""
    (tmp_path / "jaxgen" / "docs").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "import jaxgen; print(jaxgen.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{jaxgen.__version__}\n"), done.stderr


def test_one_version_everywhere():
    assert project()["version"] == jaxgen.__version__
    assert f"version: {jaxgen.__version__}" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {jaxgen.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_packaged_folders_are_complete():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE}
    assert folders == set(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"])
    assert (ROOT / "jaxgen" / "py.typed").exists()
    for test in re.findall(r"tests/\w+\.py", (ROOT / "SECURITY.md").read_text("utf-8")):
        assert (ROOT / test).exists(), test
