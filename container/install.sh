#!/bin/sh
# Installs nti-batch from /src into /opt/nti-batch of a Debian or Ubuntu image; both recipes run it.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update
# curl transfers shards; torch.compile needs a compiler and the headers of Python
apt-get install --yes --no-install-recommends ca-certificates curl gcc libc6-dev python3 python3-dev python3-venv
rm -rf /var/lib/apt/lists/*
python3 -m venv /opt/nti-batch
/opt/nti-batch/bin/pip install --no-cache-dir --constraint /src/constraints.txt '/src[azure,gcs,heic,hub,lora,metrics,parquet,s3]'
/opt/nti-batch/bin/nti-batch --version
