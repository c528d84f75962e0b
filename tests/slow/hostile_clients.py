#!/usr/bin/env python3
"""Clients that mean no good, until standard input ends: hostile_clients.py PORT LORIS NEVER.
LORIS connections send a byte a second of a request, half of them of its head and half of its body, and come again when
they are cut. NEVER connections ask for streams or, every other one, for the tokens of a long text, and read nothing
of the answers. Prints "ready" when all were opened,
and at the end a line of numbers."""
import errno, json, select, socket, sys, time

PORT, LORIS, NEVER = map(int, sys.argv[1:4])
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: "
BODY = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
count = dict(opened=0, cut=0, answered=0, failed=0)


def connect(first, small=False):
    s = socket.socket()
    if small:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    s.settimeout(5)
    try:
        s.connect(("127.0.0.1", PORT))
        s.sendall(first)
    except OSError:
        count["failed"] += 1
        s.close()
        return None
    s.setblocking(False)
    count["opened"] += 1
    return s


loris = []
for i in range(LORIS):
    loris.append([connect(HEAD if i % 2 else BODY), i])
    if i % 50 == 49:
        time.sleep(.02)
never = []
for i in range(NEVER):
    route, body = ("completions", {"prompt": "x", "max_tokens": 32, "stream": True, "ignore_eos": True, "logprobs": 5}) if i % 2 else ("tokenize", {"prompt": "long " * 20000})
    body = json.dumps({"model": sys.argv[4], **body}).encode()
    never.append(connect(b"POST /v1/%s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (route.encode(), len(body)) + body, small=True))
    time.sleep(.002)
print("ready", flush=True)

at = 0
end = False
while not end:
    begin = time.time()
    # a tenth of them each tenth of a second
    for k in range(at, LORIS, 10):
        s, i = loris[k]
        if s is not None:
            try:
                s.send(b"x")
                try:
                    data = s.recv(4096)
                    count["answered" if data else "cut"] += 1
                    s.close()
                    s = None
                except BlockingIOError:
                    pass
            except OSError:
                count["cut"] += 1
                s.close()
                s = None
        if s is None:
            loris[k][0] = connect(HEAD if i % 2 else BODY)
    at = (at + 1) % 10
    rest = .1 - (time.time() - begin)
    end = bool(select.select([sys.stdin], [], [], max(rest, 0))[0])
broken = read = 0
for s in never:
    if s is None:
        continue
    try:
        s.setblocking(True)
        s.settimeout(2)
        while data := s.recv(1 << 16):
            read += len(data)
    except OSError as e:
        broken += e.errno in (errno.ECONNRESET, errno.EPIPE)
print(f"loris: {count['opened']} opened, {count['answered']} answered with a refusal, {count['cut']} cut, {count['failed']} not taken; "
      f"never-readers: {broken} of {NEVER} reset, {read >> 10} kB left", flush=True)
