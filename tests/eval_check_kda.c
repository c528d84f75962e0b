/* Short convolution and the KDA recurrence. */
#include "eval_check.h"

CHECK_OP(repeat)
{
    int64_t times = num(r, AK_times), at = 0;
    assert_int_equal(out_count(r, 0), times * src_count(r, 0));
    for (int64_t i = 0; i < src_count(r, 0); i++)
        for (int64_t k = 0; k < times; k++) near(r, out(r, 0)[at++], src(r, 0)[i]);
}

/* As a scatter: every input element goes to the rows behind it, as far as its sequence goes. */
CHECK_OP(short_conv)
{
    int64_t C = cols(r, 0), J = cols(r, 1);
    double *sum = NEW(r->a, double, r->N *C);
    for (int64_t t = 0; t < r->N; t++)
        for (int64_t back = 0; back < J && t / r->b.T == (t + back) / r->b.T; back++)
            for (int64_t c = 0; c < C; c++)
                sum[(t + back) * C + c] += src(r, 0)[t * C + c] * src(r, 1)[c * J + J - 1 - back];
    for (int64_t i = 0; i < r->N * C; i++)
        near(r, out(r, 0)[i], sum[i] * (1 + tanh(sum[i] / 2)) / 2);
}

CHECK_OP(short_conv_grad)
{
    ir_id x = ir_src(r->g, r->n, 1), w = ir_src(r->g, r->n, 2);
    ir_id y = ir_add(r->g, OP_short_conv, SRCS(x, w), NO_ATTRS, NULL);
    struct fd f = loss_of(r, (const ir_id[][2]){{y, ir_src(r->g, r->n, 0)}}, 1);
    slope(r, &f, 1, 0);
    slope(r, &f, 2, 1);
}

/* sum over channels of a[i] b[j] times the decay from after row j to after row i. */
static double decayed(const struct ran *r, uint32_t a, uint32_t b, int64_t head, int64_t i,
                      int64_t j)
{
    int64_t width = cols(r, 0), K = width / num(r, AK_heads);
    double sum = 0;
    for (int64_t c = head * K; c < (head + 1) * K; c++) {
        double g = 0;
        for (int64_t t = j + 1; t <= i; t++) g += src(r, 3)[t * width + c];
        sum += src(r, a)[i * width + c] * src(r, b)[j * width + c] * exp(g);
    }
    return sum;
}

/* The attention form (2.4 with one chunk): corrected values u by forward substitution, then scores
 * times u. No state. */
CHECK_OP(kda)
{
    int64_t H = num(r, AK_heads), V = cols(r, 2) / H, width = H * V;
    double scale = ir_num(r->g, r->n, AK_scale, 0), *u = NEW(r->a, double, r->N *V);
    for (int64_t h = 0; h < H; h++)
        for (int64_t t = 0; t < r->N; t++) {
            double beta = src(r, 4)[t * H + h], *o = NEW(r->a, double, V);
            for (int64_t c = 0; c < V; c++) u[t * V + c] = src(r, 2)[t * width + h * V + c] * beta;
            for (int64_t s = t - t % r->b.T; s < t; s++) {
                double l = beta * decayed(r, 1, 1, h, t, s);
                for (int64_t c = 0; c < V; c++) u[t * V + c] -= l * u[s * V + c];
            }
            for (int64_t s = t - t % r->b.T; s <= t; s++) {
                double p = scale * decayed(r, 0, 1, h, t, s);
                for (int64_t c = 0; c < V; c++) o[c] += p * u[s * V + c];
            }
            near_all(r, out(r, 0) + t * width + h * V, o, V);
        }
}

CHECK_OP(kda_grad)
{
    ir_id s[5];
    for (uint32_t i = 0; i < 5; i++) s[i] = ir_src(r->g, r->n, i);
    ir_id o = ir_add(
        r->g, OP_kda, s, 5,
        ATTRS(A_INT(heads, num(r, AK_heads)), A_NUM(scale, ir_num(r->g, r->n, AK_scale, 0))), NULL);
    struct fd f = loss_of(r, (const ir_id[][2]){{o, ir_src(r->g, r->n, 5)}}, 1);
    for (uint32_t i = 0; i < 5; i++) slope(r, &f, i, i);
}

