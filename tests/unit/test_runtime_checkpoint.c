/* Checkpoints: whatever operation fails, and wherever the process is killed, the newest valid one
 * is the old or the new one; any changed or missing byte is refused with the file's name. */
#include "runtime/checkpoint.h"
#include "scratch.h"
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static float weights[64], moments[32];
static const struct tf_tensor model = {
    .name = "w", .dtype = TF_F32, .rank = 2, .shape = {8, 8}, .data = weights};
static const struct tf_tensor optimizer = {
    .name = "w.m", .dtype = TF_F32, .rank = 1, .shape = {32}, .data = moments};

static enum rt_status save_step(struct ckpt_dir *d, uint64_t step, unsigned keep,
                                struct rt_error *err)
{
    for (int i = 0; i < 64; i++) weights[i] = (float)step + (float)i;
    struct ckpt_state state = {0};
    ckpt_state_set(&state, "seed", -5);
    ckpt_state_set(&state, "tokens", (int64_t)step * 100);
    const struct ckpt_file files[] = {{"spec.yaml", STR("strata: 1\n")}, {"chars.json", STR("{}")}};
    struct ckpt_content c = {.step = step,
                             .model = {.tensors = &model, .count = 1},
                             .optimizer = {.tensors = &optimizer, .count = 1},
                             .state = &state,
                             .files = files,
                             .num_files = 2};
    return ckpt_save(d, &c, keep, err);
}

static struct ckpt_dir *open_dir(const char *path)
{
    struct ckpt_dir *d;
    struct rt_error err = {""};
    if (ckpt_open(path, &d, &err) != RT_ok) fail_msg("%s", err.text);
    return d;
}

static void must_save(struct ckpt_dir *d, uint64_t step, unsigned keep)
{
    struct rt_error err = {""};
    if (save_step(d, step, keep, &err) != RT_ok) fail_msg("%s", err.text);
}

/* The refused messages, one a line. */
static void note_refused(void *ctx, const char *dir, const char *why)
{
    (void)dir;
    sb_printf(ctx, "%s\n", why);
}

static uint64_t newest(const char *dir, struct sb *refused)
{
    char path[PATH_MAX];
    uint64_t step;
    struct sb text = {0};
    assert_int_equal(ckpt_newest(dir, note_refused, refused ? refused : &text, path, &step, NULL),
                     RT_ok);
    if (path[0]) { /* what is called valid must hold what was saved */
        struct tensorfile *f;
        assert_int_equal(tensorfile_open(path, &f, NULL), RT_ok);
        float x;
        assert_int_equal(tf_read_f32(tensorfile_find(f, "w"), 63, 1, &x, NULL), RT_ok);
        assert_true(x == (float)step + 63);
        tensorfile_close(f);
    }
    sb_free(&text);
    return path[0] ? step : UINT64_MAX;
}

/* Names in a folder that start with `prefix`. */
static unsigned count(const char *dir, const char *prefix)
{
    DIR *d = opendir(dir);
    unsigned n = 0;
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += !strncmp(e->d_name, prefix, strlen(prefix));
    closedir(d);
    return n;
}

static char *fresh(const char *name)
{
    char *p = in_dir(name);
    assert_int_equal(io_remove_tree(p), 0);
    return p;
}

