"""Real servers for tests, started once for all workers of a run; their scripts lie beside the checkout."""

from __future__ import annotations

import importlib.util
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import botocore.session
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from filelock import FileLock

from tests.conftest import services

PORTS: Final = range(20_000, 30_000, 10)  # below those the system gives away
STARTS_MAX: Final = 8
BUCKET: Final = "forebay-tests"


class S3Server(msgspec.Struct, frozen=True):
    """A running S3 server: two users, one of whom may only read."""

    endpoint: str
    endpoint_https: str
    access_key: str
    secret_key: str
    ro_access_key: str
    ro_secret_key: str
    data: str
    pid: int
    ca_file: str = ""

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def port_https(self) -> int:
        return int(self.endpoint_https.rpartition(":")[2])


def _script(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(services() / "s3_seaweed.py"), command, *arguments],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def start_s3(data: Path, port: int | None = None) -> S3Server:
    """Start a server over the folder `data`, on a port of its own or on that of one that was stopped."""
    data.mkdir(parents=True, exist_ok=True)
    certificate, key = data / "server.pem", data / "server.key"
    if not certificate.exists():
        make_certificate(certificate, key)
    tried = None
    for _ in range(STARTS_MAX):
        chosen = port or secrets.choice(PORTS)
        tried = _script(
            "start", "--data", str(data), "--port", str(chosen), "--tls-cert", str(certificate), "--tls-key", str(key)
        )
        if tried.returncode == 0:
            told: dict[str, Any] = json.loads(tried.stdout) | {"ca_file": str(certificate)}
            return msgspec.convert(told, S3Server)
    raise AssertionError(f"no S3 server could be started: {tried and tried.stderr}")


def make_bucket(server: S3Server, bucket: str = BUCKET) -> None:
    """Make a bucket."""
    session = botocore.session.Session()
    client = session.create_client(
        "s3", region_name="us-east-1", endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key,
    )  # fmt: skip
    client.create_bucket(Bucket=bucket)
    client.close()


def stop_s3(data: Path) -> None:
    """Kill the server over the folder `data`, as a power cut would."""
    done = _script("stop", "--data", str(data), "--kill")
    assert done.returncode == 0, done.stderr


@contextmanager
def shared_s3(folder: Path, worker: str) -> Iterator[S3Server]:
    """Give the one server of all workers of this run; `folder` is theirs, `worker` names this one."""
    data, users = folder / "s3", folder / "s3-users"
    with FileLock(folder / "s3.lock"):
        users.mkdir(exist_ok=True)
        (users / worker).touch()
        told = data / "server.json"
        if not told.exists():
            told.parent.mkdir(parents=True, exist_ok=True)
            started = start_s3(data)
            make_bucket(started)
            told.write_bytes(msgspec.json.encode(started))
        server = msgspec.json.decode(told.read_bytes(), type=S3Server)
    try:
        yield server
    finally:
        with FileLock(folder / "s3.lock"):
            (users / worker).unlink()
            if not list(users.iterdir()):
                stop_s3(data)
                told.unlink()


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate for this machine that has signed itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forebay tests")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def chaos_proxy(host: str, port: int) -> Any:
    """Return a proxy with faults in front of a server, not started yet (see chaos_proxy.py)."""
    name = "forebay_chaos_proxy"
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, services() / "chaos_proxy.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name].ChaosProxy(host, port)
