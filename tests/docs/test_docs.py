"""The documentation builds without a warning, and its code blocks run."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from importlib.metadata import metadata
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
import templates
import yaml
from airflow.providers.common.compat.sdk import DAG
from forks import Forks
from packaging.requirements import Requirement

from airflow_provider_bankconnect import __version__, api
from airflow_provider_bankconnect.__main__ import main
from airflow_provider_bankconnect.api import ConnectionSettings
from airflow_provider_bankconnect.get_provider_info import get_provider_info
from airflow_provider_bankconnect.hooks.bankconnect import BankConnectHook
from airflow_provider_bankconnect.receiver.address import PREFIX
from airflow_provider_bankconnect.relay.command import main as relay
from airflow_provider_bankconnect.sandbox import Sandbox, Statement
from airflow_provider_bankconnect.sandbox.play import read_file

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)
OURS = metadata("airflow-provider-bankconnect")
WHEEL = rf"airflow_provider_bankconnect-{re.escape(__version__)}-py3-none-any\.whl"
# Of the width of the page on a computer. On a phone lines continue on the next line.
LONGEST_LINE = 90
BLOCKS = [
    (f"{page.relative_to(DOCS).with_suffix('')}-{number}", language, textwrap.dedent(text).strip())
    for page in sorted(DOCS.rglob("*.rst"))
    for number, (language, text) in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8")), start=1)
]


# `make readme` runs the commands of the quick start, with a new Airflow.
readme = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "readme.py")))

# The quick start is run as a whole, by `make readme`.
QUICK_START = readme.read_commands((DOCS / "quick-start.rst").read_text(encoding="utf-8"))
BLOCKS_TO_RUN = [found for found in BLOCKS if not found[0].startswith("quick-start-")]
BASH = [block for _, language, block in BLOCKS_TO_RUN if language == "bash"]


def run(command, **more):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **more)


class Page(HTMLParser):
    """The links of a page, and what on it can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = set(), {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, _, attributes):
        found = dict(attributes)
        self.anchors.add(found.get("id"))
        self.links |= {found[name] for name in ("href", "src") if found.get(name)}


def test_the_documentation_builds_without_a_warning_and_its_internal_links_lead_somewhere(tmp_path):
    done = run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", str(DOCS), str(tmp_path)])
    assert done.returncode == 0, done.stderr

    pages = {path: Page(path) for path in tmp_path.rglob("*.html")}
    assert {path.stem for path in pages} >= {page.stem for page in DOCS.rglob("*.rst")}
    assert "BankConnectWebhookPayloadSensor" in (tmp_path / "changelog.html").read_text(encoding="utf-8")
    for page, content in pages.items():
        for link in content.links:
            path, _, anchor = unquote(link).partition("#")
            path = path.partition("?")[0]
            if re.match(r"\w+:", link):
                # Web addresses are not requested.
                assert link.startswith(("https://", "data:", "mailto:")), f"{page.name}: {link}"
                continue
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].anchors, f"{page.name}: {link}"


