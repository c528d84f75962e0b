/* Small graphs as models have them, for tests of gradients and passes. */
#ifndef STRATA_TESTS_NET_H
#define STRATA_TESTS_NET_H
#include "graph.h"

struct net {
    struct ir_graph *g;
    struct ir_dim N; /* rows of activations */
};
/* An input of a name and type (op_cases.h says what values its name stands for). */
ir_id net_input(struct ir_graph *g, const char *name, ir_type_id type);
/* f32[rows, cols]; rows 0 stands for N. */
ir_id net_mat(struct net *t, const char *name, int64_t rows, int64_t cols);
/* The scalar <x, a random weight of x's type>. */
ir_id net_weighed(struct ir_graph *g, ir_id x);

enum { NET_COMPOSITIONS = 16 };
/* Builds composition `which` (norms, gated MLPs, attention, MoE, shared values, AttnRes networks)
 * and returns its scalar loss. */
ir_id net_compose(struct net *t, int which);
/* The reference algorithm of attnres-paper 2.2: L sublayers (attention, MLP, ...) in blocks of S,
 * the embedding tied to the head; site l is switched off (reads the plain sum) where bit l of off
 * is set, l = L is the readout. Returns the mean cross-entropy. */
ir_id net_attnres(struct net *t, size_t L, size_t S, unsigned off);
#endif
