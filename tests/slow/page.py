#!/usr/bin/env python3
"""Drives the server's web page in headless Chromium over the DevTools protocol. Python's library only.

    page.py --chromium BIN --page runtime/page.html [--policy TEXT] [--url http://127.0.0.1:PORT] [--shots DIR]

First beside a server of its own, whose answers are hostile or known; then, with --url, beside a real one.
"""
import argparse, base64, http.server, json, os, re, shutil, socket, struct, subprocess, sys, tempfile, threading, time, urllib.parse, urllib.request

HOSTILE = ['<img src=x onerror="window.broken=1">', '<script>window.broken=1</script>', '</span></div>', '\u202e', '&lt;b&gt;', '\n\n', '"\'`']
SITES = [{"name": f"model.layers.{l}.{k}_res_proj", "partial": p} for l, k, p in
         [(0, "mlp", True), (1, "self_attention", True), (1, "mlp", False), (2, "self_attention", True), (2, "mlp", True)]]
SITES.append({"name": "model.output_attn_res_proj", "partial": True})
WIDTH = [2, 2, 2, 3, 3, 3]


def check(what, true):
    if not true:
        raise AssertionError(what)
    print("ok: page:", what, flush=True)


# ---- a server with known answers ----

class Mock(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    page = policy = ""
    requests, left = [], threading.Event()

    def log_message(self, *a):
        pass

    def reply(self, status, body, kind="application/json", more=()):
        self.send_response(status)
        for k, v in (("Content-Type", kind), ("Content-Length", str(len(body))), *more):
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/":
            return self.reply(200, Mock.page.encode(), "text/html; charset=utf-8", [("Content-Security-Policy", Mock.policy)])
        if self.path == "/version":
            return self.reply(200, b'{"version":"0","model":"mock","depth":true}')
        if self.path == "/v1/models":
            if self.headers.get("Authorization") != "Bearer secret":
                return self.reply(401, b'{"error":{"message":"This server needs a key.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}')
            return self.reply(200, b'{"object":"list","data":[{"id":"mock","object":"model"}]}')
        self.reply(404, b"{}")

    def event(self, body):
        data = b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\r\n\r\n"
        # cut anywhere: the page must put events together again
        for part in (data[:7], data[7:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Mock.requests.append(body)
        last = body["messages"][-1]["content"]
        if last == "overload":
            return self.reply(503, b'{"error":{"message":"All places are taken.","type":"server_error","param":null,"code":"overloaded"}}', more=[("Retry-After", "7")])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = lambda delta, why=None, **more: self.event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock",
                                                            "choices": [{"index": 0, "delta": delta, "finish_reason": why}], **more})
        chunk({"role": "assistant", "content": ""})
        text = HOSTILE if last == "hostile" else [f" word{i}" for i in range(400 if last == "endless" else 24)]
        try:
            for i, t in enumerate(text):
                weights = [[(1 if (i + j) % n == k else 0.25) / (1 + 0.25 * (n - 1)) for k in range(n)] for j, n in enumerate(WIDTH)]
                depth = {"weights": weights, **({"sites": SITES} if i == 0 else {})}
                chunk({"content": "" if last == "held" and i == 2 else t}, strata_depth=depth)
                self.wfile.write(b"8\r\n: ping\n\n\r\n")
                if last == "endless":
                    time.sleep(.05)
                if last == "break" and i == 3:
                    self.event({"error": {"message": "The engine broke.", "type": "server_error", "param": None, "code": None}})
                    break
            else:
                chunk({}, "stop")
                self.event({"id": "c", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": len(text), "total_tokens": 9 + len(text),
                                                                "prompt_tokens_details": {"cached_tokens": 4}}})
            self.event(b"[DONE]")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            Mock.left.set()


# ---- DevTools: a WebSocket client of the few frames that are needed ----