def test_relative_links_of_the_other_texts_lead_to_files():
    for text in (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASING.md")):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text.read_text(encoding="utf-8")):
            assert (ROOT / link).exists(), f"{text.name}: {link}"


def blocks(chosen):
    return pytest.mark.parametrize(
        "block", [pytest.param(block, id=name) for name, language, block in BLOCKS_TO_RUN if chosen(language, block)]
    )


def test_every_code_block_is_run_by_a_test_below_or_by_make_readme():
    texts = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.rst"))
    assert texts.count("code-block::") == len(BLOCKS)
    assert not re.search(r"^(?!\.\. ).*::$", texts, flags=re.MULTILINE)
    languages = {"python", "bash", "toml", "yaml", "docker", "nginx", "console", "text"}
    assert {language for _, language, _ in BLOCKS} == languages
    assert {command.kind for command in QUICK_START} >= {"run", "install", "sandbox", "dag", "explain"}
    others = [line for block in BASH for line in block.replace("\\\n", "").splitlines() if re.match(r"\w+ ", line)]
    patterns = (
        r"python -m airflow_provider_bankconnect(?:\.sandbox| explain| relay| examples| constraints)\b.*",
        r"pip (?:install|wheel) .*",
        r"airflow connections add .*",
        r"airflow providers get airflow-provider-bankconnect",
        r"export AIRFLOW_CONN_BANKCONNECT_DEFAULT='\{",
    )
    for line in others:
        assert any(re.fullmatch(pattern, line) for pattern in patterns), line


def test_no_line_of_code_is_wider_than_the_page():
    for name, language, block in BLOCKS:
        if language not in {"console", "text"}:
            wide = [line for line in block.splitlines() if len(line) > LONGEST_LINE]
            assert not wide, f"{name}: {wide}"


@blocks(lambda language, block: language == "python" and "with DAG(" in block)
def test_a_dag_can_be_parsed(block):
    names = {"__name__": "pasted"}
    exec(compile(block, "docs", "exec"), names)  # noqa: S102 - the test is that it runs
    found = (value if isinstance(value, DAG) else getattr(value, "dag", None) for value in names.values())
    (dag,) = {id(value): value for value in found if isinstance(value, DAG)}.values()
    assert dag.task_ids
    # One killed worker does not fail a task for good.
    assert all(task.retries for task in dag.tasks)


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


@blocks(lambda language, block: language == "bash" and re.search("bankconnect (examples|constraints)", block))
def test_what_people_copy_is_found_as_shown(block, capsys):
    for _, *arguments in commands(block):
        assert main(arguments[2:]) == 0
        said = capsys.readouterr().out
        assert Path(said.strip()).is_file() or said.startswith("The example DAGs in ")


def test_the_page_on_examples_lists_each_of_them():
    page = (DOCS / "example-dags.rst").read_text(encoding="utf-8")
    assert set(re.findall(r"\* - ``(\w+\.py)``", page)) == {path.name for path in (ROOT / "dags").glob("*.py")}


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


@blocks(lambda language, block: language == "bash" and "bankconnect relay" in block)
def test_the_relay_accepts_the_shown_options(block, tmp_path, monkeypatch, capsys):
    ((python, _, _, _, *options),) = commands(block)
    assert python == "python"
    monkeypatch.setenv("AIRFLOW__BANKCONNECT__WEBHOOK_TOKEN", "token-of-the-documentation")
    monkeypatch.setenv("AIRFLOW__BANKCONNECT__API_SERVER_URL", "https://airflow.example.com")
    monkeypatch.setenv("BANKCONNECT_RELAY_DATABASE", f"sqlite:///{tmp_path}/queue.db")
    status = [] if "--status" in options else ["--status"]
    assert relay([*options, *status]) == 0
    assert "waiting:   0 of at most 100000" in capsys.readouterr().out


@blocks(lambda language, _: language == "toml")
def test_the_sandbox_reads_the_shown_file(block, tmp_path):
    (tmp_path / "day.toml").write_text(block, encoding="utf-8")
    statements, faults = read_file(tmp_path / "day.toml")
    assert len(statements) == block.count("[[statement]]")
    assert len(faults) == block.count("[[fault]]")


@blocks(lambda language, block: language == "bash" and block.startswith("pip "))
def test_pip_installs_this_package_and_its_extras(block):
    for line in block.splitlines():
        if line.startswith("pip wheel "):
            continue
        options, what = re.fullmatch(r"pip install (?:-c (\S+) )?(.+)", line).groups()
        assert options is None or (ROOT / options).exists()
        (requirement,) = shlex.split(what)
        name, extra = re.fullmatch(r"([^[ @]+)(?:\[(\w+)\])?", requirement).groups()
        assert name in {".", OURS["Name"]} or re.fullmatch(
            rf"(dist/)?{WHEEL}|git\+https://\S+/{OURS['Name']}\.git", name
        )
        assert extra is None or extra in OURS.get_all("Provides-Extra")


@blocks(lambda language, block: language == "bash" and block.startswith("export "))
def test_the_shown_variable_has_a_valid_connection(block, monkeypatch):
    (assignment,) = shlex.split(block)[1:]
    monkeypatch.setenv(*assignment.split("=", 1))
    check_settings(BankConnectHook().settings)


@pytest.mark.system
@blocks(lambda language, block: language == "bash" and block.startswith("airflow "))
def test_the_shown_airflow_command_does_what_the_page_says(block, forks):
    (command,) = commands(block)
    lines = [command[1:], shlex.split("connections get bankconnect_default --output json")]
    # In one process, because each spends seconds on the import of Airflow's commands.
    run_all = "from airflow.cli.cli_parser import get_parser\n" + "".join(
        f"arguments = get_parser().parse_args({line})\narguments.func(arguments)\n"
        for line in (lines if command[1] == "connections" else lines[:1])
    )
    done = forks.run("-c", run_all)
    if command[1] != "connections":
        assert OURS["Name"] in done.stdout
        return
    (found,) = json.loads(done.stdout[done.stdout.index("[{") :])
    assert found["conn_type"] == "bankconnect"
    check_settings(
        ConnectionSettings.parse(
            "it", host=found["host"], port=found["port"], password=found["password"], extra=found["extra_dejson"]
        )
    )


def check_settings(settings):
    assert settings.base_url == "https://apis.bankconnect.finbox.in/bank-connect/v1"
    assert (settings.server_hash, settings.api_key) == ("YOUR-SERVER-HASH", "YOUR-API-KEY")


def test_what_explain_prints_on_the_pages_is_what_the_tests_make():
    shown = {block for _, language, block in BLOCKS if language == "console"}
    made = (ROOT / "tests" / "integration" / "explain").glob("*.txt")
    assert shown == {path.read_text(encoding="utf-8").rstrip() for path in made}


@blocks(lambda language, _: language == "text")
def test_the_shown_line_of_a_log_is_that_of_a_test(block):
    source = (ROOT / "tests" / "unit" / "test_wait.py").read_text(encoding="utf-8")
    assert block in {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}


METRICS = r"bankconnect\.[a-z]+_\w+"


def test_the_page_of_metrics_has_each_metric_and_no_other():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "airflow_provider_bankconnect").rglob("*.py")]
    sent = {name for text in sources for name in re.findall(rf'Stats\.\w+\(\s*f?"({METRICS})"', text)}
    # One name in the code is made of an outcome.
    sent |= {"bankconnect.webhooks_recorded", "bankconnect.webhooks_duplicate"}
    page = (DOCS / "reference" / "metrics.rst").read_text(encoding="utf-8")
    assert set(re.findall(rf"``({METRICS})``", page)) == sent
    guide = (DOCS / "metrics.rst").read_text(encoding="utf-8")
    assert set(re.findall(rf"``({METRICS})``", guide)) <= sent


