"""A certificate authority of our own and the server certificate it signs: made, read, judged. No I/O."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE = timedelta(days=3650)
"""Running pods keep the CA they were started with, so it changes almost never."""
CA_MARGIN = timedelta(days=365)
SERVER_LIFE = timedelta(days=90)
SERVER_MARGIN = timedelta(days=30)
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Keys:
    ca: KeyPair
    server: KeyPair


def renewed(keys: Keys | None, hosts: tuple[str, ...], now: datetime) -> Keys:
    """`keys` where they still serve `hosts` for a while; else what is needed anew, under the same CA where that holds on."""
    ca = keys.ca if keys is not None and _is_good_ca(keys.ca, now) else _make_ca(now)
    if keys is not None and ca is keys.ca and _is_good_server(keys.server, ca, hosts, now):
        return keys
    return Keys(ca, _make_server(ca, hosts, now))


def server_context(server: KeyPair) -> ssl.SSLContext:
    """A TLS context of a server. The key goes through memory, never to a disk."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_into(context, server)
    return context


def load_into(context: ssl.SSLContext, server: KeyPair) -> None:
    """New connections of `context` are served with this certificate from now on."""
    descriptor = os.memfd_create("status-server", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, server.certificate + server.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _make_ca(now: datetime) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-operator status CA")])
    builder = (
        _builder(name, name, key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(certificates=True), critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def _make_server(ca: KeyPair, hosts: tuple[str, ...], now: datetime) -> KeyPair:
    issuer, issuer_key = _certificate(ca), serialization.load_pem_private_key(ca.key, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-operator status")])
    builder = (
        _builder(name, issuer.subject, key.public_key(), now, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_key_usage(certificates=False), critical=True)
        # without it OpenSSL's strict mode, Python 3.13's default, refuses the chain
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _certificate(pair: KeyPair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def _is_good_ca(pair: KeyPair, now: datetime) -> bool:
    return _holds(pair, now + CA_MARGIN)


def _is_good_server(pair: KeyPair, ca: KeyPair, hosts: tuple[str, ...], now: datetime) -> bool:
    if not _holds(pair, now + SERVER_MARGIN):
        return False
    certificate = _certificate(pair)
    try:
        certificate.verify_directly_issued_by(_certificate(ca))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return set(hosts) <= set(names)


def _holds(pair: KeyPair, until: datetime) -> bool:
    """Whether certificate and key can be read, belong together, and the certificate is valid until then."""
    try:
        certificate, key = _certificate(pair), serialization.load_pem_private_key(pair.key, None)
    except (ValueError, TypeError):
        return False
    return (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and certificate.public_key() == key.public_key()
        and certificate.not_valid_after_utc > until
    )
