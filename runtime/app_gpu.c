/* Of programs for GPUs: kernels are cubins in the bundle, and the driver is loaded at run time. */
#include "runtime/app.h"
#include "runtime/lm_gpu.h"

const struct app_set *const app_sets[] = {NULL};

static void find_images(struct app *p, struct lm_gpu_parts *parts)
{
    struct str *image = NEW(p->a, struct str, p->own.n);
    for (size_t i = 0; i < p->own.n; i++)
        if (str_starts(str_of(p->own.section[i].name), "cubin/"))
            image[parts->num_images++] = (struct str){p->own.section[i].p, p->own.section[i].bytes};
    parts->image = image;
}

enum rt_status app_device_open(struct app *p, const struct plan_set *set, struct lm **out,
                               struct rt_error *err)
{
    const struct app_about *x = &p->about;
    struct lm_plan *plan = NEW(p->a, struct lm_plan, set->n);
    struct lm_gpu_parts parts = {
        .parts = {.context = x->context, .pages = x->pages, .states = x->states},
        .weights = p->weights->p};
    struct gpu *gpu;
    *out = NULL;
    for (size_t i = 0; i < set->n; i++) {
        const struct plan_item *item = &set->item[i];
        if (item->plan.arena_bytes[SA_weights] > p->weights->bytes)
            return rt_fail(err, RT_user, "'%s' is damaged: its weights are cut", p->path);
        plan[i] = (struct lm_plan){.B = item->B, .T = item->T, .plan = &item->plan};
    }
    parts.parts.plan = plan;
    parts.parts.num_plans = set->n;
    RT_TRY(lm_plans_check(&parts.parts, false, err));
    find_images(p, &parts);
    RT_TRY(gpu_open(0, &gpu, err));
    return lm_gpu_open(gpu, &parts, out, err);
}
