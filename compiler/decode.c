#include "compiler/decode.h"
#include <string.h>

static void put(const struct plan *p, const char *name, const int32_t *data, int64_t n)
{
    const struct plan_value *v = plan_value(p, name);
    CHECK(v && v->dtype == SA_i32 && v->count == n);
    memcpy(v->p, data, v->bytes);
}

enum rt_status decode_run(const struct decoder *d, const struct decode_call *c,
                          const float **logits, struct rt_error *err)
{
    CHECK(c->B > 0 && c->B <= d->slots && c->T > 0 && c->T <= d->chunk);
    for (int64_t b = 0; b < c->B; b++)
        CHECK(c->slots[b] >= 0 && c->slots[b] < d->slots && c->past[b] >= 0 &&
              c->past[b] + c->T <= d->context);
    struct plan *plan = program_plan(d->program, c->B, c->T);
    if (!plan_ready(plan)) RT_TRY(session_compile(d->session, NULL, err));
    put(plan, "tokens", c->tokens, c->B * c->T);
    put(plan, "past", c->past, c->B);
    put(plan, "slots", c->slots, c->B);
    plan_run(plan);
    RT_TRY(session_status(d->session, err));
    *logits = plan_value(plan, "logits")->p;
    return RT_ok;
}
