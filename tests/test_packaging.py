"""What is installed: conda and pip the same, every extra, the data files, the documents."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from itertools import chain
from pathlib import Path

import yaml

import tnkit as tn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {name_of(line): line.split("==")[1] for line in lines if line and not line.startswith("#")}


def test_every_requirement_is_pinned_to_a_version_it_allows():
    from packaging.requirements import Requirement

    extras = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *chain(*extras.values())]):
        if requirement.name == "tnkit":
            continue
        version = pinned()[name_of(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"


def test_conda_installs_what_make_does():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, tool, pip = environment["dependencies"]
    assert python == "python=3.11"
    assert tool == "pip"
    makefile = (ROOT / "Makefile").read_text()
    installed = re.search(r"pip install .*(-c constraints\.txt) (-e) '([^']+)'", makefile)
    assert pip["pip"] == [installed[1], f"{installed[2]} {installed[3]}"]
    wanted = set(re.search(r"\[(.+)\]", installed[3])[1].split(","))
    assert wanted == set(PROJECT["optional-dependencies"]) - {"docs"}


def test_the_versions_agree():
    """The version is that of the git tag; without one, the version that pyproject.toml falls back on."""
    assert tn.__version__ == metadata.version("tnkit")
    fallback = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]["fallback_version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == fallback


def test_continuous_integration_runs_the_readmes_test_command():
    assert "make test" in (ROOT / "README.md").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readmes_links_and_pictures_are_there():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", text) + re.findall(r'src="(?!https?://)([^"]+)"', text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_wheel_holds_the_package_its_data_and_its_tests(tmp_path):
    """`make test-wheel` also installs it into an empty environment and runs its tests there."""
    words = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("tnkit-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = "text/data/concepts.tsv text/data/everyday.tsv text/data/openings.tsv text/data/tatoeba.tsv "
    wanted += "text/data/LICENSE "
    wanted += "detection/data/neurons.schema.json explorers/front/app.js explorers/front/app.css testing.py py.typed"
    assert {f"tnkit/{name}" for name in [*wanted.split(), "__init__.pyi", "plots/__init__.pyi"]} <= held
    here = {str(path.relative_to(ROOT)) for path in ROOT.glob("tnkit/**/*.py")}
    assert here <= held
    assert not [name for name in held if not name.startswith(("tnkit/", "tnkit-"))]


def test_every_pin_serves_the_oldest_python_that_is_promised():
    """Debian 12 has Python 3.11.2; a pin that needs a later one sends pip looking through every other version."""
    from packaging.specifiers import SpecifierSet

    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    for name in pinned():
        try:
            wanted = metadata.metadata(name).get("Requires-Python")
        except metadata.PackageNotFoundError:  # of another system, or the demo's
            continue
        assert not wanted or SpecifierSet(wanted).contains(oldest), f"{name} needs Python {wanted}"
