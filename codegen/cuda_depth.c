/* Mixes over depth on a GPU: depth_mix is depth_inter with one query, and so are their gradients,
 * except that a whole mix forms dh . h itself. */
#include "codegen/cuda.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
static const char text[] =
#include "text/cuda_depth.c.inc"
    ;
static const char grad_texts[] =
#include "text/cuda_depth_grad.c.inc"
    ;

/* PARAMETERS: bytes that a kernel of CUDA 12.1 or newer takes (older ones: 4096). */
enum { PARAMETERS = 32764, MOST_SOURCES = 1024, CHUNKS = 264 };

struct depth {     /* the sizes of a node */
    uint32_t q, n; /* queries, sources */
    uint32_t qcap, cap, qwords, words;
    int64_t rows, d;
    uint32_t first_v, first_o, first_acc; /* operands: sources, row gradients, accumulators */
    bool whole;                           /* the gradient of depth_mix */
    int64_t sms, shared; /* multiprocessors, and the shared memory of each, in bytes */
};

static uint32_t capacity(uint32_t n)
{
    uint32_t c = 8;
    while (c < n) c *= 2;
    return c;
}

static struct depth sizes(const struct cg_emit *e, unsigned sm)
{
    enum ir_op op = (enum ir_op)ir_at(e->g, e->n)->op;
    struct depth s = {.q = (uint32_t)ir_int(e->g, e->n, AK_queries, 1),
                      .n = (uint32_t)ir_int(e->g, e->n, AK_sources, 0)};
    bool large = sm >= 90 && sm < 120;
    s.sms = sm == 80 ? 108 : sm >= 100 ? 148 : 132;
    s.shared = (large ? 227 : sm == 80 ? 163 : 99) << 10;
    s.qcap = capacity(s.q), s.cap = capacity(s.n);
    s.qwords = (s.qcap + 63) / 64, s.words = (s.cap + 63) / 64;
    s.whole = op == OP_depth_mix_grad;
    s.first_v = op == OP_depth_inter_grad ? 2 + 4 * s.q : s.whole ? 6 : s.q;
    s.first_o = s.whole ? 0 : 2 + s.q;
    s.first_acc = s.first_v + s.n;
    s.rows = cg_src_rows(e->g, e->n, s.first_v, e->b);
    s.d = cg_src_cols(e->g, e->n, s.first_v, e->b);
    for (uint32_t i = 0; i < ir_at(e->g, e->n)->nsrc; i++)
        if (op != OP_depth_inter_grad || i < 2 + 2 * s.q || i >= s.first_v)
            cg_need_dense(e->g, e->n, i); /* numbers per row may be views */
    return s;
}

/* ---- which tensors are bf16 ---- */

/* What a text says of `n` tensors: true or false, or to ask the bits in kind.NAME. */
static const char *of_bits(const struct cg_emit *e, const int64_t *bits, uint32_t n,
                           const char *name, const char *index)
{
    uint32_t set = 0;
    for (uint32_t i = 0; i < n; i++) set += bits[i / 64] >> i % 64 & 1;
    if (set == 0) return "((void)(kind), false)";
    if (set == n) return "((void)(kind), true)";
    return str_fmt(e->a, "@FN@_bit(kind, %s, %s)", name, index);
}

static void set_bit(int64_t *bits, uint32_t i, bool on)
{
    if (on) bits[i / 64] = (int64_t)((uint64_t)bits[i / 64] | UINT64_C(1) << i % 64);
}

struct kind { /* words as the text's struct has them, and what the text says */
    int64_t *word, *v, *o, *d, *have;
    uint32_t words;
};

