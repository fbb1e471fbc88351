#!/usr/bin/env bash
# s3fs 2026.9.0 with fsspec 2026.9.0: an exception in a `with fs.open(path, "wb")` block still creates the object, with
# what was written so far.
#
# The file of fsspec closes itself at the end of the block whatever ended it, and closing completes the upload. Whoever
# lists the bucket sees a shorter object under the final name, though the writer has failed. With autocommit=False the
# caller decides: discard() after close() leaves neither an object nor an unfinished upload. Seen:
#   with autocommit:             1048576 bytes
#   without, after discard():    no object
#
# Exits with 0 while this is so, with 1 if the objects differ. It takes a minute.
set -euo pipefail

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    s3fs==2026.9.0 fsspec==2026.9.0 'moto[server]==5.2.5'
cat >"$home/try.py" <<'PYTHON'
import s3fs
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
fs = s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}", key="made-up", secret="made-up")
fs.mkdir("bucket")


def write(name, **more):
    try:
        with fs.open(f"bucket/{name}", "wb", **more) as file:
            file.write(bytes(2**20))
            raise InterruptedError
    except InterruptedError:
        return file


def found(name):
    fs.invalidate_cache()
    return f"{fs.size(f'bucket/{name}')} bytes" if fs.exists(f"bucket/{name}") else "no object"


write("with")
write("without", autocommit=False).discard()
print("with autocommit:            ", found("with"))
print("without, after discard():   ", found("without"))
server.stop()
PYTHON
"$home/venv/bin/python" "$home/try.py" | tee "$home/found"
[ "$(tr -s ' ' <"$home/found")" = "$(printf 'with autocommit: 1048576 bytes\nwithout, after discard(): no object')" ]
