/* Mixture of experts and the apply program. */
#include "eval_check.h"

/* ---- mixture of experts ---- */

CHECK_OP(moe_route)
{
    int64_t E = cols(r, 0), k = num(r, AK_k);
    bool soft = !strcmp(ir_word(r->g, r->n, AK_score, ""), "softmax");
    double scale = ir_num(r->g, r->n, AK_scale, 0), s[129];
    for (int64_t t = 0; t < r->N; t++) {
        double all = 0, chosen = 0;
        for (int64_t i = 0; i < E; i++) all += exp(src(r, 0)[t * E + i]);
        for (int64_t i = 0; i < E; i++) {
            double x = exp(src(r, 0)[t * E + i]);
            s[i] = soft ? x / all : x / (1 + x);
        }
        for (int64_t j = 0; j < k; j++) chosen += s[(int64_t)out(r, 0)[t * k + j]];
        for (int64_t j = 0; j < k; j++) {
            int64_t id = (int64_t)out(r, 0)[t * k + j], better = 0;
            for (int64_t i = 0; i < E; i++) better += s[i] + src(r, 1)[i] > s[id] + src(r, 1)[id];
            assert_int_equal(better, j); /* scores differ, so the j-th has j better ones */
            near(r, out(r, 1)[t * k + j], scale * s[id] / (r->option == 2 ? 1 : chosen));
        }
    }
}

CHECK_OP(moe_weights)
{
    int64_t E = cols(r, 0), k = cols(r, 1);
    bool soft = !strcmp(ir_word(r->g, r->n, AK_score, ""), "softmax");
    double scale = ir_num(r->g, r->n, AK_scale, 0), s[129];
    for (int64_t t = 0; t < r->N; t++) {
        double all = 0, given = 0;
        for (int64_t i = 0; i < E; i++) all += exp(src(r, 0)[t * E + i]);
        for (int64_t j = 0; j < k; j++) {
            double x = exp(src(r, 0)[t * E + (int64_t)src(r, 1)[t * k + j]]);
            given += s[j] = soft ? x / all : x / (1 + x);
        }
        for (int64_t j = 0; j < k; j++)
            near(r, out(r, 0)[t * k + j], scale * s[j] / (r->option == 2 ? 1 : given));
    }
}

/* How near the choice of some row is to another one. */
static double route_gap(const struct ran *r)
{
    ir_id route = ir_src(r->g, ir_src(r->g, r->n, 1), 0);
    const double *bias = r->v.node[ir_src(r->g, route, 1)].e[0].v, *ids = src(r, 1);
    int64_t E = cols(r, 0), k = cols(r, 1);
    double gap = INFINITY, s[129];
    bool soft = !strcmp(ir_word(r->g, r->n, AK_score, ""), "softmax");
    for (int64_t t = 0; t < r->N; t++) {
        double all = 0, in = INFINITY, outside = -INFINITY;
        for (int64_t i = 0; i < E; i++) all += s[i] = exp(src(r, 0)[t * E + i]);
        for (int64_t i = 0; i < E; i++) s[i] = (soft ? s[i] / all : s[i] / (1 + s[i])) + bias[i];
        for (int64_t i = 0; i < E; i++) {
            bool taken = false;
            for (int64_t j = 0; j < k; j++) taken |= ids[t * k + j] == (double)i;
            if (taken)
                in = fmin(in, s[i]);
            else
                outside = fmax(outside, s[i]);
        }
        gap = fmin(gap, in - outside);
    }
    return gap;
}

CHECK_OP(moe_route_grad)
{
    if (route_gap(r) < 1e-4) return; /* a step would change the choice */
    ir_id w = ir_get(r->g, ir_src(r->g, ir_src(r->g, r->n, 1), 0), 1);
    struct fd f = loss_of(r, (const ir_id[][2]){{w, ir_src(r->g, r->n, 2)}}, 1);
    slope(r, &f, 0, 0);
}