static struct kind kinds(const struct cg_emit *e, struct depth s, bool gradient)
{
    struct kind k = {.words = 3 * s.words + s.qwords};
    k.word = k.v = NEW(e->a, int64_t, k.words);
    k.o = k.v + s.words, k.d = k.o + s.qwords, k.have = k.d + s.words;
    const char *have = ir_word(e->g, e->n, AK_have, "");
    for (uint32_t j = 0; j < s.n; j++) {
        set_bit(k.v, j, ir_narrow(e->g, ir_src(e->g, e->n, s.first_v + j)));
        if (!gradient) continue;
        set_bit(k.d, j, ir_narrow_result(e->g, e->n, j));
        set_bit(k.have, j, have[j] == '1');
    }
    for (uint32_t i = 0; i < s.q; i++)
        set_bit(k.o, i,
                gradient ? ir_narrow(e->g, ir_src(e->g, e->n, s.first_o + i))
                         : ir_narrow_result(e->g, e->n, i));
    return k;
}

static struct str types(const struct cg_emit *e, struct depth s, struct kind k)
{
    const struct cg_var vars[] = {{"D", cg_number(e, s.d)},
                                  {"WORDS", cg_number(e, s.words)},
                                  {"QWORDS", cg_number(e, s.qwords)},
                                  {"V_NARROW", of_bits(e, k.v, s.n, "v", "j")},
                                  {"O_NARROW", of_bits(e, k.o, s.q, "o", "i")},
                                  {"D_NARROW", of_bits(e, k.d, s.n, "d", "j")}};
    return cg_section(e->a, text, "types", vars, sizeof vars / sizeof *vars);
}

/* ---- steps ---- */

static struct cg_step *add(const struct cg_emit *e, const char *kind, const char *a, const char *b)
{
    const char *label = str_fmt(e->a, "%s %s", op_info((enum ir_op)ir_at(e->g, e->n)->op)->name,
                                ir_word(e->g, e->n, AK_site, ""));
    return cg_add(e->a, e->out, kind, str_of(str_fmt(e->a, "%s%s", a, b)), label);
}

/* References for a table of `cap` pointers: n of them, then the first again. */
static void table(struct cg_ref **to, struct cg_ref first, uint32_t n, uint32_t cap)
{
    for (uint32_t i = 0; i < cap; i++) {
        **to = first;
        if (i < n) (*to)->index += i;
        (*to)++;
    }
}

static void parameters(const struct cg_emit *e, struct cg_step *step, const struct cg_ref *ref,
                       const struct cg_ref *end, const int64_t *num, size_t nnum)
{
    cg_refs(e->a, step, ref, (size_t)(end - ref));
    cg_nums(e->a, step, num, nnum);
    CHECK(8 * (step->nref + step->nnum) <= PARAMETERS); /* cg_cuda_depth_refusal */
}

const char *cg_cuda_depth_refusal(struct arena *a, const struct ir_graph *g, ir_id n)
{
    int64_t sources = ir_int(g, n, AK_sources, 0), queries = ir_int(g, n, AK_queries, 1);
    const char *site = ir_word(g, n, AK_site, "");
    if (sources > MOST_SOURCES)
        return str_fmt(a,
                       "%s reads %lld sources, and kernels for a GPU take %d: set "
                       "model.residual.blocks to fewer",
                       site, (long long)sources, MOST_SOURCES);
    if (queries > MOST_SOURCES / 8)
        return str_fmt(a,
                       "%s begins a block of %lld sublayers, and kernels for a GPU take %d: set "
                       "model.residual.blocks to more",
                       site, (long long)queries, MOST_SOURCES / 8);
    return NULL;
}

/* ---- streams ---- */

struct stream { /* how rows are laid over lanes, see the text */
    int64_t v, w, units, stages, slot, threads;
    uint32_t q, qblocks, g, p, resident; /* queries of a block, sources and values of a round,
                                            blocks of a multiprocessor */
};

static int64_t up(int64_t x, int64_t by)
{
    return (x + by - 1) / by;
}

/* ---- which form, and why not a fast one ---- */

static const char *const plain_rows = "rows are no multiple of 8 columns";
static const char *const plain_place = "operands or results do not lie on 16 bytes";
static const char *const plain_wide = "rows have too many columns";
static const char *const plain_memory = "too little shared memory for rows of that size";

