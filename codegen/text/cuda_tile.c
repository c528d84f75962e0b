/* Tiles of float32 in shared memory, for blocks of 256 threads seen as 16 x 16: ty and tx. Loads and
 * stores take V elements at once where 16 bytes of them are aligned (V = 4 of float, 8 of bf16), else 1. */
#ifdef __CUDACC_RTC__
#define PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(n) PRAGMA(unroll n)
/* threadIdx.x, read anew: what is computed of it does not stay in registers over a loop. */
INLINE unsigned thread_here(void) {
    unsigned x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}
#else
#define UNROLL_BY(n)
#define thread_here() threadIdx.x
#endif
enum { TILE_THREADS = 256, TILE_SIDE = 16 };

/* to[ROWS][LD] = rows of COLS elements, `ld` apart, of which `have` exist; the rest, and columns up
 * to a multiple of 4, are zeros. */
template <int ROWS, int COLS, int LD, int V, class T>
INLINE void tile_load(float *to, const T *from, int64_t ld, int64_t have) {
    enum { ACROSS = (COLS + 3) / 4 * 4 / V };
    for (int i = threadIdx.x; i < ROWS * ACROSS; i += TILE_THREADS) {
        const int r = i / ACROSS, c = i % ACROSS * V;
        float x[V] = {};
        if (r < have && c < COLS) ld_row<V>(x, from + r * ld + c);
        st_row<V>(to + r * LD + c, x);
    }
}

/* The same, but float32 that is aligned comes later: cp_async_commit and cp_async_wait are the caller's. */
template <int ROWS, int COLS, int LD, int V, class T>
INLINE void tile_fetch(float *to, const T *from, int64_t ld, int64_t have) {
    if constexpr (V == 4 && sizeof(T) == 4) {
        UNROLL_BY(4) for (int i = threadIdx.x; i < ROWS * (COLS / 4); i += TILE_THREADS) {
            const int r = i / (COLS / 4), c = i % (COLS / 4) * 4;
            cp_async16(to + r * LD + c, r < have ? from + r * ld + c : from, r < have);
        }
    } else {
        tile_load<ROWS, COLS, LD, V>(to, from, ld, have);
    }
}

/* s[i][j] = row RA ty + i of a times row tx + 16 j of b, over N columns (a multiple of 4). */
template <int RA, int RB, int N, int LDA, int LDB>
INLINE void tile_dots(float s[RA][RB], const float *a, const float *b) {
    a += threadIdx.x / TILE_SIDE * RA * LDA;
    b += threadIdx.x % TILE_SIDE * LDB;
    UNROLL for (int i = 0; i < RA; i++)
        UNROLL for (int j = 0; j < RB; j++) s[i][j] = 0;
    UNROLL_BY(2) for (int d = 0; d < N; d += 4) {
        float x[RA][4], y[4];
        UNROLL for (int i = 0; i < RA; i++) ld_f32x4(x[i], a + i * LDA + d);
        UNROLL for (int j = 0; j < RB; j++) {
            ld_f32x4(y, b + TILE_SIDE * j * LDB + d);
            UNROLL for (int i = 0; i < RA; i++)
                UNROLL for (int e = 0; e < 4; e++) s[i][j] = fma1(x[i][e], y[e], s[i][j]);
        }
    }
}

/* acc[i][4 j + e] += sum over k < N of w[RA ty + i][k] b[k][64 j + 4 tx + e], k in ascending order;
 * element (r, k) of w lies at w[r LDR + k LDK]. */
template <int RA, int J, int N, int LDR, int LDK, int LDB>
INLINE void tile_sums(float acc[RA][4 * J], const float *w, const float *b) {
    w += threadIdx.x / TILE_SIDE * RA * LDR;
    b += threadIdx.x % TILE_SIDE * 4;
    UNROLL_BY(4) for (int k = 0; k < N; k++) {
        float x[RA], y[4];
        UNROLL for (int i = 0; i < RA; i++) x[i] = w[i * LDR + k * LDK];
        UNROLL for (int j = 0; j < J; j++) {
            ld_f32x4(y, b + k * LDB + 64 * j);
            UNROLL for (int i = 0; i < RA; i++)
                UNROLL for (int e = 0; e < 4; e++)
                    acc[i][4 * j + e] = fma1(x[i], y[e], acc[i][4 * j + e]);
        }
    }
}

/* Row of a result: columns 64 j + 4 tx + e < COLS of acc times f. + 0: no trace of the sign of zero. */
template <int J, int COLS, int V, class T>
INLINE void tile_store(T *row, const float acc[4 * J], float f) {
    const int c0 = threadIdx.x % TILE_SIDE * 4;
    UNROLL for (int j = 0; j < J; j++) {
        const int c = 64 * j + c0;
        float x[4];
        UNROLL for (int e = 0; e < 4; e++) x[e] = mul1(acc[4 * j + e], f) + 0.0f;
        if constexpr (V % 4 == 0) {
            if (c < COLS) st_row<4>(row + c, x);
        } else {
            UNROLL for (int e = 0; e < 4; e++)
                if (c + e < COLS) st_row<1>(row + c + e, x + e);
        }
    }
}