def test_the_page_of_errors_has_each_error():
    page = (DOCS / "reference" / "errors.rst").read_text(encoding="utf-8")
    assert set(re.findall(r"``(BankConnect\w*Error)``", page)) == {*api.errors.__all__} | {"BankConnectWaitError"}


def test_the_table_of_airflows_matches_the_constraints_and_their_pins():
    tested = {}
    for path in sorted((ROOT / "constraints").glob("*.txt")):
        airflow, minor = re.fullmatch(r"constraints-([\d.]+)-py3(\d+)", path.stem).groups()
        tested.setdefault(airflow, {})[f"3.{minor}"] = path.read_text(encoding="utf-8")
    page = (DOCS / "compatibility.rst").read_text(encoding="utf-8")
    rows = re.findall(r"^   \* - (\d[\d.]+)\n     - (3[\d., ]+)\n     - (.+)$", page, flags=re.MULTILINE)
    assert {airflow: pythons.split(", ") for airflow, pythons, _ in rows} == {
        airflow: list(files) for airflow, files in tested.items()
    }
    pins = [(airflow, pin) for airflow, _, there in rows for pin in re.findall(r"``([a-z]+<[\d.]+)``", there)]
    assert pins == re.findall(r"\* - ([\d.]+)\n +- ``([a-z]+<[\d.]+)``", page)
    for airflow, pin in pins:
        requirement = Requirement(pin)
        for python, text in tested[airflow].items():
            (kept,) = re.findall(rf"^{requirement.name}==(.+)$", text, flags=re.MULTILINE)
            assert kept in requirement.specifier, f"Airflow {airflow}, Python {python}: {requirement.name} {kept}"


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
        r"FROM apache/airflow:(\S+)\nCOPY (\w+)-\*\.whl /tmp/\n"
        r"RUN pip install --no-cache-dir /tmp/\*\.whl apache-airflow==(\S+)",
        block,
    ).groups()
    assert (airflow, package) == (again, OURS["Name"].replace("-", "_"))


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
