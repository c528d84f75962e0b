#!/usr/bin/env python3
"""What the official client sees of a server: openai_client.py URL KEY MODEL. Every answer is checked as an author of
clients would read it. The server runs stories260K (or any model with text for all tokens) with the template `plain`,
16 places, and the key KEY."""
import asyncio, json, sys, time, traceback, urllib.error, urllib.request
import openai

URL, KEY, MODEL = sys.argv[1:4]
client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
USER = [{"role": "user", "content": "Tell me of a little dog"}]
GREEDY = dict(model=MODEL, temperature=0)


class Raw:
    """An answer as it came, without the client: GET, or POST where there is a body."""

    def __init__(self, path, body=None, key=KEY):
        head = {"Content-Type": "application/json", **({"Authorization": "Bearer " + key} if key else {})}
        r = urllib.request.Request(URL + path, None if body is None else json.dumps(body).encode(), head)
        try:
            got = urllib.request.urlopen(r, timeout=60)
        except urllib.error.HTTPError as e:
            got = e
        self.status, self.headers, self.text = got.status, got.headers, got.read().decode()

    def json(self):
        return json.loads(self.text)


def ids_of(text, **more):
    return Raw("/tokenize", {"model": MODEL, "prompt": text, **more}).json()["tokens"]


def check(what, true, *more):
    if not true:
        raise AssertionError(f"{what} {more}")


def raises(kind, status, param=None, code=None, **request):
    """The error of a request, and that it is of this class."""
    call = request.pop("call", client.chat.completions.create)
    try:
        call(**request)
    except openai.APIStatusError as e:
        check(f"class of {request}", type(e) is kind, type(e), e)
        check("status", e.status_code == status, e)
        body = e.body
        check("error object", isinstance(body, dict) and set(body) == {"message", "type", "param", "code"}, body)
        check("message ends as a sentence", body["message"] and body["message"][-1] in ".!?", body)
        if param is not None:
            check("param", body["param"] == param, body)
        if code is not None:
            check("code", body["code"] == code, body)
        return e
    raise AssertionError(f"no error: {request}")


def models():
    page = client.models.list()
    check("one model", [m.id for m in page.data] == [MODEL] and page.object == "list")
    m = client.models.retrieve(MODEL)
    check("its fields", m.object == "model" and m.created > 0 and isinstance(m.owned_by, str))
    raises(openai.NotFoundError, 404, code="model_not_found", call=client.models.retrieve, model="none")
    raises(openai.NotFoundError, 404, param="model", code="model_not_found", model="none", messages=USER)


