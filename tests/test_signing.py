"""The signature, against a known vector and against openssl."""

import hashlib
import hmac
import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsid_async._signing import sign

OPENSSL = shutil.which("openssl")
SECRET = "s3cret-of-the-account"
TO = "+447700900123"


def bodies():
    plain = {"to": TO, "sender_id": "SMSID", "message": "Hello"}
    foreign = {"to": TO, "message": "Ça coûte 5 €, voilà! Привет 😀👍🏽"}
    for payload in (plain, foreign):
        for pairs in (list(payload.items()), list(payload.items())[::-1]):
            for ascii_only in (True, False):
                yield json.dumps(dict(pairs), ensure_ascii=ascii_only).encode()
    yield b""
    yield b"\x00\xff\r\n"


def test_the_first_vector_of_rfc_4231_style_keys_holds():
    # RFC 4231, test case 2: the one whose key is a text.
    signature = sign(b"what do ya want for nothing?", "Jefe")
    assert signature == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


def test_the_empty_body_of_a_get_has_a_signature_of_its_own():
    # Of HMAC-SHA256 with the key "key" and no data.
    assert sign(b"", "key") == "5d5d139563c95b5967b9bd9a8c9b233a9dedb45072794cd232dc1b74832607d0"


@pytest.mark.skipif(OPENSSL is None, reason="there is no openssl program on this machine")
@pytest.mark.parametrize("body", list(bodies()), ids=lambda body: f"{len(body)} bytes")
def test_openssl_signs_alike(body):
    run = subprocess.run(
        [OPENSSL, "dgst", "-sha256", "-hmac", SECRET], input=body, capture_output=True, check=True
    )
    assert run.stdout.split()[-1].decode() == sign(body, SECRET)


def test_another_order_of_the_same_fields_has_another_signature():
    one, two = {"to": TO, "message": "Hello"}, {"message": "Hello", "to": TO}
    assert one == two
    assert sign(json.dumps(one).encode(), SECRET) != sign(json.dumps(two).encode(), SECRET)


@settings(deadline=None)
@given(st.binary(max_size=300), st.text(st.characters(codec="ascii"), min_size=1, max_size=200))
def test_a_signature_is_lower_case_hex_of_hmac_sha256(body, secret):
    signature = sign(body, secret)
    assert signature == hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    assert len(signature) == 64
    assert set(signature) <= set("0123456789abcdef")


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=50), st.data())
def test_one_changed_bit_changes_the_signature(body, data):
    at = data.draw(st.integers(0, len(body) * 8 - 1))
    changed = bytearray(body)
    changed[at // 8] ^= 1 << at % 8
    assert sign(bytes(changed), SECRET) != sign(body, SECRET)