static void tell(const struct cg_emit *e, struct depth s, struct cg_step *step,
                 const struct stream *m, const char *plain)
{
    step->why = plain;
    const char *how =
        plain ? str_fmt(e->a, "the plain form, as %s", plain)
              : str_fmt(
                    e->a,
                    "ring of %lld rows, %u at once, %u quer%s a block, %lld warps of %lld columns",
                    (long long)m->stages, m->g, m->q, m->q == 1 ? "y" : "ies", (long long)m->w,
                    (long long)(128 * m->v));
    step->route = str_fmt(e->a, "%s [%lld] of %u quer%s: %s",
                          op_info((enum ir_op)ir_at(e->g, e->n)->op)->name, (long long)s.d, s.q,
                          s.q == 1 ? "y" : "ies", how);
}

/* Whether operands from..to-1 or results can be read or written 16 bytes at a time. */
static bool aligned(const struct cg_emit *e, bool result, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++)
        if ((result ? cg_cuda_res_align(e->g, e->n, i) : cg_cuda_src_align(e->g, e->n, i)) < 16)
            return false;
    return true;
}

/* Quads of a lane and warps of a row for a gradient: up to 512 columns are one warp's, 8192 the
 * most. */
static bool lay_thin(struct stream *m, int64_t d)
{
    m->v = d <= 512 ? up(d, 128) : 4;
    m->w = up(d, 128 * m->v);
    return m->w <= 16;
}

/* The same for a mix: few warps with many columns each, which share what a row costs. Eight on a
 * multiprocessor, where that does, have twice the registers of sixteen. */
static bool lay_fat(struct stream *m, int64_t d)
{
    int64_t all = up(d, 128), best = INT64_MAX;
    for (int64_t w = all <= 64 ? 1 : 9; w <= (all <= 64 ? 8 : 16); w++) {
        int64_t v = up(all, w), units = w <= 8 ? 8 / w : 1;
        int64_t cost = v * up(units * w, 4) * 840 / units; /* of the busiest of four schedulers */
        if (v > 8 || cost >= best) continue;
        best = cost, m->v = v, m->w = w, m->units = units;
    }
    return best < INT64_MAX;
}

static bool any(const int64_t *bits, uint32_t n, bool set)
{
    for (uint32_t i = 0; i < n; i++)
        if ((bits[i / 64] >> i % 64 & 1) == set) return true;
    return false;
}

/* Values of a round, as a reduction has them. */
static uint32_t values(uint32_t n)
{
    uint32_t p = 8;
    while (p < n) p *= 2;
    return p;
}

/* Stages that fit beside `more` bytes of a block, what units of several warps exchange (`part` of
 * the text) and the 1024 bytes of every block that are the driver's. */
static int64_t stages(struct depth s, const struct stream *m, int64_t more)
{
    int64_t columns = m->w <= 4 ? 4 : m->w <= 8 ? 12 : 20;
    int64_t part = (m->w > 1 ? m->units : 1) * 2 * m->p * columns * 4;
    int64_t n = ((s.shared + 1024) / m->resident - 1024 - part - more) / (m->units * m->slot);
    return n < 16 ? n : 16;
}

/* Bytes of a block's queries, where they are in shared memory. */
static int64_t query_bytes(const struct stream *m)
{
    return m->q > 1 ? m->q * m->w * m->v * 512 : 0;
}

