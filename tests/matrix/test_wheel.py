"""The wheel has only the package, and its extras are optional."""

from __future__ import annotations

import email
import os
import re
import runpy
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import airflow_provider_bankconnect

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "airflow_provider_bankconnect"
EXTRA = {"starlette", "trustme", "uvicorn"}
# `make matrix` sets the wheel that it has installed; otherwise one is built from the tree.
GIVEN = os.environ.get("BANKCONNECT_WHEEL")


def run(*command, **more):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """Return a folder with the sdist of the tree, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("archives")
    # Without isolation the build needs no registry.
    run("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


@pytest.fixture(scope="session")
def wheel(request):
    if GIVEN:
        return Path(GIVEN)
    (built,) = request.getfixturevalue("archives").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="session")
def unpacked(wheel, tmp_path_factory):
    """Unpack the wheel into a folder, as an installation of a pure wheel does."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def info(unpacked):
    (folder,) = unpacked.glob("*.dist-info")
    return folder


@pytest.fixture(scope="session")
def metadata(info):
    return email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))


def test_wheel_has_only_the_package(names):
    tops = {name.partition("/")[0] for name in names}
    assert tops == {PACKAGE, f"{PACKAGE}-{airflow_provider_bankconnect.__version__}.dist-info"}
    ours = [name for name in names if name.startswith(f"{PACKAGE}/")]
    page = f"{PACKAGE}/ui/"
    others = [name for name in ours if not name.endswith((".py", "/py.typed"))]
    copied = rf"{PACKAGE}/(constraints/constraints-[\d.]+-py3\d+\.txt|example_dags/\.airflowignore)"
    assert all(
        re.fullmatch(rf"{page}(templates/\w+\.html|static/[\w-]+\.(css|js|svg))|{copied}", name) for name in others
    ), others
    assert not [name for name in names if re.search(r"(^|/)(tests?|dags|scripts)/|conftest|\.env", name)]


@pytest.mark.skipif(not (ROOT / PACKAGE).exists(), reason="no source tree")
def test_wheel_has_the_whole_package(names):
    files = [path for path in (ROOT / PACKAGE).rglob("*.*") if path.is_file() and path.suffix != ".pyc"]
    tree = {str(path.relative_to(ROOT)) for path in files}
    assert any(name.endswith("overview.html") for name in tree)
    assert tree <= set(names)


@pytest.mark.parametrize(("folder", "kept"), [("example_dags", "dags"), ("constraints", "constraints")])
def test_wheel_has_what_people_copy(folder, kept, unpacked):
    """The files of the tree are their only place: the wheel has them under the package's name."""
    found = {path.name: path.read_bytes() for path in (unpacked / PACKAGE / folder).glob("[!.]*")}
    assert found
    assert found == {path.name: path.read_bytes() for path in (ROOT / kept).glob("[!._]*")}


def test_wheel_has_type_information_and_license(names, info):
    assert f"{PACKAGE}/py.typed" in names
    (license_file,) = info.rglob("LICENSE")
    assert "Apache License" in license_file.read_text(encoding="utf-8")


def test_wheel_is_for_every_python_and_machine(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")


def test_version_is_that_of_the_package(wheel, metadata):
    version = airflow_provider_bankconnect.__version__
    assert metadata["Version"] == version
    assert wheel.name.split("-")[1] == version


def test_metadata_is_complete(metadata):
    assert metadata["Name"] == "airflow-provider-bankconnect"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Framework :: Apache Airflow :: Provider" in metadata.get_all("Classifier")
    assert "https://docs.finbox.in/bank-connect/" in metadata["Project-URL"]
    assert metadata.get_payload().startswith("# ")


def test_description_has_no_link_that_leads_nowhere_on_an_index(metadata):
    text = re.sub(r"^```.*?^```$", "", metadata.get_payload(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)]*)\)|(?:src|href)=\"([^\"]*)\"", text)
    assert targets
    assert {re.match(r"https://|#|", target)[0] for pair in targets for target in pair if target} <= {"https://", "#"}