def chat():
    r = client.chat.completions.create(messages=USER, max_completion_tokens=20, **GREEDY)
    c = r.choices[0]
    check("ids", r.id.startswith("chatcmpl-") and r.object == "chat.completion" and abs(r.created - time.time()) < 60)
    check("model and fingerprint", r.model == MODEL and r.system_fingerprint)
    check("choice", len(r.choices) == 1 and c.index == 0 and c.finish_reason in ("length", "stop") and c.logprobs is None)
    check("message", c.message.role == "assistant" and c.message.content and c.message.refusal is None and not c.message.tool_calls)
    u = r.usage
    check("usage", u.prompt_tokens > 5 and u.completion_tokens <= 20 and u.total_tokens == u.prompt_tokens + u.completion_tokens)
    check("details", 0 <= u.prompt_tokens_details.cached_tokens < u.prompt_tokens and u.completion_tokens_details.reasoning_tokens == 0)
    again = client.chat.completions.create(messages=USER, max_tokens=20, **GREEDY)
    check("greedy is greedy, and max_tokens is the other name", again.choices[0].message.content == c.message.content)
    parts = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]},
             {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Go on", "name": "Ann"}]
    check("roles and parts", client.chat.completions.create(messages=parts, max_tokens=3, **GREEDY).choices[0].message.content is not None)
    return c.message.content


def stream(whole):
    with client.chat.completions.create(messages=USER, max_tokens=20, stream=True, stream_options={"include_usage": True}, **GREEDY) as s:
        check("type", s.response.headers["content-type"].startswith("text/event-stream"))
        check("not cached", "no-cache" in s.response.headers.get("cache-control", ""))
        check("not compressed", "content-encoding" not in s.response.headers)
        chunks = list(s)
    check("one id, one time", len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1 and chunks[0].object == "chat.completion.chunk")
    check("role first and only there", chunks[0].choices[0].delta.role == "assistant" and not any(c.choices and c.choices[0].delta.role for c in chunks[1:]))
    check("the same text", "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole)
    last = chunks[-2].choices[0]
    check("the last choice is empty and has the reason", last.finish_reason in ("length", "stop") and not last.delta.content)
    check("only there", [bool(c.choices and c.choices[0].finish_reason) for c in chunks].count(True) == 1)
    check("usage at the end, and null before", chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0 and all(c.usage is None for c in chunks[:-1]))
    check("no usage when not asked for", all(c.usage is None and c.choices for c in client.chat.completions.create(messages=USER, max_tokens=3, stream=True, **GREEDY)))
    two = list(client.chat.completions.create(messages=USER, max_tokens=6, n=2, seed=1, model=MODEL, stream=True))
    check("two choices in a stream", {c.choices[0].index for c in two} == {0, 1} and sum(bool(c.choices[0].finish_reason) for c in two) == 2
          and sum(c.choices[0].delta.role == "assistant" for c in two) == 2)


def raw_stream():
    """The bytes of a stream, which the client hides."""
    events = Raw("/v1/chat/completions", dict(messages=USER, max_tokens=4, stream=True, **GREEDY)).text.split("\n\n")
    check("events are single lines of data", events[-1] == "" and all(e.startswith("data: ") and "\n" not in e for e in events[:-1] if not e.startswith(":")))
    check("[DONE] ends it", events[-2] == "data: [DONE]")
    check("null is null", '"finish_reason":null' in events[0].replace(" ", ""))


def choices():
    a = client.chat.completions.create(messages=USER, max_tokens=24, n=3, seed=11, temperature=1, model=MODEL)
    b = client.chat.completions.create(messages=USER, max_tokens=24, n=3, seed=11, temperature=1, model=MODEL)
    c = client.chat.completions.create(messages=USER, max_tokens=24, n=3, seed=12, temperature=1, model=MODEL)
    texts = lambda r: [x.message.content for x in r.choices]
    check("three in order", [x.index for x in a.choices] == [0, 1, 2] and len(set(texts(a))) > 1)
    check("a seed fixes them", texts(a) == texts(b) and texts(a) != texts(c))
    check("usage counts them all", a.usage.completion_tokens > 24)


def stops(whole):
    cut = whole[len(whole) // 2:len(whole) // 2 + 4]
    r = client.chat.completions.create(messages=USER, max_tokens=20, stop=cut, **GREEDY).choices[0]
    check("a stop text is left out", r.finish_reason == "stop" and r.message.content == whole[:whole.index(cut)], r, cut)
    s = "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(messages=USER, max_tokens=20, stop=["never in it", cut], stream=True, **GREEDY))
    check("in a stream too", s == r.message.content, s)
    raises(openai.BadRequestError, 400, param="stop", model=MODEL, messages=USER, stop=["a"] * 5)


def logprobs():
    r = client.chat.completions.create(messages=USER, max_tokens=12, logprobs=True, top_logprobs=4, **GREEDY).choices[0]
    tokens = r.logprobs.content
    text = bytes(b for t in tokens for b in t.bytes).decode(errors="replace")
    check("tokens make the text", r.message.content in (text, text.removeprefix(" ")), text, r.message.content)  # an answer begins without SentencePiece's space
    for t in tokens:
        check("at most 0", t.logprob <= 0 and all(x.logprob <= 0 for x in t.top_logprobs))
        check("falling, and greedy takes the first", len(t.top_logprobs) == 4 and t.top_logprobs[0].bytes == t.bytes
              and all(x.logprob >= y.logprob for x, y in zip(t.top_logprobs, t.top_logprobs[1:])))
    streamed = [t for c in client.chat.completions.create(messages=USER, max_tokens=12, logprobs=True, top_logprobs=4, stream=True, **GREEDY)
                if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    check("the same in a stream", [(t.token, round(t.logprob, 3)) for t in streamed] == [(t.token, round(t.logprob, 3)) for t in tokens])
    t = client.completions.create(prompt="Once upon", max_tokens=5, logprobs=2, **GREEDY).choices[0]
    check("completions have the older form", len(t.logprobs.tokens) == len(t.logprobs.token_logprobs) == len(t.logprobs.top_logprobs) == len(t.logprobs.text_offset)
          and "".join(t.logprobs.tokens) == t.text)
    raises(openai.BadRequestError, 400, param="top_logprobs", model=MODEL, messages=USER, logprobs=True, top_logprobs=21)
    raises(openai.BadRequestError, 400, param="top_logprobs", model=MODEL, messages=USER, top_logprobs=2)


def completions():
    r = client.completions.create(prompt="Once upon a time", max_tokens=8, **GREEDY)
    check("a completion", r.object == "text_completion" and r.id.startswith("cmpl-") and r.choices[0].text and r.choices[0].finish_reason == "length")
    ids = ids_of("Once upon a time")
    check("ids are as good as text", client.completions.create(prompt=ids, max_tokens=8, **GREEDY).choices[0].text == r.choices[0].text)
    back = Raw("/detokenize", {"model": MODEL, "tokens": ids}).json()
    check("and back", "Once upon a time" in back["prompt"], back)
    many = client.completions.create(prompt=["Once upon a time", "The dog"], max_tokens=8, n=2, seed=3, model=MODEL)
    check("prompts times n", [c.index for c in many.choices] == [0, 1, 2, 3])
    both = client.completions.create(prompt=["Once upon a time", "The dog"], max_tokens=8, **GREEDY)
    check("each as if alone", both.choices[0].text == r.choices[0].text)
    check("echo", client.completions.create(prompt="Once upon a time", echo=True, max_tokens=8, **GREEDY).choices[0].text == "Once upon a time" + r.choices[0].text)
    check("best_of", len(client.completions.create(prompt="The", best_of=3, n=1, max_tokens=4, model=MODEL).choices) == 1)
    check("a stream of it", "".join(c.choices[0].text for c in client.completions.create(prompt="Once upon a time", max_tokens=8, stream=True, **GREEDY)) == r.choices[0].text)
    raises(openai.BadRequestError, 400, param="suffix", call=client.completions.create, model=MODEL, prompt="a", suffix="b")


def parameters():
    extra = dict(top_k=5, min_p=0.01, repetition_penalty=1.1, ignore_eos=True, min_tokens=3, cache_salt="s", priority=1)
    r = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=5, temperature=1.5, top_p=0.5, presence_penalty=1, frequency_penalty=-1,
                                       user="u", metadata={"a": "b"}, store=False, service_tier="auto", extra_body=extra)
    check("all of them at once", r.usage.completion_tokens == 5)
    r = client.completions.create(prompt="The", max_tokens=5, logit_bias={str(ids_of("a")[-1]): 100}, model=MODEL)
    check("logit_bias decides", set(r.choices[0].text) <= {" ", "a"}, r.choices[0].text)
    r = client.chat.completions.create(messages=USER, max_tokens=300, response_format={"type": "json_object"}, seed=5, model=MODEL).choices[0]
    if r.finish_reason == "stop":
        check("an object", isinstance(json.loads(r.message.content), dict))
    else:
        check("the beginning of an object", r.message.content.lstrip().startswith("{"), r.message.content)
    bad = openai.BadRequestError
    for field, value in (("temperature", 2.1), ("temperature", "hot"), ("top_p", 0), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.5), ("n", 17), ("n", 0),
                         ("presence_penalty", 2.5), ("frequency_penalty", -3), ("seed", "x"), ("logit_bias", {"1": 101}), ("stream", "yes"), ("stop", [1])):
        e = raises(bad, 400, model=MODEL, messages=USER, **{field: value})
        check("the field is named", (e.body["param"] or "").split(".")[0].split("[")[0] == field, field, e.body)
    raises(bad, 400, param="messages", model=MODEL, messages=[])
    e = raises(bad, 400, model=MODEL, messages=[{"role": "robot", "content": "x"}])
    check("the message is named", e.body["param"].startswith("messages[0]"), e.body)
    e = raises(bad, 400, model=MODEL, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}])
    check("parts that are no text are refused", e.body["param"].startswith("messages[0].content"), e.body)
    raises(bad, 400, param="tools", model=MODEL, messages=USER, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    raises(bad, 400, model=MODEL, messages=USER, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}})
    raises(bad, 400, code="context_length_exceeded", model=MODEL, messages=[{"role": "user", "content": "word " * 5000}], max_tokens=10)
    raises(bad, 400, code="context_length_exceeded", model=MODEL, messages=USER, max_tokens=100000)
    check("unknown fields are ignored", client.chat.completions.create(messages=USER, max_tokens=2, extra_body={"never_heard": 1}, **GREEDY).choices)