/* How a mix of up to `queries` queries a block uses a multiprocessor; false: it does not fit. */
static bool mix_fits(struct depth s, bool wide, uint32_t queries, struct stream *m)
{
    m->qblocks = (s.q + queries - 1) / queries;
    m->q = (s.q + m->qblocks - 1) / m->qblocks;
    /* registers: 4 a quad of a sum (and a query), 2 or 4 a quad held, some for the rest */
    int64_t left = 512 / up(m->units * m->w, 4) - 48 - 4 * m->v * (m->q == 1 ? 2 : m->q);
    int64_t most = left / (m->v * (wide ? 4 : 2)), half = 16 / (m->q + 1);
    if (most < 1) most = 1;
    if (most > 2 * half) most = 2 * half;
    /* sources of a round: a reduction of 16 values costs half of one of 32, which pays where it is
     * the only one */
    bool whole = m->q == 1 && s.n > half && s.n <= most;
    m->g = (uint32_t)(whole ? s.n : most < half ? most : half);
    do {
        m->p = values(m->g * (m->q + 1));
        m->stages = stages(s, m, query_bytes(m));
    } while (m->stages < m->g + 3 && m->g > 1 && m->g--); /* copies go on meanwhile */
    return m->stages >= (m->q > 1 ? 5 : 3);
}

/* The form for a mix; else why only the plain one will do. A multiprocessor has one block, whose
 * threads have registers for the sources of a round. */
static const char *mix_stream(const struct cg_emit *e, struct depth s, struct kind k,
                              struct stream *m)
{
    bool wide = any(k.v, s.n, false);
    if (s.d % 8) return plain_rows;
    if (!aligned(e, false, 0, s.q + s.n) || !aligned(e, true, 0, s.q)) return plain_place;
    if (!lay_fat(m, s.d) || (s.q > 1 && s.d > 8192)) return plain_wide;
    m->slot = m->w * m->v * 128 * (wide ? 4 : 2);
    m->threads = m->units * m->w * 32;
    m->resident = 1;
    for (uint32_t queries = 4; queries; queries--)
        if (mix_fits(s, wide, queries, m)) return NULL;
    return plain_memory;
}

static struct str stream_text(const struct cg_emit *e, struct stream m)
{
    struct sb waits = {0};
    for (uint32_t c = 2; c <= (m.g > m.q ? m.g : m.q); c++)
        sb_printf(&waits, "    case %u: cp_async_wait(%u); break;\n", c, (unsigned)m.stages - c);
    const struct cg_var vars[] = {
        {"V", cg_number(e, m.v)},         {"W", cg_number(e, m.w)},
        {"UNITS", cg_number(e, m.units)}, {"STAGES", cg_number(e, m.stages)},
        {"SLOT", cg_number(e, m.slot)},   {"P", cg_number(e, m.p)},
        {"WAITS", waits.n ? waits.p : ""}};
    const char *quads = cg_section(e->a, text, "quads", NULL, 0).p;
    const char *body = cg_section(e->a, text, "stream", vars, sizeof vars / sizeof *vars).p;
    const char *both = str_fmt(e->a, "%s%s", quads, body);
    sb_free(&waits);
    return str_of(both);
}

static struct str mix_text(const struct cg_emit *e, struct depth s, struct kind k,
                           const struct stream *m)
{
    struct cg_var vars[16] = {
        {"CAP", cg_number(e, s.cap)},
        {"QCAP", cg_number(e, s.qcap)},
        {"EPS", str_fmt(e->a, "%.9ef", ir_num(e->g, e->n, AK_eps, 1e-6))},
    };
    if (!m) return cg_section(e->a, text, "mix_plain", vars, 3);
    vars[3] = (struct cg_var){"QUERIES", cg_number(e, s.q)};
    vars[4] = (struct cg_var){"Q", cg_number(e, m->q)};
    vars[5] = (struct cg_var){"G", cg_number(e, m->g)};
    vars[6] = (struct cg_var){"QBLOCKS", cg_number(e, m->qblocks)};
    const char *held = any(k.v, s.n, false) ? "held_wide" : "held_narrow";
    const char *body = cg_section(e->a, text, "mix_stream", vars, 7).p;
    return str_of(str_fmt(e->a, "%s%s%s", stream_text(e, *m).p,
                          cg_section(e->a, text, held, NULL, 0).p, body));
}