/* Inputs of a sequence, those in the state first, then one sum a token. */
CHECK_OP(conv_cached)
{
    int64_t C = cols(r, 0), J = cols(r, 1), T = r->b.T;
    double *x = NEW(r->a, double, J - 1 + T);
    for (int64_t b = 0; b < r->b.B; b++)
        for (int64_t c = 0; c < C; c++) {
            int64_t first = (int64_t)src(r, 3)[b] * (J - 1), past = (int64_t)src(r, 4)[b];
            for (int64_t i = 0; i < J - 1; i++)
                x[i] = past + i >= J - 1 ? src(r, 2)[(first + i) * C + c] : 0;
            for (int64_t t = 0; t < T; t++) x[J - 1 + t] = src(r, 0)[(b * T + t) * C + c];
            for (int64_t t = 0; t < T; t++) {
                double z = 0;
                for (int64_t j = 0; j < J; j++) z += src(r, 1)[c * J + j] * x[t + j];
                near(r, out(r, 0)[(b * T + t) * C + c], z * (1 + tanh(z / 2)) / 2);
            }
            for (int64_t i = 0; i < J - 1; i++) near(r, out(r, 1)[(first + i) * C + c], x[T + i]);
        }
}

/* Row t of operand `of`, through the decays of rows first .. t, times column c of a state. */
static double through(const struct ran *r, uint32_t of, const double *S, int64_t h, int64_t t,
                      int64_t first, int64_t c)
{
    int64_t width = cols(r, 0), H = num(r, AK_heads), K = width / H, V = cols(r, 2) / H;
    double sum = 0;
    for (int64_t i = 0; i < K; i++) {
        double g = 0;
        for (int64_t s = first; s <= t; s++) g += src(r, 3)[s * width + h * K + i];
        sum += src(r, of)[t * width + h * K + i] * exp(g) * S[i * V + c];
    }
    return sum;
}

/* One sequence and head of the attention form with a state before it; u as above, of this
 * sequence. */
static void kda_after(const struct ran *r, int64_t b, int64_t h, const double *S, double *u)
{
    int64_t T = r->b.T, H = num(r, AK_heads), K = cols(r, 0) / H, V = cols(r, 2) / H;
    double scale = ir_num(r->g, r->n, AK_scale, 0);
    for (int64_t c = 0; c < V; c++) {
        for (int64_t t = b * T; t < (b + 1) * T; t++) {
            double beta = src(r, 4)[t * H + h], o = scale * through(r, 0, S, h, t, b * T, c);
            double e = src(r, 2)[(t * H + h) * V + c] - through(r, 1, S, h, t, b * T, c);
            for (int64_t s = b * T; s < t; s++) e -= decayed(r, 1, 1, h, t, s) * u[s];
            u[t] = beta * e;
            for (int64_t s = b * T; s <= t; s++) o += scale * decayed(r, 0, 1, h, t, s) * u[s];
            near(r, out(r, 0)[(t * H + h) * V + c], o);
        }
        for (int64_t i = 0; i < K; i++) {
            double g = 0, want = 0;
            for (int64_t t = (b + 1) * T; t-- > b * T;) {
                want += src(r, 1)[(t * H + h) * K + i] * exp(g) * u[t];
                g += src(r, 3)[(t * H + h) * K + i];
            }
            int64_t row = ((int64_t)src(r, 6)[b] * H + h) * K + i;
            near(r, out(r, 1)[row * V + c], want + exp(g) * S[i * V + c]);
        }
    }
}

CHECK_OP(kda_cached)
{
    int64_t H = num(r, AK_heads), size = cols(r, 0) / H * (cols(r, 2) / H);
    double *zero = NEW(r->a, double, size), *u = NEW(r->a, double, r->N);
    for (int64_t b = 0; b < r->b.B; b++)
        for (int64_t h = 0; h < H; h++) {
            const double *S = src(r, 5) + ((int64_t)src(r, 6)[b] * H + h) * size;
            kda_after(r, b, h, src(r, 7)[b] > 0 ? S : zero, u);
        }
}
