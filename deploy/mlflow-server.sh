#!/bin/sh
# Starts MLflow for a team: metrics in PostgreSQL, files in S3, a password for everybody. All of it from the environment, so that
# no password stands in a list of processes. compose.yaml runs it in a container, tests/team.py as it stands.
set -eu
umask 077
: "${MLFLOW_BACKEND_STORE_URI:?is not set}" "${MLFLOW_ARTIFACTS_DESTINATION:?is not set}" "${MLFLOW_AUTH_CONFIG_PATH:?is not set}"

# MLflow reads where its users are kept from a file only. READ, its own default, would let nobody but whoever trained first on a
# data set train on it again: an experiment belongs to who began it. With EDIT all may add, and who began it may delete.
# A password is checked by a slow hash at each request; an answer holds for a minute, and so does a password that was changed.
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<EOF
[mlflow]
database_uri = $(printf %s "$MLFLOW_BACKEND_STORE_URI" | sed 's/%/%%/g')
default_permission = EDIT
admin_username = admin
auth_cache_ttl_seconds = 60
EOF

# Make the bucket if it is not there; the server need not be the first to answer.
python - <<'EOF'
import os
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

bucket = os.environ["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://").partition("/")[0]
deadline = time.monotonic() + 60
while True:
    try:
        s3 = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
        if bucket not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
            s3.create_bucket(Bucket=bucket)
        break
    except (BotoCoreError, ClientError) as error:
        if time.monotonic() > deadline:
            raise SystemExit(f"MLFLOW_S3_ENDPOINT_URL: no bucket {bucket} can be made: {error}") from error
        time.sleep(1)
EOF

exec mlflow server --app-name basic-auth
