/* Layout: rows from bottom to top (embedding, sublayers, readout, head), in two columns: the stack
 * of boxes, and a matrix of dots with a column for each source. Names in a spec are letters, digits
 * and ._- only, so no text needs escaping. */
#include "compiler/draw.h"
#include "compiler/sites.h"

enum { STACK_X = 96, STACK_W = 250, PAD = 8, TOP = 118, LINE = 20 };
#define INK "#22303c"
#define FAINT "#7b8794"
#define DOT "#2f5d8a"

struct picture {
    struct arena *a;
    const struct model *m;
    const struct site *site;
    size_t num_sites, rows; /* rows: sublayers */
    double pitch, box, gap; /* of rows; height of a box; between blocks */
    double col, r;          /* width of a source column, radius of a dot */
    double *y;              /* centre of each sublayer */
    double y_embed, y_readout, y_head, x_dots, width, height;
    struct sb *o;
};

/* ---- words ---- */

const char *mixer_text(struct arena *a, const struct mixer *x)
{
    struct sb s = {0};
    sb_printf(&s, "%s, %lld heads", spec_enum_name("mixer_type", (int)x->type),
              (long long)x->num_heads);
    if (x->type == MIXER_attention) {
        if (x->num_kv_heads != x->num_heads) sb_printf(&s, ", %lld kv", (long long)x->num_kv_heads);
        if (x->window) sb_printf(&s, ", window %lld", (long long)x->window);
    }
    if (x->type == MIXER_kda && x->gate == GATE_bounded) sb_printf(&s, ", bounded gate");
    if (x->type == MIXER_mla) sb_printf(&s, ", latent %lld", (long long)x->kv_lora_rank);
    return sb_take(&s, a).p;
}

const char *ffn_text(struct arena *a, const struct ffn *f)
{
    if (f->type == FFN_mlp) return str_fmt(a, "mlp %lld", (long long)f->intermediate_size);
    struct sb s = {0};
    sb_printf(&s, "moe %lld, %lld experts, top %lld", (long long)f->intermediate_size,
              (long long)f->num_experts, (long long)f->experts_per_token);
    if (f->num_shared_experts) sb_printf(&s, " + %lld", (long long)f->num_shared_experts);
    return sb_take(&s, a).p;
}

static const char *mixer_colour(enum mixer_type t)
{
    static const char *const c[] = {
        [MIXER_attention] = "#a9cbe8", [MIXER_mla] = "#c3b7e2", [MIXER_kda] = "#a5d9c8"};
    return c[t];
}

static const char *ffn_colour(enum ffn_type t)
{
    return t == FFN_mlp ? "#f6dfa4" : "#f3b99b";
}

/* ---- shapes ---- */

static void text(struct picture *p, double x, double y, double size, const char *anchor,
                 const char *more, const char *t)
{
    sb_printf(p->o,
              "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%.1f\" text-anchor=\"%s\"%s%s>%s</text>\n",
              x, y, size, anchor, *more ? " " : "", more, t);
}

static void rect(struct picture *p, double x, double y, double w, double h, double r,
                 const char *fill, const char *stroke)
{
    sb_printf(p->o,
              "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"%.1f\" fill=\"%s\" "
              "stroke=\"%s\"/>\n",
              x, y, w, h, r, fill, stroke);
}

static void line(struct picture *p, double x1, double y1, double x2, double y2, const char *stroke,
                 double width)
{
    sb_printf(p->o,
              "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
              "stroke-width=\"%.1f\"/>\n",
              x1, y1, x2, y2, stroke, width);
}

static void disc(struct picture *p, double x, double y, double r, const char *fill,
                 const char *stroke)
{
    sb_printf(p->o, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"%s\" stroke=\"%s\"/>\n", x,
              y, r, fill, stroke);
}

/* A labelled box of the stack. */
static void box(struct picture *p, double y, const char *fill, const char *label)
{
    double size = p->box * 0.56 < 13 ? p->box * 0.56 : 13;
    rect(p, STACK_X + PAD, y - p->box / 2, STACK_W - 2 * PAD, p->box, p->box < 12 ? 2 : 5, fill,
         "none");
    if (size >= 5) text(p, STACK_X + STACK_W / 2, y + size * 0.36, size, "middle", "", label);
}

/* ---- layout ---- */

static size_t blocks(const struct picture *p)
{
    return p->num_sites ? p->m->num_boundaries + 1 : 1;
}

static void sizes(struct picture *p)
{
    size_t n = p->rows, cols = blocks(p) + 1;
    p->pitch = n <= 16 ? 28 : n <= 32 ? 22 : n <= 64 ? 16 : n <= 128 ? 11 : 8;
    p->box = p->pitch >= 16 ? p->pitch - 5 : p->pitch - 2;
    p->gap = !p->num_sites ? 0 : blocks(p) * 2 > n ? 3 : p->pitch >= 16 ? 16 : 7;
    p->col = cols <= 13 ? 30 : cols <= 25 ? 20 : cols <= 60 ? 12 : 8;
    double least = p->pitch < p->col ? p->pitch : p->col;
    p->r = least * 0.3 < 6 ? least * 0.3 : 6;
}

