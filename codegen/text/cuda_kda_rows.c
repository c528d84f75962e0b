/* One chunk of the delta rule with a decay per channel. A chunk is 16 tokens at absolute positions:
 * within it all decays between two tokens are products of exp(g) of the tokens between them, as no sum
 * of gates is formed no exponent is ever positive and every product keeps its relative accuracy,
 * whatever the gates are. Tokens that are not there have k = q = v = beta = 0 and decay 1.
 *
 * Products run on tensor cores over float32 numbers cut into P parts of bf16: x = x0 + x1 + ..., terms
 * of parts p + q < P. Three parts are float32's 24 bits, two are 16. A warp has 16 columns of V with all
 * of S^T [16, K] as float32 fragments in registers, and needs no other warp's numbers. */
enum { KDA_C = 16, KDA_SL = 24 }; /* tokens; row stride of matrices [16,16] */

/* What is made of a chunk's q, k, g and beta: bf16 matrices of 16 rows, P parts behind one another, and
 * float32 numbers. Rows have 8 elements more than they use, for ldmatrix. */
template <int K, int P> struct kda_record {
    enum {
        KP = (K + 15) / 16 * 16,
        LK = KP + 8,
        BIG = KDA_C * LK,          /* a part of kd ... */
        SMALL = KDA_C * KDA_SL,    /* of z ... */
        kd = 0,                    /* k times the decay since the chunk's start */
        qd = P * BIG,              /* scale q times that */
        kg = 2 * P * BIG,          /* k times the decay up to the chunk's end */
        z = 3 * P * BIG,           /* (1 + L diag(beta))^-1, L[i][j] = k_i . k_j decayed, j < i */
        a = z + P * SMALL,         /* scale q_i . k_j decayed, j <= i */
        q = a + P * SMALL,         /* (1 + diag(beta) L)^-1 */
        total = (q + P * SMALL) / 2, /* in floats: decay of the whole chunk [KP] */
        beta = total + KP,
        BYTES = 4 * (beta + KDA_C)
    };
};

INLINE float kda_get(const float *p) { return *p; }
INLINE float kda_get(const uint16_t *p) { return bf16_to_f32(*p); }
INLINE void kda_put(float *p, float x) { *p = x; }
INLINE void kda_put(uint16_t *p, float x) { *p = f32_to_bf16(x); }

/* Tokens t0 .. t0 + n - 1 of a sequence of T new ones after `past` are chunk c. */
struct kda_span {
    int64_t t0;
    int n;
};
INLINE struct kda_span kda_span_of(int64_t c, int64_t T, int64_t past) {
    const int64_t begin = max64(c * KDA_C - past % KDA_C, 0);
    return {begin, (int)(min64((c + 1) * KDA_C - past % KDA_C, T) - begin)};
}
INLINE int64_t kda_chunks(int64_t T, int64_t past) { return div_up(past % KDA_C + T, KDA_C); }

/* The parts of two numbers side by side. */
template <int P> INLINE void kda_split(float x, float y, uint32_t part[P]) {
    UNROLL for (int p = 0; p < P; p++) {
        part[p] = pack_bf16(x, y);
        x -= __uint_as_float(part[p] << 16);
        y -= __uint_as_float(part[p] & 0xffff0000u);
    }
}
/* The same as rows of a matrix in memory, whose parts are `next` elements apart. */
template <int P> INLINE void kda_split_to(uint16_t *to, int next, float x, float y) {
    uint32_t part[P];
    kda_split<P>(x, y, part);
    UNROLL for (int p = 0; p < P; p++) *(uint32_t *)(to + p * next) = part[p];
}

/* A result [16, 8 + 8] as an operand [16,16]. */
template <int P> INLINE void kda_operand(uint32_t a[P][4], const float c[2][4]) {
    UNROLL for (int i = 0; i < 4; i++) {
        uint32_t part[P];
        kda_split<P>(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1], part);
        UNROLL for (int p = 0; p < P; p++) a[p][i] = part[p];
    }
}
/* What a lane adds to the address of a block [16,16] of rows of ld elements, in the functions below that
 * take `by rows` and `by columns`: once for all blocks. The compiler does not see how it is made, or it
 * would keep a sum with every block's place in a register. */
