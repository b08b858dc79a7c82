"""Checks that a request came through Edgekeep: the header x-edgekeep-signature (docs/origins.md).

Import `verify`, or try it with a request's head on standard input and the key in EDGEKEEP_ORIGIN_KEY. Needs nothing but
Python's own library.
"""

import hashlib
import hmac
import os
import re
import sys
import time

SIGNATURE = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})", re.ASCII)


def verify(key, method, path, headers, max_age=60, now=None):
    """None when the signature is good, otherwise why it is not.

    key: bytes. path: as it stands in the request line, without the query and not decoded. headers: pairs of name and
    value; a name that stands twice is refused. max_age: seconds a request may be old, which is for how long a copy of
    it is good too.
    """
    values = {}
    for name, value in headers:
        name = name.lower()
        if name.startswith("x-edgekeep-"):
            if name in values:
                return f"{name} stands twice"
            values[name] = value.strip()
    found = SIGNATURE.fullmatch(values.get("x-edgekeep-signature", ""))
    if not found:
        return "no signature of the form t=…,v1=…"
    issued, tag = found.groups()
    user, session, shard = (values.get(f"x-edgekeep-{name}", "") for name in ("user", "session", "shard"))
    text = "\n".join((issued, method, path, user, session, shard))
    expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, tag):
        return "the signature is not of this request, or of another key"
    # Clocks differ a little: neither much too old nor from the future.
    if abs((time.time() if now is None else now) - int(issued)) > max_age:
        return f"older than {max_age} s"
    return None


def main():
    head = sys.stdin.buffer.read().split(b"\r\n\r\n", 1)[0].decode("utf-8", "surrogateescape")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = [tuple(line.split(":", 1)) for line in lines]
    key = os.environ["EDGEKEEP_ORIGIN_KEY"].encode()
    why = verify(key, method, target.split("?", 1)[0], headers, float(os.environ.get("MAX_AGE", "60")))
    print("accepted" if why is None else f"refused: {why}")
    sys.exit(why is not None)


if __name__ == "__main__":
    main()