static void place(struct picture *p)
{
    size_t n = p->rows;
    double head = p->pitch > 22 ? p->pitch : 22, y;
    p->y = NEW(p->a, double, n);
    p->y_head = TOP + head / 2;
    p->y_readout = y = p->y_head + head + 4;
    y += p->num_sites ? p->pitch / 2 + p->gap / 2 + 8 : -p->pitch / 2;
    for (size_t i = n; i-- > 0;) {
        if (p->num_sites && i + 1 < n && p->site[i].block != p->site[i + 1].block) y += p->gap;
        p->y[i] = y + p->pitch / 2;
        y += p->pitch;
    }
    p->y_embed = y + head / 2 + p->gap / 2 + 8;
    p->x_dots = STACK_X + STACK_W + 58;
    double matrix = p->num_sites ? 58 + p->col * (double)(blocks(p) + 1) : 0;
    p->width = STACK_X + STACK_W + matrix + 40;
    if (p->width < 560) p->width = 560;
    p->height = p->y_embed + head / 2 + 40;
}

static double dot_x(const struct picture *p, size_t source)
{
    return p->x_dots + p->col * ((double)source + 0.5);
}

/* ---- the parts ---- */

static void title(struct picture *p, const char *subtitle)
{
    const struct model *m = p->m;
    struct sb s = {0};
    text(p, 24, 44, 26, "start", "font-weight=\"bold\"", m->name);
    text(p, 24, 68, 14, "start", "fill=\"" FAINT "\"", subtitle);
    sb_printf(&s, "%zu layers, hidden %lld, vocabulary %lld", m->num_layers,
              (long long)m->hidden_size, (long long)m->vocab_size);
    if (!p->num_sites)
        sb_str(&s, ", standard residual");
    else if (blocks(p) == p->rows)
        sb_str(&s, ", Full Attention Residuals");
    else
        sb_printf(&s, ", Attention Residuals over %zu block%s", blocks(p),
                  blocks(p) == 1 ? "" : "s");
    text(p, 24, 88, 14, "start", "fill=\"" FAINT "\"", sb_take(&s, p->a).p);
}

static void frames(struct picture *p)
{
    size_t every = p->pitch + p->gap < 12 ? 5 : 1;
    for (size_t k = 1; p->num_sites && k <= blocks(p); k++) {
        struct block b = block_of(p->m, k);
        double top = p->y[b.end - 1] - p->pitch / 2, bottom = p->y[b.first] + p->pitch / 2;
        double pad = p->gap > 10 ? 4 : p->gap / 2 - 1;
        double tall = bottom - top + 2 * pad, size = p->pitch >= 16 || tall > 30 ? 13 : 8;
        rect(p, STACK_X, top - pad, STACK_W, tall, tall < 20 ? 3 : 9, "#eef2f6", "#c3ccd6");
        if (every > 1 && k % 5 && tall < 11) continue;
        text(p, STACK_X + STACK_W + 8, (top + bottom) / 2 + size * 0.36, size, "start",
             "fill=\"" FAINT "\"", str_fmt(p->a, "b%zu", k));
    }
}

/* The running sum, with a plus where a sublayer adds to it. */
static void stream(struct picture *p)
{
    double x = STACK_X + STACK_W + 14;
    line(p, x, p->y_embed, x, p->y_head, DOT, 1.5);
    line(p, STACK_X + STACK_W - PAD, p->y_embed, x, p->y_embed, DOT, 1.5);
    line(p, STACK_X + STACK_W - PAD, p->y_head, x, p->y_head, DOT, 1.5);
    for (size_t i = 0; i < p->rows; i++) {
        line(p, STACK_X + STACK_W - PAD, p->y[i], x, p->y[i], DOT, 1);
        disc(p, x, p->y[i], p->r < 3 ? 2 : 5, "white", DOT);
        if (p->r < 3) continue;
        line(p, x - 3, p->y[i], x + 3, p->y[i], DOT, 1);
        line(p, x, p->y[i] - 3, x, p->y[i] + 3, DOT, 1);
    }
}

static void boxes(struct picture *p)
{
    const struct model *m = p->m;
    size_t every = p->pitch >= 11 ? 1 : 4;
    for (size_t i = 0; i < p->rows; i++) {
        const struct layer *y = &m->layer[i / 2];
        if (i % 2)
            box(p, p->y[i], ffn_colour(m->ffn[y->ffn].type), ffn_text(p->a, &m->ffn[y->ffn]));
        else
            box(p, p->y[i], mixer_colour(m->mixer[y->mixer].type),
                mixer_text(p->a, &m->mixer[y->mixer]));
        if (i % 2 == 0) continue;
        double top = p->y[i] - p->box / 2, bottom = p->y[i - 1] + p->box / 2;
        line(p, STACK_X - 8, top, STACK_X - 8, bottom, "#c3ccd6", 1.5);
        if (i / 2 % every == 0)
            text(p, STACK_X - 14, (top + bottom) / 2 + 4, p->pitch >= 14 ? 12 : 9, "end",
                 "fill=\"" FAINT "\"", str_fmt(p->a, p->pitch >= 14 ? "layer %zu" : "%zu", i / 2));
    }
    double small = p->box;
    p->box = 22;
    box(p, p->y_embed, "#dde3ea", "embedding");
    box(p, p->y_head, "#dde3ea", m->tie_embeddings ? "norm, head (tied)" : "norm, head");
    p->box = small;
    if (!p->num_sites) return;
    text(p, STACK_X + STACK_W - PAD, p->y_readout + 4, 12, "end", "fill=\"" FAINT "\"", "readout");
}