/* Over the 16 threads of a row. */
INLINE float side_sum(float v) {
    UNROLL for (int d = TILE_SIDE / 2; d; d /= 2) v += __shfl_xor_sync(ALL_LANES, v, d);
    return v;
}
INLINE float side_max(float v) {
    UNROLL for (int d = TILE_SIDE / 2; d; d /= 2) v = max1(v, __shfl_xor_sync(ALL_LANES, v, d));
    return v;
}

/* One step of an online softmax for a row: x[j] = scores, or -inf where the row does not see the
 * key, of RB of a tile's keys. `top` advances to the largest so far, x becomes probabilities
 * relative to it, sum theirs; returns the factor for what was summed before: 1 for a tile of which
 * the row sees nothing, exactly. */
#define ATTN_LOWEST (-1e38f)
template <int RB> INLINE float softmax_step(float x[RB], float *top, float *sum) {
    float most = x[0], total = 0;
    UNROLL for (int j = 1; j < RB; j++) most = max1(most, x[j]);
    most = max1(side_max(most), *top);
    const float factor = exp1(*top - most);
    UNROLL for (int j = 0; j < RB; j++) {
        x[j] = x[j] > -INFF ? exp1(x[j] - most) : x[j] == x[j] ? 0.0f : x[j];
        total += x[j];
    }
    *top = most;
    *sum = fma1(*sum, factor, side_sum(total));
    return factor;
}
/* Keys of a sequence are cut into pieces on absolute positions; each has its own online softmax, and
 * the results of pieces are joined in order: top and sum of a row with t and s of the next piece.
 * mine and other: factors of what belongs to them. */
enum { ATTN_PIECE = 256 };
INLINE void softmax_join(float *top, float *sum, float t, float s, float *mine, float *other) {
    const float most = max1(*top, t);
    *mine = exp1(*top - most);
    *other = exp1(t - most);
    *sum = mul1(*sum, *mine) + mul1(s, *other);
    *top = most;
}

/* ---- tiles of bf16 for mma_bf16: rows of a multiple of 16 columns and 8 more, so that the eight rows
 * that ldmatrix reads at once lie in different banks ---- */

/* Begins the copy to[ROWS][LD] = rows of COLS elements (a multiple of 8), `ld` apart and aligned to
 * 16 bytes, of which `have` exist; the rest, and columns up to a multiple of 16, are zeros. A thread's
 * pieces lie at constant distances, so that a whole tile costs one address and an instruction a piece. */
template <int ROWS, int COLS, int THREADS>
INLINE void mma_copy(uint16_t *to, const uint16_t *from, int64_t ld, int64_t have) {
    enum { ACROSS = (COLS + 15) / 16 * 2, LD = ACROSS * 8 + 8 };
    enum { LANES = ACROSS % 16 == 0 ? 16 : ACROSS % 8 == 0 ? 8 : ACROSS % 4 == 0 ? 4 : 2, STEP = THREADS / LANES };
    const unsigned me = thread_here();
    const int r0 = me / LANES, c0 = me % LANES * 8;
    to += r0 * LD + c0;
    from += r0 * ld + c0;
    if (have >= ROWS && COLS % 16 == 0 && ROWS % STEP == 0) {
        UNROLL for (int r = 0; r < ROWS; r += STEP)
            UNROLL for (int c = 0; c < 8 * ACROSS; c += 8 * LANES)
                cp_async16_all(to + r * LD + c, from + r * ld + c);
        return;
    }
    UNROLL_BY(1) for (int r = 0; r + r0 < ROWS; r += STEP)
        UNROLL_BY(1) for (int c = 0; c < 8 * ACROSS; c += 8 * LANES) {
            const bool is = r + r0 < have && c + c0 < COLS;
            cp_async16(to + r * LD + c, is ? from + r * ld + c : from - r0 * ld - c0, is);
        }
}
/* a: 16 rows and 16 columns of a tile as the first operand. */
INLINE void mma_rows(uint32_t a[4], const uint16_t *tile, int ld) {
    const int lane = threadIdx.x % WARP;
    ldmatrix4(a, tile + lane % 16 * ld + lane / 16 * 8);
}
/* b: 16 rows of a tile as columns of the second operand, b[0..1] the first eight, over 16 of the
 * tile's columns. */
INLINE void mma_cols(uint32_t b[4], const uint16_t *tile, int ld) {
    const int lane = threadIdx.x % WARP;
    ldmatrix4(b, tile + (lane / 16 * 8 + lane % 8) * ld + lane / 8 % 2 * 8);
}
/* b: 16 columns of a tile as columns of the second operand, b[0..1] the first eight, over 16 of the
 * tile's rows. */
