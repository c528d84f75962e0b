#include "fd.h"
#include <math.h>

double fd_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 11) / 4503599627370496.0 - 1;
}

static double loss_at(const struct fd *f, size_t input, const double *direction, double step)
{
    struct arena *a = arena_open("fd");
    struct ir_named *in = arena_dup(a, f->in, f->nin * sizeof *in, STRATA_SITE);
    double *v = NEW(a, double, in[input].n);
    for (int64_t i = 0; i < in[input].n; i++) v[i] = in[input].v[i] + step * direction[i];
    in[input].v = v;
    struct ir_values r = ir_eval(a, f->g, f->b, in, f->nin);
    double loss = ir_eval_output(&r, f->loss).v[0];
    arena_close(a);
    return loss;
}

static size_t input_index(const struct fd *f, const char *name)
{
    for (size_t i = 0; i < f->nin; i++)
        if (!strcmp(f->in[i].name, name)) return i;
    BUG("no input %s", name);
}

double fd_slope(const struct fd *f, const char *input, const double *direction, double step)
{
    size_t i = input_index(f, input);
    return (loss_at(f, i, direction, step) - loss_at(f, i, direction, -step)) / (2 * step);
}

double fd_error(const struct fd *f, const char *input, const double *grad, int directions)
{
    struct arena *a = arena_open("fd");
    int64_t n = f->in[input_index(f, input)].n;
    double *direction = NEW(a, double, n), worst = 0;
    uint64_t state = 99;
    for (int k = 0; k < directions; k++) {
        double want = 0, typical = 0;
        for (int64_t i = 0; i < n; i++) {
            direction[i] = fd_random(&state);
            want += direction[i] * grad[i];
            typical += direction[i] * direction[i] * grad[i] * grad[i];
        }
        double error = fabs(fd_slope(f, input, direction, 1e-5) - want);
        /* the slope's own rounding is about 1e-16 / step */
        double size = fmax(fmax(fabs(want), sqrt(typical)), 1e-4);
        worst = fmax(worst, error / size);
    }
    arena_close(a);
    return worst;
}