static void dots(struct picture *p)
{
    double left = STACK_X + STACK_W + 34, right = dot_x(p, blocks(p)) + p->col / 2;
    for (size_t i = 0; i < p->num_sites; i++) {
        const struct site *s = &p->site[i];
        double y = i < p->rows ? p->y[i] : p->y_readout;
        bool off = !s->mixes && i > 0;
        line(p, left, y, right, y, "#e8ecf0", 1);
        for (size_t k = 0; k <= s->finished; k++)
            disc(p, dot_x(p, k), y, off ? p->r * 0.45 : p->r, off ? FAINT : k ? DOT : INK, "none");
        if (s->partial)
            disc(p, dot_x(p, s->block), y, off ? p->r * 0.45 : p->r * 0.85, off ? FAINT : "white",
                 off ? "none" : DOT);
    }
}

static void columns(struct picture *p)
{
    size_t every = p->col >= 20 ? 1 : p->col >= 12 ? 2 : 5;
    double size = p->col >= 30 ? 12 : 9, y = p->y_embed + 4;
    for (size_t k = 0; k <= blocks(p); k++)
        if (k % every == 0)
            text(p, dot_x(p, k), y, size, "middle", "fill=\"" FAINT "\"",
                 k              ? str_fmt(p->a, "b%zu", k)
                 : p->col >= 30 ? "emb"
                                : "e");
    text(p, p->x_dots, p->y_head + 4, 12, "start", "fill=\"" FAINT "\"",
         "sources each input mixes");
}

/* ---- legend ---- */

struct legend {
    struct picture *p;
    double x, y;
};

/* Moves to the next line where an entry of this width does not fit. */
static void entry(struct legend *l, const char *words)
{
    text(l->p, l->x + 20, l->y + 4, 12, "start", "", words);
    l->x += 44 + 6.4 * (double)strlen(words);
}

static void room(struct legend *l, const char *words)
{
    if (l->x > 24 && l->x + 30 + 6.4 * (double)strlen(words) > l->p->width) {
        l->x = 24;
        l->y += LINE;
    }
}

static void swatch(struct legend *l, const char *fill, const char *words)
{
    room(l, words);
    rect(l->p, l->x, l->y - 7, 14, 14, 3, fill, "none");
    entry(l, words);
}

static void sample(struct legend *l, double r, const char *fill, const char *stroke,
                   const char *words)
{
    room(l, words);
    disc(l->p, l->x + 7, l->y, r, fill, stroke);
    entry(l, words);
}

static void legend(struct picture *p)
{
    const struct model *m = p->m;
    struct legend l = {p, 24, p->height};
    bool mixer[MIXER_kda + 1] = {false}, ffn[FFN_moe + 1] = {false}, off = false;
    for (size_t i = 0; i < m->num_layers; i++)
        mixer[m->mixer[m->layer[i].mixer].type] = ffn[m->ffn[m->layer[i].ffn].type] = true;
    for (int t = 0; t <= MIXER_kda; t++)
        if (mixer[t]) swatch(&l, mixer_colour((enum mixer_type)t), spec_enum_name("mixer_type", t));
    for (int t = 0; t <= FFN_moe; t++)
        if (ffn[t]) swatch(&l, ffn_colour((enum ffn_type)t), spec_enum_name("ffn_type", t));
    for (size_t i = 1; i < p->num_sites; i++) off |= !p->site[i].mixes;
    if (p->num_sites) {
        sample(&l, 5, INK, "none", "embedding");
        sample(&l, 5, DOT, "none", "finished block");
        sample(&l, 4.5, "white", DOT, "running sum of its own block");
        if (off) sample(&l, 2.3, FAINT, "none", "plain sum, not a mix");
    }
    p->height = l.y + 30;
}

void draw_model(struct arena *a, const struct model *m, const char *subtitle, struct sb *out)
{
    struct sb body = {0};
    struct picture pic = {.a = a, .m = m, .rows = 2 * m->num_layers, .o = &body}, *p = &pic;
    p->site = sites_of(a, m, &p->num_sites);
    sizes(p);
    place(p);
    title(p, subtitle);
    frames(p);
    if (!p->num_sites) stream(p);
    boxes(p);
    if (p->num_sites) {
        columns(p);
        dots(p);
    }
    legend(p);
    sb_printf(out,
              "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
              "viewBox=\"0 0 %.0f %.0f\" font-family=\"Helvetica, Arial, sans-serif\" fill=\"" INK
              "\">\n"
              "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
              p->width, p->height, p->width, p->height);
    sb_add(out, body.p, body.n);
    sb_str(out, "</svg>\n");
    sb_free(&body);
}
