//== mma
/* Tiles of products on tensor cores: bf16 operands (float32 ones are rounded as they are read),
 * float32 sums. Floor: 2 M N K over what mma.sync reaches, or the operands' bytes over the speed of
 * memory.
 * Order of sums: one mma adds 16 products of ascending k; the mmas of a piece of PIECE k (0: of all
 * K) are added in ascending order, beginning at 0, then the sums of the pieces likewise. Every form
 * of a product and every M has this order, so that a row has the same bits alone, in a batch and in
 * any tile. */
namespace tiles_@FN@ {
typedef ${TA} TA; /* of A, B and C in memory */
typedef ${TB} TB;
typedef ${TC} TC;
enum { TRANS_A = ${ta}, TRANS_B = ${tb} }; /* A is stored as [k,m], B as [n,k] */
enum { BM = ${BM}, BN = ${BN}, BK = ${BK}, WARPS_M = ${WM}, WARPS_N = ${WN}, STAGES = ${STAGES} };
enum { THREADS = WARP * WARPS_M * WARPS_N, PIECE = ${PIECE}, VC = ${VC} };
enum { COPIERS = ${COPIERS} }; /* threads that share stages: the block, or a warp */
enum { TM = BM / WARPS_M / 16, TN = BN / WARPS_N / 16 }; /* 16x16 pieces of C of a warp */

/* One tile of a product: a, b and c point to its corner. */
struct problem {
    const TA *a;
    const TB *b;
    TC *c;
    int64_t lda, ldb, ldc;
    int m, n, k; /* how many rows, columns and products there are */
    bool add;    /* to what C holds */
};

INLINE void put(float *c, float x, bool add) { *c = add ? *c + x : x; }
INLINE void put(uint16_t *c, float x, bool) { *c = f32_to_bf16(x); }

/* An operand in shared memory: R rows (or columns) by BK. ALONG: k is the inner index, as in
 * global memory. Lines are padded so that the 8 rows of an ldmatrix, or the pairs of a warp, lie in
 * different banks. */
template <class T, bool ALONG, bool VECTOR, int R> struct operand {
    enum { LINES = ALONG ? R : BK, WIDTH = ALONG ? BK : R };
    enum { PITCH = WIDTH + (sizeof(T) == 2 || ALONG ? 8 : 4), SIZE = LINES * PITCH };
    /* A thread copies V elements of every PASS-th line. */
    enum { V = VECTOR ? 16 / (int)sizeof(T) : 1, PER = WIDTH / V, PASS = COPIERS / PER };
    static_assert(COPIERS % PER == 0 && LINES % PASS == 0, "threads divide a stage");

    /* Where this thread copies the next stage from, and how many rows and k are left from there. */
    struct source {
        const T *from;
        int64_t ld;
        int rows, depth;
    };
    INLINE source open(const T *from, int64_t ld, int rows, int depth)
    {
        int own = threadIdx.x % COPIERS, line = own / PER, at = own % PER * V;
        return {from + line * ld + at, ld, rows - (ALONG ? line : at), depth - (ALONG ? at : line)};
    }
    /* Starts to copy BK k of all rows; zeros beyond the last ones. */
    INLINE void load(T *stage, source *s)
    {
        int own = threadIdx.x % COPIERS;
        T *to = stage + own / PER * PITCH + own % PER * V;
        const T *from = s->from;
        UNROLL for (int i = 0; i < LINES; i += PASS) {
            bool valid = (ALONG ? i : 0) < s->rows && (ALONG ? 0 : i) < s->depth;
            if (VECTOR)
                cp_async16(to + i * PITCH, from, valid);
            else
                to[i * PITCH] = valid ? *from : T(0);
            from += PASS * s->ld;
        }
        s->from += ALONG ? BK : BK * s->ld;
        s->depth -= BK;
    }

    /* The elements (row, k) and (row, k+1), rounded. */
    INLINE uint32_t pair(const float *s, int row, int k)
    {
        const float *p = s + (ALONG ? row * PITCH + k : k * PITCH + row);
        float2 v = ALONG ? *(const float2 *)p : make_float2(p[0], p[PITCH]);
        return pack_bf16(v.x, v.y);
    }
    INLINE uint32_t pair(const uint16_t *, int, int) { return 0; } /* never used */

    /* The fragments of 16 rows by 16 k: f[i] holds rows + 8 where bit ROW of i is set, and k + 8
     * where the other one is. A has rows in bit 0; b, two fragments of 8 columns, in bit 1. */
    template <int ROW> INLINE void fragment(uint32_t f[4], const T *s, int row, int k)
    {
        int lane = threadIdx.x % WARP, i = lane / 8;
        int high = 8 * (i >> ROW & 1), deep = 8 * (i >> (1 - ROW) & 1);
        if (sizeof(T) == 4) {
            UNROLL for (int x = 0; x < 4; x++)
                f[x] = pair(s, row + lane / 4 + 8 * (x >> ROW & 1),
                            k + lane % 4 * 2 + 8 * (x >> (1 - ROW) & 1));
        } else if (ALONG) {
            ldmatrix4(f, s + (row + lane % 8 + high) * PITCH + k + deep);
        } else {
            ldmatrix4_trans(f, s + (k + lane % 8 + deep) * PITCH + row + high);
        }
    }
};
typedef operand<TA, !TRANS_A, ${VA}, BM> in_a;
typedef operand<TB, TRANS_B, ${VB}, BN> in_b;

/* One stage: BK products for every element from row m and column n on. */
INLINE void multiply(float sum[TM][2 * TN][4], const TA *a, const TB *b, int m, int n)
{
    UNROLL for (int k = 0; k < BK; k += 16) {
        uint32_t fa[TM][4], fb[TN][4];
        UNROLL for (int i = 0; i < TM; i++) in_a::fragment<0>(fa[i], a, m + 16 * i, k);
        UNROLL for (int j = 0; j < TN; j++) in_b::fragment<1>(fb[j], b, n + 16 * j, k);
        UNROLL for (int i = 0; i < TM; i++)
            UNROLL for (int j = 0; j < 2 * TN; j++)
                mma_bf16(sum[i][j], fa[i], fb[j / 2] + j % 2 * 2);
    }
}
} /* namespace */
//== tile
namespace tiles_@FN@ {
/* Two neighbours of a row of the tile, in C's type. */
INLINE void keep(float *t, float x, float y) { *(float2 *)t = make_float2(x, y); }
INLINE void keep(uint16_t *t, float x, float y) { *(uint32_t *)t = pack_bf16(x, y); }
/* Stores 16 bytes of C, or an element. */
INLINE void store(float *c, const float *x, bool add)
{
    float y[4];
    UNROLL for (int i = 0; i < VC; i++) y[i] = add ? c[i] + x[i] : x[i];
    if (VC > 1)
        st_f32x4(c, y);
    else
        *c = y[0];
}
INLINE void store(uint16_t *c, const uint16_t *x, bool)
{
    if (VC > 1)
        st_whole((uint4 *)c, *(const uint4 *)x);
    else
        *c = *x;
}

/* The tile goes through shared memory, in C's type, for stores of whole lines. Lines are 8 elements
 * longer than they need, so that the 8 rows that a warp writes at once lie in different banks. */
INLINE void finish(const struct problem &p, TC *tile, const float sum[TM][2 * TN][4])
{
    enum { PITCH = BN + 8 };
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int m = warp / WARPS_N * (16 * TM) + lane / 4, n = warp % WARPS_N * (16 * TN) + lane % 4 * 2;
    __syncthreads();
    UNROLL for (int i = 0; i < TM; i++)
        UNROLL for (int j = 0; j < 2 * TN; j++)
            UNROLL for (int x = 0; x < 2; x++)
                keep(tile + (m + 16 * i + 8 * x) * PITCH + n + 8 * j, sum[i][j][2 * x],
                     sum[i][j][2 * x + 1]);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < BM * BN / VC; i += THREADS) {
        int row = i / (BN / VC), col = i % (BN / VC) * VC;
        if (row < p.m && col < p.n) store(p.c + row * p.ldc + col, tile + row * PITCH + col, p.add);
    }
}

