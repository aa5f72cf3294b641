#!/usr/bin/python3 -IS
"""Runs a command in another guest of the same scripts/rdma-vm.sh: what mpirun uses there in place of ssh.

    remote.py HOST WORD...            as with ssh, the words are joined and given to a shell; the folder and the
                                      environment are the caller's; output and exit status come back
    remote.py --serve ADDRESS READY-FILE NAME=VALUE...
                                      the other end; the variables are that guest's own and win
There is no authentication: the network reaches from guest to guest and no further.
"""
import json
import os
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading

PORT = 22
HEADER = struct.Struct("!cI")  # kind of a frame, number of bytes that follow


def send(connection, lock, kind, data):
    with lock:
        connection.sendall(HEADER.pack(kind, len(data)) + data)


def receive(connection):
    """The next frame, or (None, b"") when the other end has gone."""
    def exactly(count):
        data = b""
        while len(data) < count:
            part = connection.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    try:
        header = exactly(HEADER.size)
        kind, size = HEADER.unpack(header) if header else (None, 0)
        data = exactly(size)
    except OSError:
        return None, b""
    return (kind, data) if data is not None else (None, b"")


class Handler(socketserver.BaseRequestHandler):
    own_environment = {}

    def handle(self):
        _, data = receive(self.request)
        call = json.loads(data)
        environment = {os.fsencode(k): os.fsencode(v) for k, v in {**call["environment"], **self.own_environment}.items()}
        lock = threading.Lock()
        try:
            child = subprocess.Popen(["/bin/bash", "-c", call["command"]], cwd=call["folder"], env=environment,
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                     start_new_session=True)
        except OSError as error:
            send(self.request, lock, b"e", f"remote.py: {error}\n".encode())
            send(self.request, lock, b"x", b"126")
            return

        def carry(kind, pipe):
            try:
                while data := os.read(pipe.fileno(), 65536):
                    send(self.request, lock, kind, data)
            except OSError:
                pass

        carriers = [threading.Thread(target=carry, args=pair, daemon=True)
                    for pair in ((b"o", child.stdout), (b"e", child.stderr))]
        for thread in carriers:
            thread.start()

        def watch_caller():  # a caller that has gone hangs up, as a terminal does
            if receive(self.request)[0] is None:
                try:
                    os.killpg(child.pid, signal.SIGHUP)
                except ProcessLookupError:
                    pass

        threading.Thread(target=watch_caller, daemon=True).start()
        status = child.wait()
        for thread in carriers:
            thread.join()
        try:
            send(self.request, lock, b"x", str(status if status >= 0 else 128 - status).encode())
        except OSError:
            pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def serve(address, ready_file, variables):
    Handler.own_environment = dict(variable.split("=", 1) for variable in variables)
    with Server((address, PORT), Handler) as server:
        open(ready_file, "w").close()
        server.serve_forever()


def call(host, words):
    connection = socket.create_connection((host, PORT), timeout=30)
    connection.settimeout(None)
    request = {"command": " ".join(words), "folder": os.getcwd(), "environment": dict(os.environ)}
    send(connection, threading.Lock(), b"c", json.dumps(request).encode())
    while True:
        kind, data = receive(connection)
        if kind == b"x":
            return int(data)
        if kind is None:
            print(f"remote.py: {host} has gone", file=sys.stderr)
            return 255
        stream = sys.stdout.buffer if kind == b"o" else sys.stderr.buffer
        stream.write(data)
        stream.flush()


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "--serve":
        serve(sys.argv[2], sys.argv[3], sys.argv[4:])
    elif len(sys.argv) > 2 and not sys.argv[1].startswith("-"):
        sys.exit(call(sys.argv[1], sys.argv[2:]))
    else:
        sys.exit(__doc__)
