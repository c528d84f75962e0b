/* The short convolution and the delta-rule recurrence of KDA (kimi-linear.md 2.1 to 2.6). */
#include "eval_op.h"
#include <math.h>

static double sigmoid(double a)
{
    return 1 / (1 + exp(-a));
}

/* ---- short convolution ---- */

/* Row that tap j of `taps` reads for row t, -1 before the sequence. */
static int64_t tap_row(const struct eval *e, int64_t t, int64_t j, int64_t taps)
{
    int64_t back = taps - 1 - j;
    return back > t % e->b.T ? -1 : t - back;
}

/* Channel c of row t before the SiLU; x and w are the operands, `C` channels wide. */
static double conv_at(const struct eval *e, const double *x, const double *w, int64_t C,
                      int64_t taps, int64_t t, int64_t c)
{
    double sum = 0;
    for (int64_t j = 0; j < taps; j++) {
        int64_t from = tap_row(e, t, j, taps);
        if (from >= 0) sum += w[c * taps + j] * x[from * C + c];
    }
    return sum;
}

void eval_short_conv(struct eval *e)
{
    int64_t C = ev_cols(e, 0), taps = ev_cols(e, 1);
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        for (int64_t c = 0; c < C; c++) {
            double z = conv_at(e, ev_src(e, 0), ev_src(e, 1), C, taps, t, c);
            ev_out(e, 0)[t * C + c] = z * sigmoid(z);
        }
}

void eval_short_conv_grad(struct eval *e)
{
    const double *x = ev_src(e, 1), *w = ev_src(e, 2);
    int64_t C = ev_cols(e, 1), taps = ev_cols(e, 2);
    for (int64_t t = 0; t < ev_rows(e, 1); t++)
        for (int64_t c = 0; c < C; c++) {
            double z = conv_at(e, x, w, C, taps, t, c), s = sigmoid(z);
            double dz = ev_src(e, 0)[t * C + c] * s * (1 + z * (1 - s));
            for (int64_t j = 0; j < taps; j++) {
                int64_t from = tap_row(e, t, j, taps);
                if (from < 0) continue;
                ev_out(e, 0)[from * C + c] += w[c * taps + j] * dz;
                ev_out(e, 1)[c * taps + j] += x[from * C + c] * dz;
            }
        }
}

/* ---- the recurrence ---- */

struct kda { /* sizes, and one head of one token: pointers into the operands */
    int64_t H, K, V;
    double scale;
    const double *q, *k, *v, *g;
    double beta;
};

static struct kda kda_of(const struct eval *e)
{
    int64_t H = ev_int(e, AK_heads, 1);
    return (struct kda){
        .H = H, .K = ev_cols(e, 0) / H, .V = ev_cols(e, 2) / H, .scale = ev_num(e, AK_scale, 1)};
}

static void kda_seek(struct kda *x, const struct eval *e, int64_t t, int64_t h)
{
    int64_t key = (t * x->H + h) * x->K;
    x->q = ev_src(e, 0) + key;
    x->k = ev_src(e, 1) + key;
    x->v = ev_src(e, 2) + (t * x->H + h) * x->V;
    x->g = ev_src(e, 3) + key;
    x->beta = ev_src(e, 4)[t * x->H + h];
}

/* out[V] = S^T x for S[K,V]. */
static void read_state(const struct kda *x, const double *S, const double *key, double *out)
{
    for (int64_t j = 0; j < x->V; j++) {
        out[j] = 0;
        for (int64_t i = 0; i < x->K; i++) out[j] += S[i * x->V + j] * key[i];
    }
}

/* Decays S in place, then the error err[V] of its prediction, then the write. `decayed`, where not
 * NULL, is what S is between. */
static void kda_step(const struct kda *x, double *S, double *decayed, double *err)
{
    for (int64_t i = 0; i < x->K * x->V; i++) S[i] *= exp(x->g[i / x->V]);
    if (decayed) memcpy(decayed, S, (size_t)(x->K * x->V) * sizeof *S);
    read_state(x, S, x->k, err);
    for (int64_t j = 0; j < x->V; j++) err[j] = x->v[j] - err[j];
    for (int64_t i = 0; i < x->K; i++)
        for (int64_t j = 0; j < x->V; j++) S[i * x->V + j] += x->beta * x->k[i] * err[j];
}

void eval_kda(struct eval *e)
{
    struct kda x = kda_of(e);
    int64_t KV = x.K * x.V;
    double *S = NEW(e->a, double, KV), *err = NEW(e->a, double, x.V);
    for (int64_t h = 0; h < x.H; h++)
        for (int64_t t = 0; t < ev_rows(e, 0); t++) {
            if (t % e->b.T == 0) memset(S, 0, (size_t)KV * sizeof *S);
            kda_seek(&x, e, t, h);
            kda_step(&x, S, NULL, err);
            double *o = ev_out(e, 0) + (t * x.H + h) * x.V;
            read_state(&x, S, x.q, o);
            for (int64_t j = 0; j < x.V; j++) o[j] *= x.scale;
        }
}

/* One step back (2.3): S_d and S are the state after the decay and after the write; dS is the
 * gradient of S by later tokens, and becomes that of the state before this token. */
