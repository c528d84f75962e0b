/* Reads the text print.c writes. A small hand-written reader: the text is our own test language. */
#include "graph.h"
#include <ctype.h>
#include <stdlib.h>

struct parser {
    struct arena *arena;
    struct diag *d;
    uint32_t file;
    struct str text;
    const char *at;
    struct ir_graph *g;
    struct map names; /* printed name -> id + 1 */
    bool failed;
};

static bool fail(struct parser *p, const char *msg)
{
    if (!p->failed) {
        struct span s = {p->file, (uint32_t)(p->at - p->text.p), 1};
        diag_add(p->d, D_plain, s, msg);
    }
    p->failed = true;
    return false;
}

static void blanks(struct parser *p)
{
    while (*p->at == ' ' || *p->at == '\t') p->at++;
}

static bool eat(struct parser *p, const char *z)
{
    blanks(p);
    size_t n = strlen(z);
    if (strncmp(p->at, z, n)) return false;
    p->at += n;
    return true;
}

static bool name_char(char c)
{
    return isalnum((unsigned char)c) || (c && strchr("._-'", c));
}

static struct str word(struct parser *p)
{
    blanks(p);
    const char *b = p->at;
    while (name_char(*p->at)) p->at++;
    return (struct str){b, (size_t)(p->at - b)};
}

static bool line_end(struct parser *p)
{
    blanks(p);
    if (*p->at == ';')
        while (*p->at && *p->at != '\n') p->at++;
    if (*p->at == '\n')
        p->at++;
    else if (*p->at)
        return fail(p, "end of line expected");
    return true;
}

static bool value_name(struct parser *p, ir_id *out)
{
    if (!eat(p, "%")) return fail(p, "%name expected");
    struct str w = word(p);
    uint32_t *id = map_find(&p->names, w);
    if (!id || !*id) {
        p->at = w.p;
        return fail(p, "no such value");
    }
    *out = *id - 1;
    return true;
}

static bool one_attr(struct parser *p, struct ir_attr *out)
{
    struct str key = word(p);
    int k = 0;
    while (k < AK_COUNT && !str_is(key, attr_name((enum ir_attr_key)k))) k++;
    if (k == AK_COUNT || !eat(p, "=")) return fail(p, "key=value expected");
    *out = (struct ir_attr){.key = (enum ir_attr_key)k};
    char *end = (char *)p->at;
    if (attr_kind(out->key) == 'i') out->i = strtoll(p->at, &end, 10);
    if (attr_kind(out->key) == 'f') out->f = strtod(p->at, &end);
    if (attr_kind(out->key) == 's') {
        struct str w = word(p);
        out->s = str_dup(p->arena, w);
        return true;
    }
    if (end == p->at) return fail(p, "a number expected");
    p->at = end;
    return true;
}

static bool attrs(struct parser *p, struct ir_attr *attr, size_t *n, uint32_t *instance)
{
    *n = 0, *instance = 0;
    if (!eat(p, "{")) return true;
    while (!eat(p, "}")) {
        if (eat(p, "#")) {
            *instance = (uint32_t)strtoul(p->at, (char **)&p->at, 10);
        } else {
            if (*n == AK_COUNT) return fail(p, "too many attributes");
            if (!one_attr(p, &attr[*n])) return false;
            for (size_t i = 0; i < *n; i++)
                if (attr[i].key == attr[*n].key) return fail(p, "an attribute is given twice");
            ++*n;
        }
        eat(p, ",");
    }
    return true;
}

/* A printed name back to the node's own: 'N suffixes are dropped, positions are no names. */
static const char *own_name(struct parser *p, struct str w)
{
    const char *tick = memchr(w.p, '\'', w.n);
    if (tick) w.n = (size_t)(tick - w.p);
    size_t digits = 0;
    while (digits < w.n && isdigit((unsigned char)w.p[digits])) digits++;
    return digits == w.n ? NULL : str_dup(p->arena, w);
}