INLINE void end_piece(float total[TM][2 * TN][4], float sum[TM][2 * TN][4])
{
    UNROLL for (int i = 0; i < TM; i++)
        UNROLL for (int j = 0; j < 2 * TN; j++)
            UNROLL for (int x = 0; x < 4; x++) total[i][j][x] += sum[i][j][x], sum[i][j][x] = 0;
}

/* The whole block computes a tile; STAGES stages of operands are on their way. */
INLINE void run(const struct problem &p)
{
    DYNAMIC_SHARED(unsigned char, memory);
    TA *const a = (TA *)memory;
    TB *const b = (TB *)(memory + STAGES * in_a::SIZE * sizeof(TA));
    float sum[TM][2 * TN][4] = {}, total[TM][2 * TN][4] = {};
    const int warp = threadIdx.x / WARP;
    const int m = warp / WARPS_N * (16 * TM), n = warp % WARPS_N * (16 * TN);
    int steps = (p.k + BK - 1) / BK;
    in_a::source from_a = in_a::open(p.a, p.lda, p.m, p.k);
    in_b::source from_b = in_b::open(p.b, p.ldb, p.n, p.k);
    UNROLL for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            in_a::load(a + s * in_a::SIZE, &from_a);
            in_b::load(b + s * in_b::SIZE, &from_b);
        }
        cp_async_commit();
    }
    for (int s = 0; s < steps; s++) {
        cp_async_wait(STAGES - 2);
        __syncthreads();
        int next = s + STAGES - 1, at = next % STAGES;
        if (next < steps) {
            in_a::load(a + at * in_a::SIZE, &from_a);
            in_b::load(b + at * in_b::SIZE, &from_b);
        }
        cp_async_commit();
        multiply(sum, a + s % STAGES * in_a::SIZE, b + s % STAGES * in_b::SIZE, m, n);
        if (PIECE > 0 && (s + 1) % (PIECE > 0 ? PIECE / BK : 1) == 0) end_piece(total, sum);
    }
    end_piece(total, sum);
    finish(p, (TC *)memory, total);
}
} /* namespace */
//== simt
/* Tiles of products in float32: an element of a piece of PIECE k is one chain of fma over ascending
 * k, beginning at 0; the pieces are added in ascending order, whatever M is. Operands in two bytes
 * are widened as they are read. */
