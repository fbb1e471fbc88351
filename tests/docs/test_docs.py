"""The documentation builds without a warning, and its code blocks run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from importlib.metadata import metadata
from pathlib import Path

import pytest
import templates
import yaml
from airflow.providers.common.compat.sdk import DAG
from forks import Forks

from airflow_provider_bankconnect.api import ConnectionSettings
from airflow_provider_bankconnect.get_provider_info import get_provider_info
from airflow_provider_bankconnect.receiver.address import PREFIX
from airflow_provider_bankconnect.sandbox import Sandbox, Statement
from airflow_provider_bankconnect.sandbox.play import read_file

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
BLOCKS = [
    (f"{page.relative_to(DOCS).with_suffix('')}-{number}", language, textwrap.dedent(text).strip())
    for page in sorted(DOCS.rglob("*.rst"))
    for number, (language, text) in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8")), start=1)
]
BASH = [block for _, language, block in BLOCKS if language == "bash"]


def run(command, **more):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **more)


def test_the_documentation_builds_without_a_warning(tmp_path):
    done = run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", str(DOCS), str(tmp_path)])
    assert done.returncode == 0, done.stderr

    assert {page.stem for page in tmp_path.glob("*.html")} >= {"index", "changelog", "security"}
    changelog = (tmp_path / "changelog.html").read_text(encoding="utf-8")
    assert "BankConnectWebhookPayloadSensor" in changelog
    rules = (tmp_path / "sensors" / "bankconnect.html").read_text(encoding="utf-8")
    assert "It passes" in rules
    assert "continues, times out" in rules


def test_a_missing_heading_of_the_readme_is_an_error(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("conf.py", "changelog.rst"):
        (tmp_path / "docs" / name).write_text((DOCS / name).read_text(encoding="utf-8"), encoding="utf-8")
    for name in ("README.md", "CHANGELOG.md", "airflow_provider_bankconnect"):
        (tmp_path / name).symlink_to(ROOT / name)
    index = "Title\n=====\n\n.. readme:: table 1 of A heading that nobody wrote\n\n.. toctree::\n\n   changelog\n"
    (tmp_path / "docs" / "index.rst").write_text(index, encoding="utf-8")

    done = run([sys.executable, "-m", "sphinx", "-W", "-q", str(tmp_path / "docs"), str(tmp_path / "html")])

    assert done.returncode != 0
    assert "README.md has no heading 'A heading that nobody wrote'" in done.stderr


def blocks(chosen):
    return pytest.mark.parametrize(
        "block", [pytest.param(block, id=name) for name, language, block in BLOCKS if chosen(language, block)]
    )


def test_every_code_block_is_run_by_a_test_below():
    texts = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.rst"))
    assert texts.count("code-block::") == len(BLOCKS)
    assert not re.search(r"^(?!\.\. ).*::$", texts, flags=re.MULTILINE)
    commands = {block.split(maxsplit=3)[2] if block.startswith("python") else block.split()[0] for block in BASH}
    assert {language for _, language, _ in BLOCKS} == {"python", "bash", "toml", "yaml", "docker", "nginx"}
    assert commands == {"pip", "airflow", "airflow_provider_bankconnect", "airflow_provider_bankconnect.sandbox"}


@blocks(lambda language, block: language == "python" and "with DAG(" in block)
def test_a_dag_can_be_parsed(block):
    names = {"__name__": "pasted"}
    exec(compile(block, "docs", "exec"), names)  # noqa: S102 - the test is that it runs
    (dag,) = {
        id(value.dag): value.dag for value in names.values() if isinstance(getattr(value, "dag", None), DAG)
    }.values()
    assert dag.task_ids


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Run Python beside a new Airflow database."""
    with Forks(templates.new_home(tmp_path_factory).environment) as forks:
        yield forks


@pytest.fixture
def connection():
    """The variable with a connection to a sandbox that has the customer of the examples."""
    with Sandbox(statements=[Statement(link_id="loan-4711", entity_id="customer-1", transactions=12)]) as box:
        yield {"AIRFLOW_CONN_BANKCONNECT_DEFAULT": box.connection_json}


def commands(block):
    """Return the words of each command of a Bash block, which has nothing but commands."""
    lines = block.replace("\\\n", "").splitlines()
    assert not re.search(r"[$`|;]", block)
    return [shlex.split(line) for line in lines if line.strip()]


@blocks(lambda language, block: language == "python" and "with DAG(" not in block)
def test_a_script_prints_what_it_should(block, forks, connection):
    done = forks.run("-c", block, more=connection)
    if "print(" in block:
        assert re.search("12 transactions|completed|https://localhost", done.stdout)


@blocks(lambda language, block: language == "bash" and "bankconnect explain" in block)
def test_explain_accepts_the_arguments_of_the_pages(block, forks, connection):
    for python, *arguments in commands(block):
        assert python == "python"
        done = forks.run(*arguments, more=connection)
        assert len(re.findall("^(?:PASSED|STILL WAITING): ", done.stdout, flags=re.MULTILINE)) == 1


