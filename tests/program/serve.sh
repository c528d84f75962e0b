#!/bin/bash
# `strata serve`, byte by byte as curl sees it: every route, the forms of answers, and a refusal of every kind.
# tests/cli/serve.want is what is wanted; UPDATE=1 rewrites it. Ids, times, versions and the numbers of
# the model are masked; which tokens come is decided by logit_bias, not by the model.
. tests/program/lib.sh
. tests/serve_lib.sh
command -v curl >/dev/null || { ok "skipped: no curl"; exit 0; }
want=tests/cli/serve.want

# ask NAME PATH [curl options]: adds what came to $tmp/got.
ask() {
    local name=$1 path=$2
    shift 2
    curl -s -i --max-time 20 "$url$path" "$@" >"$tmp/raw" || fail "$name: curl ends with $?"
    {
        echo "== $name"
        tr -d '\r' <"$tmp/raw" | sed -E \
            -e 's/^Date: .*/Date: DATE/' -e 's/^(Content-Length): .*/\1: LENGTH/' -e 's/(chatcmpl|cmpl)-[0-9a-f]{32}/\1-ID/g' -e 's/"created":[0-9]+/"created":TIME/g' \
            -e 's/"(system_fingerprint|version)":"[^"]+"/"\1":"TEXT"/g' -e 's/"(token_logprobs)":\[[^]]*\]/"\1":[NUMBERS]/g' \
            -e 's/"logprob":-?[0-9.e-]+/"logprob":NUMBER/g' -e 's/-?[0-9]+\.[0-9]{3,}(e-[0-9]+)?/NUMBER/g'
        echo
    } >>"$tmp/got"
}
json=(-H 'Content-Type: application/json' --data-binary)
as='"logit_bias":{"65":100}' # the answer is AAAA...
user='"messages":[{"role":"user","content":"Hi"}]'
chat() { # NAME FIELDS [curl options]
    local name=$1 fields=$2
    shift 2
    ask "$name" /v1/chat/completions "${json[@]}" "{\"model\":\"tiny\",$fields}" "$@"
}
text() {
    local name=$1 fields=$2
    shift 2
    ask "$name" /v1/completions "${json[@]}" "{\"model\":\"tiny\",$fields}" "$@"
}

tiny_model
serve --depth
: >"$tmp/got"
ask health /health
ask models /v1/models
ask models-without-v1 /models
ask model /v1/models/tiny
ask no-model /v1/models/none
ask version /version
ask sites /strata/depth/sites
ask head /health --head
ask tokenize /tokenize "${json[@]}" '{"model":"tiny","prompt":"Hi \u00e9","return_token_strs":true}'
ask tokenize-chat /tokenize "${json[@]}" "{\"model\":\"tiny\",$user}"
ask detokenize /detokenize "${json[@]}" '{"model":"tiny","tokens":[72,105,33]}'
chat chat "$user,$as,\"max_tokens\":3"
chat chat-stream "$user,$as,\"max_tokens\":3,\"stream\":true"
chat chat-stream-usage "$user,$as,\"max_tokens\":2,\"stream\":true,\"stream_options\":{\"include_usage\":true}"
chat chat-stream-n "$user,\"logit_bias\":{\"66\":100},\"max_tokens\":1,\"n\":2,\"seed\":1"
chat chat-stop "$user,$as,\"max_tokens\":9,\"stop\":[\"BB\",\"AAA\"]"
chat chat-stop-stream "$user,$as,\"max_tokens\":9,\"stop\":\"AAA\",\"stream\":true"
chat chat-logprobs "$user,$as,\"max_tokens\":1,\"logprobs\":true"
chat chat-utf8 "$user,\"logit_bias\":{\"255\":100},\"max_tokens\":2,\"stream\":true"
chat chat-roles '"messages":[{"role":"system","content":"S"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"assistant","content":"c"},{"role":"user","content":"d"}],'"$as"',"max_tokens":1'
chat depth "$user,$as,\"max_tokens\":1,\"stream\":true,\"strata_depth\":true"
text completion "\"prompt\":\"Hi\",$as,\"max_tokens\":3"
text completion-stream "\"prompt\":\"Hi\",$as,\"max_tokens\":2,\"stream\":true"
text completion-ids "\"prompt\":[72,105],$as,\"max_tokens\":2"
text completion-many "\"prompt\":[\"Hi\",\"Ho\"],$as,\"max_tokens\":1,\"n\":2,\"echo\":true"
text completion-logprobs "\"prompt\":\"Hi\",$as,\"max_tokens\":2,\"logprobs\":0"

