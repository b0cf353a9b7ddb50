"""Runs inside a pod: reads one object and writes another, signed with the standard library alone."""

import datetime
import hashlib
import hmac
import os
import urllib.request

ENDPOINT = os.environ["AWS_ENDPOINT_URL_S3"]
KEY, SECRET = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
REGION = os.environ["AWS_DEFAULT_REGION"]


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """Sends one signed request."""
    now = datetime.datetime.now(datetime.UTC)
    day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": ENDPOINT.removeprefix("http://"), "x-amz-content-sha256": digest, "x-amz-date": moment}
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = "\n".join([method, path, "", lines, names, digest])
    scope = f"{day}/{REGION}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = ("AWS4" + SECRET).encode()
    for part in (day, REGION, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    message = urllib.request.Request(
        ENDPOINT + path, body if method == "PUT" else None, headers, method=method
    )
    with urllib.request.urlopen(message, timeout=20) as response:
        return response.read()


print(request("GET", "/artifacts/given.txt").decode())
request("PUT", "/artifacts/made.txt", b"from a pod")