static void mix(const struct cg_emit *e, struct depth s)
{
    struct kind k = kinds(e, s, false);
    struct stream m = {0};
    const char *plain = mix_stream(e, s, k, &m);
    bool streams = !plain;
    struct cg_step *step =
        add(e, "depth_mix", types(e, s, k).p, mix_text(e, s, k, streams ? &m : NULL).p);
    tell(e, s, step, &m, plain);
    struct cg_ref *ref = NEW(e->a, struct cg_ref, 2 * s.qcap + s.cap + 3), *at = ref;
    table(&at, S_(0), s.q, s.qcap);
    table(&at, R_(0), s.q, s.qcap);
    table(&at, S_(s.first_v), s.n, s.cap);
    table(&at, R_(s.q), 3, 3);
    int64_t *num = NEW(e->a, int64_t, 3 + k.words), *to = num;
    if (streams) *to++ = s.rows;
    *to++ = s.n;
    *to++ = streams ? up(s.n, up(s.n, m.g)) : s.q; /* sources of a round, all about as many */
    memcpy(to, k.word, k.words * sizeof *num);
    parameters(e, step, ref, at, num, (size_t)(to - num) + k.words);
    if (!streams) {
        cg_launch(step, s.rows, 128, s.n * (int64_t)sizeof(float));
        return;
    }
    /* few rows: fewer units a block, on more multiprocessors */
    int64_t most = up(s.sms, m.qblocks), units = up(s.rows, most);
    if (units > m.units) units = m.units;
    int64_t blocks = up(s.rows, units);
    cg_launch(step, (blocks < most ? blocks : most) * m.qblocks, units * m.w * 32,
              units * m.stages * m.slot + query_bytes(&m));
}

static void grad_end(const struct cg_emit *e, struct depth s, int64_t chunks)
{
    const struct cg_var vars[] = {{"D", cg_number(e, s.d)}, {"QCAP", cg_number(e, s.qcap)}};
    struct cg_step *step =
        add(e, "depth_grad_end", cg_section(e->a, grad_texts, "grad_end", vars, 2).p, "");
    struct cg_ref *ref = NEW(e->a, struct cg_ref, 1 + s.qcap), *at = ref;
    *at++ = W_(0);
    table(&at, R_(s.n), s.q, s.qcap);
    parameters(e, step, ref, at, CG_NUMS(chunks, s.q));
    cg_launch(step, (s.d + 31) / 32, 512, 0);
    step->launch.grid[1] = s.q;
    e->out->workspace = (size_t)(chunks * s.q * s.d) * sizeof(float);
}

/* Tables of a gradient: s, r, queries (u, dh, delta or the mix, lse), sources (v, acc, dv). */
static struct cg_ref *grad_refs(struct depth s, struct kind k, struct cg_ref *at)
{
    table(&at, S_(s.whole ? 3 : 0), 2, 2);
    table(&at, S_(2), s.q, s.qcap);
    table(&at, S_(s.first_o), s.q, s.qcap);
    table(&at, S_(s.whole ? 1 : 2 + 2 * s.q), s.q, s.qcap);
    table(&at, S_(s.whole ? 5 : 2 + 3 * s.q), s.q, s.qcap);
    table(&at, S_(s.first_v), s.n, s.cap);
    uint32_t acc = s.first_acc;
    for (uint32_t j = 0; j < s.cap; j++) /* without one: any address, not read */
        *at++ = j < s.n && k.have[j / 64] >> j % 64 & 1 ? S_(acc++) : S_(s.first_v);
    table(&at, R_(0), s.n, s.cap);
    return at;
}

/* The form for a gradient of one query or two; else why only others will do. `acc`: bytes before
 * the accumulators of a warp's slot. */
