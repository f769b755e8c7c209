"""A real RadosGW (Debian's radosgw, ceph-mon and ceph-osd, all in memory) for the slow tests, and a proxy that makes it unreliable."""

from __future__ import annotations

import http.client
import random
import shutil
import subprocess
import threading
import time
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.ports import free_port

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
KEY, SECRET = "key-of-the-tests", "secret-of-the-tests"

CONFIG = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon1}]
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 8589934592
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
pid file =
mon data avail crit = 1
mon data avail warn = 2
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


def is_installed() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


class RadosGateway:
    """One monitor, one store in memory, one gateway, with one user. `folder` must be short: it holds sockets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, mon, mon1 = (free_port() for _ in range(3))
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir(parents=True)
        (folder / "ceph.conf").write_text(CONFIG.format(fsid=fsid, mon=mon, mon1=mon1, port=self.port, folder=folder))
        addresses = f"[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon1}]"
        self._run("monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, str(folder / "monmap"), config=False)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"))
        self._processes = [self._start("ceph-mon", "-f", "-i", "a")]
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._processes.append(self._start("ceph-osd", "-f", "-i", "0"))
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=localhost", "root=default")
        self.start_gateway()
        self._run("radosgw-admin", "user", "create", "--uid=test", "--display-name=test", f"--access-key={KEY}", f"--secret={SECRET}")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_gateway(self) -> None:
        self._gateway = self._start("radosgw", "-f", "-n", "client.rgw.a")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/")
                connection.getresponse()
                return
            time.sleep(0.2)
        raise AssertionError(f"radosgw did not come up: {(self.folder / 'radosgw.out').read_text()[-2000:]}")

    def kill_gateway(self) -> None:
        self._gateway.kill()
        self._gateway.wait(10)

    def stop(self) -> None:
        for process in (self._gateway, *reversed(self._processes)):
            process.kill()
            process.wait(10)

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.out").open("ab") as log:
            return subprocess.Popen([program, *arguments, "-c", str(self.folder / "ceph.conf")], stdout=log, stderr=log)

    def _run(self, program: str, *arguments: str, config: bool = True) -> None:
        options = ["-c", str(self.folder / "ceph.conf")] if config else []
        done = subprocess.run([program, *arguments, *options], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{program}: {done.stderr}"


class UnreliableProxy:
    """Passes requests on to a server; a share of them is answered with 5xx instead, before or after the server has done its work."""

    def __init__(self, port: int, share: float, seed: int = 0) -> None:
        draw, lock, self.refused = random.Random(seed), threading.Lock(), 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return None
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    fails, after = draw.random() < share, draw.random() < 0.5
                    proxy.refused += fails
                if fails and not after:
                    return self.answer(503, [], b"")
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                data = response.read()
                if fails:
                    return self.answer(500, [], b"")
                return self.answer(response.status, response.getheaders(), data)

            def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
                self.send_response_only(status)
                length = [value for name, value in headers if name.lower() == "content-length"] if self.command == "HEAD" else []
                for name, value in headers:
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length[0] if length else str(len(data)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
