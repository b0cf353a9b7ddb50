"""A certificate authority for one cluster, and kubeconfig files with client certificates of it.

Called by `control_plane` (servers, administrator, components) and `node` (kubelet, kube-proxy, CoreDNS).
"""

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    """Signs certificates into one folder: `<name>.crt` and `<name>.key`, its own as `ca`."""

    def __init__(self, directory: Path) -> None:
        """Loads the authority of a folder, or creates it there."""
        self.directory = directory
        if not (directory / "ca.key").exists():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name("tlt-test-cluster", ())
            builder = _builder(name, name, key.public_key()).add_extension(
                x509.BasicConstraints(True, 0), True
            )
            self._save("ca", key, builder.sign(key, hashes.SHA256()))
        self._key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        self._certificate = x509.load_pem_x509_certificate(self.certificate("ca").read_bytes())

    def certificate(self, name: str) -> Path:
        """The file of a certificate."""
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The file of a private key."""
        return self.directory / f"{name}.key"

    def issue(self, name: str, user: str = "", groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        """Signs a certificate that serves as client (user, groups) and as server (hosts)."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = _builder(_name(user or name, groups), self._certificate.subject, key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), False
            )
        self._save(name, key, builder.sign(self._key, hashes.SHA256()))  # type: ignore[arg-type]

    def kubeconfig(self, name: str, server: str, user: str, groups: Sequence[str] = ()) -> Path:
        """Writes `<name>.kubeconfig` with a new client certificate inside."""
        self.issue(name, user, groups)
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tlt",
            "contexts": [{"name": "tlt", "context": {"cluster": "tlt", "user": user}}],
            "clusters": [
                {
                    "name": "tlt",
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": _data(self.certificate("ca")),
                    },
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": _data(self.certificate(name)),
                        "client-key-data": _data(self.key(name)),
                    },
                }
            ],
        }
        file = self.directory / f"{name}.kubeconfig"
        file.touch(mode=0o600)
        file.write_text(json.dumps(content, indent=1))
        return file

    def _save(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.certificate(name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key(name).touch(mode=0o600)
        self.key(name).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def _name(user: str, groups: Sequence[str]) -> x509.Name:
    organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - datetime.timedelta(minutes=5),
        not_valid_after=now + datetime.timedelta(days=30),
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _data(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
