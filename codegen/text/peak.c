/* What the machine can do at most: multiply-adds that depend on nothing outside the registers, and
 * reads that nothing is done with. `bench` compares whole steps with them. */

/* n[0] rounds of 24 * 16 * 2 operations an item: 24 sums hide the latency of a multiply-add. */
void strata_peak_fma(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *scratch)
{
    v16 sum[24], x = ld16(p[0]), y = x * 0.5f;
    for (int i = 0; i < 24; i++) sum[i] = x * (float)i;
    for (int64_t k = lo * n[0]; k < hi * n[0]; k++)
        _Pragma("clang loop unroll(full)") for (int i = 0; i < 24; i++) sum[i] =
            fma16(sum[i], x, y);
    for (int i = 0; i < 24; i++) x += sum[i];
    if (hsum16(x) == 12345.0f) *(float *)p[0] = 1.0f; /* or nothing above would be needed */
}

/* The same of products of two bf16 numbers a word (tile_dot): 24 * 16 * 4 operations a round. */
void strata_peak_bf16(void *const *p, const int64_t *n, int64_t lo, int64_t hi, UNUSED void *scratch)
{
    v16 sum[24], x = ld16(p[0]), y = x * 0.5f;
    for (int i = 0; i < 24; i++) sum[i] = x * (float)i;
    for (int64_t k = lo * n[0]; k < hi * n[0]; k++)
        _Pragma("clang loop unroll(full)") for (int i = 0; i < 24; i++) sum[i] =
            tile_dot(x, y, sum[i], 1);
    for (int i = 0; i < 24; i++) x += sum[i];
    if (hsum16(x) == 12345.0f) *(float *)p[0] = 1.0f;
}

/* Item i: floats i * n[0] .. (i + 1) * n[0] - 1; n[0] is a multiple of 128. */
void strata_peak_read(void *const *p, const int64_t *n, int64_t lo, int64_t hi,
                      UNUSED void *scratch)
{
    const float *x = p[0];
    v16 sum[8];
    for (int i = 0; i < 8; i++) sum[i] = splat16(0);
    for (int64_t k = lo * n[0]; k < hi * n[0]; k += 128)
        _Pragma("clang loop unroll(full)") for (int i = 0; i < 8; i++) sum[i] +=
            ld16(x + k + 16 * i);
    v16 all = sum[0];
    for (int i = 1; i < 8; i++) all += sum[i];
    if (hsum16(all) == 12345.0f) *(float *)p[0] = 1.0f;
}
