#!/usr/bin/env bash
# apache-airflow-providers-openlineage 2.20.3 on Airflow 3.3.2: with XComs in object storage, a task's declared outlets
# are not in its COMPLETE event; the file of its XCom is there instead.
#
# The XCom backend writes its file through ObjectStoragePath, which reports the file to the hook lineage collector. For an
# operator without an extractor, the provider reads declared inlets and outlets only where the collector is empty
# (ExtractorManager.extract_metadata). Any task that pushes an XCom of its own is concerned. Seen:
#   XComs in the database:      START outlet, COMPLETE outlet
#   XComs in object storage:    START outlet, COMPLETE xcom
#
# Exits with 0 while this is so, with 1 if the events differ. It takes a few minutes.
set -euo pipefail

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    apache-airflow==3.3.2 apache-airflow-providers-openlineage==2.20.3 apache-airflow-providers-common-io
mkdir "$home/dags" "$home/xcom"
cat >"$home/dags/lineage.py" <<'DAG'
import pendulum
from airflow.sdk import DAG, Asset, task

with DAG("lineage", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC")):

    @task(outlets=[Asset("file:///data/outlet")])
    def report():
        return ["a row"]

    report()
DAG
export AIRFLOW_HOME="$home" AIRFLOW__CORE__DAGS_FOLDER="$home/dags" AIRFLOW__CORE__LOAD_EXAMPLES=False
"$home/venv/bin/airflow" db migrate >"$home/log" 2>&1

events() {  # prints the event types of the task with what its outputs are
    export AIRFLOW__OPENLINEAGE__TRANSPORT="{\"type\": \"file\", \"log_file_path\": \"$home/$1.jsonl\", \"append\": true}"
    "$home/venv/bin/airflow" dags test lineage "$2" >"$home/$1.log" 2>&1 || { tail -n 20 "$home/$1.log" >&2; return 1; }
    python3 - "$home/$1.jsonl" <<'PYTHON'
import json
import sys

found = []
for line in open(sys.argv[1], encoding="utf-8"):
    event = json.loads(line)
    if event["job"]["name"] == "lineage.report":
        names = [output["name"] for output in event["outputs"]]
        found.append(" ".join([event["eventType"], *("xcom" if "/xcom/" in name else name.split("/")[-1] for name in names)]))
print(", ".join(found))
PYTHON
}

in_database=$(events database 2026-01-01)
export AIRFLOW__CORE__XCOM_BACKEND=airflow.providers.common.io.xcom.backend.XComObjectStorageBackend
export AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_PATH="file://$home/xcom" AIRFLOW__COMMON_IO__XCOM_OBJECTSTORAGE_THRESHOLD=0
in_storage=$(events storage 2026-01-02)
echo "XComs in the database:    $in_database"
echo "XComs in object storage:  $in_storage"
[ "$in_database" = "START outlet, COMPLETE outlet" ] && [ "$in_storage" = "START outlet, COMPLETE xcom" ]
