#!/usr/bin/env python3
"""pds.py HOSTS.JSON LOG: plays the hosts of repositories, on loopback.

It is a proxy that answers itself, for every host: have fetch.py use it by http_proxy. It tells its
port. The first repositories that pds3 is asked for it answers 503, and a repository that a host
does not have 400. It writes a line of JSON into LOG for each repository that it is asked for."""
import http.server, json, signal, sys, threading, time, urllib.parse

hosts = json.load(open(sys.argv[1]))
log = open(sys.argv[2], "a", buffering=1)
lock = threading.Lock()
ailing = 3


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global ailing
        url = urllib.parse.urlparse(self.path)
        ask = dict(urllib.parse.parse_qsl(url.query))
        method, did = url.path.rsplit("/", 1)[1], ask.get("did") or ask.get("repo")
        repo = hosts.get(did)
        if method == "com.atproto.sync.getLatestCommit":
            with lock:
                log.write(json.dumps({"host": url.hostname, "did": did, "at": time.time()}) + "\n")
                if url.hostname == "pds3.example" and ailing > 0:
                    ailing -= 1
                    return self.answer(503, {"error": "NotAvailable"})
        if repo is None or urllib.parse.urlparse(repo["host"]).hostname != url.hostname:
            return self.answer(400, {"error": "RepoNotFound"})
        if method == "com.atproto.sync.getLatestCommit":
            return self.answer(200, {"cid": "bafyrei", "rev": repo["rev"]})
        if method == "com.atproto.repo.describeRepo":
            collections = sorted({record["uri"].split("/")[3] for record in repo["records"]})
            return self.answer(200, {"did": did, "handle": repo["handle"], "collections": collections})
        records = [r for r in repo["records"] if r["uri"].split("/")[3] == ask["collection"]]
        first, last = int(ask.get("cursor", 0)), int(ask.get("cursor", 0)) + int(ask["limit"])
        self.answer(200, {"records": records[first:last], **({"cursor": str(last)} if last < len(records) else {})})

    def answer(self, status, what):
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print("port", server.server_address[1], flush=True)
server.serve_forever()