static const char *grad_stream(const struct cg_emit *e, struct depth s, struct kind k,
                               bool h_narrow, struct stream *m, int64_t *acc)
{
    if (s.q > 2) return "there are more than two queries";
    if (s.d % 8) return plain_rows;
    if (!lay_thin(m, s.d)) return plain_wide;
    uint32_t u = s.whole ? 1 : 2; /* the mix, the queries */
    if (!aligned(e, false, u, s.whole ? 3 : 2 + s.q) || !aligned(e, true, 0, s.n) ||
        !aligned(e, false, s.first_o, s.first_o + s.q) ||
        !aligned(e, false, s.first_v, ir_at(e->g, e->n)->nsrc))
        return plain_place;
    int64_t v = any(k.v, s.n, false) || any(k.o, s.q, false) ? 4 : 2;
    int64_t more = any(k.d, s.n, false) || (s.whole && !h_narrow) ? 4 : 2;
    *acc = m->v * 128 * v;
    m->slot = m->w * m->v * 128 * (v + more);
    /* of a multiprocessor, as registers allow */
    int64_t warps = s.q == 1 ? (v == 2 ? 16 : 12) : v == 2 ? 12 : 10;
    if (s.q > 1 && m->w > warps) return "rows of that size and two queries need more registers";
    m->units = m->w >= 4 ? 1 : warps / 2 / m->w;
    m->threads = m->units * m->w * 32;
    m->resident = m->w > warps / 2 ? 1 : (uint32_t)(warps / (m->units * m->w));
    m->p = values(0);
    m->stages = stages(s, m, 0);
    m->g = m->stages >= 4 ? 2 : 1;
    m->q = s.q;
    return m->stages <= m->q ? plain_memory : NULL;
}

static struct str grad_text(const struct cg_emit *e, bool h_narrow, bool whole,
                            const struct stream *m, int64_t acc)
{
    struct cg_var vars[6] = {
        {"FROM_MIX", whole ? "true" : "false"},
        {"H_NARROW", h_narrow ? "true" : "false"},
    };
    if (!m) return cg_section(e->a, grad_texts, "grad_plain", vars, 2);
    vars[2] = (struct cg_var){"G", cg_number(e, m->g)};
    vars[3] = (struct cg_var){"ACC", cg_number(e, acc)};
    vars[4] = (struct cg_var){"RESIDENT", cg_number(e, m->resident)};
    vars[5] = (struct cg_var){"Q", cg_number(e, m->q)};
    const char *body = cg_section(e->a, grad_texts, "grad_stream", vars, 6).p;
    return str_of(str_fmt(e->a, "%s%s", stream_text(e, *m).p, body));
}

/* Types and tables of a gradient. */
static const char *grad_head(const struct cg_emit *e, struct depth s, struct kind k)
{
    const struct cg_var tables[] = {{"CAP", cg_number(e, s.cap)}, {"QCAP", cg_number(e, s.qcap)}};
    struct str head = cg_section(e->a, grad_texts, "grad_tables", tables, 2);
    return str_fmt(e->a, "%s%s", types(e, s, k).p, head.p);
}

/* Row strides of dh . h and of the log-sum-exps; those of a whole mix are dense. */
static int64_t *strides(const struct cg_emit *e, struct depth s, int64_t *to)
{
    for (uint32_t i = 0; i < s.q && !s.whole; i++) {
        to[i] = cg_src_ld(e->g, e->n, 2 + 2 * s.q + i);
        to[s.qcap + i] = cg_src_ld(e->g, e->n, 2 + 3 * s.q + i);
    }
    if (s.whole) to[s.qcap] = 1;
    return to + 2 * s.qcap;
}

