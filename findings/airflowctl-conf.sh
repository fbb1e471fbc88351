#!/usr/bin/env bash
# apache-airflow-ctl 0.1.5: no text is a valid --conf of `airflowctl dags trigger`, nor a valid --extra of
# `airflowctl assets create-event`.
#
# Both options are in --help. Each is declared with type=dict, so that argparse calls dict() on the text, which fails for
# JSON and for key=value. Seen, before any request is made:
#   airflowctl dags trigger command error: argument --conf: invalid dict value: '{"a": 1}', see help above.
# What works instead: `airflow dags trigger --conf`, the REST API, and apache-airflow-client 3.3.2.
#
# Exits with 0 while this is so, with 1 if an option accepts a value.
set -euo pipefail

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check apache-airflow-ctl==0.1.5
export AIRFLOW_HOME="$home"

changed=0
refused() {
    local option=$1 value=$2
    shift 2
    local said
    said=$("$home/venv/bin/airflowctl" "$@" "$option" "$value" 2>&1 || true)
    if grep -q -F "argument $option: invalid dict value: '$value'" <<<"$said"; then
        echo "as before: $* $option '$value' is refused"
    else
        echo "changed: $* $option '$value': $(tail -n 1 <<<"$said")"
        changed=1
    fi
}

for value in '{"a": 1}' '{}' 'a=1'; do
    refused --conf "$value" dags trigger any_dag
done
refused --extra '{"a": 1}' assets create-event --asset-id 1
exit "$changed"