class Socket:
    def __init__(self, url):
        u = urllib.parse.urlparse(url)
        self.s = socket.create_connection((u.hostname, u.port), timeout=60)
        self.rest = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self.s.sendall(f"GET {u.path} HTTP/1.1\r\nHost: {u.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.s.recv(1)
        assert b" 101 " in head, head

    def take(self, n):
        while len(self.rest) < n:
            more = self.s.recv(1 << 16)
            assert more, "the browser is gone"
            self.rest += more
        out, self.rest = self.rest[:n], self.rest[n:]
        return out

    def send(self, text):
        data, mask = text.encode(), os.urandom(4)
        n = len(data)
        head = bytes([0x81]) + (bytes([0x80 | n]) if n < 126 else bytes([0xFE]) + struct.pack(">H", n) if n < 65536 else bytes([0xFF]) + struct.pack(">Q", n))
        self.s.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))

    def receive(self):
        out = b""
        while True:
            a, b = self.take(2)
            n = b & 127
            n = struct.unpack(">H", self.take(2))[0] if n == 126 else struct.unpack(">Q", self.take(8))[0] if n == 127 else n
            data = self.take(n)
            if a & 15 in (0, 1):
                out += data
                if a & 0x80:
                    return out.decode()


class Browser:
    def __init__(self, binary):
        self.dir = tempfile.mkdtemp(prefix="strata-page-")
        self.process = subprocess.Popen(
            [binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-port=0",
             "--remote-allow-origins=*", "--user-data-dir=" + self.dir, "--window-size=1280,860", "about:blank"],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        port_file, end = os.path.join(self.dir, "DevToolsActivePort"), time.time() + 60
        while not os.path.exists(port_file) or not open(port_file).read().strip():
            assert time.time() < end and self.process.poll() is None, "chromium does not start"
            time.sleep(.1)
        port = open(port_file).read().split()[0]
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        self.socket = Socket(next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page"))
        self.id, self.said = 0, []
        for domain in ("Page", "Runtime", "Log"):
            self.call(domain + ".enable")

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.dir, ignore_errors=True)

    def call(self, method, **params):
        self.id += 1
        self.socket.send(json.dumps({"id": self.id, "method": method, "params": params}))
        while True:
            m = json.loads(self.socket.receive())
            if m.get("id") == self.id:
                assert "error" not in m, (method, m.get("error"))
                return m["result"]
            if m.get("method") == "Runtime.exceptionThrown" or (m.get("method") == "Log.entryAdded" and m["params"]["entry"]["source"] in ("security", "javascript")):
                self.said.append(json.dumps(m["params"])[:600])

    def js(self, text):
        r = self.call("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in r, (text, r["exceptionDetails"])
        return r["result"].get("value")

    def wait(self, text, seconds=30):
        end = time.time() + seconds
        while not self.js(text):
            assert time.time() < end, f"never true: {text}; the page: {self.js('document.body.innerText')[:800]}"
            time.sleep(.05)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && !!document.getElementById('input')")

    def key(self, name, code=0, text=""):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **({"text": text} if text and kind == "keyDown" else {}))

    def say(self, text):
        self.js("document.getElementById('input').focus()")
        self.call("Input.insertText", text=text)
        self.key("Enter", 13, "\r")

    def mouse(self, selector, click=True, dx=.5, dy=.5):
        x, y = self.js(f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); return [b.x + b.width * {dx}, b.y + b.height * {dy}]; }})()")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def size(self, width, height, dark=False, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if mobile else 1, mobile=mobile)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def shot(self, path):
        time.sleep(.3)
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


ANSWER = "[...document.querySelectorAll('.answer')].pop()"
IDLE = f"!!({ANSWER}) && !({ANSWER}).classList.contains('running')"
# Colours of the map's pixels: more than a few means that something is drawn.
DRAWN = "(() => { const c = document.getElementById('map'); if (c.hidden) return 0; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; " \
        "const s = new Set(); for (let i = 0; i < d.length; i += 4) if (d[i + 3] === 255) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return s.size; })()"


def text_of(b, selector):
    return b.js(f"document.querySelector({json.dumps(selector)}).textContent")


