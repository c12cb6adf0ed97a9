#!/usr/bin/env python3
"""webhook_receiver.py LOG: endpoints of webhooks, for the test of docs/recipes/webhooks.md.

A proxy on loopback that answers itself for every host of .example, by the host's name. It tells its
port, and writes a line of JSON into LOG for each call: the host, the id, whether the signature is
that of the host's secret (by this program, and by verify.py of the recipe, which must agree), and
the answer."""
import base64, hashlib, hmac, http.server, json, os, sys, threading, time, urllib.parse
from loopback import serve
from verify import verify

log = open(sys.argv[1], "a", buffering=1)
gate = sys.argv[1] + ".open"  # slow.example answers when this file is there
lock = threading.Lock()
calls = {}


def signed_by(secret, headers, body):
    text = b".".join([headers["Webhook-Id"].encode(), headers["Webhook-Timestamp"].encode(), body])
    return headers["Webhook-Signature"] == "v1," + base64.b64encode(
        hmac.new(secret.encode(), text, hashlib.sha256).digest()).decode()


def answer(name, n):
    """The status, and headers, for the nth call of a host."""
    if name == "flaky" and n <= 2:
        return 500, {}
    if name == "busy" and n == 1:
        return 429, {"Retry-After": "1"}
    if name == "gone":
        return 410, {}
    if name == "moved":
        return 302, {"Location": "http://good.example/elsewhere"}
    return 200, {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = urllib.parse.urlparse(self.path)
        name = url.hostname.split(".")[0]
        # Who moved to another address kept the secret.
        secrets = ["secret of " + name] + (["secret of gone"] if url.path == "/new" else [])
        with lock:
            calls[name] = n = calls.get(name, 0) + 1
        if name == "slow":
            end = time.time() + 120
            while not os.path.exists(gate) and time.time() < end:
                time.sleep(0.02)
        good = any(signed_by(secret, self.headers, body) for secret in secrets)
        theirs = any(verify(secret, self.headers, body) for secret in secrets)
        forged = any(verify(secret, self.headers, body + b" ") for secret in secrets)
        status, headers = answer(name, n) if good and theirs and not forged else (401, {})
        with lock:
            log.write(json.dumps({"host": name, "path": url.path, "id": self.headers["Webhook-Id"], "at": time.time(), "good": good,
                                  "theirs": theirs, "forged": forged, "status": status, "body": json.loads(body)}) + "\n")
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
serve(server)