def keys_and_routes():
    wrong = openai.OpenAI(base_url=URL + "/v1", api_key=KEY[:-1] + "#", max_retries=0)
    e = raises(openai.AuthenticationError, 401, code="invalid_api_key", call=wrong.chat.completions.create, model=MODEL, messages=USER)
    check("WWW-Authenticate", e.response.headers.get("www-authenticate", "").startswith("Bearer"))
    raises(openai.AuthenticationError, 401, call=wrong.models.list)
    raises(openai.NotFoundError, 404, call=client.embeddings.create, model=MODEL, input="x")
    raises(openai.NotFoundError, 404, call=client.responses.create, model=MODEL, input="x")
    check("health needs no key", Raw("/health", key=None).json() == {"status": "ok"})
    check("the rest does", all(Raw(path, key=None).status == 401 for path in ("/metrics", "/version", "/v1/models", "/nothing")))
    r = Raw("/v1/chat/completions")
    check("405 and Allow", r.status == 405 and "POST" in r.headers["allow"])


def timeouts_and_retries():
    try:
        client.with_options(timeout=0.02).chat.completions.create(messages=USER, max_tokens=400, model=MODEL, extra_body={"ignore_eos": True}, n=16)
        raise AssertionError("no timeout")
    except openai.APITimeoutError:
        pass
    end = time.time() + 10
    while "\nstrata_num_requests_running 0\n" not in Raw("/metrics").text:
        check("a client that left is forgotten", time.time() < end)
        time.sleep(.05)


