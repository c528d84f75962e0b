/* Caches of incremental programs (needs prelude.c, tile.c, attention_rows.c): B sequences of T new
 * tokens, past[b] tokens before them. Position i of sequence b is row pages[b*P + i/64] * 64 + i mod 64 of
 * a cache. */
//== last_rows
/* p: x, out [B,C].  n: T, row stride of x, C.  Item = sequence. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    for (int64_t b = lo; b < hi; b++)
        __builtin_memcpy((float *)p[1] + b * n[2], (const float *)p[0] + ((b + 1) * n[0] - 1) * n[1],
                         (uint64_t)n[2] * sizeof(float));
}
//== cache_write
/* p: cache, x, pages, past.  n: T, P, C, row stride of x.  Item = token. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch UNUSED) {
    const int32_t *pages = p[2], *past = p[3];
    for (int64_t t = lo; t < hi; t++) {
        const int64_t b = t / n[0], at = past[b] + t % n[0], page = pages[b * n[1] + at / 64];
        @FN@_store((@FN@_elem *)p[0] + (page * 64 + at % 64) * n[2], (const float *)p[1] + t * n[3], n[2]);
    }
}
//== rows_f32
/* What rows of caches are made of: n elements from floats; w <= 16 of them as a vector; `rows` rows of w
 * elements as floats, their stride in *ld. */
typedef float @FN@_elem;
INLINE void @FN@_store(float *to, const float *from, int64_t n) {
    __builtin_memcpy(to, from, (uint64_t)n * sizeof(float));
}
INLINE v16 @FN@_ld(const float *p, int64_t w) { return w == 16 ? ld16(p) : ld16k(p, w); }
INLINE const float *@FN@_floats(float *room UNUSED, const float *from, int64_t *ld UNUSED, int64_t rows UNUSED,
                                int64_t w UNUSED) {
    return from;
}
//== rows_bf16
/* The same of bf16. */
typedef uint16_t @FN@_elem;
INLINE void @FN@_store(uint16_t *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t w = min64(16, n - i);
        const v16h h = f32_to_bf16(w == 16 ? ld16(from + i) : ld16k(from + i, w));
        __builtin_memcpy(to + i, &h, (uint64_t)w * 2);
    }
}
INLINE v16 @FN@_ld(const uint16_t *p, int64_t w) {
    v16h h = {0};
    __builtin_memcpy(&h, p, (uint64_t)w * 2);
    return bf16_to_f32(h);
}
INLINE const float *@FN@_floats(float *room, const uint16_t *from, int64_t *ld, int64_t rows, int64_t w) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < w; i += 16) {
            const int64_t n = min64(16, w - i);
            st16k(room + r * w + i, @FN@_ld(from + r * *ld + i, n), n);
        }
    *ld = w;
    return room;
}
//== scores_f32
/* Scores s [N][64] of N rows of q, HD apart, with `keys` rows of k; the same rows of `next` are fetched
 * meanwhile. Sums have the order of tile.c. */