/* `why`: what several queries could not be done by instead. */
static void grad(const struct cg_emit *e, struct depth s, struct kind k, const char *why)
{
    struct stream m = {0};
    bool h_narrow = s.whole && ir_narrow(e->g, ir_src(e->g, e->n, 1));
    int64_t acc, chunk = up(s.rows, CHUNKS), chunks = up(s.rows, chunk);
    const char *plain = grad_stream(e, s, k, h_narrow, &m, &acc);
    bool streams = !plain;
    if (streams) {
        chunks = up(s.rows, m.units);
        if (chunks > s.sms * m.resident) chunks = s.sms * m.resident;
    }
    struct cg_step *step = add(e, "depth_grad", grad_head(e, s, k),
                               grad_text(e, h_narrow, s.whole, streams ? &m : NULL, acc).p);
    tell(e, s, step, &m, plain && why ? why : plain);
    struct cg_ref *ref = NEW(e->a, struct cg_ref, 2 + 4 * s.qcap + 3 * s.cap + 1);
    struct cg_ref *at = grad_refs(s, k, ref);
    *at++ = W_(0);
    int64_t *num = NEW(e->a, int64_t, 4 + 2 * s.qcap + k.words), *to = num;
    *to++ = s.rows, *to++ = s.n;
    if (streams)
        *to++ = up(s.n, up(s.n, m.g)); /* sources of a round, all about as many */
    else
        *to++ = s.q, *to++ = chunk;
    to = strides(e, s, to);
    memcpy(to, k.word, k.words * sizeof *num);
    parameters(e, step, ref, at, num, (size_t)(to - num) + k.words);
    if (streams)
        cg_launch(step, chunks, m.threads, m.units * m.stages * m.slot);
    else
        cg_launch(step, chunks, 128, 3 * s.q * (int64_t)sizeof(float));
    grad_end(e, s, chunks);
}

/* ---- gradients of several queries: coefficients, then what they do, without a reduction ---- */

static const char *parts(const struct cg_emit *e, struct depth s, struct kind k, struct stream *m)
{
    if (s.q == 1) return "there is one query";
    if (s.d % 8) return plain_rows;
    if (s.d > 8192 || !lay_fat(m, s.d)) return plain_wide;
    if (!aligned(e, false, 2, 2 + 2 * s.q) || !aligned(e, true, 0, s.n) ||
        !aligned(e, false, s.first_v, ir_at(e->g, e->n)->nsrc))
        return plain_place;
    bool wide = any(k.v, s.n, false) || any(k.o, s.q, false);
    m->qblocks = (s.q + 3) / 4; /* whose gradients a thread has in registers */
    m->q = (s.q + m->qblocks - 1) / m->qblocks;
    m->slot = m->w * m->v * 128 * (wide ? 4 : 2);
    m->threads = m->units * m->w * 32;
    m->resident = 1;
    m->g = 16 / m->q; /* as many as one reduction of 16 values takes */
    do {
        m->p = values(m->g * m->q);
        m->stages = stages(s, m, 0);
    } while (m->stages < m->g + 3 && m->g > 1 && m->g--);
    if (m->stages < m->q + 1) return plain_memory;
    return m->stages < 4 ? plain_memory : NULL;
}

static void dots(const struct cg_emit *e, struct depth s, struct kind k, struct stream m,
                 int64_t coefficients)
{
    const struct cg_var vars[] = {{"QUERIES", cg_number(e, s.q)},
                                  {"Q", cg_number(e, m.q)},
                                  {"G", cg_number(e, m.g)},
                                  {"QBLOCKS", cg_number(e, m.qblocks)},
                                  {"RESIDENT", cg_number(e, m.resident)}};
    const char *body = cg_section(e->a, grad_texts, "grad_dots", vars, 5).p;
    struct cg_step *step = add(e, "depth_grad_dots", grad_head(e, s, k),
                               str_fmt(e->a, "%s%s", stream_text(e, m).p, body));
    tell(e, s, step, &m, NULL);
    struct cg_ref *ref = NEW(e->a, struct cg_ref, 2 + 4 * s.qcap + 3 * s.cap + 1);
    struct cg_ref *at = grad_refs(s, k, ref);
    *at++ = W_(coefficients);
    int64_t *num = NEW(e->a, int64_t, 3 + 2 * s.qcap + k.words), *to = num;
    *to++ = s.rows, *to++ = s.n, *to++ = up(s.n, up(s.n, m.g));
    to = strides(e, s, to);
    memcpy(to, k.word, k.words * sizeof *num);
    parameters(e, step, ref, at, num, (size_t)(to - num) + k.words);
    int64_t blocks = up(s.rows, m.units), most = up(s.sms * m.resident, m.qblocks);
    if (blocks > most) blocks = most;
    cg_launch(step, blocks * m.qblocks, m.threads, m.units * m.stages * m.slot);
}