def beside_mock(b, shots):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mock)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    b.open(f"http://127.0.0.1:{server.server_port}/")
    b.wait("document.getElementById('hello').textContent === 'This server needs a key.'")
    check("a refusal is shown in the server's words", "API key" in text_of(b, "#hint"))
    b.mouse("#show-settings")
    b.js("document.getElementById('key').focus()")
    b.call("Input.insertText", text="secret")
    b.mouse("#done")
    b.wait("document.getElementById('model').textContent === 'mock'")
    check("the key from the settings opens it", True)

    b.say("hello")
    b.wait(IDLE)
    b.wait(DRAWN + " > 4")
    answer = b.js(f"({ANSWER}).querySelector('.text').textContent")
    check("the whole answer is there", answer == "".join(f" word{i}" for i in range(24)))
    check("a span for every token", b.js(f"({ANSWER}).querySelectorAll('.t').length") == 24)
    foot = b.js(f"({ANSWER}).querySelector('.foot').textContent")
    check(f"what it cost is shown: {foot}", foot.startswith("24 tokens · ") and "tok/s" in foot and "prompt 9 (4 cached)" in foot)
    sent = Mock.requests[-1]
    check("the request says what the settings say", sent["stream"] and sent["strata_depth"] is True and sent["max_tokens"] == 256
          and sent["stream_options"] == {"include_usage": True} and sent["messages"] == [{"role": "user", "content": "hello"}])

    b.mouse(".answer .t:nth-child(5)")
    b.wait("document.querySelectorAll('.t.on').length === 1")
    check("a picked token is named", text_of(b, "#token") == 'token 5 of 24: " word4"')
    b.js("document.querySelector('.answer .text').focus()")
    b.key("ArrowRight", 39)
    b.wait("document.getElementById('token').textContent.startsWith('token 6 of 24')")
    b.key("End", 35)
    b.wait("document.getElementById('token').textContent.startsWith('token 24 of 24')")
    check("arrow keys go through the tokens", True)
    # the output's site at token 24 (i = 23, j = 5): 28 % 3 = 1, block 1; the weights are 1, .25, .25 over 1.5
    b.js("document.getElementById('map').focus()")
    b.key("Enter", 13)
    b.key("ArrowRight", 39)
    b.wait("document.getElementById('say').textContent === 'output reads block 1: 0.6667'")
    b.key("ArrowDown", 40)
    b.wait("document.getElementById('say').textContent === '2 FFN reads block 1: 0.1667'")
    b.key("ArrowDown", 40)
    b.key("ArrowDown", 40)
    b.key("ArrowDown", 40)
    b.wait("document.getElementById('say').textContent === '1 mixer does not read block 1'")
    check("cells give their numbers to the keyboard", True)
    b.mouse("#mean")
    b.wait("document.getElementById('token').textContent === 'mean of 24 tokens'")
    b.mouse("#map", click=False, dx=.95, dy=.02)
    b.wait("document.getElementById('say').textContent === 'output reads running sum: 0.3333'")
    check("the mean over the answer, and numbers under the pointer", True)
    b.mouse("#map", dx=.3, dy=.5)
    b.wait("/site (1 FFN|1 mixer|2 mixer)/.test(document.getElementById('strip-title').textContent)")
    check("a row of the map chooses the strip's site", True)
    b.mouse("#strip", dx=.5)
    b.wait("/^token 1[0-9] of 24/.test(document.getElementById('token').textContent)")
    check("the strip chooses a token", True)
    shot(b, shots, "mock")

    b.say("hostile")
    b.wait("document.querySelectorAll('.answer').length === 2 && " + IDLE)
    check("markup in an answer stays text", b.js(f"({ANSWER}).querySelector('.text').textContent") == "".join(HOSTILE)
          and b.js("window.broken === undefined && !document.querySelector('main img, main script')"))
    b.say("held")
    b.wait("document.querySelectorAll('.answer').length === 3 && " + IDLE)
    check("a token without text keeps its place", b.js(f"({ANSWER}).querySelectorAll('.t').length") == 24 and b.js(f"({ANSWER}).querySelectorAll('.held').length") == 1)

    b.mouse(".again")
    b.wait("document.querySelectorAll('.answer').length === 3 && " + IDLE + f" && ({ANSWER}).querySelectorAll('.t').length === 24")
    check("regenerating asks the same again", [m["content"] for m in Mock.requests[-1]["messages"]] == [m["content"] for m in Mock.requests[-2]["messages"]])

    b.say("endless")
    b.wait(f"({ANSWER}).querySelectorAll('.t').length > 10 && document.querySelectorAll('.answer').length === 4")
    check("there is no second question while one is answered", b.js("document.getElementById('send').hidden && !document.getElementById('stop').hidden"))
    b.mouse("#stop")
    b.wait(IDLE)
    check("stop ends the answer and the connection", Mock.left.wait(20) and "stopped" in b.js(f"({ANSWER}).querySelector('.foot').textContent"))
    b.say("break")
    b.wait(f"!!({ANSWER}).querySelector('.error') && " + IDLE)
    check("an error in the stream is shown", text_of(b, ".error").startswith("The engine broke."))
    b.say("overload")
    b.wait("document.querySelectorAll('.error').length === 2 && " + IDLE)
    said = b.js(f"({ANSWER}).querySelector('.error').textContent")
    check("a refusal is shown with its code and time", said == "All places are taken.503 · overloaded · try again in 7 s")
    b.say("hello")
    b.wait("document.querySelectorAll('.answer').length === 7 && " + IDLE)
    check("a question without an answer is not sent again", "overload" not in [m["content"] for m in Mock.requests[-1]["messages"]])
    b.mouse("#clear")
    b.wait("!document.querySelector('.answer') && !document.getElementById('empty').hidden")
    check("clear empties the page", True)
    check(f"nothing was said to the console {b.said}", not b.said)
    server.shutdown()


