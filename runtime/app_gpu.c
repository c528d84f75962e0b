/* Of programs for GPUs: kernels are cubins in the bundle, and the driver is loaded at run time. */
#include "runtime/app.h"
#include "runtime/lm_gpu.h"

const struct app_set *const app_sets[] = {NULL};

/* Names and places of the parameters in the section of weights. */
static enum rt_status find_values(struct app *p, struct lm_gpu_parts *parts, struct rt_error *err)
{
    const json_t *list = json_object_get(json_object_get(p->meta, "weights"), "values");
    size_t n = json_array_size(list);
    struct lm_gpu_value *v = NEW(p->a, struct lm_gpu_value, n);
    const struct sa_plan *plan = parts->parts.plan[0].plan;
    for (size_t i = 0; i < n; i++) {
        const json_t *row = json_array_get(list, i);
        json_int_t at = json_integer_value(json_array_get(row, 1));
        v[i].name = json_string_value(json_array_get(row, 0));
        v[i].p = p->weights->p + at;
        uint64_t bytes = 4, room = at < 0 ? 0 : p->weights->bytes;
        for (uint32_t k = 0; v[i].name && k < plan->num_values; k++)
            if (!strcmp(plan->values[k].name, v[i].name))
                for (uint32_t d = 0; d < plan->values[k].rank; d++)
                    bytes *= (uint64_t)plan->values[k].dims[d];
        if (!v[i].name || (uint64_t)at > room || bytes > room - (uint64_t)at)
            return rt_fail(err, RT_user, "'%s' is damaged: parameter %zu lies outside its weights",
                           p->path, i);
    }
    parts->value = v;
    parts->num_values = n;
    return RT_ok;
}

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
        .parts = {.context = x->context, .pages = x->pages, .states = x->states}};
    *out = NULL;
    for (size_t i = 0; i < set->n; i++)
        plan[i] =
            (struct lm_plan){.B = set->item[i].B, .T = set->item[i].T, .plan = &set->item[i].plan};
    parts.parts.plan = plan;
    parts.parts.num_plans = set->n;
    if (!set->n) return rt_fail(err, RT_user, "'%s' is damaged: it has no plans", p->path);
    find_images(p, &parts);
    RT_TRY(find_values(p, &parts, err));
    return lm_gpu_open(0, &parts, out, err);
}