CHECK_OP(moe_sort)
{
    int64_t A = src_count(r, 0), E = num(r, AK_experts);
    const double *ids = src(r, 0), *offset = out(r, 0), *order = out(r, 1), *place = out(r, 2);
    assert_true(offset[0] == 0 && offset[E] == (double)A);
    for (int64_t i = 0; i < A; i++) {
        int64_t a = (int64_t)order[i], e = (int64_t)ids[a];
        assert_true(offset[e] <= (double)i && (double)i < offset[e + 1]);
        assert_true(place[a] == (double)i);
        if (i && ids[(int64_t)order[i - 1]] == ids[a]) assert_true(order[i - 1] < order[i]);
    }
}

CHECK_OP(moe_gather)
{
    int64_t n = cols(r, 0), k = num(r, AK_k);
    for (int64_t a = 0; a < r->N * k; a++) /* by assignment, where the op goes by sorted row */
        near_all(r, out(r, 0) + (int64_t)src(r, 2)[a] * n, src(r, 0) + a / k * n, n);
}

CHECK_OP(moe_gather_grad)
{
    ir_id dy = ir_src(r->g, r->n, 0), order = ir_src(r->g, r->n, 1), place = ir_src(r->g, r->n, 2);
    ir_id x = fresh(r, "x", ir_at(r->g, r->n)->type);
    ir_id y =
        ir_add(r->g, OP_moe_gather, SRCS(x, order, place), ATTRS(A_INT(k, num(r, AK_k))), NULL);
    struct fd f = loss_of(r, (const ir_id[][2]){{y, dy}}, 1);
    assert_true(fd_error(&f, "x", out(r, 0), 3) < 1e-6);
}

CHECK_OP(moe_combine)
{
    int64_t n = cols(r, 0), k = num(r, AK_k);
    double *want = NEW(r->a, double, r->N *n);
    for (int64_t i = 0; i < r->N * k; i++) { /* by sorted row, where the op goes by assignment */
        int64_t a = (int64_t)src(r, 2)[i];
        for (int64_t c = 0; c < n; c++) want[a / k * n + c] += src(r, 1)[a] * src(r, 0)[i * n + c];
    }
    near_all(r, out(r, 0), want, r->N * n);
}

CHECK_OP(moe_combine_grad)
{
    ir_id s[5];
    memcpy(s, ir_srcs(r->g, r->n), sizeof s);
    ir_id y = ir_add(r->g, OP_moe_combine, s + 1, 4, ATTRS(A_INT(k, num(r, AK_k))), NULL);
    struct fd f = loss_of(r, (const ir_id[][2]){{y, s[0]}}, 1);
    slope(r, &f, 1, 0);
    slope(r, &f, 2, 1);
}

CHECK_OP(moe_load)
{
    const double *ids = r->v.node[ir_src(r->g, ir_src(r->g, ir_src(r->g, r->n, 0), 0), 0)].e[0].v;
    int64_t A = r->v.node[ir_src(r->g, ir_src(r->g, ir_src(r->g, r->n, 0), 0), 0)].e[0].n;
    for (int64_t e = 0; e < out_count(r, 0); e++) {
        double n = 0;
        for (int64_t a = 0; a < A; a++) n += ids[a] == (double)e;
        near(r, out(r, 0)[e], n);
    }
}

/* ---- apply: ctl = 1.5, 0.625, 1 (0 in option 3), hyper = 0.01, 1 - 0.9^3, 1 - 0.95^3 ---- */

CHECK_OP(adamw)
{
    bool on = r->option != 3;
    double wd = r->option == 1 ? 0 : 0.1;
    for (int64_t i = 0; i < src_count(r, 0); i++) {
        double p = src(r, 0)[i], g = 0.625 * src(r, 1)[i], lr = src(r, 5)[0];
        double m = 0.9 * src(r, 2)[i] + 0.1 * g, v = 0.95 * src(r, 3)[i] + 0.05 * g * g;
        double step = m / src(r, 5)[1] / (sqrt(v / src(r, 5)[2]) + 1e-8);
        near(r, out(r, 0)[i], on ? p * (1 - lr * wd) - lr * step : p);
        near(r, out(r, 1)[i], on ? m : src(r, 2)[i]);
        near(r, out(r, 2)[i], on ? v : src(r, 3)[i]);
    }
}