def beside_real(b, url, shots, prompt):
    b.open(url)
    b.wait("document.getElementById('model').textContent !== ''")
    deep = b.js("server.depth")
    b.mouse("#show-settings")
    b.js("document.getElementById('max-tokens').value = 48; document.getElementById('temperature').value = 0.7")
    b.mouse("#done")
    b.say(prompt)
    b.wait(f"({ANSWER}) && ({ANSWER}).querySelector('.text').textContent.length > 0", 60)
    b.wait(IDLE, 120)
    check("no error", b.js("!document.querySelector('.error')"))
    foot = b.js(f"({ANSWER}).querySelector('.foot').textContent")
    check(f"a real answer: {foot}", re.match(r"[0-9]+ tokens? · ", foot))
    if deep:
        b.wait(DRAWN + " > 4")
        b.mouse(".answer .t:nth-child(3)")
        b.wait("document.querySelectorAll('.t.on').length === 1")
        sums = b.js("messages[messages.length - 1].tokens.map(t => t.weights.map(w => w.reduce((a, x) => a + x, 0))).flat()")
        check(f"depth weights of {len(sums)} sites and tokens sum to one", sums and all(abs(x - 1) < 5e-3 for x in sums))
        check("a span for every token", b.js("messages[messages.length - 1].usage.completion_tokens - document.querySelectorAll('.answer .t').length") in (0, 1))
    shot(b, shots, "real")
    b.mouse("#clear")
    b.js("document.getElementById('form').value = 'text'")
    b.say(prompt)
    b.wait(f"({ANSWER}) && ({ANSWER}).querySelector('.text').textContent.length > 0", 60)
    b.wait(IDLE, 120)
    check("a text is continued as it is", b.js("!document.querySelector('.error')") and (not deep or b.js("document.querySelectorAll('.answer .t').length > 0")))
    check(f"nothing was said to the console {b.said}", not b.said)


def shot(b, shots, name):
    if not shots:
        return
    os.makedirs(shots, exist_ok=True)
    for kind, width, height, dark, mobile in (("light", 1280, 860, 0, 0), ("dark", 1280, 860, 1, 0), ("phone", 390, 780, 0, 1)):
        b.size(width, height, bool(dark), bool(mobile))
        b.shot(os.path.join(shots, f"{name}-{kind}.png"))
        wide = b.js("document.documentElement.scrollWidth - innerWidth")
        check(f"{kind}: nothing is wider than the window", wide <= 0)
    b.size(1280, 860)


def main():
    p = argparse.ArgumentParser()
    for name in ("chromium", "page", "policy", "url", "shots"):
        p.add_argument("--" + name, default="")
    p.add_argument("--prompt", default="Once upon a time")
    a = p.parse_args()
    Mock.page, Mock.policy = open(a.page, encoding="utf-8").read(), a.policy
    b = Browser(a.chromium)
    try:
        b.size(1280, 860)
        beside_mock(b, a.shots)
        if a.url:
            beside_real(b, a.url, a.shots, a.prompt)
    except AssertionError as e:
        print("FAILED: page:", e, b.said)
        sys.exit(1)
    finally:
        b.close()


main()