INLINE int kda_by_rows(int ld) {
    int at = (threadIdx.x % WARP / 16 * 8 + threadIdx.x % 8) * ld + threadIdx.x / 8 % 2 * 8;
    asm volatile("" : "+r"(at));
    return at;
}
INLINE int kda_by_columns(int ld) {
    int at = (threadIdx.x / 8 % 2 * 8 + threadIdx.x % 8) * ld + threadIdx.x % WARP / 16 * 8;
    asm volatile("" : "+r"(at));
    return at;
}
/* c [16, 8 + 8] += a [16,16] B; terms of parts go to N such sums in turn, from the smallest term on: a
 * product waits some 33 cycles for the one before that adds to the same sum. */
template <int P, int N> INLINE void kda_terms(float c[2 * N][4], const uint32_t a[P][4], const uint32_t b[4], int p) {
    UNROLL for (int q = P - 1 - p; q >= 0; q--) {
        const int sum = ((P - 1 - p) * (P - p) / 2 + P - 1 - p - q) % N;
        mma_bf16(c[2 * sum], a[q], b);
        mma_bf16(c[2 * sum + 1], a[q], b + 2);
    }
}
/* B[k][n] = m[n][k], by rows. Parts of m are `next` elements apart. */
template <int P, int N = 1>
INLINE void kda_times_rows(float c[2 * N][4], const uint32_t a[P][4], const uint16_t *m, int next) {
    UNROLL for (int p = P - 1; p >= 0; p--) {
        uint32_t b[4];
        ldmatrix4(b, m + p * next);
        kda_terms<P, N>(c, a, b, p);
    }
}
/* B[k][n] = m[k][n], by columns. */
template <int P, int N = 1>
INLINE void kda_times_cols(float c[2 * N][4], const uint32_t a[P][4], const uint16_t *m, int next) {
    UNROLL for (int p = P - 1; p >= 0; p--) {
        uint32_t b[4];
        ldmatrix4_trans(b, m + p * next);
        kda_terms<P, N>(c, a, b, p);
    }
}
/* Sums of a loop over channels: of two parts each of the three terms has one of its own. */
template <int P> struct kda_sums {
    enum { N = P == 2 ? 3 : 1 };
};
/* The N sums become one, the first. */
template <int N> INLINE void kda_join(float c[2 * N][4]) {
    UNROLL for (int i = 2; i < 2 * N; i++) UNROLL for (int e = 0; e < 4; e++) c[i % 2][e] += c[i][e];
}
/* A block as the operand a, by columns. */
template <int P> INLINE void kda_block(uint32_t a[P][4], const uint16_t *m, int next) {
    UNROLL for (int p = 0; p < P; p++) ldmatrix4(a[p], m + p * next);
}

/* Lane (g, t) holds of X^T [16 columns of V, 16 tokens]: token 8 h + 2 t + e % 2, column g + 8 (e / 2). */
INLINE int kda_token(int h, int e) { return 8 * h + threadIdx.x % 4 * 2 + e % 2; }
INLINE int kda_column(int e) { return threadIdx.x % WARP / 4 + e / 2 * 8; }
/* What a lane needs of a chunk to come, as it lies in memory: nothing waits for it until it is taken. */
INLINE float kda_raw(const float *p) { return *p; }
INLINE uint32_t kda_raw(const uint16_t *p) { return *p; }
INLINE float kda_value(float x) { return x; }
INLINE float kda_value(uint32_t x) { return __uint_as_float(x << 16); }
template <class T> struct kda_ahead {
    decltype(kda_raw((const T *)0)) x[2][4];
};
/* Columns v0 .. v0 + 15 < V of n rows, zero beyond. */
template <class T> INLINE void kda_load(kda_ahead<T> *a, const T *p, int64_t ld, int n, int v0, int V) {
    const int first = kda_token(0, 0), v = v0 + kda_column(0);
    p += first * ld + v;
    UNROLL for (int h = 0; h < 2; h++) UNROLL for (int e = 0; e < 4; e++) {
        const int i = 8 * h + e % 2, c = e / 2 * 8;
        a->x[h][e] = first + i < n && v + c < V ? kda_raw(p + i * ld + c) : 0;
    }
}
template <class T> INLINE void kda_take(float x[2][4], const kda_ahead<T> *a) {
    UNROLL for (int h = 0; h < 2; h++) UNROLL for (int e = 0; e < 4; e++) x[h][e] = kda_value(a->x[h][e]);
}
template <class T> INLINE void kda_store(T *p, int64_t ld, const float x[2][4], int n, int v0, int V) {
    const int first = kda_token(0, 0), v = v0 + kda_column(0);
    p += first * ld + v;
    UNROLL for (int h = 0; h < 2; h++) UNROLL for (int e = 0; e < 4; e++) {
        const int i = 8 * h + e % 2, c = e / 2 * 8;
        if (first + i < n && v + c < V) kda_put(p + i * ld + c, x[h][e]);
    }
}
/* Rows of tokens times beta. */
INLINE void kda_scale(float to[2][4], const float x[2][4], const float *beta) {
    UNROLL for (int h = 0; h < 2; h++) UNROLL for (int e = 0; e < 4; e++) to[h][e] = x[h][e] * beta[kda_token(h, e)];
}