@pytest.mark.skipif(not find_spec("hatchling"), reason="needs hatchling")
def test_links_of_the_readme_become_absolute_where_there_is_a_repository():
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))
    kept = " [c](#c) [d](https://d)\n```\n[e](e)\n```\n"
    readme = f"[Start](docs/a.rst) [docs/](docs/index.rst) ![b](b.png){kept}"
    assert hook["description"](readme, "https://host/main/") == (
        "[Start](https://host/main/docs/a.rst) [docs/](https://host/main/docs/index.rst) "
        f"![b](https://host/main/b.png){kept}"
    )
    assert hook["description"](readme, None) == f"Start (`docs/a.rst`) docs/ {kept}"


def test_entry_point_names_the_provider_info(info):
    points = ConfigParser()
    points.read(info / "entry_points.txt")
    assert points["apache_airflow_provider"]["provider_info"] == f"{PACKAGE}.get_provider_info:get_provider_info"


def test_requirements_of_extras_are_optional(metadata):
    required = metadata.get_all("Requires-Dist")
    always = {re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" not in line}
    assert "apache-airflow" in always
    assert not always & EXTRA
    assert {re.match(r"[\w.-]+", line)[0] for line in required if "extra == 'sandbox'" in line} >= EXTRA


def test_provider_info_needs_no_other_package(unpacked):
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r}); from {PACKAGE}.get_provider_info import *;"
    # -S: without installed packages. Airflow reads the provider info while it configures itself.
    said = run("-I", "-S", "-c", code + "print(get_provider_info()['package-name'])")
    assert said.strip() == "airflow-provider-bankconnect"


def test_examples_and_constraints_are_found_where_nothing_else_is_installed(unpacked):
    """``pip install --no-deps`` is enough to find the versions to install."""
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r}); from {PACKAGE}.__main__ import main; main(sys.argv[1:])"
    for arguments, path in {
        ("examples", "bankconnect_reports"): "example_dags/bankconnect_reports.py",
        ("constraints", "3.2.2"): f"constraints/constraints-3.2.2-py{sys.version_info[0]}{sys.version_info[1]}.txt",
    }.items():
        said = run("-I", "-S", "-c", code, *arguments)
        assert said.strip() == str(unpacked / PACKAGE / path)


def test_package_works_without_extras_and_does_not_load_the_sandbox(unpacked):
    """Every public module can be imported without the requirements of the sandbox."""
    code = f"""
import sys
sys.path.insert(0, {str(unpacked)!r})
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "trustme":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
for part in ("hooks", "operators", "sensors", "triggers"):
    __import__(f"{PACKAGE}.{{part}}.bankconnect")
import {PACKAGE}, {PACKAGE}.explain, {PACKAGE}.__main__
assert {PACKAGE}.__file__.startswith({str(unpacked)!r})
print(sorted(name for name in sys.modules if name.startswith("{PACKAGE}.sandbox")))
import {PACKAGE}.sandbox
try:
    {PACKAGE}.sandbox.Sandbox
except ImportError as error:
    print(error)
"""
    said = run("-P", "-W", "ignore", "-c", code).splitlines()
    assert said[-2] == "[]"
    assert said[-1] == "The sandbox needs 'trustme': install the package with its extra [sandbox]"


@pytest.mark.skipif(not find_spec("twine"), reason="needs twine")
def test_twine_accepts_the_archives(request, wheel):
    files = [wheel] if GIVEN else request.getfixturevalue("archives").iterdir()
    said = run("-m", "twine", "--no-color", "check", "--strict", *map(str, files))
    assert "PASSED" in said
    assert "WARNING" not in said


@pytest.mark.skipif(not find_spec("check_wheel_contents"), reason="needs check-wheel-contents")
def test_check_wheel_contents_accepts_the_wheel(wheel):
    assert run("-m", "check_wheel_contents", "--no-config", str(wheel)).strip().endswith(": OK")