namespace tiles_@FN@ {
typedef ${TA} TA; /* of A, B and C in memory */
typedef ${TB} TB;
typedef ${TC} TC;
enum { TRANS_A = ${ta}, TRANS_B = ${tb} }; /* A is stored as [k,m], B as [n,k] */
enum { BM = 64, BN = 64, BK = 16, THREADS = 256, PITCH = 68, EACH = BM * BK / THREADS };
enum { PIECE = ${PIECE} };

/* One tile of a product: a, b and c point to its corner. */
struct problem {
    const TA *a;
    const TB *b;
    TC *c;
    int64_t lda, ldb, ldc;
    int m, n, k; /* how many rows, columns and products there are */
    bool add;    /* to what C holds */
};

INLINE float value(float x) { return x; }
INLINE float value(uint16_t x) { return bf16_to_f32(x); }
INLINE void put(float *c, float x, bool add) { *c = add ? *c + x : x; }
INLINE void put(uint16_t *c, float x, bool) { *c = f32_to_bf16(x); }

/* This thread's elements of 64 rows by BK k; ALONG: k is the inner index in memory. */
template <bool ALONG, class T>
INLINE void fetch(float x[EACH], const T *from, int64_t ld, int rows, int k, int depth)
{
    UNROLL for (int i = 0; i < EACH; i++) {
        int at = i * THREADS + threadIdx.x, row = ALONG ? at / BK : at % BM;
        int deep = k + (ALONG ? at % BK : at / BM);
        bool valid = row < rows && deep < depth;
        x[i] = valid ? value(from[ALONG ? row * ld + deep : deep * ld + row]) : 0.0f;
    }
}
template <bool ALONG> INLINE void keep(float (*to)[PITCH], const float x[EACH])
{
    UNROLL for (int i = 0; i < EACH; i++) {
        int at = i * THREADS + threadIdx.x;
        to[ALONG ? at % BK : at / BM][ALONG ? at / BK : at % BM] = x[i];
    }
}

/* The whole block computes a tile; a thread 4x4 of it, while the next operands are on their way. */
INLINE void run(const struct problem &p)
{
    __shared__ __align__(16) float a[2][BK][PITCH], b[2][BK][PITCH];
    float sum[4][4] = {}, total[4][4] = {}, xa[EACH], xb[EACH];
    int m = threadIdx.x / 16 * 4, n = threadIdx.x % 16 * 4, steps = (p.k + BK - 1) / BK;
    fetch<!TRANS_A>(xa, p.a, p.lda, p.m, 0, p.k);
    fetch<TRANS_B>(xb, p.b, p.ldb, p.n, 0, p.k);
    for (int s = 0; s < steps; s++) {
        keep<!TRANS_A>(a[s % 2], xa);
        keep<TRANS_B>(b[s % 2], xb);
        __syncthreads();
        fetch<!TRANS_A>(xa, p.a, p.lda, p.m, (s + 1) * BK, p.k);
        fetch<TRANS_B>(xb, p.b, p.ldb, p.n, (s + 1) * BK, p.k);
        UNROLL for (int k = 0; k < BK; k++) {
            float fa[4], fb[4];
            ld_f32x4(fa, &a[s % 2][k][m]);
            ld_f32x4(fb, &b[s % 2][k][n]);
            UNROLL for (int i = 0; i < 4; i++)
                UNROLL for (int j = 0; j < 4; j++) sum[i][j] = fma1(fa[i], fb[j], sum[i][j]);
        }
        if ((s + 1) % (PIECE / BK) && s + 1 < steps) continue;
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int j = 0; j < 4; j++) total[i][j] += sum[i][j], sum[i][j] = 0;
    }
    UNROLL for (int i = 0; i < 4; i++)
        UNROLL for (int j = 0; j < 4; j++)
            if (m + i < p.m && n + j < p.n) put(p.c + (m + i) * p.ldc + n + j, total[i][j], p.add);
}
} /* namespace */
//== few
/* At most 16 rows. A block has BN columns and all of K, a warp every WARPS-th piece of it, with
 * stages of its own, so that nobody waits for another one; then the block adds the pieces in order.
 * B is read once, and nothing is written on the way. Floor: B over the speed of memory. */