INLINE void mma_down(uint32_t b[4], const uint16_t *tile, int ld) {
    const int lane = threadIdx.x % WARP;
    ldmatrix4_trans(b, tile + lane % 16 * ld + lane / 16 * 8);
}
/* a: two neighbouring 16x8 blocks of sums as the first operand of the next product. */
INLINE void mma_again(uint32_t a[4], const float c0[4], const float c1[4]) {
    a[0] = pack_bf16(c0[0], c0[1]), a[1] = pack_bf16(c0[2], c0[3]);
    a[2] = pack_bf16(c1[0], c1[1]), a[3] = pack_bf16(c1[2], c1[3]);
}
/* a: 16 M rows and 16 columns from k on of a tile whose rows are LD apart. */
template <int M, int LD> INLINE void mma_first(uint32_t a[M][4], const uint16_t *tile, int k) {
    UNROLL for (int m = 0; m < M; m++) mma_rows(a[m], tile + 16 * m * LD + k, LD);
}
/* c[m][16][8 NB] = rows 16 m.. of a times 8 NB rows of b, over K columns, m < M. Of a, the first HELD times
 * 16 columns are in registers already, as mma_first gives them. */
template <int M, int NB, int K, int HELD>
INLINE void mma_dots(float c[M][NB][4], const uint32_t (*held)[M][4], const uint16_t *a, const uint16_t *b) {
    enum { LD = K + 8 };
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int n = 0; n < NB; n++)
            UNROLL for (int e = 0; e < 4; e++) c[m][n][e] = 0;
    UNROLL for (int k = 0; k < K; k += 16) {
        uint32_t x[M][4], y[4];
        if (k >= 16 * HELD) mma_first<M, LD>(x, a, k);
        UNROLL for (int m = 0; m < M; m++)
            UNROLL for (int i = 0; i < 4 && k < 16 * HELD; i++) x[m][i] = held[k / 16][m][i];
        UNROLL for (int n = 0; n < NB; n += 2) {
            mma_cols(y, b + 8 * n * LD + k, LD);
            UNROLL for (int m = 0; m < M; m++) mma_bf16(c[m][n], x[m], y);
            UNROLL for (int m = 0; m < M; m++) mma_bf16(c[m][n + 1], x[m], y + 2);
        }
    }
}
/* c[m][16][8 NB] += w[k][m], first operands over 16 rows of b each, times the first 16 NK rows of b. */
template <int M, int NB, int NK>
INLINE void mma_sums(float c[M][NB][4], const uint32_t w[NK][M][4], const uint16_t *b) {
    enum { LD = 8 * NB + 8 };
    UNROLL for (int k = 0; k < NK; k++)
        UNROLL for (int n = 0; n < NB; n += 2) {
            uint32_t y[4];
            mma_down(y, b + 16 * k * LD + 8 * n, LD);
            UNROLL for (int m = 0; m < M; m++) mma_bf16(c[m][n], w[k][m], y);
            UNROLL for (int m = 0; m < M; m++) mma_bf16(c[m][n + 1], w[k][m], y + 2);
        }
}
/* Two neighbouring pairs of a row of 16 columns, pair i at columns 8 i + 2 t, to four at columns
 * 8 (t % 2) + 4 (t / 2): a lane exchanges one pair with its neighbour. */
INLINE void mma_widen(uint32_t x[2]) {
    const bool odd = threadIdx.x % 2;
    const uint32_t other = __shfl_xor_sync(ALL_LANES, odd ? x[0] : x[1], 1);
    x[0] = odd ? other : x[0];
    x[1] = odd ? x[1] : other;
}
/* A result's 16 rows of COLS columns times f (per half), of which `have` exist. V: elements at once that
 * its rows are aligned to, at least 2. From 4 on lanes exchange pairs, so that the four of a row store 16
 * columns side by side: whole sectors of memory. */
template <int NB, int COLS, int V, class T>
INLINE void mma_store(T *to, int64_t ld, const float c[NB][4], const float f[2], int64_t have) {
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    UNROLL for (int half = 0; half < 2; half++) {
        T *const row = to + (g + 8 * half) * ld;
        float x[NB][2];
        UNROLL for (int n = 0; n < NB; n++)
            UNROLL for (int e = 0; e < 2; e++) x[n][e] = mul1(c[n][2 * half + e], f[half]) + 0.0f;
        if constexpr (V >= 4 && COLS % 16 == 0 && sizeof(T) == 2) {
            uint32_t y[NB / 2][2];
            UNROLL for (int n = 0; n < NB; n += 2) { /* all exchanges before a store that not all lanes do */
                y[n / 2][0] = pack_bf16(x[n][0], x[n][1]), y[n / 2][1] = pack_bf16(x[n + 1][0], x[n + 1][1]);
                mma_widen(y[n / 2]);
            }
            if (g + 8 * half < have)
                UNROLL for (int n = 0; n < NB; n += 2)
                    *(uint2 *)(row + 8 * (n + t % 2) + t / 2 * 4) = make_uint2(y[n / 2][0], y[n / 2][1]);
        } else if (g + 8 * half < have) {
            UNROLL for (int n = 0; n < NB; n++)
                if (8 * n < COLS) st_row<2>(row + 8 * n + 2 * t, x[n]);
        }
    }
}
