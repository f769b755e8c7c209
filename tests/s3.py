"""A real S3 server for tests: moto behind a gate that can refuse requests. Other processes find it by AWS_ENDPOINT_URL."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import BaseWSGIServer, make_server

from data_pipeline import s3
from data_pipeline.storage import S3Path

Gate = Callable[[dict[str, Any]], str | None]  # a request -> None to let it pass, or the status to refuse it with


class QuietHandler(MotoRequestHandler):
    def log_request(self, *arguments: Any) -> None:
        pass


class S3Server:
    """moto in a thread; `gate` decides about each request, `requests` counts them by method."""

    def __init__(self, port: int = 0) -> None:
        self.gate: Gate = lambda request: None
        self.requests: list[tuple[str, str]] = []
        self._backend = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer = make_server("127.0.0.1", port, self._answer, True, request_handler=QuietHandler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, request: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        self.requests.append((request["REQUEST_METHOD"], request["PATH_INFO"]))
        refusal = self.gate(request)
        if refusal is None:
            return self._backend(request, start_response)
        request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        code = refusal.partition(" ")[2].replace(" ", "")
        start_response(refusal, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>".encode()]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def pointed_at(endpoint: str, key: str = "test", secret: str = "test") -> Iterator[None]:
    """The environment in which the AWS SDK's chain leads to a server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        forget_server()
        try:
            yield
        finally:
            forget_server()


def forget_server() -> None:
    """Clients remember the server they were made for."""
    S3FileSystem.clear_instance_cache()
    s3.client.cache_clear()


def new_bucket() -> S3Path:
    """An empty bucket of its own on the server that the environment names."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)  # the default session remembers the first keys it saw
    return S3Path(name)
