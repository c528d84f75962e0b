/* Causal attention, forward and backward (needs prelude.c, tile.c).
 * ${H} query heads over ${KV} key heads, head sizes ${HD} (q, k) and ${VD} (v, o), window ${WINDOW} (0: none).
 * Tokens are rows of [B*T, stride]; a query sees itself and earlier keys (at most ${WINDOW} if not 0).
 * Key tiles of 64 lie on absolute positions, so a row's bits depend on no later token, on no other
 * sequence and on no cut into items. */

/* Forward. p = q, k, v, o, lse [B*T, ${H}], largest score [B*T, ${H}]; n = B, T; items = B x ${KV} x ceil(T / ${QB}). */
void ${FN}_fwd(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    enum { H = ${H}, KV = ${KV}, G = H / KV, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, QB = ${QB}, KB = 64 };
    enum { LDQ = ${LDQ}, LDK = ${LDK}, LDV = ${LDV}, LDO = ${LDO}, VP = (VD + 15) / 16 * 16 };
    const float scale = ${SCALE}f, lowest = -1e38f; /* times log2(e) it is still finite */
    const int64_t T = n[1], tiles = div_up(T, QB);
    float *kt = scratch;           /* [4][HD][16]: keys of the tile as columns */
    float *vp = kt + KB * HD;      /* [VP/16][64][16] */
    float *s = vp + KB * VP;       /* [6][64]: scores, then probabilities */
    float *acc = s + TILE_MR * KB; /* [G*QB][VP]: sum of p v, relative to the row's maximum */
    float *sum = acc + G * QB * VP; /* [G*QB][16]: sum of p, by column mod 16 */
    float *top = sum + G * QB * 16; /* [G*QB]: maximum so far */
    for (int64_t it = lo; it < hi; it++) {
        const int64_t q0 = (tiles - 1 - it % tiles) * QB, q1 = min64(q0 + QB, T);
        const int64_t kv = it / tiles % KV, row0 = it / tiles / KV * T;
        const float *q = (const float *)p[0] + row0 * LDQ + kv * G * HD;
        const float *k = (const float *)p[1] + row0 * LDK + kv * HD;
        const float *v = (const float *)p[2] + row0 * LDV + kv * VD;
        float *o = (float *)p[3] + row0 * LDO + kv * G * VD;
        float *lse = (float *)p[4] + row0 * H + kv * G, *most = (float *)p[5] + row0 * H + kv * G;
        for (int64_t r = 0; r < G * QB; r++) {
            if (q0 + r % QB >= q1) continue;
            for (int64_t d = 0; d < VP; d += 16) st16(acc + r * VP + d, splat16(0.0f));
            st16(sum + r * 16, splat16(0.0f));
            top[r] = lowest;
        }
        for (int64_t k0 = W > 0 ? max64(0, q0 - W + 1) / KB * KB : 0; k0 < q1; k0 += KB) {
            const int64_t keys = min64(KB, T - k0);
            for (int64_t j = 0; j < keys; j += 16)
                panel_from_rows(kt + j * HD, k + (k0 + j) * LDK, LDK, min64(16, keys - j), HD);
            panels_from_cols(vp, KB * 16, v + k0 * LDV, LDV, VD, keys);
            for (int64_t r = 0; r < G * QB; r += TILE_MR) {
                const int64_t g = r / QB, i0 = q0 + r % QB, mr = min64(TILE_MR, q1 - i0);
                if (mr <= 0 || k0 >= i0 + mr || (W > 0 && k0 + KB <= i0 - W + 1)) continue;
                const int64_t seen = min64(KB, i0 + mr - k0), nv = div_up(seen, 16);
                struct tile t = {.ks = 1, .b = kt, .bp = HD * 16, .kn = HD, .c = s, .ldc = KB,
                                 .cols = nv * 16, .prefetch = kt};
                for (int64_t m = 0; m < mr; m++) t.a[m] = q + (i0 + m) * LDQ + g * HD;
                tile_run(&t, mr);
                attn_softmax(s, top + r, sum + r * 16, acc + r * VP, VP, scale, mr, nv, i0 - k0, W);
                t = (struct tile){.ks = 1, .bp = KB * 16, .kn = seen, .ldc = VP, .load = 1, .prefetch = vp};
                for (int64_t m = 0; m < mr; m++) t.a[m] = s + m * KB;
                for (int64_t d = 0; d < VP; d += 64) {
                    t.b = vp + d * KB;
                    t.c = acc + r * VP + d;
                    t.cols = min64(64, VP - d);
                    tile_run(&t, mr);
                }
            }
        }
        for (int64_t r = 0; r < G * QB; r++) {
            const int64_t g = r / QB, i = q0 + r % QB;
            if (i >= q1) continue;
            const float total = hsum16(ld16(sum + r * 16)), part = 1.0f / total;
            lse[i * H + g] = top[r] + log1(total);
            most[i * H + g] = top[r];
            /* + 0: no trace of the sign of zero, which masked keys may change */
            for (int64_t d = 0; d < VD; d += 16)
                st16k(o + i * LDO + g * VD + d, ld16(acc + r * VP + d) * part + 0.0f, min64(16, VD - d));
        }
    }
}