@blocks(lambda language, block: language == "bash" and "bankconnect.sandbox" in block)
def test_the_sandbox_starts_with_the_shown_options(block):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    command = ["bash", "-c", f"exec {block}"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output = "".join(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
        process.send_signal(signal.SIGINT)
    assert "link loan-1: a statement" in output
    assert "fault: kind status" in output


@blocks(lambda language, _: language == "toml")
def test_the_sandbox_reads_the_shown_file(block, tmp_path):
    (tmp_path / "day.toml").write_text(block, encoding="utf-8")
    statements, faults = read_file(tmp_path / "day.toml")
    assert len(statements) == block.count("[[statement]]")
    assert len(faults) == block.count("[[fault]]")


@blocks(lambda language, block: language == "bash" and "pip install" in block)
def test_pip_installs_this_package_and_its_extras(block):
    ours = metadata("airflow-provider-bankconnect")
    for line in block.splitlines():
        name, extra = re.fullmatch(r"pip install '?([a-z-]+)(?:\[(\w+)\])?'?", line).groups()
        assert name == ours["Name"]
        assert extra is None or extra in ours.get_all("Provides-Extra")


@pytest.mark.system
@blocks(lambda language, block: language == "bash" and block.startswith("airflow "))
def test_the_shown_airflow_command_adds_a_valid_connection(block, forks):
    (command,) = commands(block)
    for _, *arguments in (command, shlex.split("airflow connections get bankconnect_default --output json")):
        done = forks.run("-m", "airflow", *arguments)
    (found,) = json.loads(done.stdout[done.stdout.index("[{") :])
    settings = ConnectionSettings.parse(
        "it", host=found["host"], port=found["port"], password=found["password"], extra=found["extra_dejson"]
    )
    assert found["conn_type"] == "bankconnect"
    assert settings.base_url == "https://apis.bankconnect.finbox.in/bank-connect/v1"
    assert (settings.server_hash, settings.api_key) == ("YOUR-SERVER-HASH", "YOUR-API-KEY")


SETTINGS = get_provider_info()["config"]["bankconnect"]["options"]
SECRETS = {name for name, option in SETTINGS.items() if option.get("sensitive")}
YAML = [document for _, language, block in BLOCKS if language == "yaml" for document in yaml.safe_load_all(block)]


def test_every_setting_that_a_page_names_exists():
    texts = [page.read_text(encoding="utf-8") for page in (*DOCS.rglob("*.rst"), ROOT / "README.md")]
    pattern = r"\[bankconnect\]\s+(\w+)|config\.bankconnect\.(\w+)|AIRFLOW__BANKCONNECT__(\w+)"
    named = {"".join(name).lower() for text in texts for name in re.findall(pattern, text)}
    # Airflow adds these two to each sensitive setting.
    known = SETTINGS.keys() | {name + ending for name in SECRETS for ending in ("_cmd", "_secret")}
    assert named >= {"webhook_token", "public_url"}
    assert named <= known


def test_the_shown_values_keep_the_secrets_out_of_the_configuration_file():
    (values,) = [document for document in YAML if "airflowVersion" in document]
    settings = values["config"]["bankconnect"].keys()
    variables = {entry["envName"] for entry in values["secret"]}
    assert settings <= SETTINGS.keys() - SECRETS
    assert variables == {f"AIRFLOW__BANKCONNECT__{name.upper()}" for name in SECRETS} | {
        "AIRFLOW_CONN_BANKCONNECT_DEFAULT"
    }


def test_the_shown_ingress_leads_to_the_webhook_receiver_and_nowhere_else():
    (ingress,) = [document for document in YAML if document.get("kind") == "Ingress"]
    (rule,) = ingress["spec"]["rules"]
    assert [path["path"] for path in rule["http"]["paths"]] == [f"{PREFIX}/webhook/"]
    assert "access_log off;" in ingress["metadata"]["annotations"]["nginx.org/location-snippets"]


@blocks(lambda language, _: language == "docker")
def test_the_shown_image_installs_this_package_beside_its_own_airflow(block):
    airflow, package, again = re.fullmatch(
        r"FROM apache/airflow:(\S+)\nRUN pip install --no-cache-dir (\S+) apache-airflow==(\S+)", block
    ).groups()
    assert (airflow, package) == (again, metadata("airflow-provider-bankconnect")["Name"])


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
@blocks(lambda language, _: language == "nginx")
def test_nginx_accepts_the_shown_configuration(block, tmp_path):
    assert f"location {PREFIX}/webhook/ {{" in block
    # There is no certificate, and a test opens no port.
    plain = re.sub(r"listen .*;", f"listen unix:{tmp_path}/socket;", re.sub(r"ssl_certificate\w* .*;", "", block))
    paths = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{ access_log off; {paths}\n{plain}\n}}\n"
    (tmp_path / "nginx.conf").write_text(text, encoding="utf-8")

    done = run(["nginx", "-t", "-c", str(tmp_path / "nginx.conf")])

    assert done.returncode == 0, done.stderr
