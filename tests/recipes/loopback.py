"""Serving on loopback, for the programs of this directory."""
import signal, threading


def serve(server):
    """Tells the server's port, and serves until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print("port", server.server_address[1], flush=True)
    server.serve_forever()
