"""The S3 server that benchmarks read from: RadosGW where it is installed, else moto, in processes of its own on the same machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.radosgw import KEY, SECRET, RadosGateway, is_installed
from tests.s3 import S3Server, pointed_at


@contextmanager
def s3_server() -> Iterator[str]:
    """While inside, the environment leads to the server; yields its name."""
    if not is_installed():
        with pointed_at(S3Server().endpoint):
            yield "moto"
        return
    with tempfile.TemporaryDirectory(prefix="vm-rgw-") as folder:  # short: it holds sockets
        gateway = RadosGateway(Path(folder))
        try:
            with pointed_at(gateway.endpoint, KEY, SECRET):
                yield "radosgw"
        finally:
            gateway.stop()