# refusals
ask no-route /v1/nothing
ask embeddings /v1/embeddings "${json[@]}" '{}'
ask method /v1/chat/completions
ask method-post /v1/models -X POST -H 'Content-Length: 0'
ask type /v1/chat/completions -H 'Content-Type: text/plain' --data-binary '{}'
ask not-json /v1/chat/completions "${json[@]}" '{"model":'
ask not-utf8 /v1/chat/completions "${json[@]}" $'{"model":"\xff"}'
ask key-twice /v1/chat/completions "${json[@]}" '{"model":"tiny","model":"tiny"}'
ask empty /v1/chat/completions "${json[@]}" ''
ask other-model /v1/chat/completions "${json[@]}" "{\"model\":\"other\",$user}"
chat no-messages '"messages":[]'
chat no-role '"messages":[{"content":"x"}]'
chat bad-role '"messages":[{"role":"robot","content":"x"}]'
chat image '"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]'
chat temperature "$user,\"temperature\":2.5"
chat wrong-type "$user,\"max_tokens\":\"3\""
chat max-tokens-0 "$user,\"max_tokens\":0"
chat huge-number "$user,\"temperature\":1e999"
chat many-stops "$user,\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]"
chat tools "$user,\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"
chat schema "$user,\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{}}"
chat context "$user,\"max_tokens\":100000"
text suffix '"prompt":"a","suffix":"b"'
text bad-id '"prompt":[999]'
ask two-lengths /v1/completions -H 'Content-Length: 2' -H 'Transfer-Encoding: chunked' "${json[@]}" '{}'
serve_end
serve --api-key sk-secret --strict --max-body-bytes 200
ask no-key /v1/models
ask wrong-key /v1/models -H 'Authorization: Bearer sk-secreT'
ask key /v1/models -H 'Authorization: Bearer sk-secret'
ask other-header /v1/models -H 'X-Api-Key: sk-secret'
ask health-without-key /health
auth=(-H 'Authorization: Bearer sk-secret')
chat strict "$user,\"unknown\":1" "${auth[@]}"
chat large "$user,\"user\":\"$(printf 'x%.0s' {1..200})\"" "${auth[@]}"
chat large-chunked "$user,\"user\":\"$(printf 'x%.0s' {1..200})\"" "${auth[@]}" -H 'Transfer-Encoding: chunked'
chat depth-off "$user,\"stream\":true,\"strata_depth\":true" "${auth[@]}"
serve_end

# the page is what the source has, under its policy
serve
curl -s -D "$tmp/head" "$url/" | cmp - runtime/page.html || fail "the page is another"
for part in style script; do
    hash=$(sed -n "s/.*$part-src 'sha256-\([^']*\)'.*/\1/p" "$tmp/head")
    part_text() { echo; sed -n "/^<$part>/,/^<\/$part>/p" runtime/page.html | sed '1d;$d'; }
    [ "$(base64 -d <<<"$hash" | od -An -v -tx1 | tr -d ' \n')" = "$(part_text | sha256sum | cut -d ' ' -f 1)" ] ||
        fail "the policy has another hash of the page's $part"
done
# SIGTERM in the middle of an answer: it is finished, and nothing new is taken
curl -sN "$url/v1/completions" "${json[@]}" "{\"model\":\"tiny\",\"prompt\":\"x\",$as,\"max_tokens\":900,\"n\":16,\"stream\":true}" >"$tmp/stream" &
reader=$!
for i in $(seq 100); do [ ! -s "$tmp/stream" ] || break; sleep 0.02; done
kill -TERM "$server"
status=$(curl -s -o "$tmp/health" -w '%{http_code}' "$url/health" || true)
wait "$reader" || fail "the stream broke"
tail -n 2 "$tmp/stream" | grep -qF 'data: [DONE]' || fail "the answer was cut at SIGTERM"
case $status in 503 | 000) ;; *) fail "health says $status while draining" ;; esac
wait "$server" || fail "the server ended with $?"
server=

if [ "${UPDATE:-}" ]; then cp "$tmp/got" "$want"; fi
diff -u "$want" "$tmp/got" >"$tmp/err" || fail "answers are not those of $want"
ok "$(grep -c '^==' "$want") answers are as they should be; the page, and draining"