/* 16 channels of S^T times their decay: n-tile i, channel 8 i + 2 t + e % 2. */
INLINE void kda_decay(float s[2][4], const float *total) {
    UNROLL for (int i = 0; i < 2; i++) UNROLL for (int e = 0; e < 4; e++) s[i][e] *= total[kda_token(i, e)];
}
/* To memory as N parts, `next` elements apart, for the kernel that has a chunk's gradients: blocks of 8 rows
 * of V x 8 channels, 128 bytes each, T to 8 rows; p: this warp's 16 rows. */
template <int T, int N> INLINE void kda_keep(uint16_t *p, int next, const float s[T][4]) {
    p += threadIdx.x % WARP * 2;
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int e = 0; e < 4; e += 2)
        kda_split_to<N>(p + (e / 2 * T + i) * 64, next, s[i][e], s[i][e + 1]);
}
/* What a lane adds to the address of such 16 rows and 16 channels for ldmatrix4_trans, as kda_by_columns. */
template <int T> INLINE int kda_by_blocks(void) {
    int at = (threadIdx.x / 8 % 2 * T + threadIdx.x % WARP / 16) * 64 + threadIdx.x % 8 * 8;
    asm volatile("" : "+r"(at));
    return at;
}

/* Copies so many bytes to shared memory. */
template <int BYTES> INLINE void kda_fetch(char *to, const char *from) {
    for (int i = threadIdx.x * 16; i < BYTES; i += blockDim.x * 16) cp_async16(to + i, from + i, true);
}

/* e^g: where products are of two parts, the hardware's. */
template <int P> INLINE float kda_exp(float g) { return P == 2 ? exp_coarse1(g) : exp1(g); }
/* Two channels, of which `have` exist, zeros beyond; in one access where N = 2 (then K is even). */
template <int N> INLINE void kda_two(float x[2], const float *p, int have) {
    x[0] = x[1] = 0.0f;
    if (N == 2 && have > 0) {
        const float2 v = *(const float2 *)p;
        x[0] = v.x, x[1] = v.y;
    } else {
        if (have > 0) x[0] = p[0];
        if (have > 1) x[1] = p[1];
    }
}
template <int N> INLINE void kda_two(float x[2], const uint16_t *p, int have) {
    x[0] = x[1] = 0.0f;
    if (N == 2 && have > 0) {
        const uint32_t v = *(const uint32_t *)p;
        x[0] = __uint_as_float(v << 16), x[1] = __uint_as_float(v & 0xffff0000u);
    } else {
        if (have > 0) x[0] = bf16_to_f32(p[0]);
        if (have > 1) x[1] = bf16_to_f32(p[1]);
    }
}
/* What two channels give l[i][j], i = j + 1 .. 15, and a[i][j], i = j .. 15: the pairs of token j. */
INLINE void kda_pairs(float *l, float *a, int j, const float k[KDA_C][2], const float q[KDA_C][2],
                      const float alpha[KDA_C][2]) {
    float m[2] = {k[j][0], k[j][1]}; /* k_j decayed up to token i */
    a[0] = fma1(q[j][0], m[0], q[j][1] * m[1]);
    UNROLL for (int i = j + 1; i < KDA_C; i++) {
        UNROLL for (int e = 0; e < 2; e++) m[e] *= alpha[i][e];
        l[i - j - 1] = fma1(k[i][0], m[0], k[i][1] * m[1]);
        a[i - j] = fma1(q[i][0], m[0], q[i][1] * m[1]);
    }
}
/* Columns of the two inverses of a record by substitution, one a lane of a warp; of l [16][17] and beta. */
template <int K, int P> INLINE void kda_inverses(uint16_t *record, const float l[KDA_C][KDA_C + 1], const float *beta) {
    typedef kda_record<K, P> R;
    const int lane = threadIdx.x % WARP, column = lane % KDA_C;
    float x[KDA_C];
    UNROLL for (int i = 0; i < KDA_C; i++) {
        float sum = 0.0f;
        UNROLL for (int s = 0; s < i; s++) sum = fma1(l[i][s] * beta[lane < KDA_C ? s : i], x[s], sum);
        x[i] = (i == column ? 1.0f : 0.0f) - sum;
    }
    record += (lane < KDA_C ? R::z : R::q) + column;
    UNROLL for (int i = 0; i < KDA_C; i++) {
        uint32_t part[P];
        kda_split<P>(x[i], 0.0f, part);
        UNROLL for (int p = 0; p < P; p++) record[p * R::SMALL + i * KDA_SL] = (uint16_t)part[p];
    }
}

