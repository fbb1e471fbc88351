#!/usr/bin/env bash
# apache-airflow-providers-celery 3.26.0 allows celery 5.7.0 (it requires celery[redis]>=5.5.0,<6), and cannot be imported
# with it: neither a worker nor a scheduler with CeleryExecutor starts.
#
# The provider imports `retry` from celery.backends.database, which celery 5.7.0 does not have any more
# (airflow/providers/celery/executors/celery_executor_utils.py). Seen with `airflow celery worker`:
#   ImportError: cannot import name 'retry' from 'celery.backends.database'
#   AirflowOptionalProviderFeatureException: Failed to import providers_configuration_loaded. This feature is only
#   available in Airflow versions >= 2.8.0
# The second message is about something else. The scheduler says that the module of the executor could not be loaded.
# With celery 5.6.3 both start.
#
# Exits with 0 while this is so, with 1 if one of the two imports has another result.
set -euo pipefail

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
python="$home/venv/bin/python"
export AIRFLOW_HOME="$home" AIRFLOW__CORE__LOAD_EXAMPLES=False AIRFLOW__CORE__EXECUTOR=CeleryExecutor
"$python" -m pip install --quiet --disable-pip-version-check apache-airflow==3.3.2 \
    apache-airflow-providers-celery==3.26.0 celery==5.7.0

imported() {
    "$python" -W ignore - 2>/dev/null <<'PYTHON'
try:
    from airflow.providers.celery.executors.celery_executor import CeleryExecutor  # noqa: F401
except ImportError as error:
    print("cannot import name 'retry'" if "'retry'" in str(error) else error)
else:
    print("imported")
PYTHON
}

new=$(imported | tail -1)
"$python" -m pip install --quiet --disable-pip-version-check celery==5.6.3
old=$(imported | tail -1)
echo "with celery 5.7.0: $new; with 5.6.3: $old"
[ "$new" = "cannot import name 'retry'" ] && [ "$old" = "imported" ]