INLINE void @FN@_scores(float *s, const float *q, const float *k, const float *next, int64_t ld, int64_t keys,
                        const int HD, const int N) {
    for (int64_t j = 0; j < keys; j += 16) {
        v16 r[16], sum[N];
        const int64_t rows = min64(16, keys - j);
#pragma clang loop unroll(full)
        for (int g = 0; g < N; g++) sum[g] = splat16(0.0f);
        for (int64_t d = 0; d < HD; d += 16) {
            const float *from = k + j * ld + d, *soon = next + j * ld + d;
            const int64_t w = HD % 16 ? min64(16, HD - d) : 16;
            if (w == 16 && rows == 16) {
#pragma clang loop unroll(full)
                for (int c = 0; c < 16; c++) {
                    r[c] = ld16(from + c * ld);
                    __builtin_prefetch(soon + c * ld, 0, 2);
                }
            } else {
#pragma clang loop unroll(full)
                for (int c = 0; c < 16; c++) r[c] = c < rows ? ld16k(from + c * ld, w) : splat16(0.0f);
            }
            transpose16(r);
#pragma clang loop unroll(full)
            for (int c = 0; c < 16; c++)
                if (c < w)
#pragma clang loop unroll(full)
                    for (int g = 0; g < N; g++) sum[g] = fma16(splat16(q[g * HD + d + c]), r[c], sum[g]);
        }
#pragma clang loop unroll(full)
        for (int g = 0; g < N; g++) st16(s + g * 64 + j, sum[g]);
    }
}
//== scores_bf16
/* The same of bf16: two elements of a row are turned as one. */
INLINE void @FN@_scores(float *s, const float *q, const uint16_t *k, const uint16_t *next, int64_t ld,
                        int64_t keys, const int HD, const int N) {
    for (int64_t j = 0; j < keys; j += 16) {
        v16 r[16], sum[N];
        const int64_t rows = min64(16, keys - j);
#pragma clang loop unroll(full)
        for (int g = 0; g < N; g++) sum[g] = splat16(0.0f);
        for (int64_t d = 0; d < HD; d += 32) {
            const uint16_t *from = k + j * ld + d, *soon = next + j * ld + d;
            const int64_t w = HD % 32 ? min64(32, HD - d) : 32;
            if (w == 32 && rows == 16) {
#pragma clang loop unroll(full)
                for (int c = 0; c < 16; c++) {
                    __builtin_memcpy(&r[c], from + c * ld, 64);
                    __builtin_prefetch(soon + c * ld, 0, 2);
                }
            } else {
#pragma clang loop unroll(full)
                for (int c = 0; c < 16; c++) {
                    r[c] = splat16(0.0f);
                    if (c < rows) __builtin_memcpy(&r[c], from + c * ld, (uint64_t)w * 2);
                }
            }
            transpose16(r);
#pragma clang loop unroll(full)
            for (int c = 0; c < 16; c++) {
                const v16 even = (v16)((v16u)r[c] << 16), odd = (v16)((v16u)r[c] & 0xffff0000u);
#pragma clang loop unroll(full)
                for (int g = 0; g < N; g++) {
                    const float *x = q + g * HD + d + 2 * c;
                    if (2 * c < w) sum[g] = fma16(splat16(x[0]), even, sum[g]);
                    if (2 * c + 1 < w) sum[g] = fma16(splat16(x[1]), odd, sum[g]);
                }
            }
        }
#pragma clang loop unroll(full)
        for (int g = 0; g < N; g++) st16(s + g * 64 + j, sum[g]);
    }
}
//== attend_sums
/* acc [N][VP] += p [N][64] times `keys` rows of v, likewise. */
INLINE void @FN@_sums(float *acc, const float *p, const @FN@_elem *v, const @FN@_elem *next, int64_t ld, int64_t keys,
                      const int HD, const int VP, const int N) {
    for (int64_t d = 0; d < HD; d += 64) {
        const int64_t nv = div_up(min64(64, HD - d), 16), tail = HD % 16 ? min64(16, HD - d - 16 * (nv - 1)) : 16;
        v16 sum[N][4];
#pragma clang loop unroll(full)
        for (int g = 0; g < N; g++)
#pragma clang loop unroll(full)
            for (int i = 0; i < 4; i++) sum[g][i] = i < nv ? ld16(acc + g * VP + d + 16 * i) : splat16(0.0f);
        for (int64_t k = 0; k < keys; k++) {
            const @FN@_elem *from = v + k * ld + d, *soon = next + k * ld + d;
#pragma clang loop unroll(full)
            for (int i = 0; i < 4; i++) {
                if (i >= nv) continue;
                const v16 x = @FN@_ld(from + 16 * i, i < nv - 1 ? 16 : tail);
                if (sizeof(@FN@_elem) == 4 || i % 2 == 0) __builtin_prefetch(soon + 16 * i, 0, 2);
#pragma clang loop unroll(full)
                for (int g = 0; g < N; g++) sum[g][i] = fma16(splat16(p[g * 64 + k]), x, sum[g][i]);
            }
        }
#pragma clang loop unroll(full)
        for (int g = 0; g < N; g++)
#pragma clang loop unroll(full)
            for (int i = 0; i < 4; i++)
                if (i < nv) st16(acc + g * VP + d + 16 * i, sum[g][i]);
    }
}
//== attention_one
/* attention_cached for one token of every sequence, with its bits: whole rows of a page pass once, and no
 * panels are made.
 * p: q, k, v, pages, past, o.  n: P, row strides of q and o, key heads of an item.  Items = B x groups of
 * key heads. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    enum { KV = ${KV}, G = ${H} / KV, HD = ${HD}, W = ${WINDOW}, N = ${N}, KB = 64, LD = KV * HD };
    enum { VP = (HD + 15) / 16 * 16 };
    const float scale = ${SCALE}f, lowest = -1e38f;
    const int64_t P = n[0], ldq = n[1], ldo = n[2], HB = n[3], groups = div_up(KV, HB);
    float *s = scratch;              /* [N][64]: scores, then probabilities */
    float *acc = s + N * KB;         /* [HB*G][VP]: sum of p v, relative to the row's maximum */
    float *sum = acc + HB * G * VP;  /* [HB*G][16]: sum of p, by column mod 16 */
    float *top = sum + HB * G * 16;  /* [HB*G]: maximum so far */
    for (int64_t it = lo; it < hi; it++) {
        const int64_t b = it / groups, h0 = it % groups * HB, rows = min64(HB, KV - h0) * G;
        const int64_t at = ((const int32_t *)p[4])[b], begin = W > 0 ? max64(0, at - W + 1) / KB : 0;
        const int32_t *pages = (const int32_t *)p[3] + b * P;
        const float *q = (const float *)p[0] + b * ldq + h0 * G * HD;
        float *o = (float *)p[5] + b * ldo + h0 * G * HD;
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t d = 0; d < VP; d += 16) st16(acc + r * VP + d, splat16(0.0f));
            st16(sum + r * 16, splat16(0.0f));
            top[r] = lowest;
        }
        for (int64_t i = begin; i <= at / KB; i++) {
            const int64_t keys = min64(KB, at + 1 - i * KB), row = (int64_t)pages[i] * KB * LD + h0 * HD;
            const int64_t more = i < at / KB ? ((int64_t)pages[i + 1] - pages[i]) * (KB * LD) : 0;
            int64_t diag[N];
            for (int64_t m = 0; m < N; m++) diag[m] = at - i * KB;
            for (int64_t r = 0; r < rows; r += N) {
                const @FN@_elem *k = (const @FN@_elem *)p[1] + row + r / G * HD, *v = (const @FN@_elem *)p[2] + row + r / G * HD;
                @FN@_scores(s, q + r * HD, k, k + more, LD, keys, HD, N);
                attn_softmax_at(s, top + r, sum + r * 16, acc + r * VP, VP, scale, N, div_up(keys, 16), diag, W);
                @FN@_sums(acc + r * VP, s, v, v + more, LD, keys, HD, VP, N);
            }
        }
        for (int64_t r = 0; r < rows; r++) {
            const float part = 1.0f / hsum16(ld16(sum + r * 16));
            for (int64_t d = 0; d < HD; d += 16)
                st16k(o + r * HD + d, ld16(acc + r * VP + d) * part + 0.0f, min64(16, HD - d));
        }
    }
}
//== attention_cached
/* The arithmetic of attention.c, key tile by key tile on absolute positions, a tile a page: the same bits
 * for a token wherever its sequence is cut. ${H} query heads over ${KV} key heads of ${HD}, window ${WINDOW} (0: none).
 * p: q, k, v (caches, new tokens in them), pages, past, o.  n: T, P, row strides of q and o.  Items = B x ${KV} x ceil(T / ${QB}); rows of an item are the ${H} / ${KV}
 * heads of its first token, then of the next. */