/* Queries from..from+q-1; those after the first ones add to what these have written. */
static void apply(const struct cg_emit *e, struct depth s, struct kind k, uint32_t from, uint32_t q,
                  int64_t chunk, int64_t coefficients)
{
    const struct cg_var vars[] = {{"Q", cg_number(e, q)},
                                  {"RESIDENT", q < 4   ? "4"
                                               : q < 6 ? "3"
                                                       : "2"}};
    const char *quads = cg_section(e->a, text, "quads", NULL, 0).p;
    const char *body = cg_section(e->a, grad_texts, "grad_apply", vars, 2).p;
    struct cg_step *step =
        add(e, "depth_grad_apply", grad_head(e, s, k), str_fmt(e->a, "%s%s", quads, body));
    step->route = str_fmt(e->a, "%s [%lld]: %u queries a launch, after their coefficients",
                          op_info((enum ir_op)ir_at(e->g, e->n)->op)->name, (long long)s.d, q);
    struct cg_ref *ref = NEW(e->a, struct cg_ref, 2 + 4 * s.qcap + 3 * s.cap + 2);
    struct cg_ref *at = grad_refs(s, k, ref);
    if (from) table(&(struct cg_ref *){at - 2 * s.cap}, R_(0), s.n, s.cap);
    *at++ = W_(coefficients);
    *at++ = W_(0);
    int64_t *num = NEW(e->a, int64_t, 5 + k.words);
    num[0] = s.rows, num[1] = s.n, num[2] = s.q, num[3] = from, num[4] = chunk;
    memcpy(num + 5, k.word, k.words * sizeof *num);
    for (uint32_t j = 0; from && j < s.n; j++) set_bit(num + 5 + (k.have - k.word), j, true);
    parameters(e, step, ref + 2, at, num, 5 + k.words);
    cg_launch(step, up(s.d, 512), 128, 0);
    step->launch.grid[1] = (uint32_t)up(s.rows, chunk);
}

static void grads(const struct cg_emit *e, struct depth s)
{
    struct kind k = kinds(e, s, true);
    struct stream m = {0}, one = {0};
    int64_t acc;
    const char *why = NULL;
    if (!grad_stream(e, s, k, false, &one, &acc) || (why = parts(e, s, k, &m))) {
        grad(e, s, k, s.q > 2 ? why : NULL);
        return;
    }
    uint32_t launches = (s.q + 7) / 8, q = (s.q + launches - 1) / launches;
    int64_t chunk = up(s.rows, up(s.sms * (q <= 4 ? 4 : 3), up(s.d, 512))),
            chunks = up(s.rows, chunk);
    int64_t coefficients = up(chunks * s.q * s.d * 4, 256) * 256;
    dots(e, s, k, m, coefficients);
    for (uint32_t from = 0; from < s.q; from += q)
        apply(e, s, k, from, s.q - from < q ? s.q - from : q, chunk, coefficients);
    grad_end(e, s, chunks);
    e->out->workspace = (size_t)(coefficients + s.rows * s.n * s.q * 16);
}

void cg_cuda_depth(struct arena *a, const struct ir_graph *g, ir_id n, struct ir_bind b,
                   const struct cg_target *t, struct cg_lowering *out)
{
    const struct cg_emit e = {a, g, n, b, out};
    struct depth s = sizes(&e, t->sm);
    switch (ir_at(g, n)->op) {
    case OP_depth_mix:
    case OP_depth_inter: mix(&e, s); break;
    case OP_depth_mix_grad:
    case OP_depth_inter_grad: grads(&e, s); break;
    default: BUG("not a depth operation: %s", op_info((enum ir_op)ir_at(g, n)->op)->name);
    }
}
