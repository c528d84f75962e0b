/* Cuts and sizes of the CPU kernels; the constants go with codegen/text/{tile,gemm,attention}.c. */
#include "codegen/gemm_shape.h"

enum { MR = 6, NR = 64, MC = 96, KC = 1152, KEYS = 64 };
/* Enough items for a few threads to balance; below MIN_NS an item is not worth its hand-over. */
enum { WANT_ITEMS = 16, MIN_NS = 10000 };
/* What an item packs for itself should stay in a cache. */
enum { OWN_FLOATS = 1 << 20 };

static int64_t div_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}
static int64_t round_up(int64_t a, int64_t b)
{
    return div_up(a, b) * b;
}
static int64_t at_least(int64_t a, int64_t low)
{
    return a < low ? low : a;
}

/* The size of equal blocks of at most `most`, a multiple of `unit`, that cover n. */
static int64_t even(int64_t n, int64_t most, int64_t unit)
{
    return round_up(div_up(at_least(n, 1), div_up(at_least(n, 1), most)), unit);
}

/* Rough time of one item: 120 multiply-adds or 35 bytes of B per nanosecond. */
static int64_t item_ns(int64_t m, int64_t n, int64_t k)
{
    int64_t math = m * n * k / 120, read = n * k * 4 / 35;
    return math > read ? math : read;
}

int64_t cg_gemm_packed(int64_t k, int64_t n)
{
    return round_up(n, 16) * k;
}
int64_t cg_gemm_packed_bf16(int64_t k, int64_t n)
{
    return round_up(n, 16) * div_up(k, 2);
}
int64_t cg_pack_rows_items(int64_t k, int64_t n)
{
    return div_up(k, 64) * div_up(n, 256);
}
int64_t cg_pack_cols_items(int64_t k, int64_t n)
{
    return div_up(n, 16) * div_up(k, 256);
}

/* The cut of blocks of at most `rows` rows. */
static struct cg_gemm_plan cut(int64_t m, int64_t n, int64_t k, int64_t rows)
{
    struct cg_gemm_plan p = {.mb = even(m, rows, MR), .nb = even(n, 2304, NR)};
    for (;;) {
        p.items = div_up(m, p.mb) * div_up(n, p.nb);
        if (p.items >= WANT_ITEMS || item_ns(p.mb, p.nb, k) < 2 * MIN_NS) return p;
        if (p.nb > 256 || (p.mb <= 48 && p.nb > NR))
            p.nb = round_up(div_up(p.nb, 2), NR);
        else if (p.mb > MR)
            p.mb = round_up(div_up(p.mb, 2), MR);
        else
            return p;
    }
}

struct cg_gemm_plan cg_gemm_plan(int64_t m, int64_t n, int64_t k)
{
    return cut(m, n, k, MC);
}

struct cg_gemm_plan cg_gemm_kept_plan(int64_t m, int64_t n, int64_t k)
{
    return cut(m, n, k, 2 * MC);
}

int64_t cg_gemm_items(int64_t m, int64_t n, int64_t k)
{
    return cg_gemm_plan(m, n, k).items;
}

struct cg_stack_plan cg_gemm_stack_plan(int64_t products, int64_t m, int64_t n, int64_t k)
{
    int64_t most = OWN_FLOATS / at_least(k, 1) / NR * NR;
    struct cg_stack_plan p = {.nb = even(n, most < NR ? NR : most > 256 ? 256 : most, NR)};
    while (p.nb > NR && products * div_up(n, p.nb) < WANT_ITEMS &&
           item_ns(m, p.nb, k) >= 2 * MIN_NS)
        p.nb = round_up(p.nb / 2, NR);
    p.items = products * div_up(n, p.nb);
    p.grain = at_least(2 * MIN_NS / at_least(item_ns(m, p.nb, k), 1), 1);
    return p;
}

int64_t cg_gemm_own_scratch(int64_t k, int64_t nb)
{
    return cg_gemm_scratch() + nb * k * 4;
}

int64_t cg_gemm_kept_scratch(void)
{
    return cg_gemm_scratch() + (int64_t)NR * (KC + 2) * 4;
}

struct cg_gemm_plan cg_gemm_grouped_dw_plan(int64_t rows, int64_t m, int64_t n, int64_t experts)
{
    struct cg_gemm_plan p = cg_gemm_plan(m, n, div_up(rows, at_least(experts, 1)));
    p.items = experts * div_up(m, p.mb) * div_up(n, p.nb);
    return p;
}

int64_t cg_gemm_scratch(void)
{
    return (int64_t)MC * KC * 4;
}

int64_t cg_attn_query_rows(int64_t h, int64_t kv)
{
    return at_least(288 / (h / kv) / MR * MR, 2 * MR);
}

int64_t cg_attn_fwd_items(int64_t b, int64_t t, int64_t h, int64_t kv)
{
    return b * kv * div_up(t, cg_attn_query_rows(h, kv));
}

int64_t cg_attn_bwd_items(int64_t b, int64_t kv)
{
    return b * kv;
}

/* The layouts are at the top of the two kernels. */
int64_t cg_attn_fwd_scratch(int64_t h, int64_t kv, int64_t hd, int64_t vd)
{
    int64_t rows = h / kv * cg_attn_query_rows(h, kv), vp = round_up(vd, 16);
    return 4 * (KEYS * hd + KEYS * vp + MR * KEYS + rows * vp + rows * 16 + round_up(rows, 16));
}

int64_t cg_attn_bwd_scratch(int64_t hd, int64_t vd)
{
    int64_t hp = round_up(hd, 16), vp = round_up(vd, 16);
    return 4 * KEYS * (hd + vd + 3 * hp + 2 * vp + 2 * KEYS);
}
