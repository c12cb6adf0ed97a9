#!/usr/bin/env python3
"""smtp_sink.py LOG: a mail server on loopback that keeps what it gets, for the test of docs/recipes/mail.md.

It tells its port, and writes a line of JSON into LOG for each mail: when, to whom, its Message-ID,
its subject. It knows no nobody@…, and busy@… is busy the first time."""
import email, json, socketserver, sys, threading, time
from loopback import serve

log = open(sys.argv[1], "a", buffering=1)
lock = threading.Lock()
seen = set()


class Session(socketserver.StreamRequestHandler):
    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")

    def recipient(self, address):
        user = address.split("@")[0]
        with lock:
            first = address not in seen
            seen.add(address)
        if user == "nobody":
            return "550 no such user"
        return "450 mailbox busy" if user == "busy" and first else "250 ok"

    def handle(self):
        to = None
        self.say("220 sink")
        for line in self.rfile:
            command = line.decode().strip()
            verb = command[:4].upper()
            if verb == "RCPT":
                to = command[command.index("<") + 1:command.index(">")].lower()
                self.say(self.recipient(to))
            elif verb == "DATA":
                self.say("354 go on")
                text = b""
                for line in self.rfile:
                    if line == b".\r\n":
                        break
                    text += line
                mail = email.message_from_bytes(text)
                with lock:
                    log.write(json.dumps({"at": time.time(), "to": to, "id": mail["Message-ID"], "subject": mail["Subject"]}) + "\n")
                self.say("250 ok")
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 ok")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


serve(Server(("127.0.0.1", 0), Session))
