"""Who asks: for each request the credential that its operation's `security` names, made anew where it can be used up.

Users have a bearer token and cookies by turns, so that both ways in are asked. A made-up token never gets further than
its refusal, so every other valid request about a token gets a real one. What came back is counted, by operation and
status, for the test that started this."""

import atexit
import base64
import collections
import itertools
import json
import os
import urllib.request

import schemathesis

URL = os.environ["EDGEKEEP_URL"]
SERVICE = os.environ["EDGEKEEP_SERVICE_TOKEN"]
EDGE = os.environ["EDGEKEEP_EDGE_TOKEN"]
turns = itertools.count()
answers = collections.defaultdict(collections.Counter)


def log_in():
    user = f"openapi-{next(turns)}"
    request = urllib.request.Request(
        f"{URL}/v1/sessions",
        json.dumps({"user_id": user, "device_info": {"made": "for one request"}}).encode(),
        {"authorization": f"Bearer {SERVICE}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def credential(scheme):
    if scheme == "serviceBearer":
        return {"Authorization": f"Bearer {SERVICE}"}
    if scheme == "clientBasic":
        return {"Authorization": "Basic " + base64.b64encode(f"app:{SERVICE}".encode()).decode()}
    if scheme == "edgeCredential":
        return {"X-Edgekeep-Edge": EDGE}
    if scheme == "userBearer":
        return {"Authorization": "Bearer " + log_in()["access_token"]}
    # As a browser sends them from a page of the same origin.
    if scheme == "accessCookie":
        return {"Cookie": "__Host-edgekeep-at=" + log_in()["access_token"], "Sec-Fetch-Site": "same-origin"}
    if scheme == "refreshCookie":
        return {"Cookie": "__Host-edgekeep-rt=" + log_in()["refresh_token"], "Sec-Fetch-Site": "same-origin"}
    raise ValueError(f"a security scheme that nobody here has: {scheme}")


@schemathesis.auth(refresh_interval=None)
class Credentials:
    def get(self, case, context):
        ways = context.operation.definition.raw["security"]
        way = ways[next(turns) % len(ways)] if ways else {}
        return [credential(scheme) for scheme in way] or None

    def set(self, case, data, context):
        case.headers = case.headers or {}
        for headers in data:
            case.headers.update(headers)


TOKENS = {
    "refreshSession": "refresh_token",
    "grantToken": "refresh_token",
    "revokeToken": "token",
    "introspectToken": "token",
}


@schemathesis.hook
def before_call(context, case, kwargs):
    field = TOKENS.get(case.operation.definition.raw["operationId"])
    made_up = case.meta is not None and case.meta.generation.mode.is_positive
    if field and made_up and isinstance(case.body, dict) and next(turns) % 2:
        session = log_in()
        case.body[field] = session["refresh_token"] if next(turns) % 2 else session["access_token"]
        if field == "refresh_token":
            case.body[field] = session["refresh_token"]
        # Whatever else was made up, this token is another client's or has another scope.
        for name in ("client_id", "client_secret", "scope"):
            case.body.pop(name, None)


@schemathesis.hook
def after_call(context, case, response):
    if response is not None and case.method.upper() == case.operation.method.upper():
        answers[case.operation.definition.raw["operationId"]][response.status_code] += 1


@atexit.register
def tell():
    with open(os.environ["EDGEKEEP_ANSWERS"], "w") as file:
        json.dump(answers, file)
