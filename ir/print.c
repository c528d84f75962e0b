/* Canonical text of a graph:
 *
 *   graph train stage T
 *   %x : f32[N,64] = embed %model.embed_tokens.weight, %tokens
 *   %y : f32[N,64] = mul %x, %g {name=...}  ; spec.yaml:3:1
 *   out loss = %l
 *   region 0 norm { ... }
 *
 * Names are the nodes' own; unnamed nodes are %1, %2 ... by position. Names that repeat get a
 * suffix. */
#include "graph.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* The shortest decimal that reads back as the same double. */
static void print_num(double v, struct sb *out)
{
    char buf[40];
    if (isinf(v)) {
        sb_str(out, v > 0 ? "inf" : "-inf");
        return;
    }
    for (int p = 1; p <= 17; p++) {
        snprintf(buf, sizeof buf, "%.*g", p, v);
        if (strtod(buf, NULL) == v) break;
    }
    sb_str(out, buf);
}

/* Printed names: own name, or its position; a second node of the same name gets '.position'. */
static const char **node_names(const struct ir_graph *g, struct arena *a)
{
    const char **name = NEW(a, const char *, g->node.n);
    struct map seen;
    map_init(&seen, a);
    for (ir_id n = 0; n < g->node.n; n++) {
        const char *own = ir_name(g, n);
        if (!*own) {
            name[n] = str_fmt(a, "%u", n);
            continue;
        }
        uint32_t *count = map_str(&seen, str_of(own));
        name[n] = *count ? str_fmt(a, "%s'%u", own, *count) : own;
        ++*count;
    }
    return name;
}

static void print_attrs(const struct ir_graph *g, ir_id n, struct sb *out)
{
    struct ir_attr attr[AK_COUNT];
    size_t count = ir_attrs(g, n, attr);
    if (count || ir_at(g, n)->instance) sb_str(out, " {");
    for (size_t i = 0; i < count; i++) {
        sb_printf(out, "%s%s=", i ? ", " : "", attr_name(attr[i].key));
        if (attr_kind(attr[i].key) == 'i') sb_printf(out, "%lld", (long long)attr[i].i);
        if (attr_kind(attr[i].key) == 'f') print_num(attr[i].f, out);
        if (attr_kind(attr[i].key) == 's') sb_str(out, attr[i].s);
    }
    if (ir_at(g, n)->instance) sb_printf(out, "%s#%u", count ? ", " : "", ir_at(g, n)->instance);
    if (count || ir_at(g, n)->instance) sb_char(out, '}');
}

static void print_body(const struct ir_graph *g, const struct diag *d, const char *indent,
                       struct sb *out)
{
    struct arena *a = arena_open("print");
    const char **name = node_names(g, a);
    for (ir_id n = 0; n < g->node.n; n++) {
        const struct ir_node *x = ir_at(g, n);
        sb_printf(out, "%s%%%s : ", indent, name[n]);
        type_print(g->types, x->type, out);
        sb_printf(out, " = %s", op_info((enum ir_op)x->op)->name);
        for (uint32_t i = 0; i < x->nsrc; i++)
            sb_printf(out, "%s%%%s", i ? ", " : " ", name[ir_src(g, n, i)]);
        print_attrs(g, n, out);
        struct span s = ir_span(g, n);
        if (d && s.file) {
            unsigned line, col;
            diag_line_col(d, s, &line, &col);
            sb_printf(out, "  ; %s:%u:%u", diag_file_name(d, s.file), line, col);
        }
        sb_char(out, '\n');
    }
    for (size_t i = 0; i < g->out.n; i++) {
        sb_printf(out, "%sout %s = %%%s", indent, intern_text(g->names, g->out.p[i].name),
                  name[g->out.p[i].id]);
        if (g->out.p[i].ld) sb_printf(out, " {ld=%lld}", (long long)g->out.p[i].ld);
        sb_char(out, '\n');
    }
    arena_close(a);
}

void graph_print(const struct ir_graph *g, const struct diag *d, struct sb *out)
{
    sb_printf(out, "graph %s stage %c\n", g->program,
              g->stage == STAGE_T   ? 'T'
              : g->stage == STAGE_K ? 'K'
                                    : 'P');
    print_body(g, d, "", out);
    for (size_t r = 0; r < g->region.n; r++) {
        sb_printf(out, "region %zu %s {\n", r, g->region.p[r]->program);
        print_body(g->region.p[r], d, "  ", out);
        sb_str(out, "}\n");
    }
}