async def many_at_once():
    """Sixteen clients at once, each as if alone; then more than there is room for, with and without retries."""
    a = openai.AsyncOpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=120)

    async def ask(c, i, n):
        text = ""
        async for chunk in await c.completions.create(prompt="Once upon a time there were %d" % i, max_tokens=n, stream=True, **GREEDY):
            text += chunk.choices[0].text
        return text

    together = await asyncio.gather(*[ask(a, i, 40 + i) for i in range(16)])
    alone = [await ask(a, i, 40 + i) for i in range(16)]
    check("together as alone", together == alone, [(x, y) for x, y in zip(together, alone) if x != y][:1])

    async def long(c):
        return await c.completions.create(prompt="x", max_tokens=400, model=MODEL, extra_body={"ignore_eos": True})

    async def flood(c, n):
        return await asyncio.gather(*[long(c) for _ in range(n)], return_exceptions=True)

    got = await flood(a, 150)
    refused = [e for e in got if isinstance(e, Exception)]
    check("some are refused", 0 < len(refused) < 150, len(refused), refused[:1])
    for e in refused:
        check("with 503", type(e) is openai.InternalServerError and e.status_code == 503 and e.body["code"] and int(e.response.headers["retry-after"]) >= 1, repr(e))
    patient = await flood(a.with_options(max_retries=20), 150)
    check("and with retries none", not any(isinstance(e, Exception) for e in patient), [e for e in patient if isinstance(e, Exception)][:1])
    await a.close()


def main():
    models()
    whole = chat()
    print("ok: openai: models, chat", flush=True)
    for name, test in (("stream", lambda: stream(whole)), ("bytes of a stream", raw_stream), ("n and seed", choices), ("stop", lambda: stops(whole)),
                       ("logprobs", logprobs), ("completions", completions), ("parameters and their errors", parameters), ("keys and routes", keys_and_routes),
                       ("timeouts", timeouts_and_retries), ("many at once, retries", lambda: asyncio.run(many_at_once()))):
        test()
        print("ok: openai:", name, flush=True)


try:
    main()
except (AssertionError, openai.APIError):
    traceback.print_exc(file=sys.stdout)
    sys.exit("FAILED: openai")
