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
/* c [16, 8 + 8] += a [16,16] B; B[k][n] = m[n][k], by rows. Parts of m are `next` elements apart. */
template <int P> INLINE void kda_times_rows(float c[2][4], const uint32_t a[P][4], const uint16_t *m, int next) {
    UNROLL for (int p = P - 1; p >= 0; p--) {
        uint32_t b[4];
        ldmatrix4(b, m + p * next);
        UNROLL for (int q = P - 1 - p; q >= 0; q--) {
            mma_bf16(c[0], a[q], b);
            mma_bf16(c[1], a[q], b + 2);
        }
    }
}
/* The same with B[k][n] = m[k][n], by columns. */
template <int P> INLINE void kda_times_cols(float c[2][4], const uint32_t a[P][4], const uint16_t *m, int next) {
    UNROLL for (int p = P - 1; p >= 0; p--) {
        uint32_t b[4];
        ldmatrix4_trans(b, m + p * next);
        UNROLL for (int q = P - 1 - p; q >= 0; q--) {
            mma_bf16(c[0], a[q], b);
            mma_bf16(c[1], a[q], b + 2);
        }
    }
}
/* A block as the operand a, by columns. */
template <int P> INLINE void kda_block(uint32_t a[P][4], const uint16_t *m, int next) {
    UNROLL for (int p = 0; p < P; p++) ldmatrix4(a[p], m + p * next);
}

/* Lane (g, t) holds of X^T [16 columns of V, 16 tokens]: token 8 h + 2 t + e % 2, column g + 8 (e / 2). */
INLINE int kda_token(int h, int e) { return 8 * h + threadIdx.x % 4 * 2 + e % 2; }
INLINE int kda_column(int e) { return threadIdx.x % WARP / 4 + e / 2 * 8; }
/* Columns v0 .. v0 + 15 < V of n rows, zero beyond. */
template <class T> INLINE void kda_load(float x[2][4], const T *p, int64_t ld, int n, int v0, int V) {
    const int first = kda_token(0, 0), v = v0 + kda_column(0);
    p += first * ld + v;
    UNROLL for (int h = 0; h < 2; h++) UNROLL for (int e = 0; e < 4; e++) {
        const int i = 8 * h + e % 2, c = e / 2 * 8;
        x[h][e] = first + i < n && v + c < V ? kda_get(p + i * ld + c) : 0.0f;
    }
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
/* To memory as N parts of [rows of V][LK], `next` elements apart, for the kernel that has a chunk's
 * gradients; p: this warp's 16 rows. */
template <int T, int N> INLINE void kda_keep(uint16_t *p, int next, const float s[T][4]) {
    UNROLL for (int i = 0; i < T; i++) UNROLL for (int e = 0; e < 4; e += 2)
        kda_split_to<N>(p + kda_column(e) * (8 * T + 8) + kda_token(i, 0), next, s[i][e], s[i][e + 1]);
}

/* Copies so many bytes to shared memory. */
template <int BYTES> INLINE void kda_fetch(char *to, const char *from) {
    for (int i = threadIdx.x * 16; i < BYTES; i += blockDim.x * 16) cp_async16(to + i, from + i, true);
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