static void saves_and_keeps(void **state)
{
    (void)state;
    char dir[512], step_dir[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", fresh("run/deep"));
    assert_int_equal(newest(dir, NULL), UINT64_MAX);
    assert_false(ckpt_any(dir));
    struct ckpt_dir *d = open_dir(dir);
    for (uint64_t step = 1; step <= 12; step += step == 1 ? 8 : 1) must_save(d, step, 2);
    assert_int_equal(count(dir, "step-"), 2);
    assert_int_equal(newest(dir, NULL), 12);
    must_save(d, 12, 1);
    assert_int_equal(count(dir, "step-"), 1);
    assert_int_equal(count(dir, ".saving"), 0);
    ckpt_close(d);
    struct ckpt_state s;
    int64_t v;
    assert_int_equal(ckpt_weights(dir, NULL, NULL, step_dir, NULL), RT_ok);
    assert_string_equal(step_dir + strlen(dir), "/step-12");
    assert_int_equal(ckpt_load_state(step_dir, &s, NULL), RT_ok);
    assert_true(ckpt_state_get(&s, "step", &v) && v == 12);
    assert_true(ckpt_state_get(&s, "seed", &v) && v == -5);
    assert_false(ckpt_state_get(&s, "none", &v));
    char again[PATH_MAX];
    assert_int_equal(ckpt_weights(step_dir, NULL, NULL, again, NULL), RT_ok);
    assert_string_equal(step_dir, again);
}

static void names_that_are_no_steps(void **state)
{
    (void)state;
    static const char *const names[] = {
        "step-", "step-01", "step-1x", "step-99999999999999999999", "step", "step-2.tmp"};
    char dir[512];
    snprintf(dir, sizeof dir, "%s", fresh("names"));
    io_mkdirs(dir);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        io_mkdirs(path);
    }
    assert_false(ckpt_any(dir));
}

static void one_run_a_folder(void **state)
{
    (void)state;
    char *dir = fresh("locked"), want[64];
    struct ckpt_dir *d = open_dir(dir), *second;
    struct rt_error err;
    assert_int_equal(ckpt_open(dir, &second, &err), RT_user);
    snprintf(want, sizeof want, "(process %d)", (int)getpid());
    assert_non_null(strstr(err.text, want));
    ckpt_close(d);
    ckpt_close(open_dir(dir));
    assert_int_equal(io_write_atomic(in_dir("file"), "x", 1), 0);
    assert_int_equal(ckpt_open(in_dir("file/run"), &second, &err), RT_user);
}

/* ---- faults ---- */

struct plan {
    unsigned count, at; /* the operation that fails, from 1; 0 = none */
    bool kill;
};

static int fail_nth(void *ctx, const char *op, const char *path)
{
    struct plan *p = ctx;
    (void)op, (void)path;
    if (++p->count != p->at) return 0;
    if (p->kill) _exit(9);
    return ENOSPC;
}

/* Step 1 is there; saving step 2 goes wrong at operation `at`. Returns whether it got that far. */
static bool spoil(const char *dir, unsigned at, bool kill, unsigned keep)
{
    struct plan plan = {0, at, kill};
    struct rt_error err = {""};
    if (kill) {
        pid_t pid = fork();
        int status;
        if (pid == 0) {
            struct ckpt_dir *d;
            if (ckpt_open(dir, &d, NULL) != RT_ok) _exit(1);
            ckpt_fault_hook(fail_nth, &plan);
            _exit(save_step(d, 2, keep, NULL) == RT_ok ? 0 : 2);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 9 || WEXITSTATUS(status) == 0));
        return WEXITSTATUS(status) == 9;
    }
    struct ckpt_dir *d = open_dir(dir);
    ckpt_fault_hook(fail_nth, &plan);
    enum rt_status r = save_step(d, 2, keep, &err);
    ckpt_fault_hook(NULL, NULL);
    ckpt_close(d);
    if (plan.count < at) {
        assert_int_equal(r, RT_ok);
        return false;
    }
    assert_int_equal(r, RT_machine);
    if (!strstr(err.text, dir) || !strstr(err.text, "No space")) fail_msg("'%s'", err.text);
    return true;
}

static void faults(bool kill, unsigned keep)
{
    char dir[512];
    bool old_seen = false, new_seen = false;
    for (unsigned at = 1;; at++) {
        snprintf(dir, sizeof dir, "%s", fresh("fault"));
        struct ckpt_dir *d = open_dir(dir);
        must_save(d, 1, keep);
        ckpt_close(d);
        bool failed = spoil(dir, at, kill, keep);
        struct sb refused = {0};
        uint64_t n = newest(dir, &refused);
        assert_true(n == 1 || n == 2);
        assert_int_equal(refused.n, 0); /* nothing half-written under a step's name */
        sb_free(&refused);
        old_seen |= n == 1, new_seen |= n == 2;
        if (!failed) {
            assert_int_equal(n, 2);
            break;
        }
        d = open_dir(dir);
        assert_int_equal(count(dir, ".saving") + count(dir, ".deleting"), 0);
        must_save(d, 3, 1);
        assert_int_equal(count(dir, "step-"), 1);
        ckpt_close(d);
        assert_true(at < 100);
    }
    assert_true(old_seen && new_seen);
}