CHECK_OP(momentum)
{
    for (int64_t i = 0; i < src_count(r, 0); i++) {
        double g = 0.625 * src(r, 0)[i], m = 0.95 * src(r, 1)[i] + g;
        near(r, out(r, 1)[i], r->option == 3 ? src(r, 1)[i] : m);
        if (r->option != 3) near(r, out(r, 0)[i], g + 0.95 * m);
    }
}

CHECK_OP(muon_step)
{
    for (int64_t i = 0; i < src_count(r, 0); i++) {
        double p = src(r, 0)[i], step = 1.6 * src(r, 1)[i] + 0.1 * p;
        near(r, out(r, 0)[i], r->option == 3 ? p : p - src(r, 3)[0] * step);
    }
}

CHECK_OP(grad_norm)
{
    double total = 0;
    for (uint32_t k = 1; k <= 3; k++) {
        double sum = 0;
        for (int64_t i = 0; i < src_count(r, k); i++) sum += pow(src(r, k)[i], 2);
        near(r, out(r, 1)[k - 1], sum);
        total += sum;
    }
    near(r, out(r, 0)[0], sqrt(total));
    near(r, out(r, 0)[1], r->option && sqrt(total) > 0.5 ? 0.5 / (sqrt(total) + 1e-6) : 1);
    assert_true(out(r, 0)[2] == 1 && out(r, 0)[3] == 0);
    for (size_t bad = 0; bad < r->nin; bad++) { /* one element of any operand, the loss included */
        struct ir_named *in = arena_dup(r->a, r->in, r->nin * sizeof *in, STRATA_SITE);
        double *v = arena_dup(r->a, in[bad].v, (size_t)in[bad].n * sizeof *v, STRATA_SITE);
        v[in[bad].n - 1] = bad % 2 ? NAN : INFINITY;
        in[bad].v = v;
        struct ir_values x = ir_eval(r->a, r->g, r->b, in, r->nin);
        assert_true(x.node[r->n].e[0].v[2] == 0);
    }
}

/* Every product of a query row and its key row shrinks by c_h, and nothing else changes. */
CHECK_OP(qk_clip)
{
    int64_t n = cols(r, 0);
    for (int64_t i = 0; i < 20 * n; i++) {
        int64_t row = i / n - 5, h = row / 3, at = row % 3;
        bool clipped = r->option < 3 && row >= 0 && h < (r->option == 1 ? 2 : 4) &&
                       (r->option == 2 ? at == 2 : at < 2);
        double want = src(r, 0)[i];
        if (clipped) {
            const double *top = src(r, 1);
            int64_t g = r->option == 1 ? h : h / 2;
            double c = 0.7 / fmax(0.7, top[h]);
            double least = 0.7 / fmax(0.7, fmax(top[2 * g], top[2 * g + 1]));
            want *= r->option == 0 ? c / sqrt(least) : r->option == 1 ? sqrt(least) : c;
        }
        near(r, out(r, 0)[i], want);
    }
}

CHECK_OP(balance)
{
    int64_t n = src_count(r, 0);
    double sum = 0, moved = 0;
    for (int64_t i = 0; i < n; i++) sum += src(r, 1)[i];
    for (int64_t i = 0; i < n; i++) {
        double d = out(r, 0)[i] - src(r, 0)[i];
        moved += d;
        if (r->option) assert_true(d == 0);
        for (int64_t j = 0; j < n && !r->option;
             j++) { /* one below the mean, one above: 2 rates apart */
            double apart = out(r, 0)[j] - src(r, 0)[j] - d, mean = sum / (double)n;
            bool low = src(r, 1)[j] < mean && src(r, 1)[i] > mean;
            if (low) assert_true(fabs(apart - 2e-3) < 1e-12);
        }
    }
    assert_true(fabs(moved) < 1e-12);
}
