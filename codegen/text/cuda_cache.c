/* Caches of incremental programs: B sequences of `steps` new tokens, past[b] tokens before them. Position i of
 * sequence b is row pages[b * table + i/64] * 64 + i mod 64 of a cache. */
//== last_rows
/* The last of every T rows: block b copies row b*T + T-1 of x. */
extern "C" __global__ void __launch_bounds__(128)
@FN@(const ${T} *x, ${T} *y, int64_t steps, int64_t ld)
{
    const ${T} *from = x + (blockIdx.x * steps + steps - 1) * ld;
    for (int i = threadIdx.x; i < ${C}; i += 128) y[blockIdx.x * (int64_t)${C} + i] = from[i];
}
//== cache_write
/* New rows into their pages; a thread moves ${V} elements. */
extern "C" __global__ void __launch_bounds__(256)
@FN@(${T} *cache, const ${TX} *x, const int32_t *pages, const int32_t *past, int64_t rows,
     int64_t steps, int64_t table)
{
    enum { V = ${V}, PARTS = ${C} / V };
    const int64_t at = blockIdx.x * (int64_t)256 + threadIdx.x, r = at / PARTS;
    const int c = (int)(at % PARTS) * V;
    if (r >= rows) return;
    const int64_t b = r / steps, position = past[b] + r % steps;
    float v[V];
    ld_row<V>(v, x + r * ${LDX} + c);
    st_row<V>(cache + ((int64_t)pages[b * table + position / 64] * 64 + position % 64) * ${C} + c, v);
}
