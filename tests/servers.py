"""Real servers for tests, started once for all workers of a run; their scripts lie beside the checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
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
# The other implementation, which knows no checksums, has no TLS here and no user who may only read (make test-ceph).
CEPH: Final = os.environ.get("S3_SERVER") == "ceph"
DEFAULTS: Final[dict[str, Any]] = {"endpoint_https": "", "pid": 0}


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

    @property
    def ca_file(self) -> str:
        return str(certificate_of(Path(self.data)))

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def port_https(self) -> int:
        return int(self.endpoint_https.rpartition(":")[2])


def _script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    runner = [sys.executable] if name.endswith(".py") else ["bash"]
    return subprocess.run(
        [*runner, str(services() / name), *arguments], capture_output=True, text=True, check=False, timeout=180
    )


def start_s3(data: Path, port: int | None = None) -> S3Server:
    """Start a server over the folder `data`, on a port of its own or on that of one that was stopped."""
    data.mkdir(parents=True, exist_ok=True)
    tried = None
    for _ in range(STARTS_MAX):
        chosen = port or secrets.choice(PORTS)
        tried = _start_ceph(data, chosen) if CEPH else _start_seaweed(data, chosen)
        if tried.returncode == 0:
            return msgspec.convert(DEFAULTS | json.loads(tried.stdout.splitlines()[-1]), S3Server)
        if CEPH and port is None:
            _script("s3_ceph.sh", "wipe", str(data))  # its configuration names the port
    raise AssertionError(f"no S3 server could be started: {tried and tried.stderr}")


def _start_seaweed(data: Path, port: int) -> subprocess.CompletedProcess[str]:
    certificate, key = certificate_of(data), data / "server.key"
    if not certificate.exists():
        make_certificate(certificate, key)
    return _script(
        "s3_seaweed.py", "start", "--data", str(data), "--port", str(port),
        "--tls-cert", str(certificate), "--tls-key", str(key),
    )  # fmt: skip


def _start_ceph(data: Path, port: int) -> subprocess.CompletedProcess[str]:
    return _script("s3_ceph.sh", "start", str(data), str(port))


def stop_s3(data: Path) -> None:
    """Kill the server over the folder `data`, as a power cut would."""
    kill = ("s3_ceph.sh", "stop", str(data), "9") if CEPH else ("s3_seaweed.py", "stop", "--data", str(data), "--kill")
    done = _script(*kill)
    assert done.returncode == 0, done.stderr


def certificate_of(data: Path) -> Path:
    """Return where the certificate of the server over the folder `data` lies."""
    return data / "server.pem"


def make_bucket(server: S3Server, bucket: str = BUCKET, *, lock: bool = False) -> None:
    """Make a bucket, with Object Lock if asked."""
    session = botocore.session.Session()
    client = session.create_client(
        "s3", region_name="us-east-1", endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key,
    )  # fmt: skip
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=lock)
    client.close()


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


class ProxyProcess:
    """A proxy with faults as a process of its own, for commands that are processes; `set` changes what it does."""

    def __init__(self, host: str, port: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._control = free.getsockname()[1]
        script = [sys.executable, str(services() / "chaos_proxy.py"), "0", host, str(port)]
        self._process = subprocess.Popen([*script, "--control", str(self._control)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(json.loads(self._process.stdout.readline())["port"])

    def set(self, **fields: Any) -> dict[str, Any]:
        """Set fields of ChaosProxy; `kill=True` ends the connections there are. Returns its state."""
        with socket.create_connection(("127.0.0.1", self._control), timeout=30) as control:
            control.sendall(json.dumps(fields).encode() + b"\n")
            answer: dict[str, Any] = json.loads(control.makefile().readline())
        assert "error" not in answer, answer
        return answer

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate(timeout=30)