namespace tiles_@FN@ {
enum { WARPS = ${WARPS}, ROUNDS = ${ROUNDS}, STEPS = PIECE / BK, PART = BN + 8 };
typedef float sums[TM][2 * TN][4];

/* Begins the copy of step s of this warp. Steps beyond K copy nothing, and nobody reads them. */
INLINE void fetch(const problem &p, TA *a, TB *b, int s)
{
    int k = (threadIdx.x / WARP + s / STEPS * WARPS) * PIECE + s % STEPS * BK;
    if (k < p.k) {
        auto from_a = in_a::open(p.a + k * (TRANS_A ? p.lda : 1), p.lda, p.m, p.k - k);
        auto from_b = in_b::open(p.b + k * (TRANS_B ? 1 : p.ldb), p.ldb, p.n, p.k - k);
        in_a::load(a + s % STAGES * in_a::SIZE, &from_a);
        in_b::load(b + s % STAGES * in_b::SIZE, &from_b);
    }
    cp_async_commit();
}
} /* namespace */
extern "C" __global__ void __launch_bounds__(tiles_@FN@::WARPS * WARP)
@FN@(const tiles_@FN@::TA *a, const tiles_@FN@::TB *b, tiles_@FN@::TC *c, int64_t m, int64_t n, int64_t k, int64_t lda,
     int64_t ldb, int64_t ldc, int64_t add)
{
    using namespace tiles_@FN@;
    DYNAMIC_SHARED(unsigned char, memory);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int64_t col = (int64_t)blockIdx.x * BN;
    TA *const sa = (TA *)memory + warp * STAGES * in_a::SIZE;
    TB *const sb = (TB *)((TA *)memory + WARPS * STAGES * in_a::SIZE) + warp * STAGES * in_b::SIZE;
    const problem p = {a, b + col * (TRANS_B ? ldb : 1), c + col, lda, ldb, ldc, (int)m,
                       (int)min64(BN, n - col), (int)k, add != 0};
    sums done[ROUNDS] = {};
    UNROLL for (int s = 0; s < STAGES - 1; s++) fetch(p, sa, sb, s);
    UNROLL for (int r = 0; r < ROUNDS; r++)
        for (int s = r * STEPS; s < (r + 1) * STEPS; s++) {
            cp_async_wait(STAGES - 2);
            __syncwarp(); /* what all lanes copied is there, and they have read the slot of s - 1 */
            fetch(p, sa, sb, s + STAGES - 1);
            if ((warp + r * WARPS) * PIECE + s % STEPS * BK < p.k)
                multiply(done[r], sa + s % STAGES * in_a::SIZE, sb + s % STAGES * in_b::SIZE, 0, 0);
        }
    __syncthreads(); /* the stages are free */
    float *const part = (float *)memory;
    const int pieces = (p.k + PIECE - 1) / PIECE;
    UNROLL for (int r = 0; r < ROUNDS; r++) {
        int piece = warp + r * WARPS;
        if (piece >= pieces) continue;
        UNROLL for (int j = 0; j < 2 * TN; j++)
            UNROLL for (int x = 0; x < 2; x++)
                *(float2 *)(part + (piece * BM + lane / 4 + 8 * x) * PART + 8 * j + lane % 4 * 2) =
                    make_float2(done[r][0][j][2 * x], done[r][0][j][2 * x + 1]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < p.m * BN; i += WARPS * WARP) {
        int row = i / BN, at = i % BN;
        float sum = 0;
        for (int z = 0; z < pieces; z++) sum += part[(z * BM + row) * PART + at];
        if (at < p.n) put(p.c + row * p.ldc + at, sum, p.add);
    }
}
//== simt_few
/* At most 16 rows in float32, with k as the inner index of A and B: a block has 8 columns and all of
 * K. `group` pieces at a time of its rows and columns come to shared memory; a thread adds the chain
 * of one element and piece, then the block the pieces in order: the bits of simt's tiles. Floor: B
 * over the speed of memory. */
namespace few_@FN@ {
enum { COLS = 8, PIECE = ${PIECE}, PITCH = PIECE + 4, THREADS = 256 };
INLINE void put(float *c, float x, bool add) { *c = add ? *c + x : x; }
INLINE void put(uint16_t *c, float x, bool) { *c = f32_to_bf16(x); }
} /* namespace */
extern "C" __global__ void __launch_bounds__(few_@FN@::THREADS)
@FN@(const float *a, const float *b, ${TC} *c, int64_t m, int64_t n, int64_t k, int64_t lda,
     int64_t ldb, int64_t ldc, int64_t group, int64_t add)
{
    using namespace few_@FN@;
    DYNAMIC_SHARED(float, lines); /* [group][rows of A, then columns of B][PITCH] */
    const int64_t col = (int64_t)blockIdx.x * COLS;
    const int rows = (int)m, all = rows + COLS, pieces = (int)div_up(k, PIECE);
    float *const part = lines + group * all * PITCH; /* [pieces][rows][COLS] */
    for (int base = 0; base < pieces; base += (int)group) {
        const int here = pieces - base < group ? pieces - base : (int)group;
        for (int line = threadIdx.x / WARP; line < here * all; line += THREADS / WARP) {
            int r = line % all;
            int64_t deep = (int64_t)(base + line / all) * PIECE;
            const float *from = (r < rows ? a + r * lda : b + (col + r - rows) * ldb) + deep;
            bool is = r < rows || col + r - rows < n;
            UNROLL for (int at = threadIdx.x % WARP * 4; at < PIECE; at += WARP * 4)
                cp_async16(lines + line * PITCH + at, from + at, is && deep + at < k);
        }
        cp_async_commit();
        cp_async_wait(0);
        __syncthreads();
        for (int i = threadIdx.x; i < here * rows * COLS; i += THREADS) {
            int g = i / COLS / rows, r = i / COLS % rows;
            const float *x = lines + (g * all + r) * PITCH;
            const float *y = lines + (g * all + rows + i % COLS) * PITCH;
            float sum = 0;
            UNROLL_BY(8) for (int d = 0; d < PIECE; d += 4) {
                float u[4], v[4];
                ld_f32x4(u, x + d), ld_f32x4(v, y + d);
                UNROLL for (int e = 0; e < 4; e++) sum = fma1(u[e], v[e], sum);
            }
            part[base * rows * COLS + i] = sum;
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < rows * COLS; i += THREADS) {
        float sum = 0;
        for (int z = 0; z < pieces; z++) sum += part[z * rows * COLS + i];
        if (col + i % COLS < n) put(c + i / COLS * ldc + col + i % COLS, sum, add != 0);
    }
}
//== product
/* Block (x, y, z): tile of rows y and columns x of product z. */
extern "C" __global__ void __launch_bounds__(tiles_@FN@::THREADS)
@FN@(const tiles_@FN@::TA *a, const tiles_@FN@::TB *b, tiles_@FN@::TC *c, int64_t m, int64_t n, int64_t k, int64_t lda,
     int64_t ldb, int64_t ldc, int64_t stride_a, int64_t stride_b, int64_t stride_c, int64_t add)
{
    using namespace tiles_@FN@;
    int64_t row = (int64_t)blockIdx.y * BM, col = (int64_t)blockIdx.x * BN, z = blockIdx.z;
    problem p = {a + z * stride_a + row * (TRANS_A ? 1 : lda), b + z * stride_b + col * (TRANS_B ? ldb : 1),
                 c + z * stride_c + row * ldc + col, lda, ldb, ldc, (int)min64(BM, m - row),
                 (int)min64(BN, n - col), (int)k, add != 0};
    run(p);
}
//== pieces
/* Block (x, y, z): the sums of piece z of K for the tile of rows y and columns x, to part[z][m][n]:
 * enough blocks for all SMs where C is small. For a few rows the floor is reading B. */
extern "C" __global__ void __launch_bounds__(tiles_@FN@::THREADS)
@FN@(const tiles_@FN@::TA *a, const tiles_@FN@::TB *b, float *part, int64_t m, int64_t n, int64_t k, int64_t lda,
     int64_t ldb)
{
    using namespace tiles_@FN@;
    int64_t row = (int64_t)blockIdx.y * BM, col = (int64_t)blockIdx.x * BN;
    int64_t z = blockIdx.z, from = z * PIECE;
    problem p = {a + (TRANS_A ? from * lda + row : row * lda + from),
                 b + (TRANS_B ? col * ldb + from : from * ldb + col), part + (z * m + row) * n + col,
                 lda, ldb, n, (int)min64(BM, m - row), (int)min64(BN, n - col),
                 (int)min64(PIECE, k - from), false};
    run(p);
}
//== finish
/* Adds the pieces in order; a thread for every element of C. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const float *part, ${TC} *c, int64_t m, int64_t n, int64_t ldc, int64_t pieces, int64_t add)
{
    int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x;
    if (i >= m * n) return;
    float sum = 0;
    for (int64_t z = 0; z < pieces; z++) sum += part[z * m * n + i];
    ${TC} *to = c + i / n * ldc + i % n;
    *to = ${ROUND}(add ? ${WIDEN}(*to) + sum : sum);
}
//== table
/* The row tiles of all experts, at most `tiles`: expert, first row, rows of each; unused ones have
 * no rows. One block. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const int32_t *offsets, int32_t *table, int64_t experts, int64_t tiles)
{
    __shared__ int part[WARP];
    __shared__ int before;
    if (threadIdx.x == 0) before = 0;
    for (int64_t base = 0; base < experts; base += 256) {
        int64_t e = base + threadIdx.x;
        int from = e < experts ? offsets[e] : 0, to = e < experts ? offsets[e + 1] : 0;
        int own = (to - from + ${BM} - 1) / ${BM}, end = block_scan(own, part);
        int at = before + end - own;
        for (int i = 0; i < own; i++) {
            int32_t *t = table + 3 * (int64_t)(at + i);
            t[0] = (int32_t)e, t[1] = from + i * ${BM}, t[2] = to - t[1];
        }
        __syncthreads();
        if (threadIdx.x == 255) before = at + own;
        __syncthreads();
    }
    for (int64_t i = before + threadIdx.x; i < tiles; i += 256) table[3 * i + 2] = 0;
}
//== grouped
/* A block for every tile of columns of every row tile of the table: those times its expert's matrix. */
extern "C" __global__ void __launch_bounds__(tiles_@FN@::THREADS)
@FN@(const tiles_@FN@::TA *a, const tiles_@FN@::TB *b, tiles_@FN@::TC *c, const int32_t *table, int64_t n, int64_t k,
     int64_t lda, int64_t ldb, int64_t ldc)
{
    using namespace tiles_@FN@;
    const int across = (int)div_up(n, BN);
    const int32_t *tile = table + 3 * (int64_t)(blockIdx.x / across);
    int64_t row = tile[1], col = (int64_t)(blockIdx.x % across) * BN;
    if (tile[2] <= 0) return;
    problem p = {a + row * lda, b + tile[0] * (n * k) + col * (TRANS_B ? ldb : 1),
                 c + row * ldc + col, lda, ldb, ldc, (int)min64(BM, tile[2]),
                 (int)min64(BN, n - col), (int)k, false};
    run(p);
}
//== grouped_few
/* The same for few rows, without a table, which would be a launch more: a block finds its row tile
 * among the experts', by their numbers of tiles added up. */
extern "C" __global__ void __launch_bounds__(tiles_@FN@::THREADS)
@FN@(const tiles_@FN@::TA *a, const tiles_@FN@::TB *b, tiles_@FN@::TC *c, const int32_t *offsets, int64_t n, int64_t k,
     int64_t lda, int64_t ldb, int64_t ldc, int64_t experts)
{
    using namespace tiles_@FN@;
    __shared__ int part[WARP], expert, first, rows, all;
    const int across = (int)div_up(n, BN), mine = blockIdx.x / across;
    if (threadIdx.x == 0) rows = 0;
    for (int64_t base = 0, before = 0; base < experts && before <= mine; base += THREADS) {
        int64_t e = base + threadIdx.x;
        int from = e < experts ? offsets[e] : 0, to = e < experts ? offsets[e + 1] : 0;
        int own = (to - from + BM - 1) / BM, end = (int)before + block_scan(own, part);
        if (mine < end && mine >= end - own)
            expert = (int)e, first = from + (mine - end + own) * BM, rows = to - first;
        if (threadIdx.x == THREADS - 1) all = end;
        __syncthreads();
        before = all;
        __syncthreads();
    }
    if (rows <= 0) return;
    int64_t col = (int64_t)(blockIdx.x % across) * BN;
    problem p = {a + first * lda, b + expert * (n * k) + col * (TRANS_B ? ldb : 1),
                 c + first * ldc + col, lda, ldb, ldc, (int)min64(BM, rows),
                 (int)min64(BN, n - col), (int)k, false};
    run(p);
}
//== dw
/* Block (x, y, z): a tile of expert z's dy^T x, over the expert's rows; zeros where it has none. */
extern "C" __global__ void __launch_bounds__(tiles_@FN@::THREADS)
@FN@(const tiles_@FN@::TA *dy, const tiles_@FN@::TB *x, const int32_t *offsets, tiles_@FN@::TC *c, int64_t m, int64_t n,
     int64_t lda, int64_t ldb)
{
    using namespace tiles_@FN@;
    int64_t row = (int64_t)blockIdx.y * BM, col = (int64_t)blockIdx.x * BN, z = blockIdx.z;
    int64_t from = offsets[z];
    problem p = {dy + from * lda + row, x + from * ldb + col, c + (z * m + row) * n + col, lda, ldb,
                 n, (int)min64(BM, m - row), (int)min64(BN, n - col),
                 offsets[z + 1] - (int)from, false};
    run(p);
}
//== cast
/* A matrix as ${TO}: a thread for every ${V} elements; rows without gaps come as one. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(const ${FROM} *from, ${TO} *to, int64_t rows, int64_t cols, int64_t ld, int64_t ld_to)
{
    int64_t i = (blockIdx.x * (int64_t)256 + threadIdx.x) * ${V};
    if (i >= rows * cols) return;
    int64_t row = rows == 1 ? 0 : i / cols, col = i - row * cols;
    const ${FROM} *p = from + row * ld + col;
    ${TO} *q = to + row * ld_to + col;
    ${MOVE}
}