static void kda_step_back(const struct kda *x, struct eval *e, int64_t t, int64_t h,
                          const double *S_d, const double *S, const double *err, double *dS)
{
    const double *d_o = ev_src(e, 5) + (t * x->H + h) * x->V;
    int64_t key = (t * x->H + h) * x->K;
    double *dq = ev_out(e, 0) + key, *dk = ev_out(e, 1) + key, *dg = ev_out(e, 3) + key;
    double *dv = ev_out(e, 2) + (t * x->H + h) * x->V, *dbeta = ev_out(e, 4) + t * x->H + h;
    for (int64_t i = 0; i < x->K; i++)
        for (int64_t j = 0; j < x->V; j++) {
            dq[i] += x->scale * S[i * x->V + j] * d_o[j];
            dS[i * x->V + j] += x->scale * x->q[i] * d_o[j];
        }
    read_state(x, dS, x->k, dv); /* w = dS^T k, then dv = beta w */
    for (int64_t j = 0; j < x->V; j++) {
        *dbeta += dv[j] * err[j];
        dv[j] *= x->beta;
    }
    for (int64_t i = 0; i < x->K; i++)
        for (int64_t j = 0; j < x->V; j++) {
            int64_t at = i * x->V + j;
            dk[i] += x->beta * dS[at] * err[j] - S_d[at] * dv[j];
            dS[at] -= x->k[i] * dv[j];
            dg[i] += dS[at] * S_d[at];
            dS[at] *= exp(x->g[i]);
        }
}

void eval_kda_grad(struct eval *e)
{
    struct kda x = kda_of(e);
    int64_t T = e->b.T, KV = x.K * x.V;
    double *S = NEW(e->a, double, KV), *dS = NEW(e->a, double, KV);
    double *S_d = NEW(e->a, double, T *KV), *after = NEW(e->a, double, T *KV);
    double *err = NEW(e->a, double, T *x.V);
    for (int64_t h = 0; h < x.H; h++)
        for (int64_t first = 0; first < ev_rows(e, 0); first += T) {
            memset(S, 0, (size_t)KV * sizeof *S);
            memset(dS, 0, (size_t)KV * sizeof *S);
            for (int64_t t = 0; t < T; t++) {
                kda_seek(&x, e, first + t, h);
                kda_step(&x, S, S_d + t * KV, err + t * x.V);
                memcpy(after + t * KV, S, (size_t)KV * sizeof *S);
            }
            for (int64_t t = T; t-- > 0;) {
                kda_seek(&x, e, first + t, h);
                kda_step_back(&x, e, first + t, h, S_d + t * KV, after + t * KV, err + t * x.V, dS);
            }
        }
}

/* ---- continued from a state ---- */

/* The input of channel c at position past + t - back of sequence b, 0 before the sequence. */
static double input_at(const struct eval *e, int64_t b, int64_t t, int64_t back, int64_t c)
{
    int64_t C = ev_cols(e, 0), keep = ev_cols(e, 1) - 1, at = t - back;
    if (at >= 0) return ev_src(e, 0)[(b * e->b.T + at) * C + c];
    if ((int64_t)ev_src(e, 4)[b] + at < 0) return 0;
    int64_t state = ev_index(e, ev_src(e, 3)[b], ev_rows(e, 2) / keep);
    return ev_src(e, 2)[(state * keep + keep + at) * C + c];
}

void eval_conv_cached(struct eval *e)
{
    int64_t C = ev_cols(e, 0), J = ev_cols(e, 1), T = e->b.T;
    memcpy(ev_out(e, 1), ev_src(e, 2), (size_t)ev_count(e, 2) * sizeof(double));
    for (int64_t b = 0; b < e->b.B; b++)
        for (int64_t c = 0; c < C; c++) {
            for (int64_t t = 0; t < T; t++) {
                double z = 0;
                for (int64_t j = 0; j < J; j++)
                    z += ev_src(e, 1)[c * J + j] * input_at(e, b, t, J - 1 - j, c);
                ev_out(e, 0)[(b * T + t) * C + c] = z * sigmoid(z);
            }
            double *keep = ev_out(e, 1) + (int64_t)ev_src(e, 3)[b] * (J - 1) * C + c;
            for (int64_t j = 0; j < J - 1; j++) keep[j * C] = input_at(e, b, T, J - 1 - j, c);
        }
}

void eval_kda_cached(struct eval *e)
{
    struct kda x = kda_of(e);
    int64_t KV = x.K * x.V, T = e->b.T, states = ev_rows(e, 5) / (x.H * x.K);
    double *err = NEW(e->a, double, x.V);
    memcpy(ev_out(e, 1), ev_src(e, 5), (size_t)ev_count(e, 5) * sizeof(double));
    for (int64_t b = 0; b < e->b.B; b++)
        for (int64_t h = 0; h < x.H; h++) {
            double *S = ev_out(e, 1) + (ev_index(e, ev_src(e, 6)[b], states) * x.H + h) * KV;
            if (ev_src(e, 7)[b] == 0) memset(S, 0, (size_t)KV * sizeof *S);
            for (int64_t t = b * T; t < (b + 1) * T; t++) {
                kda_seek(&x, e, t, h);
                kda_step(&x, S, NULL, err);
                double *o = ev_out(e, 0) + (t * x.H + h) * x.V;
                read_state(&x, S, x.q, o);
                for (int64_t j = 0; j < x.V; j++) o[j] *= x.scale;
            }
        }
}
