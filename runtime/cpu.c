#include "runtime/cpu.h"
#include <string.h>

static const struct cpu_about kinds[CPU_KINDS] = {
    [CPU_v3] = {"x86-64-v3", "AVX2 and FMA", {"-march=x86-64-v3"}, false},
    [CPU_v4] = {"x86-64-v4", "AVX-512", {"-march=x86-64-v4"}, false},
    [CPU_v4_bf16] = {"x86-64-v4-bf16",
                     "AVX512-BF16 and -VBMI",
                     {"-march=x86-64-v4", "-mavx512bf16", "-mavx512vbmi"},
                     true},
};

const struct cpu_about *cpu_about(enum cpu_kind k)
{
    return &kinds[k];
}

enum cpu_kind cpu_find(const char *name)
{
    enum cpu_kind k = CPU_v3;
    while (k < CPU_KINDS && strcmp(kinds[k].name, name)) k++;
    return k;
}

static bool has_v3(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

static bool has_v4(void)
{
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

bool cpu_runs(enum cpu_kind k)
{
    switch (k) {
    case CPU_v3: return has_v3();
    case CPU_v4: return has_v4();
    case CPU_v4_bf16:
        return has_v4() && __builtin_cpu_supports("avx512bf16") &&
               __builtin_cpu_supports("avx512vbmi");
    case CPU_KINDS: break;
    }
    return false;
}