void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch) {
    enum { KV = ${KV}, G = ${H} / KV, HD = ${HD}, W = ${WINDOW}, QB = ${QB}, KB = 64, LD = KV * HD };
    enum { VP = (HD + 15) / 16 * 16 };
    const float scale = ${SCALE}f, lowest = -1e38f;
    const int64_t T = n[0], P = n[1], ldq = n[2], ldo = n[3], tiles = div_up(T, QB);
    const int32_t *pages = p[3], *past = p[4];
    float *kt = scratch;            /* [4][HD][16]: keys of the tile as columns */
    float *vp = kt + KB * HD;       /* [VP/16][64][16] */
    float *s = vp + KB * VP;        /* [6][64]: scores, then probabilities */
    float *acc = s + TILE_MR * KB;  /* [G*QB][VP]: sum of p v, relative to the row's maximum */
    float *sum = acc + G * QB * VP; /* [G*QB][16]: sum of p, by column mod 16 */
    float *top = sum + G * QB * 16; /* [G*QB]: maximum so far */
    float *room = top + G * QB;     /* [64][HD]: rows of a cache of bf16 */
    for (int64_t it = lo; it < hi; it++) {
        const int64_t t0 = (tiles - 1 - it % tiles) * QB, kv = it / tiles % KV, b = it / tiles / KV;
        const int64_t rows = min64(QB, T - t0) * G, q0 = past[b] + t0, end = past[b] + T;
        const float *q = (const float *)p[0] + (b * T + t0) * ldq + kv * G * HD;
        float *o = (float *)p[5] + (b * T + t0) * ldo + kv * G * HD;
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t d = 0; d < VP; d += 16) st16(acc + r * VP + d, splat16(0.0f));
            st16(sum + r * 16, splat16(0.0f));
            top[r] = lowest;
        }
        for (int64_t k0 = W > 0 ? max64(0, q0 - W + 1) / KB * KB : 0; k0 < q0 + rows / G; k0 += KB) {
            const int64_t keys = min64(KB, end - k0), row = (int64_t)pages[b * P + k0 / KB] * KB;
            int64_t ldk = LD, ldv = LD;
            const float *k = @FN@_floats(room, (const @FN@_elem *)p[1] + row * LD + kv * HD, &ldk, keys, HD);
            for (int64_t j = 0; j < keys; j += 16)
                panel_from_rows(kt + j * HD, k + j * ldk, ldk, min64(16, keys - j), HD);
            const float *v = @FN@_floats(room, (const @FN@_elem *)p[2] + row * LD + kv * HD, &ldv, keys, HD);
            panels_from_cols(vp, KB * 16, v, ldv, HD, keys);
            for (int64_t r = 0; r < rows; r += TILE_MR) {
                const int64_t mr = min64(TILE_MR, rows - r), first = q0 + r / G, last = q0 + (r + mr - 1) / G;
                if (k0 > last || (W > 0 && k0 + KB <= first - W + 1)) continue;
                const int64_t seen = min64(KB, last + 1 - k0), nv = div_up(seen, 16);
                int64_t diag[TILE_MR];
                struct tile t = {.ks = 1, .b = kt, .bp = HD * 16, .kn = HD, .c = s, .ldc = KB,
                                 .cols = nv * 16, .prefetch = kt};
                for (int64_t m = 0; m < mr; m++) {
                    t.a[m] = q + (r + m) / G * ldq + (r + m) % G * HD;
                    diag[m] = q0 + (r + m) / G - k0;
                }
                tile_run(&t, mr);
                attn_softmax_at(s, top + r, sum + r * 16, acc + r * VP, VP, scale, mr, nv, diag, W);
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
        for (int64_t r = 0; r < rows; r++) {
            const float part = 1.0f / hsum16(ld16(sum + r * 16));
            for (int64_t d = 0; d < HD; d += 16)
                st16k(o + r / G * ldo + r % G * HD + d, ld16(acc + r * VP + d) * part + 0.0f,
                      min64(16, HD - d));
        }
    }
}