static void any_operation_fails(void **state)
{
    (void)state;
    faults(false, 1);
    faults(false, 2);
}

static void killed_anywhere(void **state)
{
    (void)state;
    faults(true, 1);
}

/* ---- damage ---- */

static void expect_refused(const char *dir, const char *file, struct sb *seen)
{
    seen->n = 0;
    assert_int_equal(newest(dir, seen), 1);
    if (!seen->p || !seen->n || !strstr(seen->p, file))
        fail_msg("'%s' does not name %s", seen->n ? seen->p : "", file);
}

static void damage_file(const char *dir, const char *name, struct sb *seen)
{
    char path[1024];
    struct arena *a = arena_open("test");
    struct str s;
    snprintf(path, sizeof path, "%s/step-2/%s", dir, name);
    assert_int_equal(io_read(a, path, 1 << 20, &s), 0);
    char *copy = arena_dup(a, s.p, s.n, "test");
    size_t stride = s.n > 64 ? s.n / 61 : 1;
    for (size_t i = 0; i < s.n; i += stride) {
        copy[i] ^= (char)(1 << i % 8);
        FILE *f = fopen(path, "w");
        assert_int_equal(fwrite(copy, 1, s.n, f), s.n);
        fclose(f);
        copy[i] = s.p[i];
        expect_refused(dir, name, seen);
    }
    assert_int_equal(truncate(path, (off_t)s.n - 1), 0);
    expect_refused(dir, name, seen);
    assert_int_equal(unlink(path), 0);
    expect_refused(dir, name, seen);
    assert_int_equal(io_write_atomic(path, s.p, s.n), 0);
    assert_int_equal(newest(dir, NULL), 2);
    arena_close(a);
}

static void damage_is_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"model.safetensors", "optimizer.safetensors",
                                        "state.json",        "spec.yaml",
                                        "chars.json",        "manifest.json"};
    char dir[512], path[PATH_MAX];
    snprintf(dir, sizeof dir, "%s", fresh("damage"));
    struct ckpt_dir *d = open_dir(dir);
    struct sb seen = {0};
    must_save(d, 1, 2);
    must_save(d, 2, 2);
    ckpt_close(d);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) damage_file(dir, names[i], &seen);
    /* a damaged one never counts among the kept ones, and its step can be saved again */
    assert_int_equal(truncate(strcat(strcpy(path, dir), "/step-2/state.json"), 3), 0);
    d = open_dir(dir);
    must_save(d, 3, 2);
    assert_int_equal(count(dir, "step-"), 2);
    assert_false(io_exists(path));
    assert_int_equal(truncate(strcat(strcpy(path, dir), "/step-3/spec.yaml"), 3), 0);
    ckpt_close(d);
    d = open_dir(dir);
    struct rt_error err;
    path[strlen(path) - strlen("/spec.yaml")] = 0;
    char out[PATH_MAX];
    assert_int_equal(ckpt_weights(path, NULL, NULL, out, &err), RT_user);
    assert_non_null(strstr(err.text, "spec.yaml"));
    must_save(d, 2, 1); /* step 3 is newer and damaged: left alone */
    assert_int_equal(newest(dir, NULL), 2);
    must_save(d, 3, 1);
    assert_int_equal(newest(dir, NULL), 3);
    ckpt_close(d);
    sb_free(&seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saves_and_keeps),  cmocka_unit_test(names_that_are_no_steps),
        cmocka_unit_test(one_run_a_folder), cmocka_unit_test(any_operation_fails),
        cmocka_unit_test(killed_anywhere),  cmocka_unit_test(damage_is_refused),
    };
    if (!scratch_open()) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_close();
    return failed;
}