/* Backward. p = q, k, v, o, lse, do, dq, dk, dv (the last three are overwritten); n = B, T;
 * items = B x ${KV}. dk and dv sum over queries in ascending order, heads in order; dq over key tiles. */
void ${FN}_bwd(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    enum { H = ${H}, KV = ${KV}, G = H / KV, HD = ${HD}, VD = ${VD}, W = ${WINDOW}, KB = 64 };
    enum { LDQ = ${LDQ}, LDK = ${LDK}, LDV = ${LDV}, LDO = ${LDO}, LDDO = ${LDDO} };
    enum { LDDQ = ${LDDQ}, LDDK = ${LDDK}, LDDV = ${LDDV}, VP = (VD + 15) / 16 * 16, HP = (HD + 15) / 16 * 16 };
    const float scale = ${SCALE}f;
    const int64_t T = n[1];
    float *kt = scratch;      /* [4][HD][16]: keys as columns, for q k */
    float *vt = kt + KB * HD; /* [4][VD][16]: values as columns, for do v */
    float *kn = vt + KB * VD; /* [HP/16][64][16]: keys as rows, for dq */
    float *qn = kn + KB * HP; /* [HP/16][64][16]: queries as rows, for dk */
    float *on = qn + KB * HP; /* [VP/16][64][16]: do as rows, for dv */
    float *dks = on + KB * VP; /* [64][HP] */
    float *dvs = dks + KB * HP; /* [64][VP] */
    float *s = dvs + KB * VP; /* [64][64]: probabilities */
    float *ds = s + KB * KB;  /* [64][64]: gradients of scores */
    for (int64_t it = lo; it < hi; it++) {
        const int64_t kv = it % KV, row0 = it / KV * T;
        const float *k = (const float *)p[1] + row0 * LDK + kv * HD;
        const float *v = (const float *)p[2] + row0 * LDV + kv * VD;
        float *dk = (float *)p[7] + row0 * LDDK + kv * HD, *dv = (float *)p[8] + row0 * LDDV + kv * VD;
        for (int64_t k0 = 0; k0 < T; k0 += KB) {
            const int64_t keys = min64(KB, T - k0);
            for (int64_t j = 0; j < keys; j += 16) {
                panel_from_rows(kt + j * HD, k + (k0 + j) * LDK, LDK, min64(16, keys - j), HD);
                panel_from_rows(vt + j * VD, v + (k0 + j) * LDV, LDV, min64(16, keys - j), VD);
            }
            panels_from_cols(kn, KB * 16, k + k0 * LDK, LDK, HD, keys);
            const int64_t end = W > 0 ? min64(T, k0 + KB - 1 + W) : T; /* first row that sees none of them */
            for (int64_t g = 0; g < G; g++) {
                const int64_t h = kv * G + g;
                const float *q = (const float *)p[0] + row0 * LDQ + h * HD;
                const float *o = (const float *)p[3] + row0 * LDO + h * VD;
                const float *lse = (const float *)p[4] + row0 * H + h;
                const float *dout = (const float *)p[5] + row0 * LDDO + h * VD;
                float *dq = (float *)p[6] + row0 * LDDQ + h * HD;
                for (int64_t q0 = k0; q0 < end; q0 += KB) {
                    /* whole register tiles of rows, so that each dq tile starts at one key tile */
                    const int64_t rows = min64(min64(KB, T - q0), div_up(end - q0, TILE_MR) * TILE_MR);
                    panels_from_cols(qn, KB * 16, q + q0 * LDQ, LDQ, HD, rows);
                    panels_from_cols(on, KB * 16, dout + q0 * LDDO, LDDO, VD, rows);
                    for (int64_t r = 0; r < rows; r += TILE_MR) {
                        const int64_t i0 = q0 + r, mr = min64(TILE_MR, rows - r);
                        const int64_t seen = min64(keys, i0 + mr - k0), nv = div_up(seen, 16);
                        struct tile t = {.ks = 1, .b = kt, .bp = HD * 16, .kn = HD, .c = s + r * KB,
                                         .ldc = KB, .cols = nv * 16, .prefetch = kt};
                        for (int64_t m = 0; m < mr; m++) t.a[m] = q + (i0 + m) * LDQ;
                        tile_run(&t, mr);
                        t.b = vt;
                        t.bp = VD * 16;
                        t.kn = VD;
                        t.c = ds + r * KB;
                        for (int64_t m = 0; m < mr; m++) t.a[m] = dout + (i0 + m) * LDDO;
                        tile_run(&t, mr);
                        for (int64_t m = 0; m < mr; m++)
                            attn_dscore(s + (r + m) * KB, ds + (r + m) * KB, nv, scale, lse[(i0 + m) * H],
                                        attn_dot(o + (i0 + m) * LDO, dout + (i0 + m) * LDDO, VD),
                                        i0 + m - k0, W);
                        /* a row that sees one key only: its probability is 1 whatever the score */
                        for (int64_t m = 0; m < mr; m++)
                            for (int64_t j = 0; j < nv && (W == 1 || i0 + m == 0); j++)
                                st16(ds + (r + m) * KB + 16 * j, splat16(0.0f));
                        t = (struct tile){.ks = 1, .bp = KB * 16, .kn = seen, .ldc = LDDQ, .prefetch = kn,
                                          .load = k0 > (W > 0 ? max64(0, i0 - W + 1) / KB * KB : 0)};
                        for (int64_t m = 0; m < mr; m++) t.a[m] = ds + (r + m) * KB;
                        for (int64_t d = 0; d < HD; d += 64) {
                            t.b = kn + d * KB;
                            t.c = dq + i0 * LDDQ + d;
                            t.cols = min64(64, HD - d);
                            tile_run(&t, mr);
                        }
                    }
                    const int64_t add = g > 0 || q0 > k0;
                    attn_tokens(dvs, VP, s, on, keys, rows, q0 == k0, add);
                    attn_tokens(dks, HP, ds, qn, keys, rows, q0 == k0, add);
                }
            }
            for (int64_t j = 0; j < keys; j++) {
                for (int64_t d = 0; d < HD; d += 16)
                    st16k(dk + (k0 + j) * LDDK + d, ld16(dks + j * HP + d), min64(16, HD - d));
                for (int64_t d = 0; d < VD; d += 16)
                    st16k(dv + (k0 + j) * LDDV + d, ld16(dvs + j * VP + d), min64(16, VD - d));
            }
        }
    }
}