static bool node_line(struct parser *p)
{
    struct ir_graph *g = p->g;
    VEC(ir_id) src = {0};
    struct ir_attr attr[AK_COUNT];
    size_t nattr;
    uint32_t instance;
    struct str name = word(p);
    ir_type_id type;
    if (!name.n || !eat(p, ":")) return fail(p, "%name : type expected");
    blanks(p);
    if (!type_parse(g->types, &p->at, &type)) return fail(p, "a type expected");
    if (!eat(p, "=")) return fail(p, "= expected");
    enum ir_op op = op_find(word(p));
    if (op == OP_COUNT) return fail(p, "no such operation");
    blanks(p);
    while (*p->at == '%') {
        ir_id s;
        if (!value_name(p, &s)) return false;
        vec_push(p->arena, &src, s);
        if (!eat(p, ",")) break;
        blanks(p);
    }
    if (!attrs(p, attr, &nattr, &instance)) return false;
    ir_type_id *types = NEW(p->arena, ir_type_id, src.n);
    for (size_t i = 0; i < src.n; i++) types[i] = ir_at(g, src.p[i])->type;
    struct shape_ctx c = {g, g->types, types, src.n, attr, nattr, type};
    ir_type_id got;
    const char *why;
    if (!op_shape(op, &c, &got, &why)) return fail(p, why);
    if (got != type) return fail(p, "the type is not what the operands give");
    *map_str(&p->names, name) =
        1 + ir_add_instance(g, op, type, src.p, src.n, attr, nattr, instance, own_name(p, name));
    return line_end(p);
}

static bool out_line(struct parser *p)
{
    struct ir_graph *g = p->g;
    struct str name = word(p);
    ir_id id;
    struct ir_attr attr[AK_COUNT];
    size_t n;
    uint32_t instance;
    if (!eat(p, "=") || !value_name(p, &id)) return fail(p, "out name = %value expected");
    if (!attrs(p, attr, &n, &instance)) return false;
    const char *z = str_dup(p->arena, name);
    if (ir_find_output(g, z) != IR_NONE) return fail(p, "two outputs of one name");
    ir_output(g, z, id);
    if (n > 1 || (n && attr[0].key != AK_ld)) return fail(p, "an output has no attribute but ld");
    if (n) vec_last(&g->out).ld = attr[0].i;
    return line_end(p);
}

static bool body(struct parser *p, struct ir_graph *g)
{
    p->g = g;
    map_init(&p->names, p->arena);
    for (;;) {
        blanks(p);
        if (*p->at == '\n' || *p->at == ';') {
            if (!line_end(p)) return false;
        } else if (*p->at == '%') {
            p->at++;
            if (!node_line(p)) return false;
        } else if (!strncmp(p->at, "out ", 4)) {
            p->at += 4;
            if (!out_line(p)) return false;
        } else {
            return true;
        }
    }
}

struct ir_graph *graph_parse(struct arena *a, struct diag *d, uint32_t file, struct str text,
                             struct ir_types *types, struct intern *names)
{
    struct parser p = {.arena = a, .d = d, .file = file, .text = text};
    p.at = p.text.p = str_dup(a, text);
    while (*p.at == '\n' || *p.at == ';') line_end(&p);
    if (!eat(&p, "graph ")) return fail(&p, "graph NAME stage S expected"), NULL;
    const char *program = str_dup(a, word(&p));
    if (!eat(&p, "stage ")) return fail(&p, "stage expected"), NULL;
    char s = *p.at;
    if (s != 'T' && s != 'K' && s != 'P') return fail(&p, "stage T, K or P expected"), NULL;
    p.at++;
    enum ir_stage stage = s == 'T' ? STAGE_T : s == 'K' ? STAGE_K : STAGE_P;
    struct ir_graph *g = graph_open(a, program, stage, types, names);
    if (!line_end(&p) || !body(&p, g)) return NULL;
    while (eat(&p, "region ")) {
        word(&p);
        struct ir_graph *r = graph_open(a, str_dup(a, word(&p)), STAGE_K, g->types, g->names);
        if (!eat(&p, "{") || !line_end(&p) || !body(&p, r)) return fail(&p, "region"), NULL;
        if (!eat(&p, "}") || !line_end(&p)) return fail(&p, "} expected"), NULL;
        vec_push(a, &g->region, r);
        while (*p.at == '\n' || *p.at == ';') line_end(&p);
    }
    if (p.at != p.text.p + p.text.n)
        return fail(&p, "a value, an output or a region expected"), NULL;
    return p.failed ? NULL : g;
}