/* One channel of a chunk, and its gradients. */
struct kda_channel {
    float k[KDA_C], q[KDA_C], alpha[KDA_C], dk[KDA_C], dq[KDA_C], dg[KDA_C];
};
enum { KDA_PAIRS = 2 * KDA_C * KDA_C };
/* Through the pairs of one token j and the later ones, in whole blocks; pairs[j][i]: gradients of a[i][j] and of l[i][j]. */
INLINE void kda_pair_grads(kda_channel *x, const float *pairs) {
    UNROLL for (int i = 0; i < KDA_C; i++) x->dk[i] = x->dq[i] = x->dg[i] = 0.0f;
    UNROLL for (int j = 0; j < KDA_C; j++) {
        float d[2 * KDA_C], before[KDA_C], m = x->k[j], up = 0.0f;
        UNROLL for (int i = j / 2 * 2; i < KDA_C; i += 2) ld_f32x4(d + 2 * i, pairs + (j * KDA_C + i) * 2);
        x->dq[j] = fma1(d[2 * j], m, x->dq[j]);
        UNROLL for (int i = j + 1; i < KDA_C; i++) {
            before[i] = m; /* k_j decayed up to token i - 1 */
            m *= x->alpha[i];
            x->dq[i] = fma1(d[2 * i], m, x->dq[i]);
            x->dk[i] = fma1(d[2 * i + 1], m, x->dk[i]);
        }
        UNROLL for (int i = KDA_C - 1; i > j; i--) {
            up = fma1(d[2 * i + 1], x->k[i], fma1(d[2 * i], x->q[i], up)) * x->alpha[i];
            x->dg[i] = fma1(before[i], up, x->dg[i]);
        }
        x->dk[j] += fma1(d[2 * j], x->q[j], up);
        if (j % 4 == 3) __syncthreads(); /* or all is loaded at once: registers */
    }
}
/* Through the state before the chunk: from a token on, of all tokens from it on; through that behind it, of
 * all tokens before it. flat: gradients of qd, kd, kg, [16][ld] each; carry: sum of S dS' over V. */
INLINE void kda_state_grads(kda_channel *x, const float *flat, int ld, float carry) {
    float run = 1.0f, inside[KDA_C], later = 0.0f, before;
    UNROLL for (int i = 0; i < KDA_C; i++) {
        run *= x->alpha[i];
        const float dq = flat[i * ld] * run, dk = flat[(KDA_C + i) * ld] * run;
        inside[i] = fma1(x->k[i], dk, x->q[i] * dq);
        x->dq[i] += dq;
        x->dk[i] += dk;
    }
    before = carry * run;
    run = 1.0f;
    UNROLL for (int i = KDA_C - 1; i >= 0; i--) {
        const float up = flat[(2 * KDA_C + i) * ld] * run;
        run *= x->alpha[i];
        x->dk[i] += up;
        later += inside[i];
        x->dg[i] += later;
        inside[i] = up * x->k[i];
    }
    UNROLL for (int i = 0; i < KDA_C; i++) {
        x->dg[i] += before;
        before += inside[i];
    }
}

/* N columns of a state, 1, 2 or 4, in one access. */
template <int N> INLINE void kda_load_row(float y[N], const float *p) {
    if (N == 4) {
        const float4 v = *(const float4 *)p;
        y[0] = v.x, y[1 % N] = v.y, y[2 % N] = v.z, y[3 % N] = v.w;
    } else if (N == 2) {
        const float2 v = *(const float2 *)p;
        y[0] = v.x, y[1 % N] = v.y;
    } else {
        y[0] = *p;
    }
}
template <int N> INLINE void kda_store_row(float *p, const float y[N]) {
    if (N == 4)
        st_whole((float4 *)p, make_float4(y[0], y[1 % N], y[2 % N], y[3 % N]));
    else if (N == 2)
        st_whole((float2 *)p, make_float2(y[0], y[1 % N]));
    else
        *p = y[0];
}
